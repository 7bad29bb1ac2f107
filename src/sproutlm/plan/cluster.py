"""Time of a training step on cards, one or many: rates that their makers publish, bytes that move, and one fitted share.

    products    3 x the forward FLOPs of `flops.py`, and what checkpointing makes again, at `share` of the published dense rate
    traffic     what the blocks keep, PASSES times over the card's memory
    update      the optimizer's bytes over the card's memory, and Muon's products, split over all cards
    collectives weights and gradients sharded over all cards (FSDP, ZeRO-3): gathered twice, reduced once a step, over
                NVLink inside a machine and the stated link between machines; hidden behind the products up to their time

``share`` is the one figure that is fitted, on one published run; all others are held out to show the error (``check``).
Nothing here was measured on such cards by this project. Where every constant comes from: ``CONSTANTS``.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from ..config.model import ModelConfig
from ..config.presets import PRESETS
from .count import count
from .flops import attention_flops, flops, matrix_entries, muon_flops
from .memory import MASTER, PROGRAM, Checkpointing, Setting, training_memory
from .places import NAMED

# Each activation that is kept: written and read in the forward pass, read in the backward pass, its gradient written and read.
PASSES = 5
# AdamW of a float32 parameter: weight, gradient and two averages read, weight and averages written.
UPDATE_BYTES = 7 * MASTER
NVLINK = {"h100": 450e9, "h200": 450e9, "a100": 300e9}  # bytes a second in one direction, per card
LINK = 50e9  # bytes a second per card between machines, unless stated
CONSTANTS = (
    ("rates of a card", "bf16, fp8, memory", "its maker's datasheet, see `plan/places.py`"),
    ("NVLink, one direction", "450 (H100, H200), 300 (A100) GB/s", "datasheets: 900 and 600 GB/s in both directions"),
    ("link between machines", "50 GB/s a card unless --link says otherwise", "400 Gb/s a card, as in NVIDIA DGX H100"),
    ("passes over kept activations", str(PASSES), "counted: written, read, read again; gradient written, read"),
    ("bytes of an AdamW update", str(UPDATE_BYTES), "counted: 4 numbers read and 3 written, float32"),
    (
        "products made again",
        "1/2 selective, 1 full, of a forward pass",
        "torchtitan saves every other product; by definition",
    ),
    ("share of the products' rate", "fitted", "the first published run below; the others are held out"),
)


@dataclass(frozen=True)
class Cluster:
    """``nodes`` machines of ``gpus`` cards; ``link``: bytes a second per card between machines."""

    card: str
    nodes: int
    gpus: int
    link: float = LINK

    @property
    def n(self) -> int:
        return self.nodes * self.gpus


@dataclass(frozen=True)
class Published:
    """A run that others published: tokens a second and card."""

    name: str
    config: ModelConfig
    seq_len: int
    rows: int
    optimizer: str
    fp8: bool
    cluster: Cluster
    rate: float
    source: str
    recompute: float = 0.0  # share of a forward pass that checkpointing makes again


@lru_cache(maxsize=1)
def published() -> tuple[Published, ...]:
    """The run that is fitted first, then those that are held out."""
    eight, many = Cluster("h100", 1, 8), Cluster("a100", 8, 8)
    llama8, llama70 = (ModelConfig(**PRESETS["llama3.1-8b"].shape), _llama70())
    leader = "nanochat, dev/LEADERBOARD.md"
    return (
        Published("Llama 8B, 8 H100, bf16", llama8, 8192, 2, "adamw", False, eight, 6667.0,
                  "torchtitan: FSDP + compile, 2 rows a card, selective checkpointing, 77 GiB", 0.5),
        Published("nanochat d24, 8 H100, fp8", _nanochat(24), 2048, 32, "muon", True, eight, 0.98e6 / 8, "nanochat"),
        Published("nanochat d24, 8 H100, bf16", _nanochat(24), 2048, 32, "muon", False, eight,
                  16704 * 524288 / 10949 / 8, f"{leader}, run 1: 16,704 steps of 524,288 tokens in 10,949 s"),
        Published("nanochat d26, 8 H100, fp8", _nanochat(26), 2048, 32, "muon", True, eight,
                  14889 * 524288 / 10493 / 8, f"{leader}, run 2: 14,889 steps of 524,288 tokens in 10,493 s"),
        Published("Llama 8B, 64 A100, bf16", llama8, 8192, 1, "adamw", False, many, 2973.0,
                  "torchtitan, docs/performance.md: 1 row a card, selective op checkpointing; its link is not stated", 0.5),
        Published("Llama 70B, 64 A100, bf16", llama70, 8192, 1, "adamw", False, many, 331.0,
                  "torchtitan, docs/performance.md: 1 row a card, full checkpointing; its link is not stated", 1.0),
    )  # fmt: skip


def _nanochat(depth: int) -> ModelConfig:
    """64 channels a layer, heads of 128, an MLP four times as wide with squared ReLU, 2**15 ids, rows of 2,048."""
    return ModelConfig(
        family="gpt2", vocab_size=32768, dim=64 * depth, n_layers=depth, n_heads=depth // 2, max_seq_len=2048,
        ffn_dim=256 * depth, activation="relu2", tie_embeddings=False,
    )  # fmt: skip


def _llama70() -> ModelConfig:
    """Llama 3's 70B, from its published config: 80 layers of 8,192, 64 heads over 8, an MLP of 28,672."""
    return ModelConfig(
        family="llama", vocab_size=128256, dim=8192, n_layers=80, n_heads=64, n_kv_heads=8, ffn_dim=28672,
        max_seq_len=8192, tie_embeddings=False,
    )  # fmt: skip


def kept_bytes(config: ModelConfig, seq_len: int) -> float:
    """Bytes per token that the blocks keep in bf16, and its logits'."""
    rows = Setting(1, seq_len, document_mask=False)
    return training_memory(config, rows)["activations"] / seq_len + config.vocab_size * (MASTER + 2)


def device_seconds(
    config: ModelConfig,
    seq_len: int,
    bf16: float,
    memory: float,
    share: float,
    fp8: float = 0.0,
    recompute: float = 0.0,
) -> float:
    """Seconds per token of forward and backward pass on one card. ``fp8``: rate of the linear layers' products, 0 = bf16's."""
    linear = (3 + recompute) * 2 * matrix_entries(config)
    attention = 3 * attention_flops(config, seq_len)
    return (linear / (fp8 or bf16) + attention / bf16) / share + PASSES * kept_bytes(config, seq_len) / memory


def step(
    config: ModelConfig,
    seq_len: int,
    rows: int,
    cluster: Cluster,
    share: float,
    *,
    optimizer: str = "adamw",
    fp8: bool = False,
    recompute: float = 0.0,
) -> dict[str, float]:
    """Seconds by part of one optimizer step in which each card takes ``rows`` rows, with bytes of the collectives."""
    card = NAMED[cluster.card]
    total, n, tokens = count(config).total, cluster.n, rows * seq_len
    rate = card.fp8 if fp8 else 0.0
    compute = tokens * device_seconds(config, seq_len, card.bf16, card.memory, share, rate, recompute)
    update = total * UPDATE_BYTES / n / card.memory
    if optimizer == "muon":
        update += muon_flops(config) / n / (card.bf16 * share)
    moved = 2 * 2 * total + MASTER * total if n > 1 else 0  # bf16 weights twice, float32 gradients once
    inside = moved * (cluster.gpus - 1) / cluster.gpus / NVLINK.get(cluster.card, cluster.link)
    between = moved * (cluster.nodes - 1) / cluster.nodes / (cluster.gpus * cluster.link)
    collectives = inside + between
    # The first block's weights are waited for; what takes longer than the products is not hidden by them.
    exposed = max(0.0, collectives - compute) + collectives / config.n_layers
    seconds = compute + update + exposed
    return {
        "compute": compute,
        "update": update,
        "collectives": collectives,
        "exposed": exposed,
        "seconds": seconds,
        "collective_bytes": moved * (n - 1) / n,
        "tokens_per_second_per_card": tokens / seconds,
        "mfu": flops(config, seq_len).training * tokens / seconds / card.bf16,
    }


def memory_per_card(config: ModelConfig, seq_len: int, rows: int, n: int, checkpointing: Checkpointing = "none") -> int:
    """Bytes on each card with weights, gradients and state sharded over ``n``, and two gathered blocks in bf16."""
    parts = training_memory(
        config, Setting(rows, seq_len, "bf16", "adamw", document_mask=False, checkpointing=checkpointing)
    )
    total = count(config).total
    shards = (total * MASTER + parts["optimizer"] + total * MASTER) // n
    blocks = 2 * 2 * (total - count(config).embedding - count(config).head) // config.n_layers
    return shards + blocks + parts["activations"] + parts["logits"] + PROGRAM


def predicted(run: Published, share: float) -> float:
    """Tokens a second and card of a published run."""
    how = {"optimizer": run.optimizer, "fp8": run.fp8, "recompute": run.recompute}
    found = step(run.config, run.seq_len, run.rows, run.cluster, share, **how)  # type: ignore[arg-type]
    return found["tokens_per_second_per_card"]


def fitted(run: Published) -> float:
    """The share with which ``run`` comes out as published, by halving the interval."""
    low, high = 0.01, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if predicted(run, middle) < run.rate else (low, middle)
    return (low + high) / 2


@lru_cache(maxsize=1)
def card_share() -> float:
    return fitted(published()[0])


def check() -> list[dict[str, Any]]:
    """Each published run but the fitted one, as predicted: nothing is judged by what it was fitted on."""
    found = []
    for run in published()[1:]:
        rate = predicted(run, card_share())
        names = {"name": run.name, "source": run.source, "published": run.rate}
        found.append(names | {"predicted": rate, "error": rate / run.rate - 1})
    return found
