"""The facts of the embedded world: who there is, what is true of them, and which half is only ever told, never asked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from sproutlm.data.synth.lexicon import Attribute, Lexicon
from sproutlm.data.synth.lexicon_en import ENGLISH
from sproutlm.data.synth.lexicon_zh import CHINESE

LEXICONS: tuple[Lexicon, ...] = (CHINESE, ENGLISH)


@dataclass(frozen=True)
class Size:
    """Every number that can be tuned. Counts are per language unless they say otherwise."""

    people: int = 28  # at most 48: 24 women and 24 men
    places: int = 8
    things: int = 8
    rounds: int = 125  # each entity is the subject of one document per round
    qa_share: float = 0.08  # share of the fact documents that ask and answer, all of them about taught entities
    arithmetic_documents: int = 1900  # three worked sums each
    instruction_documents: int = 3000
    small_stories: int = 500
    valid_documents: int = 300  # both languages, spread over the kinds
    fact_questions_per_fact: int = 6  # fine-tuning turns for each taught fact
    arithmetic_chats: int = 900
    instruction_chats: int = 1100
    small_talk: int = 160
    multi_turn_share: float = 0.15
    sft_valid: int = 200  # both languages
    preferences: int = 300
    labels: int = 600
    fact_questions: int | None = None  # None: every held fact
    arithmetic_questions: int = 132
    instruction_questions: int = 132


SIZES = {
    "small": Size(),
    "tiny": Size(
        rounds=7, arithmetic_documents=105, instruction_documents=80, small_stories=75, valid_documents=30, fact_questions_per_fact=1,
        arithmetic_chats=70, instruction_chats=60,  small_talk=20, sft_valid=24, preferences=30, labels=60, fact_questions=20,
        arithmetic_questions=14, instruction_questions=18,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Entity:
    """A person, place or thing; ``shown`` is its name inside a sentence."""

    language: str
    kind: str  # person | place | thing
    name: str
    shown: str
    gender: str  # f | m | t
    half: str  # taught | held


@dataclass(frozen=True)
class Fact:
    """One attribute of one entity; ``shown`` is the value inside a sentence."""

    entity: Entity
    attribute: Attribute
    value: str


@dataclass
class World:
    """All entities and facts of one language."""

    lexicon: Lexicon
    entities: list[Entity]
    facts: dict[str, list[Fact]] = field(default_factory=dict)  # entity name -> its facts

    def of_kind(self, kind: str, half: str | None = None) -> list[Entity]:
        return [e for e in self.entities if e.kind == kind and half in (None, e.half)]

    def all_facts(self, half: str | None = None) -> list[Fact]:
        return [fact for e in self.entities if half in (None, e.half) for fact in self.facts[e.name]]

    def options(self, fact: Fact) -> list[str]:
        """Every value the attribute can take, in a fixed order; a person is no option for a question about that person."""
        if not fact.attribute.refers:
            return list(fact.attribute.values)
        return [e.name for e in self.of_kind(fact.attribute.refers) if e.name != fact.entity.name]


def near_uniform(values: list[str], count: int, rng: random.Random) -> list[str]:
    """``count`` values in random order, each as often as any other, give or take one."""
    repeated: list[str] = []
    while len(repeated) < count:
        repeated += rng.sample(values, min(len(values), count - len(repeated)))
    rng.shuffle(repeated)
    return repeated


def _entities(lexicon: Lexicon, size: Size, rng: random.Random) -> list[Entity]:
    half_people = size.people // 2
    groups = [
        ("person", "f", lexicon.women[:half_people]),
        ("person", "m", lexicon.men[:half_people]),
        ("place", "t", lexicon.places[: size.places]),
        ("thing", "t", lexicon.things[: size.things]),
    ]
    entities = []
    for kind, gender, names in groups:
        held = set(rng.sample(names, len(names) // 2))
        for name in names:
            shown = lexicon.thing_form.format(name) if kind == "thing" else name
            entities.append(Entity(lexicon.language, kind, name, shown, gender, "held" if name in held else "taught"))
    return entities


def _values(world: World, attribute: Attribute, group: list[Entity], half: str, rng: random.Random) -> list[str]:
    if attribute.name == "friend":  # friendship is mutual, so the members of a pair share a half
        order = rng.sample(range(len(group)), len(group))
        friend_of = {order[i]: order[i ^ 1] for i in range(len(order) // 2 * 2)}
        return [group[friend_of[i]].name for i in range(len(group))]
    if attribute.refers == "person":
        return near_uniform([e.name for e in world.of_kind("person", half)], len(group), rng)
    if attribute.refers:
        return near_uniform([e.name for e in world.of_kind(attribute.refers)], len(group), rng)
    return near_uniform(list(attribute.values), len(group), rng)


def build_world(lexicon: Lexicon, size: Size, seed: int) -> World:
    """Draw the halves and the facts of one language. Values are spread evenly within each half."""
    rng = random.Random(f"{seed}/world/{lexicon.language}")
    world = World(lexicon, _entities(lexicon, size, rng))
    world.facts = {e.name: [] for e in world.entities}
    for kind, attributes in lexicon.attributes.items():
        for attribute in attributes:
            for half in ("taught", "held"):
                group = world.of_kind(kind, half)
                for entity, value in zip(group, _values(world, attribute, group, half, rng), strict=True):
                    world.facts[entity.name].append(Fact(entity, attribute, value))
    return world
