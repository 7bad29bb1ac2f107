"""Message lists in the shapes people have them, made into ``Message``s, and the rules a conversation must keep."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from .fields import EmptyRow, RowError, a_kind, encodable, lookup, optional_string
from .records import Chat, Message, Tools
from .thinking import split_thinking
from .tool_calls import calls_of, from_json, tools_of

ROLES = {
    "system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant", "tool": "tool",
    "observation": "tool", "function": "tool", "function_call": "assistant",
}  # fmt: skip


_ABSENT: Any = object()


def conversation(value: Any, columns: dict[str, str]) -> tuple[tuple[Message, ...], Tools]:
    """Messages and tools of a row: a bare list, or under ``messages`` or ``conversations``.

    ``system`` and ``tools`` may stand beside the list; tools may also stand in its system message.
    """
    if isinstance(value, list):
        return turns_from(value, "the row"), tools_in(value, None)
    field, items = "messages", lookup(value, "messages", columns, default=_ABSENT)
    if items is _ABSENT or (items is None and lookup(value, "conversations", columns, default=None) is not None):
        field, items = "conversations", lookup(value, "conversations", columns)
    items = from_json(items, field)
    if items is None:
        raise EmptyRow(f"{field} is null")
    turns = turns_from(items, field)
    tools = tools_in(items, lookup(value, "tools", columns, default=None))
    return with_system(turns, optional_string(value, "system", columns)), tools


def with_system(turns: tuple[Message, ...], system: str) -> tuple[Message, ...]:
    """``turns`` with the system text of a row in front."""
    if not system.strip():
        return turns
    if turns and turns[0].role == "system":
        raise RowError("the row has a system text beside a system message; keep one", reason="two system texts")
    return (Message("system", system), *turns)


def tools_in(items: Any, beside: Any) -> Tools:
    """Tools that stand beside a message list or in its system message; RowError where both do and they differ."""
    first = items[0] if isinstance(items, list) and items and isinstance(items[0], dict) else {}
    given = [tools for tools in (tools_of(beside), tools_of(first.get("tools"), "tools of message 1")) if tools]
    if len(given) == 2 and given[0] != given[1]:
        raise RowError("the row has tools beside other tools in its system message; keep one", reason="two tool lists")
    return given[0] if given else ()


def turns_from(items: Any, what: str) -> tuple[Message, ...]:
    """Messages of a list of ``{role, content}`` or ``{from, value}``; ``what`` names it in errors."""
    if not isinstance(items, list):
        raise RowError(f"{what} is {a_kind(items)}, not a list of messages", reason=f"{what} is not a list")
    return tuple(_turn(item, number) for number, item in enumerate(items, 1))


def as_turns(value: Any) -> Any:
    """A message list that is written as a JSON string (in a cell of a table, say), parsed; anything else as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[" and ('"role"' in value or '"from"' in value):
        try:
            found = from_json(value, "")
        except RowError:
            return value
        if isinstance(found, list) and all(isinstance(item, dict) and item.keys() & {"role", "from"} for item in found):
            return found
    return value


def reply_turns(value: Any, what: str) -> tuple[Message, ...]:
    """A reply given as a string, as one message, or as a list of messages."""
    value = as_turns(value)
    if isinstance(value, str):
        return (answer_turn(encodable(value, what)),)
    if value is None:
        raise EmptyRow(f"{what} is null")
    return turns_from([value] if isinstance(value, dict) else value, what)


def answer_turn(text: str) -> Message:
    """An assistant's turn, with the thinking at its beginning in its own field."""
    thinking, answer = split_thinking(text)
    return Message("assistant", answer, reasoning_content=thinking)


# --- one message ------------------------------------------------------------------------------------------------------


def _turn(item: Any, number: int) -> Message:
    here = f"message {number}"
    if not isinstance(item, dict):
        raise RowError(
            f"{here} is {a_kind(item)}, not an object with role and content", reason="message is not an object"
        )
    said_by = _first(item, here, "role", "from")
    role = ROLES.get(said_by) if isinstance(said_by, str) else None
    if role is None:
        near = difflib.get_close_matches(str(said_by), ROLES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise RowError(
            f"{here} has the role {said_by!r}; known are {', '.join(ROLES)}{hint}", reason=f"unknown role {said_by}"
        )
    train = _trained(item, here)
    if said_by == "function_call":
        return _function_call(item, here, train)
    calls = calls_of(item.get("tool_calls"), f"{here}: tool_calls") or calls_of(
        item.get("function_call"), f"{here}: function_call"
    )
    thinking = _optional(item, "reasoning_content", here)
    if role != "assistant" and (calls or thinking):
        what = "tool_calls" if calls else "reasoning_content"
        raise RowError(f"{here} has {what}, but its role is {said_by}; only an assistant has them", reason=f"{what} of another role")  # fmt: skip
    content = _content(item, here, may_lack=bool(calls) or thinking is not None)
    if role == "assistant" and not thinking:
        inside, content = split_thinking(content)
        thinking = thinking if inside is None else inside
    if role != "assistant":
        thinking = None  # MiniMind's rows have every field in every message, blank where it does not apply
    name, call = _optional(item, "name", here), _optional(item, "tool_call_id", here)
    return Message(role, content, train, thinking, calls, name or None, call or None)


def _function_call(item: dict[str, Any], here: str, train: bool | None) -> Message:
    """A sharegpt turn whose text is the JSON of a call, or of a list of calls; thinking may stand in front."""
    thinking, text = split_thinking(_content(item, here))
    calls = calls_of(text, f"{here} (function_call)")
    if not calls:
        raise RowError(f"{here} is a function_call without a call", reason="function_call without a call")
    return Message("assistant", "", train, thinking, calls)


def _first(item: dict[str, Any], here: str, *names: str) -> Any:
    for name in names:
        if name in item:
            return item[name]
    has = ", ".join(str(key) for key in item) or "nothing"
    raise RowError(f"{here} has neither {' nor '.join(names)}; it has {has}", reason=f"message without {names[0]}")


def _optional(item: dict[str, Any], name: str, here: str) -> str | None:
    found = item.get(name)
    if found is not None and not isinstance(found, str):
        raise RowError(f"{here}: its {name} is {a_kind(found)}, not a string", reason=f"{name} is not a string")
    return None if found is None else encodable(found, here)


def _content(item: dict[str, Any], here: str, may_lack: bool = False) -> str:
    """The text of a message. ``may_lack``: it does something else (a call), and null or nothing stands for no text."""
    if may_lack and item.get("content", item.get("value")) is None:
        return ""
    content = _first(item, here, "content", "value")
    if isinstance(content, list):
        content = "".join(_text_part(part, here) for part in content)
    if not isinstance(content, str):
        raise RowError(f"{here}: its content is {a_kind(content)}, not a string", reason="content is not a string")
    return encodable(content, here)


def _text_part(part: Any, here: str) -> str:
    """The text of one part of a content list; RowError for a picture, a sound, ..."""
    if not isinstance(part, dict):
        raise RowError(f"{here}: its content is a list with {a_kind(part)} in it, not {{type: text, text: ...}}",
                       reason="content is not a string")  # fmt: skip
    if part.get("type") == "text" and isinstance(part.get("text"), str):
        return str(part["text"])
    kind = part.get("type") or "nameless"
    raise RowError(
        f"{here}: its content holds a part of the type {kind}; only text is read: take these rows out, or the part",
        reason=f"content part {kind}",
    )


def _trained(item: dict[str, Any], here: str) -> bool | None:
    """``train`` (true, false) or ``weight`` (0, 1) of a message; None leaves it to its role."""
    train, weight = item.get("train"), item.get("weight")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{here}: train is {train!r}; write true or false", reason="train is not true or false")
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        said = f"{here}: weight is {weight!r}; a turn is trained (1) or not (0), a part of its weight is not read"
        raise RowError(said, reason="weight is not 0 or 1")
    if train is None:
        return None if weight is None else bool(weight)
    if weight is not None and bool(weight) != train:
        raise RowError(f"{here}: train and weight disagree", reason="train and weight disagree")
    return train


# --- whole conversations ------------------------------------------------------------------------------------------------


def says_something(turn: Message) -> bool:
    return bool(turn.content.strip() or turn.tool_calls or (turn.reasoning_content or "").strip())


def check_chat(turns: Sequence[Message], tools: Tools = ()) -> Chat:
    """A conversation that can be trained on: system first if at all, and an assistant turn that says something."""
    if not turns:
        raise EmptyRow("there are no messages")
    for number, turn in enumerate(turns, 1):
        if turn.role == "system" and number > 1:
            raise RowError(f"message {number} is a system message; only the first may be", reason="system not first")
    replies = [turn for turn in turns if turn.role == "assistant"]
    if not replies:
        raise RowError("there is no assistant turn, so nothing to learn from", reason="no assistant turn")
    if not any(says_something(turn) for turn in replies):
        raise EmptyRow("every assistant turn is empty")
    return Chat(tuple(turns), tools)


ANY_ORDER = "mend the row, or set role_order: any on the source to take conversations as they come"


def check_role_order(turns: Sequence[Message], beside: int = 0) -> None:
    """User and assistant take turns, a user first; results of tools only after a call. RowError names the message.

    ``beside``: messages (a system text) that do not stand in the row's own list, so that the number is that of the list.
    """
    before: Message | None = None
    for number, turn in enumerate(turns, 1 - beside):
        if turn.role == "system":
            continue
        fault, reason = _out_of_order(before, turn)
        if fault:
            raise RowError(f"message {number} ({_shown(turn)}) {fault}; {ANY_ORDER}", reason=reason)
        before = turn


def _out_of_order(before: Message | None, turn: Message) -> tuple[str, str]:
    """(fault, reason) of a turn after another; empty strings where it may stand."""
    last = None if before is None else before.role
    if last is None and turn.role != "user":
        return f"comes first, where a user's turn was expected: what does the {turn.role} answer?", f"{turn.role} first"
    if turn.role == "tool" and last != "tool" and not (before and before.tool_calls):
        return f"is a tool's result and follows a turn of the {last} that calls no tool", "tool without a call"
    if turn.role == "user" and last == "tool":
        return "follows a tool's result, which the assistant must answer first", "user after tool"
    if turn.role in ("user", "assistant") and turn.role == last:
        return f"follows another turn of the {turn.role}", "roles out of order"
    if not says_something(turn) and (turn.role == "user" or (turn.role == "assistant" and turn.train is not False)):
        return "is empty", "empty turn"
    return "", ""


def _shown(turn: Message) -> str:
    text = turn.content.strip().replace("\n", " ")
    text = text if len(text) <= 24 else f"{text[:24]}..."
    return f"{turn.role}: {text!r}" if text else turn.role
