"""The embedded world keeps its promises: same seed same bytes, and nothing that is held out is ever asked or worked out."""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from sproutlm.data.synth import FILES, synthesize
from sproutlm.data.synth.arithmetic import Problem, working
from sproutlm.data.synth.lexicon import Lexicon
from sproutlm.data.synth.world import LEXICONS
from sproutlm.errors import DataError

TRAINING_FILES = (
    "pretrain.jsonl",
    "pretrain_valid.jsonl",
    "sft.jsonl",
    "sft_valid.jsonl",
    "preference.jsonl",
    "labels.tsv",
)
LEAST_EXPOSURES = 80  # of each fact, as the writer counts
LEAST_BY_NAME = 60  # of them in one sentence with the name, in the file that is trained on
GOLDEN_TINY = "936202ad149014a2cc518af15e0b260b5cc7ba91a932d76513b4177c724ce1f6"  # sha256 of all files of seed 1, size tiny, in the order of FILES


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def summary(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("synth") / "world"
    return {"folder": out, **synthesize(out, seed=1, size="small")}


@pytest.fixture(scope="module")
def folder(summary: dict[str, Any]) -> Path:
    return summary["folder"]


@pytest.fixture(scope="module")
def entities(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "world.json").read_text(encoding="utf-8"))["entities"]


@pytest.fixture(scope="module")
def questions(folder: Path) -> list[dict[str, Any]]:
    return rows(folder / "questions.jsonl")


@pytest.fixture(scope="module")
def training_rows(folder: Path) -> list[str]:
    """Every row of every file that a model may be trained on, one message to a line."""
    found = []
    for name in TRAINING_FILES:
        for line in (folder / name).read_text(encoding="utf-8").splitlines():
            if name.endswith(".tsv"):
                found.append(line)
                continue
            row = json.loads(line)
            messages = [m for key in ("messages", "prompt", "chosen", "rejected") for m in row.get(key, [])]
            found.append("\n".join([m["content"] for m in messages] + ([row["text"]] if "text" in row else [])))
    return found


@pytest.fixture(scope="module")
def training_texts(training_rows: list[str]) -> list[str]:
    """The same, a message at a time."""
    return [text for row in training_rows for text in row.split("\n")]


def mentions(name: str, language: str) -> re.Pattern[str]:
    return re.compile(name if language == "zh" else rf"\b{re.escape(name)}\b", re.IGNORECASE)


def passes(question: dict[str, Any], reply: str) -> bool:
    """The checks as docs/architecture.md states them, written down a second time, and strictly: any case, parts of words too."""
    if question["check"] == "only":
        reply = reply.casefold()
        others = [o for o in question["options"] if o != question["answer"]]
        return question["answer"].casefold() in reply and not any(o.casefold() in reply for o in others)
    if question["check"] == "last_number":
        return re.findall(r"-?\d+", reply)[-1:] == [question["answer"]]
    reply, answer = (text.strip().removesuffix("。").removesuffix(".") for text in (reply, question["answer"]))
    return reply == answer


def test_same_seed_same_bytes_and_other_seed_other_bytes(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        synthesize(tmp_path / name, seed=seed, size="tiny")
    for name in FILES:
        a, b, c = ((tmp_path / world / name).read_bytes() for world in "abc")
        assert a == b, name
        assert a != c, name
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == sorted(FILES)


def test_bytes_do_not_change_between_versions_and_platforms(tmp_path: Path) -> None:
    """A change here is a change of the world: figures measured before it are no longer comparable. Say so in CHANGELOG."""
    import hashlib

    synthesize(tmp_path / "world", seed=1, size="tiny")
    digest = hashlib.sha256(b"".join((tmp_path / "world" / name).read_bytes() for name in FILES)).hexdigest()
    assert digest == GOLDEN_TINY


def test_held_entities_are_never_asked_about(training_texts: list[str], entities: list[dict[str, Any]]) -> None:
    held = [mentions(e["name"], e["language"]) for e in entities if e["half"] == "held"]
    asked = {
        s
        for text in training_texts
        for s in re.findall(r"[^.。!！?？]*[?？]|[^.。!！]*(?:Tell me|请告诉我)[^.。]*[.。]", text)
    }
    assert len(asked) > 5000  # the search finds questions at all
    joined = "\n".join(asked)
    assert not [pattern.pattern for pattern in held if pattern.search(joined)]


def test_held_facts_stay_out_of_fine_tuning_files(folder: Path, entities: list[dict[str, Any]]) -> None:
    """A held place may be named as the home of a taught person; no held person or thing is named at all, and no user names any."""
    held = [e for e in entities if e["half"] == "held"]
    users, everything = [], []
    for name in ("sft.jsonl", "sft_valid.jsonl", "preference.jsonl"):
        for row in rows(folder / name):
            messages = [m for key in ("messages", "prompt", "chosen", "rejected") for m in row.get(key, [])]
            users += [m["content"] for m in messages if m["role"] != "assistant"]
            everything += [m["content"] for m in messages]
    everything.append((folder / "labels.tsv").read_text(encoding="utf-8"))
    said_by_users, said = "\n".join(users), "\n".join(everything)
    assert not [e["name"] for e in held if mentions(e["name"], e["language"]).search(said_by_users)]
    assert not [e["name"] for e in held if e["kind"] != "place" and mentions(e["name"], e["language"]).search(said)]
    for place in (e for e in held if e["kind"] == "place"):
        about = [text for text in everything if mentions(place["name"], place["language"]).search(text)]
        assert not [t for t in about for v in place["facts"].values() if mentions(v, place["language"]).search(t)]


def test_every_fact_is_told_often_in_pretraining(
    summary: dict[str, Any], folder: Path, entities: list[dict[str, Any]]
) -> None:
    """Counted from the file too, not by the writer alone: sentences that hold both the name and the value."""
    assert summary["exposures_per_fact"]["min"] >= LEAST_EXPOSURES
    together: Counter[tuple[str, str]] = Counter()
    distinct: dict[tuple[str, str], set[str]] = defaultdict(set)
    tokens = sorted(
        {e["name"] for e in entities} | {v for e in entities for v in e["facts"].values()}, key=len, reverse=True
    )
    chinese = re.compile("|".join(t for t in tokens if not t.isascii()))
    english = re.compile(r"\b(?:" + "|".join(t for t in tokens if t.isascii()) + r")\b", re.IGNORECASE)
    names = {e["name"].casefold() for e in entities}
    for row in rows(folder / "pretrain.jsonl"):
        for s in re.split(r"(?<=[。；])|(?<=[.;])\s", row["text"]):
            found = {t.casefold() for t in (english if s.isascii() else chinese).findall(s)}
            for name in found & names:
                for value in found - {name}:
                    together[name, value] += 1
                    distinct[name, value].add(s)
    for e in entities:
        for attribute, value in e["facts"].items():
            key = e["name"].casefold(), value.casefold()
            assert together[key] >= LEAST_BY_NAME, (e["name"], attribute, together[key])
            assert len(distinct[key]) >= 20, (e["name"], attribute)


def test_both_halves_are_told_equally_often(folder: Path, entities: list[dict[str, Any]]) -> None:
    text = (folder / "pretrain.jsonl").read_text(encoding="utf-8")
    counts = {half: sum(text.count(e["name"]) for e in entities if e["half"] == half) for half in ("taught", "held")}
    assert 0.9 < counts["taught"] / counts["held"] < 1.25


def test_held_sums_are_in_no_training_text(training_texts: list[str], questions: list[dict[str, Any]]) -> None:
    words = (("+", ("plus", "and", "加上", "加", "与", "和")), ("-", ("minus", "减去", "减")))
    seen: set[tuple[str, int, int]] = set()

    def instances(text: str) -> set[tuple[str, int, int]]:
        for sign, spellings in words:
            for spelling in spellings:
                text = text.replace(spelling, sign)
        text = text.replace(" ", "")
        return {Problem(op, int(a), int(b)).key for a, op, b in re.findall(r"(?=(?<!\d)(\d+)([+-])(\d+))", text)}

    for text in training_texts:
        if any(character.isdigit() for character in text):
            seen |= instances(text)
    assert len(seen) > 4000
    held = [q for q in questions if q["kind"] == "arithmetic"]
    for q in held:
        keys = instances(q["messages"][0]["content"])
        assert len(keys) == 1 and not keys & seen, q
    assert len({next(iter(instances(q["messages"][0]["content"]))) for q in held}) == len(held)


# ---- word tasks: found by what they look like, whatever the phrasing, and never by the code that writes them

NUMERALS = {
    "zh": {2: "两|二", 3: "三", 4: "四", 5: "五"},
    "en": {2: "two|twice", 3: "three|thrice", 4: "four", 5: "five"},
}  # fmt: skip


class WordTasks:
    """What texts of one language tell about the words of the tasks."""

    def __init__(self, language: str) -> None:
        lexicon = next(x for x in LEXICONS if x.language == language)
        values = [v for group in lexicon.attributes.values() for a in group for v in a.values]
        word = "|".join(map(re.escape, sorted(values, key=len, reverse=True)))
        self.comma = lexicon.comma
        edge = "" if language == "zh" else r"\b"
        self.word = re.compile(rf"{edge}(?:{word}){edge}")
        self.list = re.compile(rf"{edge}(?:{word})(?:{self.comma}(?:{word}))+{edge}")
        self.number = {k: re.compile(rf"(?<!\d){k}(?!\d)|{edge}(?:{w}){edge}") for k, w in NUMERALS[language].items()}

    def lists(self, text: str) -> list[tuple[str, ...]]:
        return [tuple(run.split(self.comma)) for run in self.list.findall(text)]

    def repeats(self, text: str) -> set[tuple[str, int]]:
        """A word said several times, or standing in one sentence with a number."""
        found = {(run[0], len(run)) for run in self.lists(text) if len(set(run)) == 1}
        for sentence in re.split(r"[。？！]|[.?!](?:\s|$)", text):
            for word in self.word.findall(sentence):
                found |= {(word, k) for k, number in self.number.items() if number.search(sentence)}
        return found


def windows(run: tuple[str, ...]) -> set[tuple[str, ...]]:
    """Every part of three words or more, forwards and backwards."""
    return {o[i:j] for o in (run, run[::-1]) for i in range(len(run)) for j in range(i + 3, len(run) + 1)}


@pytest.mark.parametrize("language", ["zh", "en"])
def test_held_word_tasks_are_in_no_training_text(
    folder: Path, training_rows: list[str], questions: list[dict[str, Any]], language: str
) -> None:
    """Instances are held out, not words: a word with its number, a list forwards or backwards."""
    tasks = WordTasks(language)
    repeats: set[tuple[str, int]] = set()
    lists: set[tuple[str, ...]] = set()
    for text in training_rows:
        if text.isascii() is (language == "en"):
            repeats |= tasks.repeats(text)
            lists |= {window for run in tasks.lists(text) for window in windows(run)}
    assert len(repeats) >= 60 and len(lists) > 2000  # the search finds what is there
    kinds: Counter[str] = Counter()
    for q in (q for q in questions if q["kind"] == "instruction" and q["language"] == language):
        text = q["messages"][0]["content"] + " " + q["answer"]
        held_repeats = list(tasks.repeats(text))
        runs = [run for run in tasks.lists(q["messages"][0]["content"]) if len(set(run)) == len(run)]
        if runs:
            kinds["list"] += 1
            assert len(runs) == 1 and len(runs[0]) >= 3 and runs[0] not in lists, q
        else:
            kinds["repeat"] += 1
            assert len(held_repeats) == 1 and held_repeats[0] not in repeats, q
    assert sum(kinds.values()) >= 100 and min(kinds.values()) >= 20 and len(kinds) == 2
    noted = json.loads((folder / "world.json").read_text(encoding="utf-8"))["held_repeats"][language]
    assert len(noted) >= 20 and not {(word, times) for word, times in noted} & repeats


def test_there_are_enough_questions_and_no_answer_is_common(
    questions: list[dict[str, Any]], entities: list[dict[str, Any]]
) -> None:
    kinds = Counter(q["kind"] for q in questions)
    assert set(kinds) == {"fact", "arithmetic", "instruction"} and min(kinds.values()) >= 200
    assert len({q["id"] for q in questions}) == len({q["messages"][0]["content"] for q in questions}) == len(questions)
    facts = [q["answer"] for q in questions if q["kind"] == "fact"]
    assert max(Counter(facts).values()) / len(facts) <= 0.05
    by_attribute: dict[tuple[str, str], list[str]] = defaultdict(list)
    for e in entities:
        if e["half"] == "held":
            for attribute, value in e["facts"].items():
                by_attribute[e["language"], attribute].append(value)
    for key, values in by_attribute.items():
        assert max(Counter(values).values()) <= math.ceil(0.2 * len(values)), key


def test_questions_pass_with_the_right_answer_only(
    questions: list[dict[str, Any]], entities: list[dict[str, Any]]
) -> None:
    attributes = {
        (lexicon.language, a.name): a for lexicon in LEXICONS for group in lexicon.attributes.values() for a in group
    }
    sentences = {lexicon.language: lexicon.answer.split("{v}") for lexicon in LEXICONS}
    for q in questions:
        assert passes(q, q["answer"]) and not passes(q, "")
        if q["kind"] == "instruction":  # the whole sentence, as fine-tuning has it
            before, after = sentences[q["language"]]
            assert before and q["answer"].startswith(before) and q["answer"].endswith(after)
            assert passes(q, q["answer"][:-1]) and not passes(q, q["answer"] + "!")
        if q["kind"] != "fact":
            continue
        assert q["answer"] in q["options"] and len(q["options"]) >= 8
        wrong = next(o for o in q["options"] if o != q["answer"])
        assert not passes(q, wrong) and not passes(q, f"{q['answer']} {wrong}")
        [(entity, attribute)] = [
            (e, name)
            for e in entities
            if e["half"] == "held" and e["language"] == q["language"]
            for name, value in e["facts"].items()
            if value == q["answer"] and mentions(e["name"], e["language"]).search(q["messages"][0]["content"])
        ]
        for sentence in attributes[q["language"], attribute].answers:
            shown = f"the {entity['name']}" if entity["kind"] == "thing" and q["language"] == "en" else entity["name"]
            assert passes(q, sentence.format(n=shown, v=q["answer"])), (q, sentence)


def test_question_wordings_were_taught(
    folder: Path, questions: list[dict[str, Any]], entities: list[dict[str, Any]]
) -> None:
    """What is held out is the entity or the instance, never the way of asking; nearly each is in fine-tuning itself."""

    def blank(text: str) -> str:
        for pattern in patterns:
            text = pattern.sub("N", text)
        return re.sub(r"\d+", "0", text)

    patterns = [mentions(e["name"], e["language"]) for e in entities]
    pronoun = re.compile(r"\b(?:his|her)\b")

    def wording(text: str) -> str:
        return pronoun.sub("P", blank(text))

    chats = {
        wording(m["content"]) for row in rows(folder / "sft.jsonl") for m in row["messages"] if m["role"] == "user"
    }
    texts = wording("\n".join(row["text"] for row in rows(folder / "pretrain.jsonl")))
    wanted = {wording(q["messages"][0]["content"]) for q in questions if q["kind"] != "instruction"}
    assert not [w for w in wanted - chats if w not in texts]
    assert len(wanted - chats) <= 0.03 * len(wanted)


def test_every_conversation_alternates_and_ends_with_the_assistant(folder: Path) -> None:
    chats = [row["messages"] for name in ("sft.jsonl", "sft_valid.jsonl") for row in rows(folder / name)]
    assert len(chats) >= 4000
    for messages in chats:
        roles = [m["role"] for m in messages]
        turns = roles[1:] if roles[0] == "system" else roles
        assert turns == ["user", "assistant"] * (len(turns) // 2) and turns
        assert all(m["content"].strip() for m in messages)
    several = sum(sum(m["role"] == "user" for m in messages) > 1 for messages in chats) / len(chats)
    assert 0.10 < several < 0.20
    assert any(messages[0]["role"] == "system" for messages in chats)


def test_preferences_and_labels_are_whole(folder: Path) -> None:
    pairs = rows(folder / "preference.jsonl")
    assert len(pairs) == 600 and all(p["chosen"] != p["rejected"] and p["prompt"][-1]["role"] == "user" for p in pairs)
    lines = (folder / "labels.tsv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "label\ttext"
    labels = Counter(line.split("\t")[0] for line in lines[1:])
    assert labels == {"positive": 600, "negative": 600}


def test_no_document_or_conversation_is_there_twice(folder: Path) -> None:
    for names in (("pretrain.jsonl", "pretrain_valid.jsonl"), ("sft.jsonl", "sft_valid.jsonl")):
        lines = [line for name in names for line in (folder / name).read_text(encoding="utf-8").splitlines()]
        assert len(set(lines)) == len(lines)


@pytest.mark.parametrize("lexicon", LEXICONS, ids=lambda lexicon: lexicon.language)
def test_no_name_or_value_is_part_of_another(lexicon: Lexicon) -> None:
    names = [*lexicon.women, *lexicon.men, *lexicon.places, *lexicon.things]
    values = [v for group in lexicon.attributes.values() for a in group for v in a.values]
    everything = [text.casefold() for text in names + values]
    assert len(set(everything)) == len(everything)
    assert not [(a, b) for a in everything for b in everything if a != b and a in b]


@pytest.mark.parametrize("lexicon", LEXICONS, ids=lambda lexicon: lexicon.language)
def test_every_template_holds_its_name_and_value(lexicon: Lexicon) -> None:
    for attribute in (a for group in lexicon.attributes.values() for a in group):
        assert len(set(attribute.statements)) >= 10 and len(set(attribute.questions)) >= 6
        assert len(attribute.values) >= 10 or attribute.refers
        for statement in attribute.statements:
            assert "{n}" in statement and "{v}" in statement and not statement.endswith((".", "。"))
        assert all("{n}" in question and "{v}" not in question for question in attribute.questions)
        assert all("{n}" in answer and "{v}" in answer for answer in attribute.answers)


def test_working_is_right_for_every_problem() -> None:
    for a in range(1, 100):
        for b in range(1, 100):
            for problem in (Problem("+", a, b), Problem("-", max(a, b), min(a, b))):
                for language in ("zh", "en"):
                    text = working(language, problem)
                    assert int(re.findall(r"\d+", text)[-1]) == problem.answer
                    for left, right in re.findall(r"([\d+-]+)=(\d+)", text):
                        signs = re.findall(r"[+-]?\d+", left)
                        assert sum(map(int, signs)) == int(right)


def test_an_earlier_world_is_replaced_and_other_files_are_not(tmp_path: Path) -> None:
    out = tmp_path / "world"
    first = synthesize(out, seed=1, size="tiny")
    assert synthesize(out, seed=1, size="tiny") == first
    (out / "notes.txt").write_text("mine")
    with pytest.raises(DataError, match="other files"):
        synthesize(out, seed=1, size="tiny")
    assert (out / "notes.txt").read_text() == "mine"
    assert [p.name for p in tmp_path.iterdir()] == ["world"]


def test_an_unknown_size_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="tiny"):
        synthesize(tmp_path / "world", size="huge")
