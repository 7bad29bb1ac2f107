"""Checked questions: what counts as right, what a bad file says, and what the report holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sproutlm.errors import DataError
from sproutlm.eval.questions import Question, ask, check, load_questions
from sproutlm.model import Transformer
from sproutlm.tokenizer import Tokenizer

PETS = ["小猫", "小狗", "猫", "刺猬"]
JOBS = ["baker", "barber", "Leo", "Leopard", "miller"]


def question(answer: str, rule: str, options: list[str] | None = None, asked: str = "?", **more: Any) -> Question:
    fields = {"id": "q", "kind": "fact", "language": "zh", **more}
    return Question(
        **fields,
        messages=({"role": "user", "content": asked},),
        answer=answer,
        check=rule,
        options=tuple(options or ()),
    )


@pytest.mark.parametrize(
    ("reply", "answer", "options", "asked", "right"),
    [
        ("李春燕的宠物是刺猬。", "刺猬", PETS, "?", True),
        ("刺猬或者小狗。", "刺猬", PETS, "?", False),
        ("小狗。", "刺猬", PETS, "?", False),
        ("", "刺猬", PETS, "?", False),
        ("小猫", "小猫", PETS, "?", True),  # 猫 is a part of the answer
        ("小猫", "猫", PETS, "?", False),  # and the longer option is the one that was named
        ("小猫和猫", "小猫", PETS, "?", False),  # named once more by itself
        ("She is a barber.", "barber", JOBS, "?", True),
        ("Barber!", "barber", JOBS, "?", True),
        ("a barber and a baker", "barber", JOBS, "?", False),
        ("a leopard, Clara's miller", "miller", ["Leo", "miller"], "?", True),  # "Leo" is no word there
        ("Leopard", "Leo", JOBS, "?", False),
        ("The miller works with the baker.", "miller", JOBS, "Who works with the baker?", True),
        ("baker", "miller", JOBS, "Who works with the baker?", False),
        ("a baker or a miller", "miller", JOBS, "A baker or a miller?", False),  # a choice that was not made
        ("a miller", "miller", JOBS, "A baker or a miller?", True),
        ("cafe\u0301", "café", ["tea"], "?", True),
    ],
)
def test_only_means_the_answer_and_no_other_option(
    reply: str, answer: str, options: list[str], asked: str, right: bool
) -> None:
    assert check(reply, question(answer, "only", options, asked)) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [("65", True), ("80减15等于65。", True), ("80-15=65.", True), ("６５", True), ("答案是 65，没错", True), ("65.0", True),
     ("1,065", False), ("65 或 66", False), ("650", False), ("-65", False), ("80-65", True), ("65.5", False), ("", False),
     ("六十五", False)],
)  # fmt: skip
def test_the_last_number_counts(reply: str, right: bool) -> None:
    assert check(reply, question("65", "last_number")) is right


def test_numbers_with_sign_and_thousands() -> None:
    assert check("It is −7.", question("-7", "last_number"))
    assert check("It is 1,234.", question("1234", "last_number"))
    assert not check("It is 7.", question("-7", "last_number"))


@pytest.mark.parametrize(
    ("reply", "answer", "right"),
    [(" （山洞） \n", "（山洞）", True), ("（山洞）。", "（山洞）", True), ("(山洞)", "（山洞）", False), ("Silver.", "silver", False),
     ("silver.", "silver", True), ("silver..", "silver", False), ("silver", "silver.", True), ("a silver", "silver", False),
     ("caf\u00e9", "cafe\u0301", True), ("", "silver", False)],
)  # fmt: skip
def test_exact_means_exact_but_for_white_space_and_one_full_stop(reply: str, answer: str, right: bool) -> None:
    assert check(reply, question(answer, "exact")) is right


def test_no_reply_is_ever_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pitfall 42: a reply is text. A sum is no number, and a call does nothing."""
    monkeypatch.chdir(tmp_path)
    reply = "__import__('pathlib').Path('ran').touch() or 65"
    for rule in ("only", "last_number", "exact"):
        check(reply, question("65", rule))
    assert not list(tmp_path.iterdir())
    assert not check("60 + 5", question("65", "last_number"))


ROW = {
    "id": "fact-1", "kind": "fact", "language": "zh", "messages": [{"role": "user", "content": "宠物？"}],
    "answer": "刺猬", "check": "only", "options": PETS,
}  # fmt: skip


def written(path: Path, *rows: Any) -> Path:
    file = path / "questions.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_questions_are_read_as_they_stand(tmp_path: Path) -> None:
    questions = load_questions(written(tmp_path, ROW, {**ROW, "id": "2", "check": "exact", "options": []}))
    assert [q.id for q in questions] == ["fact-1", "2"]
    assert questions[0].options == tuple(PETS) and questions[0].messages[0]["content"] == "宠物？"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"check": "contains"}, "choose one of only, last_number, exact"), ({"answer": ""}, "answer must be text"),
     ({"answer": 5}, "answer must be text"), ({"messages": []}, "messages must be a list"),
     ({"messages": [{"role": "assistant", "content": "x"}]}, "last message must be the user's"),
     ({"options": "刺猬"}, "options must be a list"), ({"check": "last_number"}, "is no number"), ({"id": "first"}, "stands twice"),
     ({"kind": None}, "kind must be text")],
)  # fmt: skip
def test_a_bad_question_is_named_by_file_and_line(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    file = written(tmp_path, {**ROW, "id": "first"}, {**ROW, "id": "second", **change})
    with pytest.raises(DataError, match=rf"questions\.jsonl:2: .*{sentence}"):
        load_questions(file)


def test_files_that_hold_no_questions_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"questions\.jsonl:2: not JSON"):
        load_questions(written(tmp_path, ROW, "{"))
    with pytest.raises(DataError, match=r"questions\.jsonl:1: expected an object, found list"):
        load_questions(written(tmp_path, "[1]"))
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(DataError, match="empty"):
        load_questions(tmp_path / "empty.jsonl")
    with pytest.raises(DataError, match="nowhere.jsonl"):
        load_questions(tmp_path / "nowhere.jsonl")


class Knows:
    """In place of the sampler: every row of a batch writes the same ids, one a step."""

    def __init__(self, ids: list[int]) -> None:
        self.ids, self.step = ids, 0

    def __call__(self, logits: torch.Tensor, *arguments: object, **options: object) -> torch.Tensor:
        token = self.ids[self.step % len(self.ids)]
        self.step += 1
        return torch.full((len(logits),), token)


def test_the_report_counts_by_kind_and_language(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    end = tokenizer.token_id("<|im_end|>")
    monkeypatch.setattr("sproutlm.infer.engine.sample", Knows([*tokenizer.encode("好 4"), end]))
    asked = [
        question("4", "last_number", kind="sum", id="a"),
        question("5", "last_number", kind="sum", id="b"),
        question("好 4", "exact", kind="fact", id="c", language="en"),
    ]
    told: list[tuple[int, int]] = []
    report = ask(model, tokenizer, asked, progress=lambda done, total: told.append((done, total)))
    assert report["checked"] == {
        "overall": pytest.approx(2 / 3),
        "by_kind": {"fact": 1.0, "sum": 0.5},
        "by_language": {"en": 1.0, "zh": 0.5},
        "counts": {"fact": 1, "sum": 2},
    }
    assert report["stop_rate"] == 1.0 and told[-1] == (3, 3)
    assert report["replies"][1] == {"id": "b", "reply": "好 4", "ok": False, "stopped": True}


def test_an_answer_without_an_end_lowers_the_stop_rate(
    model: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pitfall 1, as it shows in evaluation."""
    monkeypatch.setattr("sproutlm.infer.engine.sample", Knows(tokenizer.encode("4")))
    report = ask(model, tokenizer, [question("4", "last_number")], max_tokens=5)
    assert report["stop_rate"] == 0.0 and not report["replies"][0]["stopped"]


def test_replies_do_not_depend_on_the_batch(model: Transformer, tokenizer: Tokenizer) -> None:
    asked = [question("4", "exact", id=str(i), asked="天" * i + "?") for i in range(7)]
    together = ask(model, tokenizer, asked, max_tokens=6)
    assert together == ask(model, tokenizer, asked, max_tokens=6, batch_size=1)


def test_a_question_longer_than_the_context_is_named(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="question 'q' takes .* tokens and the model's context holds 96"):
        ask(model, tokenizer, [question("4", "exact", asked="天" * 100)])


def test_no_question_is_a_sentence(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no question to ask"):
        ask(model, tokenizer, [])
