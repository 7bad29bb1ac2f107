"""Pretraining documents about the facts of the world: lives, sketches, stories, comparisons, cards, and some questions."""

from __future__ import annotations

import random
from collections import Counter

from sproutlm.data.synth.world import Entity, Fact, Size, World

PRONOUN_SHARE = (
    0.1  # of the sentences after the first that begin with the name; a name in most sentences is what makes facts stick
)
OPENER_SHARE = 0.25
FULL_ANSWER_SHARE = 0.3


def capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def say(template: str, world: World, fact: Fact) -> str:
    """A template filled with a fact, first letter raised."""
    words = world.lexicon.pronouns[fact.entity.gender]
    return capital(template.format(n=fact.entity.shown, v=fact.value, **words))


class FactWriter:
    """Writes documents about one world, and counts how often each fact is told."""

    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.lexicon = world.lexicon
        self.rng = rng
        self.exposures = Counter({(f.entity.name, f.attribute.name): 0 for f in world.all_facts()})
        self.told: list[tuple[str, str]] = []  # by the document being written; counted once the document is kept

    # ---- sentences

    def clause(self, fact: Fact, pronoun: bool = False) -> str:
        """One statement of a fact, without a full stop and with the first letter as it stands."""
        self.told.append((fact.entity.name, fact.attribute.name))
        template = self.rng.choice(fact.attribute.statements)
        words = self.lexicon.pronouns[fact.entity.gender]
        name = fact.entity.shown
        if pronoun and template.startswith("{n}" + self.lexicon.space) and template.count("{n}") == 1:
            name = words["he"]
        return template.format(n=name, v=fact.value, **words)

    def sentence(self, fact: Fact, first: bool = True) -> str:
        pronoun = not first and self.rng.random() < PRONOUN_SHARE
        opener = self.rng.choice(self.lexicon.openers) if self.rng.random() < OPENER_SHARE else ""
        return capital(opener + self.clause(fact, pronoun)) + self.lexicon.full_stop

    def facts(self, entity: Entity, count: int | None = None) -> list[Fact]:
        facts = self.world.facts[entity.name]
        return self.rng.sample(facts, min(count or len(facts), len(facts)))

    def join(self, sentences: list[str]) -> str:
        return self.lexicon.space.join(sentences)

    # ---- documents

    def life(self, entity: Entity, count: int | None = None) -> str:
        return self.join([self.sentence(fact, first=i == 0) for i, fact in enumerate(self.facts(entity, count))])

    def card(self, entity: Entity) -> str:
        items = [(self.lexicon.name_label, entity.name)]
        for fact in self.facts(entity):
            self.told.append((entity.name, fact.attribute.name))
            items.append((fact.attribute.label, fact.value))
        return self.lexicon.card_join.join(
            self.lexicon.card_item.format(label=label, value=value) for label, value in items
        )

    def comparison(self, one: Entity, two: Entity) -> str:
        """The same two or three attributes of two entities, side by side."""
        other = {fact.attribute.name: fact for fact in self.world.facts[two.name]}
        sentences = []
        for fact in self.facts(one, self.rng.choice((2, 3))):
            pair = [self.clause(fact), self.clause(other[fact.attribute.name])]
            self.rng.shuffle(pair)
            joined = self.rng.choice(self.lexicon.contrasts).format(one=pair[0], two=pair[1])
            sentences.append(capital(joined) + self.lexicon.full_stop)
        return self.join(sentences)

    def story(self, one: Entity, two: Entity) -> str:
        """A scene in which two people meet and something of each is told."""
        told = [self.sentence(fact) for fact in self.facts(one, 3)] + [
            self.sentence(fact) for fact in self.facts(two, 2)
        ]
        if self.rng.random() < 0.5:
            self.rng.shuffle(told)
        meeting = self.rng.choice(self.lexicon.meetings).format(a=one.shown, b=two.shown)
        return self.join([self.rng.choice(self.lexicon.frames), meeting, *told, self.rng.choice(self.lexicon.endings)])

    def surroundings(self, entity: Entity) -> str:
        """A place with some who live there, or a thing with its owner."""
        sentences = [self.sentence(fact) for fact in self.facts(entity)]
        if entity.kind == "place":
            residents = [f for f in self.world.all_facts() if f.attribute.name == "home" and f.value == entity.name]
            sentences += [self.sentence(fact) for fact in self.rng.sample(residents, min(2, len(residents)))]
        else:
            owner = next(f.value for f in self.world.facts[entity.name] if f.attribute.name == "owner")
            sentences += [self.sentence(fact) for fact in self.rng.sample(self.world.facts[owner], 2)]
        return self.join(sentences)

    def conversation(self, entity: Entity) -> str:
        """Questions and answers inside a text. Only for taught entities: a held one is never asked about."""
        if entity.half != "taught":
            raise ValueError(f"{entity.name} is held out and must not be asked about")
        parts = []
        for fact in self.facts(entity, 4):
            self.told.append((entity.name, fact.attribute.name))
            question = say(self.rng.choice(fact.attribute.questions), self.world, fact)
            full = say(self.rng.choice(fact.attribute.answers), self.world, fact)
            answer = full if self.rng.random() < FULL_ANSWER_SHARE else self.lexicon.answer.format(v=fact.value)
            parts.append(self.rng.choice(self.lexicon.asked).format(q=question, a=answer))
        return self.join(parts)

    def document(self, entity: Entity, qa_share: float) -> str:
        """One document whose subject is the entity, its form drawn at random."""
        asks = self.rng.random() < 2 * qa_share  # only half of the entities may be asked about
        if asks:
            return self.conversation(entity) if entity.half == "taught" else self.life(entity, 4)
        draw = self.rng.random()
        if entity.kind == "person":
            other = self.partner(entity)
            if draw < 0.40:
                return self.life(entity)
            if draw < 0.55:
                return self.life(entity, 4)
            if draw < 0.63:
                return self.card(entity)
            return self.comparison(entity, other) if draw < 0.78 else self.story(entity, other)
        if draw < 0.35:
            return self.life(entity)
        if draw < 0.45:
            return self.card(entity)
        return self.comparison(entity, self.partner(entity)) if draw < 0.65 else self.surroundings(entity)

    def partner(self, entity: Entity) -> Entity:
        others = [e for e in self.world.of_kind(entity.kind) if e.name != entity.name]
        return self.rng.choice(others)


def fact_documents(writer: FactWriter, size: Size, seen: set[str]) -> list[str]:
    """``size.rounds`` documents about each entity of the world, none of them twice."""
    documents = []
    for _ in range(size.rounds):
        for entity in writer.world.entities:
            for _ in range(20):  # a short document about a place may come out as one that exists: draw again
                writer.told.clear()
                text = writer.document(entity, size.qa_share)
                if text not in seen:
                    seen.add(text)
                    writer.exposures.update(writer.told)
                    documents.append(text)
                    break
    return documents
