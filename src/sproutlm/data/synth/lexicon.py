"""What a language brings to the embedded world: names, the values of each attribute, and how each fact is put into words."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One property of a person, place or thing.

    ``statements`` are clauses without a full stop that hold ``{n}`` (the entity) and ``{v}`` (the value); ``{he}``, ``{his}`` and
    ``{him}`` follow the entity's gender. ``questions`` hold ``{n}``; ``answers`` are whole sentences with both. ``refers`` says that
    the values are names of entities of that kind, and then ``values`` is empty.
    """

    name: str
    label: str
    values: tuple[str, ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    answers: tuple[str, ...]
    refers: str = ""


@dataclass(frozen=True)
class Lexicon:
    """One language of the world."""

    language: str
    women: tuple[str, ...]
    men: tuple[str, ...]
    places: tuple[str, ...]
    things: tuple[str, ...]
    attributes: dict[str, tuple[Attribute, ...]]  # person | place | thing -> its attributes
    openers: tuple[str, ...]  # put before a statement; any statement may follow
    frames: tuple[str, ...]  # whole sentences without a fact, which make a scene
    meetings: tuple[str, ...]  # whole sentences with {a} and {b}
    endings: tuple[str, ...]
    contrasts: tuple[str, ...]  # join two clauses {one} and {two}
    asked: tuple[str, ...]  # a question {q} and its answer {a} inside a text
    thing_form: str  # how a thing is named in a sentence
    pronouns: dict[str, dict[str, str]]  # f | m | t -> he, his, him
    name_label: str
    card_item: str  # one line of a card, with {label} and {value}
    card_join: str
    full_stop: str
    space: str  # between two sentences
    comma: str  # between the items of a list
    answer: str  # the sentence that carries an answer {v}, the same for every kind of question
