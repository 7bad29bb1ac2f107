"""``examine`` what is given, and ``print_report`` for a person."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import __version__
from ..config.schema import SourceConfig
from ..errors import SproutError
from .data import examine_data
from .finding import Examination, Finding, counted, in_order
from .recognise import recognise
from .scan import Scan
from .tokens import Context


def examine(paths: Sequence[Path]) -> dict[str, Any]:
    """Examine each path, or the environment where none is given.

    Data files are judged with the tokenizer and ``seq_len`` of a tokenizer, run or model given beside them. The report:
    ``ok``, ``counts`` by status, ``examined`` (path, kind, findings, notes). SproutError for a path that is nothing known.
    """
    kinds = [(Path(path), recognise(Path(path))) for path in paths]  # every mistake in a path before the first work
    examined: list[Examination] = []
    if not kinds:
        from .environment import examine_environment

        examined.append(examine_environment())
    context, scans = context_of(kinds), list[Scan]()
    for path, kind in kinds:
        examined += examine_one(path, kind, context, scans)
    if len(scans) > 1:
        examined.append(parts_of_a_set(scans))
    counts = {status: sum(one.count(status) for one in examined) for status in ("ok", "warn", "fail")}
    return {
        "ok": not counts["fail"],
        "version": __version__,
        "counts": counts,
        "examined": [one.as_dict() for one in examined],
    }


def examine_one(path: Path, kind: str, context: Context, scans: list[Scan]) -> list[Examination]:
    """Everything about one path; a run or a recipe has several parts. ``scans`` gets what was seen of data files."""
    from .download import examine_download, was_downloaded

    source = SourceConfig(path=str(path))
    if was_downloaded(path):
        before = [examine_download(path)]
        return before + (
            [examine_data(source, context, scans=scans)] if kind == "data" else of_kind(path, kind, context)
        )
    return [examine_data(source, context, scans=scans)] if kind == "data" else of_kind(path, kind, context)


def of_kind(path: Path, kind: str, context: Context) -> list[Examination]:
    if kind == "tokens":
        from .streams import examine_stream

        return [examine_stream(SourceConfig(path=str(path)), context)]
    if kind == "template":
        from .template import examine_template

        return [examine_template(path, context.tokenizer_dir)]
    if kind == "tokenizer":
        from .tokenizer import examine_tokenizer

        return [examine_tokenizer(path)]
    if kind == "recipe":
        from .recipe import examine_recipe

        return examine_recipe(path)
    if kind in ("checkpoint", "huggingface"):
        from .checkpoint import examine_checkpoint, examine_huggingface

        return [examine_checkpoint(path) if kind == "checkpoint" else examine_huggingface(path)]
    from .run import examine_run, examine_saves, examine_shards

    if kind == "checkpoints":
        return examine_saves(path)
    if kind == "shards":
        return [examine_shards(path)]
    if kind == "stages":
        folders = sorted(folder for folder in path.iterdir() if (folder / "checkpoints").is_dir())
        return [part for folder in folders for part in examine_run(folder)]
    return examine_run(path)


def parts_of_a_set(scans: list[Scan]) -> Examination:
    """Several data files on one command line: the first is taken for what is trained on, as by ``sprout data validate``."""
    from .between import compare

    found = Examination(", ".join(scan.path for scan in scans), "data files beside one another")
    compare(found, scans[:1], scans[1:])
    return found


def context_of(kinds: Sequence[tuple[Path, str]]) -> Context:
    """The tokenizer, and the row length, that the other paths on the command line name."""
    from ..tokenizer.tokenizer import find_tokenizer_folder

    context = Context()
    for path, kind in kinds:
        if kind not in ("tokenizer", "run", "huggingface", "checkpoint"):
            continue
        try:
            given = path if kind == "tokenizer" else find_tokenizer_folder(path)
            context.tokenizer_dir = context.tokenizer_dir or given
        except SproutError:
            continue  # its own examination says so
        if context.seq_len is None and (path / "recipe.yaml").is_file():
            context.seq_len = seq_len_of(path / "recipe.yaml")
    return context


def seq_len_of(recipe_file: Path) -> int | None:
    from ..config.load import load_recipe
    from ..config.schema import Recipe

    try:
        recipe = load_recipe(recipe_file).recipe
    except SproutError:
        return None
    return recipe.data.seq_len if isinstance(recipe, Recipe) else None


# --- for a person -----------------------------------------------------------------------------------------------------------

MARKS = {"ok": "ok", "warn": "warn", "fail": "FAIL"}


def print_report(report: dict[str, Any], say: Callable[[str], None] = print) -> bool:
    """Show a report, what is wrong first; whether no check failed."""
    for one in report["examined"]:
        say(f"{one['path']} ({one['kind']})" if one["path"] else "environment")
        for note in one["notes"]:
            say(f"  note  {note}")
        for finding in in_order([Finding(**values) for values in one["findings"]]):
            number = f" [pitfall {finding.pitfall}]" if finding.pitfall and finding.status != "ok" else ""
            say(f"  {MARKS[finding.status]:5} {finding.check}: {finding.what}{number}")
            if finding.cure:
                say(f"        {'cure' if finding.status != 'ok' else 'to add it'}: {finding.cure}")
    counts = report["counts"]
    say(f"{counts['fail']} failed, {counted(counts['warn'], 'warning')}, {counts['ok']} ok")
    return bool(report["ok"])
