"""From a recipe's sources to records: every row that goes in comes out as a record or is counted, with its reason.

Reading is split in two. ``read_raw`` is cheap and stays in one process; ``parse_row`` and ``to_record`` are the dear part
and can run in workers (``record_from`` does both, and the counting).
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ..config.schema import SourceConfig
from ..errors import DataError
from .conversations import check_role_order
from .counts import EXAMPLES, Counts
from .fields import optional_string
from .files import find_files
from .formats import Detected, EmptyRow, Format, RowError, detect, format_of, other_schema, resolve_format
from .placeholders import filled, placeholder_in
from .readers import RawRow, read_file
from .records import Preference, Record, UnpairedPreference, messages_of

FIRST_ROWS = 20  # rows looked at to detect a format
KNOWN_SHAPES = 1000  # sets of columns whose schema is remembered
SPLITS = ("auto", "none", "blank_line", "line")
__all__ = ["EXAMPLES", "Counts", "Door", "OpenSource", "RawRow", "Row", "RowError", "drop_or_raise", "open_source", "parse_row", "read_raw", "read_records",
           "read_rows", "record_from", "to_record"]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A parsed row: ``value`` is a dict, list or str; ``line`` counts from 1."""

    path: Path
    line: int
    value: Any

    @property
    def where(self) -> str:
        return f"{self.path}:{self.line}"


# --- the cheap part: rows as they stand in the files ---------------------------------------------------------------


def read_raw(source: SourceConfig, counts: Counts | None = None) -> Iterator[RawRow]:
    """Unparsed rows of a source, file after file, up to ``max_rows``. A source without any row is a ``DataError``."""
    split = source.columns.get("split", "auto")
    if split not in SPLITS:
        raise DataError(f"{source.path}: columns.split is {split!r}; choose among {', '.join(SPLITS)}")
    found = find_files(source.path)
    if counts is not None:
        counts.ignored_files += found.ignored
    named = frozenset(path.split(".")[0] for path in field_columns(source).values())
    rows = itertools.chain.from_iterable(read_file(path, source.encoding, split, named) for path in found.paths)
    empty = True
    for row in itertools.islice(rows, source.max_rows):
        empty = False
        yield row
    if empty:
        what = (
            "the file is empty or holds no row" if len(found.paths) == 1 else f"all {len(found.paths)} files are empty"
        )
        raise DataError(f"{source.path}: {what}; give a file with at least one row")


def field_columns(source: SourceConfig) -> dict[str, str]:
    """``columns`` without what is for the reader, not for the format."""
    return {name: path for name, path in source.columns.items() if name != "split"}


@dataclass(frozen=True)
class Door:
    """How the rows of one source become records. Pickles, so that a worker does just what this process would.

    ``spec`` names the format: a known one, or ``package.module:attribute``. ``detected``: it was decided from the first
    rows, so that a row of another schema is a fault; ``note`` says what was judged. The rest is a ``SourceConfig``'s.
    """

    spec: str
    columns: dict[str, str] = field(default_factory=dict)
    fill: dict[str, str] = field(default_factory=dict)
    role_order: str = "strict"
    detected: bool = False
    note: str = ""

    @cached_property
    def format(self) -> Format:
        return resolve_format(self.spec, [], self.columns)

    def schema_of(self, value: Any) -> str:
        """The name of the schema that a row is read with."""
        if self.spec != "mixed":
            return self.format.name
        found = format_of(value, self.columns)
        return "mixed" if found is None else found.name

    @cached_property
    def _schemas(self) -> dict[Any, str | None]:
        return {}

    def other_schema(self, value: Any) -> str | None:
        """The schema of a row that is not this door's, decided once for all rows with the same columns filled."""
        columns = tuple(k for k, v in value.items() if v is not None) if isinstance(value, dict) else type(value)
        if columns not in self._schemas:
            if len(self._schemas) >= KNOWN_SHAPES:
                return other_schema(value, self.format, self.columns)
            self._schemas[columns] = other_schema(value, self.format, self.columns)
        return self._schemas[columns]

    def __getstate__(self) -> dict[str, Any]:  # a format may not pickle
        return {name: value for name, value in self.__dict__.items() if name not in ("format", "_schemas")}


class Unreadable(DataError):
    """None of the first rows can be parsed; the sentence names the first of them."""


@dataclass
class OpenSource:
    """A source whose format is decided, and its rows, the first ones included."""

    door: Door
    rows: Iterator[RawRow]


def open_source(source: SourceConfig, counts: Counts | None = None) -> OpenSource:
    """Look at the first rows, decide the format, and give all rows."""
    rows, columns = read_raw(source, counts), field_columns(source)
    first = list(itertools.islice(rows, FIRST_ROWS))
    try:
        if source.format == "auto":
            found = detect([row.value for row in _readable(first, source)], columns)
        else:
            found = Detected(resolve_format(source.format, [], columns), columns)
    except Unreadable:
        raise
    except DataError as error:
        raise DataError(f"{source.path}: {error}") from None
    spec = source.format if ":" in source.format else found.format.name
    detected = source.format == "auto" and not source.columns
    door = Door(spec, found.columns, source.fill, source.role_order, detected, found.note)
    return OpenSource(door, itertools.chain(first, rows))


def _readable(rows: Sequence[RawRow], source: SourceConfig) -> list[Row]:
    parsed, first_fault = [], ""
    for raw in rows:
        try:
            parsed.append(parse_row(raw))
        except RowError as error:  # reported when its turn comes
            first_fault = first_fault or f"{raw.path}:{raw.line}: {error}"
    if not parsed:
        said = f"none of the first {len(rows)} rows can" if len(rows) > 1 else "the only row cannot"
        raise Unreadable(f"{first_fault}; {said} be read, so the format cannot be told: mend the file")
    return parsed


# --- the dear part: values, then records -----------------------------------------------------------------------------


def parse_row(raw: RawRow) -> Row:
    """Parse a raw row. Raises ``RowError`` with a sentence that does not yet name file and line."""
    if raw.fault is not None:
        reason = raw.reason or ("not decodable" if raw.fault.startswith("byte ") else "broken table row")
        raise RowError(raw.fault, reason=reason)
    if not raw.is_json:
        return Row(raw.path, raw.line, raw.payload)
    try:
        return Row(raw.path, raw.line, json.loads(raw.payload.lstrip("\ufeff")))
    except json.JSONDecodeError as error:
        sentence = f"not JSON ({error.msg} at character {error.pos + 1})"
        raise RowError(sentence + _json_hint(raw.payload, error.pos), reason="not JSON") from None
    except (ValueError, RecursionError) as error:
        raise RowError(f"not JSON that can be read ({error})", reason="not JSON") from None


def _json_hint(text: str, fault: int) -> str:
    """What a line that is not JSON seems to be, and what to do; nothing where that is unclear."""
    if text in ("[", "{", "[{"):
        return "; a .jsonl file has one JSON value per line: is this an array? then name it .json"
    if text[fault:].strip() == ",":
        return "; take the comma after the value away: in a .jsonl the line end alone parts the rows"
    if text[fault : fault + 1] == "'" or re.match(r"(None|True|False)\b", text[fault:]):
        return "; these are Python's own quotes or words: write the rows with json.dumps"
    return ""


def to_record(row: Row, door: Door, counts: Counts | None = None) -> Record:
    """Make a record of a row, its placeholders filled. Raises ``RowError`` (``EmptyRow`` where nothing is to be learnt).

    ``counts`` gets the record, its schema and what it holds; rows that go in, and drops, are the caller's to count.
    """
    value, used = row.value, set[str]()
    if door.fill:
        value = filled(value, door.fill, used)
    if door.detected:
        _refuse_other_schema(value, door)
    record = _parsed(value, door)
    if door.role_order == "strict":
        _check_order(record, value, door)
    if counts is not None:
        counts.come_out(record, door.schema_of(value))
        for name in used:
            counts.filled[name] += 1
        left = placeholder_in(value)
        if left:
            counts.placeholders += 1
            counts.placeholder_example = counts.placeholder_example or f"{row.where}: {left}"
    return record


def _parsed(value: Any, door: Door) -> Record:
    format = door.format
    try:
        record = format.parse(value, door.columns)
    except RowError as error:
        raise error if ":" in door.spec or door.spec == "mixed" else _told_apart(error, value, door) from None
    except Exception as error:  # a person's own format may raise anything; it is still one bad row
        said = f"the format {format.name!r} failed at this row ({type(error).__name__}: {error})"
        raise RowError(said, reason=f"{format.name} failed") from error
    if not isinstance(record, Record):
        said = f"the format {format.name!r} gave a {type(record).__name__}, not one of the kinds of record"
        raise RowError(said, reason=f"{format.name} failed")
    return record


def _refuse_other_schema(value: Any, door: Door) -> None:
    """A row that could be read with the format of its file, and is more: a rated answer among answers, say."""
    other = door.other_schema(value)
    if other is not None:
        raise _another(other, door)


def _told_apart(error: RowError, value: Any, door: Door) -> RowError:
    """The error of a row, or, where the row has another schema than its file, a sentence that says so."""
    if door.format.matches(value):
        return error
    other = other_schema(value, door.format, {})
    return error if other is None else _another(other, door)


def _another(other: str, door: Door) -> RowError:
    name = door.format.name
    return RowError(
        f"the row looks like {other}, and the file is read as {name}: set format: mixed to read each row as what it is, "
        f"or format: {name} to read only such rows and count the others",
        reason=f"looks like {other}",
    )


def _check_order(record: Record, value: Any, door: Door) -> None:
    parts = messages_of(record)
    if isinstance(record, Preference | UnpairedPreference):
        prompt, *sides = parts
        parts = tuple((*prompt, *side) for side in sides)
    for turns in parts:
        beside = turns[0].role == "system" and isinstance(value, dict) and bool(_system_of(value, door))
        check_role_order(turns, int(beside))


def _system_of(value: dict[str, Any], door: Door) -> str:
    return optional_string(value, "system", door.columns).strip()


def record_from(raw: RawRow, door: Door, on_bad_row: str, counts: Counts) -> Record | None:
    """Parse and normalise one raw row, and count it; None when it was dropped. ``on_bad_row: error`` raises ``DataError``."""
    counts.rows_in += 1
    counts.note(door.note)
    if door.fill:
        counts.filled.update(dict.fromkeys(door.fill, 0))
    try:
        return to_record(parse_row(raw), door, counts)
    except RowError as error:
        drop_or_raise(raw, error, on_bad_row, counts)
        return None


def drop_or_raise(raw: RawRow, error: RowError, on_bad_row: str, counts: Counts) -> None:
    """Count a bad row as dropped, or raise a ``DataError`` that names its place: as ``on_bad_row`` says."""
    where = f"{raw.path}:{raw.line}"
    if isinstance(error, EmptyRow):
        counts.drop(error.reason)
    elif on_bad_row == "skip":
        counts.drop(error.reason, f"{where}: {error}; the row was skipped")
    else:
        raise DataError(f"{where}: {error}. Reading stopped here: mend the row, or set on_bad_row: skip") from error


def read_rows(source: SourceConfig, on_bad_row: str, counts: Counts) -> Iterator[Row]:
    """Parsed rows of a source. Each counts as gone in; a bad one as dropped; what becomes of the others is the caller's."""
    for raw in read_raw(source, counts):
        counts.rows_in += 1
        try:
            row = parse_row(raw)
        except RowError as error:
            drop_or_raise(raw, error, on_bad_row, counts)
            continue
        yield row


def read_records(sources: Sequence[SourceConfig], on_bad_row: str, counts: Counts) -> Iterator[Record]:
    """Records of several sources in order, each row accounted for in ``counts``. A source that gives none is a ``DataError``."""
    for source in sources:
        opened = open_source(source, counts)
        before = Counts.from_dict(counts.as_dict())
        for raw in opened.rows:
            record = record_from(raw, opened.door, on_bad_row, counts)
            if record is not None:
                yield record
        if counts.records_out == before.records_out:
            raise no_records(source, counts.dropped - before.dropped, counts.examples[len(before.examples) :])


def no_records(source: SourceConfig, dropped: Counter[str], examples: Sequence[str] = ()) -> DataError:
    """The error for a source none of whose rows could be used."""
    reasons = ", ".join(f"{reason} {n:,}" for reason, n in dropped.most_common(5))
    first = f"; first: {examples[0]}" if examples else ""
    return DataError(f"{source.path}: none of its {dropped.total():,} rows can be used ({reasons}){first}")
