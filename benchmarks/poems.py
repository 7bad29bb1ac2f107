"""Tokens to the same held-out bits-per-byte: a nanoGPT-style model against the poems-zh recipe, in one run.

    python benchmarks/poems.py --poems poems.jsonl.gz --out benchmarks/results/poems.json [--threads 2]

Both sides share tokenizer, training poems, held-out poems, batch (4,096 tokens), compute type, loop and parameter
count (3.4 M). The baseline is GPT-2's block (learned positions, LayerNorm, GELU, biases, tied head, scaled init) on
concatenated documents, AdamW (0.9, 0.95), weight decay 0.1, clip 1, cosine to a tenth, as nanoGPT trains it; its rate
is the best of those tried. Each side is judged on rows packed as it was trained.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from nanogpt import GPT2
from recipe_page import reached
from torch import nn

from sproutlm.config.load import load_recipe
from sproutlm.config.schema import OptimizerConfig, Recipe, ScheduleConfig
from sproutlm.eval.bits_per_byte import TextBytes, make_evaluator
from sproutlm.objectives.next_token import next_token
from sproutlm.pipeline.prepare import Prepared, loader_of, prepare
from sproutlm.pipeline.split import micro_rows
from sproutlm.pipeline.train import COMPUTE_TYPES, choose_compute, total_steps, train_recipe
from sproutlm.train.checkpoint import Checkpointer
from sproutlm.train.metrics import MetricsLog, read_metrics
from sproutlm.train.trainer import Trainer


def run_one(
    name: str, recipe: Recipe, model: nn.Module, prepared: Prepared, out: Path, compute: torch.dtype, every: int
) -> dict[str, Any]:
    """Train one contestant; return its curve and final figure on all held-out rows."""
    tokenizer = prepared.tokenizer
    assert prepared.validation is not None
    loader = loader_of(recipe, prepared.train, tokenizer.pad_id)
    held_out = loader_of(recipe, prepared.validation, tokenizer.pad_id)
    token_bytes = TextBytes(tokenizer)
    steps = total_steps(recipe, loader.rows_per_epoch)
    config = recipe.train.model_copy(update={"validate_every": every, "save_every": steps, "sample_every": 0})
    folder = out / name
    trainer = Trainer(
        model,  # type: ignore[arg-type]
        next_token,
        loader,
        optimizer=recipe.optimizer,
        schedule=recipe.schedule,
        config=config,
        total_steps=steps,
        micro_rows=micro_rows(recipe),
        seed=recipe.seed,
        streams=recipe.train.streams,
        compute=compute,
        checkpointer=Checkpointer(folder / "checkpoints", 1),
        metrics=MetricsLog(folder / "metrics.jsonl"),
        checkpoint_files={},
        identity={},
        evaluators=[make_evaluator(held_out, token_bytes, held_out.rows_per_epoch, micro_rows(recipe))],
    )
    started = time.perf_counter()
    trainer.fit()
    rows = read_metrics(folder / "metrics.jsonl")
    curve = [(r["step"] * recipe.train.batch_tokens, r["val_bpb"]) for r in rows if "val_bpb" in r]
    return {
        "name": name,
        "parameters": sum(p.numel() for p in model.parameters()),
        "steps": steps,
        "curve": curve,
        "bits_per_byte": curve[-1][1],
        "seconds": round(time.perf_counter() - started, 1),
        "optimizer": recipe.optimizer.model_dump(),
    }


def run_ours(recipe: Recipe, prepared: Prepared, work: Path, every: int) -> dict[str, Any]:
    """Train the recipe as ``sprout train`` does, on the same tokenizer and shards."""
    data = recipe.data.model_copy(update={"cache": str(work / "data")})
    train = recipe.train.model_copy(update={"validate_every": every, "validation_rows": 0})
    tokenizer = recipe.tokenizer.model_copy(update={"path": str(work / "tokenizer")})
    folder = work / "sproutlm"
    started = time.perf_counter()
    figures = train_recipe(recipe.model_copy(update={"data": data, "train": train, "tokenizer": tokenizer}), folder)
    rows = read_metrics(folder / "metrics.jsonl")
    curve = [(r["step"] * recipe.train.batch_tokens, r["val_bpb"]) for r in rows if "val_bpb" in r]
    return {
        "name": "sproutlm",
        "parameters": figures["parameters"],
        "steps": figures["steps"],
        "curve": curve,
        "bits_per_byte": curve[-1][1],
        "seconds": round(time.perf_counter() - started, 1),
        "optimizer": recipe.optimizer.model_dump(),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--poems", required=True)
    parser.add_argument("--work", default="runs/bench-poems")
    parser.add_argument("--out", default="benchmarks/results/poems.json")
    parser.add_argument("--rates", default="0.001,0.002,0.004")
    parser.add_argument("--every", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    root = Path(__file__).resolve().parents[1]
    settings = [f"data.train={args.poems}", f"train.streams={args.threads}", *args.overrides]
    recipe = load_recipe(root / "recipes/poems-zh.yaml", settings).recipe
    assert isinstance(recipe, Recipe) and recipe.model is not None
    work = Path(args.work)
    prepared = prepare(recipe, work)
    dtype, why = choose_compute(torch.device("cpu"))
    dtype = COMPUTE_TYPES.get(recipe.train.compute, dtype)
    vocab = prepared.tokenizer.vocab_size
    results = []
    if "skip" not in args.rates:
        for rate in [float(r) for r in args.rates.split(",")]:
            data = recipe.data.model_copy(update={"packing": "stream", "document_mask": False})
            adamw = OptimizerConfig(name="adamw", lr=rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
            schedule = ScheduleConfig(name="cosine", warmup=0.03, final=0.1)
            baseline = recipe.model_copy(update={"data": data, "optimizer": adamw, "schedule": schedule})
            torch.manual_seed(recipe.seed)
            model = GPT2(vocab, recipe.model.dim, recipe.model.n_layers, recipe.model.n_heads, recipe.data.seq_len)
            results.append(run_one(f"gpt2-adamw-{rate:g}", baseline, model, prepared, work, dtype, args.every * 4))
            print(json.dumps({k: v for k, v in results[-1].items() if k != "curve"}), flush=True)
    ours = run_ours(recipe, prepared, work, args.every)
    best = min(results, key=lambda r: r["bits_per_byte"]) if results else None
    report: dict[str, Any] = {
        "device": {
            "threads": args.threads,
            "compute": str(dtype),
            "why": why,
            "cpu": torch.backends.cpu.get_cpu_capability(),
        },
        "torch": torch.__version__,
        "baseline": results,
        "sproutlm": ours,
    }
    if best:
        tokens = reached(ours["curve"], best["bits_per_byte"], 0)
        total = best["curve"][-1][0]
        report["tokens_to_baseline"] = tokens
        report["ratio_of_tokens"] = tokens / total if tokens else None
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "baseline"}))


if __name__ == "__main__":
    main()
