"""One dial for a whole recipe: width, heads, rates, batch and length of a run, all from ``depth``.

Every constant stands in the table below. Two points of it are held: what was measured here on small models, and what the
public speedruns report at GPT-2's small size (``ANCHORS`` says which is which). Between them everything moves evenly in the
logarithm of the width; below the first nothing changes; above the last the published rules go on:

    embedding and head   rate * sqrt(768 / width)
    batch                tokens ** 0.383, of tokens that grow as width ** 3 (Bergsma et al. 2025, arXiv:2505.13738)
    matrices, scalars    the rate stays

Published, too, and for a batch that a recipe gives itself: every rate * sqrt(batch / the table's batch). From 2**19 tokens down to
4,096 that rule would make 0.02 into 0.0018, and what was measured here at 4,096 and width 192 was 0.02: batch and width shrink
together along the dial. So the rule holds for a batch beside the dial's own, never along the dial.

What is measured here: the points at widths 192 and 320 (docs/results/recipe.md), with one rate for the embedding, which is
read through a norm, and for the head, which is a matrix of its own. The published embedding rate (0.3) begins from larger
rows and is not taken over. Not measured: every point between, and all above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

BOTH = "depth and preset each give a whole shape; remove one of the two"
MOST = 64  # a width of 4,096: beyond it shapes are chosen one by one


@dataclass(frozen=True)
class Anchor:
    """A width at which the values are known; ``why``: from where. Rates are Muon's for matrices, AdamW's for the rest."""

    width: int
    batch_tokens: int
    lr: float
    embedding_lr: float
    scalar_lr: float
    weight_decay: float
    why: str


# --- the table ------------------------------------------------------------------------------------------------------------

ANCHORS: tuple[Anchor, ...] = (
    Anchor(64, 2048, 0.02, 0.006, 0.006, 0.0, "recipes/tiny.yaml: learns here in seconds; compared with nothing"),
    Anchor(192, 4096, 0.02, 0.006, 0.006, 0.0, "recipes/poems-zh.yaml: measured here"),
    Anchor(768, 2**19, 0.02, 0.003, 0.005, 0.0, "public speedruns: batch, matrices, scalars; embedding: sqrt(192 / 768) of ours"),
)  # fmt: skip
# How the embedding is read and what the head is: measured here (docs/results/recipe.md).
EMBEDDING: Mapping[str, bool] = {"tie_embeddings": False, "embedding_norm": True}
WIDTH_PER_LAYER = 64  # nanochat's: 12 layers of 768
HEAD_DIM, WIDE_HEAD_DIM = 64, 128
WIDE_FROM = (
    1024  # width from which heads are 128 wide and two of queries share one of keys and values, as Qwen3's smallest
)
TOKENS_PER_PARAMETER = 10  # near compute-optimal for this recipe; more where the model is to be used
BATCH_EXPONENT = 3 * 0.383  # of the width, above the last anchor
EMBEDDING_EXPONENT = -0.5  # of the width, above the last anchor


# --- the shape ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Dial:
    """What follows from ``depth``. Parameters are counted for qwen3's blocks; ``batch_tokens``, ``tokens`` in tokens."""

    depth: int
    vocab_size: int
    seq_len: int
    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    embedding_parameters: int  # with an untied head: both
    block_parameters: int  # the rest
    batch_tokens: int
    lr: float
    embedding_lr: float
    head_lr: float
    scalar_lr: float
    weight_decay: float
    tokens: int
    steps: int

    @property
    def parameters(self) -> int:
        return self.embedding_parameters + self.block_parameters


def fault_of(depth: object) -> str | None:
    """The sentence about a depth that is none; None for a good one."""
    number = whole(depth)
    if number is not None and 1 <= number <= MOST:
        return None
    return f"must be a whole number from 1 to {MOST} (got {depth!r}); each layer adds {WIDTH_PER_LAYER} to the width"


def whole(value: object) -> int | None:
    """``value`` as the whole number that it is, written as text or not; None where it is none."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().isdecimal():
        return int(value)
    return value if isinstance(value, int) else None


def ffn_width(dim: int, gated: bool = True) -> int:
    """Inner width of an MLP: 8/3 of the width with a gate, 4 without, rounded up to 64."""
    inner = dim * 8 // 3 if gated else dim * 4
    return max(-(-inner // 64) * 64, 0)


def shape(depth: int, given: Mapping[str, Any] | None = None) -> dict[str, int]:
    """Fields of a ``ModelConfig`` for ``depth``. Sizes in ``given`` come first, and the others follow from them."""
    given = {name: number for name, value in (given or {}).items() if (number := whole(value) or 0) > 0}
    dim = given.get("dim") or _width(depth)
    found = {"dim": dim, "n_layers": given.get("n_layers") or depth}
    head_dim = given.get("head_dim") or _head_dim(dim)
    heads = given.get("n_heads") or max(1, dim // head_dim)
    if "n_heads" not in given or "head_dim" in given:
        found["head_dim"] = head_dim
    shared = head_dim >= WIDE_HEAD_DIM and heads % 2 == 0
    found |= {"n_heads": heads, "n_kv_heads": given.get("n_kv_heads") or (heads // 2 if shared else heads)}
    return found


def _width(depth: int) -> int:
    """A multiple of the head, and of two heads where keys are shared by two: the nearest."""
    width = WIDTH_PER_LAYER * depth
    step = 2 * WIDE_HEAD_DIM if width >= WIDE_FROM else HEAD_DIM
    return (2 * width + step) // (2 * step) * step


def _head_dim(dim: int) -> int:
    """64, from ``WIDE_FROM`` 128; for a width that these do not divide 32, and for any other the whole width."""
    sizes = (WIDE_HEAD_DIM, HEAD_DIM, 32) if dim >= WIDE_FROM else (HEAD_DIM, 32)
    return next((size for size in sizes if dim % size == 0), dim)


# --- rates and batch --------------------------------------------------------------------------------------------------------


def at_width(width: int, name: str) -> float:
    """The table's ``name`` (a field of ``Anchor``) at a width, not rounded."""
    first, last = ANCHORS[0], ANCHORS[-1]
    if width <= first.width:
        return getattr(first, name)
    if width >= last.width:
        exponent = {"batch_tokens": BATCH_EXPONENT, "embedding_lr": EMBEDDING_EXPONENT}.get(name, 0.0)
        return getattr(last, name) * (width / last.width) ** exponent
    low, high = next((a, b) for a, b in zip(ANCHORS, ANCHORS[1:], strict=False) if a.width <= width <= b.width)
    share = math.log(width / low.width) / math.log(high.width / low.width)
    begin, end = getattr(low, name), getattr(high, name)
    if begin <= 0 or end <= 0:  # a weight decay of none has no logarithm
        return begin + share * (end - begin)
    return begin * (end / begin) ** share


def own_batch(width: int, seq_len: int) -> int:
    """Tokens of a step: the nearest power of two (the lesser of two as near), in whole rows of ``seq_len``."""
    power = 2 ** math.ceil(math.log2(at_width(width, "batch_tokens")) - 0.5 - 1e-9)
    return max(1, round(power / seq_len)) * seq_len


def rates(width: int, seq_len: int, batch_tokens: int | None = None) -> dict[str, float]:
    """``optimizer`` settings at a width, to two digits; ``batch_tokens``: a batch in place of the table's own."""
    own = own_batch(width, seq_len)
    factor = math.sqrt((batch_tokens or own) / own)
    found = {name: at_width(width, name) * factor for name in ("lr", "embedding_lr", "scalar_lr")}
    found["weight_decay"] = at_width(width, "weight_decay")
    return {name: float(f"{value:.2g}") for name, value in found.items()}


def dial(
    depth: int,
    vocab_size: int,
    seq_len: int = 256,
    *,
    given: Mapping[str, Any] | None = None,
    batch_tokens: int | None = None,
) -> Dial:
    """Everything that follows from ``depth``; ``given``: fields of the model that a person sets, which come first.

    ValueError with a sentence where ``depth`` is none.
    """
    fault = fault_of(depth)
    if fault is not None:
        raise ValueError(f"depth {fault}")
    given = given or {}
    sizes = shape(depth, given)
    dim, heads, kv = sizes["dim"], sizes["n_heads"], sizes["n_kv_heads"]
    head_dim = sizes.get("head_dim") or dim // heads
    ffn = max(0, whole(given.get("ffn_dim")) or 0) or ffn_width(dim)
    layer = 2 * dim * heads * head_dim + 2 * dim * kv * head_dim + 3 * dim * ffn + 2 * dim + 2 * head_dim
    tables = 1 if given.get("tie_embeddings", EMBEDDING["tie_embeddings"]) else 2
    embedding, blocks = tables * vocab_size * dim, sizes["n_layers"] * layer + dim
    batch = batch_tokens or own_batch(dim, seq_len)
    found = rates(dim, seq_len, batch)
    steps = -(-TOKENS_PER_PARAMETER * (embedding + blocks) // batch)
    return Dial(
        depth=depth,
        vocab_size=vocab_size,
        seq_len=seq_len,
        **{"head_dim": head_dim, **sizes},
        ffn_dim=ffn,
        embedding_parameters=embedding,
        block_parameters=blocks,
        batch_tokens=batch,
        lr=found["lr"],
        embedding_lr=found["embedding_lr"],
        head_lr=found["embedding_lr"],  # one setting, optimizer.embedding_lr, is the rate of both
        scalar_lr=found["scalar_lr"],
        weight_decay=found["weight_decay"],
        tokens=steps * batch,
        steps=steps,
    )
