"""The hardware table: device, model size, batch, settings, tokens a second, peak memory, time for a billion tokens.

    python benchmarks/hardware.py --json benchmarks/results/hardware.json --page docs/results/hardware.md
    python benchmarks/hardware.py --json ... --page ... --measure [--only "3M;26M"] [--repeats 3]

The first writes the page: rows that were measured, as the JSON holds them, and all others as `sprout plan` has them today.
With ``--measure`` every size that fits this machine (its GPU where torch sees one, else its CPU) is measured first: one real
step of the trainer after one that warms up, full rows, in a process of its own (``pipeline/probe.py``), several times; the median
is kept. Rows of other machines stay in the file. Sizes that would not fit by the plan are not tried.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch

from sproutlm.cli.arguments import write_json
from sproutlm.config.load import Loaded, load_text
from sproutlm.config.presets import suggest
from sproutlm.config.schema import Recipe
from sproutlm.errors import SproutError
from sproutlm.pipeline.dry_run import COMPUTE_NAMES
from sproutlm.pipeline.plan import Subject, here, load_preset, setting_at, subjects
from sproutlm.pipeline.plan_table import size
from sproutlm.pipeline.probe import probe
from sproutlm.plan import count, flops
from sproutlm.plan.cluster import card_share, check, device_seconds
from sproutlm.plan.fit import fit_training
from sproutlm.plan.memory import Compute, Setting, step_bytes
from sproutlm.plan.places import Place, place_of
from sproutlm.train.precision import choose_compute

# What a row is called -> a preset, or a depth of the dial.
MODELS: dict[str, str | int] = {
    "3M": 3, "26M": "llama-26m", "64M": "minimind-3", "124M": "gpt2", "350M": "gpt2-medium", "0.6B": "qwen3-0.6b",
    "1.2B": "1.2b", "8B": "qwen3-8b",
}  # fmt: skip
# Cards by memory: which ones people have, and the one whose published rates are taken ("": none is known).
CARDS: tuple[tuple[str, str], ...] = (
    ("4GB", "4 GB: RTX 3050 Laptop"),
    ("3050", "6 GB: RTX 3050"),
    ("4060", "8 GB: RTX 4060"),
    ("3060", "12 GB: RTX 3060"),
    ("4060ti", "16 GB: RTX 4060 Ti"),
    ("4090", "24 GB: RTX 4090"),
    ("h100", "80 GB: H100"),
    ("h200", "141 GB: H200"),
)
DIAL = """\
name: depth-{depth}
data: {{train: "synth:pretrain", seq_len: 256}}
model: {{depth: {depth}, vocab_size: 6400}}
"""
CPU_BATCH, CARD_ROWS = 8192, 65536  # tokens: of a step on a CPU; through a card's model at once, at most


@dataclass(frozen=True)
class Case:
    """One model in one place, with the settings that fit; ``setting`` None = nothing fits."""

    model: str
    recipe: Recipe
    subject: Subject
    setting: Setting | None
    changed: dict[str, Any]


def load(model: str, place: Place, more: Sequence[str] = ()) -> Loaded:
    """The recipe of a row: the dial's or the preset's own batch on a card, a step of ``CPU_BATCH`` tokens on a CPU."""
    what = MODELS[model]
    settings = [f"train.device={'cpu' if place.kind == 'cpu' else 'auto'}"]
    if isinstance(what, int):
        return load_text(DIAL.format(depth=what), model, Path(f"{model}.yaml"), [*settings, *more])
    suggested = suggest(what)
    rows = min(suggested.batch_tokens, CARD_ROWS) // suggested.seq_len
    if place.kind == "cpu":
        settings += [f"train.batch_tokens={max(CPU_BATCH, suggested.seq_len)}", "train.micro_batch=0"]
    else:
        settings += [f"train.micro_batch={rows}"]
    return load_preset(what, [*settings, *more], None)


def fitted(model: str, place: Place, compute: Compute | None = None) -> Case:
    """``model`` at ``place`` with the cheapest settings that fit. ``compute``: what ``auto`` is there."""
    loaded = load(model, place)
    (subject,) = subjects(loaded, None, None, compute_here=compute)
    asked = setting_at(subject, place)
    found = fit_training(subject.config, asked, place.room, asked.rows)["settings"]
    assert isinstance(loaded.recipe, Recipe)
    if not found:
        return Case(model, loaded.recipe, subject, None if found is None else asked, {})
    loaded = load(model, place, [f"{key}={value}" for key, value in found.items()])
    (subject,) = subjects(loaded, None, None, compute_here=compute)
    assert isinstance(loaded.recipe, Recipe)
    return Case(model, loaded.recipe, subject, setting_at(subject, place), found)


def row_of(case: Case) -> dict[str, Any]:
    """What every row says, measured or not."""
    recipe, setting, config = case.recipe, case.setting, case.subject.config
    row: dict[str, Any] = {
        "model": case.model,
        "what": str(MODELS[case.model]),
        "parameters": count(config).total,
        "seq_len": recipe.data.seq_len,
        "batch_tokens": recipe.train.batch_tokens,
        "optimizer": recipe.optimizer.name,
        "fits": setting is not None,
        "changed": case.changed,
        "flops_per_token": flops(config, recipe.data.seq_len).training,
    }
    if setting is not None:
        at_once = setting.rows * setting.streams
        row |= {
            "rows": setting.rows,
            "streams": setting.streams,
            "accumulation": max(1, -(-recipe.train.batch_tokens // (at_once * setting.seq_len))),
            "checkpointing": setting.checkpointing,
            "loss_chunk": setting.loss_chunk,
            "compute": setting.compute,
            "seq_len": setting.seq_len,
        }
    return row


def planned(model: str, place: Place, compute: Compute | None = None) -> dict[str, Any]:
    """A row by the plan: memory by part added up, and the card's published rates."""
    case = fitted(model, place, compute)
    row = row_of(case) | {"how": "plan", "tokens_per_second": None, "peak_bytes": None}
    if case.setting is None:
        return row
    row["peak_bytes"] = step_bytes(case.subject.config, case.setting)
    if place.bf16 and case.setting.compute == "bf16":
        again = 1.0 if case.setting.checkpointing == "blocks" else 0.0
        seconds = device_seconds(
            case.subject.config, case.setting.seq_len, place.bf16, place.memory, card_share(), recompute=again
        )
        row["tokens_per_second"] = 1 / seconds
    return row


# --- measuring --------------------------------------------------------------------------------------------------------------


def this_machine() -> tuple[str, Place, Compute]:
    """What the rows of this machine are called, its room, and its type of computing: the GPU's where there is one."""
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        place = replace(place_of(f"{total / 2**30:.2f}GB"), name=torch.cuda.get_device_name(0))
        return f"{total / 2**30:.0f} GB: {place.name}", place, COMPUTE_NAMES[choose_compute(torch.device("cuda"))[0]]
    place = here()
    if place is None:
        raise SystemExit("this system does not say how much memory it has; nothing can be measured safely")
    name = f"CPU: {processor()}, {os.cpu_count()} cores, {place.name.removeprefix('CPU ')}"
    return name, place, COMPUTE_NAMES[choose_compute(torch.device("cpu"))[0]]


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def measured(model: str, place: Place, compute: Compute, repeats: int) -> dict[str, Any] | None:
    """A row from real steps; None where the plan finds no settings that fit, or a run ran out of memory after all."""
    case = fitted(model, place, compute)
    if case.setting is None:
        print(f"{model}: does not fit {place.name}, whatever the settings")
        return None
    found = []
    for _ in range(repeats):
        try:
            found.append(probe(case.recipe, case.subject.config, case.setting))
        except SproutError as error:
            print(f"{model}: not measured: {error}")
            return None
    rates = [case.recipe.train.batch_tokens / one["seconds"] for one in found]
    peak = max(one["peak_bytes"] for one in found)
    estimate = step_bytes(case.subject.config, case.setting)
    row = row_of(case) | {"how": "measured", "tokens_per_second": statistics.median(rates), "rates": rates}
    print(f"{model}: {row['tokens_per_second']:,.0f} tokens/s, {size(peak)} ({size(estimate)} planned)", flush=True)
    return row | {"peak_bytes": peak, "planned_bytes": estimate, "date": date.today().isoformat()}


def measure(args: argparse.Namespace, report: dict[str, Any]) -> None:
    name, place, compute = this_machine()
    machine = report["machines"].setdefault(name, {"rows": {}})
    machine |= {"kind": place.kind, "room_bytes": place.room, "compute": compute}
    threads = os.environ.get("OMP_NUM_THREADS", "")
    machine |= {"torch": torch.__version__, "threads": int(threads) if threads else torch.get_num_threads()}
    largest = args.largest or (400 if place.kind == "cpu" else float("inf"))
    for model in args.only.split(";") if args.only else MODELS:
        if model not in MODELS:
            raise SystemExit(f"--only: {model!r} is no row; expected of {'; '.join(MODELS)}")
        if count(subjects(load(model, place), None, None)[0].config).total > largest * 1e6:
            print(f"{model}: above --largest {largest:g} M, not measured")
            continue
        row = measured(model, place, compute, args.repeats)
        if row is not None:
            machine["rows"][model] = row
            write_json(args.json, report)


# --- the page ---------------------------------------------------------------------------------------------------------------


def tables(report: dict[str, Any]) -> list[tuple[str, list[dict[str, Any]]]]:
    """(device, rows): measured machines first, what was not measured on them by the plan; then cards by the plan."""
    found = []
    for name, machine in report["machines"].items():
        place = Place(name, machine["room_bytes"], machine["kind"])
        rows = [
            machine["rows"].get(model) or by_share(planned(model, place, machine["compute"]), machine["rows"])
            for model in MODELS
        ]
        found.append((name, rows))
    return found + [(label, [planned(model, place_of(card)) for model in MODELS]) for card, label in CARDS]


def by_share(row: dict[str, Any], rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A planned row of a machine on which others were measured: as many FLOPs a second as the largest of those."""
    if rows and row["fits"]:
        largest = max(rows.values(), key=lambda one: one["parameters"])
        row["tokens_per_second"] = largest["tokens_per_second"] * largest["flops_per_token"] / row["flops_per_token"]
    return row


def settings_of(row: dict[str, Any]) -> str:
    if not row["fits"]:
        return "does not fit"
    rows = f"{row['rows']} x {row['seq_len']:,}"
    parts = [f"{row['streams']} side by side of {rows}" if row["streams"] > 1 else rows]
    parts += [f"{row['accumulation']} passes"] if row["accumulation"] > 1 else []
    parts += [f"checkpointing {row['checkpointing']}"] if row["checkpointing"] != "none" else []
    parts += [f"loss chunk {row['loss_chunk']}"] if row["loss_chunk"] else []
    return ", ".join([*parts, row["compute"], row["optimizer"]])


def duration(seconds: float) -> str:
    """Of a billion tokens: minutes, hours or days."""
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:,.1f} days"


def page(report: dict[str, Any]) -> str:
    errors = [one["error"] for one in check()]
    lines = [
        "# Which hardware trains what, and how fast",
        "",
        "    python benchmarks/hardware.py --json benchmarks/results/hardware.json --page docs/results/hardware.md",
        "",
        "Rows marked **measured** are real steps of `sprout train`'s trainer: the median of several processes, each of which "
        "makes one step after one that warms up, on rows full to the last token; peak memory is the process's (on a card, the "
        "allocator's). The same command with `--measure` adds the machine that it runs on. Rows marked *plan* were run by "
        "nobody here: settings and memory are what `sprout plan --device` says ([memory.md](memory.md) has its error on a CPU), "
        "the rate is the maker's, of which one share is reached that was fitted on one published run of 8 H100. Published runs "
        f"on such cards that it had not seen are missed by {min(errors):+.0%} to {max(errors):+.0%}; on cards for games it was never "
        "compared. On a machine with measured rows, a *plan* row has the FLOPs per second of the largest measured one. What a card loses "
        "between small operations is not in the plan: its rates of small models on fast cards are upper bounds. n/a: no published rate "
        "of the card's bf16 products is known.",
        "",
        "Sizes: " + "; ".join(f"{name}: {described(what)}" for name, what in MODELS.items()) + ". Batch: tokens of an optimizer step. "
        "Settings: rows at once x tokens, passes per step, what else had to be set so that it fits, type, optimizer. Every step "
        "is the same training whatever the rows at once.",
    ]  # fmt: skip
    for name, rows in tables(report):
        lines += ["", f"## {name}", ""]
        machine = report["machines"].get(name)
        if machine is not None:
            dates = sorted({row["date"] for row in machine["rows"].values()})
            lines += [f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, torch {machine['torch']}, {machine['threads']} threads.", ""] if dates else []  # fmt: skip
        lines += ["| model | parameters | batch | settings | tokens/s | peak memory | a billion tokens | |"]
        lines += ["| --- | ---: | ---: | --- | ---: | ---: | ---: | --- |"]
        lines += [cells(row) for row in rows]
    return "\n".join(lines) + "\n"


def described(what: str | int) -> str:
    return f"`model: {{depth: {what}}}`" if isinstance(what, int) else f"`{what}`"


def cells(row: dict[str, Any]) -> str:
    rate = row["tokens_per_second"]
    how = "**measured**" if row["how"] == "measured" else "*plan*"
    none = "" if not row["fits"] else "n/a"
    shown = [
        row["model"], f"{row['parameters']:,}", f"{row['batch_tokens']:,}", settings_of(row),
        none if rate is None else f"{rate:,.0f}", none if row["peak_bytes"] is None else size(row["peak_bytes"]),
        none if rate is None else duration(1e9 / rate), how,
    ]  # fmt: skip
    return f"| {' | '.join(shown)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/hardware.json"))
    parser.add_argument("--page", type=Path, default=Path("docs/results/hardware.md"))
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--only", default="", help="names of rows to measure, joined by ;")
    parser.add_argument("--largest", type=float, help="measure models of so many million parameters at most [CPU: 400]")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.json.read_text()) if args.json.exists() else {"machines": {}}
    if args.measure:
        measure(args, report)
    write_json(args.json, report)
    args.page.write_text(page(report), encoding="utf-8")
    print(f"{args.page} written")


if __name__ == "__main__":
    main()
