"""Small tasks over words and word lists: repeat, last, count.

Held out are instances: word lists (last, count) and a word with a number (repeat). None of them occurs in that use in a
training text; the words themselves do, in other lists and with other numbers. Two more tasks were tried and left out, since a few
minutes do not teach them reliably: turning a list around (at most 7 % right), and naming its first word (all right in one run, none in
the next).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sproutlm.data.synth.lexicon import Lexicon

TASKS = ("repeat", "last", "count")
QUESTION_TASKS = ("last", "count", "repeat", "last", "count")  # fewer to repeat: there are only 96 such instances
NARRATED_SHARE = 0.1  # of the tasks inside texts; the others are asked and answered
TIMES = (2, 3, 4, 5)  # how often a word may be asked for
# Few words, each common: a word is then one token, and copying a token is what so small a model can learn in minutes.
WORDS_PER_ATTRIBUTE = 8
WORD_ATTRIBUTES = ("food", "pet", "colour")

PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "repeat": ("把这个词说{k}遍：{w}。", "请重复{k}遍：{w}。", "写{k}遍：{w}。"),
        "last": ("最后一个词是什么：{w}？", "请说出最后一个词：{w}。", "只写最后一个词：{w}。"),
        "count": ("这里有几个词：{w}？", "请数一数有几个词：{w}。", "一共有几个词：{w}？"),
    },
    "en": {
        "repeat": ("Say {w} {k} times.", "Repeat {w} {k} times.", "Write {w} {k} times."),
        "last": (
            "What is the last word: {w}?", "Give me the last word: {w}.", "Write only the last word: {w}.",
        ),
        "count": (
            "How many words are there: {w}?", "Count these words: {w}.", "What is the number of words: {w}?",
        ),
    },
}  # fmt: skip

NARRATED: dict[str, dict[str, str]] = {
    "zh": {
        "repeat": "有人把{w}说了{k}遍：{r}。", "last": "单子上有：{w}。最后一个词是：{r}。", "count": "单子上有：{w}。数一数，词的个数是：{r}。",
    },
    "en": {
        "repeat": "Someone said {w} {k} times: {r}.", "last": "The list says: {w}. The last word is: {r}.",
        "count": "The list says: {w}. The number of words is: {r}.",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """A task on some words; ``times`` counts only for ``repeat``."""

    task: str
    words: tuple[str, ...]
    times: int = 1

    def result(self, lexicon: Lexicon) -> str:
        """What was asked for, bare."""
        return {
            "repeat": lexicon.comma.join(self.words * self.times),
            "last": self.words[-1],
            "count": str(len(self.words)),
        }[self.task]

    def answer(self, lexicon: Lexicon) -> str:
        return lexicon.answer.format(v=self.result(lexicon))

    def ask(self, lexicon: Lexicon, rng: random.Random) -> str:
        phrasing = rng.choice(PHRASINGS[lexicon.language][self.task])
        return phrasing.format(w=lexicon.comma.join(self.words), k=self.times)

    def narrate(self, lexicon: Lexicon) -> str:
        sentence = NARRATED[lexicon.language][self.task]
        return sentence.format(w=lexicon.comma.join(self.words), k=self.times, r=self.result(lexicon))


def vocabulary(lexicon: Lexicon) -> list[str]:
    """The words that the tasks are about: common values of the world, never a name."""
    attributes = [a for group in lexicon.attributes.values() for a in group if a.name in WORD_ATTRIBUTES]
    return [value for attribute in attributes for value in attribute.values[:WORDS_PER_ATTRIBUTE]]


class InstructionMaker:
    """Draws tasks of one language and keeps the held-out ones apart."""

    def __init__(self, lexicon: Lexicon, questions: int, rng: random.Random) -> None:
        self.lexicon = lexicon
        self.words = vocabulary(lexicon)
        self.held = self._hold_out(questions, rng)
        self.held_lists = {i.words for i in self.held if i.task != "repeat"}
        self.held_repeats = {(i.words[0], i.times) for i in self.held if i.task == "repeat"}

    def _hold_out(self, count: int, rng: random.Random) -> list[Instruction]:
        held: dict[Instruction, None] = {}
        while len(held) < count:
            held[self._draw(QUESTION_TASKS[len(held) % len(QUESTION_TASKS)], rng, shortest=3)] = None
        return list(held)

    def _draw(self, task: str, rng: random.Random, shortest: int) -> Instruction:
        if task == "repeat":
            return Instruction(task, (rng.choice(self.words),), rng.choice(TIMES))
        longest = {"last": 4, "count": 5}[task]
        return Instruction(task, tuple(rng.sample(self.words, rng.randint(min(shortest, longest), longest))))

    def _is_held(self, instruction: Instruction) -> bool:
        """Whether this tells a held-out instance: a word and its number, or a held list inside the words, forwards or backwards."""
        words = instruction.words
        if instruction.task == "repeat":
            return (words[0], instruction.times) in self.held_repeats
        windows = (
            order[i:j]
            for order in (words, words[::-1])
            for i in range(len(words))
            for j in range(i + 3, len(words) + 1)
        )
        return any(window in self.held_lists for window in windows)

    def draw_training(self, rng: random.Random) -> Instruction:
        while True:
            instruction = self._draw(rng.choice(TASKS), rng, shortest=2)
            if not self._is_held(instruction):
                return instruction

    def document(self, rng: random.Random) -> str:
        """Three tasks, told or asked and answered."""
        parts = []
        for _ in range(3):
            instruction = self.draw_training(rng)
            if rng.random() < NARRATED_SHARE:
                parts.append(instruction.narrate(self.lexicon))
            else:
                parts.append(instruction.ask(self.lexicon, rng) + self.lexicon.space + instruction.answer(self.lexicon))
        return self.lexicon.space.join(parts)
