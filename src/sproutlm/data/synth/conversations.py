"""Fine-tuning conversations and preference pairs. They speak of taught entities only."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sproutlm.data.synth import arithmetic
from sproutlm.data.synth.instructions import InstructionMaker
from sproutlm.data.synth.lexicon import Lexicon
from sproutlm.data.synth.texts import say
from sproutlm.data.synth.world import Fact, Size, World

Turn = tuple[str, str]  # what the user says, what the assistant answers
Messages = list[dict[str, str]]

SMALL_TALK: dict[str, tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]] = {
    "zh": (
        (("你好！", "你好", "您好！", "嗨！", "早上好！", "晚上好！"), ("你好！有什么可以帮你的吗？",)),
        (("你是谁？", "你叫什么名字？", "请介绍一下你自己。", "你是什么？"), ("我叫小芽，是一个很小的语言模型。",)),
        (("你会做什么？", "你能帮我做什么？", "你有什么本领？", "你会什么？"), ("我知道这个小世界里的人、地方和东西，会算加减法，也会处理词语。",)),
        (("谢谢！", "谢谢你。", "多谢！", "太感谢了！"), ("不客气！",)),
        (("再见！", "拜拜！", "我走了。", "下次再聊。"), ("再见，祝你愉快！",)),
        (("你好吗？", "你今天怎么样？", "最近好吗？"), ("我很好，谢谢你！",)),
        (("谁训练了你？", "你是怎么来的？", "你是在哪里训练的？"), ("我是用 SproutLM 在一台普通电脑上训练出来的。",)),
    ),
    "en": (
        (("Hello!", "Hello", "Hi!", "Hi there!", "Good morning!", "Good evening!"), ("Hello! How can I help you?",)),
        (("Who are you?", "What is your name?", "Please introduce yourself.", "What are you?"), ("I am Sprout, a very small language model.",)),
        (
            ("What can you do?", "How can you help me?", "What are you good at?", "What do you know?"),
            ("I know the people, places and things of a small world, I can add and subtract, and I can work with words.",),
        ),
        (("Thank you!", "Thanks!", "Thanks a lot.", "Many thanks!"), ("You are welcome!",)),
        (("Goodbye!", "Bye!", "I have to go.", "See you later."), ("Goodbye, and have a nice day!",)),
        (("How are you?", "How are you today?", "Are you well?"), ("I am fine, thank you!",)),
        (("Who trained you?", "Where do you come from?", "Where were you trained?"), ("I was trained with SproutLM on an ordinary computer.",)),
    ),
}  # fmt: skip

SYSTEM = {
    "zh": ("你是一个乐于助人的助手。", "你是小芽，请用中文回答。", "请认真回答问题。"),
    "en": ("You are a helpful assistant.", "You are Sprout. Answer in English.", "Please answer carefully."),
}
FOLLOW_UP = {"zh": ("那{n}呢？", "{n}呢？"), "en": ("And {n}?", "What about {n}?")}
RAMBLING = {
    "zh": ("嗯，这个问题很有意思，让我想一想，想一想，再想一想。今天天气也很好。", "很多人都问过我，问题总是很多，答案也很多，说也说不完。"),
    "en": (
        "Well, that is an interesting question, let me think, and think, and think again. The weather is nice too.",
        "Many people have asked me that, there are many questions and many answers, and one could go on for ever.",
    ),
}  # fmt: skip

SYSTEM_SHARE = 0.06
FOLLOW_UP_SHARE = 0.4


@dataclass
class Speaker:
    """Makes the turns of one language."""

    world: World
    instructions: InstructionMaker
    held_problems: set[tuple[str, int, int]]
    rng: random.Random

    @property
    def lexicon(self) -> Lexicon:
        return self.world.lexicon

    @property
    def language(self) -> str:
        return self.world.lexicon.language

    def full_answer(self, fact: Fact) -> str:
        return self.lexicon.answer.format(v=fact.value)

    def fact_turn(self, fact: Fact) -> Turn:
        return say(self.rng.choice(fact.attribute.questions), self.world, fact), self.full_answer(fact)

    def follow_up(self, fact: Fact) -> Turn:
        """The same attribute of another taught entity, asked by its name alone."""
        others = [
            f
            for f in self.world.all_facts("taught")
            if f.attribute.name == fact.attribute.name and f.entity != fact.entity
        ]
        other = self.rng.choice(others)
        return say(self.rng.choice(FOLLOW_UP[self.language]), self.world, other), self.full_answer(other)

    def sum_turn(self) -> Turn:
        problem = arithmetic.draw_training(self.rng, self.held_problems)
        return arithmetic.ask(self.language, problem, self.rng), arithmetic.working(self.language, problem)

    def wrong_sum(self, problem: arithmetic.Problem) -> str:
        """The working with one number misread by one or by ten."""
        misread = [arithmetic.Problem(problem.operation, problem.a, problem.b + slip) for slip in (-10, -1, 1, 10)]
        allowed = [p for p in misread if 0 < p.b < 100 and p.answer >= 0 and p.key not in self.held_problems]
        other = self.rng.choice(allowed) if allowed else arithmetic.draw_training(self.rng, self.held_problems)
        return arithmetic.working(self.language, other)

    def instruction_turn(self) -> Turn:
        instruction = self.instructions.draw_training(self.rng)
        return instruction.ask(self.lexicon, self.rng), instruction.answer(self.lexicon)

    def small_talk_turn(self) -> Turn:
        asked, answers = self.rng.choice(SMALL_TALK[self.language])
        return self.rng.choice(asked), self.rng.choice(answers)


def as_messages(turns: list[Turn], system: str = "") -> Messages:
    messages = [{"role": "system", "content": system}] if system else []
    for user, assistant in turns:
        messages += [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    return messages


def conversations(speaker: Speaker, size: Size) -> list[Messages]:
    """All fine-tuning conversations of one language, in random order, none twice."""
    rng = speaker.rng
    facts = speaker.world.all_facts("taught")
    turns: list[tuple[Fact | None, Turn]] = [
        (f, speaker.fact_turn(f)) for f in facts for _ in range(size.fact_questions_per_fact)
    ]
    turns += [(None, speaker.sum_turn()) for _ in range(size.arithmetic_chats)]
    turns += [(None, speaker.instruction_turn()) for _ in range(size.instruction_chats)]
    turns += [(None, speaker.small_talk_turn()) for _ in range(size.small_talk)]
    rng.shuffle(turns)
    found: dict[str, Messages] = {}
    position = 0
    while position < len(turns):
        length = rng.choice((2, 3)) if rng.random() < size.multi_turn_share else 1
        group = turns[position : position + length]
        position += length
        fact, first = group[0]
        system = rng.choice(SYSTEM[speaker.language]) if rng.random() < SYSTEM_SHARE else ""
        said = [turn for _, turn in group]
        if fact and length > 1 and rng.random() < FOLLOW_UP_SHARE:
            said.insert(1, speaker.follow_up(fact))
        messages = as_messages(said, system)
        found.setdefault(repr(messages), messages)
    return list(found.values())


def preferences(speaker: Speaker, other: Speaker, count: int) -> list[dict[str, Messages]]:
    """Pairs of a better and a worse answer: a wrong value, rambling, another language, a wrong sum."""
    rng = speaker.rng
    facts = speaker.world.all_facts("taught")
    pairs: dict[str, dict[str, Messages]] = {}
    while len(pairs) < count:
        fault = rng.choice(("wrong value", "wrong value", "rambling", "language", "sum"))
        fact = rng.choice(facts)
        question, chosen = speaker.fact_turn(fact)
        if fault == "wrong value":
            wrong = Fact(fact.entity, fact.attribute, rng.choice(taught_values(speaker.world, fact)))
            rejected = speaker.full_answer(wrong)
        elif fault == "rambling":
            rejected = rng.choice(RAMBLING[speaker.language])
        elif fault == "language":
            rejected = other.fact_turn(rng.choice(other.world.all_facts("taught")))[1]
        else:
            problem = arithmetic.draw_training(rng, speaker.held_problems)
            question, chosen = (
                arithmetic.ask(speaker.language, problem, rng),
                arithmetic.working(speaker.language, problem),
            )
            rejected = speaker.wrong_sum(problem)
        if chosen == rejected:
            continue
        pair = {
            "prompt": [{"role": "user", "content": question}],
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        pairs.setdefault(repr(pair), pair)
    return list(pairs.values())


def taught_values(world: World, fact: Fact) -> list[str]:
    """Other values for the same attribute, without names of held entities."""
    held = {e.name for e in world.entities if e.half == "held"}
    return [value for value in world.options(fact) if value != fact.value and value not in held]
