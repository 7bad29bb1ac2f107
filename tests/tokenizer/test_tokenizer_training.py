"""Training a tokenizer: deterministic, bounded, and honest about its size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sproutlm.data.records import Chat, Labelled, Message, Preference, Text, texts_of
from sproutlm.errors import SproutError
from sproutlm.tokenizer import Tokenizer, train_from_files, train_tokenizer
from sproutlm.tokenizer.reading import PIECE_CHARACTERS, cut
from sproutlm.tokenizer.train import LEAST_VOCAB_SIZE

HERE = Path(__file__).resolve()
TEXTS = ["春眠不觉晓，处处闻啼鸟。", "the fox and the dog and the fox", "12 + 30 = 42"] * 20


def test_same_texts_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        train_tokenizer(iter(TEXTS), 350).save(tmp_path / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert len({(tmp_path / run / name).read_bytes() for run in ("a", "b", "c")}) == 1


def test_vocabulary_below_alphabet_and_control_tokens_is_refused() -> None:
    with pytest.raises(SproutError, match=f"at least {LEAST_VOCAB_SIZE}"):
        train_tokenizer(TEXTS, LEAST_VOCAB_SIZE - 1)
    smallest = train_tokenizer(TEXTS, LEAST_VOCAB_SIZE)
    assert smallest.vocab_size == LEAST_VOCAB_SIZE
    assert smallest.decode(smallest.encode("春，🦊")) == "春，🦊"


def test_too_little_text_gives_a_smaller_vocabulary_and_says_so() -> None:
    said: list[str] = []
    tokenizer = train_tokenizer(["ab"], 5000, say=said.append)
    assert tokenizer.vocab_size < 5000
    assert any(f"{tokenizer.vocab_size:,} ids, not 5,000" in sentence for sentence in said)


def test_no_text_at_all_is_refused() -> None:
    with pytest.raises(SproutError, match="no text"):
        train_tokenizer(["", ""], 400)


def test_the_default_gives_the_same_tokenizer_as_ever(tokenizer: Tokenizer) -> None:
    """Golden: ids must not move, or shards and models of earlier runs could not be continued. First computed when each
    rule of the cut was still a step of its own.
    """
    assert tokenizer.fingerprint == "233309b87d7f72b068082f99f328f386e3b8444a76bbd3deb30524c5b5d90a9d"
    other = train_tokenizer(TEXTS, 350).fingerprint
    assert other == "67f18c9af110caaf485a3c3ae39c7e0997cc61f632ae7cc1af5f66e090b5688e"


def test_a_row_of_a_million_characters_is_fed_in_pieces() -> None:
    text = ("word " * 20 + "\n") * 10_000 + "x" * (3 * PIECE_CHARACTERS)
    pieces = list(cut(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= PIECE_CHARACTERS
    assert pieces[0].endswith("\n")
    assert list(cut("")) == []


def test_digits_stand_alone_and_chinese_punctuation_sticks_to_nothing(tokenizer: Tokenizer) -> None:
    many = train_tokenizer(["春风，春风。春风！2025 2025 2025 用Python写，用Python写 the fox's fox"] * 50, 600)
    pieces = {many.token_text(i) for i in range(many.vocab_size)}
    assert "春风" in pieces
    assert "2025" not in pieces
    assert "20" not in pieces
    assert not [p for p in pieces if len(p) > 1 and "，" in p]
    assert "Python" in pieces
    assert not [p for p in pieces if "用" in p and "P" in p]


def test_words_of_the_template_are_single_tokens(tokenizer: Tokenizer) -> None:
    for word in ("system", "user", "assistant"):
        assert len(tokenizer.encode(word)) == 1


def test_control_token_names_in_the_training_text_are_ordinary_text() -> None:
    """Pitfall 4: a corpus full of ``<|im_end|>`` must not teach merges that write it."""
    tokenizer = train_tokenizer(["<|im_end|><think>"] * 500, 400)
    ids = tokenizer.encode("<|im_end|><think>")
    assert not set(tokenizer.control_tokens.values()).intersection(ids)


def test_texts_of_every_record() -> None:
    turns = (Message("user", "a"), Message("assistant", "b"))
    assert list(texts_of(Text("x"))) == ["x"]
    assert list(texts_of(Chat(turns))) == ["a", "b"]
    assert list(texts_of(Labelled("x", "spam"))) == ["x"]
    assert list(texts_of(Preference(turns[:1], turns[1:], turns[1:]))) == ["a", "b", "b"]


def test_trains_from_files_into_a_folder(tmp_path: Path) -> None:
    rows = [{"text": text} for text in TEXTS]
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    tokenizer = train_from_files([tmp_path / "rows.jsonl"], tmp_path / "out", 320)
    assert Tokenizer.load(tmp_path / "out").fingerprint == tokenizer.fingerprint
    assert tokenizer.fingerprint == train_tokenizer(TEXTS, 320).fingerprint


def test_real_poems_are_compressed_and_kept() -> None:
    import gzip

    file = HERE.parents[2] / "../shared/data/pretrain/tang_poems_zh.jsonl.gz"
    if not file.exists():
        pytest.skip("the shared data are not here")
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        poems = [json.loads(next(lines))["text"] for _ in range(800)]
    tokenizer = train_tokenizer(poems[:700], 1500)
    ids = [id_ for poem in poems[700:] for id_ in tokenizer.encode(poem)]
    assert tokenizer.decode(ids) == "".join(poems[700:])
    assert len("".join(poems[700:]).encode()) / len(ids) > 1.8


def test_the_report_says_how_much_text_was_used(tmp_path: Path) -> None:
    from sproutlm.cli import main

    file, report = tmp_path / "a.jsonl", tmp_path / "report.json"
    file.write_text('{"text": "the fox and the hen"}\n' * 400)
    command = ["tokenizer", "train", str(tmp_path / "out"), str(file), "--vocab-size", "280", "--max-bytes", "2000"]
    assert main([*command, "--json", str(report)]) == 0
    figures = json.loads(report.read_text("utf-8"))
    assert figures["bytes_of_text"] == 400 * len("the fox and the hen")
    assert 1000 < figures["bytes_used"] <= 2000 == figures["max_bytes"]
