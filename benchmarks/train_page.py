"""The results page of ``benchmarks/train.py``, from its JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMES = {
    "ours": "**SproutLM**, AdamW", "ours-muon": "SproutLM, its default optimizer",
    "transformers": "transformers, `Trainer`", "litgpt": "litgpt's model, plain loop", "nanogpt": "nanoGPT-style loop",
}  # fmt: skip
HEAD = (
    "| | mode | parameters | tokens/s | SproutLM is faster by | peak memory, GB |",
    "| --- | --- | ---: | ---: | ---: | ---: |",
)


def page(about: dict[str, Any], source: Path) -> str:
    """The page in Markdown. ``source``: where the figures lie."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(about["versions"].items()))
    clock = "" if about["clock"] == "wall" else " Seconds are processor seconds: the machine had other work."
    apart = ", which begins anew for each reading" if about["apart"] else ""
    lines = [
        "# Training, beside other trainers",
        "",
        f"    {about['command']}",
        "",
        f"This page is written by `python benchmarks/train.py --from-json --json {source.as_posix()} --page FILE`. "
        f"{about['date']}, {about['device']}, {about['threads']} threads, {versions}, commit {about['commit']}.{clock}",
        "",
        "Whole optimizer steps: a batch from one file of random tokens, forward, loss, backward, gradients clipped at 1, "
        f"optimizer, schedule, a line of the log. Everyone in a process of its own as its users run it{apart}, in turns "
        f"({about['rounds']} rounds); rates are medians, ratios the median of the pairs' ratios. Each peer runs in the fastest "
        "of its modes, found in the readings below. Peak memory is that of the device's allocator on CUDA, and otherwise the "
        "process's, libraries and compiler included.",
        "",
        "SproutLM keeps float32 weights and optimizer state and computes in the type that is named as its mode. Of the "
        "peers, `float32` and `autocast` keep float32 weights; **`bf16` has none**: weights and optimizer state are bf16 as "
        "well, so that small updates are lost to rounding. It is compared with all the same.",
        "",
        "The nanoGPT-style model has GPT-2's blocks in every case, at the same width and depth; litgpt has no learned "
        "positions and rotates a quarter of each head in GPT-2's shape. What makes the difference: `docs/experiments.md`.",
    ]
    for row in about["rows"]:
        lines += [
            "",
            f"## {row['what']}, {row['rows']} x {row['seq']} tokens a step",
            "",
            *table(row),
            "",
            *outcome(row),
        ]
        lines += ["", *modes_table(row)]
    return "\n".join(lines) + "\n"


def table(row: dict[str, Any]) -> list[str]:
    lines = list(HEAD)
    for who, one in row["contestants"].items():
        ratio = f"{row['ratio'][who]:.2f}x" if who in row.get("ratio", {}) else ""
        lines.append(
            f"| {NAMES[who]} | {one['mode']} | {one['parameters']:,} | {one['tokens_per_second']:,.0f} | {ratio} | "
            f"{one['peak_bytes'] / 1e9:.2f} |"
        )
    return lines


def outcome(row: dict[str, Any]) -> list[str]:
    """What the case comes to, in a sentence each."""
    lines = []
    if "fastest_peer" in row:
        lines.append(
            f"- **{row['ratio_to_fastest_peer']:.2f}x** the fastest peer ({row['fastest_peer']}, "
            f"{row['contestants'][row['fastest_peer']]['mode']})."
        )
    if "memory_ratio_to_transformers" in row:
        lines.append(
            f"- **{row['memory_ratio_to_transformers']:.2f}x** the peak memory of transformers in its fastest mode."
        )
    if "share_of_products" in row:
        lines.append(
            f"- {row['model_flops_per_second'] / 1e12:.3g} TFLOP/s of the model: **{row['share_of_products']:.0%}** of the "
            f"{row['products_flops_per_second'] / 1e12:.3g} that `torch.mm` reaches in {row['products_type']} on the products "
            "of the model's linear layers alone, forward and backward."
        )
    if row.get("mfu") is not None:
        lines.append(f"- MFU {row['mfu']:.1%} of the bf16 peak that the card's maker states.")
    lines += [f"- {who}: {why}." for who, why in row["skipped"].items()]
    return lines


def modes_table(row: dict[str, Any]) -> list[str]:
    """Each peer's modes: tokens a second and GB, or why not."""
    peers = list(row["pre_readings"])
    if not peers:
        return []
    modes = list(dict.fromkeys(mode for peer in peers for mode in row["pre_readings"][peer]))
    lines = [
        "All modes, in a short reading each (tokens/s, peak GB):",
        "",
        f"| mode | {' | '.join(peers)} |",
        f"| --- | {' | '.join('---:' for _ in peers)} |",
    ]
    failed: list[str] = []
    for mode in modes:
        cells = []
        for peer in peers:
            reading = row["pre_readings"][peer].get(mode)
            if reading is None:
                cells.append("not tried")
            elif "error" in reading:
                failed.append(f"- {peer}, {mode}: {reading['error']}")
                cells.append("does not run")
            else:
                cells.append(f"{reading['tokens_per_second']:,.0f} ({reading['peak_bytes'] / 1e9:.2f})")
        lines.append(f"| {mode} | {' | '.join(cells)} |")
    return lines + ([""] + failed if failed else [])
