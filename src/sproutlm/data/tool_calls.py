"""Tools and calls of them in every shape people have: objects or JSON strings, wrapped as OpenAI does or bare."""

from __future__ import annotations

import json
from typing import Any

from .fields import RowError, a_kind, encodable
from .records import ToolCall, Tools


def from_json(value: Any, what: str, kind: str = "") -> Any:
    """``value``, parsed where it is a JSON string; None for a blank one. RowError where it is text and not JSON.

    ``what`` names it in the sentence; ``kind``, without its place, in the reason that is counted.
    """
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        shown = value if len(value) <= 40 else f"{value[:40]}..."
        raise RowError(
            f"{what} is text that is not JSON ({shown!r}: {error})", reason=f"{kind or what} not JSON"
        ) from None


def tools_of(value: Any, what: str = "tools") -> Tools:
    """Tool objects, each ``{"type": "function", "function": {...}}``; none for null, blank or an empty list."""
    found = from_json(value, what, "tools")
    if found is None or found == []:
        return ()
    if not isinstance(found, list):
        raise RowError(f"{what} is {a_kind(found)}, not a list of tools", reason="tools are not a list")
    return tuple(_tool(item, f"{what}: tool {number}") for number, item in enumerate(found, 1))


def _tool(item: Any, here: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise RowError(f"{here} is {a_kind(item)}, not an object", reason="tool is not an object")
    item = _without_null(item)
    wrapped = item.get("function")
    if isinstance(wrapped, dict):
        if item.get("type") not in (None, "function"):
            raise RowError(f"{here} has the type {item['type']!r}; only function is read", reason="tool of other type")
        body = _without_null(wrapped)
        tool = {**item, "type": "function", "function": body}
    else:
        tool, body = {"type": "function", "function": item}, item
    if not isinstance(body.get("name"), str) or not body["name"]:
        has = ", ".join(map(str, body)) or "nothing"
        raise RowError(f"{here} has no name; it has {has}, and needs name, description, parameters", "tool has no name")
    _encodable(tool, here)
    return tool


def _without_null(found: dict[str, Any]) -> dict[str, Any]:
    """Without the keys that a table with a column for each of them filled with null."""
    return {key: value for key, value in found.items() if value is not None}


def calls_of(value: Any, here: str) -> tuple[ToolCall, ...]:
    """Calls given as a list, as one object, or as the JSON of either."""
    found = from_json(value, here, "tool call")
    if found is None or found == [] or found == {}:
        return ()
    if isinstance(found, dict):
        found = [found]
    if not isinstance(found, list):
        raise RowError(f"{here} is {a_kind(found)}, not a list of calls", reason="tool_calls are not a list")
    return tuple(_call(item, here) for item in found)


def _call(item: Any, here: str) -> ToolCall:
    if not isinstance(item, dict):
        raise RowError(f"{here} holds {a_kind(item)}, not an object", reason="tool call is not an object")
    body = item["function"] if isinstance(item.get("function"), dict) else item
    if item.get("type") not in (None, "function"):
        raise RowError(f"{here} has the type {item['type']!r}; only function is read", reason="tool of other type")
    name = body.get("name")
    if not isinstance(name, str) or not name:
        has = ", ".join(map(str, body)) or "nothing"
        raise RowError(f"{here} has a call without a name; it has {has}", reason="tool call has no name")
    arguments = from_json(body.get("arguments"), f"{here}: arguments of {name}", "tool arguments")
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise RowError(f"{here}: the arguments of {name} are {a_kind(arguments)}, not an object",
                       reason="tool arguments are not an object")  # fmt: skip
    _encodable(arguments, here)
    identity = item.get("id")
    return ToolCall(encodable(name, here), arguments, None if identity is None else str(identity))


def _encodable(value: Any, here: str) -> None:
    encodable(json.dumps(value, ensure_ascii=False), here)
