"""Messages and tools as the chat template sees them, whatever shape they came in: one shape, so that ids are one."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..data.records import Message
from ..errors import SproutError

Turns = list[dict[str, Any]]


def plain_messages(messages: Sequence[Message | Mapping[str, Any]], thinking: str) -> tuple[Turns, list[bool | None]]:
    """Messages as dictionaries, and their ``train`` overrides apart.

    Content that is absent beside tool calls or reasoning becomes "". Tool calls become
    ``{"type": "function", "function": {"name", "arguments"}}`` with arguments as an object, also where they came as the
    JSON string of the field's APIs. With ``thinking="drop"`` reasoning is left out. SproutError names the message.
    """
    plain: Turns = []
    overrides: list[bool | None] = []
    for index, message in enumerate(messages):
        if isinstance(message, Message):
            fields, train = message.as_dict(), message.train
        else:
            fields = dict(message)
            train = fields.pop("train", None)
            _mend(fields, index)
        overrides.append(None if train is None else bool(train))
        for key in ("role", "content"):
            if not isinstance(fields.get(key), str):
                raise SproutError(
                    f"message {index + 1}: {key} must be text, found {type(fields.get(key)).__name__}; "
                    "a message is {role: system|user|assistant|tool, content: text}"
                )
        if thinking == "drop":
            fields.pop("reasoning_content", None)
        plain.append(fields)
    if not plain:
        raise SproutError("a conversation needs at least one message; this one is empty")
    return plain, overrides


def _mend(fields: dict[str, Any], index: int) -> None:
    """Bring a dictionary of a person or a client into the shape of ``Message.as_dict``."""
    calls = fields.get("tool_calls")
    if not calls:
        fields.pop("tool_calls", None)
    elif not isinstance(calls, list | tuple):
        raise SproutError(f"message {index + 1}: tool_calls must be a list, found {type(calls).__name__}")
    else:
        fields["tool_calls"] = [_call(call, f"message {index + 1}, tool call {i + 1}") for i, call in enumerate(calls)]
    reasoning = fields.get("reasoning_content")
    if reasoning is None:
        fields.pop("reasoning_content", None)
    elif not isinstance(reasoning, str):
        raise SproutError(f"message {index + 1}: reasoning_content must be text, found {type(reasoning).__name__}")
    if fields.get("content", "") is None and (calls or reasoning):
        fields["content"] = ""


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise SproutError(f"{where}: expected {{function: {{name: text, arguments: object}}}}, found {_short(call)}")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except ValueError:
            arguments = None
    if not isinstance(arguments, Mapping):
        raise SproutError(
            f"{where}: arguments must be a JSON object, or its text, found {_short(function['arguments'])}"
        )
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    return {"id": call["id"], **made} if isinstance(call.get("id"), str) else made


def plain_tools(tools: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]] | None:
    """Tools as ``{"type": "function", "function": {"name", ...}}``; None where there are none, as templates expect."""
    plain = []
    for index, tool in enumerate(tools):
        if isinstance(tool, Mapping) and "function" not in tool and isinstance(tool.get("name"), str):
            tool = {"type": "function", "function": tool}
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise SproutError(
                f"tool {index + 1}: expected {{type: function, function: {{name, description, parameters}}}}, "
                f"found {_short(tool)}"
            )
        plain.append(dict(tool))
    return plain or None


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:80] + "…"
