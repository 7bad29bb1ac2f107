"""Message lists in the shapes people have them, made into ``Message``s, and the rules a conversation must keep."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from .fields import EmptyRow, RowError, a_kind, encodable, lookup, optional_string
from .records import Chat, Message

ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_NOT_READ_YET = ("tool_calls", "function_call", "reasoning_content")


def conversation(value: Any, columns: dict[str, str]) -> tuple[Message, ...]:
    """Messages of a row: a bare list, or under ``messages`` or ``conversations``, with an optional ``system`` text."""
    if isinstance(value, list):
        return turns_from(value, "the row")
    field = "messages" if lookup(value, "messages", columns, default=None) is not None else "conversations"
    turns = turns_from(lookup(value, field, columns), field)
    if lookup(value, "tools", columns, default=None):
        raise RowError("the row offers tools, and conversations with tools are not read", reason="tools")
    system = optional_string(value, "system", columns)
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        raise RowError("the row has a system text beside a system message; keep one", reason="two system texts")
    return (Message("system", system), *turns)


def turns_from(items: Any, what: str) -> tuple[Message, ...]:
    """Messages of a list of ``{role, content}`` or ``{from, value}``; ``what`` names it in errors."""
    if not isinstance(items, list):
        raise RowError(f"{what} is {a_kind(items)}, not a list of messages", reason=f"{what} is not a list")
    return tuple(_turn(item, number) for number, item in enumerate(items, 1))


def reply_turns(value: Any, what: str) -> tuple[Message, ...]:
    """A reply given as a string, as one message, or as a list of messages."""
    if isinstance(value, str):
        return (Message("assistant", encodable(value, what)),)
    if value is None:
        raise EmptyRow(f"{what} is null")
    return turns_from([value] if isinstance(value, dict) else value, what)


def _turn(item: Any, number: int) -> Message:
    here = f"message {number}"
    if not isinstance(item, dict):
        raise RowError(
            f"{here} is {a_kind(item)}, not an object with role and content", reason="message is not an object"
        )
    role, content = _first(item, here, "role", "from"), _first(item, here, "content", "value")
    if role not in ROLES:
        near = difflib.get_close_matches(str(role), ROLES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RowError(
            f"{here} has the role {role!r}; known are {', '.join(ROLES)}{hint}", reason=f"unknown role {role}"
        )
    for name in _NOT_READ_YET:
        if item.get(name):
            raise RowError(f"{here} has {name}, which is not read", reason=name)
    if not isinstance(content, str):
        raise RowError(f"{here}: its content is {a_kind(content)}, not a string", reason="content is not a string")
    return Message(ROLES[role], encodable(content, here), _trained(item, here))


def _first(item: dict[str, Any], here: str, *names: str) -> Any:
    for name in names:
        if name in item:
            return item[name]
    has = ", ".join(str(key) for key in item) or "nothing"
    raise RowError(f"{here} has neither {' nor '.join(names)}; it has {has}", reason=f"message without {names[0]}")


def _trained(item: dict[str, Any], here: str) -> bool | None:
    """``train`` (true, false) or ``weight`` (0, 1) of a message; None leaves it to its role."""
    train, weight = item.get("train"), item.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{here}: train is {train!r}; write true or false", reason="train is not true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise RowError(f"{here}: weight is {weight!r}; 0 and 1 are known", reason="weight is not 0 or 1")
    if train is None:
        return None if weight is None else bool(weight)
    if weight is not None and bool(weight) != train:
        raise RowError(f"{here}: train and weight disagree", reason="train and weight disagree")
    return train


def check_chat(turns: Sequence[Message]) -> Chat:
    """A conversation that can be trained on: system first if at all, and an assistant turn that says something."""
    if not turns:
        raise EmptyRow("there are no messages")
    for number, turn in enumerate(turns, 1):
        if turn.role == "system" and number > 1:
            raise RowError(f"message {number} is a system message; only the first may be", reason="system not first")
    replies = [turn for turn in turns if turn.role == "assistant"]
    if not replies:
        raise RowError("there is no assistant turn, so nothing to learn from", reason="no assistant turn")
    if not any(turn.content.strip() for turn in replies):
        raise EmptyRow("every assistant turn is empty")
    return Chat(tuple(turns))
