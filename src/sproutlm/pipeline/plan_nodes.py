"""``sprout plan --nodes N --gpus G``: a step on several machines, and how far such estimates are from published runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import SproutError
from ..plan import count
from ..plan.cluster import CONSTANTS, NVLINK, Cluster, card_share, check, memory_per_card, published, step
from ..plan.places import NAMED
from ..train.metrics import format_seconds
from .plan import subjects, tokens_of
from .plan_table import print_table, short, size

if TYPE_CHECKING:
    from ..config.load import Loaded


def plan_nodes(
    loaded: Loaded,
    context: int | None,
    batch: int | None,
    card: str,
    nodes: int,
    gpus: int,
    link: float,
    price: float | None,
) -> dict[str, Any]:
    """Each training run on ``nodes`` machines of ``gpus`` cards, ``link`` bytes a second between machines and card."""
    name = card.strip().lower()
    if name not in NAMED or name not in NVLINK and gpus > 1:
        raise SproutError(f"--device {card}: no rates are known for several of it; expected one of {', '.join(NVLINK)}")
    cluster = Cluster(name, nodes, gpus, link)
    plans = []
    for subject in subjects(loaded, context, batch):
        assert subject.recipe is not None
        setting = subject.setting
        rows = batch or max(1, subject.step_rows // cluster.n)
        figures = step(subject.config, setting.seq_len, rows, cluster, card_share(), optimizer=setting.optimizer)
        micro = min(rows, setting.rows)
        memory = {c: memory_per_card(subject.config, setting.seq_len, micro, cluster.n, c) for c in ("none", "blocks")}
        tokens, rate = tokens_of(subject.recipe), figures["tokens_per_second_per_card"] * cluster.n
        seconds = None if tokens is None else tokens / rate
        plans.append(
            {
                "name": subject.name,
                "parameters": count(subject.config).total,
                "rows_per_card": rows,
                "rows_at_once": micro,
                "step_tokens": rows * setting.seq_len * cluster.n,
                "stated_tokens": subject.recipe.train.batch_tokens,
                "seq_len": setting.seq_len,
                "step": figures,
                "tokens_per_second": rate,
                "memory_per_card": memory,
                "room_bytes": NAMED[name].room,
                "tokens": tokens,
                "seconds": seconds,
                "cost": None if price is None or seconds is None else seconds / 3600 * price * cluster.n,
            }
        )
    return {
        "cluster": {"card": name, "nodes": nodes, "gpus": gpus, "link_bytes_per_second": link},
        "share": card_share(),
        "fitted_on": published()[0].name,
        "plans": plans,
        "check": check(),
        "constants": [list(row) for row in CONSTANTS],
    }


def print_nodes(report: dict[str, Any]) -> None:
    cluster = report["cluster"]
    what = f"{cluster['nodes']} x {cluster['gpus']} {cluster['card']}"
    for plan in report["plans"]:
        found = plan["step"]
        print(f"{plan['name']} on {what}: {short(plan['parameters'])} parameters, sharded over all cards (estimate)")
        if plan["step_tokens"] != plan["stated_tokens"]:
            print(f"  a step is {plan['step_tokens']:,} tokens here, the recipe says {plan['stated_tokens']:,}")
        print(
            f"  step of {plan['step_tokens']:,} tokens ({plan['rows_per_card']} rows of {plan['seq_len']:,} a card): "
            f"{found['seconds']:.3g} s (products and traffic {found['compute']:.3g}, update {found['update']:.2g}, "
            f"collectives {found['collectives']:.2g} of which not hidden {found['exposed']:.2g})"
        )
        print(
            f"  {plan['tokens_per_second']:,.0f} tokens/s, {found['tokens_per_second_per_card']:,.0f} a card, "
            f"{found['mfu']:.0%} of the bf16 rate; {size(found['collective_bytes'])} moved a card and step"
        )
        fits = {
            name: "fits" if n <= plan["room_bytes"] else "does not fit" for name, n in plan["memory_per_card"].items()
        }
        memory = [f"{name}: {size(n)}, {fits[name]}" for name, n in plan["memory_per_card"].items()]
        print(f"  memory a card, {plan['rows_at_once']} rows at once, by checkpointing ({'; '.join(memory)})")
        if plan["seconds"] is not None:
            cost = "" if plan["cost"] is None else f", {plan['cost']:,.0f} at the price given"
            print(f"  {short(plan['tokens'])} tokens: {format_seconds(plan['seconds'])}{cost}")
    print(f"  products reach {report['share']:.0%} of the published rate: fitted on {report['fitted_on']}. Held out:")
    rows: list[tuple[str, ...]] = [("run", "published tok/s a card", "predicted", "error")]
    rows += [
        (r["name"], f"{r['published']:,.0f}", f"{r['predicted']:,.0f}", f"{r['error']:+.0%}") for r in report["check"]
    ]
    print_table(rows, indent=4)
    _print_constants(report["constants"])


def _print_constants(constants: Sequence[Sequence[str]]) -> None:
    print("  where the figures come from:")
    print_table([tuple(row) for row in constants], indent=4)
