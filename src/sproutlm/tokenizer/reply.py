"""What a model wrote, as a message: its ids back into thinking, text and tool calls. The other way round of the template."""

from __future__ import annotations

import json
from collections.abc import Sequence

from ..data.records import Message, ToolCall
from .tokenizer import Tokenizer


def read_reply(tokenizer: Tokenizer, ids: Sequence[int], *, thinking: bool = False) -> Message:
    """The assistant's message that the generated ``ids`` spell, end token or not.

    Rendered again it has the same ids, so that a second turn continues what the model wrote (pitfall 6). Only control
    tokens divide it: ``</think>`` spelled out in a text is text. ``thinking`` says that the prompt opened the think
    block. A call whose JSON is broken stays in the content, with its tags.
    """
    tokens = {name: tokenizer.control_tokens.get(name, -1) for name in _NAMES}
    rest = list(ids)
    reasoning = None
    if tokens["</think>"] in rest and (thinking or rest[0] == tokens["<think>"]):
        end = rest.index(tokens["</think>"])
        reasoning = _text(tokenizer, rest[:end]).strip() or None
        rest = rest[end + 1 :]
    lead = "\n\n" if len(rest) < len(ids) else ""  # the blank line behind a think block is the template's
    content, calls = _calls(tokenizer, rest, tokens["<tool_call>"], tokens["</tool_call>"], lead)
    return Message("assistant", content, reasoning_content=reasoning, tool_calls=tuple(calls))


_NAMES = ("<think>", "</think>", "<tool_call>", "</tool_call>")


def _calls(tokenizer: Tokenizer, ids: list[int], opening: int, closing: int, lead: str) -> tuple[str, list[ToolCall]]:
    """The text outside calls, less ``lead`` at its beginning, and the calls."""
    text: list[str] = []
    calls: list[ToolCall] = []
    while opening in ids and closing in ids[ids.index(opening) :]:
        start = ids.index(opening)
        end = ids.index(closing, start)
        before, inside = _text(tokenizer, ids[:start]).removeprefix(lead), _text(tokenizer, ids[start + 1 : end])
        call = _call(inside)
        if call is None:
            text.append(before + _text(tokenizer, ids[start : end + 1], True))
        else:
            text.append(before.removesuffix("\n"))  # the line break before a call is the template's
            calls.append(call)
        ids, lead = ids[end + 1 :], ""
    return "".join([*text, _text(tokenizer, ids).removeprefix(lead)]), calls


def _text(tokenizer: Tokenizer, ids: Sequence[int], keep_control: bool = False) -> str:
    """Whole characters only, as in a completion's text."""
    return tokenizer.decode_bytes(ids, keep_control).decode("utf-8", errors="ignore")


def _call(text: str) -> ToolCall | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", {})
    return ToolCall(value["name"], arguments) if isinstance(arguments, dict) else None
