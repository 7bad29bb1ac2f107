"""Sums and differences of whole numbers below 100, worked column by column, ones first.

The working is what a small model can learn: each step needs two or three digits, the carry is spelled out, and the final number only
repeats digits that stand there already.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

PHRASINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "zh": {
        "+": (
            "{a}+{b}=?", "{a}+{b}等于多少？", "{a}加{b}等于多少？", "请计算{a}+{b}。", "{a}加上{b}是多少？", "求{a}加{b}的和。",
            "请问{a}+{b}是多少？",
        ),
        "-": (
            "{a}-{b}=?", "{a}-{b}等于多少？", "{a}减{b}等于多少？", "请计算{a}-{b}。", "{a}减去{b}是多少？", "求{a}减{b}的差。",
            "请问{a}-{b}是多少？",
        ),
    },
    "en": {
        "+": (
            "{a}+{b}=?", "What is {a}+{b}?", "What is {a} plus {b}?", "Please work out {a}+{b}.", "How much is {a} plus {b}?",
            "Find the sum {a}+{b}.", "Add up: {a} plus {b}.",
        ),
        "-": (
            "{a}-{b}=?", "What is {a}-{b}?", "What is {a} minus {b}?", "Please work out {a}-{b}.", "How much is {a} minus {b}?",
            "Find the difference {a}-{b}.", "Take away: {a} minus {b}.",
        ),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Problem:
    """One instance: ``a + b`` or ``a - b`` with ``a >= b``."""

    operation: str  # + | -
    a: int
    b: int

    @property
    def answer(self) -> int:
        return self.a + self.b if self.operation == "+" else self.a - self.b

    @property
    def key(self) -> tuple[str, int, int]:
        """Equal for problems that tell each other's answer: a + b and b + a."""
        if self.operation == "+":
            return "+", min(self.a, self.b), max(self.a, self.b)
        return "-", self.a, self.b


def working(language: str, problem: Problem) -> str:
    """The column-by-column answer; its last number is the result."""
    tens_a, ones_a = divmod(problem.a, 10)
    tens_b, ones_b = divmod(problem.b, 10)
    if problem.operation == "+":
        carry, digit = divmod(ones_a + ones_b, 10)
        ones = f"{ones_a}+{ones_b}={ones_a + ones_b}"
        tens = f"{tens_a}+{tens_b}+{carry}={tens_a + tens_b + carry}"
        note = f"写{digit}进{carry}" if language == "zh" else f"write {digit} carry {carry}"
    else:
        borrow = int(ones_a < ones_b)
        ones = f"{ones_a + 10 * borrow}-{ones_b}={ones_a + 10 * borrow - ones_b}"
        tens = f"{tens_a}-{tens_b}-{borrow}={tens_a - tens_b - borrow}"
        note = f"借{borrow}" if language == "zh" else f"borrow {borrow}"
    if language == "zh":
        return f"个位{ones}，{note}；十位{tens}。答案是{problem.answer}。"
    return f"Ones {ones}, {note}; tens {tens}. The answer is {problem.answer}."


def ask(language: str, problem: Problem, rng: random.Random) -> str:
    return rng.choice(PHRASINGS[language][problem.operation]).format(a=problem.a, b=problem.b)


def draw(rng: random.Random, two_digits: float = 0.9) -> Problem:
    """A problem with evenly spread digits; each number has two digits with probability ``two_digits``."""
    numbers = []
    for _ in range(2):
        ones = rng.randrange(10)
        tens = rng.randrange(1, 10) if rng.random() < two_digits else 0
        numbers.append(10 * tens + ones if tens or ones else 1)
    operation = rng.choice("+-")
    a, b = numbers
    if operation == "-" and a < b:
        a, b = b, a
    return Problem(operation, a, b)


def hold_out(count: int, rng: random.Random) -> list[Problem]:
    """``count`` problems with two-digit numbers, half of them sums, all with different keys."""
    chosen: dict[tuple[str, int, int], Problem] = {}
    wanted = {"+": count - count // 2, "-": count // 2}
    while sum(wanted.values()):
        problem = draw(rng, two_digits=1.0)
        if wanted[problem.operation] and problem.key not in chosen:
            chosen[problem.key] = problem
            wanted[problem.operation] -= 1
    return list(chosen.values())


def draw_training(rng: random.Random, held: set[tuple[str, int, int]]) -> Problem:
    while True:
        problem = draw(rng)
        if problem.key not in held:
            return problem


def document(language: str, rng: random.Random, held: set[tuple[str, int, int]]) -> str:
    """Three problems with their working."""
    space = "" if language == "zh" else " "
    problems = [draw_training(rng, held) for _ in range(3)]
    return space.join(ask(language, p, rng) + space + working(language, p) for p in problems)
