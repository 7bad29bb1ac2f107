"""What was written, loaded again and compared with the model it was made from: the largest difference of a logit."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..config.model import ModelConfig
from ..errors import CheckFailed
from ..model import Transformer
from ..model.meta import on_meta
from ..tokenizer.probe_texts import CONVERSATIONS, HARD_TEXTS, SAMPLES
from .fold import folded

if TYPE_CHECKING:
    from ..tokenizer.tokenizer import Tokenizer

LENGTH = 32
MOST_LLAMA_CPP = 0.02  # it looks GELU up in a table of half-precision numbers
MOST = 1e-3  # between two programs with the same float32 weights, relative to the largest logit


def build(config: ModelConfig, state: Mapping[str, Tensor]) -> Transformer:
    """A float32 model of these weights, in eval mode."""
    model = on_meta(config)
    model.load_state_dict({n: t.to(torch.float32) for n, t in state.items()}, strict=True, assign=True)
    return model.eval()


def probe_ids(config: ModelConfig, tokenizer: Tokenizer | None) -> Tensor:
    """(2, length) ids to compare on: the same ones for the same model."""
    size = config.vocab_size if tokenizer is None else tokenizer.vocab_size
    length = min(LENGTH, config.max_seq_len)
    return torch.randint(0, size, (2, length), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def check_folder(
    config: ModelConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer | None, out: Path
) -> dict[str, Any]:
    """Load the Hugging Face folder ``out`` here and, where it is installed, in transformers, without remote code.

    ``largest_logit`` and the largest differences: ``here`` (what the type of the file costs; 0 in float32) and
    ``transformers`` (against our own model of the same file). CheckFailed where transformers misses or does not know a
    tensor, or computes something else.
    """
    from .load import load

    ids = probe_ids(config, tokenizer)
    expected = build(config, state)(ids)
    written = load(out)[0](ids)
    report: dict[str, Any] = {"largest_logit": float(expected.abs().max()), "here": largest(written, expected)}
    if importlib.util.find_spec("transformers") is None:
        return report
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    theirs, info = AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
    )
    faults = {kind: sorted(map(str, names))[:4] for kind, names in info.items() if names}
    if faults:
        raise CheckFailed(f"{out}: transformers does not load this folder as it should: {faults}")
    report["transformers"] = largest(theirs.eval()(ids).logits, written)
    if not report["transformers"] <= MOST * max(1.0, report["largest_logit"]):
        raise CheckFailed(f"{out}: logits in transformers differ by up to {report['transformers']:.3g} from those here")
    return report


@torch.no_grad()
def check_gguf(
    config: ModelConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer, file: Path, kind: str
) -> dict[str, Any]:
    """Read a GGUF file back here and, where the ``xllamacpp`` wheel is installed, run it in llama.cpp.

    ``here``: the largest difference that the type of the file makes; ``llama_cpp``: of a log-probability, between
    llama.cpp and our own model of the same file; ``texts`` and ``other_ids``: probe texts, and those that get other ids
    there, prompts of conversations among them. CheckFailed for other ids, and for other answers of an f32 file.
    """
    from .gguf import read_weights
    from .gguf_llama_cpp import LlamaCpp, available

    ids = probe_ids(config, tokenizer)
    expected = build(config, state)(ids)
    stored, _ = folded(config, state)
    again = build(stored, read_weights(file, stored))
    logits = again(ids)
    report: dict[str, Any] = {"largest_logit": float(expected.abs().max()), "here": largest(logits, expected)}
    if not available():
        return report
    # One id less than the file's context, which may be shorter than the model's: the next one is asked for.
    context = min(LENGTH, _context_of(file))
    row = ids[0, : context - 1].tolist()
    texts = [*HARD_TEXTS.values(), *SAMPLES.values()]
    with LlamaCpp(file, context=512) as running:
        there = running.next_logprobs(row, 20)
        here = again(torch.tensor([row]))[0, -1].log_softmax(-1)
        report["llama_cpp"] = max(abs(float(here[id_]) - value) for id_, value in there.items())
        other = [text for text in texts if running.encode(text) != tokenizer.encode(text)]
        report |= {"texts": len(texts), **_prompts(running, tokenizer, other), "other_ids": len(other)}
    if kind == "f32" and not report["llama_cpp"] <= MOST_LLAMA_CPP:
        raise CheckFailed(f"{file}: log-probabilities in llama.cpp differ by up to {report['llama_cpp']:.3g} from ours")
    if other:
        raise CheckFailed(
            f"{file}: llama.cpp gives other token ids for {len(other)} of {len(texts)} texts and prompts, such as "
            f"{other[0][:60]!r}"
        )
    return report


def _context_of(file: Path) -> int:
    from .gguf import library

    fields = library().GGUFReader(file).fields
    return next(int(part.contents()) for name, part in fields.items() if name.endswith(".context_length"))


def _prompts(running: Any, tokenizer: Tokenizer, other: list[str]) -> dict[str, int]:
    """Compare what the file's chat template gives there; prompts that differ are added to ``other``."""
    from ..errors import SproutError
    from ..tokenizer.template import ChatTemplate

    if tokenizer.chat_template is None:
        return {}
    template, compared = ChatTemplate.of(tokenizer), 0
    for conversation in CONVERSATIONS:
        asked = conversation[:-1]
        try:
            ours = template.render(asked, add_generation_prompt=True)
        except SproutError:  # a template without system messages, say
            continue
        compared += 1
        prompt = running.prompt(asked)
        if running.encode(prompt, control=True, start=True) != ours.ids:
            other.append(prompt)
    return {"prompts": compared}


def largest(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())
