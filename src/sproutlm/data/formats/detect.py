"""Choose the format of a source: by name, from the first rows, row by row, or a person's own."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from ...errors import DataError
from ..fields import RowError, a_kind, lookup
from ..records import Record
from .format import Format
from .known import FORMATS


def resolve_format(name: str, first_rows: Sequence[Any], columns: dict[str, str] | None = None) -> Format:
    """The format called ``name``: "auto" (decided from the first rows), a known name, or "package.module:attribute".

    Raises ``DataError`` when it is unknown or undecided, with the columns seen and what each format needs.
    """
    columns = columns or {}
    if name == "auto":
        return detect(first_rows, columns).format
    if ":" in name:
        return _import_format(name)
    for known in (*FORMATS, MIXED):
        if known.name == name:
            _check_columns(known, columns)
            return known
    names = [f.name for f in (*FORMATS, MIXED)]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "or write package.module:attribute for a format of your own"
    raise DataError(f"the format {name!r} is not known; known are auto, {', '.join(names)}; {hint}")


# --- from the rows ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Detected:
    """What the first rows say: a format, the columns that were found for it, and a sentence where that was a judgement."""

    format: Format
    columns: dict[str, str] = field(default_factory=dict)
    note: str = ""


def detect(rows: Sequence[Any], columns: dict[str, str]) -> Detected:
    """The format of most of the first rows. DataError where they have none, or half of them have no known one."""
    found = [format_of(row, columns) for row in rows]
    families = Counter(f.parse for f in found if f is not None)
    if families:
        parse, count = families.most_common(1)[0]
        if count * 2 >= len(rows):
            names = Counter(f.name for f in found if f is not None and f.parse is parse)
            chosen = next(f for f in FORMATS if f.name == names.most_common(1)[0][0])
            _check_columns(chosen, columns)
            return Detected(chosen, columns)
    if not families and not columns:
        nameless = _labelled_without_header(rows)
        if nameless:
            return nameless
    if len(families) > 1:
        seen = Counter(f.name for f in found if f is not None)
        listed = ", ".join(f"{name} {count}" for name, count in seen.most_common())
        raise DataError(
            f"the first {len(rows)} rows have several schemas ({listed}) and none has most of them; set format: mixed to "
            "read each row as what it is, or name one of them to read only its rows"
        )
    raise DataError(_undecided(rows))


def format_of(row: Any, columns: dict[str, str]) -> Format | None:
    """The most particular known format of one row. A column that is null counts only where nothing else would match."""
    row = _with_fields(row, columns)
    if isinstance(row, dict) and None in row.values():
        given = {key: value for key, value in row.items() if value is not None}
        found = next((f for f in FORMATS if f.matches(given)), None)
        if found is not None:
            return found
    return next((f for f in FORMATS if f.matches(row)), None)


def other_schema(row: Any, chosen: Format, columns: dict[str, str]) -> str | None:
    """The name of the schema that a row has, where that is not the one its file is read with."""
    found = format_of(row, columns)
    if found is None or found.parse is chosen.parse:
        return None
    if (
        chosen in FORMATS
        and FORMATS.index(found) > FORMATS.index(chosen)
        and chosen.matches(_with_fields(row, columns))
    ):
        return None  # it has the file's columns, and one of them is null: that is what should be said
    return found.name


def _with_fields(row: Any, columns: dict[str, str]) -> Any:
    """The row as a format would see it, with mapped columns under their field names."""
    if not isinstance(row, dict) or not columns:
        return row
    found = {field: lookup(row, field, columns, default=None) for field in columns}
    return {**row, **{field: value for field, value in found.items() if value is not None}}


LEAST_ROWS = 4  # fewer tell no class from a text
LONGEST_LABEL = 40
_NAMELESS = re.compile(r"column_\d+")


def _labelled_without_header(rows: Sequence[Any]) -> Detected | None:
    """A table of two columns without names that are a label and a text. None where that is unclear."""
    columns = _label_and_text(rows)
    if columns is None or not all(_NAMELESS.fullmatch(name) for name in rows[0]):
        return None
    label, text = columns["label"], columns["text"]
    seen = ", ".join(sorted({str(row[label]) for row in rows})[:5])
    note = (
        f"the table has no header: {label} was taken for the label (first values: {seen}) and {text} for the text; "
        f"if that is wrong, say so with format: and columns: {{label: {text}, text: {label}}}"
    )
    return Detected(next(f for f in FORMATS if f.name == "labelled"), columns, note)


def _label_and_text(rows: Sequence[Any]) -> dict[str, str] | None:
    """Of two columns, one that holds few short values over and over, and one that holds free text; None where unclear."""
    if len(rows) < LEAST_ROWS or not all(isinstance(row, dict) and len(row) == 2 for row in rows):
        return None
    names = list(rows[0])
    if any(list(row) != names or not all(isinstance(cell, str | int) for cell in row.values()) for row in rows):
        return None
    values = {name: [str(row[name]) for row in rows] for name in names}
    labels = [name for name in names if _are_labels(values[name])]
    if len(labels) != 1:
        return None
    label, text = labels[0], names[labels[0] == names[0]]
    if len(set(values[text])) <= len(rows) // 2 or _mean_length(values[text]) <= _mean_length(values[label]):
        return None
    return {"label": label, "text": text}


def _are_labels(values: Sequence[str]) -> bool:
    return len(set(values)) <= len(values) // 2 and all(0 < len(value) <= LONGEST_LABEL for value in values)


def _mean_length(values: Sequence[str]) -> float:
    return sum(map(len, values)) / len(values)


def _parse_mixed(value: Any, columns: dict[str, str]) -> Record:
    """Each row on its own; RowError where it has no known schema."""
    found = format_of(value, columns)
    if found is None:
        has = f"the keys {', '.join(map(str, value))}" if isinstance(value, dict) and value else a_kind(value)
        said = f"the row has no known schema (it has {has}); name its columns, or take it out"
        raise RowError(said, reason="no known schema")
    return found.parse(value, columns)


MIXED = Format("mixed", lambda row: False, _parse_mixed, "rows of any of these schemas, each decided on its own")


# --- what to say where nothing can be decided -----------------------------------------------------------------------------


def _undecided(rows: Sequence[Any]) -> str:
    needs = ", ".join(f.name for f in FORMATS)
    keys = list(dict.fromkeys(str(key) for row in rows if isinstance(row, dict) for key in row))
    if not rows:
        return f"no row could be read to tell the format; name it with format:, one of {needs}"
    if not keys:
        kinds = ", ".join(sorted({a_kind(row).partition(" (")[0] for row in rows}))
        objects = any(isinstance(row, list) and row and isinstance(row[0], dict) for row in rows)
        cure = "if each line is an array of rows, name the file .json; " if objects else ""
        return f"cannot tell the format of rows that are {kinds} without known keys; {cure}formats are {needs}"
    inner = _list_of_rows(rows)
    if inner:
        said = f"the file is one object with the keys {', '.join(keys)}, and {inner!r} holds a list of objects"
        return f"{said}: if these are the rows, write that list alone into a file; formats are {needs}"
    nearest = max(FORMATS, key=lambda f: sum(_nearest_key(n, keys)[0] for n in f.needs) / len(f.needs))
    found = [(names[0], *_nearest_key(names, keys)) for names in nearest.needs]
    columns = {field: key if likeness > 0.5 else "COLUMN" for field, likeness, key in found}
    example = f"format: {nearest.name}, columns: {{{', '.join(f'{field}: {key}' for field, key in columns.items())}}}"
    labelled = _label_and_text(rows)
    if labelled:
        example = f"format: labelled, columns: {{label: {labelled['label']}, text: {labelled['text']}}}"
    elif set(columns.values()) == {"COLUMN"}:
        example = "format: text, columns: {text: COLUMN}"
    return (
        f"cannot tell the format of rows with the columns {', '.join(keys)}. Name it and its columns, for example "
        f"{example}. {nearest.name} needs {nearest.describe}; formats are {needs}"
    )


def _list_of_rows(rows: Sequence[Any]) -> str | None:
    """The key of a lone object under which the rows seem to stand; None where there is none, or more than one."""
    if len(rows) != 1:
        return None
    lists = [key for key, value in rows[0].items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    return str(lists[0]) if len(lists) == 1 else None


def _nearest_key(names: tuple[str, ...], keys: Sequence[str]) -> tuple[float, str]:
    """The key most like any of a field's names, and how like it is (0 to 1)."""
    return max((difflib.SequenceMatcher(None, key.lower(), name).ratio(), key) for key in keys for name in names)


def _check_columns(chosen: Format, columns: dict[str, str]) -> None:
    unknown = [field for field in columns if chosen.fields and field not in chosen.fields]
    if unknown:
        near = difflib.get_close_matches(unknown[0], chosen.fields, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        known = ", ".join(chosen.fields)
        raise DataError(f"columns: the format {chosen.name} has no field {unknown[0]!r}; its fields are {known}{hint}")


# --- a format of one's own ------------------------------------------------------------------------------------------------


def import_module_here(name: str) -> ModuleType:
    """Import an installed module, or one in the current folder, where the installed command does not look by itself."""
    here = str(Path.cwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        if here in sys.path:
            raise
        sys.path.append(here)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(here)


def _import_format(spec: str) -> Format:
    module_name, _, attribute = spec.partition(":")
    here = str(Path.cwd())
    try:
        module = import_module_here(module_name)
    except ModuleNotFoundError as error:
        where = f"looked in the installed packages and in {here}"
        raise DataError(f"format {spec!r}: the module {error.name!r} was not found ({where})") from None
    except Exception as error:
        raise DataError(f"format {spec!r}: importing {module_name} failed ({type(error).__name__}: {error})") from error
    found = getattr(module, attribute, None)
    if found is None:
        near = difflib.get_close_matches(attribute, vars(module), n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise DataError(f"format {spec!r}: {module_name} has no attribute {attribute!r}{hint}")
    if not isinstance(found, Format):
        want = "a sproutlm.data.formats.Format(name, matches, parse)"
        raise DataError(f"format {spec!r}: it is a {type(found).__name__}, not {want}")
    return found
