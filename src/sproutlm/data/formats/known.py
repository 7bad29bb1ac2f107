"""The schemas that people have, in order of detection: the more particular before the more general."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..conversations import as_turns
from ..records import Record
from . import read, write
from .format import Format, lossless
from .read import COMPLETIONS, PROMPTS, RATINGS, TEXT_COLUMNS, as_rating

Needs = tuple[tuple[str, ...], ...]


def has(value: Any, needs: Needs) -> bool:
    """Whether a row has one name of each tuple among its keys."""
    return isinstance(value, dict) and all(any(name in value for name in names) for names in needs)


def _message_list(value: Any, *keys: str) -> bool:
    """Whether a value is a list of messages, all of which have one of ``keys``."""
    found = as_turns(value)
    return isinstance(found, list) and bool(found) and all(has(item, (keys,)) for item in found)


def _has_list(row: Any, field: str, *keys: str) -> bool:
    return isinstance(row, dict) and _message_list(row.get(field), *keys)


_PREFERENCE: Needs = (("chosen",), ("rejected",))
_UNPAIRED: Needs = (("prompt", "messages", "conversations"), RATINGS)


def _is_ranking(row: Any) -> bool:
    return has(row, _PREFERENCE) and (
        _has_list(row, "conversations", "from")
        or has(row["chosen"], (("from",),))
        or has(row["rejected"], (("from",),))
    )


def _is_preference_of_messages(row: Any) -> bool:
    return has(row, _PREFERENCE) and any(
        _has_list(row, name, "role", "from") for name in ("prompt", "chosen", "rejected")
    )


def _is_unpaired(row: Any) -> bool:
    """A prompt with its completion, or messages, and a rating that is true or false: a class has another label."""
    if not has(row, _UNPAIRED):
        return False
    if "kto_tag" in row:
        return True
    if as_rating(row["label"]) is None:
        return False
    if "prompt" in row:
        return row.get("completion") is not None
    return isinstance(row["label"], bool | str)  # beside messages, 0 and 1 may be classes


def _is_unpaired_of_messages(row: Any) -> bool:
    return _is_unpaired(row) and ("prompt" not in row or _has_list(row, "prompt", "role", "from"))


def _is_labelled(row: Any) -> bool:
    """A label and a text; or a label and one other column, whatever its name."""
    return has(row, (("label",), TEXT_COLUMNS)) or (
        has(row, (("label",),)) and len(row) == 2 and all(isinstance(v, str | int | float) for v in row.values())
    )


def _format(
    name: str,
    matches: Callable[[Any], bool],
    parse: Callable[[Any, dict[str, str]], Record],
    describe: str,
    fields: tuple[str, ...],
    needs: Needs,
    writes: tuple[str, ...],
) -> Format:
    to_row = lossless(name, getattr(write, name), parse)
    return Format(name, matches, parse, describe, fields, needs, to_row, writes)


_ASKED = ("prompt", "conversations", "messages", "instruction", "input", "question", "system", "tools")
_LIST = ("messages", "conversations", "system", "tools")

FORMATS: tuple[Format, ...] = (
    _format(
        "sharegpt_ranking", _is_ranking, read.preference,
        "conversations with chosen and rejected, each {from, value}",
        (*_ASKED, "chosen", "rejected"), (("conversations",), *_PREFERENCE),
        ("conversations", "chosen", "rejected", "tools"),
    ),
    _format(
        "preference_messages", _is_preference_of_messages, read.preference,
        "chosen and rejected, lists of messages, with a prompt or beginning alike",
        (*_ASKED, "chosen", "rejected"), _PREFERENCE,
        ("prompt", "chosen", "rejected", "tools"),
    ),
    _format(
        "preference", lambda row: has(row, _PREFERENCE), read.preference,
        "chosen and rejected, with a prompt",
        (*_ASKED, "chosen", "rejected"), (("prompt",), *_PREFERENCE),
        ("prompt", "chosen", "rejected", "system"),
    ),
    _format(
        "unpaired_messages", _is_unpaired_of_messages, read.unpaired,
        "messages, or a prompt and a completion that are lists of messages, with label or kto_tag true or false",
        (*_ASKED, "completion", *RATINGS), (("messages", "conversations", "prompt"), RATINGS),
        ("prompt", "completion", "label", "tools"),
    ),
    _format(
        "unpaired_preference", _is_unpaired, read.unpaired,
        "prompt and completion with label true or false",
        (*_ASKED, "completion", *RATINGS), (("prompt",), ("completion",), RATINGS),
        ("prompt", "completion", "label", "system"),
    ),
    _format(
        "sharegpt", lambda row: _has_list(row, "conversations", "from"), read.messages,
        "conversations, a list of {from, value}",
        _LIST, (("conversations",),), ("conversations", "tools"),
    ),
    _format(
        "messages", lambda row: has(row, (("messages",),)) or _message_list(row, "role", "from"), read.messages,
        "messages, a list of {role, content}, or rows that are such lists",
        _LIST, (("messages",),), ("messages", "tools"),
    ),
    _format(
        "conversations", lambda row: has(row, (("conversations",),)), read.messages,
        "conversations, a list of {role, content}",
        _LIST, (("conversations",),), ("conversations", "tools"),
    ),
    _format(
        "instruction", lambda row: has(row, (("instruction",), ("output",))), read.instruction,
        "instruction and output (input, system and history may be there)",
        ("instruction", "input", "output", "system", "history", "tools"), (("instruction",), ("output",)),
        ("instruction", "input", "output", "system", "history"),
    ),
    _format(
        "question_answer", lambda row: has(row, (("question",), ("answer",))), read.pair,
        "question and answer",
        (*PROMPTS, *COMPLETIONS, "system", "tools"), (("question",), ("answer",)),
        ("question", "answer", "system"),
    ),
    _format(
        "prompt_completion", lambda row: has(row, (PROMPTS, COMPLETIONS)), read.pair,
        "prompt and completion",
        (*PROMPTS, *COMPLETIONS, "system", "tools"), (("prompt",), ("completion",)),
        ("prompt", "completion", "system"),
    ),
    _format(
        "labelled", _is_labelled, read.labelled,
        "label and text",
        ("label", *TEXT_COLUMNS), (("label",), TEXT_COLUMNS),
        ("text", "label"),
    ),
    _format(
        "text", lambda row: isinstance(row, str) or has(row, (("text",),)), read.text,
        "text, or rows that are strings",
        ("text",), (("text",),),
        ("text",),
    ),
)  # fmt: skip
