"""Where text is cut: each rule does what it says, in one step as in several, and a prompt's ids stay a prefix."""

from __future__ import annotations

import itertools
import json
import random
import unicodedata

import pytest
import tokenizers

from sproutlm.tokenizer import ChatTemplate, Tokenizer, train_tokenizer
from sproutlm.tokenizer.cuts import Rules, in_one_step, pre_tokenizer, training_pre_tokenizer
from sproutlm.tokenizer.probe_texts import HARD_TEXTS, random_texts

COMBINATIONS = list(itertools.product(("single", "groups", "free"), ("single", "runs"), ("runs", "single", "free")))
CORPUS = [
    *["The quick brown fox jumps over the lazy dog. It's the fox's day, isn't it?\n"] * 5,
    *["2025 2025 2025 1234567 1234567\n"] * 20,
    *["def f():\n    if x:\n        return y\n\treturn z\n\t\tpass\n"] * 20,
    *["用Python写的程序，用Python写。春眠不觉晓　处处闻啼鸟\n"] * 20,
]
REPLIES = ["", "\n", "\n\nx", "  y", "\ty", " 12", "123", "春", "，", "　全", "\r\n", "    return", "<think>", "é"]


def cut(rules: Rules, text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in pre_tokenizer(rules).pre_tokenize_str(text)]


@pytest.mark.parametrize("options", COMBINATIONS)
def test_one_step_cuts_as_the_rules_one_by_one_do(options: tuple) -> None:
    """What is learned fast is what the saved file then does."""
    rules = Rules(*options)
    slow, fast = pre_tokenizer(rules), training_pre_tokenizer(rules)
    source = random.Random(1)
    pool = "ab 1 2\n\r\t  \u3000\u2003\x85\u00a0用Python。，+-=〇㊀½é\u0301ᄀ가\u2028"
    texts = [*HARD_TEXTS.values(), *random_texts(150, seed=5)]
    texts += ["".join(source.choice(pool) for _ in range(source.randint(1, 14))) for _ in range(400)]
    for text in texts:
        assert fast.pre_tokenize_str(text) == slow.pre_tokenize_str(text), text


def test_one_step_cuts_characters_of_every_kind_as_the_rules_do() -> None:
    """All numerals, punctuation and blanks of Unicode, and some of the rest, among the neighbours that decide."""
    slow, fast = pre_tokenizer(Rules()), training_pre_tokenizer(Rules())
    every = [chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF]
    chosen = [c for i, c in enumerate(every) if i % 61 == 0 or unicodedata.category(c)[0] in "NPZ"]
    chosen += [chr(0x11DE0), chr(0x16FF4)]  # digits that are newer than some libraries' tables
    for start in range(0, len(chosen), 1000):
        text = "".join(f"{c}a{c} {c}1" for c in chosen[start : start + 1000])
        assert fast.pre_tokenize_str(text) == slow.pre_tokenize_str(text), hex(ord(chosen[start]))


@pytest.mark.parametrize(
    ("rules", "text", "pieces"),
    [
        (Rules(), "x = 2025", ["x", " = ", "2", "0", "2", "5"]),
        (Rules(digits="groups"), "x2025", ["x", "202", "5"]),
        (Rules(digits="free"), "x2025", ["x", "2025"]),
        (Rules(), "\n    return  y", ["\n", "   ", " return", " ", " y"]),
        (Rules(spaces="runs"), "\n    return  y", ["\n", "    ", "return", "  ", "y"]),
        (Rules(spaces="runs"), "\t\tpass z", ["\t\t", "pass", " z"]),
        (Rules(), "用Python写，春眠", ["用", "Python", "写", "，", "春眠"]),
        (Rules(cjk="single"), "用Python写，春眠", ["用", "Python", "写", "，", "春", "眠"]),
        (Rules(cjk="free"), "用Python写，春眠", ["用Python写", "，", "春眠"]),
    ],
)
def test_each_rule_cuts_as_it_says(rules: Rules, text: str, pieces: list[str]) -> None:
    assert cut(rules, text) == pieces


@pytest.fixture(scope="module")
def trained() -> dict[tuple, Tokenizer]:
    return {
        options: train_tokenizer(CORPUS, 500, digits=options[0], spaces=options[1], cjk=options[2])
        for options in COMBINATIONS
    }


@pytest.mark.parametrize("options", COMBINATIONS)
def test_a_prompt_begins_its_conversation_under_every_rule(options: tuple, trained: dict) -> None:
    """Pitfall 6: line breaks stand alone whatever the options, so that no reply changes the ids before it."""
    assert_prefixes(trained[options])


@pytest.mark.parametrize("kind", ["sentencepiece_bpe", "sentencepiece_unigram"])
@pytest.mark.parametrize(
    "options", [("single", "single", "runs"), ("free", "runs", "free"), ("groups", "runs", "single")]
)
def test_a_prompt_begins_its_conversation_with_sentencepiece(options: tuple, kind: str) -> None:
    pytest.importorskip("sentencepiece")
    digits, spaces, cjk = options
    assert_prefixes(train_tokenizer(CORPUS, 420, kind=kind, digits=digits, spaces=spaces, cjk=cjk))


def assert_prefixes(tokenizer: Tokenizer) -> None:
    template = ChatTemplate.of(tokenizer)
    for text in HARD_TEXTS.values():
        assert tokenizer.decode(tokenizer.encode(text)) == text
    question = [{"role": "user", "content": "2 + 2?"}]
    prompt = template.render(question, add_generation_prompt=True).ids
    for reply in REPLIES:
        whole = template.render([*question, {"role": "assistant", "content": reply}]).ids
        assert whole[: len(prompt)] == prompt, reply
        head = tokenizer.encode("assistant\n")
        assert tokenizer.encode("assistant\n" + reply)[: len(head)] == head, reply


def test_each_rule_shows_in_the_vocabulary(trained: dict) -> None:
    def texts(digits: str = "single", spaces: str = "single", cjk: str = "runs") -> set[str]:
        tokenizer = trained[digits, spaces, cjk]
        return {tokenizer.token_text(id_) for id_ in range(tokenizer.vocab_size)}

    numbers = {digits: {t for t in texts(digits) if t.strip().isdecimal() and len(t.strip()) > 1} for digits in
               ("single", "groups", "free")}  # fmt: skip
    assert not numbers["single"]
    assert "202" in numbers["groups"]
    assert max(map(len, numbers["groups"])) <= 3
    assert "2025" in {t.strip() for t in numbers["free"]}
    assert "        " in texts(spaces="runs")
    assert "return" in texts(spaces="runs")
    assert " return" in texts()
    assert "春眠" in texts()
    assert not [t for t in texts(cjk="single") if len([c for c in t if "一" <= c <= "龥"]) > 1]
    assert [t for t in texts(cjk="free") if "用" in t and "P" in t]


@pytest.mark.parametrize("options", COMBINATIONS)
def test_a_loaded_tokenizer_encodes_in_one_step_to_the_same_ids_and_spans(options: tuple) -> None:
    """Encoding takes the faster form of a cut that is ours; the file keeps the form that others know."""
    digits, spaces, cjk = options
    tokenizer = train_tokenizer(CORPUS, 420, digits=digits, spaces=spaces, cjk=cjk)
    stored = tokenizers.Tokenizer.from_str(tokenizer.files()["tokenizer.json"])
    assert json.loads(stored.to_str())["pre_tokenizer"] == json.loads(pre_tokenizer(Rules(*options)).__getstate__())
    assert len(json.loads(tokenizer._encoder.to_str())["pre_tokenizer"]["pretokenizers"]) == 2
    for text in [*CORPUS, *HARD_TEXTS.values()]:
        if "<" in text:
            continue  # the stored tokenizer reads control tokens out of text
        expected = stored.encode(text, add_special_tokens=False)
        assert tokenizer.encode_with_offsets(text) == (expected.ids, expected.offsets)


def test_a_cut_of_others_is_left_as_it_is() -> None:
    stored = json.loads(pre_tokenizer(Rules()).__getstate__())
    stored["pretokenizers"][0]["pattern"]["Regex"] = r"[\r\n]+"
    assert in_one_step(stored) is stored and in_one_step(None) is None
