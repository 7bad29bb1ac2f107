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
Part = tuple[int, int, int]  # (start, end, index of the message)

CONTENT, REASONING, CALL = 0, 1, 2  # what a part is: a message's text, its thinking, the name of a tool it calls
_KINDS = 3


@dataclass(slots=True)
class Reading:
    """A rendered text with its marks taken out; all spans are in characters of ``text``."""

    text: str = ""
    controls: list[tuple[int, int, str]] = field(default_factory=list)  # (start, end, name), the template's own
    generations: list[Span] = field(default_factory=list)
    parts: tuple[list[Part], ...] = field(default_factory=lambda: tuple([] for _ in range(_KINDS)))  # by kind

    @property
    def contents(self) -> list[Part]:
        return self.parts[CONTENT]


@dataclass(frozen=True, slots=True)
class Marks:
    """Private characters that occur neither in the conversation nor in the template."""

    characters: str

    @property
    def generation(self) -> tuple[str, str]:
        return self.characters[0], self.characters[1]

    def mark(self, messages: list[dict[str, Any]], control_names: tuple[str, ...]) -> list[dict[str, Any]]:
        """A copy of the messages with every control token's name shielded and each part between its own marks."""
        marked = []
        for index, message in enumerate(messages):
            copy = self.shield(message, control_names)
            copy["content"] = self._framed(copy["content"], index, CONTENT)
            if "reasoning_content" in copy:
                copy["reasoning_content"] = self._framed(copy["reasoning_content"], index, REASONING)
            for call in copy.get("tool_calls") or ():
                function = call["function"]
                function["name"] = self._framed(function["name"], index, CALL)
            marked.append(copy)
        return marked

    def shield(self, value: Any, control_names: tuple[str, ...]) -> Any:
        """A copy of strings, lists and mappings in which every control token's name stands between two marks."""
        names, firsts = _names_pattern(control_names)
        replacement = rf"{self.characters[2]}\g<0>{self.characters[3]}"

        def shielded(value: Any) -> Any:
            if isinstance(value, str):
                for first in firsts:  # most texts hold none, and this look is the fastest there is
                    if first in value:
                        return names.sub(replacement, value)
                return value
            if isinstance(value, Mapping):
                return {shielded(key): shielded(item) for key, item in value.items()}
            if isinstance(value, list | tuple):
                return [shielded(item) for item in value]
            return value

        return shielded(value)

    def _framed(self, text: Any, index: int, kind: int) -> Any:
        """Text between the marks of its part. They go inside outer blanks, so that ``| trim`` still trims."""
        if not isinstance(text, str) or not text.strip():
            return text
        begin, end = len(text) - len(text.lstrip()), len(text.rstrip())
        digits = "".join(self.characters[6 + int(digit)] for digit in str(index * _KINDS + kind))
        opening, closing = self.characters[4], self.characters[5]
        return f"{text[:begin]}{opening}{digits}{opening}{text[begin:end]}{closing}{text[end:]}"


_COUNT = 16  # generation open/close, shield open/close, part open/close, ten digits


def _unused_characters(texts: str) -> str:
    """Noncharacters first, then the private planes: there is always room."""
    found = []
    for code in (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE)):
        if chr(code) not in texts:
            found.append(chr(code))
            if len(found) == _COUNT:
                break
    return "".join(found)


_USUAL = Marks("".join(chr(code) for code in range(0xFDD0, 0xFDD0 + _COUNT)))
_NONCHARACTER = re.compile("[\ufdd0-\ufdef]")


def choose_marks(values: Any, source: str) -> Marks:
    """Marks for one conversation and one template: the usual ones unless a text already holds such characters."""
    if not any(not text.isascii() and _NONCHARACTER.search(text) for text in _strings([source, values])):
        return _USUAL
    return Marks(_unused_characters("".join(_strings([source, values]))))


def _strings(value: Any) -> Iterator[str]:
    """Every string in ``value``, however deep, keys of mappings too."""
    rest = [value]
    while rest:
        item = rest.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            rest.extend(item)
            rest.extend(item.values())
        elif isinstance(item, Mapping):
            rest.append(dict(item))
        elif isinstance(item, list | tuple):
            rest.extend(item)


@lru_cache(maxsize=64)
def _names_pattern(names: tuple[str, ...]) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """A pattern of any name, and the characters that names begin with."""
    return re.compile("|".join(map(re.escape, names)) or "(?!)"), tuple(sorted({name[0] for name in names}))


@lru_cache(maxsize=64)
def _marked_pattern(names: tuple[str, ...], characters: str) -> re.Pattern[str]:
    """Group 1: a part's number where it begins; else one lone mark, or a control token's name.

    It begins with a plain set of characters, which lets ``re`` skip quickly to the next place that matters.
    """
    firsts = sorted({name[0] for name in names})
    opening, digits = re.escape(characters[4]), re.escape(characters[6:])
    ways = [f"(?<={opening})([{digits}]+){opening}", f"(?<=[{re.escape(characters)}])"]
    for first in firsts:
        rests = "|".join(re.escape(name[1:]) for name in names if name[0] == first)
        ways.append(f"(?<={re.escape(first)})(?:{rests})")
    return re.compile(f"[{re.escape(characters + ''.join(firsts))}](?:{'|'.join(ways)})")


def read_marked(raw: str, marks: Marks, control_names: tuple[str, ...]) -> Reading:
    """Take the marks out of a rendered text and note what they said. Lone marks (a template cut a string) do no harm."""
    kind = {character: i for i, character in enumerate(marks.characters)}
    reading = Reading()
    pieces: list[str] = []
    length = 0  # characters of clean text so far
    position = 0
    generation: list[int] = []
    shielded_at = -1  # where in the raw text a shield was opened: it covers the name that begins right there
    part: tuple[int, int] | None = None  # (start, number)
    for match in _marked_pattern(control_names, marks.characters).finditer(raw):
        begin, end = match.span()
        pieces.append(raw[position:begin])
        length += begin - position
        position = end
        number = match.group(1)
        mark = kind.get(raw[begin])
        if number is not None:
            part = (length, int("".join(str(kind[digit] - 6) for digit in number)))
        elif mark is None:
            name = match.group()
            pieces.append(name)
            if begin != shielded_at:
                reading.controls.append((length, length + len(name), name))
            length += len(name)
        elif mark == 0:
            generation.append(length)
        elif mark == 1 and generation:
            reading.generations.append((generation.pop(), length))
        elif mark == 2:
            shielded_at = end
        elif mark == 5 and part is not None:
            reading.parts[part[1] % _KINDS].append((part[0], length, part[1] // _KINDS))
            part = None
    pieces.append(raw[position:])
    reading.text = "".join(pieces)
    return reading
