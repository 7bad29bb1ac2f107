"""``sprout plan --depth N``: everything that follows from one number, and what it needs here or on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.depth import MOST, fault_of
from ..config.dialled import RATES, SHAPE
from ..config.load import load_text
from ..config.schema import Recipe
from ..errors import SproutError
from ..train.metrics import format_seconds
from .dry_run import config_of
from .plan import plan_all
from .plan_table import flop, print_table, short, size

if TYPE_CHECKING:
    from ..config.load import Loaded

DEPTH_TEXT = """\
name: depth-{depth}
data: {{train: "synth:pretrain", seq_len: {seq_len}}}
model: {{depth: {depth}}}
"""
SEQ_LEN = 256


def depths_of(text: str) -> list[int]:
    """``6`` or ``2,4,8`` as numbers. SproutError where one of them is no depth."""
    found = [part.strip() for part in text.split(",")]
    for part in found:
        number = part.removeprefix("-")
        fault = fault_of(int(part) if number.isdecimal() else part)
        if fault is not None:
            raise SproutError(f"--depth {text}: {fault}; expected such as 6, or 2,4,8 for a table")
    return list(dict.fromkeys(map(int, found)))


def fitted(
    load: Callable[[Sequence[str]], Loaded], device: str, price: float | None = None
) -> tuple[Loaded, dict[str, Any]]:
    """A recipe and its plan on ``device``, with the settings that make it fit there where it does not as it stands.

    ``load`` gives the recipe with ``key=value`` settings in place of its own. The plan's ``fit`` holds the settings, None
    where none helps.
    """
    loaded = load([])
    settings: dict[str, Any] | None = {}
    (plan,) = plan_all(loaded, None, None, None, device, price)["plans"]
    changes = plan["places"][0]["training"]["settings"]
    if changes is None:
        settings = None
    elif changes:
        settings = changes
        loaded = load([f"{key}={value}" for key, value in changes.items()])
        (plan,) = plan_all(loaded, None, None, None, device, price)["plans"]
    return loaded, plan | {"fit": settings}


def plan_depths(
    depths: Sequence[int], settings: Sequence[str], context: int | None, device: str | None, price: float | None
) -> dict[str, Any]:
    """The dial at every depth, as a recipe with ``settings`` would have it, with FLOPs, memory and time on ``device``."""
    found = []
    for depth in depths:
        text = DEPTH_TEXT.format(depth=depth, seq_len=context or SEQ_LEN)

        def load(more: Sequence[str], text: str = text, depth: int = depth) -> Loaded:
            return load_text(text, f"depth {depth}", Path.cwd() / f"depth-{depth}.yaml", [*settings, *more])

        loaded, plan = fitted(load, device or "cpu", price)
        found.append(_at_depth(depth, loaded, plan))
    return {"device": found[0]["device"]["name"], "depths": found}


def _at_depth(depth: int, loaded: Loaded, plan: dict[str, Any]) -> dict[str, Any]:
    recipe = loaded.recipe
    assert isinstance(recipe, Recipe) and recipe.model is not None
    sizes, batch = config_of(recipe).model_dump(), recipe.train.batch_tokens
    counted, device = plan["parameters"], plan["device"]
    embedding = counted["embedding"] + counted["head"]
    tokens, optimizer = device["tokens"], recipe.optimizer
    fits = plan["fit"] is not None
    return {
        "depth": depth,
        "seq_len": recipe.data.seq_len,
        **{name: sizes[name] for name in ("vocab_size", *SHAPE)},
        "embedding_parameters": embedding,
        "block_parameters": counted["total"] - embedding,
        "batch_tokens": batch,
        **{name: getattr(optimizer, name) for name in RATES},
        "head_lr": optimizer.embedding_lr,
        "tokens": tokens,
        "steps": None if tokens is None else max(1, tokens // batch),
        "parameters": counted["total"],
        "training_flops": None if tokens is None else plan["flops_per_token"]["training"] * tokens,
        "settings": plan["fit"],
        "memory_bytes": plan["training"]["memory_bytes"] if fits else None,
        "seconds": device["seconds"] if fits else None,
        "device": device,
    }


def print_depths(report: dict[str, Any]) -> None:
    """A column for each depth."""
    columns = report["depths"]

    def row(name: str, cell: Callable[[dict[str, Any]], str]) -> tuple[str, ...]:
        return (name, *(cell(one) for one in columns))

    def unknown(value: float | None, show: Callable[[float], str]) -> str:
        return "n/a" if value is None else show(value)

    rows = [
        row("depth", lambda c: str(c["depth"])),
        row("width", lambda c: f"{c['dim']:,}"),
        row("heads", lambda c: f"{c['n_heads']} of {c['head_dim']}"),
        row("key/value heads", lambda c: str(c["n_kv_heads"])),
        row("ffn", lambda c: f"{c['ffn_dim']:,}"),
        row("parameters", lambda c: short(c["parameters"])),
        row("  embedding", lambda c: short(c["embedding_parameters"])),
        row("  the rest", lambda c: short(c["block_parameters"])),
        row("batch, tokens", lambda c: f"{c['batch_tokens']:,}"),
        row("rate: matrices", lambda c: f"{c['lr']:g}"),
        row("rate: embedding", lambda c: f"{c['embedding_lr']:g}"),
        row("rate: head", lambda c: f"{c['head_lr']:g}"),
        row("rate: scalars", lambda c: f"{c['scalar_lr']:g}"),
        row("weight decay", lambda c: f"{c['weight_decay']:g}"),
        row("tokens", lambda c: unknown(c["tokens"], short)),
        row("steps", lambda c: unknown(c["steps"], lambda n: f"{n:,}")),
        row("training FLOPs", lambda c: unknown(c["training_flops"], lambda n: f"{n:.2g}")),
        row("memory (estimate)", lambda c: "does not fit" if c["settings"] is None else size(c["memory_bytes"])),
        row("time (estimate)", lambda c: unknown(c["seconds"], format_seconds)),
    ]
    if any(one["device"]["cost"] is not None for one in columns):
        rows.append(row("cost (estimate)", lambda c: unknown(c["device"]["cost"], lambda n: f"{n:,.2f}")))
    print_table(rows)
    first = columns[0]
    per_token = first["training_flops"] / first["tokens"] if first["tokens"] else None
    if len(columns) == 1 and per_token is not None:
        print(
            f"FLOPs per trained token: {flop(per_token)}; {first['tokens'] / first['parameters']:.3g} tokens per parameter"
        )
    for one in columns:
        if one["settings"]:
            changed = " ".join(f"{key}={value}" for key, value in one["settings"].items())
            print(f"depth {one['depth']} fits {report['device']} with {changed}")
    print(f"memory and time on {report['device']}; time: {first['device']['rate_from']}")
    print(
        f"vocabulary {first['vocab_size']:,}, rows of {first['seq_len']:,}; in a recipe:  model: {{depth: {first['depth']}}}"
    )
    print(f"depths from 1 to {MOST}; which values were measured, and which published: config/depth.py")
