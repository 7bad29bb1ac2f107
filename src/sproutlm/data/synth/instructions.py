"""Small tasks over words and word lists: repeat, reverse, first, last, count, put in brackets.

Held out are word lists (for the list tasks) and words (for repeating and brackets): none of them occurs in that use in a training text.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sproutlm.data.synth.invented import Inventor
from sproutlm.data.synth.lexicon import Lexicon

TASKS = ("repeat", "reverse", "first", "last", "count", "bracket")
WORD_TASKS = ("repeat", "bracket")
HELD_WORD_SHARE = 1 / 3
INVENTED_SHARE = 0.5  # of the training tasks

PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "repeat": ("把“{w}”说{k}遍。", "请把“{w}”重复{k}遍。", "“{w}”，请写{k}遍。", "请说{k}遍“{w}”。", "重复“{w}”{k}遍。"),
        "reverse": ("把这些词倒过来：{w}。", "请倒着念：{w}。", "反过来写：{w}。", "请把顺序颠倒：{w}。", "从后往前念这些词：{w}。"),
        "first": ("第一个词是什么：{w}？", "请说出第一个词：{w}。", "这些词里排在最前面的是哪个：{w}？", "只写第一个词：{w}。", "开头的词是哪个：{w}？"),
        "last": ("最后一个词是什么：{w}？", "请说出最后一个词：{w}。", "这些词里排在最后面的是哪个：{w}？", "只写最后一个词：{w}。", "末尾的词是哪个：{w}？"),
        "count": ("这里有几个词：{w}？", "请数一数有几个词：{w}。", "一共有几个词：{w}？", "数一数：{w}。", "下面有多少个词：{w}？"),
        "bracket": ("给“{w}”加上括号。", "请把“{w}”放进括号里。", "用括号把“{w}”括起来。", "请给“{w}”加括号。", "把“{w}”写在括号里。"),
    },
    "en": {
        "repeat": (
            'Say "{w}" {k} times.', 'Repeat "{w}" {k} times.', 'Write "{w}" {k} times.', 'Please say "{w}" {k} times.',
            'Please write the word "{w}" {k} times.',
        ),
        "reverse": (
            "Reverse this list: {w}.", "Say these words backwards: {w}.", "Turn the order around: {w}.", "Please reverse: {w}.",
            "Write this list from back to front: {w}.",
        ),
        "first": (
            "What is the first word: {w}?", "Give me the first word: {w}.", "Which word comes first: {w}?", "Write only the first word: {w}.",
            "Please name the first word: {w}.",
        ),
        "last": (
            "What is the last word: {w}?", "Give me the last word: {w}.", "Which word comes last: {w}?", "Write only the last word: {w}.",
            "Please name the last word: {w}.",
        ),
        "count": (
            "How many words are there: {w}?", "Count these words: {w}.", "How many words do you see: {w}?", "Please count: {w}.",
            "What is the number of words: {w}?",
        ),
        "bracket": (
            'Put "{w}" in brackets.', 'Write "{w}" in brackets.', 'Please put brackets around "{w}".', 'Add brackets to "{w}".',
            'Please write the word "{w}" in brackets.',
        ),
    },
}  # fmt: skip

NARRATED: dict[str, dict[str, str]] = {
    "zh": {
        "repeat": "有人把“{w}”说了{k}遍：{r}。", "reverse": "黑板上写着：{w}。倒过来念就是：{r}。", "first": "单子上有：{w}。第一个词是：{r}。",
        "last": "单子上有：{w}。最后一个词是：{r}。", "count": "单子上有：{w}。数一数，词的个数是：{r}。", "bracket": "“{w}”加上括号就是：{r}。",
    },
    "en": {
        "repeat": 'Someone said "{w}" {k} times: {r}.', "reverse": "The board says: {w}. Backwards it reads: {r}.",
        "first": "The list says: {w}. The first word is: {r}.", "last": "The list says: {w}. The last word is: {r}.",
        "count": "The list says: {w}. The number of words is: {r}.", "bracket": 'The word "{w}" in brackets is: {r}.',
    },
}  # fmt: skip


ECHOES: dict[str, tuple[str, ...]] = {
    "zh": ("名单上写着：{w}。再念一遍：{w}。", "他说：{w}。她也说：{w}。", "第一行：{w}。第二行：{w}。", "请跟我念：{w}。好的：{w}。"),
    "en": ("The list says: {w}. Once more: {w}.", "He said: {w}. She said too: {w}.", "First line: {w}. Second line: {w}.", "Say after me: {w}. All right: {w}."),
}  # fmt: skip


@dataclass(frozen=True)
class Instruction:
    """A task on some words; ``times`` counts only for ``repeat``."""

    task: str
    words: tuple[str, ...]
    times: int = 1

    def answer(self, lexicon: Lexicon) -> str:
        brackets = "（{}）" if lexicon.language == "zh" else "({})"
        return {
            "repeat": lexicon.comma.join(self.words * self.times),
            "reverse": lexicon.comma.join(self.words[::-1]),
            "first": self.words[0],
            "last": self.words[-1],
            "count": str(len(self.words)),
            "bracket": brackets.format(self.words[0]),
        }[self.task]

    def ask(self, lexicon: Lexicon, rng: random.Random) -> str:
        phrasing = rng.choice(PHRASINGS[lexicon.language][self.task])
        return phrasing.format(w=lexicon.comma.join(self.words), k=self.times)

    def narrate(self, lexicon: Lexicon) -> str:
        sentence = NARRATED[lexicon.language][self.task]
        return sentence.format(w=lexicon.comma.join(self.words), k=self.times, r=self.answer(lexicon))


def vocabulary(lexicon: Lexicon) -> list[str]:
    """The words that the tasks are about: values of the world, never a name."""
    wanted = ("food", "pet", "product", "colour", "material", "nature")
    return [v for attributes in lexicon.attributes.values() for a in attributes if a.name in wanted for v in a.values]


class InstructionMaker:
    """Draws tasks of one language and keeps the held-out ones apart."""

    def __init__(self, lexicon: Lexicon, questions: int, rng: random.Random) -> None:
        self.lexicon = lexicon
        self.words = vocabulary(lexicon)
        self.held_words = sorted(rng.sample(self.words, round(len(self.words) * HELD_WORD_SHARE)))
        self.training_words = [w for w in self.words if w not in set(self.held_words)]
        self.held = self._hold_out(questions, rng)
        self.held_lists = {i.words for i in self.held if i.task not in WORD_TASKS}

    def _hold_out(self, count: int, rng: random.Random) -> list[Instruction]:
        held: dict[Instruction, None] = {}
        while len(held) < count:
            held[self._draw(TASKS[len(held) % len(TASKS)], self.held_words, rng, shortest=3)] = None
        return list(held)

    def _draw(self, task: str, single_words: list[str], rng: random.Random, shortest: int) -> Instruction:
        if task == "repeat":
            return Instruction(task, (rng.choice(single_words),), rng.randint(2, 4))
        if task == "bracket":
            return Instruction(task, (rng.choice(single_words),))
        longest = {"reverse": 3, "first": 4, "last": 4, "count": 5}[task]
        length = rng.randint(min(shortest, longest), longest)
        return Instruction(task, tuple(rng.sample(self.words, 3 if task == "reverse" else length)))

    def _tells_held(self, words: tuple[str, ...]) -> bool:
        """Whether a held-out list stands inside this one, forwards or backwards."""
        windows = (
            order[i:j]
            for order in (words, words[::-1])
            for i in range(len(words))
            for j in range(i + 3, len(words) + 1)
        )
        return any(window in self.held_lists for window in windows)

    def draw_training(self, rng: random.Random, inventor: Inventor) -> Instruction:
        """A task on words of the world, or (as often) on invented ones, which can only be copied, not remembered."""
        while True:
            instruction = self._draw(rng.choice(TASKS), self.training_words, rng, shortest=2)
            if not self._tells_held(instruction.words):
                break
        if rng.random() < INVENTED_SHARE:
            words = tuple(inventor.word() for _ in instruction.words)
            return Instruction(instruction.task, words, instruction.times)
        return instruction

    def document(self, rng: random.Random, inventor: Inventor) -> str:
        """Three tasks, told or asked and answered."""
        space, stop = self.lexicon.space, self.lexicon.full_stop
        parts = []
        for _ in range(3):
            instruction = self.draw_training(rng, inventor)
            if rng.random() < 0.5:
                parts.append(instruction.narrate(self.lexicon))
            else:
                parts.append(instruction.ask(self.lexicon, rng) + space + instruction.answer(self.lexicon) + stop)
        return space.join(parts)

    def echo(self, names: list[str], rng: random.Random, inventor: Inventor) -> str:
        """A list of names and words, said twice: what comes again can only be foreseen by looking back."""
        joint = rng.choice((self.lexicon.comma, self.lexicon.space))
        while True:
            items = rng.sample(names + self.words, rng.randint(2, 4))
            items += [rng.choice((inventor.name, inventor.word))() for _ in range(rng.randint(1, 3))]
            rng.shuffle(items)
            if not self._tells_held(tuple(items)):
                return rng.choice(ECHOES[self.lexicon.language]).format(w=joint.join(items))
