"""The held-out questions: facts that were told and never asked, sums and word tasks whose instances stand in no training text."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

from sproutlm.data.synth import arithmetic
from sproutlm.data.synth.instructions import InstructionMaker
from sproutlm.data.synth.texts import say
from sproutlm.data.synth.world import World

Question = dict[str, Any]


def _question(
    kind: str, language: str, number: int, asked: str, answer: str, check: str, options: list[str]
) -> Question:
    return {
        "id": f"{kind}-{language}-{number:04d}",
        "kind": kind,
        "language": language,
        "messages": [{"role": "user", "content": asked}],
        "answer": answer,
        "check": check,
        "options": options,
    }


def fact_questions(world: World, count: int | None, rng: random.Random) -> list[Question]:
    """One question for each held fact, or for ``count`` of them, in a wording that fine-tuning has for taught entities."""
    facts = world.all_facts("held")
    if count is not None:
        facts = rng.sample(facts, min(count, len(facts)))
    language = world.lexicon.language
    return [
        _question(
            "fact", language, i, say(rng.choice(f.attribute.questions), world, f), f.value, "only", world.options(f)
        )
        for i, f in enumerate(facts)
    ]  # fmt: skip


def arithmetic_questions(language: str, held: list[arithmetic.Problem], rng: random.Random) -> list[Question]:
    return [
        _question("arithmetic", language, i, arithmetic.ask(language, p, rng), str(p.answer), "last_number", [])
        for i, p in enumerate(held)
    ]  # fmt: skip


def instruction_questions(maker: InstructionMaker, rng: random.Random) -> list[Question]:
    lexicon = maker.lexicon
    return [
        _question("instruction", lexicon.language, i, task.ask(lexicon, rng), task.answer(lexicon), "exact", [])
        for i, task in enumerate(maker.held)
    ]  # fmt: skip


def commonest_share(questions: list[Question]) -> float:
    """What always giving one answer would score on these questions."""
    return max(Counter(q["answer"] for q in questions).values()) / len(questions) if questions else 0.0
