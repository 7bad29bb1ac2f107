"""The rows of an input as the verbs see them: counted, with their place, with progress; with their record where it is needed."""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from ...config.data import SourceConfig
from ...errors import DataError
from ..fields import RowError, lookup
from ..files import find_files, kind_of, position
from ..placeholders import filled
from ..records import Labelled, Preference, Record, Text, UnpairedPreference, messages_of
from ..sources import Counts, Door, RawRow, Row, drop_or_raise, open_source, parse_row, read_raw, to_record
from ..typed_cells import dumps

Say = Callable[[str], None]
_ABSENT: Any = object()
QUIET_SECONDS, LINE_SECONDS = 2.0, 5.0


@dataclass
class Input:
    """What a verb reads, how it treats bad rows, and where it says how far it is."""

    source: SourceConfig
    on_bad_row: str = "error"
    say: Say = print
    notes: dict[str, int] = field(default_factory=dict)  # what was changed in reading -> rows
    usable: bytearray = field(default_factory=bytearray)  # of the last pass: 1 for each row that came out

    def rows(self, counts: Counts, what: str) -> Iterator[Row]:
        """Every row as it stands, with ``fill`` in place. A document of a .txt is ``{"text": ...}``.

        A row is counted as come out; ``drop`` takes that back. Bad ones are dropped, or raise, as ``on_bad_row`` says.
        """
        fill, used = self.source.fill, set[str]()
        self._begin()
        counts.filled.update(dict.fromkeys(fill, 0))
        for raw in Progress(self, what).watch(read_raw(self.source, counts)):
            counts.rows_in += 1
            try:
                row = self._plain(raw)
            except RowError as error:
                self.usable.append(0)
                drop_or_raise(raw, error, self.on_bad_row, counts)
                continue
            self.usable.append(1)
            counts.records_out += 1
            if fill:
                row = Row(row.path, row.line, filled(row.value, fill, used))
                counts.filled.update(used)
                used.clear()
            yield row

    def door(self) -> Door:
        """How rows become records; ``DataError`` when the format cannot be told."""
        return open_source(self.source).door

    def records(self, counts: Counts, what: str, door: Door) -> Iterator[tuple[Row, Record]]:
        """Every row with the record it makes, counted like ``rows``."""
        counts.note(door.note)
        self._begin()
        for raw in Progress(self, what).watch(read_raw(self.source, counts)):
            counts.rows_in += 1
            try:
                row = self._plain(raw)
                record = to_record(unwrapped(row), door, counts)
            except RowError as error:
                self.usable.append(0)
                drop_or_raise(raw, error, self.on_bad_row, counts)
                continue
            self.usable.append(1)
            yield row, record

    def again(self, what: str) -> Iterator[Row]:
        """The rows that came out of the last pass once more, without counting, nor making records of them."""
        before, notes = bytes(self.usable), dict(self.notes)
        number = 0
        for number, raw in enumerate(Progress(self, what).watch(read_raw(self.source)), 1):
            if number > len(before):
                break
            if before[number - 1]:
                try:
                    row = self._plain(raw)
                except RowError:
                    raise DataError(changed(self.source.path)) from None
                yield Row(row.path, row.line, filled(row.value, self.source.fill, set())) if self.source.fill else row
        self.notes = notes
        if number != len(before):
            raise DataError(changed(self.source.path))

    def _begin(self) -> None:
        self.notes.clear()
        self.usable = bytearray()

    def drop(self, row: Row, error: RowError, counts: Counts) -> None:
        """Count a row that turned out bad later on as dropped after all, or raise, as ``on_bad_row`` says."""
        counts.records_out -= 1
        self.usable[-1] = 0
        drop_or_raise(RawRow(row.path, row.line, None), error, self.on_bad_row, counts)

    def _plain(self, raw: RawRow) -> Row:
        """A parsed row in JSON's own types."""
        row = parse_row(raw)
        kind = kind_of(raw.path)
        if kind == "txt":
            return Row(row.path, row.line, {"text": row.value})
        if kind == "parquet":
            noted: set[str] = set()
            value = _json_types(row.value, noted)
            for note in noted:
                self.notes[note] = self.notes.get(note, 0) + 1
            return Row(row.path, row.line, value)
        return row

    def paths(self) -> list[Path]:
        return list(find_files(self.source.path).paths)

    def said(self) -> list[str]:
        """What was changed in reading, one sentence each."""
        return [f"{note} ({rows:,} rows)" for note, rows in sorted(self.notes.items())]


def unwrapped(row: Row) -> Row:
    """A row as a format expects it: a document of a .txt is a string."""
    return Row(row.path, row.line, row.value["text"]) if kind_of(row.path) == "txt" else row


def _json_types(value: Any, noted: set[str]) -> Any:
    """Parquet has types that JSON lacks: dates and decimal numbers become text, which is said; bytes are refused."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, dict):
        return {name: _json_types(item, noted) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_types(item, noted) for item in value]
    if isinstance(value, datetime.date | datetime.time):
        noted.add("dates and times were written as text")
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        noted.add("durations were written as seconds")
        return value.total_seconds()
    if isinstance(value, Decimal):
        noted.add("decimal numbers were written as text")
        return str(value)
    said = (
        f"a cell holds {type(value).__name__}, such as a picture or a sound, which is not text; leave that column out"
    )
    raise RowError(said, reason=f"a cell of {type(value).__name__}")


class Progress:
    """Says how far reading is and how long it will take: nothing for two seconds, then a line now and then."""

    def __init__(self, given: Input, what: str) -> None:
        self.say, self.what = given.say, what
        self.sizes = {path: path.stat().st_size for path in given.paths()}
        self.total = max(sum(self.sizes.values()), 1)
        self._parquet_rows: dict[Path, int] = {}

    def watch(self, rows: Iterator[RawRow]) -> Iterator[RawRow]:
        """Give the rows on, and count them."""
        began = time.monotonic()
        due, before, current = began + QUIET_SECONDS, 0, None
        number = 0
        for number, row in enumerate(rows, 1):
            if row.path != current:
                before += self.sizes.get(current, 0) if current is not None else 0
                current = row.path
            if number % 64 == 0 and (now := time.monotonic()) >= due:
                done = before + self._position(row)
                self._line(number, done, now - began)
                due = now + (0.5 if self._terminal() else LINE_SECONDS)
            yield row
        if due > began + QUIET_SECONDS and self._terminal():
            print(file=sys.stderr, flush=True)

    def _position(self, row: RawRow) -> int:
        """Bytes of the row's file that were read, as far as it can be told; of parquet, by its rows."""
        if kind_of(row.path) != "parquet":
            return position(row.path) or 0
        if row.path not in self._parquet_rows:
            from pyarrow import parquet

            self._parquet_rows[row.path] = max(parquet.read_metadata(row.path).num_rows, 1)
        return self.sizes.get(row.path, 0) * row.line // self._parquet_rows[row.path]

    def _line(self, rows: int, done: int, seconds: float) -> None:
        eta = f", ETA {seconds * (self.total - done) / done:.0f} s" if done else ""
        line = f"{self.what}: {rows:,} rows, {min(done / self.total, 0.99):.0%}{eta}"
        if self._terminal():
            print(f"\r{line:<70}", end="", file=sys.stderr, flush=True)
        else:
            self.say(line)

    def _terminal(self) -> bool:
        return sys.stderr.isatty()


# --- what a row says ----------------------------------------------------------------------------------------------------


def content_of(row: Row, record: Record | None) -> str:
    """What two rows must share to be one and the same to a model: the text, or all turns before the first answer.

    White space at the ends and between words, and case, make no difference. A row without a record is compared whole.
    """
    if record is None:
        return json_key(row.value)
    if isinstance(record, Text | Labelled):
        said = record.text
    elif isinstance(record, Preference | UnpairedPreference):
        said = "\n".join(f"{m.role}: {m.content}" for m in record.prompt)
    else:
        turns = messages_of(record)[0]
        first = next((i for i, turn in enumerate(turns) if turn.role == "assistant"), len(turns))
        said = "\n".join(f"{m.role}: {m.content}" for m in (turns[:first] or turns))
    return " ".join(said.split()).casefold()


def json_key(value: Any) -> str:
    """One text for all equal rows. What only parquet has (dates, bytes) is written as Python shows it."""
    try:
        return dumps(value)
    except TypeError:
        return json.dumps(value, default=repr)


def value_of(row: Row, by: str) -> Any:
    """The field that ``--by`` names; ``RowError`` where the row has none."""
    found = lookup(row.value, by, {}, default=_ABSENT)
    if found is _ABSENT:
        has = ", ".join(map(str, row.value)) if isinstance(row.value, dict) else "no fields"
        raise RowError(f"there is no {by!r} to go by; the row has {has or 'nothing'}", reason=f"missing {by}")
    return found


def hash64(text: str, seed: int = 0) -> int:
    """64 bits of a keyed hash: the same text and seed give the same on every machine."""
    key = seed.to_bytes(8, "little")
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8, key=key).digest(), "little"
    )


def leave_out(counts: Counts, rows: int, reason: str) -> None:
    """Count usable rows that were not chosen as dropped."""
    counts.records_out -= rows
    if rows:
        counts.dropped[reason] += rows


def unchanged(first: Counts, second: Counts, source: str) -> None:
    """Refuse when two passes over the same rows did not see the same."""
    if (first.rows_in, first.dropped) != (second.rows_in, second.dropped):
        raise DataError(changed(source))


def changed(source: str) -> str:
    """The sentence for a file whose second reading differs from the first."""
    return f"{source}: changed while it was read; run the same command again"
