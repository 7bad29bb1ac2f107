"""The catalogue: complete, unambiguous, in step with the data formats and with the page that prints it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from sproutlm.data.formats import FORMATS
from sproutlm.hub.address import Kind, parse_address
from sproutlm.hub.catalogue import STAGES, Entry, Stage, catalogue, find, markdown_table, nearest, of_address
from sproutlm.hub.listing import matches

SPROUT = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]
ENTRIES = [*catalogue("data"), *catalogue("model")]
FIELDS = {known.name: known.fields for known in FORMATS}


def test_the_corpora_and_models_that_people_ask_for_are_in_it() -> None:
    assert len(catalogue("data")) >= 35 and len(catalogue("model")) >= 20
    names = " ".join(entry.name for entry in catalogue("data"))
    wanted = "seq-monkey minimind-pretrain minimind-sft minimind-dpo belle-0.5m cci3-hq tinystories fineweb-edu"
    for name in f"{wanted} skypile climbmix sms-spam chnsenticorp ultrafeedback".split():
        assert name in names
    assert {entry.stage for entry in catalogue("data")} == set(STAGES) == set(get_args(Stage))


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_an_entry_is_complete_and_its_addresses_and_schema_are_valid(entry: Entry) -> None:
    assert (
        entry.en and entry.zh and re.search("[\u4e00-\u9fff]", entry.zh) and not re.search("[\u4e00-\u9fff]", entry.en)
    )
    assert entry.hf or entry.modelscope
    for hub, address in (("hf", entry.hf), ("modelscope", entry.modelscope)):
        if address is not None:
            parsed = parse_address(address, entry.what)
            assert parsed.hub == hub and parsed.kind == entry.what and "/" in parsed.repo
            assert str(parsed) == address and parsed.pattern is None
    if entry.what == "model":
        assert entry.parameters and entry.architecture and entry.stage is entry.format is entry.train is None
        return
    assert entry.stage is not None
    if entry.stage != "eval":
        assert entry.format in FIELDS, f"{entry.format} is no format; formats are {sorted(FIELDS)}"
        assert set(entry.columns) <= set(FIELDS[entry.format]), entry.columns
    if entry.checked:
        assert entry.size_gb is not None
    # A pattern for the training rows that fetches nothing would print a recipe that reads nothing.
    if entry.train is not None and entry.files:
        example = entry.train.replace("**", "x").replace("*", "00000")
        assert any(matches(example, pattern) for pattern in entry.files), (entry.train, entry.files)


def test_names_are_unique_and_no_two_entries_fetch_the_same() -> None:
    names = [entry.name for entry in ENTRIES]
    assert len(set(names)) == len(names)
    content = [(entry.hf or entry.modelscope, tuple(entry.files)) for entry in ENTRIES]
    assert len(set(content)) == len(content)


def test_a_name_is_found_however_it_is_written_and_a_wrong_one_has_neighbours(sprout: SPROUT) -> None:
    assert find("TinyStories", "data").name == find("tinystories", "data").name
    assert find("seq_monkey", "data").name == "seq-monkey"
    assert nearest("tinystorys", "data") == ["tinystories"] and "belle-1m" in nearest("belle", "data")
    ran = sprout("data", "download", "tinystorys")
    assert ran.code == 1 and "did you mean tinystories?" in ran.err
    ran = sprout("data", "download", "qwen3-0.6b")
    assert ran.code == 1 and "qwen3-0.6b is a model; use: sprout download model qwen3-0.6b" in ran.err
    ran = sprout("data", "download", "seq-monkey", "--from", "hf")
    assert ran.code == 1 and "--from modelscope" in ran.err
    entry = of_address(parse_address("hf://datasets/roneneldan/TinyStories@main/data", "data"))
    assert entry is not None and entry.name == "tinystories"


def test_the_table_can_be_searched_and_written_as_json(sprout: SPROUT, tmp_path: Path) -> None:
    ran = sprout("data", "catalogue", "belle", "--json", tmp_path / "c.json")
    assert ran.code == 0 and "sprout data download belle-0.5m" in ran.out and "chnsenticorp" not in ran.out
    entries = json.loads((tmp_path / "c.json").read_text())
    assert {entry["name"] for entry in entries} == {"belle-0.5m", "belle-1m", "belle-2m", "belle-3.5m"}
    assert entries[0]["command"] == "sprout data download belle-0.5m" and entries[0]["licence"] == "gpl-3.0"
    ran = sprout("data", "catalogue", "--stage", "preference")
    assert ran.code == 0 and "ultrafeedback" in ran.out and "tinystories" not in ran.out
    assert "qwen3-0.6b" in sprout("data", "catalogue", "--models").out
    for wrong in (["--stage", "sleeping"], ["nothing-like-it"]):
        ran = sprout("data", "catalogue", *wrong)
        assert ran.code == 1 and len(ran.err.strip().splitlines()) == 1


# A row with the columns that the owner's page shows, for entries whose columns have names of their own.
ROWS: dict[str, dict[str, Any]] = {
    "cci3": {"id": "1", "content": "text", "meta_info": "{}"},
    "wikipedia-cn-filtered": {"completion": "text", "source": "wikipedia.zh2307"},
    "firefly-1.1m": {"kind": "NLI", "input": "question", "target": "answer"},
    "dolly-15k": {"instruction": "do", "context": "given", "response": "done", "category": "open_qa"},
    "orca-dpo-pairs": {"system": "be brief", "question": "why", "chosen": "so", "rejected": "no"},
    "sms-spam": {"sms": "win a prize", "label": 1},
    "sst2": {"idx": 0, "sentence": "a fine film", "label": 1},
}


def test_columns_lead_the_formats_to_the_right_fields() -> None:
    from sproutlm.data.formats import resolve_format

    with_columns = {entry.name: entry for entry in catalogue("data") if entry.columns}
    assert with_columns.keys() == ROWS.keys()
    for name, entry in with_columns.items():
        assert entry.format is not None
        record = resolve_format(entry.format, [ROWS[name]], entry.columns).parse(ROWS[name], entry.columns)
        for column in entry.columns.values():
            assert ROWS[name][column] in repr(record), (name, column, record)


@pytest.mark.parametrize("what", ["data", "model"])
@pytest.mark.parametrize(("page", "language"), [("docs/download.md", "en"), ("docs/download.zh.md", "zh")])
def test_the_page_holds_the_catalogue_as_it_is(what: Kind, page: str, language: Any) -> None:
    """After a change: ``python tests/hub/test_catalogue.py`` writes the tables anew."""
    assert markdown_table(what, language) in (ROOT / page).read_text(encoding="utf-8")


def write_tables() -> None:
    for page, language in (("docs/download.md", "en"), ("docs/download.zh.md", "zh")):
        text = (ROOT / page).read_text(encoding="utf-8")
        for what in ("data", "model"):
            table = f"<!-- {what} -->\n{markdown_table(what, language)}\n<!-- end -->"  # type: ignore[arg-type]
            text = re.sub(rf"<!-- {what} -->.*?<!-- end -->", lambda _, table=table: table, text, flags=re.DOTALL)
        (ROOT / page).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_tables()
