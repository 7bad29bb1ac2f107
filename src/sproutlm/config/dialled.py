"""``model: {depth: N}`` in a recipe: what the dial chooses is written into the recipe before anything is checked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .data import DataConfig, TokenizerConfig
from .depth import BOTH, EMBEDDING, Dial, dial, fault_of, whole
from .model import ModelConfig
from .strict import Fault, refuse

LENGTHS = ("steps", "tokens", "epochs")
SHAPE = ("dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim")
RATES = ("lr", "embedding_lr", "scalar_lr", "weight_decay")


def depth_of(values: Mapping[str, Any]) -> Any:
    """``model.depth`` of a recipe's fields; None where it has none."""
    model = values.get("model")
    return model.get("depth") if isinstance(model, dict) else None


def dialled(values: dict[str, Any]) -> dict[str, Any]:
    """A recipe's fields with what its ``model.depth`` chooses where they say nothing; without a depth as they are."""
    filled, faults = _fill(values)
    if values.get("train") is None:  # it would be reported as missing once the depth is taken out
        faults = [Fault((*fault.keys, "train"), fault.message) for fault in faults]
    refuse(faults)
    return filled


def chosen(values: Mapping[str, Any]) -> str | None:
    """A sentence with all that ``model.depth`` chose in a recipe that is valid, for a person to see; None without a depth."""
    depth = depth_of(values)
    if depth is None or fault_of(depth):
        return None
    filled, faults = _fill(dict(values))
    if faults:
        return None
    given, model = values["model"], ModelConfig.model_validate(values["model"])
    found = {f"model.{name}": getattr(model, name) for name in SHAPE if not given.get(name)}
    found |= {f"model.{name}": getattr(model, name) for name in EMBEDDING if given.get(name) is None}
    for section in ("optimizer", "train", "model"):
        before = values.get(section) or {}
        new = {n: v for n, v in filled.get(section, {}).items() if before.get(n) is None}
        found |= {f"{section}.{name}": value for name, value in new.items() if name != "depth"}
    listed = " ".join(f"{key}={value}" for key, value in found.items())
    return f"model.depth={depth} chose {listed}; what the recipe gives itself comes first (see: sprout plan --depth {depth})"


def notes(document: Mapping[str, Any]) -> Iterator[str]:
    """``chosen`` for a recipe, and for every training stage of one with stages."""
    stages = document.get("stages")
    recipes = [document, *(stage.get("recipe") for stage in stages or [] if isinstance(stage, dict))]
    for one in recipes:
        sentence = chosen(one) if isinstance(one, dict) else None
        if sentence is not None:
            yield sentence


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A section as a dictionary; one that is missing, or no section, is empty: its own check says what is wrong."""
    value = values.get(name)
    return dict(value) if isinstance(value, dict) else {}


def _seq_len(values: Mapping[str, Any]) -> int:
    number = whole(_section(values, "data").get("seq_len"))
    return number if number and number > 1 else DataConfig.model_fields["seq_len"].default


def _vocabulary(values: Mapping[str, Any]) -> int | None:
    """Ids that the embedding will have; None where a tokenizer's folder decides it."""
    tokenizer = values.get("tokenizer")
    given = whole(_section(values, "model").get("vocab_size"))
    if given:
        return given
    if isinstance(tokenizer, str) or _section(values, "tokenizer").get("path"):
        return None
    stated = whole(_section(values, "tokenizer").get("vocab_size"))
    return stated if stated and stated > 0 else TokenizerConfig.model_fields["vocab_size"].default


def _dial(values: Mapping[str, Any]) -> Dial:
    batch = whole(_section(values, "train").get("batch_tokens"))
    depth = whole(depth_of(values))
    assert depth is not None
    model, batch = _section(values, "model"), batch if batch and batch > 0 else None
    return dial(depth, _vocabulary(values) or 1, _seq_len(values), given=model, batch_tokens=batch)


def _fill(values: dict[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    depth = depth_of(values)
    if depth is None:
        return values, []
    model, train, optimizer = (_section(values, name) for name in ("model", "train", "optimizer"))
    if model.get("preset") is not None:
        return values, [Fault(("model.depth", "model.preset"), BOTH)]
    fault = fault_of(depth)
    if fault is not None:
        return values, [Fault(("model.depth",), fault)]
    found, faults = _dial(values), list[Fault]()
    if values.get("init_from") not in (None, "random"):
        faults.append(
            Fault(
                ("model.depth", "init_from"),
                "depth is for a model from nothing, and init_from gives a trained one with its shape; remove model.depth",
            )
        )
    if values.get("optimizer") is None or isinstance(values["optimizer"], dict):
        if optimizer.get("name", "muon") == "muon":
            optimizer = {name: getattr(found, name) for name in RATES} | optimizer
        elif optimizer.get("name") == "adamw" and "lr" not in optimizer:
            faults.append(
                Fault(
                    ("optimizer.lr", "optimizer.name", "model.depth"),
                    "missing; the rates that depth chooses are Muon's, so give AdamW's own, such as 0.002",
                )
            )
        values = values | {"optimizer": optimizer}
    if values.get("train") is None or isinstance(values["train"], dict):
        train = {"batch_tokens": found.batch_tokens} | train
        if all(train.get(name) is None for name in LENGTHS):
            train["tokens"] = found.tokens
            faults += _no_length(values)
        values = values | {"train": train}
    if model.get("max_seq_len") is None and found.seq_len > 512:  # the default holds 512
        values = values | {"model": model | {"max_seq_len": found.seq_len}}
    return values, faults


def _no_length(values: Mapping[str, Any]) -> list[Fault]:
    """Where the parameters are not known here, neither is the number of tokens that follows from them."""
    keys = ("train.tokens", "train.steps", "train.epochs", "model.depth")
    if _section(values, "model").get("moe") is not None:
        return [Fault((*keys, "model.moe"), "missing; depth chooses no length for a mixture of experts: give one")]
    if _vocabulary(values) is None:
        return [
            Fault(
                (*keys, "tokenizer.path"),
                "missing; depth chooses it by the number of parameters, and the vocabulary is not known yet; give "
                "model.vocab_size (that of the tokenizer), or train.tokens, steps or epochs",
            )
        ]
    return []
