"""Bytes by part, for training and for inference. The one memory model of ``sprout plan`` and ``--dry-run``.

Weights, gradients and optimizer state are counted; activations, the update's working room and a prompt's are estimates:
what the blocks keep for their backward pass, read off the code, with fused attention. On a CPU the C library's heap keeps
gaps between them (``HEAP_GAPS``, measured), and every stream has activations of its own.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch

from ..config.model import ModelConfig
from ..model.attention import in_blocks
from ..model.block_attention import KEPT, block_rows
from ..train.adamw8 import state_bytes
from ..train.loss import VOCAB_BLOCK, chunk_tokens
from ..train.muon import STACK_ENTRIES, variance_shape
from ..train.optim import in_bytes, is_block_matrix, is_expert_bias
from .count import parameters, used_share

Compute = Literal["bf16", "fp16", "float32"]
Optimizer = Literal["muon", "adamw"]
Checkpointing = Literal["none", "blocks", "selective"]
StateType = Literal["float32", "int8"]
BYTES: dict[Compute, int] = {"bf16": 2, "fp16": 2, "float32": 4}
TORCH: dict[Compute, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}
ANSWERING: tuple[Compute, ...] = ("bf16", "float32")  # types that answers are planned in
MASTER = 4  # bytes of a float32 master weight, gradient or state
# Python, torch and its libraries: resident memory of the process before a model is made, about 350 MB; a CUDA context
# takes as much of a card.
PROGRAM = 350 * 2**20
# The same to the end of a run on a CPU, when the plot's library is there, too: measured with a model of next to nothing.
PROGRAM_CPU = 390 * 2**20
# A run on a CPU keeps what it frees in the C library's heap (train/allocator.py), and what comes next fills the freed places
# only in part: the share of activations and logits that lies idle beside them at the peak, as benchmarks/memory.py measured it
# (docs/results/memory.md). Blocks above LARGE_BLOCK find no freed place that is large enough.
# By how a step is made: of one micro-batch, of several in turn (whose gradients lie among the freed places), side by side.
HEAP_GAPS: dict[str, dict[str, float]] = {
    "one": {"bf16": 0.2, "float32": 0.84},
    "several": {"bf16": 0.5, "float32": 0.84},
    "side by side": {"bf16": 0.2, "float32": 0.4},  # their peaks do not fall together
}
# The same of blocks that are computed again, whose tensors come and go once more: `sprout plan --probe` on three shapes of
# 20 to 50 M parameters; with them bf16 is within 7 %, float32 within 13 % of the measured peak.
HEAP_GAPS_AGAIN: dict[str, dict[str, float]] = {
    "one": {"bf16": 0.2, "float32": 0.9},
    "several": {"bf16": 0.8, "float32": 2.2},
    "side by side": HEAP_GAPS["side by side"],
}
LARGE_BLOCK = 32 * 2**20
MICRO_BYTES = 256 * 2**20
MICRO_TOKENS = 1024
Device = Literal["card", "cpu"]


@dataclass(frozen=True)
class Setting:
    """What of a recipe decides the memory of a step. ``rows`` of ``seq_len`` tokens go through the model at once."""

    rows: int
    seq_len: int
    compute: Compute = "bf16"
    optimizer: Optimizer = "muon"
    document_mask: bool = True
    device: Device = "card"
    streams: int = 1  # micro-batches side by side, each of ``rows``: a CPU's
    checkpointing: Checkpointing = "none"  # what a block keeps: all, its input and products (selective), or its input
    loss_chunk: int = 0  # tokens whose logits exist at once; 0 = as the loss chooses
    step_tokens: int = 0  # of a whole optimizer step; 0 = not known
    state_dtype: StateType = "float32"  # of AdamW's averages
    async_save: bool = False  # checkpoints are written from a copy, in the host's memory

    @property
    def tokens(self) -> int:
        return self.rows * self.seq_len


def training_memory(config: ModelConfig, setting: Setting) -> dict[str, int]:
    """Bytes by part at the highest point of a training step."""
    total = sum(p.numel() for _, p in parameters(config))
    size = BYTES[setting.compute]
    copies = 0 if setting.compute == "float32" else total * size  # the rounded weights; the masters stay beside them
    streams, on_cpu = setting.streams, setting.device == "cpu"
    activations, logits = streams * _activations(config, setting), streams * _logits(config, setting)
    # Gradients in the compute type come while activations go, so that only what exceeds their room counts: all of it, but
    # for the block that is computed again at last. Side by side each micro-batch has gradients of its own until all are
    # added up.
    low = streams * total * size if streams > 1 else copies
    again = 0 if setting.checkpointing == "none" else setting.tokens * max(_layers(config, setting))
    parts = {
        "parameters": total * MASTER + copies,
        "gradients": total * MASTER + (low if streams > 1 else max(0, low - (activations - again) - logits)),
        "optimizer": _optimizer_state(config, setting),
        "activations": activations,
        "logits": logits,
        # The update runs when activations and logits are gone: only what it needs beyond their room counts.
        "update": _large_update(config, setting) if on_cpu else max(0, _update(config, setting) - activations - logits),
        "program": PROGRAM_CPU if on_cpu else PROGRAM,
    }
    if on_cpu:
        if setting.async_save:
            parts["checkpoint_copy"] = total * MASTER + parts["optimizer"]
        how = "side by side" if streams > 1 else "several" if setting.step_tokens > setting.tokens else "one"
        gaps = HEAP_GAPS_AGAIN if setting.checkpointing == "blocks" else HEAP_GAPS
        parts["gaps"] = int(gaps[how]["float32" if setting.compute == "float32" else "bf16"] * (activations + logits))
    return parts


def step_bytes(config: ModelConfig, setting: Setting) -> int:
    """All parts of ``training_memory`` together."""
    return sum(training_memory(config, setting).values())


def bounded_rows(config: ModelConfig, setting: Setting) -> int:
    """Rows of a micro-batch on a CPU, at most ``setting.rows``: fewer, in even parts, where what they keep for the backward
    pass is more than ``MICRO_BYTES``, but not below ``MICRO_TOKENS``.

    Measured at 26 M parameters and rows of 512, one thread: halves of 1,024 tokens take 4 % longer than 2,048 at once, with
    half the activations; parts of 512 tokens 12 %.
    """
    one = _activations(config, replace(setting, rows=1))
    most = max(MICRO_BYTES // one, MICRO_TOKENS // setting.seq_len, 1)
    parts = -(-setting.rows // most)
    return -(-setting.rows // parts)


def _optimizer_state(config: ModelConfig, setting: Setting) -> int:
    """AdamW: two numbers per parameter, of four bytes or of one. Muon: one, and one per row or column; its embeddings and
    vectors are AdamW's."""
    found = 0
    for name, parameter in parameters(config):
        if is_expert_bias(name):
            continue  # moved by the sign of its gradient alone
        if setting.optimizer == "muon" and is_block_matrix(name, parameter):
            found += MASTER * (parameter.numel() + prod(variance_shape(parameter.shape)))
        elif in_bytes(parameter, setting.state_dtype):
            found += state_bytes(parameter.numel())
        else:
            found += MASTER * 2 * parameter.numel()
    return found


def _update(config: ModelConfig, setting: Setting) -> int:
    """The most that updating the matrices of one shape takes: see ``_update_blocks``."""
    return max((sum(blocks) for blocks in _update_blocks(config, setting)), default=0)


def _large_update(config: ModelConfig, setting: Setting) -> int:
    """The same of blocks that find no room in the heap."""
    return max((sum(b for b in blocks if b > LARGE_BLOCK) for blocks in _update_blocks(config, setting)), default=0)


def _update_blocks(config: ModelConfig, setting: Setting) -> list[list[int]]:
    """Muon stacks all matrices of one shape: the float32 stack, four of its size in the compute type while x becomes
    a x + (b G + c G G) x, and three Gram matrices. AdamW is fused and needs nothing."""
    if setting.optimizer != "muon":
        return []
    size = BYTES[setting.compute]
    stacks: dict[tuple[int, ...], int] = defaultdict(int)
    for name, parameter in parameters(config):
        if is_block_matrix(name, parameter):
            stacks[tuple(parameter.shape)] += 1
    found = []
    for (*stack, rows, cols), number in stacks.items():
        number = min(number, max(1, STACK_ENTRIES // (prod(stack) * rows * cols)))
        one, gram = number * prod(stack) * rows * cols, number * prod(stack) * min(rows, cols) ** 2
        found.append([MASTER * one, *[size * one] * 4, *[size * gram] * 3])
    return found


def _layers(config: ModelConfig, setting: Setting) -> list[int]:
    """Bytes per token that each block keeps when it keeps everything."""
    size, seq_len = BYTES[setting.compute], setting.seq_len
    layers = [_block_bytes(config, layer, size, setting) for layer in range(config.n_layers)]
    grouped = config.n_kv_heads != config.n_heads
    if not config.attention_softcap and in_blocks(setting.device, TORCH[setting.compute], grouped, seq_len, seq_len):
        layers = [layer + _block_attention(config, seq_len) * size for layer in layers]
    return layers


def _products(config: ModelConfig, layer: int, setting: Setting) -> int:
    """Channels per token of what ``model/recompute.py`` keeps of a block beside its input."""
    if setting.checkpointing != "selective" or config.has_experts(layer):
        return 0
    q, kv = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
    grouped, seq_len = config.n_kv_heads != config.n_heads, setting.seq_len
    blocks = in_blocks(setting.device, TORCH[setting.compute], grouped, seq_len, seq_len)
    fused = 0 if blocks or config.attention_softcap else q
    return q + 2 * kv + fused + config.dim + (2 if config.gated else 1) * config.ffn_dim + config.dim


def _activations(config: ModelConfig, setting: Setting) -> int:
    size, tokens = BYTES[setting.compute], setting.tokens
    layers = _layers(config, setting)
    if setting.checkpointing != "none":  # what each keeps, and one block at a time with everything
        inputs = [(config.dim + _products(config, layer, setting)) * size for layer in range(config.n_layers)]
        layers = [max(layers), *inputs]
    # All blocks keep theirs; gradients of the widest one pass through while it goes backward, in the places of what it frees
    # where it is one that was just made again. Then: the input of the last norm, its output, the trained positions of it, and
    # their gradient.
    through = max(layers) // (2 if setting.checkpointing == "none" else 8)
    kept = tokens * (sum(layers) + through + (4 * config.dim + _research_channels(config)) * size)
    windows = {config.window_of(layer) for layer in range(config.n_layers)}
    masks = [setting.rows if setting.document_mask else 1 for w in windows if setting.document_mask or 0 < w]
    # Additive, in the compute type; while it is made also as two of bool.
    return kept + sum(masks) * setting.seq_len**2 * (size + 2)


def _research_channels(config: ModelConfig) -> int:
    """Channels per token that the parts of ``model/research.py`` keep, over all layers."""
    parts = set(config.research)
    # Each layer's input before its factor; what a skip leads on; the embeddings, and those before them.
    vectors = config.n_layers * ("residual_lambdas" in parts) + len(config.skip_from)
    vectors += ("x0_lambdas" in parts) + 2 * ("smear" in parts)
    return vectors * config.dim + len(config.value_layers) * config.n_kv_heads * config.head_dim


def _block_bytes(config: ModelConfig, layer: int, size: int, setting: Setting) -> int:
    """Bytes per token that one block keeps between its forward and its backward pass."""
    dim, q = config.dim, config.n_heads * config.head_dim
    kv = config.n_kv_heads * config.head_dim
    channels = 4 * dim  # inputs and outputs of the two norms
    channels += q + 2 * kv + 2 * q  # rotated q and k, v; attention's output, and its copy in the order of channels
    channels += (q + kv) if config.qk_norm else 0
    channels += 2 * dim if config.post_norm else 0
    if config.attention_softcap:
        channels += 2 * config.n_heads * setting.seq_len  # capped scores and weights: no fused kernel has a cap
    per_token = channels * size + (2 * dim if config.dropout else 0)
    if config.norm_offset:
        per_token += 2 * dim * (4 if config.post_norm else 2)  # Gemma's norms run in float32
    if not config.has_experts(layer):
        return per_token + _mlp_channels(config, config.ffn_dim) * size
    moe = config.moe
    assert moe is not None
    if setting.device == "cpu" and config.activation == "silu":  # expert by expert: gate and up of each choice
        routed = moe.top_k * 2 * moe.expert_dim * size
    else:
        routed = (
            moe.top_k * (2 * dim + _mlp_channels(config, moe.expert_dim)) * size
        )  # and gathered rows, results to weigh
    router = 3 * moe.n_experts * 4  # logits, scores and their sum, in float32
    shared = _mlp_channels(config, moe.shared_dim) * size
    return per_token + routed + router + shared + (dim * size if moe.shared_gate else 0)


def _block_attention(config: ModelConfig, seq_len: int) -> int:
    """Channels per token that attention in blocks keeps beside the fused kernel's: the scaled queries, and of rows up
    to ``KEPT`` tokens the weights, of which each block has those up to its last query."""
    block = block_rows(seq_len)
    seen = sum(min(start + block, seq_len) for start in range(0, seq_len, block)) / -(-seq_len // block)  # on average
    return config.n_heads * (config.head_dim + (int(seen) if seq_len <= KEPT else 0))


def _mlp_channels(config: ModelConfig, width: int) -> int:
    """Gate, its activation, up, and their product; without a gate up and its activation (squared: one more)."""
    return width * (4 if config.gated else 3 if config.activation == "relu2" else 2)


def _chunk(config: ModelConfig, setting: Setting) -> int:
    """Tokens whose logits exist at once."""
    dtype = TORCH[setting.compute]
    return min(setting.tokens, setting.loss_chunk or chunk_tokens(config.vocab_size, dtype))


def _logits(config: ModelConfig, setting: Setting) -> int:
    """One chunk of logits, which become their gradient in place, and the gradient of the head: summed in float32 where there
    are several chunks, a block's share and the rounded whole beside it. A card takes a chunk's float32 values at once: with
    the exponentials, twice; a CPU a few rows of them, which the processor's cache holds."""
    size, chunk = BYTES[setting.compute], _chunk(config, setting)
    rounds = 0 if setting.device == "cpu" else (2 if size < MASTER else 1) * MASTER
    several = setting.tokens > chunk
    head = (MASTER if several else size) + (size if several and size < MASTER else 0)
    block = min(config.vocab_size, VOCAB_BLOCK) * config.dim * size
    return chunk * config.vocab_size * (size + rounds) + config.vocab_size * config.dim * head + block


def kv_bytes_per_token(config: ModelConfig, compute: Compute) -> int:
    """Keys and values of one token in all layers. A windowed layer's are kept whole, as our cache does; for ``smear`` the
    token's id beside them."""
    ids = 8 if "smear" in config.research else 0
    return 2 * config.n_layers * config.n_kv_heads * config.head_dim * BYTES[compute] + ids


def inference_memory(config: ModelConfig, rows: int, context: int, compute: Compute) -> dict[str, int]:
    """Bytes by part while ``rows`` answers of ``context`` tokens each are written; ``prompt`` is what reading one of that
    length at once needs (an estimate)."""
    size, tokens = BYTES[compute], rows * context
    total = sum(p.numel() for _, p in parameters(config))
    used = [p.numel() / config.dim * used_share(config, n) for n, p in parameters(config) if n.startswith("layers.")]
    # A token's channels in the widest part of a block: in, out and residual, and the part's own.
    widest = 4 * config.dim + 3 * max(round(max(used)), (config.n_heads + 2 * config.n_kv_heads) * config.head_dim)
    masks = len({config.window_of(layer) for layer in range(config.n_layers)})
    return {
        "parameters": total * size,
        "kv_cache": tokens * kv_bytes_per_token(config, compute),
        "prompt": tokens * widest * size + masks * context**2 * (size + 2) + rows * config.vocab_size * 8,
        "program": PROGRAM,
    }
