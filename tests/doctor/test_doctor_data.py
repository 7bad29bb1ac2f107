"""A data file with a fault is named with it, and a healthy one is left in peace."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sproutlm.config import SourceConfig
from sproutlm.doctor.data import examine_data
from sproutlm.doctor.finding import Examination
from sproutlm.doctor.tokens import Context

TEXTS = [{"text": f"the river and the hill, number {i}. 春眠不觉晓，处处闻啼鸟。"} for i in range(40)]
Chat = list[dict[str, Any]]


def chat(i: int, *more: dict[str, Any]) -> dict[str, Chat]:
    turns: Chat = [{"role": "user", "content": f"{i} + 1 = ?"}, {"role": "assistant", "content": f"{i + 1}."}]
    return {"messages": [*turns, *more]}


CHATS = [chat(i) for i in range(40)]


@pytest.fixture
def examined(tokenizer_folder: Path) -> Callable[..., Examination]:
    def examine(path: Path | str, **context: Any) -> Examination:
        stage, seq_len = context.pop("stage", None), context.pop("seq_len", None)
        return examine_data(SourceConfig(path=str(path), **context), Context(tokenizer_folder, seq_len, stage))

    return examine


@pytest.mark.parametrize(
    ("rows", "stage"),
    [
        (TEXTS, "pretrain"),
        (CHATS, "sft"),
        ([{"instruction": f"{i}?", "input": "", "output": f"{i}"} for i in range(30)], "sft"),
        ([{"prompt": f"{i}?", "chosen": f"{i}", "rejected": "no"} for i in range(30)], None),
        ([{"text": f"good {i}", "label": str(i % 2)} for i in range(30)], None),
    ],
    ids=["texts", "chats", "instructions", "pairs", "labelled"],
)
def test_healthy_data_raises_no_alarm(
    rows: list[Any], stage: str | None, examined: Any, rows_file: Any, assert_healthy: Any
) -> None:
    assert_healthy(examined(rows_file(rows), stage=stage))


SYSTEM = {"role": "system", "content": "Be brief."}
USER, ANSWER = {"role": "user", "content": "and then?"}, {"role": "assistant", "content": "then 2."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"id": "a", "function": {"name": "add", "arguments": "{}"}}]}
FAULTS = {
    # name: (rows, check, status, pitfall, what the sentence names)
    "object instead of text": ([{"text": {"body": "x"}}] * 5, "rows", "fail", 13, "5 of 5 rows"),
    "some bad rows": ([*TEXTS, {"text": 7}, {"words": "x"}], "rows", "warn", 13, "missing text 1"),
    "mostly bad rows": ([*TEXTS[:6], *[{"text": i} for i in range(4)]], "rows", "fail", 13, "4 of 10"),
    "empty rows": ([*TEXTS, {"text": "  "}], "empty rows", "warn", 13, "1 of 41"),
    "duplicates": ([*TEXTS, *TEXTS], "duplicates", "warn", None, "40 of 80 records (50.0%)"),
    "lost bytes": ([*TEXTS, {"text": "the r\ufffdver"}], "damaged characters", "warn", 8, "1 record holds"),
    "mark inside": ([*TEXTS, {"text": "\ufeffthe hill"}], "byte-order mark inside", "warn", 12, "rows.jsonl:41"),
    "two line ends": ([*TEXTS, {"text": "a\r\nb"}, {"text": "a\nc"}], "line ends in text", "warn", 8, "two ways"),
    "written-out chats": (
        [{"text": f"<|im_start|>user\n{i}<|im_end|>"} for i in range(9)],
        "written-out conversations", "warn", 14, "9 of 9 documents",
    ),
    "chats as JSON text": (
        [{"text": json.dumps(row)} for row in CHATS], "conversations as JSON text", "warn", 14, "40 documents",
    ),
    "repeated role": ([*CHATS, chat(99, USER, USER, ANSWER)], "repeated role", "warn", 13, "rows.jsonl:41"),
    "assistant first": (
        [*CHATS, {"messages": [SYSTEM, ANSWER, USER, ANSWER]}], "assistant first", "warn", 13, "1 of 41",
    ),
    "stray result": (
        [*CHATS, {"messages": [USER, ANSWER, {"role": "tool", "content": "4"}, ANSWER]}],
        "stray result", "warn", 13, "rows.jsonl:41",
    ),
    "user last": ([*CHATS, chat(99, USER)], "user last", "warn", 13, "1 of 41"),
    "empty answer": (
        [*CHATS, chat(99, USER, {"role": "assistant", "content": " "})], "empty answer", "warn", 1, "1 of 41",
    ),
    "no assistant turn": ([*CHATS, {"messages": [USER]}], "assistant turns", "warn", 3, "1 conversation has no"),
    "nothing trained": (
        [*CHATS, {"messages": [USER, {**ANSWER, "train": False}]}], "nothing trained", "warn", 23, "1 of 41",
    ),
    "result of no such call": (
        [*CHATS, {"messages": [USER, CALL, {"role": "tool", "content": "4", "tool_call_id": "b"}, ANSWER]}],
        "stray result", "warn", 13, "1 of 41",
    ),
    "call without a result": (
        [*CHATS, {"messages": [USER, CALL, USER, ANSWER]}], "call without a result", "warn", 13, "1 of 41",
    ),
    "unknown tool": (
        [*CHATS, {"messages": [USER, CALL], "tools": [{"type": "function", "function": {"name": "other"}}]}],
        "unknown tool", "warn", None, "calls a tool that its tools do not list",
    ),
    "think on one side": (
        [{"prompt": "a?", "chosen": f"b{i}", "rejected": f"<think>\nhm\n</think>\n\nc{i}"} for i in range(3)],
        "one-sided wrapper", "warn", 6, "3 of 3 pairs have a think block on the rejected side only",
    ),
    "nothing but empty rows": (
        [{"prompt": f"{i}", "chosen": "b", "rejected": " "} for i in range(3)], "empty rows", "fail", 13, "3 of 3",
    ),
    "pair out of order": (
        [{"prompt": [USER, USER], "chosen": [ANSWER], "rejected": [{**ANSWER, "content": f"{i}"}]} for i in range(3)],
        "turns out of order", "warn", None, "3 of 3",
    ),
    "one verdict": (
        [{"prompt": f"{i}?", "completion": "a", "label": True} for i in range(30)], "verdicts", "warn", None, "30 liked",
    ),
    "one label": ([{"text": f"good {i}", "label": "1"} for i in range(30)], "labels", "warn", None, "the same label (1 30)"),
    "texts as labels": ([{"text": "1", "label": f"good {i}"} for i in range(30)], "labels", "warn", None, "30 labels in 30"),
    "a rare label": (
        [{"text": f"good {i}", "label": "ab"[i % 2] if i else "c"} for i in range(60)], "labels", "warn", None, "one text only: c",
    ),
    "one-sided think": (
        [{"prompt": "a?", "chosen": "<think>\n\n</think>\n\nb", "rejected": f"c{i}"} for i in range(3)],
        "one-sided wrapper", "warn", 6, "3 of 3",
    ),
    "placeholders": ([*TEXTS, {"text": "I am {{name}}."}], "placeholders", "warn", None, "rows.jsonl:41: {{name}}"),
    "equal sides": ([{"prompt": f"{i}", "chosen": "b", "rejected": "b"} for i in range(3)], "equal sides", "warn", None, "3"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_of_a_data_file_is_named(name: str, examined: Any, rows_file: Any, finding: Any) -> None:
    """pitfalls 1, 3, 6, 8, 12, 13, 14, 23, as a user's own file can have them."""
    rows, check, status, pitfall, words = FAULTS[name]
    found = finding(examined(rows_file(rows)), check)
    assert (found.status, found.pitfall) == (status, pitfall)
    assert words in found.what
    assert found.cure


def test_control_tokens_in_content_are_said_and_are_no_fault(
    examined: Any, rows_file: Any, finding: Any, assert_healthy: Any
) -> None:
    """pitfall 4: they stay text here."""
    found = examined(rows_file([*CHATS, chat(99, USER, {"role": "assistant", "content": "write <|im_end|> there"})]))
    assert_healthy(found)
    assert "1 record holds" in finding(found, "control tokens in content").what


def test_turns_of_others_that_are_trained_are_said(examined: Any, rows_file: Any, finding: Any) -> None:
    """pitfall 3: only when a row asks for it, and then it is said."""
    found = examined(rows_file([*CHATS, {"messages": [{**USER, "train": True}, ANSWER]}]))
    assert "1 conversation asks" in finding(found, "turns of others").what
    assert not [f for f in examined(rows_file(CHATS)).findings if f.check == "turns of others"]


@pytest.mark.parametrize(
    ("content", "check", "status", "words"),
    [
        (b"", "rows", "fail", "empty"),
        ('{"text": "床前明月光，疑是地上霜。"}\n'.encode("gb18030") * 9, "rows", "fail", "gb18030"),
        (b'{"text": "one"}\n{"text": \n', "rows", "fail", "not JSON"),
        (b'\xef\xbb\xbf{"text": "one"}\n', "byte-order mark", "ok", "never trained"),
        (b'{"text": "one"}\r\n{"text": "two"}\r\n', "line ends", "ok", "CRLF"),
    ],
    ids=["empty", "gb18030", "broken JSON", "mark", "CRLF"],
)
def test_the_bytes_of_a_file_are_examined(
    content: bytes, check: str, status: str, words: str, tmp_path: Path, examined: Any, finding: Any
) -> None:
    """pitfall 12: line ends and marks; an empty file and another encoding are findings, not crashes."""
    (tmp_path / "a.jsonl").write_bytes(content)
    found = finding(examined(tmp_path / "a.jsonl"), check)
    assert found.status == status
    assert words in found.what


def test_a_damaged_archive_is_a_finding(tmp_path: Path, examined: Any, finding: Any) -> None:
    whole = gzip.compress("".join(json.dumps(row) + "\n" for row in TEXTS).encode())
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    found = finding(examined(tmp_path / "a.jsonl.gz"), "rows")
    assert found.status == "fail" and "cut short" in found.what


def test_files_left_out_for_their_suffix_are_said(tmp_path: Path, examined: Any, rows_file: Any, finding: Any) -> None:
    """pitfall 13: a folder whose data has another suffix loses it without a word."""
    folder = tmp_path / "folder"
    folder.mkdir()
    rows_file(TEXTS).rename(folder / "a.jsonl")
    (folder / "b.data").write_text("x")
    assert finding(examined(folder), "files left out").status == "warn"


def test_papers_beside_the_data_are_no_alarm_and_descriptions_of_it_are(
    tmp_path: Path, examined: Any, rows_file: Any, finding: Any
) -> None:
    """pitfall 13: a folder as the hubs have it."""
    folder = tmp_path / "set"
    (folder / ".git").mkdir(parents=True)
    rows_file(TEXTS).rename(folder / "a.jsonl")
    for name in ("README.md", "LICENSE", ".gitattributes", ".git/data.bin"):
        (folder / name).write_text("x")
    assert not [f for f in examined(folder).findings if f.status != "ok"]
    (folder / "dataset_info.json").write_text('{"features": {}}')
    assert "FOLDER/*.jsonl" in finding(examined(folder), "files without rows").cure


def test_conversations_longer_than_a_row_are_counted(examined: Any, rows_file: Any, finding: Any) -> None:
    """pitfall 2: they lose turns or the end of an answer; long texts are only cut into pieces."""
    path = rows_file(CHATS)
    assert finding(examined(path, seq_len=128), "long records").status == "ok"
    found = finding(examined(path, seq_len=8), "long records")
    assert (found.status, found.pitfall) == ("warn", 2)
    assert found.what.startswith("100.0% of the records have more than 8 tokens;")
    assert finding(examined(rows_file(TEXTS), seq_len=8), "long records").status == "ok"


@pytest.mark.parametrize(
    ("on_long", "status", "words"),
    [
        ("auto", "warn", "these are cut and lose"),
        ("split", "warn", "these are split between their turns and lose 0.0%"),
        ("drop", "warn", "leaves them out"),
        ("error", "fail", "stops at the first"),
    ],
)
def test_what_is_lost_of_long_conversations_follows_the_recipe(
    on_long: str, status: str, words: str, tokenizer_folder: Path, rows_file: Any, finding: Any
) -> None:
    """pitfall 2: cut, split, left out or refused, with the share of the answers that is lost."""
    chats = [{"messages": [*chat(i)["messages"], *chat(i + 1)["messages"]]} for i in range(20)]
    source = SourceConfig(path=str(rows_file(chats)))
    found = finding(examine_data(source, Context(tokenizer_folder, 36, "sft", on_long=on_long)), "long records")
    assert (found.status, found.pitfall) == (status, 2)
    assert words in found.what and "seq_len" in found.cure
    if on_long == "auto":
        lost = float(found.what.rpartition("lose ")[2].partition("%")[0])
        assert 40 < lost < 60  # one of two answers
        assert "data.on_long: split, which loses 0.0%" in found.cure
        alone = rows_file([{"messages": [USER, {**ANSWER, "content": "then 2. " * 30}]}] * 9)
        found = finding(examine_data(SourceConfig(path=str(alone)), Context(tokenizer_folder, 36)), "long records")
        assert "split" not in found.cure  # nothing to split between


def test_conversations_for_which_there_is_no_template_are_a_failure(
    tokenizer: Any, tmp_path: Path, rows_file: Any, finding: Any
) -> None:
    """pitfall 14"""
    tokenizer.with_chat_template(None).save(tmp_path / "bare")
    found = finding(
        examine_data(SourceConfig(path=str(rows_file(CHATS))), Context(tmp_path / "bare")), "written as tokens"
    )
    assert (found.status, found.pitfall) == ("fail", 14)
    assert "40 of 40 records" in found.what and "chatml" in found.cure


def test_a_template_that_wraps_the_sides_of_a_pair_differently_is_named(
    tokenizer: Any, tmp_path: Path, rows_file: Any, finding: Any, examined: Any
) -> None:
    """pitfall 6: the rows are alike, the template is not."""
    pairs = rows_file([{"prompt": f"{i}?", "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(9)])
    assert finding(examined(pairs), "sides through the template").status == "ok"
    source = tokenizer.chat_template
    polite = source.replace("'<|im_end|>'", "('!' if 'yes' in message.content else '') ~ '<|im_end|>'", 9)
    assert polite != source
    tokenizer.with_chat_template(polite).save(tmp_path / "polite")
    found = finding(
        examine_data(SourceConfig(path=str(pairs)), Context(tmp_path / "polite")), "sides through the template"
    )
    assert (found.status, found.pitfall) == ("warn", 6) and "9 of 9 pairs" in found.what


def test_rows_that_train_no_stop_token_are_counted(
    tokenizer: Any, tmp_path: Path, rows_file: Any, finding: Any
) -> None:
    """pitfall 1: with a template whose end token lies outside of what is trained, no conversation teaches to stop."""
    source = tokenizer.chat_template.replace(
        "'<|im_end|>' }}\n        {%- endgeneration %}", "'' }}\n        {%- endgeneration %}{{- '<|im_end|>' }}"
    )
    assert source != tokenizer.chat_template
    tokenizer.with_chat_template(source).save(tmp_path / "bad")
    found = examine_data(SourceConfig(path=str(rows_file(CHATS))), Context(tmp_path / "bad"))
    assert (finding(found, "stop token").status, finding(found, "stop token").pitfall) == ("fail", 1)


@pytest.mark.parametrize(
    ("rows", "stage", "status"),
    [(CHATS, "pretrain", "warn"), (TEXTS, "sft", "warn"), ([{"text": "a", "label": "b"}] * 3, "pretrain", "fail")],
    ids=["chats in pretraining", "texts in fine-tuning", "labels"],
)
def test_data_of_another_stage_is_named(
    rows: list[Any], stage: str, status: str, examined: Any, rows_file: Any, finding: Any
) -> None:
    """pitfall 14: conversations in a pretraining recipe, documents in a fine-tuning one."""
    assert finding(examined(rows_file(rows), stage=stage), "kind of data").status == status


def test_of_much_text_and_of_long_texts_only_a_beginning_is_read(
    rows_file: Any, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seconds for any file: bounded in text, not in rows alone."""
    from sproutlm.doctor import scan, tokens

    monkeypatch.setattr(scan, "TEXT_CHARACTERS", 300)
    monkeypatch.setattr(tokens, "LONG_TEXT", 20)
    found = examine_data(SourceConfig(path=str(rows_file(TEXTS))), Context(tokenizer_folder))
    assert any(note.startswith("only the first 7 rows were looked at") for note in found.notes)
    assert any("more than 20 characters" in note for note in found.notes)
    assert "most at least" in next(f.what for f in found.findings if f.check == "long records")


def test_a_huge_file_is_sampled_and_that_is_said(rows_file: Any, tokenizer_folder: Path) -> None:
    source = SourceConfig(path=str(rows_file(TEXTS)))
    found = examine_data(source, Context(tokenizer_folder), rows=10)
    assert any(note.startswith("only the first 10 rows were looked at") for note in found.notes)
    assert not any("only the first" in note for note in examine_data(source, Context(tokenizer_folder), rows=40).notes)


def test_the_shared_equations_are_named(examined: Any, finding: Any) -> None:
    """pitfall 13: a real file whose text is an object."""
    path = Path(__file__).resolve().parents[2] / "../shared/data/pretrain/equations_nested_text.jsonl"
    if not path.is_file():
        pytest.skip("the shared data is not here")
    found = finding(examined(path, max_rows=50), "rows")
    assert found.status == "fail" and "text.prompt" in found.what
    assert finding(examined(path, max_rows=50, columns={"text": "text.prompt"}), "rows").status == "ok"
