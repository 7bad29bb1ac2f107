"""A report for a person: the last lines of the command, and the table of docs/results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ROTARY = "rotary positions"  # the family under which golden frequencies are reported


def print_report(report: dict[str, Any], say: Callable[[str], None] = print) -> bool:
    """The end of a report whose checks were told one by one; whether none failed."""
    if report.get("note"):
        say(report["note"])
    n = len(report["checks"])
    say(f"{report['failed']} of {n} checks failed, {report['seconds']:.0f} s")
    return bool(report["ok"])


def markdown(model: dict[str, Any], moe: dict[str, Any], day: str) -> str:
    """The page of docs/results: every promise with the worst error of all families, made by benchmarks/verify.py."""
    families = list(dict.fromkeys(c["family"] for c in model["checks"] if c["family"] != ROTARY))
    shapes = sum(max(c["shapes"] for c in model["checks"] if c["family"] == family) for family in families)
    with_reference = f"transformers {model['transformers']}" if model["transformers"] else "no reference"
    rows = [_row(promise, same) for promise, same in _by_promise(model["checks"]).items()]
    left_out = {f"{name}: {why}" for check in model["checks"] for name, why in check["left_out"].items()}
    counts = [f"{sum(c['ok'] for c in r['checks'])} of {len(r['checks'])}" for r in (model, moe)]
    return "\n".join(
        [
            "# What the model is proved to compute",
            "",
            "    sprout verify model",
            "    sprout verify moe",
            "",
            f"This page is written by `python benchmarks/verify.py`. {day}, torch {model['torch']}, {with_reference}, CPU. "
            f"{shapes} tiny random shapes of {len(families)} families ({', '.join(families)}), which together use every "
            f"option of each. {counts[0]} checks hold for the families, {counts[1]} for the experts; every single figure is "
            "in [`benchmarks/results/verify.json`](../../benchmarks/results/verify.json). Errors are the largest absolute "
            "difference, or a count of faults, of the shape that came nearest to its limit.",
            "",
            "| what is promised | checked | worst error | in | allowed | |",
            "| --- | ---: | ---: | --- | --- | --- |",
            *rows,
            "",
            "Left out, because it cannot hold or is not wanted:",
            "",
            *(f"- {line}" for line in sorted(left_out)),
            "",
            "## Mixture of experts",
            "",
            "| what is promised | found | limit | | |",
            "| --- | ---: | --- | --- | --- |",
            *(
                f"| {c['promise']} | {c['error']:.2g} | {_allowed(c)} | {c['note']} | {'ok' if c['ok'] else 'FAIL'} |"
                for c in moe["checks"]
            ),
            "",
            "Whether experts pay is a run of its own: [moe.md](moe.md).",
            "",
        ]
    )


def _by_promise(checks: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for check in checks:
        grouped.setdefault(check["promise"], []).append(check)
    return grouped


def _row(promise: str, checks: list[dict[str, Any]]) -> str:
    worst = max(checks, key=lambda c: (not c["ok"], c["error"] / c["atol"] if c["atol"] else c["error"]))
    where = worst["case"] if worst["error"] and worst["family"] != ROTARY else ""
    well = "ok" if all(c["ok"] for c in checks) else "FAIL"
    shapes = sum(c["shapes"] for c in checks)
    return f"| {promise} | {shapes} | {worst['error']:.2g} | {where} | {_allowed(worst)} | {well} |"


def _allowed(check: dict[str, Any]) -> str:
    return f"{check['atol']:.3g}" + (f" + {check['rtol']:.2g} of the value" if check["rtol"] else "")
