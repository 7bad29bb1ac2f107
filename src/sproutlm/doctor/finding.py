"""What an examination gives: findings, one per check, each with its cure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ..errors import SproutError

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome. ``what`` is a sentence with figures and places; ``pitfall`` a number of docs/pitfalls.md."""

    check: str
    status: Status
    what: str
    cure: str = ""
    pitfall: int | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Examination:
    """Everything found about one path, or about the environment (``path`` None)."""

    path: str | None
    kind: str
    findings: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # what was sampled or left out, and why

    def ok(self, check: str, what: str, pitfall: int | None = None, cure: str = "") -> None:
        self.findings.append(Finding(check, "ok", what, cure, pitfall))

    def warn(self, check: str, what: str, cure: str, pitfall: int | None = None) -> None:
        self.findings.append(Finding(check, "warn", what, cure, pitfall))

    def fail(self, check: str, what: str, cure: str, pitfall: int | None = None) -> None:
        self.findings.append(Finding(check, "fail", what, cure, pitfall))

    def attempt(self, check: str, cure: str, pitfall: int | None, action: Callable[[], Any]) -> tuple[bool, Any]:
        """(True, result) of an action; (False, None) and a ``fail`` where it raises SproutError."""
        try:
            return True, action()
        except SproutError as error:
            self.fail(check, str(error), cure, pitfall)
            return False, None

    def count(self, status: Status) -> int:
        return sum(finding.status == status for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "kind": self.kind,
            "findings": [finding.as_dict() for finding in self.findings],
            "notes": list(self.notes),
        }


def listed(names: Sequence[str], most: int = 3) -> str:
    """The first few of some names, and how many more there are."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def counted(n: int, noun: str, plural: str = "") -> str:
    """``1 record``, ``1,200 records``."""
    return f"{n:,} {noun if n == 1 else plural or f'{noun}s'}"


def do(n: int, several: str, one: str) -> str:
    """The verb for ``n`` of something: ``do(n, "hold", "holds")``."""
    return one if n == 1 else several


def share(part: int, whole: int) -> str:
    """A share as a percentage that never rounds something to nothing."""
    ratio = part / max(whole, 1)
    return "under 0.1%" if 0 < ratio < 0.001 else f"{ratio:.1%}"


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """Failures first, then warnings, then what is well; otherwise as they were found."""
    rank = {"fail": 0, "warn": 1, "ok": 2}
    return sorted(findings, key=lambda finding: rank[finding.status])
