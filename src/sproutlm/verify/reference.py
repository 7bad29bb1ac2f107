"""transformers as the reference, where it is installed: the same tiny shapes in its own classes."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from .cases import SIZES, Case
from .tiny import randomise

CLASSES = {
    "qwen3": "Qwen3",
    "llama": "Llama",
    "qwen2": "Qwen2",
    "mistral": "Mistral",
    "gemma": "Gemma",
    "gemma2": "Gemma2",
    "qwen3_moe": "Qwen3Moe",
    "mixtral": "Mixtral",
    "dots1": "Dots1",
    "qwen2_moe": "Qwen2Moe",
}
NAMES = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "ffn_dim": "intermediate_size"}
NAMES |= {"vocab_size": "vocab_size", "max_seq_len": "max_position_embeddings"}
GPT2_NAMES = {"dim": "n_embd", "n_layers": "n_layer", "ffn_dim": "n_inner", "max_seq_len": "n_positions"}
ABSENT = (
    "transformers is not installed, so nothing was compared with it; for that: pip install 'transformers>=5.0', "
    "and run this again"
)


@cache
def library() -> Any | None:
    """The transformers module; None where it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        return None
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers


def version() -> str | None:
    found = library()
    return None if found is None else str(found.__version__)


def their_classes(family: str) -> tuple[Any, Any]:
    """Config and model class of a family."""
    if family == "gpt2":
        return library().GPT2Config, library().GPT2LMHeadModel  # type: ignore[union-attr]
    return getattr(library(), CLASSES[family] + "Config"), getattr(library(), CLASSES[family] + "ForCausalLM")


def their_config(case: Case) -> Any:
    assert case.theirs is not None
    names = {**NAMES, **GPT2_NAMES} if case.family == "gpt2" else NAMES
    fields: dict[str, Any] = {names[name]: value for name, value in SIZES.items()} | {"tie_word_embeddings": True}
    fields["pad_token_id"] = None  # a padding row would get no gradient: Gemma's default is token 0
    if case.family == "gpt2":
        fields["layer_norm_epsilon"] = 1e-5
    else:
        fields["rms_norm_eps"] = 1e-6
    return their_classes(case.family)[0](**{**fields, **case.theirs})


def their_model(case: Case) -> Any:
    """A transformers model of this shape, every parameter random, in eval mode."""
    model = their_classes(case.family)[1](their_config(case)).eval()
    randomise(model, case.config().norm_offset)
    return model


def read_by_them(folder: Path) -> tuple[Any, dict[str, Any]]:
    """AutoModelForCausalLM without code from the folder, and what it says of keys missing, unexpected or misshapen."""
    model, report = library().AutoModelForCausalLM.from_pretrained(  # type: ignore[union-attr]
        folder, trust_remote_code=False, output_loading_info=True
    )
    return model.eval(), {kind: sorted(map(str, keys)) for kind, keys in report.items() if keys}
