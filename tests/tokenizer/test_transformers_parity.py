"""Ids, conversations and masks equal those of transformers 5.23 from the same folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings, strategies as st

from sproutlm.tokenizer import ChatTemplate, Tokenizer
from sproutlm.tokenizer.check import HARD_TEXTS

transformers = pytest.importorskip("transformers", reason="parity is checked where transformers is installed")

ANY_TEXT = st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=60)

S, U, A = "system", "user", "assistant"
CONVERSATIONS: list[list[tuple[str, str]]] = [
    [(U, "hi"), (A, "hello")],
    [(U, "你好，世界！"), (A, "春眠不觉晓，处处闻啼鸟。")],
    [(S, "Be brief."), (U, "What is 2 + 2?"), (A, "4")],
    [(U, "a"), (A, "b"), (U, "c"), (A, "d"), (U, "e"), (A, "f")],
    [(U, "line\r\nline\n\n"), (A, "\n\nstarts with breaks\n")],
    [(U, "  blanks  "), (A, "  and\ttabs \n ")],
    [(U, "👩‍👩‍👧‍👦"), (A, "🦊🦊 e\u0301 ﷺ")],
    [(U, ""), (A, "")],
    [(U, "def f():\n    return {'a': [1, 2]}"), (A, "```python\nf()\n```")],
    [
        (S, "用中文回答。"),
        (U, "2025年12月31日 + 1天？"),
        (A, "2026年1月1日。"),
        (U, "<b>ok</b> & {{ x }}"),
        (A, "{% if %}"),
    ],
    [(U, "only a question")],
    [(U, "a\u200bb\ufeff"), (A, "\u3000全角　空格\u00a0")],
]


def _messages(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


@pytest.fixture(scope="module")
def theirs(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(str(folder))


def test_folder_loads_without_remote_code(theirs: Any, tokenizer: Tokenizer) -> None:
    """Checked against transformers 5.23."""
    assert transformers.__version__.startswith("5.")
    assert (theirs.eos_token_id, theirs.pad_token_id, theirs.unk_token_id) == (
        tokenizer.eos_id, tokenizer.pad_id, tokenizer.unk_id,
    )  # fmt: skip
    assert theirs.bos_token_id is None
    assert len(theirs) == tokenizer.vocab_size
    assert theirs.chat_template == tokenizer.chat_template


@settings(max_examples=150, deadline=None)
@given(text=ANY_TEXT)
def test_ids_of_any_text_equal_transformers(tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    """transformers 5.23; with and without its automatic special tokens (pitfall 7)."""
    assume(not any(name in text for name in tokenizer.control_tokens))  # there, they are read out of text
    ids = tokenizer.encode(text)
    assert theirs.encode(text, add_special_tokens=False) == ids
    assert theirs(text)["input_ids"] == ids
    assert theirs.decode(ids) == tokenizer.decode(ids)


@pytest.mark.parametrize("text", HARD_TEXTS.values(), ids=HARD_TEXTS.keys())
def test_ids_of_hard_texts_equal_transformers(tokenizer: Tokenizer, theirs: Any, text: str) -> None:
    assert theirs.encode(text) == tokenizer.encode(text)


@pytest.mark.parametrize("turns", CONVERSATIONS)
def test_conversations_and_masks_equal_transformers(template: ChatTemplate, theirs: Any, turns: list) -> None:
    """Pitfall 6, against transformers 5.23: the same ids, the same text, the same mask."""
    messages = _messages(turns)
    ours = template.render(messages)
    there = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert ours.ids == there["input_ids"]
    assert [int(t) for t in ours.trained] == there["assistant_masks"]
    assert ours.text == theirs.apply_chat_template(messages, tokenize=False)
    prompt = theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert template.render(messages, add_generation_prompt=True).ids == prompt


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
def test_ids_are_the_same_beside_a_model_config(
    folder: Path, tokenizer: Tokenizer, tmp_path: Path, model_type: str
) -> None:
    """An export has config.json beside the tokenizer; transformers 5.23 must not put the family's own tokenizer there."""
    tokenizer.save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type, "vocab_size": tokenizer.vocab_size}))
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in HARD_TEXTS.values():
        assert theirs.encode(text) == tokenizer.encode(text)


def test_what_transformers_saves_loads_here_with_the_same_ids(
    theirs: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    theirs.save_pretrained(str(tmp_path))
    back = Tokenizer.load(tmp_path)
    assert back.fingerprint == tokenizer.fingerprint
    assert back.chat_template == tokenizer.chat_template
    assert back.stop_ids == tokenizer.stop_ids
    for text in HARD_TEXTS.values():
        assert back.encode(text) == tokenizer.encode(text)


def test_qwen_style_folder_reads_the_same(tmp_path: Path) -> None:
    """A foreign byte-level tokenizer: NFC normaliser, unmarked added tokens, no unk, pad that is also the document end."""
    from tokenizers import AddedToken, Tokenizer as Backend, decoders, models, normalizers, pre_tokenizers, trainers

    backend = Backend(models.BPE())
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["hello hello fox 春眠 春眠"], trainer=trainer)
    backend.add_special_tokens([AddedToken(t, special=True) for t in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    backend.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    untagged = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": untagged}))
    ours, theirs = Tokenizer.load(tmp_path), transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    template = ChatTemplate.of(ours)
    assert (ours.eos_id, ours.pad_id) == (theirs.eos_token_id, theirs.pad_token_id)
    for turns in CONVERSATIONS:
        messages = _messages(turns)
        assert template.render(messages).ids == theirs.apply_chat_template(messages, return_dict=True)["input_ids"]
    assert ours.token_id("<think>") not in ours.encode("<think>")
    rendered = template.render(_messages([(U, "春眠"), (A, "hello")]))
    end = len(rendered.ids) - 1 - rendered.ids[::-1].index(ours.eos_id)
    assert rendered.trained[end]
    assert not rendered.trained[end + 1]
