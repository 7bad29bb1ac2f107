"""Does a mixture of experts pay? The same tokens, the same active parameters, three seeds: bits per byte and time.

    python benchmarks/moe.py [--data FILE] [--steps N] [--seeds 1,2,3] [--out benchmarks/results/moe.json]

Without ``--data`` both learn the embedded world, which needs no file. Per token the dense model uses slightly more
parameters than the mixture: its MLP is as wide as the chosen experts together, plus what the router weighs. All else is
equal: tokenizer, rows and their order, batch, optimizer, schedule, held-out documents. An interrupted run is continued
by the same command: what stands in ``--out`` is not run again.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from sproutlm.config.load import load_recipe
from sproutlm.config.model import ModelConfig
from sproutlm.config.schema import Recipe, SourceConfig
from sproutlm.export import load
from sproutlm.model import Transformer
from sproutlm.pipeline.prepare import prepare, resolve_synthetic
from sproutlm.pipeline.train import train_recipe
from sproutlm.train.metrics import read_metrics

DIM, LAYERS, HEADS, EXPERTS, TOP_K, EXPERT_DIM = 64, 2, 2, 8, 2, 88
# As wide as the chosen experts, the router's weights included, rounded up to 8: the dense model never has the fewer.
DENSE_DIM = -(-(TOP_K * EXPERT_DIM + math.ceil(EXPERTS / 3)) // 8) * 8
SHAPES: dict[str, list[str]] = {
    "dense": [f"model.ffn_dim={DENSE_DIM}"],
    "moe": [
        "model.family=qwen3_moe",
        f"model.ffn_dim={DENSE_DIM}",
        f"model.moe.n_experts={EXPERTS}",
        f"model.moe.top_k={TOP_K}",
        f"model.moe.expert_dim={EXPERT_DIM}",
        "model.moe.aux_weight=0.01",
    ],
}


def parameters(config: ModelConfig) -> dict[str, int]:
    """All parameters, and those that one token uses."""
    with torch.device("meta"):
        model = Transformer(config)
    total = sum(p.numel() for p in model.parameters())
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    share = 1.0 if config.moe is None else config.moe.top_k / config.moe.n_experts
    return {"total": total, "active": total - round(experts * (1 - share))}


def recipe_of(shape: str, seed: int, args: argparse.Namespace, work: Path, source: str) -> Recipe:
    settings = [
        f"seed={seed}",
        f"data.train={source}",
        f"data.cache={work / 'data'}",
        f"tokenizer.vocab_size={args.vocab}",
        f"model.dim={DIM}",
        f"model.n_layers={LAYERS}",
        f"model.n_heads={HEADS}",
        f"train.steps={args.steps}",
        f"train.validate_every={args.steps}",
        f"train.save_every={args.steps}",
        "train.sample_every=0",
        "train.validation_rows=0",
        "train.log_every=50",
        "data.validation.rows=400",
        *SHAPES[shape],
    ]
    recipe = load_recipe(Path(__file__).resolve().parents[1] / "recipes/tiny.yaml", settings).recipe
    assert isinstance(recipe, Recipe)
    return recipe


def run_one(shape: str, seed: int, args: argparse.Namespace, work: Path, source: str) -> dict[str, Any]:
    """Train one contestant with the recipe's own loop, on the tokenizer and rows that all share."""
    recipe = recipe_of(shape, seed, args, work, source)
    recipe = recipe.model_copy(
        update={"tokenizer": recipe.tokenizer.model_copy(update={"path": str(work / "tokenizer")})}
    )
    folder = work / f"{shape}-{seed}"
    wall, cpu = time.perf_counter(), time.process_time()
    train_recipe(recipe, folder, say=lambda line: None)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    rows = read_metrics(folder / "metrics.jsonl")
    last = [row for row in rows if "val_bpb" in row][-1]
    model, _ = load(folder)
    return {
        "shape": shape,
        "seed": seed,
        **parameters(model.config),
        "tokens": args.steps * recipe.train.batch_tokens,
        "bits_per_byte": last["val_bpb"],
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Means, and the difference by seed with its standard error."""
    by = {(run["shape"], run["seed"]): run for run in runs}
    seeds = sorted({run["seed"] for run in runs if ("dense", run["seed"]) in by and ("moe", run["seed"]) in by})
    gains = [by["dense", s]["bits_per_byte"] - by["moe", s]["bits_per_byte"] for s in seeds]
    out: dict[str, Any] = {"seeds": seeds, "gain_by_seed": gains}
    for shape in SHAPES:
        mine = [by[shape, s] for s in seeds]
        for name in ("bits_per_byte", "wall_seconds", "cpu_seconds"):
            out[f"{shape}_{name}"] = statistics.fmean(run[name] for run in mine) if mine else None
    out["gain"] = statistics.fmean(gains) if gains else None
    out["standard_error"] = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else None
    out["moe_is_better_in_every_seed"] = bool(gains) and all(gain > 0 for gain in gains)
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="", help="a text or jsonl file instead of the embedded world")
    parser.add_argument("--work", default="runs/bench-moe")
    parser.add_argument("--out", default="benchmarks/results/moe.json")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--vocab", type=int, default=1500)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    out, work = Path(args.out), Path(args.work)
    how = {"data": Path(args.data).name or "synth:small", "steps": args.steps, "vocab": args.vocab}
    before = json.loads(out.read_text()) if out.is_file() else {}
    runs = before.get("runs", []) if before.get("how") == how else []
    source = args.data or str(resolve_synthetic([SourceConfig(path="synth:small/pretrain")], work, print)[0].path)
    prepare(recipe_of("dense", 0, args, work, source), work)
    for seed in [int(seed) for seed in args.seeds.split(",")]:
        for shape in SHAPES:
            if any((run["shape"], run["seed"]) == (shape, seed) for run in runs):
                continue
            runs.append(run_one(shape, seed, args, work, source))
            print(json.dumps(runs[-1]), flush=True)
            report = {"how": how, "threads": args.threads, "torch": torch.__version__}
            report |= {"summary": summary(runs), "runs": runs}
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(summary(runs), indent=1))


if __name__ == "__main__":
    main()
