"""The funnel: documents, bytes and tokens after each step, and why documents were rejected. Table, JSON and picture.

Two runs over the same input give the same report, byte for byte; so it holds no times.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from ..sources import Counts
from .stages import Plan
from .steps import step_names
from .work import read_json, write_bytes, write_json


def collect(plan: Plan) -> dict[str, Any]:
    """Add up the notes of all blocks."""
    counts = Counts()
    for number in range(len(plan.units)):
        counts.merge(Counts.from_dict(read_json(plan.work.note("read", f"{number:05d}"))["counts"]))
    names = step_names(plan.config)
    rows = {name: _Row() for name in ["read", *names]}
    blocks = plan.work.blocks(len(plan.units))
    kept = 0
    for block in blocks:
        for stage in ("judge", "write"):
            note = read_json(plan.work.note(stage, block))
            for name, figures in note["funnel"].items():
                rows[name].add(figures)
        kept += note["left"]
    rows["read"].reasons = Counter(counts.dropped)
    funnel = [row.as_dict(name, plan.config.tokenizer is not None) for name, row in rows.items()]
    rejected = sum(row.reasons.total() for name, row in rows.items() if name != "read")
    assert counts.records_out == kept + rejected, f"{counts.records_out} documents in, {kept} kept, {rejected} rejected"
    return {
        "rows": counts.as_dict(),
        "funnel": funnel,
        "kept": kept,
        "rejected": rejected,
        "blocks": len(blocks),
        "steps": names,
    }


class _Row:
    def __init__(self) -> None:
        self.documents = self.bytes = self.tokens = 0
        self.reasons, self.changed = Counter[str](), Counter[str]()

    def add(self, figures: dict[str, Any]) -> None:
        self.documents += figures["documents"]
        self.bytes += figures["bytes"]
        self.tokens += figures["tokens"] or 0
        self.reasons.update(figures["reasons"])
        self.changed.update(figures["changed"])

    def as_dict(self, step: str, with_tokens: bool) -> dict[str, Any]:
        return {
            "step": step,
            "documents": self.documents,
            "bytes": self.bytes,
            "tokens": self.tokens if with_tokens else None,
            "reasons": dict(sorted(self.reasons.items(), key=lambda pair: (-pair[1], pair[0]))),
            "changed": dict(sorted(self.changed.items())),
        }


def write_report(plan: Plan) -> dict[str, Any]:
    """Write report.md, funnel.png and, last, report.json, which marks the run as finished; gives its content."""
    report = collect(plan)
    out = Path(plan.out)
    write_bytes(out / "report.md", markdown(report).encode())
    write_bytes(out / "funnel.png", picture(report))
    write_json(plan.work.report, report)
    return report


def table(report: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the funnel as texts."""
    with_tokens = report["funnel"][0]["tokens"] is not None
    head = ["step", "documents", "of all", "MB", *(["tokens"] if with_tokens else []), "rejected, and what was changed"]
    first = max(1, report["funnel"][0]["documents"])
    rows = []
    for row in report["funnel"]:
        said = [f"{reason} {n:,}" for reason, n in row["reasons"].items()]
        said += [f"({what}: {n:,})" for what, n in row["changed"].items() if n]
        cells = [row["step"], f"{row['documents']:,}", f"{row['documents'] / first:.1%}", f"{row['bytes'] / 1e6:,.2f}"]
        rows.append([*cells, *([f"{row['tokens']:,}"] if with_tokens else []), ", ".join(said)])
    return head, rows


def markdown(report: dict[str, Any]) -> str:
    head, rows = table(report)
    lines = ["# Funnel", ""]
    lines += [f"| {' | '.join(cells)} |" for cells in [head, ["---", *["---:"] * (len(head) - 2), "---"], *rows]]
    examples = report["rows"]["examples"]
    lines += ["", f"{report['kept']:,} documents kept in clean/, {report['rejected']:,} in rejects/REASON/.", ""]
    lines += ["Rows that could not be read, first ones:", "", *(f"- {one}" for one in examples), ""] if examples else []
    return "\n".join(lines)


def picture(report: dict[str, Any]) -> bytes:
    """Bars of what is left after each step, the reasons beside them, as PNG."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    funnel = report["funnel"]
    figure = Figure(figsize=(9, 1 + 0.5 * len(funnel)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    first = max(1, funnel[0]["documents"])
    for place, row in enumerate(funnel):
        axes.barh(place, 1, color="#eeeeee")
        axes.barh(place, row["documents"] / first, color="#4c9f70")
        top = ", ".join(f"{reason} -{n:,}" for reason, n in list(row["reasons"].items())[:3])
        said = f"{row['documents']:,} documents, {row['bytes'] / 1e6:,.1f} MB"
        axes.text(0.01, place, said + (f"   ({top})" if top else ""), va="center", fontsize=8)
    axes.set_yticks(range(len(funnel)), [row["step"] for row in funnel])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_title("What is left after each step")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, metadata={"Software": None})
    return buffer.getvalue()
