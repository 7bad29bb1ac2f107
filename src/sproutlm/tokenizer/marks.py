"""Private marks that follow a conversation through a template, and the reading that turns them into spans.

A template sees strings with a few characters more, chosen so that they occur nowhere in the conversation. After
rendering, these say which part of the text came from whom; then they are gone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

Span = tuple[int, int]


@dataclass(slots=True)
class Reading:
    """A rendered text with its marks taken out; all spans are in characters of ``text``."""

    text: str = ""
    controls: list[tuple[int, int, str]] = field(default_factory=list)  # (start, end, name), the template's own
    generations: list[Span] = field(default_factory=list)
    contents: list[tuple[int, int, int]] = field(default_factory=list)  # (start, end, index of the message)


@dataclass(frozen=True, slots=True)
class Marks:
    """Private characters that occur neither in the conversation nor in the template."""

    characters: str

    @property
    def generation(self) -> tuple[str, str]:
        return self.characters[0], self.characters[1]

    def mark(self, messages: list[dict[str, Any]], control_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """A copy of the messages with every control token's name shielded and each content between its own marks."""
        opening, closing = self.characters[2], self.characters[3]
        names = _names_pattern(control_names)

        def shield(value: Any) -> Any:
            if isinstance(value, str):
                return names.sub(lambda match: f"{opening}{match.group()}{closing}", value)
            if isinstance(value, Mapping):
                return {shield(key): shield(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [shield(item) for item in value]
            return value

        marked = []
        for index, message in enumerate(messages):
            copy = {key: shield(value) for key, value in message.items()}
            copy["content"] = self._framed(copy["content"], index)
            marked.append(copy)
        return marked

    def _framed(self, content: Any, index: int) -> Any:
        """Content between the marks of its message. They go inside outer blanks, so that ``| trim`` still trims."""
        if not isinstance(content, str) or not content.strip():
            return content
        begin, end = len(content) - len(content.lstrip()), len(content.rstrip())
        digits = "".join(self.characters[6 + int(digit)] for digit in str(index))
        opening, closing = self.characters[4], self.characters[5]
        return f"{content[:begin]}{opening}{digits}{opening}{content[begin:end]}{closing}{content[end:]}"


_COUNT = 16  # generation open/close, shield open/close, content open/close, ten digits


def _unused_characters(texts: str) -> str:
    """Noncharacters first, then the private planes: there is always room."""
    found = []
    for code in (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE)):
        if chr(code) not in texts:
            found.append(chr(code))
            if len(found) == _COUNT:
                break
    return "".join(found)


_USUAL = "".join(chr(code) for code in range(0xFDD0, 0xFDD0 + _COUNT))
_NONCHARACTER = re.compile("[\ufdd0-\ufdef]")


def choose_marks(messages: list[dict[str, Any]], source: str) -> Marks:
    """Marks for one conversation and one template: the usual ones unless a text already holds such characters."""
    everything = "".join([source, *_strings(messages)])
    if not _NONCHARACTER.search(everything):
        return Marks(_USUAL)
    return Marks(_unused_characters(everything))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


@lru_cache(maxsize=64)
def _names_pattern(names: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(re.escape, names)) or "(?!)")


@lru_cache(maxsize=64)
def _marked_pattern(names: tuple[str, ...], characters: str) -> re.Pattern[str]:
    """Group 1: the message's number where a content begins; group 2: a lone mark; else a control token's name."""
    marks = re.escape(characters)
    opening, digits = re.escape(characters[4]), re.escape(characters[6:])
    return re.compile("|".join([f"{opening}([{digits}]+){opening}", f"([{marks}])", *map(re.escape, names)]))


def read_marked(raw: str, marks: Marks, control_names: tuple[str, ...]) -> Reading:
    """Take the marks out of a rendered text and note what they said. Lone marks (a template cut a string) do no harm."""
    kind = {character: i for i, character in enumerate(marks.characters)}
    reading = Reading()
    pieces: list[str] = []
    length = 0  # characters of clean text so far
    position = 0
    generation: list[int] = []
    shielded_at = -1  # where in the raw text a shield was opened: it covers the name that begins right there
    content: tuple[int, int] | None = None  # (start, index of the message)
    for match in _marked_pattern(control_names, marks.characters).finditer(raw):
        pieces.append(raw[position : match.start()])
        length += match.start() - position
        position = match.end()
        number, lone = match.groups()
        mark = kind.get(lone)
        if number is not None:
            content = (length, int("".join(str(kind[digit] - 6) for digit in number)))
        elif mark is None:
            name = match.group()
            pieces.append(name)
            if match.start() != shielded_at:
                reading.controls.append((length, length + len(name), name))
            length += len(name)
        elif mark == 0:
            generation.append(length)
        elif mark == 1 and generation:
            reading.generations.append((generation.pop(), length))
        elif mark == 2:
            shielded_at = match.end()
        elif mark == 5 and content is not None:
            reading.contents.append((content[0], length, content[1]))
            content = None
    pieces.append(raw[position:])
    reading.text = "".join(pieces)
    return reading
