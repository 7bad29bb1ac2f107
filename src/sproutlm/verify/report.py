"""A report for a person: the last lines of the command, and the table of docs/results."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def print_report(report: dict[str, Any], say: Callable[[str], None] = print) -> bool:
    """The end of a report whose checks were told one by one; whether none failed."""
    if report.get("note"):
        say(report["note"])
    n = len(report["checks"])
    say(f"{report['failed']} of {n} checks failed, {report['seconds']:.0f} s")
    return bool(report["ok"])


def markdown(report: dict[str, Any]) -> str:
    """One table of promises by family: the worst error of each beside its tolerance."""
    checks = report["checks"]
    lines = ["| | what is promised | shapes | worst error | allowed | |", "| --- | --- | ---: | ---: | --- | --- |"]
    before = ""
    for check in checks:
        family = "" if check["family"] == before else check["family"]
        before = check["family"]
        allowed = f"{check['atol']:.3g}" + (f" + {check['rtol']:.2g} × value" if check["rtol"] else "")
        well = "ok" if check["ok"] else "FAIL"
        lines.append(
            f"| {family} | {check['promise']} | {check['shapes']} | {check['error']:.2g} | {allowed} | {well} |"
        )
    left_out = {(name, reason) for check in checks for name, reason in check["left_out"].items()}
    lines += (
        [""] + [f"Left out where noted: {name}: {reason}." for name, reason in sorted(left_out)] if left_out else []
    )
    return "\n".join(lines) + "\n"
