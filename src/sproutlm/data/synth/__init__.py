"""The embedded world: a small procedural world in Chinese and English whose whole training life cycle can be checked.

Half of its people, places and things are *taught*: fine-tuning asks about them. The other half are *held*: their facts are told in
pretraining text and never asked, so a right answer about one shows that knowledge crossed from pretraining into conversation.
"""

from __future__ import annotations

import json
import random
import shutil
import statistics
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sproutlm.data.synth import arithmetic
from sproutlm.data.synth.conversations import Speaker, conversations, preferences
from sproutlm.data.synth.instructions import InstructionMaker
from sproutlm.data.synth.questions import (
    Question,
    arithmetic_questions,
    commonest_share,
    fact_questions,
    instruction_questions,
)
from sproutlm.data.synth.stories import reviews, small_story
from sproutlm.data.synth.texts import FactWriter, fact_documents
from sproutlm.data.synth.world import LEXICONS, SIZES, Size, World, build_world
from sproutlm.errors import DataError

FILES = (
    "README.md", "labels.tsv", "preference.jsonl", "pretrain.jsonl", "pretrain_valid.jsonl", "questions.jsonl", "sft.jsonl",
    "sft_valid.jsonl", "world.json",
)  # fmt: skip

README = """\
# 小世界 / A small world

这个文件夹由 `sprout data synth --seed {seed} --size {size}` 生成，同一个种子总是得到同样的字节。`pretrain.jsonl` 和 `pretrain_valid.jsonl` 是预训练文本；
`sft.jsonl` 和 `sft_valid.jsonl` 是微调对话；`preference.jsonl` 是成对的好答案与差答案；`labels.tsv` 是带情感标签的句子；`questions.jsonl` 是用来检查模型的题目；
`world.json` 记录了全部事实，以及哪些人、地方和东西在微调中被问到（taught），哪些只在预训练文本里出现过（held）。题目只问后一半，所以答对就说明知识从预训练走进了对话。

This folder was written by `sprout data synth --seed {seed} --size {size}`; a seed always gives the same bytes. `pretrain.jsonl` and
`pretrain_valid.jsonl` hold pretraining text; `sft.jsonl` and `sft_valid.jsonl` conversations for fine-tuning; `preference.jsonl` pairs of
a better and a worse answer; `labels.tsv` sentences labelled by sentiment; `questions.jsonl` the questions that check a model.
`world.json` lists every fact, and which people, places and things fine-tuning asks about (taught) and which occur only in pretraining
text (held). The questions ask about the second half, so a right answer shows that knowledge crossed from pretraining into conversation.
"""


class _Language:
    """Everything of one language, each part from its own random stream so that tuning one leaves the others alone."""

    def __init__(
        self, world: World, held: list[arithmetic.Problem], all_held: set[tuple[str, int, int]], size: Size, seed: int
    ) -> None:
        self.world, self.size, self.seed, self.held, self.all_held = world, size, seed, held, all_held
        self.language = world.lexicon.language
        self.writer = FactWriter(world, self.rng("facts"))
        self.instructions = InstructionMaker(world.lexicon, size.instruction_questions, self.rng("instructions"))
        self.speaker = Speaker(world, self.instructions, all_held, self.rng("conversations"))

    def rng(self, part: str) -> random.Random:
        return random.Random(f"{self.seed}/{part}/{self.language}")

    def pretraining(self, seen: set[str]) -> list[str]:
        documents = fact_documents(self.writer, self.size, seen)
        sums, tasks, stories = self.rng("sums"), self.rng("tasks"), self.rng("stories")
        documents += _distinct(
            lambda: arithmetic.document(self.language, sums, self.all_held), self.size.arithmetic_documents, seen
        )
        documents += _distinct(lambda: self.instructions.document(tasks), self.size.instruction_documents, seen)
        documents += _distinct(lambda: small_story(self.language, stories), self.size.small_stories, seen)
        return documents

    def questions(self) -> list[Question]:
        rng = self.rng("questions")
        return [
            *fact_questions(self.world, self.size.fact_questions, rng),
            *arithmetic_questions(self.language, self.held, rng),
            *instruction_questions(self.instructions, rng),
        ]


def _distinct(make: Callable[[], str], count: int, seen: set[str]) -> list[str]:
    documents: list[str] = []
    while len(documents) < count:
        text = make()
        if text not in seen:
            seen.add(text)
            documents.append(text)
    return documents


def _languages(size: Size, seed: int) -> list[_Language]:
    # One draw for both languages: a sum held out in English must not be worked out in Chinese either.
    held = arithmetic.hold_out(size.arithmetic_questions * len(LEXICONS), random.Random(f"{seed}/held sums"))
    keys = {problem.key for problem in held}
    return [
        _Language(build_world(lexicon, size, seed), held[i :: len(LEXICONS)], keys, size, seed) for i, lexicon in enumerate(LEXICONS)
    ]  # fmt: skip


def _split(rows: list[Any], valid: int, rng: random.Random) -> tuple[list[Any], list[Any]]:
    rng.shuffle(rows)
    return rows[valid:], rows[:valid]


def _jsonl(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _world_json(languages: list[_Language], size_name: str, seed: int) -> str:
    entities = [
        {"language": e.language, "kind": e.kind, "name": e.name, "half": e.half, "facts": {f.attribute.name: f.value for f in language.world.facts[e.name]}}
        for language in languages
        for e in language.world.entities
    ]  # fmt: skip
    held_repeats = {language.language: sorted(language.instructions.held_repeats) for language in languages}
    world = {"seed": seed, "size": size_name, "entities": entities, "held_repeats": held_repeats}
    return json.dumps(world, ensure_ascii=False, indent=1) + "\n"


def _summary(
    counts: dict[str, int], sizes: dict[str, int], languages: list[_Language], questions: list[Question]
) -> dict[str, Any]:
    exposures = [n for language in languages for n in language.writer.exposures.values()]
    kinds = sorted({q["kind"] for q in questions})
    return {
        "rows": counts,
        "bytes": sizes,
        "facts": len(exposures),
        "held_facts": sum(len(language.world.all_facts("held")) for language in languages),
        "exposures_per_fact": {"min": min(exposures), "median": statistics.median(exposures)},
        "questions": {kind: sum(q["kind"] == kind for q in questions) for kind in kinds},
        "commonest_answer_share": {
            kind: commonest_share([q for q in questions if q["kind"] == kind]) for kind in kinds
        },
    }


def _contents(
    size: Size, size_name: str, seed: int
) -> tuple[dict[str, str], dict[str, int], list[_Language], list[Question]]:
    """The text of every file, and the number of rows of each."""
    languages = _languages(size, seed)
    seen: set[str] = set()
    documents = [{"text": text} for language in languages for text in language.pretraining(seen)]
    chats = [{"messages": chat} for language in languages for chat in conversations(language.speaker, size)]
    pairs = []
    for language, other in zip(languages, reversed(languages), strict=True):
        pairs += preferences(language.speaker, other.speaker, size.preferences)
    labels = [row for language in languages for row in reviews(language.language, size.labels, language.rng("labels"))]
    questions = [question for language in languages for question in language.questions()]
    order = random.Random(f"{seed}/order")
    pretrain, pretrain_valid = _split(documents, size.valid_documents, order)
    sft, sft_valid = _split(chats, size.sft_valid, order)
    order.shuffle(pairs)
    order.shuffle(labels)
    rows = {
        "pretrain.jsonl": pretrain, "pretrain_valid.jsonl": pretrain_valid, "sft.jsonl": sft, "sft_valid.jsonl": sft_valid,
        "preference.jsonl": pairs, "questions.jsonl": questions,
    }  # fmt: skip
    files = {name: _jsonl(values) for name, values in rows.items()}
    files["labels.tsv"] = "label\ttext\n" + "".join(f"{label}\t{text}\n" for label, text in labels)
    files["world.json"] = _world_json(languages, size_name, seed)
    files["README.md"] = README.format(seed=seed, size=size_name)
    return (
        files,
        {name: len(values) for name, values in rows.items()} | {"labels.tsv": len(labels)},
        languages,
        questions,
    )


def synthesize(out: Path, seed: int = 1, size: str = "small") -> dict[str, Any]:
    """Write the embedded world to the folder ``out`` and return what was written.

    The same seed and size give the same bytes everywhere. An earlier world in ``out`` is replaced, as a whole and only once the
    new one is complete. Raises DataError for an unknown size, or when ``out`` holds files that are not of a world.
    """
    if size not in SIZES:
        raise DataError(f"Unknown size '{size}' of the embedded world: it must be one of {', '.join(SIZES)}.")
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(entry.name not in FILES for entry in out.iterdir())):
        raise DataError(
            f"{out} holds other files and would be replaced by the embedded world; name a new or empty folder instead."
        )
    files, counts, languages, questions = _contents(SIZES[size], size, seed)
    partial = out.parent / f".{out.name}.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        for name in FILES:
            (partial / name).write_bytes(files[name].encode())
        if out.exists():
            shutil.rmtree(out)
        partial.rename(out)
    except OSError as error:
        raise DataError(
            f"The embedded world could not be written to {out}: {error.strerror}. Choose a folder with room that may be written."
        ) from error
    return _summary(counts, {name: len(text.encode()) for name, text in files.items()}, languages, questions)
