"""A data file, folder or glob: what would be lost, cut, trained by mistake, or never trained at all.

The beginning is read once (``ROWS`` rows, or the text that ``scan`` allows); memory is bounded by one row and a hash per row.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from ..config.schema import SourceConfig
from ..data.files import find_files, kind_of, open_binary, reading
from ..errors import DataError, SproutError
from .finding import Examination, counted, do, listed, share
from .scan import PLACES, Scan, Tally, scan_rows
from .tokens import Context, token_faults
from .turns import conversation_faults, label_faults, order_refused, pair_faults, rated_faults, without_answers

ROWS = 100_000  # rows looked at in one pass: seconds, and enough to tell
HEAD_BYTES = 1 << 20  # of each file, for line ends and marks
HEAD_FILES = 50
BAD_SHARE = 0.2  # of unreadable rows, above which the file is taken to be the wrong one
DUPLICATE_SHARE = 0.02
MARKUP_SHARE = 0.5
DAMAGE = ("not decodable", "not JSON", "broken table row")
# Beside the data of every repository, and never rows.
PAPERS = (".md", ".lock", ".pdf", ".png", ".jpg", ".svg", ".py", ".sh", ".html", ".bib", ".cff", ".rst")
PAPER_NAMES = ("LICENSE", "LICENCE", "NOTICE", "README", "Makefile", "CITATION", "AUTHORS", "SHA256SUMS", "MD5SUMS")
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "metadata.json")


def examine_data(
    source: SourceConfig, context: Context | None = None, rows: int = ROWS, scans: list[Scan] | None = None
) -> Examination:
    """Examine a source. Whatever keeps it from being read is a finding, too. ``scans`` gets what was seen."""
    context = context or Context()
    found = Examination(source.path, "data")
    opened, files = found.attempt("file", "check the path and its permissions", None, lambda: find_files(source.path))
    if not opened:
        return found
    found.kind = "data file" if len(files.paths) == 1 else f"data, {len(files.paths):,} files"
    other_files(found, source.path, files.paths)
    head_of_files(found, files.paths)
    try:
        scan = scan_rows(source, rows)
    except SproutError as error:
        cure = "mend the file; or name format and columns in a recipe, and examine that: sprout doctor RECIPE.yaml"
        found.fail("rows", str(error), cure, 13)
        return found
    if scans is not None:
        scans.append(scan)
    kinds = ", ".join(counted(n, kind.removesuffix("s")) for kind, n in scan.kinds.items())
    found.notes.append(f"{scan.format}: {kinds or 'no records'}")
    if scan.cut_short:
        what = f"only the first {counted(scan.counts.rows_in, 'row')} were looked at"
        found.notes.append(f"{what} (every row: sprout data validate {source.path})")
    found.notes += scan.counts.notes
    rows_in_and_out(found, scan, context.on_bad_row)
    placeholder_faults(found, scan)
    text_faults(found, scan)
    without_answers(found, scan)
    for kind, faults in (
        ("conversations", conversation_faults),
        ("pairs", pair_faults),
        ("rated answers", rated_faults),
        ("labelled texts", label_faults),
    ):
        if scan.kinds.get(kind):
            faults(found, scan)
    if context.on_bad_row and source.role_order == "strict" and scan.kinds.get("conversations"):
        order_refused(found, scan, context.on_bad_row)
    if any(scan.kinds.get(kind) for kind in ("documents", "conversations", "pairs")):
        token_faults(found, scan, context)
    fit_for_stage(found, scan, context.stage)
    return found


def other_files(found: Examination, pattern: str, data: Sequence[Path]) -> None:
    """pitfall 13: files that are no data by their suffix, and files that are, and hold no rows."""
    left = [path for path in _beside(pattern) if kind_of(path) is None and not _is_paper(path)]
    if left:
        seen = ", ".join(sorted({path.suffix or path.name for path in left})[:5])
        what = f"{counted(len(left), 'file')} {do(len(left), 'are', 'is')} left out for {do(len(left), 'their', 'its')} suffix ({seen})"
        cure = "rename them if they are data, or give a pattern such as FOLDER/*.jsonl"
        found.warn("files left out", what, cure, 13)
    described = [path for path in data if path.name in DESCRIPTIONS]
    if described and len(data) > len(described):
        suffix = next(path.suffix for path in data if path.name not in DESCRIPTIONS)
        what = f"{listed([path.name for path in described])} would be read as rows, though it only describes them"
        found.warn("files without rows", what, f"give a pattern, such as FOLDER/*{suffix}", 13)


def _beside(pattern: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        walked = ((parent, folders, names) for parent, folders, names in os.walk(path))
        found = [Path(parent, name) for parent, _, names in walked for name in names]
        return [each for each in found if not any(part.startswith(".") for part in each.relative_to(path).parts)]
    if not path.exists() and glob.has_magic(pattern):
        return [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).is_file()]
    return []


def _is_paper(path: Path) -> bool:
    return path.suffix.lower() in PAPERS or path.name.split(".")[0] in PAPER_NAMES


def head_of_files(found: Examination, paths: tuple[Path, ...]) -> None:
    """Byte-order marks and line ends: both are read rightly here, and said, because other programs stumble on them."""
    marks, crlf = Tally(), Tally()
    for path in paths[:HEAD_FILES]:
        if kind_of(path) == "parquet":
            continue
        try:
            with reading(path), open_binary(path) as stream:
                head = stream.read(HEAD_BYTES)
        except DataError:
            continue  # the pass over the rows reports it
        if head.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            marks.add(str(path))
        if b"\r\n" in head:
            crlf.add(str(path))
    if marks.count:
        what = f"{counted(marks.count, 'file')} {do(marks.count, 'begin', 'begins')} with one; it is skipped, never trained"
        found.ok("byte-order mark", f"{what}: {marks}", 12)
    if crlf.count:
        what = f"{counted(crlf.count, 'file')} {do(crlf.count, 'have', 'has')} CRLF line ends; lines are cut rightly"
        found.ok("line ends", f"{what}: {crlf}", 12)


# --- what the figures mean ----------------------------------------------------------------------------------------------


def rows_in_and_out(found: Examination, scan: Scan, on_bad_row: str | None = None) -> None:
    """pitfall 13: rows in = records + dropped, by reason. ``on_bad_row`` is a recipe's."""
    counts = scan.counts
    bad = {reason: n for reason, n in counts.dropped.items() if reason != "empty"}
    empty, unreadable = counts.dropped["empty"], sum(bad.values())
    if not bad:
        what = f"all {counts.rows_in:,} rows can be read" if counts.rows_in > 1 else "its one row can be read"
        found.ok("rows", what, 13)
    else:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(bad.items(), key=lambda item: -item[1]))
        what = (
            f"{unreadable:,} of {counted(counts.rows_in, 'row')} ({share(unreadable, counts.rows_in)}) cannot be used: "
            f"{reasons}; {examples_of(counts.examples)}"
        )
        if on_bad_row == "error":
            found.fail(
                "rows",
                f"{what}; training stops at the first",
                "mend them, or set data.on_bad_row: skip (they are counted)",
                13,
            )
        elif counts.records_out and unreadable < BAD_SHARE * counts.rows_in:
            cure = "mend them, or set data.on_bad_row: skip (they are counted); the default stops at the first"
            found.warn("rows", what, cure, 13)
        else:
            damaged = all(reason in DAMAGE for reason in bad)
            cure = (
                "give the file's encoding, or make it again" if damaged else "name the format and its columns: "
                "format: NAME, columns: {FIELD: COLUMN}; a dotted path such as text.body reaches into an object"
            )  # fmt: skip
            found.fail("rows", what, cure, 13)
    if empty:
        what = (
            f"{empty:,} of {counted(counts.rows_in, 'row')} ({share(empty, counts.rows_in)}) "
            f"{do(empty, 'hold nothing to learn and are', 'holds nothing to learn and is')} dropped"
        )
        say = found.warn if counts.records_out else found.fail
        say("empty rows", what, "take them out, or find out what emptied them", 13)


def examples_of(examples: Sequence[str]) -> str:
    """The first few bad rows, each sentence once, with the places of its rows."""
    places: dict[str, list[str]] = {}
    for example in examples:
        where, _, said = example.removesuffix("; the row was skipped").partition(": ")
        places.setdefault(said, []).append(where)
    return "; ".join(f"{', '.join(where[:PLACES])}: {said}" for said, where in list(places.items())[:PLACES])


def placeholder_faults(found: Examination, scan: Scan) -> None:
    """{{name}} in the rows: the model would write it to people as it stands."""
    counts = scan.counts
    unused = [name for name, rows in counts.filled.items() if not rows]
    if counts.placeholders:
        what = (
            f"{counted(counts.placeholders, 'record')} {do(counts.placeholders, 'hold', 'holds')} a placeholder that would be "
            f"trained as it stands, first at {counts.placeholder_example}"
        )
        found.warn(
            "placeholders",
            what,
            f"give its text in the recipe, on the source: fill: {{{placeholder_name(counts.placeholder_example)}: TEXT}}",
        )
    if unused:
        what = f"no row has {', '.join(f'{{{{{name}}}}}' for name in sorted(unused))}, which fill names"
        found.warn("fill", what, "spell the name as the rows do, or take it out of fill")


def placeholder_name(example: str) -> str:
    return example.rpartition("{{")[2].strip("} \t") or "name"


def text_faults(found: Examination, scan: Scan) -> None:
    total, duplicates = scan.counts.records_out, scan.tally("duplicate")
    if not total:
        return
    what = f"{duplicates.count:,} of {counted(total, 'record')} ({share(duplicates.count, total)}) {do(duplicates.count, 'repeat', 'repeats')} an earlier one exactly"
    if duplicates.count > DUPLICATE_SHARE * total:
        cure = "keep one of each: repeated text is memorised, and a copy among held-out rows makes them look easy"
        found.warn("duplicates", f"{what}: {duplicates}", cure)
    else:
        found.ok("duplicates", what)
    damaged = scan.tally("replacement")
    if damaged.count:
        found.warn(
            "damaged characters",
            f"{counted(damaged.count, 'record')} {do(damaged.count, 'hold', 'holds')} U+FFFD, the mark of bytes that were lost: {damaged}",
            "make the file again from its source, with the right encoding",
            8,
        )
    marks = scan.tally("mark")
    if marks.count:
        found.warn(
            "byte-order mark inside",
            f"{counted(marks.count, 'record')} {do(marks.count, 'hold', 'holds')} U+FEFF and would train it: {marks}",
            "take the character out; files joined with cat keep the mark of each, web pages leave it in texts",
            12,
        )
    both = scan.tally("crlf"), scan.tally("lf")
    if both[0].count:
        say = found.warn if both[1].count else None
        what = f"{counted(both[0].count, 'record')} {do(both[0].count, 'have', 'has')} CRLF inside the text: {both[0]}"
        if say:
            say(
                "line ends in text",
                f"{what}; {both[1].count:,} have LF: two ways to end a line",
                "use LF everywhere",
                8,
            )
        else:
            found.ok("line ends in text", f"{what}; the model will write CRLF, too", 8)
    markup_faults(found, scan)


def markup_faults(found: Examination, scan: Scan) -> None:
    """pitfalls 4 and 14: conversations already written out as text, or as JSON, are trained as such."""
    documents, markup, as_json = scan.kinds.get("documents", 0), scan.tally("markup"), scan.tally("json chat")
    if documents and markup.count > MARKUP_SHARE * documents:
        found.warn(
            "written-out conversations",
            f"{markup.count:,} of {counted(documents, 'document')} {do(markup.count, 'hold', 'holds')} a chat template's marks, such as those at {markup}; "
            "they stay ordinary text, and no end of turn is learnt from them",
            "give the conversations themselves: rows with messages, a list of {role, content}",
            14,
        )
    elif markup.count:
        found.ok(
            "control tokens in content",
            f"{counted(markup.count, 'record')} {do(markup.count, 'hold', 'holds')} the name of a control token ({markup}); it stays text and ends no turn",
            4,
        )
    if as_json.count:
        found.warn(
            "conversations as JSON text",
            f"{counted(as_json.count, 'document')} {do(as_json.count, 'are', 'is')} a conversation's JSON and would be trained as JSON text: {as_json}",
            'put the messages into the row itself, {"messages": [...]}, not into its text',
            14,
        )


def fit_for_stage(found: Examination, scan: Scan, stage: str | None) -> None:
    """Whether the records are those that the stage of the recipe is for."""
    known = [kind for kind in ("pairs", "rated answers", "labelled texts") if scan.kinds.get(kind)]
    if known and stage:
        cure = "name the format and columns: format: text, columns: {text: COLUMN}, or give other data"
        found.fail("kind of data", f"{listed(known)}: neither pretraining nor SFT can learn from them", cure)
    elif stage == "pretrain" and scan.kinds.get("conversations"):
        found.warn(
            "kind of data",
            f"{counted(scan.kinds['conversations'], 'conversation')} or instructions in a pretraining recipe: only the answers "
            "are trained, not what is asked",
            "set stage: sft and init_from to fine-tune; to train all of a row, make it a text",
            14,
        )
    elif stage == "sft" and scan.kinds.get("documents"):
        found.warn(
            "kind of data",
            f"{counted(scan.kinds['documents'], 'plain document')} in a fine-tuning recipe: they train no answer and no turn's end",
            "set stage: pretrain, or give conversations",
            14,
        )
    elif stage:
        found.ok("kind of data", f"fits stage: {stage}")
