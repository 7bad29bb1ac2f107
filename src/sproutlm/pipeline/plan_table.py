"""A plan on the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..train.metrics import format_seconds
from .memory_guard import cure_lines

GB, MB, KB = 2**30, 2**20, 2**10
ROUNDED = "activations, update and prompt are estimates"


def print_plans(report: dict[str, Any]) -> None:
    for number, plan in enumerate(report["plans"]):
        if number:
            print()
        _print_plan(plan)
    for probe in report.get("probes", []):
        _print_probe(probe)


def _print_plan(plan: dict[str, Any]) -> None:
    model, counted, work = plan["model"], plan["parameters"], plan["flops_per_token"]
    heads = f"{model['n_heads']}/{model['n_kv_heads']} heads of {model['head_dim']}"
    print(f"{plan['name']}: {model['family']}, {model['n_layers']} layers of {model['dim']}, {heads}")
    tied = "tied to the head" if not counted["head"] else f"and a head of {counted['head']:,}"
    print(f"  parameters: {counted['total']:,}{_published(plan)}")
    if counted["active"] != counted["total"]:
        print(f"  active per token: {counted['active']:,}; routed experts hold {counted['experts']:,}")
    print(f"  embedding: {counted['embedding']:,} ({model['vocab_size']:,} ids, {tied})")
    context = work["context"]
    share = work["attention"] / work["forward"]
    print(
        f"  FLOPs per token, rows of {context:,}: forward {flop(work['forward'])} (attention {share:.0%}), training "
        f"{flop(work['training'])}; one more token after {context:,}: {flop(work['next_token'])}"
    )
    _print_training(plan["training"])
    _print_inference(plan["inference"])
    if "device" in plan:
        _print_device(plan)
    else:
        print("  where it fits:")
        _print_places(plan)
    if "suggested" in plan:
        _print_suggested(plan)


def _print_training(training: dict[str, Any]) -> None:
    setting = training["setting"]
    rows = f"{setting['rows']} row{'s' * (setting['rows'] > 1)} of {setting['seq_len']:,}"
    how = f"{rows}, {setting['compute']}, {setting['optimizer']}"
    print(f"  training ({how}): {size(training['memory_bytes'])} ({_parts(training['memory_by_part'])})")


def _print_inference(inference: dict[str, Any]) -> None:
    rows, context = inference["rows"], inference["context"]
    for compute in ("float32", "bf16"):
        one = inference[compute]
        print(
            f"  answering ({rows} at once, {context:,} tokens, {compute}): {size(one['memory_bytes'])} "
            f"({_parts(one['memory_by_part'])}); cache {size(one['kv_bytes_per_token'])} per token"
        )


def _print_places(plan: dict[str, Any]) -> None:
    context = plan["inference"]["context"]
    rows = [("memory", "training", "answering, float32", "answering, bf16")]
    for place in plan["places"]:
        answering = [_answering(place["inference"][compute], context) for compute in ("float32", "bf16")]
        rows.append((place["name"], _training(place["training"]), *answering))
    print_table(rows, indent=4)
    print(f"    ({ROUNDED}; `sprout chat` loads float32, model.to(torch.bfloat16) halves it)")


def _print_device(plan: dict[str, Any]) -> None:
    """One device: whether a step fits, what makes it fit, how long and how dear the run is."""
    device, (place,) = plan["device"], plan["places"]
    found, room = place["training"], size(device["room_bytes"])
    if found["settings"] is None:
        print(f"  on {device['name']} ({room} for a run): training does not fit, whatever the settings")
    elif not found["settings"]:
        print(
            f"  on {device['name']} ({room} for a run): training fits, up to train.micro_batch={found['micro_batch_at_most']}"
        )
    else:
        print(f"  on {device['name']} ({room} for a run): training fits with one of these, the cheapest first:")
        print("\n".join(cure_lines(found["cures"])))
    tokens, rate, seconds = device["tokens"], device["tokens_per_second"], device["seconds"]
    if rate is None:
        print(f"  time: not known ({device['rate_from']})")
    elif seconds is None:
        print(f"  time: about {rate:,.0f} tokens/s ({device['rate_from']}); the run's length is not known yet")
    else:
        print(
            f"  time (estimate): {format_seconds(seconds)} for {short(tokens)} tokens, {rate:,.0f} tokens/s ({device['rate_from']})"
        )
    if device["cost"] is not None:
        print(f"  cost (estimate): {device['cost']:,.2f} at {device['price_per_hour']:g} an hour")
    context = plan["inference"]["context"]
    answers = [f"{c}: {_answering(place['inference'][c], context)}" for c in ("float32", "bf16")]
    print(f"  answering there: {'; '.join(answers)}")
    print(f"    ({ROUNDED})")


def _print_probe(probe: dict[str, Any]) -> None:
    error = probe["predicted_bytes"] / probe["peak_bytes"] - 1
    print(
        f"{probe['name']}: one step of full rows on {probe['device']}: {size(probe['peak_bytes'])} measured, "
        f"{size(probe['predicted_bytes'])} predicted ({error:+.0%}); {probe['seconds']:.2f} s a step"
    )


def _training(found: dict[str, Any]) -> str:
    settings = found["settings"]
    if settings is None:
        return "does not fit"
    changes = " ".join(f"{key}={value}" for key, value in settings.items() if key != "train.micro_batch")
    most = f"train.micro_batch={found['micro_batch_at_most']}"
    if not settings:
        return f"fits, up to {most}"
    return f"with {changes} {most}" if changes else f"with {most}"


def _answering(found: dict[str, Any], context: int) -> str:
    most = found["context_at_most"]
    if found["fits"]:
        return f"fits, up to {most:,} tokens"
    return f"up to {most:,} tokens" if 0 < most < context else "does not fit"


def _print_suggested(plan: dict[str, Any]) -> None:
    suggested = plan["suggested"]
    keys = f"data.seq_len={suggested['seq_len']} train.batch_tokens={suggested['batch_tokens']}"
    print(f"  a recipe to begin with: model.preset={plan['preset']} {keys} train.tokens={suggested['tokens']}")
    print(f"    ({suggested['why']})")


def _published(plan: dict[str, Any]) -> str:
    published = plan.get("published")
    if published is None:
        return ""
    exact = "exactly" if not published["digits"] else "about"
    return f" (published: {exact} {published['parameters']:,}, {published['source']})"


def print_listing(rows: Sequence[dict[str, Any]]) -> None:
    table = [("name", "parameters", "active", "family", "layers x width", "heads", "vocabulary", "context")]
    for row in rows:
        shape = f"{row['n_layers']} x {row['dim']}"
        active = "" if row["active"] is None else short(row["active"])
        heads = f"{row['n_heads']}/{row['n_kv_heads']}"
        cells = (row["name"], short(row["parameters"]), active, row["family"], shape, heads)
        table.append((*cells, f"{row['vocab_size']:,}", f"{row['max_seq_len']:,}"))
    print_table(table)
    print("one of them:  sprout plan gpt2      in a recipe:  model: {preset: gpt2}")


def print_table(rows: Sequence[tuple[str, ...]], indent: int = 0) -> None:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(" " * indent + "  ".join(cells).rstrip())


def _parts(parts: dict[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {size(value)}" for name, value in parts.items() if value)


def size(n: float) -> str:
    """Bytes, in units of 1,024."""
    for unit, name in ((GB, "GB"), (MB, "MB"), (KB, "kB")):
        if n >= unit:
            return f"{n / unit:.3g} {name}" if n < 1000 * unit else f"{n / unit:,.0f} {name}"
    return f"{n:.0f} B"


def short(n: float) -> str:
    """A count as people write it: 124M, 1.24B."""
    for unit, name in ((1e9, "B"), (1e6, "M")):
        if n >= unit:
            return f"{n / unit:.3g}{name}"
    return f"{n:,.0f}"


def flop(n: float) -> str:
    for unit, name in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if n >= unit:
            return f"{n / unit:.3g} {name}"
    return f"{n:,.0f}"
