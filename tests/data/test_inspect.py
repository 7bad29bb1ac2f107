"""``data inspect`` shows what the model will see, and counts what it shows."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from sproutlm.config.load import load_recipe
from sproutlm.data.inspect import inspect_file, inspect_recipe, pieces_of, render, statistics_lines
from sproutlm.errors import DataError
from sproutlm.tokenizer.tokenizer import Tokenizer
from sproutlm.tokenizer.train import train_tokenizer

CHATS = [
    {"instruction": "小猫叫什么？", "output": "它叫咪咪。🌱"},
    {"instruction": "Say <|im_end|> twice.", "output": "No."},
    {"instruction": "nothing", "output": ""},
    {"question": "not this format"},
]


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["the cat sat on the mat. 小猫坐在垫子上。"] * 4, 300).save(folder)
    return folder


@pytest.fixture
def chats(tmp_path) -> Path:
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in CHATS), encoding="utf-8")
    return path


def test_report_gives_ids_mask_and_text_of_each_row_as_trained(chats, tokenizer_dir):
    report = inspect_file(chats, tokenizer_dir, rows=5)
    tokenizer = Tokenizer.load(tokenizer_dir)
    assert json.loads(json.dumps(report)) == report
    assert [row["where"] for row in report["rows"]] == [f"{chats}:1", f"{chats}:2"]
    for row, (question, answer) in zip(
        report["rows"], [(c["instruction"], c["output"]) for c in CHATS[:2]], strict=True
    ):
        assert len(row["ids"]) == len(row["trained"]) == len(row["pieces"])
        assert row["text"] == tokenizer.decode(row["ids"], keep_control=True)
        trained = [i for i, t in zip(row["ids"], row["trained"], strict=True) if t]
        assert tokenizer.decode(trained, keep_control=True).startswith(answer + "<|im_end|>")
        untrained = [i for i, t in zip(row["ids"], row["trained"], strict=True) if not t]
        assert question in tokenizer.decode(untrained, keep_control=True)


def test_statistics_are_sums_over_all_rows_and_drops_have_reasons(chats, tokenizer_dir):
    """Pitfalls 1 and 13: the share of rows that train a stop token, and every dropped row's reason, are reported."""
    report = inspect_file(chats, tokenizer_dir, rows=5, seq_len=30)
    s, rows = report["statistics"], report["rows"]
    assert (s["rows_in"], s["records_out"], s["dropped"]) == (4, 2, {"empty": 1, "missing instruction": 1})
    assert s["tokens"] == sum(len(row["ids"]) for row in rows)
    assert s["share_trained"] == sum(sum(row["trained"]) for row in rows) / s["tokens"]
    assert s["rows_training_a_stop_token"] == 2 and s["share_training_a_stop_token"] == 1.0
    assert sum(bucket["rows"] for bucket in s["length_histogram"]) == 2
    for bucket in s["length_histogram"]:
        inside = [row for row in rows if bucket["from"] <= len(row["ids"]) <= bucket["to"]]
        assert bucket["rows"] == len(inside)
    assert s["rows_longer_than_seq_len"] == sum(len(row["ids"]) > 30 for row in rows)
    tokenizer = Tokenizer.load(tokenizer_dir)
    control = set(tokenizer.control_tokens.values())
    plain = [i for row in rows for i in row["ids"] if i not in control]
    assert s["bytes_per_token"] == pytest.approx(len(tokenizer.decode_bytes(plain)) / len(plain))


def test_a_stop_token_that_is_not_trained_does_not_count(tmp_path, tokenizer_dir):
    """Pitfall 1: the end token stands in every row; what matters is whether it is a target."""
    path = tmp_path / "a.jsonl"
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]
    trained = [*turns, {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]
    path.write_text(json.dumps({"messages": trained}) + "\n" + json.dumps({"messages": turns}) + "\n")
    s = inspect_file(path, tokenizer_dir)["statistics"]
    assert s["rows_training_a_stop_token"] == 1


def test_without_a_tokenizer_a_small_one_is_trained_and_said(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("\n\n".join(f"The {i}. 小猫在垫子上睡觉。" for i in range(50)), encoding="utf-8")
    report = inspect_file(path, rows=1)
    assert any("no tokenizer was given" in note for note in report["notes"])
    assert report["statistics"]["rows"] == 50
    assert report["rows"][0]["text"] == "<|endoftext|>The 0. 小猫在垫子上睡觉。<|endoftext|>"
    assert report["rows"][0]["trained"][0] == 0 and report["rows"][0]["trained"][-1] == 1


def test_more_rows_than_the_limit_are_said_not_hidden(tmp_path, tokenizer_dir):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a cat"}\n' * 9)
    report = inspect_file(path, tokenizer_dir, limit=5)
    assert report["statistics"]["rows_in"] == 5
    assert any("first 5 rows" in note for note in report["notes"])
    assert not any("first" in note for note in inspect_file(path, tokenizer_dir, limit=9)["notes"])


def test_a_file_without_a_usable_row_is_refused_with_the_reasons(tmp_path, tokenizer_dir):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": 1}\n')
    for tokenizer in (tokenizer_dir, None):
        with pytest.raises(DataError, match="none of its 1 rows can be used .text is not a string 1"):
            inspect_file(path, tokenizer)


def test_pieces_never_show_half_a_character(tokenizer_dir):
    """Pitfall 10: a character spread over several tokens is shown whole, once."""
    tokenizer = Tokenizer.load(tokenizer_dir)
    text = "🌱龘 the\tcat\r\n"
    ids = [tokenizer.eos_id, *tokenizer.encode(text), tokenizer.eos_id]
    pieces = pieces_of(ids, tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == f"<|endoftext|>{text}<|endoftext|>"
    assert "\ufffd" not in "".join(pieces)


def rendered(report, **options) -> str:
    out = io.StringIO()
    render(report, Console(file=out, width=200, **options))
    return out.getvalue()


def test_trained_tokens_are_coloured_on_a_terminal_and_bracketed_in_a_pipe(chats, tokenizer_dir):
    report = inspect_file(chats, tokenizer_dir, rows=2)
    piped = rendered(report)
    assert "[[它叫咪咪。🌱<|im_end|>" in piped and "\x1b[" not in piped
    assert "Say <|im_end|> twice." in piped
    coloured = rendered(report, force_terminal=True, color_system="truecolor", no_color=False)
    green = [part for part in coloured.split("\x1b[") if ";42m" in part or ";102m" in part]
    shown = "".join(part.partition("m")[2] for part in green)
    assert "它叫咪咪。🌱" in shown and "小猫" not in shown
    for text in (piped, coloured):
        assert "2 rows dropped (" in text and "empty 1" in text and "missing instruction 1" in text
        assert "100.0% of the rows train a stop token" in text


def test_a_long_row_is_cut_on_the_screen_and_said(tmp_path, tokenizer_dir):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"text": "the cat " * 1000}))
    report = inspect_file(path, tokenizer_dir)
    hidden = len(report["rows"][0]["ids"]) - 400
    assert hidden > 0 and f"... and {hidden:,} more tokens" in rendered(report)


def test_a_recipe_is_inspected_as_packed_documents(tmp_path, chats):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "name: r\nstage: sft\ninit_from: random\nrun: run\n"
        "data: {train: [{path: chats.jsonl}], seq_len: 64, on_bad_row: skip, workers: 1}\n"
        "tokenizer: {vocab_size: 300}\nmodel: {dim: 32, n_layers: 1, n_heads: 2}\n"
        "train: {steps: 1, batch_tokens: 64}\n"
    )
    report = inspect_recipe(load_recipe(recipe, ["run=run"], cwd=tmp_path), rows=2)
    assert [row["kind"] for row in report["rows"]] == ["document", "document"]
    assert "它叫咪咪。🌱<|im_end|>" in report["rows"][0]["text"]
    assert report["statistics"]["share_training_a_stop_token"] == 1.0
    assert report["statistics"]["rows_in"] == 4
    assert json.loads(json.dumps(report)) == report
    assert "[[" in rendered(report)


def test_the_statistics_say_what_packing_saves(jsonl, tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer")
    report = inspect_file(jsonl([{"text": "a" * n} for n in (30, 3, 3, 20)]), tmp_path / "tokenizer", seq_len=64)
    packed = report["statistics"]["packing"]
    assert packed["rows"] == 1 and packed["documents_per_row"] == 4.0
    assert packed["useful_before"] == pytest.approx(64 / (4 * 32)) and packed["useful_after"] == 1.0
    assert any("packing (best_fit): 1 rows" in line for line in statistics_lines(report["statistics"]))
