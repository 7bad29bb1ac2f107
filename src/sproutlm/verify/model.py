"""``sprout verify model``: which checks each family goes through, and the report of what they found."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from .. import __version__
from ..errors import SproutError
from . import invariants, parity, reference
from .cases import CASES, Case, cases_of
from .measure import Measure, none_of, worst
from .report import ROTARY
from .rope_figures import FIGURES, golden_frequencies

Say = Callable[[str], None]
FAMILIES = tuple(dict.fromkeys(case.family for case in CASES.values()))


@dataclass(frozen=True)
class Check:
    """``promise``: what a reader may rely on; ``skip``: why a shape does not go through it, empty where it does."""

    promise: str
    measure: Callable[[Case], Measure]
    reference: bool = False
    skip: Callable[[Case], str] = field(default=lambda case: "")


def _no_reference(case: Case) -> str:
    return "" if case.theirs is not None else "no family of transformers has these parts"


def _not_cached(case: Case) -> str:
    return case.not_cached


def _not_trained(case: Case) -> str:
    return _no_reference(case) or case.not_trained


CHECKS = (
    Check("a transformers folder read here: the same logits", parity.read_here, True, _no_reference),
    Check("a folder written here, in transformers: the same logits", parity.written_for_them, True, _no_reference),
    Check("bf16 beside float32, relative: as near as transformers", parity.low_precision, True, _no_reference),
    Check(f"losses of {parity.STEPS} AdamW steps beside transformers", parity.training, True, _not_trained),
    Check("saved and loaded: bit for bit", parity.round_trip, False, _no_reference),
    Check("missing, extra, misshapen, quantised tensors: refused by name", parity.refusals, False, _no_reference),
    Check("a block with zeroed outputs is the identity", invariants.identity),
    Check("packed documents equal documents alone", invariants.packed_is_alone),
    Check("another text in one document changes no other", invariants.documents_apart),
    Check("cached equals uncached", invariants.cached_is_uncached, False, _not_cached),
    *(
        Check(f"left-padded in a batch equals alone, {str(dtype).removeprefix('torch.')}", measure, False, _not_cached)
        for dtype, measure in invariants.BATCHED_CHECKS.items()
    ),
    Check("first weights: the same in any order, on any device's share", invariants.initial_weights),
)


def verify_model(family: str | None = None, say: Say = lambda line: None) -> dict[str, Any]:
    """Every check on every tiny shape of ``family``, or of all; each result is told to ``say`` as it is found.

    Returns ``ok``, ``checks`` (family, promise, error, atol, rtol, ok, worst case, shapes, left_out, note), ``seconds``,
    and the versions compared. A fault is a result, not an exception; SproutError for a family that is not known.
    """
    if family is not None and family not in FAMILIES:
        raise SproutError(f"--family {family}: not known; known are {', '.join(FAMILIES)}")
    started, checks = time.perf_counter(), list[dict[str, Any]]()
    say(
        f"sproutlm {__version__}, torch {torch.__version__}, "
        + (f"beside transformers {reference.version()}" if reference.version() else "without a reference")
    )
    if family is None:
        say(ROTARY)
        for figures in FIGURES:
            found = guarded(partial(golden_frequencies, figures))
            checks.append(result(ROTARY, f"golden frequencies: {figures.name}", [(figures.name, found)]))
            say(line_of(checks[-1]))
    for name in FAMILIES if family is None else (family,):
        shapes, told = list(cases_of(name)), set[str]()
        say(f"{name}: {len(shapes)} shapes")
        for check in CHECKS:
            if check.reference and reference.version() is None:
                continue
            row = through(check, shapes)
            if row is None:
                continue
            for case_name, reason in row["left_out"].items():
                if reason not in told:
                    say(f"  {case_name} is left out where named: {reason}")
                    told.add(reason)
            checks.append(row)
            say(line_of(row))
    report = summary(checks, started)
    report["transformers"] = reference.version()
    if reference.version() is None:
        report["note"] = reference.ABSENT
    return report


def through(check: Check, shapes: Sequence[Case]) -> dict[str, Any] | None:
    """One check on every shape that can go through it; None where none can."""
    measured, left_out = [], {}
    for case in shapes:
        reason = check.skip(case)
        if reason:
            left_out[case.name] = reason
            continue
        measured.append((case.name, guarded(partial(check.measure, case))))
    if not measured:
        return None
    return result(shapes[0].family, check.promise, measured, left_out)


def guarded(measure: Callable[[], Measure]) -> Measure:
    """A check that cannot even run has failed; the others go on."""
    try:
        return measure()
    except Exception as error:
        first_line = (str(error).splitlines() or [""])[0]
        return none_of([f"{type(error).__name__}: {first_line[:300]}"])


def result(
    family: str, promise: str, measured: Sequence[tuple[str, Measure]], left_out: dict[str, str] | None = None
) -> dict[str, Any]:
    """The worst of several shapes as one line of the report."""
    found = worst(one for _, one in measured)
    case = next(name for name, one in measured if one is found)
    left_out = left_out or {}
    return {"family": family, "promise": promise, **asdict(found), "case": case} | {
        "shapes": len(measured),
        "left_out": left_out,
    }


def summary(checks: list[dict[str, Any]], started: float) -> dict[str, Any]:
    failed = sum(not check["ok"] for check in checks)
    return {
        "ok": not failed,
        "failed": failed,
        "checks": checks,
        "seconds": round(time.perf_counter() - started, 1),
        "version": __version__,
        "torch": torch.__version__,
    }


def line_of(check: dict[str, Any]) -> str:
    """``ok   promise   error of tolerance``, and the shape where it failed."""
    tolerance = f"{check['atol']:.3g}" if check["atol"] else "0"
    if check["rtol"]:
        tolerance += f" + {check['rtol']:.2g} of each value"
    text = f"  {'ok' if check['ok'] else 'FAIL':4}  {check['promise']:<64} {check['error']:.2g} of {tolerance}"
    if not check["ok"]:
        text += f"; {check['case']}" + (f": {check['note']}" if check["note"] else "")
    elif check["note"]:
        text += f" ({check['note']})"
    return text + "".join(f"; without {name}" for name in check["left_out"])
