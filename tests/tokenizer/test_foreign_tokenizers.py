"""Tokenizers of other families, as their tokenizer.json has them: the same ids as the library's, text back as it was."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from tokenizer_examples import TEXTS, sentencepiece_model, strings
from tokenizers import Tokenizer as Backend, decoders, models, normalizers, pre_tokenizers, trainers

from sproutlm.data.inspect import pieces_of
from sproutlm.errors import SproutError
from sproutlm.tokenizer import ChatTemplate, StreamDecoder, Tokenizer
from sproutlm.tokenizer.library import load_template
from sproutlm.tokenizer.spm import convert
from sproutlm.tokenizer.spm_model import read_model

pytest.importorskip("sentencepiece", reason="the vocabularies here are trained with sentencepiece")

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",), exclude_characters="▁\ufffd"), max_size=30)
NAMED = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>", "tokenizer_class": "PreTrainedTokenizerFast"}
TEMPLATE = (
    "{% for m in messages %}{{ '<s>' + m.role + '\\n' }}{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content + '</s>' }}{% endgeneration %}{% else %}{{ m.content + '</s>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<s>' }}{% endif %}"
)
BLANK = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}


# How the families write the blank before a text: (model, normalizer, pre-tokenizer, whether all text comes back).
FAMILIES: dict[str, tuple[str, Any, Any, bool]] = {
    "llama legacy": ("bpe", {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, BLANK]}, None, True),
    "mistral": ("bpe", None, metaspace("first"), False),
    "llama 2 new": ("bpe", None, metaspace("always"), False),
    "gemma": ("bpe", BLANK, None, True),
    "unigram, never": ("unigram", None, metaspace("never"), True),
    "t5": ("unigram", None, {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace("always")]}, False),
}  # fmt: skip


def family(name: str) -> Tokenizer:
    kind, normalizer, pre_tokenizer, _ = FAMILIES[name]
    data = convert(read_model(sentencepiece_model(kind, pad_id=3), "test"))
    data |= {"normalizer": normalizer, "pre_tokenizer": pre_tokenizer}
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]
    data["decoder"]["decoders"] = [*data["decoder"]["decoders"][:3], *strip]
    return Tokenizer(json.dumps(data), {**NAMED, "chat_template": TEMPLATE}, where=name)


@pytest.fixture(scope="module", params=FAMILIES)
def foreign(request: pytest.FixtureRequest) -> Tokenizer:
    return family(request.param)


@pytest.fixture(scope="module")
def exact() -> list[Tokenizer]:
    return [family(name) for name, (*_, whole) in FAMILIES.items() if whole]


def test_ids_of_text_between_control_tokens_equal_the_librarys(foreign: Tokenizer) -> None:
    """Pitfall 6: at the start of a text and after a control token, a blank is written just where the library does."""
    backend = Backend.from_str(foreign.files()["tokenizer.json"])
    bos, eos = (foreign.token_id(name) for name in ("<s>", "</s>"))
    for text in [*strings(200, seed=2), " a", "  a", "a", "\na", "", " "]:
        if any(name in text for name in foreign.control_tokens) or "<0x" in text:
            continue
        assert backend.encode(text, add_special_tokens=False).ids == foreign.encode(text)
        wanted = backend.encode(f"{text}<s>{text}</s>", add_special_tokens=False).ids
        inside, offsets = foreign.encode_with_offsets(text, at_start=False)
        assert [*foreign.encode(text), bos, *inside, eos] == wanted
        assert inside == foreign.encode(text, at_start=False)
        assert all(0 <= a <= b <= len(text) for a, b in offsets)
        assert foreign.encode_batch([text, text]) == [foreign.encode(text)] * 2


def test_conversations_equal_transformers(foreign: Tokenizer, tmp_path: Path) -> None:
    """Pitfall 6, on transformers 5: ids of whole conversations and of prompts."""
    transformers = pytest.importorskip("transformers", reason="parity is checked where transformers is installed")
    foreign.save(tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    template = ChatTemplate.of(foreign)
    for question, answer in (("hello", "the fox"), ("  two blanks ", " 春眠，\n\n"), ("鑫a", "🦊"), ("", "x")):
        chat = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] * 2
        for messages, prompt in ((chat, False), (chat[:3], True)):
            wanted = theirs.apply_chat_template(messages, add_generation_prompt=prompt, return_dict=True)["input_ids"]
            assert template.render(messages, add_generation_prompt=prompt).ids == wanted


def test_what_is_lost_is_known(foreign: Tokenizer) -> None:
    """Pitfall 8: ``byte_exact`` and a note say which families lose a blank at the start of a text."""
    *_, whole = FAMILIES[foreign.where]
    assert foreign.byte_exact is whole
    assert any("not byte-exact" in note for note in foreign.notes) is not whole


@settings(max_examples=80, deadline=None)
@given(text=ANY_TEXT)
def test_any_text_comes_back_and_streams_whole(exact: list[Tokenizer], text: str) -> None:
    """Pitfalls 8 and 10, at the start of a text and after a control token."""
    for tokenizer in exact:
        for at_start, after in ((True, None), (False, tokenizer.token_id("<s>"))):
            ids, offsets = tokenizer.encode_with_offsets(text, at_start=at_start)
            assert tokenizer.decode_bytes(ids, after=after) == text.encode()
            stream = StreamDecoder(tokenizer, after=after)
            pieces = [stream.push(id_) for id_ in ids]
            assert "".join(pieces) + stream.flush() == text
            assert not any("\ufffd" in piece for piece in pieces)
            assert set().union(*(range(a, b) for a, b in offsets)) == set(range(len(text)))
            assert not set(tokenizer.control_tokens.values()).intersection(ids)


def test_whole_conversations_decode_to_their_text() -> None:
    """The blank that Llama's old tokenizer writes after each control token is taken away after each."""
    tokenizer = family("llama legacy")
    rendered = ChatTemplate.of(tokenizer).render(
        [{"role": "user", "content": " a  b"}, {"role": "assistant", "content": "  c"}]
    )
    assert tokenizer.decode(rendered.ids, keep_control=True) == rendered.text
    assert "".join(pieces_of(rendered.ids, tokenizer)) == rendered.text


def test_an_answer_goes_on_where_its_prompt_ended() -> None:
    """A blank at the head of a continuation is text, unless the tokenizer itself wrote it after a control token."""
    tokenizer = family("llama legacy")
    word = tokenizer.encode("the")
    assert tokenizer.piece(word[0])[:1] == b" "
    assert tokenizer.decode(word) == "the"
    assert tokenizer.decode(word, after=word[-1]) == " the"
    assert tokenizer.decode(word, after=tokenizer.token_id("<s>")) == "the"
    assert StreamDecoder(tokenizer, after=word[-1]).push(word[0]) == " the"
    again = StreamDecoder(tokenizer)
    assert [again.push(word[0]), again.flush(), again.push(word[0])] == ["the", "", "the"]
    first = family("mistral")
    assert first.decode(first.encode("the"), after=first.token_id("<s>")) == " the"


def test_foreign_tokenizers_pickle_and_save(foreign: Tokenizer, tmp_path: Path) -> None:
    foreign.save(tmp_path)
    for copy in (Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(foreign))):
        assert copy.fingerprint == foreign.fingerprint
        assert (copy.byte_exact, copy.dummy_blank) == (foreign.byte_exact, foreign.dummy_blank)
        assert copy.encode("a 鑫 </s>", at_start=False) == foreign.encode("a 鑫 </s>", at_start=False)


def test_merges_that_make_a_control_token_are_left_out() -> None:
    """Pitfall 4: converters list a merge for every piece, ``</s>`` too."""
    data = convert(read_model(sentencepiece_model(pad_id=3), "test"))
    vocabulary = data["model"]["vocab"]
    for piece in ("<", "/", "s", ">", "</", "s>"):
        vocabulary.setdefault(piece, len(vocabulary))
    data["model"]["merges"] = [["<", "/"], ["s", ">"], ["</", "s>"], *data["model"]["merges"]]
    tokenizer = Tokenizer(json.dumps(data), NAMED)
    ids = tokenizer.encode("a</s>b")
    assert not set(tokenizer.control_tokens.values()).intersection(ids)
    assert tokenizer.decode(ids) == "a</s>b"


def test_added_words_are_text_and_added_marks_are_not(tokenizer: Tokenizer) -> None:
    """Words and blanks that a person added are written and read like any other text."""
    data = tokenizer.backend_json
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    for i, content in enumerate(["春眠不觉晓", "    ", "<tool>", "[INST]"]):
        data["added_tokens"].append({"id": 420 + i, "content": content, **flags})
    grown = Tokenizer(json.dumps(data), tokenizer.config)
    ids = grown.encode("a春眠不觉晓    b<tool>[INST]")
    assert ids.count(420) == ids.count(421) == 1
    assert not {422, 423}.intersection(ids)
    assert grown.decode(ids) == "a春眠不觉晓    b<tool>[INST]"
    assert grown.token_bytes()[420] == len("春眠不觉晓".encode())


def word_piece() -> Tokenizer:
    backend = Backend(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    return Tokenizer(backend.to_str(), {"unk_token": "[UNK]", "pad_token": "[PAD]"})


def test_word_pieces_load_and_say_that_they_lose_text() -> None:
    """Pitfall 8: BERT's tokenizer can be read with, not written with."""
    tokenizer = word_piece()
    assert not tokenizer.byte_exact
    assert any("WordPiece" in note and "bytes have no token" in note for note in tokenizer.notes)
    assert (tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id) == (3, 0, 1)
    text = "the quick brown fox, the lazy dog，春眠不觉晓。"
    ids, offsets = tokenizer.encode_with_offsets(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes()[ids].sum() == len(text.encode()) + 1
    assert [text[a:b] for a, b in offsets][-1] == "。"
    assert tokenizer.eos_id not in tokenizer.encode("the [SEP] fox")  # the unknown token may come, nothing else
    stream = StreamDecoder(tokenizer)
    assert "".join(map(stream.push, ids)) == text


def test_a_file_cut_in_half_is_one_sentence(tmp_path: Path) -> None:
    family("gemma").save(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(SproutError, match=r"tokenizer\.json:1: not JSON .*; the file is damaged, copy it again"):
        Tokenizer.load(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(SproutError, match="not a tokenizer's file; expected tokenizer.json"):
        Tokenizer.load(tmp_path / "notes.txt")


def test_end_and_pad_that_were_found_are_written_down(tmp_path: Path) -> None:
    """Pitfalls 1 and 6: templates and other programs end and pad with the same tokens as we do."""
    tokenizer = word_piece()
    assert tokenizer.eos_id == tokenizer.token_id("[SEP]")
    prompt = [{"role": "user", "content": "the fox"}]
    assert ChatTemplate(load_template("plain"), tokenizer).render(prompt, add_generation_prompt=True).ids
    tokenizer.save(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert (config["eos_token"], config["pad_token"]) == ("[SEP]", "[PAD]")
    del config["pad_token"]
    again = Tokenizer((tmp_path / "tokenizer.json").read_text("utf-8"), config)
    assert again.config["pad_token"] == again.token_text(again.pad_id) == "[PAD]"
