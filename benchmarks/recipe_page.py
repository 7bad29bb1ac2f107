"""Tables and plots of ``recipe.py``'s finished runs."""

from __future__ import annotations

import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

from recipe import FINALISTS

Row = dict[str, Any]
BASE = "base"


def reached(curve: list[list[float]], target: float, column: int) -> float | None:
    """Tokens (column 0) or seconds (column 2) at which a falling curve first meets ``target`` bits per byte, linear
    between its points; None where it never does."""
    for before, after in zip(curve, curve[1:], strict=False):
        if after[1] <= target:
            if before[1] <= target:
                return before[column]
            share = (before[1] - target) / (before[1] - after[1])
            return before[column] + share * (after[column] - before[column])
    return None


def share_to(group: list[Row], baseline: list[Row], target: float, column: int) -> str:
    """Mean over seeds of what ``group`` took to meet ``target``, as a share of all that the baseline took."""
    found = [at for row in group if (at := reached(row["curve"], target, column)) is not None]
    if len(found) < len(group):
        return "not reached"
    return f"{statistics.fmean(found) / statistics.fmean(row['curve'][-1][column] for row in baseline):.3f}"


def mean_error(values: list[float]) -> tuple[float, float]:
    """Mean and its standard error; the error of one value is not known."""
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.fmean(values), error


def screened(rows: list[Row], group: str, base: Row | None) -> list[str]:
    lines = [
        "| run | bits per byte | beside the base | parameters | processor s |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in sorted(
        (r for r in rows if r["group"] == group and r["size"] == "3m" and r["seed"] == 1),
        key=lambda r: r["bits_per_byte"],
    ):
        beside = "" if base is None else f"{100 * (row['bits_per_byte'] / base['bits_per_byte'] - 1):+.2f} %"
        name = f"**{row['name']}**" if row["name"] == BASE else row["name"]
        lines.append(
            f"| {name} | {row['bits_per_byte']:.4f} | {beside} | {row['parameters'] / 1e6:.2f} M | {row['cpu_seconds']:.0f} |"
        )
    return lines


def finals(rows: list[Row]) -> list[str]:
    """By size and name: mean and error over seeds; tokens and time to the baseline's mean at its end, as shares of its own."""
    found: dict[tuple[str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        if row["name"] in FINALISTS:
            found[row["size"], row["name"], row["tokens"]].append(row)
    lines = [
        "| size | run | seeds | bits per byte | tokens to the baseline's end | time to it |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for size, name, tokens in sorted(found, key=lambda key: (len(key[0]), key[0], key[2], key[1])):
        group = found[size, name, tokens]
        mean, error = mean_error([r["bits_per_byte"] for r in group])
        baseline = next((n for s, n, t in found if (s, t) == (size, tokens) and n.startswith("nanogpt")), None)
        tokens_to = time_to = ""
        if baseline is not None and name != baseline:
            target = mean_error([r["bits_per_byte"] for r in found[size, baseline, tokens]])[0]
            tokens_to, time_to = (share_to(group, found[size, baseline, tokens], target, column) for column in (0, 2))
        plus = "" if len(group) == 1 else f" ± {error:.4f}"
        lines.append(
            f"| {size}, {tokens / 1e6:g} M tokens | {name} | {len(group)} | {mean:.4f}{plus} | {tokens_to} | {time_to} |"
        )
    return lines


def beside_best_baseline(rows: list[Row]) -> list[str]:
    """The finalists of the first seed beside the baseline's best point, whichever batch it has."""
    first = [r for r in rows if (r["size"], r["seed"]) == ("3m", 1)]
    best = min((r for r in first if r["group"] == "baseline"), key=lambda r: r["bits_per_byte"], default=None)
    if best is None:
        return []
    told = []
    for name in FINALISTS[1:]:
        own = [r for r in first if r["name"] == name]
        tokens, seconds = (
            (share_to(own, [best], best["bits_per_byte"], column) for column in (0, 2)) if own else ("", "")
        )
        told.append(f"{name}: {tokens} of its tokens, {seconds} of its processor time")
    return [
        f"To the end of the baseline's best point ({best['name']}, {best['bits_per_byte']:.4f}, one seed): {'; '.join(told)}."
    ]


def plot(rows: list[Row], column: int, label: str, out: Path) -> None:
    """Held-out bits per byte of the finalists, each seed a line; one panel a size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    chosen = [r for r in rows if r["name"] in FINALISTS]
    sizes = sorted({r["size"] for r in chosen}, key=lambda s: (len(s), s))
    names = sorted({r["name"] for r in chosen})
    figure, panels = plt.subplots(1, len(sizes), figsize=(5 * len(sizes), 3.6), squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        for number, name in enumerate(names):
            seeds = [r for r in chosen if (r["size"], r["name"]) == (size, name)]
            for i, row in enumerate(seeds):
                curve = row["curve"]
                panel.plot(
                    [p[column] for p in curve],
                    [p[1] for p in curve],
                    color=f"C{number}",
                    lw=1,
                    label=name if i == 0 else None,
                )
        panel.set(xlabel=label, ylabel="held-out bits per byte", title=f"{size} parameters")
        panel.set_yscale("log")
        panel.legend(fontsize=7)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=90)
    plt.close(figure)


def write_page(rows: list[Row], page: Path) -> None:
    """The page, and its plots in a folder of the page's name beside it."""
    base = next((r for r in rows if r["name"] == BASE and r["size"] == "3m" and r["seed"] == 1), None)
    if base is None:
        raise SystemExit("the base has not been run yet: python benchmarks/recipe.py --only base")
    commits = ", ".join(sorted({r["commit"] for r in rows}))
    folder = page.with_suffix("")
    lines = [
        "# The recipe, part by part",
        "",
        "    python benchmarks/recipe.py --data ../shared/data --jobs 2",
        "    python benchmarks/recipe.py --page docs/results/recipe.md",
        "",
        f"{len(rows)} runs, torch {base['torch']}, {base['compute']} over float32 masters, one thread each, commits {commits}. "
        "Text: Tang poems, Alpaca's instructions in English and Chinese, Wikipedia, Shakespeare; 500 documents held out; nothing "
        "read twice. Screened on one seed: differences of a few tenths of a percent there are noise (the finalists' errors "
        "say how much). Processor seconds come from a machine that did other things as well: differences of a tenth are noise.",
        "",
        "## The finalists",
        "",
        *finals(rows),
        "",
    ]
    lines += [*beside_best_baseline(rows), ""]
    if any(r["name"] in FINALISTS for r in rows):
        for column, label, name in ((0, "tokens", "tokens"), (2, "processor seconds", "time")):
            plot(rows, column, label, folder / f"{name}.png")
            lines += [f"![bits per byte against {label}]({folder.name}/{name}.png)", ""]
    lines += ["## One part at a time, 3 M parameters, 1 M tokens, seed 1", "", *screened(rows, "part", base), ""]
    if any(r["group"] == "adamw" for r in rows):
        lines += [
            "## The same model under AdamW (cosine to 0.1, as the baseline)",
            "",
            *screened(rows, "adamw", base),
            "",
        ]
    lines += ["## The baseline: GPT-2's block under AdamW, tuned", "", *screened(rows, "baseline", base), ""]
    page.write_text("\n".join(lines))
