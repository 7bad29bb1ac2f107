"""The catalogue: corpora and models that people use, each with size, licence, schema and the line to type."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ..config.strict import Strict
from ..errors import SproutError
from .address import Address, Hub, Kind, parse_address

Stage = Literal["pretrain", "sft", "preference", "classification", "eval"]
STAGES: tuple[Stage, ...] = ("pretrain", "sft", "preference", "classification", "eval")
HUB_NAMES: dict[Hub, str] = {"hf": "Hugging Face", "modelscope": "ModelScope", "folder": "a folder"}


class Entry(Strict):
    """One data set or model. What is not known is None; nothing is guessed."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    what: Kind
    language: str = Field(description="zh, en, zh+en, code, many")
    hf: str | None = Field(None, description="Address on Hugging Face.")
    modelscope: str | None = Field(None, description="Address on ModelScope.")
    files: list[str] = Field(default_factory=list, description="Globs of what is fetched; none: everything of use.")
    train: str | None = Field(None, description="Glob of the training rows, below the folder of the download.")
    size_gb: float | None = Field(None, gt=0, description="About what is fetched, GB.")
    rows: str | None = Field(None, description="Rows, or tokens where that is what is known: 2.1M rows, 1.3T tokens.")
    licence: str | None = None
    gated: bool = Field(False, description="The hub asks for consent or a login first.")
    stage: Stage | None = Field(None, description="Of data: what it is for.")
    format: str | None = Field(None, description="Of data: the schema's name in data/formats.")
    columns: dict[str, str] = Field(default_factory=dict)
    parameters: str | None = Field(None, description="Of a model: 124M, 1.5B.")
    architecture: str | None = Field(None, description="Of a model: model_type in its config.json.")
    en: str
    zh: str
    note: str | None = Field(None, description="What a person should know first.")
    checked: bool = Field(False, description="Address, licence and size were compared with the hub's page.")

    @property
    def verb(self) -> str:
        return f"sprout {'data download' if self.what == 'data' else 'download model'} {self.name}"

    def address(self, hub: Hub | None = None) -> Address:
        """Where it is fetched from; with ``hub``, there and nowhere else. Raises where that hub does not have it."""
        given = {"hf": self.hf, "modelscope": self.modelscope}
        chosen = given[hub] if hub in given else (self.hf or self.modelscope)
        if chosen is None:
            other = next(name for name in ("hf", "modelscope") if given[name])
            raise SproutError(
                f"{self.name} is not known to be on {HUB_NAMES[hub or 'hf']}; leave --from out, or: --from {other}"
            )
        return parse_address(chosen, self.what)


@cache
def catalogue(what: Kind) -> tuple[Entry, ...]:
    """Every entry of one kind, in the order of the file: by stage, then by size of audience."""
    import yaml

    path = Path(__file__).with_name("corpora.yaml" if what == "data" else "models.yaml")
    return tuple(Entry(what=what, **entry) for entry in yaml.safe_load(path.read_text(encoding="utf-8")))


def find(name: str, what: Kind) -> Entry:
    """The entry called ``name``; a ``SproutError`` names the nearest ones."""
    wanted = name.lower().replace("_", "-")
    for entry in catalogue(what):
        if entry.name == wanted:
            return entry
    other: Kind = "model" if what == "data" else "data"
    if any(entry.name == wanted for entry in catalogue(other)):
        raise SproutError(
            f"{name} is a {'model' if other == 'model' else 'data set'}; use: sprout download {other} {name}"
        )
    near = nearest(name, what)
    hint = f"did you mean {' or '.join(near)}?" if near else "see: sprout data catalogue"
    raise SproutError(
        f"{name}: not in the catalogue of {'data sets' if what == 'data' else 'models'}; {hint} Anything else of a hub goes by its "
        f"address: hf://{'datasets/' * (what == 'data')}OWNER/NAME or modelscope://{'datasets/' * (what == 'data')}OWNER/NAME"
    )


def nearest(name: str, what: Kind) -> list[str]:
    wanted = name.lower().replace("_", "-").rsplit("/", 1)[-1]
    names = [entry.name for entry in catalogue(what)]
    within = [known for known in names if wanted in known or known in wanted] if len(wanted) > 2 else []
    return (within or difflib.get_close_matches(wanted, names, n=3, cutoff=0.5))[:3]


def of_address(address: Address) -> Entry | None:
    """The entry whose repository an address names, for its licence, schema and other hub."""
    plain = str(address.without_files()).lower()
    for entry in catalogue(address.kind):
        for known in (entry.hf, entry.modelscope):
            if known is not None and str(parse_address(known, entry.what).without_files()).lower() == plain:
                return entry
    return None


def search(word: str | None, stage: str | None, what: Kind) -> list[Entry]:
    """Entries whose name, description, address or licence has ``word`` in it, or whose schema or language is it."""
    if stage is not None and stage not in STAGES:
        raise SproutError(f"--stage {stage}: expected one of {', '.join(STAGES)}")
    found = []
    for entry in catalogue(what):
        text = " ".join((entry.name, entry.en, entry.zh, entry.hf or "", entry.modelscope or "", entry.licence or ""))
        exact = (entry.format, entry.language, entry.architecture, entry.stage)
        if stage in (None, entry.stage) and (word is None or word.lower() in text.lower() or word in exact):
            found.append(entry)
    return found


def size_cell(entry: Entry) -> str:
    if entry.size_gb is None:
        return "?"
    if entry.size_gb >= 1000:
        return f"{entry.size_gb / 1000:.3g} TB"
    return f"{entry.size_gb:.3g} GB" if entry.size_gb >= 1 else f"{entry.size_gb * 1000:.3g} MB"


def as_dict(entry: Entry) -> dict[str, Any]:
    return {**entry.model_dump(), "command": entry.verb}


def markdown_table(what: Kind, language: Literal["en", "zh"]) -> str:
    """The table of the documentation's page, made from the catalogue so that the two cannot differ."""
    heads = {
        ("data", "en"): "name | for | language | size | rows | licence | schema | what",
        ("data", "zh"): "名称 | 用途 | 语言 | 大小 | 条数 | 许可 | 格式 | 内容",
        ("model", "en"): "name | parameters | architecture | size | licence | what",
        ("model", "zh"): "名称 | 参数量 | 架构 | 大小 | 许可 | 内容",
    }[what, language]
    lines = [f"| {heads} |", "|" + " --- |" * (heads.count("|") + 1)]
    for entry in catalogue(what):
        size = size_cell(entry) + (" ✓" if entry.checked else "")
        licence = (entry.licence or "?") + (" †" if entry.gated else "")
        cells = [f"`{entry.name}`"]
        if what == "data":
            schema = f"`{entry.format}`" if entry.format else "–"
            cells += [entry.stage or "?", entry.language, size, entry.rows or "?", licence, schema]
        else:
            cells += [entry.parameters or "?", entry.architecture or "?", size, licence]
        lines.append(f"| {' | '.join([*cells, entry.en if language == 'en' else entry.zh])} |")
    return "\n".join(lines)
