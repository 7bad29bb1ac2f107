"""The kinds of record. Every input schema becomes one of these at the door; nothing past ``data/`` knows another."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that an assistant makes: the function's name and its arguments, a JSON object."""

    name: str
    arguments: dict[str, Any]
    id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The shape that chat templates and the field's APIs read, arguments as an object."""
        call: dict[str, Any] = {"type": "function", "function": {"name": self.name, "arguments": self.arguments}}
        return call if self.id is None else {"id": self.id, **call}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. ``train`` overrides the default (assistant turns are trained, others are not).

    ``reasoning_content`` is what an assistant thinks before ``content``, without the tags around it. ``tool_calls`` are
    an assistant's; a turn of role ``tool`` holds a result, which ``tool_call_id`` and ``name`` may tie to its call.
    """

    role: str  # system | user | assistant | tool
    content: str
    train: bool | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    name: str | None = None
    tool_call_id: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """What a chat template sees; keys that do not apply are absent."""
        shown: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.reasoning_content is not None:
            shown["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            shown["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.name is not None:
            shown["name"] = self.name
        if self.tool_call_id is not None:
            shown["tool_call_id"] = self.tool_call_id
        return shown


Tools = tuple[dict[str, Any], ...]  # each {"type": "function", "function": {"name", "description", "parameters"}}


@dataclass(frozen=True, slots=True)
class Text:
    """A plain document; every token is trained."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; the tokens of assistant turns, their end token included, are trained."""

    messages: tuple[Message, ...]
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a better and a worse continuation."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class UnpairedPreference:
    """One prompt with one continuation that was liked or not (KTO)."""

    prompt: tuple[Message, ...]
    completion: tuple[Message, ...]
    desirable: bool
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text with its class, a name or an integer as the file has it."""

    text: str
    label: str | int


Record = Text | Chat | Preference | UnpairedPreference | Labelled


def messages_of(record: Record) -> tuple[tuple[Message, ...], ...]:
    """The message lists of a record, none for a text: a conversation; a prompt and its continuations."""
    if isinstance(record, Chat):
        return (record.messages,)
    if isinstance(record, Preference):
        return (record.prompt, record.chosen, record.rejected)
    return (record.prompt, record.completion) if isinstance(record, UnpairedPreference) else ()


def texts_of(record: Record) -> Iterator[str]:
    """Every piece of text in a record, whatever its kind: contents, thinking, what calls pass, what tools say."""
    if isinstance(record, Text | Labelled):
        yield record.text
        return
    for messages in messages_of(record):
        for message in messages:
            yield message.content
            if message.reasoning_content:
                yield message.reasoning_content
            yield from (json.dumps(call.arguments, ensure_ascii=False) for call in message.tool_calls)
    yield from (json.dumps(tool, ensure_ascii=False) for tool in record.tools)
