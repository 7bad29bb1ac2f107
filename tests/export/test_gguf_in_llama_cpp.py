"""pitfall 43: a GGUF file runs in an unpatched llama.cpp with the ids, the text and the prompts that it has here.

llama.cpp comes as the wheel xllamacpp 2026.10.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from gguf_cases import CASES, config_of, greedy, random_model, thousand_strings
from tokenizers import decoders, models, pre_tokenizers, trainers

from sproutlm.export.gguf import write_gguf
from sproutlm.export.gguf_llama_cpp import LlamaCpp
from sproutlm.export.gguf_vocabulary import CUTS
from sproutlm.model import Transformer
from sproutlm.tokenizer.extend import extend
from sproutlm.tokenizer.library import load_template, with_default_system
from sproutlm.tokenizer.probe_texts import SAMPLES
from sproutlm.tokenizer.template import ChatTemplate
from sproutlm.tokenizer.tiktoken_import import ENCODINGS
from sproutlm.tokenizer.tokenizer import Tokenizer
from sproutlm.tokenizer.train import LEAST_VOCAB_SIZE, train_tokenizer

pytest.importorskip("gguf", reason="the gguf package is not installed (pip install gguf)")
pytest.importorskip("xllamacpp", reason="llama.cpp is not installed (pip install xllamacpp)")

STRINGS = thousand_strings()
GELU = ("gpt2", "gemma")


def texts() -> Iterator[str]:
    yield from SAMPLES.values()
    yield from STRINGS


def file_for(tokenizer: Tokenizer, folder: Path, model: Transformer | None = None) -> Path:
    if model is None:
        model = Transformer(config_of({"n_layers": 1, "dim": 32, "n_heads": 2}, tokenizer.vocab_size)).init_weights(0)
    write_gguf(model.config, model.state_dict(), tokenizer, folder / "model.gguf", kind="f32")
    return folder / "model.gguf"


def different(running: LlamaCpp, tokenizer: Tokenizer, strings: list[str]) -> list[str]:
    return [text for text in strings if running.encode(text) != tokenizer.encode(text)]


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_model_answers_in_llama_cpp_as_it_does_here(case: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = random_model(config_of(CASES[case], tokenizer.vocab_size + 3))
    ids = torch.randint(16, tokenizer.vocab_size, (20,), generator=torch.Generator().manual_seed(1)).tolist()
    with LlamaCpp(file_for(tokenizer, tmp_path, model), context=128) as running:
        there = running.next_logprobs(ids, 20)
        answer = running.greedy(ids, 64, stop=False)
    here = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
    # It looks GELU up in a table of half-precision numbers.
    tolerance = 1e-2 if case.startswith(GELU) else 1e-4
    assert max(abs(float(here[id_]) - value) for id_, value in there.items()) < tolerance
    assert len(there) == 20 and here.std() > 0.5
    assert answer == greedy(model, ids, 64, list(tokenizer.stop_ids))


@pytest.mark.parametrize("kind", ["byte_bpe", "sentencepiece_bpe"])
def test_thousand_strings_have_the_same_ids(kind: str, tmp_path: Path) -> None:
    tokenizer = train_tokenizer(texts(), LEAST_VOCAB_SIZE + 1200, kind=kind)
    # In SentencePiece's alphabet "▁" is the blank; the note of the export says so.
    strings = [text for text in STRINGS if kind == "byte_bpe" or "▁" not in text]
    assert len(strings) > 950
    with LlamaCpp(file_for(tokenizer, tmp_path), context=512) as running:
        assert different(running, tokenizer, strings) == []


FOREIGN = {name: list(steps) for steps, name in CUTS.items() if name != "deepseek-coder"}
FOREIGN |= {
    "dbrx": FOREIGN["llama-bpe"],
    "cl100k": [ENCODINGS["cl100k_base"].cut],
}


@pytest.mark.parametrize("name", FOREIGN)
def test_other_programs_cuts_have_the_same_ids(name: str, tmp_path: Path) -> None:
    """The names of llama.cpp's cuts: byte-level BPE with the rule of GPT-2, Qwen2, Llama 3, SmolLM and tiktoken's."""
    backend = tokenizers.Tokenizer(models.BPE(ignore_merges=name in ("llama-bpe", "cl100k")))
    steps: list[Any] = []
    for rule in FOREIGN[name]:
        if rule == "digits":
            steps.append(pre_tokenizers.Digits(individual_digits=True))
        elif name in ("gpt-2", "smollm"):
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True))
        else:
            steps.append(pre_tokenizers.Split(tokenizers.Regex(rule), behavior="isolated"))
            steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    backend.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|endoftext|>", "<|pad|>"]
    backend.train_from_iterator(
        texts(),
        trainers.BpeTrainer(vocab_size=1500, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = Tokenizer(backend.to_str(), {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
    with LlamaCpp(file_for(tokenizer, tmp_path), context=512) as running:
        assert different(running, tokenizer, STRINGS) == []


def test_llama_s_own_kind_of_sentencepiece_has_the_same_ids(tmp_path: Path) -> None:
    """A blank of its own before the text, byte fallback, control tokens in angle brackets."""
    import io

    import sentencepiece

    proto = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(line for text in texts() for line in text.splitlines()), model_writer=proto, model_type="bpe",
        vocab_size=1500, byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        character_coverage=0.98, minloglevel=2, hard_vocab_limit=False,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(proto.getvalue())
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.dummy_blank == "each"
    with LlamaCpp(file_for(tokenizer, tmp_path), context=512) as running:
        assert different(running, tokenizer, [text for text in STRINGS if "▁" not in text]) == []


CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "question": [{"role": "user", "content": "你好，1+1=? 🌱\n\n<|im_end|>"}],
    "turns": [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "def f(x):\n    return x"},
    ],
}


LLAMA3_MARKS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


@pytest.mark.parametrize(
    "name", ["chatml", "qwen3", "llama3", "llama2", "alpaca", "plain", "chatml with a system message"]
)
def test_chat_template_there_gives_the_prompt_s_ids(name: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = load_template(name.split(" ")[0])
    if " " in name:
        source = with_default_system(source, "你是“助手”。")
    if name == "llama3":
        tokenizer = extend(tokenizer, LLAMA3_MARKS)
    for bos in (None, "<|begin_of_text|>" if name == "llama3" else "<|reserved_0|>"):
        config = {**tokenizer.config, "bos_token": bos, "chat_template": source}
        own = Tokenizer(json.dumps(tokenizer.backend_json), config)
        with LlamaCpp(file_for(own, tmp_path), context=512) as running:
            for asked in CONVERSATIONS.values():
                asked = [dict(m, content=m["content"].replace("<|im_end|>", "")) for m in asked]
                ours = ChatTemplate.of(own).render(asked, add_generation_prompt=True)
                assert running.prompt(asked) == ours.text
                assert running.encode(running.prompt(asked), control=True, start=True) == ours.ids


@torch.no_grad()
def test_generation_ends_at_every_stop_token(tokenizer: Tokenizer, tmp_path: Path) -> None:
    # The end of a turn that only the chat template names stops there, too.
    own = extend(tokenizer, LLAMA3_MARKS).with_chat_template(load_template("llama3"))
    for used, stop in ((tokenizer, "<|im_end|>"), (tokenizer, "<|endoftext|>"), (own, "<|eot_id|>")):
        model = Transformer(config_of({"n_heads": 4, "tie_embeddings": False}, used.vocab_size)).init_weights(0)
        model.embed_tokens.weight[:, 0] = 10.0  # channel 0 is large whatever the input, and only the stop listens to it
        model.lm_head.weight.zero_()
        model.lm_head.weight[used.token_id(stop), 0] = 1.0
        with LlamaCpp(file_for(used, tmp_path, model), context=128) as running:
            ids = used.encode("the river")
            assert [id_ for id_ in running.greedy(ids, 8) if id_ != used.token_id(stop)] == []
            assert len(running.greedy(ids, 8)) <= 1
            assert len(running.greedy(ids, 8, stop=False)) == 8


@pytest.mark.parametrize("kind", ["f16", "bf16", "q8_0", "q4_0"])
@torch.no_grad()
def test_smaller_types_run_there(kind: str, tokenizer: Tokenizer, tmp_path: Path) -> None:
    from sproutlm.export.compare import check_gguf

    model = random_model(config_of(CASES["llama-untied"], tokenizer.vocab_size))
    for parameter in model.parameters():  # calmer, so that rounding is not blown up from layer to layer
        parameter.mul_(0.3)
    write_gguf(model.config, model.state_dict(), tokenizer, tmp_path / "x.gguf", kind=kind)
    report = check_gguf(model.config, model.state_dict(), tokenizer, tmp_path / "x.gguf", kind)
    share = {"f16": 0.002, "bf16": 0.02, "q8_0": 0.03, "q4_0": 0.5}[kind]
    assert 0 < report["here"] < share * report["largest_logit"]
    assert report["llama_cpp"] < 0.3 and report["other_ids"] == 0


def test_file_that_llama_cpp_refuses_is_a_sentence(tmp_path: Path) -> None:
    from sproutlm.errors import SproutError

    (tmp_path / "bad.gguf").write_bytes(b"GGUF and nothing else")
    with pytest.raises(SproutError, match="llama.cpp cannot load this file"):
        LlamaCpp(tmp_path / "bad.gguf")
