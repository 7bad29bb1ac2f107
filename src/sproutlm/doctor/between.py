"""Several sources of one data set: rows that stand in two of them, and labels that are never trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .finding import Examination, counted, do, listed, share
from .scan import PLACES, Scan

LEAK_SHARE = 0.01  # of held-out records that are trained on, above which they measure memory


def compare(found: Examination, train: Sequence[Scan], held_out: Sequence[Scan], label: str = "") -> None:
    """Records and labels of ``held_out`` against those of ``train``; both as far as they were looked at."""
    if not any(len(scan.content) for scan in train):
        return
    trained = np.concatenate([np.frombuffer(scan.content, dtype=np.uint64) for scan in train])
    names = listed([scan.path for scan in train])
    for scan in held_out:
        mine = np.frombuffer(scan.content, dtype=np.uint64)
        if len(mine):
            both = np.flatnonzero(np.isin(mine, trained))
            told(found, len(both), len(mine), [scan.places[i] for i in both[:PLACES]], f"{label}{scan.path}", names)
        labels(found, train, scan, label)


def held_out_rows(found: Examination, train: Sequence[Scan], rows: int, label: str = "") -> None:
    """The last ``rows`` records, which validation: {rows: N} holds out, against the others."""
    if not train or any(scan.cut_short for scan in train):
        return
    everything = np.concatenate([np.frombuffer(scan.content, dtype=np.uint64) for scan in train])
    places = [place for scan in train for place in scan.places]
    if not 0 < rows < len(everything):
        return
    both = np.flatnonzero(np.isin(everything[-rows:], everything[:-rows]))
    shown = [places[len(everything) - rows + i] for i in both[:PLACES]]
    told(found, len(both), rows, shown, f"{label}the last {counted(rows, 'record')}, held out", "the rows before them")


def told(found: Examination, both: int, of: int, places: list[str], part: str, train: str) -> None:
    if both:
        what = (
            f"{part}: {both:,} of {counted(of, 'record')} ({share(both, of)}) {do(both, 'have', 'has')} a text or prompt "
            f"that is in {train}, too: {', '.join(places)}{', ...' if both > len(places) else ''}"
        )
        cure = "make the parts anew with `sprout data split`, which keeps equal rows together"
        if both > LEAK_SHARE * of:
            found.warn("rows in two parts", f"{what}; on these, validation measures memory", cure)
        else:
            found.ok("rows in two parts", what, cure=cure)
    else:
        found.ok("rows in two parts", f"{part}: no text or prompt of it is in {train}")


def labels(found: Examination, train: Sequence[Scan], scan: Scan, label: str) -> None:
    known = {name for part in train for name in part.labels}
    if not known or not scan.labels:
        return
    new = [name for name in scan.labels if name not in known]
    if new:
        rows = sum(scan.labels[name] for name in new)
        found.fail(
            "labels not trained",
            f"{label}{scan.path}: {counted(rows, 'row')} {do(rows, 'have', 'has')} a label that no training row has: "
            f"{listed([repr(name) for name in new])}, first at {scan.label_at[new[0]]}",
            "spell it as the training rows do, or make the parts anew with: sprout data split --stratify",
        )
    else:
        found.ok("labels not trained", f"{label}{scan.path}: every label of it is in the training rows, too")
