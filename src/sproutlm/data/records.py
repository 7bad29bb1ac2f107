"""The four kinds of record. Every input schema becomes one of these at the door; nothing past ``data/`` knows another."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. ``train`` overrides the default (assistant turns are trained, others are not)."""

    role: str  # system | user | assistant
    content: str
    train: bool | None = None

    def as_dict(self) -> dict[str, str]:
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Text:
    """A plain document; every token is trained."""

    text: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation; the tokens of assistant turns, their end token included, are trained."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """One prompt with a better and a worse continuation."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text with its class."""

    text: str
    label: str


Record = Text | Chat | Preference | Labelled
