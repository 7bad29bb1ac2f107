"""Conversations of one shape are rendered once: the template's text with holes, then each conversation's texts put in.

A shape is the roles in their order, and which contents and thoughts are there, empty or absent. Most data sets have a
handful. ``holes.py`` finds out whether the template writes the texts of a shape out as they are; where it does not, and
for tools, names, ``train`` overrides and texts of blanks alone, each conversation is rendered by itself, as ever.

Texts are put in after control tokens were looked for, so no text of a person can become one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from ..data.records import Message
from .holes import FIRST_HOLE, Hole, Strips, hole_template
from .marks import choose_marks, read_marked
from .spans import Piece, cut, spans_of

_ROLES = frozenset({"system", "user", "assistant", "tool"})
_MOST_SHAPES = 1024  # kept at a time
_MOST_TURNS = 64  # longer conversations hardly ever share a shape

Key = tuple[tuple[str, bool, bool | None], ...]  # role, has content, has reasoning (None: absent, False: empty)


class _Slot(NamedTuple):
    message: int
    field: str
    strips: Strips


class _Gap(NamedTuple):
    """A piece with holes. ``parts``: text, or the number of a hole; ``places``: where each hole is, in the skeleton."""

    parts: tuple[str | int, ...]
    places: tuple[tuple[int, int], ...]  # (character, hole)
    trained: bool | tuple[tuple[int, int], ...]

    def filled(self, texts: list[str]) -> Piece:
        text = "".join([part if type(part) is str else texts[part] for part in self.parts])  # type: ignore[index]
        if isinstance(self.trained, bool):
            return Piece(text, -1, self.trained)
        return Piece(text, -1, tuple((self._moved(a, texts), self._moved(b, texts)) for a, b in self.trained))

    def _moved(self, place: int, texts: list[str]) -> int:
        """A hole is one character long in the skeleton; what comes after it moves by what its text has more."""
        return place + sum(len(texts[hole]) - 1 for at, hole in self.places if at < place)


class _Skeleton(NamedTuple):
    slots: tuple[_Slot, ...]
    pieces: tuple[Piece | _Gap, ...]

    def filled(self, messages: Sequence[Message]) -> list[Piece]:
        texts: list[str] = []
        for index, field, strips in self.slots:
            text = messages[index].content if field == "content" else messages[index].reasoning_content
            assert text is not None
            for method, blanks in strips:
                text = getattr(text, method)(blanks)
            texts.append(text)
        return [each if type(each) is Piece else each.filled(texts) for each in self.pieces]  # type: ignore[union-attr]


class Shapes:
    """The shapes of one template and tokenizer, found as they come. Threads may share it: at worst two find the same."""

    def __init__(self, source: str, named: Mapping[str, str], control_ids: Mapping[str, int], thinking: str) -> None:
        self._source, self._named, self._control_ids, self._thinking = source, named, control_ids, thinking
        self._names = tuple(sorted(control_ids, key=len, reverse=True))
        self._skeletons: dict[Key, _Skeleton | None] = {}
        # A name that begins or ends with a blank could come about from the template's text and a content's blanks.
        self.usable = bool(source) and all(name == name.strip() for name in self._names)
        self.rendered = self.filled = 0  # conversations that were left to be rendered, and those that were not

    def __len__(self) -> int:
        return len(self._skeletons)

    def fill(self, messages: Sequence[Any], tools: Iterable[Any]) -> list[Piece] | None:
        """The pieces of a conversation, or None where it has to be rendered."""
        key = self._key(messages) if self.usable and isinstance(tools, tuple | list) and not tools else None
        if key is None:
            self.rendered += 1
            return None
        if key in self._skeletons:
            skeleton = self._skeletons[key]
        else:
            if len(self._skeletons) >= _MOST_SHAPES:
                self._skeletons.clear()
            skeleton = self._skeletons[key] = self._found(key)
        if skeleton is None:
            self.rendered += 1
            return None
        self.filled += 1
        return skeleton.filled(messages)

    def _key(self, messages: Sequence[Any]) -> Key | None:
        key: list[tuple[str, bool, bool | None]] = []
        if not 0 < len(messages) <= _MOST_TURNS:
            return None
        for message in messages:
            if type(message) is not Message or message.role not in _ROLES or type(message.content) is not str:
                return None
            thought = message.reasoning_content if self._thinking != "drop" else None
            if message.train is not None or message.tool_calls or message.name is not None:
                return None
            if message.tool_call_id is not None or message.content.isspace():
                return None
            if thought is not None and (type(thought) is not str or thought.isspace()):
                return None
            if thought and self._thinking == "mask":
                return None
            key.append((message.role, bool(message.content), None if thought is None else bool(thought)))
        return tuple(key)

    def _found(self, key: Key) -> _Skeleton | None:
        """The template's text for a shape; None where it looks at a text, refuses the shape, or has no tags."""
        template = hole_template(self._source)
        marks = choose_marks([], self._source)
        if not (template.usable and template.marks_generation):
            return None
        messages: list[dict[str, Any]] = []
        for index, (role, content, thought) in enumerate(key):
            message: dict[str, Any] = {"role": role, "content": Hole.of((index, "content")) if content else ""}
            if thought is not None:
                message["reasoning_content"] = Hole.of((index, "reasoning_content")) if thought else ""
            messages.append(message)
        values = {"documents": None, **self._named, "tools": None, "messages": messages, "add_generation_prompt": False}
        try:
            raw, holes = template.written(values, marks.generation)
        except Exception:  # it looked, or refuses the shape: rendering the conversation itself says which
            return None
        reading = read_marked(raw, marks, self._names)
        spans = spans_of(reading, messages, [None] * len(messages), "keep")
        pieces = [_with_gaps(piece) for piece in cut(reading, spans, self._control_ids)]
        return _Skeleton(tuple(_Slot(*slot, strips) for slot, strips in holes), tuple(pieces))


def _with_gaps(piece: Piece) -> Piece | _Gap:
    parts: list[str | int] = []
    places: list[tuple[int, int]] = []
    begin = 0
    for at, character in enumerate(piece.text):
        if ord(character) >= FIRST_HOLE:
            hole = ord(character) - FIRST_HOLE
            parts += [piece.text[begin:at], hole] if begin < at else [hole]
            places.append((at, hole))
            begin = at + 1
    if not places:
        return piece
    if begin < len(piece.text):
        parts.append(piece.text[begin:])
    return _Gap(tuple(parts), tuple(places), piece.trained)
