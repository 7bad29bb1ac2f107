"""SentencePiece models keep the ids that sentencepiece 0.2 gives, and trained ones keep every byte."""

from __future__ import annotations

import builtins
import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizer_examples import TEXTS, sentencepiece_model, strings
from tokenizers import Tokenizer as Backend

from sproutlm.errors import SproutError
from sproutlm.tokenizer import StreamDecoder, Tokenizer
from sproutlm.tokenizer.probe_texts import HARD_TEXTS, random_texts
from sproutlm.tokenizer.spm import from_sentencepiece, train_sentencepiece
from sproutlm.tokenizer.spm_model import read_model
from sproutlm.tokenizer.tokenizer import CONTROL_TOKENS

sentencepiece = pytest.importorskip("sentencepiece", reason="SentencePiece is compared where it is installed")

KINDS = ("bpe", "unigram")


@pytest.mark.parametrize("add_dummy_prefix", [True, False], ids=["prefix", "no prefix"])
@pytest.mark.parametrize("byte_fallback", [True, False], ids=["bytes", "no bytes"])
@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_text_equal_sentencepiece(kind: str, byte_fallback: bool, add_dummy_prefix: bool) -> None:
    """More than 1,000 texts for each of eight models."""
    proto = sentencepiece_model(kind, byte_fallback=byte_fallback, add_dummy_prefix=add_dummy_prefix)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=proto), from_sentencepiece(proto)
    texts = strings(1000)
    assert len(texts) > 1000
    for text in texts:
        wanted, got = theirs.encode(text), ours.encode(text)
        if kind == "unigram" and wanted != got:  # two paths of one score: sentencepiece adds up 32-bit floats
            assert sum(map(theirs.get_score, wanted)) == pytest.approx(sum(map(theirs.get_score, got)), abs=1e-3), text
            continue
        assert wanted == got, text
        if theirs.unk_id() not in wanted:
            assert theirs.decode(wanted) == ours.decode(got)
    assert ours.vocab_size == theirs.vocab_size()
    assert ours.byte_exact is byte_fallback


@pytest.mark.parametrize("add_dummy_prefix", [True, False], ids=["prefix", "no prefix"])
@pytest.mark.parametrize("kind", KINDS)
def test_any_text_comes_back_byte_for_byte(kind: str, add_dummy_prefix: bool) -> None:
    """Pitfall 8: leading and double blanks, line ends, tabs, full-width signs, characters without a piece."""
    tokenizer = from_sentencepiece(sentencepiece_model(kind, add_dummy_prefix=add_dummy_prefix))
    dummy = int(add_dummy_prefix)
    for text in [*strings(400, seed=3), " a", "  a", "   ", "\n", " \n ", "a ", "\ta", "<0x41>", "x<0x0A>y</s>"]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode_bytes(ids) == text.encode()
        assert tokenizer.token_bytes()[ids].sum() == len(text.encode()) + (dummy if text else 0)
        stream = StreamDecoder(tokenizer)
        pieces = [stream.push(id_) for id_ in ids]
        assert "".join(pieces) + stream.flush() == text
        assert "\ufffd" in text or not any("\ufffd" in piece for piece in pieces)  # pitfall 10


def test_random_bytes_are_written_by_byte_tokens() -> None:
    """Pitfall 8."""
    tokenizer = from_sentencepiece(sentencepiece_model())
    id_of = {tokenizer.piece(i): i for i in reversed(range(tokenizer.vocab_size))}
    data = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    assert tokenizer.decode_bytes((id_of[bytes([byte])] for byte in data), after=id_of[b"a"]) == data


@pytest.mark.parametrize("kind", KINDS)
def test_control_pieces_in_text_stay_text(kind: str) -> None:
    """Pitfall 4: a unigram model has ``</s>`` in its own vocabulary and would find it there."""
    tokenizer = from_sentencepiece(sentencepiece_model(kind, control_symbols="<ctl>,[A]"))
    assert set(tokenizer.control_tokens) == {"<unk>", "<s>", "</s>", "<ctl>", "[A]"}
    for name in tokenizer.control_tokens:
        for text in (name, f"a{name}b", f" {name}\n{name}"):
            ids = tokenizer.encode(text)
            assert not set(tokenizer.control_tokens.values()).intersection(ids)
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_give_each_byte_the_character_it_belongs_to(kind: str) -> None:
    """A mask that ends between two unknown characters must not train the first one's bytes."""
    tokenizer = from_sentencepiece(sentencepiece_model(kind))
    text = "a鑫淼🦊\U0002a6d6 the fox\n\n龘"
    ids, offsets = tokenizer.encode_with_offsets(text)
    for i, character in enumerate(text):
        if character in "鑫淼🦊\U0002a6d6龘\n":
            own = [id_ for id_, span in zip(ids, offsets, strict=True) if span == (i, i + 1)]
            assert tokenizer.decode_bytes(own, after=ids[0]) == character.encode()
    assert [a for a, _ in offsets] == sorted(a for a, _ in offsets)


def test_nfkc_is_said_and_not_byte_exact() -> None:
    """Pitfall 8: the usual SentencePiece settings turn full-width punctuation into ASCII, for good."""
    tokenizer = from_sentencepiece(
        sentencepiece_model("unigram", normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True)
    )
    assert not tokenizer.byte_exact
    assert any("full-width" in note for note in tokenizer.notes)
    assert tokenizer.decode(tokenizer.encode("你好，１２３！")) == "你好,123!"


def test_extra_blanks_are_removed_as_the_model_says() -> None:
    proto = sentencepiece_model(remove_extra_whitespaces=True)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=proto), from_sentencepiece(proto)
    for text in strings(300, seed=5):
        assert ours.encode(text) == theirs.encode(text), text
    assert not ours.byte_exact


@pytest.mark.parametrize("kind", KINDS)
def test_user_defined_pieces_are_text_unless_they_are_marks(kind: str) -> None:
    proto = sentencepiece_model(kind, add_dummy_prefix=False, user_defined_symbols="\n\n,hello,▁▁,<turn>")
    theirs, ours = sentencepiece.SentencePieceProcessor(model_proto=proto), from_sentencepiece(proto)
    for text in ("a\n\nb", "hello worlds\n\n\n", "  hello   world", "a   b", "tohello"):
        assert ours.encode(text) == theirs.encode(text)
        assert ours.decode(ours.encode(text)) == text
    assert "<turn>" in ours.control_tokens
    assert ours.decode(ours.encode("<turn>")) == "<turn>"


@pytest.mark.parametrize("kind", KINDS)
def test_saved_model_gives_the_same_ids_in_transformers(kind: str, tmp_path: Path) -> None:
    """transformers 5, no remote code."""
    transformers = pytest.importorskip("transformers", reason="parity is checked where transformers is installed")
    ours = from_sentencepiece(sentencepiece_model(kind))
    ours.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in strings(200, seed=7):
        if not any(name in text for name in ours.control_tokens):
            assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), text


def test_model_files_load_from_a_folder_and_pickle(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer",
                "chat_template": "mine",
                "pad_token": "<pad>",
                "added_tokens_decoder": {"905": {"content": "<pad>", "special": True}},
            }
        )
    )
    in_folder, alone = Tokenizer.load(tmp_path), Tokenizer.load(tmp_path / "tokenizer.model")
    assert in_folder.pad_id == 905
    assert in_folder.vocab_size == 906  # pitfall 9: ids with a gap before it
    assert (in_folder.chat_template, in_folder.fingerprint) == ("mine", alone.fingerprint)
    in_folder.save(tmp_path / "saved")
    for copy in (Tokenizer.load(tmp_path / "saved"), pickle.loads(pickle.dumps(in_folder))):
        assert copy.fingerprint == in_folder.fingerprint
        assert copy.encode("  the fox，鑫") == in_folder.encode("  the fox，鑫")
        assert copy.encode_batch(["  the fox，鑫"]) == [in_folder.encode("  the fox，鑫")]
    saved = Backend.from_file(str(tmp_path / "saved" / "tokenizer.json"))
    assert saved.token_to_id("<pad>") == 905


def test_a_model_file_cut_anywhere_is_one_sentence(tmp_path: Path) -> None:
    whole = sentencepiece_model()
    for length in [*range(0, len(whole) - 1, len(whole) // 60), 1, 2, 3, len(whole) // 2]:
        with pytest.raises(SproutError, match="copy it again"):
            read_model(whole[:length], "cut.model")
    (tmp_path / "tokenizer.model").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SproutError, match=r"tokenizer\.model: not a whole SentencePiece model"):
        Tokenizer.load(tmp_path)


def test_kinds_that_tokenizer_json_cannot_express_are_refused() -> None:
    with pytest.raises(SproutError, match="'char'"):
        from_sentencepiece(sentencepiece_model("char", byte_fallback=False))
    with pytest.raises(SproutError, match="end of words"):
        from_sentencepiece(sentencepiece_model(treat_whitespace_as_suffix=True))


# --- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> Tokenizer:
    return train_sentencepiece(TEXTS, 400, model=request.param)


def test_trained_tokenizer_keeps_every_byte_and_our_control_ids(trained: Tokenizer) -> None:
    """Pitfalls 8 and 1; "▁" is a letter like any other here."""
    assert list(trained.control_tokens.items()) == [(name, i) for i, name in enumerate(CONTROL_TOKENS)]
    assert len({trained.eos_id, trained.pad_id, trained.unk_id}) == 3
    assert trained.byte_exact
    assert not trained.notes
    assert trained.chat_template
    assert 300 < trained.vocab_size <= 400
    assert trained.dummy_blank == "none"
    for text in [*HARD_TEXTS.values(), *random_texts(300), " ▁ ▁a", "<0x41><|im_end|>"]:
        ids = trained.encode(text)
        assert trained.decode_bytes(ids) == text.encode()
        assert trained.token_bytes()[ids].sum() == len(text.encode())
        assert max(ids, default=0) < trained.vocab_size
        assert not set(trained.control_tokens.values()).intersection(ids)


def test_line_breaks_are_one_token_each_and_words_are_pieces(trained: Tokenizer) -> None:
    assert len(trained.encode("\n\n\r\n\t")) == 5
    assert trained.encode("assistant\n") == [*trained.encode("assistant"), *trained.encode("\n")]
    assert len(trained.encode(" the")) == 1
    assert all(len(trained.encode(digit)) == 1 for digit in "024")
    assert len(trained.encode("42")) == 2


def test_training_is_reproducible_and_saves_for_transformers(trained: Tokenizer, tmp_path: Path) -> None:
    kind = {"BPE": "bpe", "Unigram": "unigram"}[trained.backend_json["model"]["type"]]
    again = train_sentencepiece(iter(TEXTS), 400, model=kind)
    assert again.files() == trained.files()
    transformers = pytest.importorskip("transformers", reason="parity is checked where transformers is installed")
    trained.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in strings(100, seed=9):
        assert theirs.encode(text) == trained.encode(text)
        assert theirs.decode(trained.encode(text)) == text


def test_options_decide_where_pieces_end() -> None:
    texts = ["year 2025 2025 春眠不觉晓 春眠 used用的 used用的\n        return x\n        return y\n"] * 20

    def count(text: str, **options: Any) -> int:
        return len(train_sentencepiece(texts, 420, **options).encode(text))

    assert count("2025") == 4
    assert count("2025", digits="free") < 4
    assert count("春眠") == 1
    assert count("春眠", cjk="single") == 2
    assert count("        return", spaces="runs") < count("        return")


def test_training_reads_no_more_than_max_bytes_and_says_so() -> None:
    said: list[str] = []

    def texts() -> Any:
        for i in range(1000):
            assert i < 50, "reading went on"
            yield f"word{i % 7} and more words here\n"

    train_sentencepiece(texts(), 320, max_bytes=400, say=said.append)
    assert any("400" in sentence for sentence in said)


def test_a_vocabulary_smaller_than_the_letters_still_trains() -> None:
    """Thousands of different Chinese letters, few ids: the rarest are written with byte tokens."""
    texts = ["".join(chr(0x4E00 + (i * 37 + j) % 3000) for j in range(60)) + "春春春" for i in range(50)]
    tokenizer = train_sentencepiece(texts, 320)
    assert tokenizer.vocab_size <= 320
    assert len(tokenizer.encode("春")) == 1
    assert tokenizer.byte_exact


def test_training_refuses_what_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SproutError, match="vocab_size=200 is too small"):
        train_sentencepiece(TEXTS, 200)
    with pytest.raises(SproutError, match="bpe or unigram"):
        train_sentencepiece(TEXTS, 400, model="word")
    model = sentencepiece_model()  # trained while the package is there
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == "sentencepiece":
            raise ImportError
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(SproutError, match=r"sproutlm\[data\]"):
        train_sentencepiece(TEXTS, 400)
    assert from_sentencepiece(model).byte_exact  # reading a model needs no extra package
