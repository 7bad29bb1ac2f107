"""Read everything and say what is wrong with it: one line for each kind of fault, with its first place and its cure.

Memory is twelve bytes a row (twenty where several inputs are compared), whatever the rows hold.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ..fields import EmptyRow, RowError
from ..files import find_files, open_binary, reading
from ..records import Labelled, Record, messages_of, texts_of
from ..sources import Counts, Door, Row, Unreadable, parse_row, read_raw, to_record
from .rows import Input, Progress, content_of, hash64, json_key

MOST_KINDS, MOST_LABELS = 50, 10_000
MARKS = {b"\xef\xbb\xbf": "UTF-8", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
CURES = {
    "not JSON": "write one JSON value on each line, or name a file that holds one array .json",
    "not decodable": "name the file's encoding with --encoding, or mend these bytes",
    "broken table row": "quote cells that hold the separator, a quote or a line end",
    "line too long": "put a line end after every row",
    "no assistant turn": "end each conversation with an assistant turn",
    "half a surrogate pair": "write the character whole, or as the two halves of its \\u escape",
}
GENERAL_CURE = "mend these rows, or leave them out (on_bad_row: skip, in a recipe)"


@dataclass
class Finding:
    """One kind of fault: how many rows have it, and the first of them as file:line: sentence."""

    kind: str
    first: str
    cure: str
    rows: int = 0

    def as_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "rows": self.rows, "first": self.first, "cure": self.cure}


@dataclass
class Checked:
    """What was found in one input."""

    source: str
    format: str = ""
    counts: Counts = field(default_factory=Counts)
    faults: dict[str, Finding] = field(default_factory=dict)
    notes: dict[str, Finding] = field(default_factory=dict)
    labels: Counter[str] = field(default_factory=Counter)
    label_at: dict[str, str] = field(default_factory=dict)
    files: list[tuple[int, Path]] = field(default_factory=list)  # first row's number, file
    lines: array[int] = field(default_factory=lambda: array("I"))
    whole: array[int] = field(default_factory=lambda: array("Q"))  # hash of each row
    content: array[int] = field(default_factory=lambda: array("Q"))  # hash of what leaks into another part

    def fault(self, kind: str, first: str, cure: str = GENERAL_CURE, rows: int = 1) -> None:
        """Count rows that cannot be used."""
        self._add(self.faults, kind, first, cure, rows)

    def note(self, kind: str, first: str, cure: str, rows: int = 1) -> None:
        """Count rows that can be used, but about which a person should know."""
        self._add(self.notes, kind, first, cure, rows)

    @staticmethod
    def _add(found: dict[str, Finding], kind: str, first: str, cure: str, rows: int) -> None:
        if kind not in found and len(found) >= MOST_KINDS:
            kind = "other kinds"
        found.setdefault(kind, Finding(kind, first, cure)).rows += rows

    def place(self, number: int) -> str:
        """file:line of a usable row."""
        path = next(path for start, path in reversed(self.files) if start <= number)
        return f"{path}:{self.lines[number]}"

    def as_dict(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "format": self.format,
            "counts": self.counts.as_dict(),
            "faults": [found.as_dict() for found in self.faults.values()],
            "notes": [found.as_dict() for found in self.notes.values()],
            "labels": dict(self.labels.most_common()),
        }


def validate(inputs: Sequence[Input]) -> dict[str, Any]:
    """Check every row of every input. Several inputs are taken as parts of one data set, the first one to train on.

    ``ok`` is False when any row, file or label is at fault; empty and repeated rows are notes.
    """
    found = []
    for given in inputs:
        checked = Checked(given.source.path)
        try:
            _read(given, checked, compare=len(inputs) > 1)
        except DataError as error:
            checked.fault("cannot be read", str(error), "", 0)
        _duplicates(checked)
        _placeholders(checked)
        checked.counts.check()
        found.append(checked)
    _between(found)
    return {
        "verb": "validate",
        "ok": not any(checked.faults for checked in found),
        "inputs": [checked.as_dict() for checked in found],
    }


def _read(given: Input, checked: Checked, compare: bool) -> None:
    paths = given.paths()
    door: Door | None = None
    try:
        door = given.door()
        checked.format = door.format.name
    except DataError as error:
        if isinstance(error, Unreadable):
            checked.fault("no row can be read", str(error), "", 0)
        elif "to tell the format" not in str(error) and "cannot tell the format" not in str(error):
            checked.fault("cannot be read", str(error), "", 0)
        else:
            checked.fault("format not known", str(error), "name it with --format, and its columns with --columns", 0)
        if len(paths) == 1:
            return
    checked.counts.ignored_files = find_files(given.source.path).ignored
    for path in paths:
        file = Input(given.source.model_copy(update={"path": str(path)}), "skip", given.say)
        try:
            if door is None:
                door = file.door()
            _mark(path, checked)
            checked.files.append((len(checked.lines), path))
            for row, record in _records(file, door, checked):
                _look(row, record, checked)
                checked.whole.append(hash64(json_key(row.value)))
                if compare:
                    checked.content.append(hash64(content_of(row, record)))
                checked.lines.append(row.line)
        except DataError as error:  # of the file, not of a row
            if len(paths) == 1 or "the file is empty" not in str(error):
                checked.fault("cannot be read", str(error), "", 0)


def _mark(path: Path, checked: Checked) -> None:
    if path.suffix == ".parquet":
        return
    with reading(path), open_binary(path) as stream:
        start = stream.read(3)
    for mark, name in MARKS.items():
        if start.startswith(mark):
            checked.note(
                "byte-order mark",
                f"{path}:1: starts with the mark of {name}",
                "none needed: it is not part of the text",
            )
            return


def _records(file: Input, door: Door, checked: Checked) -> Iterator[tuple[Row, Record]]:
    counts = checked.counts
    for raw in Progress(file, "checking").watch(read_raw(file.source, counts)):
        counts.rows_in += 1
        where = f"{raw.path}:{raw.line}"
        try:
            row = parse_row(raw)
            record = to_record(row, door, counts)
        except EmptyRow as error:
            counts.drop("empty")
            checked.note(
                "empty", f"{where}: {error}", "none needed: rows with nothing to learn are left out and counted"
            )
        except RowError as error:
            kind, cure = _kind(error, door.format.name)
            counts.drop(kind)
            checked.fault(kind, f"{where}: {error}", cure)
        else:
            yield row, record


def _kind(error: RowError, format: str) -> tuple[str, str]:
    """What a bad row is counted under, and the cure."""
    if error.reason.startswith("looks like "):
        other = error.reason.removeprefix("looks like ")
        cure = "bring all rows to one schema: sprout data convert IN OUT --format mixed --to messages"
        if {other, format} & {"text", "labelled"} or other.startswith(("preference", "unpaired", "sharegpt_ranking")):
            cure = f"part them: sprout data convert IN OUT --format {other} --on-bad-row skip takes these rows out"
        return f"another schema ({other})", cure
    if error.reason.startswith("missing "):
        return error.reason, "name the column with --columns FIELD=COLUMN, or mend these rows"
    general = "" if "; " in str(error) else GENERAL_CURE  # most sentences end with their own cure
    return error.reason, CURES.get(error.reason, general)


def _look(row: Row, record: Record, checked: Checked) -> None:
    """What is no fault, and yet a person should know."""
    for messages in messages_of(record):
        for number, turn in enumerate(messages, 1):
            if not turn.content.strip() and not turn.tool_calls and not turn.reasoning_content:
                said = f"{row.where}: message {number} ({turn.role}) says nothing"
                checked.note("empty turn", said, "write what it should say, or take the turn out")
    if any("\ufffd" in text for text in texts_of(record)):
        said = f"{row.where}: the text holds U+FFFD, which stands for bytes that were lost when it was decoded before"
        checked.note("lost characters", said, "make the file again from its source, in the right encoding")
    if isinstance(record, Labelled):
        label = str(record.label)
        if label in checked.labels or len(checked.labels) < MOST_LABELS:
            checked.labels[label] += 1
            checked.label_at.setdefault(label, row.where)


def _duplicates(checked: Checked) -> None:
    hashes = np.frombuffer(checked.whole, dtype=np.uint64)
    if len(hashes) < 2:
        return
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    repeats = int((counts - 1).sum())
    if repeats:
        original = int(first[counts > 1].min())
        again = int(np.flatnonzero(hashes == hashes[original])[1])
        said = f"{checked.place(again)}: the same row as {checked.place(original)}"
        checked.note("duplicates", said, "take them out, or know that they weigh more", repeats)


def _placeholders(checked: Checked) -> None:
    counts = checked.counts
    if counts.placeholders:
        said, cure = counts.placeholder_example, "give its text with --fill NAME=TEXT, and fill: in the recipe"
        checked.note("placeholder not filled", said, cure, counts.placeholders)


def _between(found: Sequence[Checked]) -> None:
    """Compare the parts of a data set: labels that are never trained on, and rows that stand in two parts."""
    if len(found) < 2:
        return
    train = found[0]
    for part in found[1:]:
        if train.labels and part.labels:
            for label in part.labels.keys() - train.labels.keys():
                said = f"{part.label_at[label]}: the label {label!r} is in no row of {train.source}"
                cure = "make the parts anew with: sprout data split --stratify"
                part.fault("label not trained", said, cure, part.labels[label])
        mine = np.frombuffer(part.content, dtype=np.uint64)
        shared = np.isin(mine, np.frombuffer(train.content, dtype=np.uint64))
        if shared.any():
            said = f"{part.place(int(shared.argmax()))}: this text or prompt is in {train.source}, too"
            cure = "make the parts anew with: sprout data split, which keeps equal rows together"
            part.note("in two parts", said, cure, int(shared.sum()))
