"""A data file, folder or glob: what would be lost, cut, trained by mistake, or never trained at all.

The first ``ROWS`` rows are read once; memory is bounded by one row and one hash per row.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..config.schema import DataConfig, SourceConfig
from ..data.files import find_files, kind_of, open_binary, reading
from ..errors import DataError, SproutError
from .finding import Examination, listed, share
from .scan import PLACES, Scan, Tally, scan_rows

ROWS = 200_000  # rows looked at in one pass: under a minute, and enough to tell
TOKEN_ROWS = 2_000  # rows that are also tokenised
HEAD_BYTES = 1 << 20  # of each file, for line ends and marks
HEAD_FILES = 50
BAD_SHARE = 0.2  # of unreadable rows, above which the file is taken to be the wrong one
DUPLICATE_SHARE = 0.02
LONG_SHARE = 0.05
MARKUP_SHARE = 0.5
STOP_SHARE = 0.99
DEFAULT_SEQ_LEN = DataConfig.model_fields["seq_len"].default
DAMAGE = ("not decodable", "not JSON", "broken table row")


@dataclass
class Context:
    """What the data is for, where another path on the command line, or a recipe, tells."""

    tokenizer_dir: Path | None = None
    seq_len: int | None = None
    stage: str | None = None  # pretrain | sft


def examine_data(source: SourceConfig, context: Context | None = None, rows: int = ROWS) -> Examination:
    """Examine a source. Whatever keeps it from being read is a finding, too."""
    context = context or Context()
    found = Examination(source.path, "data")
    opened, files = found.attempt("file", "check the path and its permissions", None, lambda: find_files(source.path))
    if not opened:
        return found
    found.kind = "data file" if len(files.paths) == 1 else f"data, {len(files.paths):,} files"
    if files.ignored:
        found.warn(
            "files left out",
            f"{files.ignored:,} files are left out for their suffix",
            "rename them if they are data, or give a pattern such as FOLDER/*.jsonl",
            13,
        )
    head_of_files(found, files.paths)
    try:
        scan = scan_rows(source, rows)
    except SproutError as error:
        cure = "mend the file; or name format and columns in a recipe, and examine that: sprout doctor RECIPE.yaml"
        found.fail("rows", str(error), cure, 13)
        return found
    found.notes.append(f"{scan.format}: {', '.join(f'{n:,} {kind}' for kind, n in scan.kinds.items()) or 'no records'}")
    if scan.cut_short:
        found.notes.append(f"only the first {rows:,} rows were looked at")
    found.notes += scan.counts.notes
    rows_in_and_out(found, scan)
    placeholder_faults(found, scan)
    text_faults(found, scan)
    if scan.kinds.get("conversations"):
        conversation_faults(found, scan)
    if scan.kinds.get("pairs"):
        pair_faults(found, scan)
    if scan.kinds.get("documents") or scan.kinds.get("conversations"):
        token_faults(found, source, scan, context)
    fit_for_stage(found, scan, context.stage)
    return found


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
        found.ok("byte-order mark", f"{marks.count:,} files begin with one; it is skipped, never trained: {marks}", 12)
    if crlf.count:
        found.ok("line ends", f"{crlf.count:,} files have CRLF line ends; lines are cut rightly: {crlf}", 12)


# --- what the figures mean ----------------------------------------------------------------------------------------------


def rows_in_and_out(found: Examination, scan: Scan) -> None:
    """pitfall 13: rows in = records + dropped, by reason."""
    counts = scan.counts
    bad = {reason: n for reason, n in counts.dropped.items() if reason != "empty"}
    empty, unreadable = counts.dropped["empty"], sum(bad.values())
    if not bad:
        found.ok("rows", f"all {counts.rows_in:,} rows can be read", 13)
    else:
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(bad.items(), key=lambda item: -item[1]))
        what = (
            f"{unreadable:,} of {counts.rows_in:,} rows ({share(unreadable, counts.rows_in)}) cannot be used: "
            f"{reasons}; {'; '.join(example.removesuffix('; the row was skipped') for example in counts.examples[:PLACES])}"
        )
        if counts.records_out and unreadable < BAD_SHARE * counts.rows_in:
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
        what = f"{empty:,} of {counts.rows_in:,} rows ({share(empty, counts.rows_in)}) hold nothing to learn and are dropped"
        found.warn("empty rows", what, "take them out, or find out what emptied them", 13)


def placeholder_faults(found: Examination, scan: Scan) -> None:
    """{{name}} in the rows: the model would write it to people as it stands."""
    counts = scan.counts
    unused = [name for name, rows in counts.filled.items() if not rows]
    if counts.placeholders:
        what = f"{counts.placeholders:,} records hold a placeholder, first at {counts.placeholder_example}"
        found.warn("placeholders", what, "give its text in the recipe, on the source: fill: {name: TEXT}")
    if unused:
        what = f"no row has {', '.join(f'{{{{{name}}}}}' for name in sorted(unused))}, which fill names"
        found.warn("fill", what, "spell the name as the rows do, or take it out of fill")


def text_faults(found: Examination, scan: Scan) -> None:
    total, duplicates = scan.counts.records_out, scan.tally("duplicate")
    if not total:
        return
    what = f"{duplicates.count:,} of {total:,} records ({share(duplicates.count, total)}) repeat an earlier one exactly"
    if duplicates.count > DUPLICATE_SHARE * total:
        cure = "keep one of each: repeated text is memorised, and a copy among held-out rows makes them look easy"
        found.warn("duplicates", f"{what}: {duplicates}", cure)
    else:
        found.ok("duplicates", what)
    damaged = scan.tally("replacement")
    if damaged.count:
        found.warn(
            "damaged characters",
            f"{damaged.count:,} records hold U+FFFD, the mark of bytes that were lost: {damaged}",
            "make the file again from its source, with the right encoding",
            8,
        )
    if scan.tally("mark").count:
        found.warn(
            "byte-order mark inside",
            f"{scan.tally('mark').count:,} records hold U+FEFF and would train it: {scan.tally('mark')}",
            "remove it; files joined with cat keep the mark of each",
            12,
        )
    both = scan.tally("crlf"), scan.tally("lf")
    if both[0].count:
        say = found.warn if both[1].count else None
        what = f"{both[0].count:,} records have CRLF inside their text: {both[0]}"
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
            f"{markup.count:,} of {documents:,} documents hold a chat template's marks, such as those at {markup}; "
            "they stay ordinary text, and no end of turn is learnt from them",
            "give the conversations themselves: rows with messages, a list of {role, content}",
            14,
        )
    elif markup.count:
        found.ok(
            "control tokens in content",
            f"{markup.count:,} records hold the name of a control token ({markup}); it stays text and ends no turn",
            4,
        )
    if as_json.count:
        found.warn(
            "conversations as JSON text",
            f"{as_json.count:,} documents are a conversation's JSON and would be trained as JSON text: {as_json}",
            'put the messages into the row itself, {"messages": [...]}, not into its text',
            14,
        )


def conversation_faults(found: Examination, scan: Scan) -> None:
    chats = scan.kinds["conversations"]
    faults = (
        ("repeated role", "have two turns of one role in a row", "join them, or put in the turn that is missing; training takes them only with role_order: any", 13),
        ("assistant first", "begin with the assistant, whose first words then answer nothing", "cut that turn; training takes them only with role_order: any", 13),
        ("stray result", "have a tool's result without a call before it, or without an answer after it",
         "put in the turn that is missing; training takes them only with role_order: any", 13),
        ("user last", "end with the user, whose last words train nothing", "cut that turn, or add the answer", 13),
        ("empty answer", "hold an empty answer, which trains the model to say nothing", "take these turns out", 1),
        ("nothing trained", "train nothing, by their train or weight fields; they are dropped",
         "take them out, or set train: true on an answer", 23),
    )  # fmt: skip
    clean = True
    for name, sentence, cure, pitfall in faults:
        tally = scan.tally(name)
        if tally.count:
            clean = False
            found.warn(name, f"{tally.count:,} of {chats:,} conversations {sentence}: {tally}", cure, pitfall)
    if clean:
        found.ok("turns", f"all {chats:,} conversations take turns and end with an answer", 13)
    others = scan.tally("others trained")
    if others.count:
        found.ok("turns of others", f"{others.count:,} conversations ask to train turns of others: {others}", 3)
    dropped = scan.counts.dropped["no assistant turn"]
    if dropped:
        what = f"{dropped:,} conversations have no assistant turn and cannot train anything"
        found.warn("assistant turns", what, "add the answers, or take them out; is `from: gpt` spelt otherwise?", 3)


def pair_faults(found: Examination, scan: Scan) -> None:
    pairs, think, equal = scan.kinds["pairs"], scan.tally("one-sided think"), scan.tally("equal sides")
    if think.count:
        found.warn(
            "one-sided wrapper",
            f"{think.count:,} of {pairs:,} pairs have an empty think block on one side only: {think}",
            "write it on both sides or on none, or the model learns the wrapper and not the answer",
            6,
        )
    if equal.count:
        found.warn("equal sides", f"{equal.count:,} of {pairs:,} pairs have equal sides: {equal}", "take them out")
    if not think.count and not equal.count:
        found.ok("pairs", f"the two sides of all {pairs:,} pairs differ, and in no empty think block", 6)


def token_faults(found: Examination, source: SourceConfig, scan: Scan, context: Context) -> None:
    """What shows only in tokens: stop tokens that are trained (pitfall 1), rows that are too long (pitfall 2)."""
    from ..data.inspect import inspect_file

    seq_len = context.seq_len or DEFAULT_SEQ_LEN
    cure = "give another tokenizer, or mend its chat template (see: sprout doctor TOKENIZER)"
    read, report = found.attempt("tokens", cure, 1, lambda: inspect_file(
        source.path, context.tokenizer_dir, rows=0, seq_len=seq_len, format=source.format, columns=source.columns,
        encoding=source.encoding, limit=TOKEN_ROWS, fill=source.fill, role_order="any",
    ))  # fmt: skip
    if not read:
        return
    found.notes += [note for note in report["notes"] if "no tokenizer" in note]
    figures: dict[str, Any] = report["statistics"]
    looked_at, chats = figures["rows"], scan.kinds.get("conversations", 0)
    if looked_at < scan.counts.records_out:
        found.notes.append(f"tokens are those of the first {looked_at:,} records")
    stopping = figures["share_training_a_stop_token"]
    what = f"{stopping:.1%} of the records train a stop token; {figures['share_trained']:.0%} of all tokens are trained"
    if not figures["trained_tokens"] or stopping == 0:
        found.fail("stop token", what, "without one the model never stops: repair the chat template", 1)
    elif stopping < STOP_SHARE:
        found.warn("stop token", what, "look at the others: sprout data inspect FILE", 1)
    else:
        found.ok("stop token", what, 1)
    long, assumed = figures["rows_longer_than_seq_len"], "" if context.seq_len else ", the default of data.seq_len"
    what = (
        f"{share(long, looked_at)} of the records have more than {seq_len:,} tokens{assumed}; median "
        f"{figures['length']['median']:,.0f}, most {figures['length']['most']:,}"
    )
    if chats and long > LONG_SHARE * looked_at:
        cure = f"raise data.seq_len (longest: {figures['length']['most']:,}), or choose data.on_long: truncate | drop"
        found.warn("long records", f"{what}; long conversations lose turns or the end of an answer", cure, 2)
    else:
        found.ok("long records", f"{what}{'' if chats else '; long texts are cut into pieces, nothing is lost'}", 2)


def fit_for_stage(found: Examination, scan: Scan, stage: str | None) -> None:
    """Whether the records are those that the stage of the recipe is for."""
    known = [kind for kind in ("pairs", "labelled texts") if scan.kinds.get(kind)]
    if known and stage:
        cure = "name the format and columns: format: text, columns: {text: COLUMN}, or give other data"
        found.fail("kind of data", f"{listed(known)}: neither pretraining nor SFT can learn from them", cure)
    elif stage == "pretrain" and scan.kinds.get("conversations"):
        found.warn(
            "kind of data",
            f"{scan.kinds['conversations']:,} conversations in a pretraining recipe: only their answers are trained",
            "set stage: sft and init_from, or give documents",
            14,
        )
    elif stage == "sft" and scan.kinds.get("documents"):
        found.warn(
            "kind of data",
            f"{scan.kinds['documents']:,} plain documents in a fine-tuning recipe: they train no answer and no turn's end",
            "set stage: pretrain, or give conversations",
            14,
        )
    elif stage:
        found.ok("kind of data", f"fits stage: {stage}")
