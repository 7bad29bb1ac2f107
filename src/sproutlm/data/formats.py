"""Normalise rows at the door: each format turns one schema that people have into one of the four records.

A new schema is one ``Format`` added to ``FORMATS`` (or named as ``package.module:attribute``); nothing else changes.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import DataError
from .conversations import check_chat, conversation, reply_turns, turns_from
from .fields import EmptyRow, RowError, column_of, lookup, optional_string, string_at
from .records import Chat, Labelled, Message, Preference, Record, Text

__all__ = ["FORMATS", "EmptyRow", "Format", "RowError", "resolve_format"]


@dataclass(frozen=True, slots=True)
class Format:
    """One schema of rows. ``parse`` raises ``RowError`` with a sentence; ``columns`` maps field names to columns."""

    name: str
    matches: Callable[[Any], bool]
    parse: Callable[[Any, dict[str, str]], Record]
    describe: str = ""  # what it needs, for messages
    fields: tuple[str, ...] = ()  # names that ``columns`` may map; empty = any
    needs: tuple[tuple[str, ...], ...] = ()  # what a row must have; names in one tuple stand for each other


def _has(value: Any, needs: tuple[tuple[str, ...], ...]) -> bool:
    """Whether a row has one name of each tuple among its keys."""
    return isinstance(value, dict) and all(any(name in value for name in names) for names in needs)


# --- text and labelled ------------------------------------------------------------------------------------------------


def _parse_text(value: Any, columns: dict[str, str]) -> Text:
    text = value if isinstance(value, str) else string_at(value, "text", columns)
    return Text(_filled(text))


def _filled(text: str) -> str:
    if not text.strip():
        raise EmptyRow("the text is empty")
    return text


_TEXT_COLUMNS = ("text", "sentence", "review", "content")


def _parse_labelled(value: Any, columns: dict[str, str]) -> Labelled:
    label = lookup(value, "label", columns)
    if not isinstance(label, str | int | float):
        raise RowError(f"label is {label!r}, not a name or a number", reason="label is not a name or a number")
    field = column_of(value, _TEXT_COLUMNS, columns)
    return Labelled(_filled(string_at(value, field, columns)), str(label).strip())


# --- conversations ----------------------------------------------------------------------------------------------------


def _parse_instruction(value: Any, columns: dict[str, str]) -> Chat:
    """Alpaca's columns: the input goes below the instruction; ``system`` and ``history`` (pairs) are honoured."""
    instruction = string_at(value, "instruction", columns)
    extra = optional_string(value, "input", columns)
    question = f"{instruction}\n{extra}" if extra.strip() else instruction
    answer = string_at(value, "output", columns)
    history = lookup(value, "history", columns, default=None) or []
    turns = [] if not isinstance(history, list) else [_pair(past) for past in history]
    return _chat_of_pairs([*turns, (question, answer)], optional_string(value, "system", columns))


def _pair(past: Any) -> tuple[str, str]:
    if isinstance(past, list) and len(past) == 2 and all(isinstance(p, str) for p in past):
        return past[0], past[1]
    raise RowError("history is not a list of [question, answer] pairs of strings", reason="history is not pairs")


def _chat_of_pairs(pairs: Sequence[tuple[str, str]], system: str = "") -> Chat:
    messages = [Message("system", system)] if system.strip() else []
    for question, answer in pairs:
        if not question.strip() or not answer.strip():
            raise EmptyRow("the question or the answer is empty")
        messages += [Message("user", question), Message("assistant", answer)]
    return Chat(tuple(messages))


_PROMPTS, _COMPLETIONS = ("prompt", "question"), ("completion", "answer")


def _parse_prompt_completion(value: Any, columns: dict[str, str]) -> Chat:
    prompt_field, completion_field = column_of(value, _PROMPTS, columns), column_of(value, _COMPLETIONS, columns)
    prompt = lookup(value, prompt_field, columns)
    if isinstance(prompt, list):
        reply = reply_turns(lookup(value, completion_field, columns), completion_field)
        return check_chat((*turns_from(prompt, prompt_field), *reply))
    question = string_at(value, prompt_field, columns)
    answer = string_at(value, completion_field, columns)
    return _chat_of_pairs([(question, answer)], optional_string(value, "system", columns))


def _is_message_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(_has(v, (("role", "from"),)) for v in value)


def _parse_messages(value: Any, columns: dict[str, str]) -> Chat:
    return check_chat(conversation(value, columns))


# --- preference -------------------------------------------------------------------------------------------------------


def _parse_preference(value: Any, columns: dict[str, str]) -> Preference:
    """chosen and rejected as strings, as one message, or as message lists; the prompt apart or their common beginning."""
    chosen = reply_turns(lookup(value, "chosen", columns), "chosen")
    rejected = reply_turns(lookup(value, "rejected", columns), "rejected")
    prompt = _prompt_turns(value, columns)
    if not prompt:  # both sides hold the whole conversation
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not prompt:
        raise RowError("there is no prompt: chosen and rejected share no first message", reason="no prompt")
    for side in (chosen, rejected):
        check_chat((*prompt, *side))
        if not any(m.role == "assistant" and m.content.strip() for m in side):
            raise EmptyRow("chosen or rejected is empty")
    return Preference(prompt, chosen, rejected)


def _prompt_turns(value: Any, columns: dict[str, str]) -> tuple[Message, ...]:
    for field in ("prompt", "conversations", "messages", "instruction", "question"):
        found = lookup(value, field, columns, default=None)
        if isinstance(found, list):
            return conversation({**value, "messages": found}, {})
        if found is not None:
            text = string_at(value, field, columns)
            extra = optional_string(value, "input", columns) if field == "instruction" else ""
            system = optional_string(value, "system", columns)
            first = (Message("system", system),) if system.strip() else ()
            return (*first, Message("user", f"{text}\n{extra}" if extra.strip() else text))
    return ()


# --- choosing -----------------------------------------------------------------------------------------------------------

# In order of detection: the more particular schema first.
_PREFERENCE = (("chosen",), ("rejected",))
_MESSAGES = (("messages", "conversations"),)
_INSTRUCTION = (("instruction",), ("output",))
_PAIR = (_PROMPTS, _COMPLETIONS)
_LABELLED = (("label",), _TEXT_COLUMNS)
FORMATS: tuple[Format, ...] = (
    Format(
        "preference",
        lambda v: _has(v, _PREFERENCE),
        _parse_preference,
        "chosen and rejected, with a prompt or conversations",
        ("prompt", "chosen", "rejected", "conversations", "messages", "instruction", "input", "question", "system"),
        _PREFERENCE,
    ),
    Format(
        "messages",
        lambda v: _is_message_list(v) or _has(v, _MESSAGES),
        _parse_messages,
        "messages or conversations, a list of {role, content} or {from, value}",
        ("messages", "conversations", "system", "tools"),
        _MESSAGES,
    ),
    Format(
        "instruction",
        lambda v: _has(v, _INSTRUCTION),
        _parse_instruction,
        "instruction and output (input, system and history may be there)",
        ("instruction", "input", "output", "system", "history"),
        _INSTRUCTION,
    ),
    Format(
        "prompt_completion",
        lambda v: _has(v, _PAIR),
        _parse_prompt_completion,
        "prompt and completion, or question and answer",
        (*_PROMPTS, *_COMPLETIONS, "system"),
        _PAIR,
    ),
    Format(
        "labelled",
        lambda v: _has(v, _LABELLED),
        _parse_labelled,
        "label and text",
        ("label", *_TEXT_COLUMNS),
        _LABELLED,
    ),
    Format(
        "text",
        lambda v: isinstance(v, str) or _has(v, (("text",),)),
        _parse_text,
        "text, or rows that are strings",
        ("text",),
        (("text",),),
    ),
)


def resolve_format(name: str, first_rows: Sequence[Any], columns: dict[str, str] | None = None) -> Format:
    """The format called ``name``: "auto" (decided from the first rows), a known name, or "package.module:attribute".

    Raises ``DataError`` when it is unknown or undecided, with the columns seen and what each format needs.
    """
    columns = columns or {}
    if name == "auto":
        return _detect(first_rows, columns)
    if ":" in name:
        return _import_format(name)
    for known in FORMATS:
        if known.name == name:
            _check_columns(known, columns)
            return known
    names = [f.name for f in FORMATS]
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean {near[0]}?" if near else "or write package.module:attribute for a format of your own"
    raise DataError(f"the format {name!r} is not known; known are auto, {', '.join(names)}; {hint}")


def _detect(rows: Sequence[Any], columns: dict[str, str]) -> Format:
    """The format that most of the first rows match; more particular ones win ties."""
    renamed = [_with_fields(row, columns) for row in rows]
    votes = [sum(f.matches(row) for row in renamed) for f in FORMATS]
    best = max(votes, default=0)
    if best and best * 2 >= len(rows):
        chosen = FORMATS[votes.index(best)]
        _check_columns(chosen, columns)
        return chosen
    raise DataError(_undecided(rows))


def _with_fields(row: Any, columns: dict[str, str]) -> Any:
    """The row as a format would see it, with mapped columns under their field names."""
    if not isinstance(row, dict):
        return row
    found = {field: lookup(row, field, columns, default=None) for field in columns}
    return {**row, **{field: value for field, value in found.items() if value is not None}}


def _undecided(rows: Sequence[Any]) -> str:
    needs = "; ".join(f"{f.name} needs {f.describe}" for f in FORMATS)
    keys = list(dict.fromkeys(str(key) for row in rows if isinstance(row, dict) for key in row))
    if not rows:
        return f"no row could be read to tell the format; name it with format:. Formats: {needs}"
    if not keys:
        kinds = ", ".join(sorted({type(row).__name__ for row in rows}))
        return f"cannot tell the format of rows that are {kinds} without known keys. Formats: {needs}"
    nearest = max(FORMATS, key=lambda f: sum(_nearest_key(n, keys)[0] for n in f.needs) / len(f.needs))
    found = [(names[0], *_nearest_key(names, keys)) for names in nearest.needs]
    columns = {field: key if likeness > 0.5 else "COLUMN" for field, likeness, key in found}
    example = f"format: {nearest.name}, columns: {{{', '.join(f'{field}: {key}' for field, key in columns.items())}}}"
    if set(columns.values()) == {"COLUMN"}:
        example = "format: text, columns: {text: COLUMN}"
    return (
        f"cannot tell the format of rows with the columns {', '.join(keys)}. Name it and its columns, for example "
        f"{example}. Formats: {needs}"
    )


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
