"""The recipe's defaults, earned: many short trainings on the same real text, one change at a time.

    python benchmarks/recipe.py --data ../shared/data --jobs 2 [--only screen,finals] [--list]
    python benchmarks/recipe.py --page docs/results/recipe.md         # tables and plots from what has been run

Each run is one line of ``STUDY`` below: a name, what it changes of the base, a size, a seed. A finished run leaves one line
in ``benchmarks/results/recipe.jsonl`` and is never run again; a stopped study goes on where it was. Runs go one per
process and thread, so that the processor time of each is its own however busy the machine is.

The text: Tang poems, Alpaca's instructions in English and Chinese as plain text, Wikipedia and Shakespeare, shuffled by
document; 500 documents are held out and judged in bits per byte (each contestant on rows packed as it was trained).
No text is read twice within a run. The baseline ("nanogpt") is GPT-2's block on concatenated documents under AdamW.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks/results/recipe.jsonl"
SIZES = {
    "3m": {"dim": 192, "n_layers": 5, "n_heads": 3, "ffn_dim": 512},
    "10m": {"dim": 320, "n_layers": 8, "n_heads": 5, "ffn_dim": 832},
}
TOKENS = 1_000_000
SEQ, HELD_OUT, VALIDATIONS = 256, 500, 8


@dataclass(frozen=True)
class Run:
    """``changes``: recipe settings; ``model``: ours or the baseline; ``scaled_init``: residual writers not at zero."""

    name: str
    group: str
    changes: tuple[str, ...] = ()
    size: str = "3m"
    seed: int = 1
    model: str = "ours"
    scaled_init: bool = False
    tokens: int = TOKENS

    @property
    def key(self) -> str:
        return f"{self.name}/{self.size}/seed{self.seed}/{self.tokens}"


def adamw(rate: float, decay: float = 0.1, *more: str) -> tuple[str, ...]:
    return (
        "optimizer.name=adamw", f"optimizer.lr={rate:g}", f"optimizer.weight_decay={decay:g}",
        "optimizer.eps=1e-8", "schedule.name=cosine", "schedule.warmup=0.03", "schedule.final=0.1", *more,
    )  # fmt: skip


def nanogpt(rate: float, decay: float = 0.1, *more: str) -> tuple[str, ...]:
    return (*adamw(rate, decay), "data.packing=stream", "data.document_mask=false", *more)


def study() -> Iterator[Run]:
    for rate in (0.0005, 0.001, 0.002, 0.004):
        yield Run(f"nanogpt lr {rate:g}", "baseline", nanogpt(rate), model="nanogpt")
    for name, rate, decay, more in (
        ("nanogpt lr 0.0005, batch 2,048", 0.0005, 0.1, "train.batch_tokens=2048"),
        ("nanogpt lr 0.001, batch 2,048", 0.001, 0.1, "train.batch_tokens=2048"),
        ("nanogpt lr 0.001, decay 0", 0.001, 0.0, "data.packing=stream"),
        ("nanogpt lr 0.001, beta2 0.99", 0.001, 0.1, "optimizer.betas=[0.9,0.99]"),
    ):
        yield Run(name, "baseline", nanogpt(rate, decay, more), model="nanogpt")
    yield Run("base", "part")
    parts: list[tuple[str, tuple[str, ...]]] = [
        ("Muon 0.01", ("optimizer.lr=0.01",)),
        ("Muon 0.04", ("optimizer.lr=0.04",)),
        ("embedding rate 0.003", ("optimizer.embedding_lr=0.003",)),
        ("embedding rate 0.012", ("optimizer.embedding_lr=0.012",)),
        ("no QK-norm", ("model.family=llama", "model.qk_norm=false")),
        ("ReLU2, no gate", ("model.family=research", "model.qk_norm=true", "model.activation=relu2", "model.gated=false", "model.ffn_dim=FFN4")),
        ("untied head", ("model.tie_embeddings=false",)),
        ("norm after the embedding", ("model.family=research", "model.qk_norm=true", "model.embedding_norm=true")),
        ("untied head, norm after the embedding", ("model.family=research", "model.qk_norm=true", "model.tie_embeddings=false", "model.embedding_norm=true")),
        ("cosine to 0.1", ("schedule.name=cosine", "schedule.final=0.1")),
        ("linear to 0.05", ("schedule.name=linear",)),
        ("decay over the last 30 %", ("schedule.decay=0.3",)),
        ("batch 2,048, rates / sqrt 2", ("train.batch_tokens=2048", "optimizer.lr=0.01414", "optimizer.embedding_lr=0.00424", "optimizer.scalar_lr=0.00424")),
        ("batch 8,192, rates x sqrt 2", ("train.batch_tokens=8192", "optimizer.lr=0.02828", "optimizer.embedding_lr=0.00849", "optimizer.scalar_lr=0.00849")),
        ("weight decay 0.1", ("optimizer.weight_decay=0.1",)),
        ("no clipping", ("train.clip=0",)),
        ("z-loss 1e-4", ("train.z_loss=0.0001",)),
        ("rows of the concatenated text", ("data.packing=stream", "data.document_mask=false")),
    ]  # fmt: skip
    for name, changes in parts:
        yield Run(name, "part", changes)
    yield Run("residual writers at 0.02 / sqrt(2 layers)", "part", scaled_init=True)
    winner = (
        "model.family=research",
        "model.qk_norm=true",
        "model.tie_embeddings=false",
        "model.embedding_norm=true",
    )
    untied = ("model.family=research", "model.qk_norm=true", "model.tie_embeddings=false")
    further: list[tuple[str, tuple[str, ...]]] = [  # around what won
        ("untied, norm, embedding rate 0.012", (*winner, "optimizer.embedding_lr=0.012")),
        ("untied, norm, embedding rate 0.024", (*winner, "optimizer.embedding_lr=0.024")),
        ("untied head, embeddings x 50", (*untied, "model.embedding_scale=50")),
        ("untied, norm, Muon 0.04", (*winner, "optimizer.lr=0.04")),
        ("untied, norm, batch 2,048", (*winner, "train.batch_tokens=2048")),
        (
            "untied, norm, embedding rate 0.012, batch 2,048",
            (*winner, "optimizer.embedding_lr=0.012", "train.batch_tokens=2048"),
        ),
    ]
    for name, changes in further:
        yield Run(name, "part", changes)
    for rate in (0.002, 0.004, 0.008, 0.016):  # the same model under AdamW
        yield Run(f"AdamW lr {rate:g}, decay 0.1", "adamw", adamw(rate))
    yield from finalists()
    more: list[tuple[str, tuple[str, ...]]] = [
        ("embedding rate 0.024", ("optimizer.embedding_lr=0.024",)),
        ("scalar rate 0.02", ("optimizer.scalar_lr=0.02",)),
        ("GELU, no gate", ("model.family=research", "model.qk_norm=true", "model.activation=gelu", "model.gated=false", "model.ffn_dim=FFN4")),
        ("decay over all but the warm-up", ("schedule.decay=0.95",)),
        ("batch 2,048", ("train.batch_tokens=2048",)),
        ("batch 8,192", ("train.batch_tokens=8192",)),
        ("weight decay 0.4", ("optimizer.weight_decay=0.4",)),
        ("betas 0.8, 0.95", ("optimizer.betas=[0.8,0.95]",)),
        ("momentum from the start", ("optimizer.momentum_warmup=0.0",)),
        ("one key head", ("model.n_kv_heads=1",)),
    ]  # fmt: skip
    for name, changes in more:
        yield Run(name, "part", changes)
    for rate in (0.002, 0.004, 0.008, 0.016):
        yield Run(f"AdamW lr {rate:g}, decay 0", "adamw", adamw(rate, 0.0))


def finalists() -> Iterator[Run]:
    """Confirmed on three seeds and two sizes: the baseline at its best rate, the base, and what won."""
    winner = ("model.family=research", "model.qk_norm=true", "model.tie_embeddings=false", "model.embedding_norm=true")
    for size in SIZES:
        for seed in (1, 2, 3):
            yield Run(FINALISTS[0], "baseline", nanogpt(0.001), size=size, seed=seed, model="nanogpt")
            yield Run(FINALISTS[1], "part", size=size, seed=seed)
            yield Run(FINALISTS[2], "part", winner, size=size, seed=seed)


FINALISTS = ("nanogpt lr 0.001", "base", "untied head, norm after the embedding")


def write_text(data: Path, out: Path) -> None:
    """One JSON line per document, shuffled by a fixed seed."""
    documents: list[str] = []

    def rows(path: str) -> Iterator[dict[str, Any]]:
        with gzip.open(data / path, "rt", encoding="utf-8") as f:
            yield from map(json.loads, f)

    documents += [row["text"] for row in rows("pretrain/tang_poems_zh.jsonl.gz")]
    for path in ("sft/alpaca_en.jsonl.gz", "sft/alpaca_zh.jsonl.gz"):
        documents += ["\n".join(filter(None, (r["instruction"], r["input"], r["output"]))) for r in rows(path)]
    for path in ("pretrain/wiki_en.txt", "pretrain/shakespeare_en.txt"):
        paragraphs = (data / path).read_text(encoding="utf-8").split("\n\n")
        documents += ["\n\n".join(paragraphs[i : i + 8]) for i in range(0, len(paragraphs), 8)]
    random.Random(0).shuffle(documents)
    partial = out.with_suffix(".part")
    with open(partial, "w", encoding="utf-8") as f:
        f.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in documents if text.strip())
    partial.replace(out)


def settings_of(run: Run, work: Path) -> list[str]:
    shape = SIZES[run.size]
    base = [
        f"data.train={work / 'text.jsonl'}",
        f"data.validation.rows={HELD_OUT}",
        f"data.seq_len={SEQ}",
        f"seed={run.seed}",
    ]
    base += [f"model.{name}={value}" for name, value in shape.items()] + [f"model.n_kv_heads={shape['n_heads']}"]
    changes = [change.replace("FFN4", str(shape["ffn_dim"] * 3 // 2)) for change in run.changes]
    return [*base, "train.epochs=null", f"train.tokens={run.tokens}", *changes]


def train_one(run: Run, work: Path) -> dict[str, Any]:
    """Train; the figures are a curve of (tokens, held-out bits per byte, processor seconds of training alone)."""
    import torch

    sys.path.insert(0, str(Path(__file__).parent))
    from contest import commit
    from nanogpt import GPT2

    from sproutlm.config.load import load_recipe
    from sproutlm.eval.bits_per_byte import TextBytes, make_evaluator
    from sproutlm.model import Transformer
    from sproutlm.model.init import RESIDUAL_WRITERS, parameter_generator
    from sproutlm.objectives.next_token import next_token
    from sproutlm.pipeline.prepare import loader_of, prepare
    from sproutlm.pipeline.train import objective_of, total_steps
    from sproutlm.train.allocator import keep_freed_memory
    from sproutlm.train.metrics import MetricsLog, read_metrics
    from sproutlm.train.trainer import Trainer

    torch.set_num_threads(1)
    keep_freed_memory()
    recipe = load_recipe(ROOT / "recipes/poems-zh.yaml", settings_of(run, work)).recipe
    stream = recipe.data.packing == "stream"
    data = recipe.data.model_copy(update={"cache": str(work / ("data-stream" if stream else "data"))})
    tokenizer_config = (
        recipe.tokenizer.model_copy(update={"path": str(work / "tokenizer")})
        if (work / "tokenizer").is_dir()
        else recipe.tokenizer
    )
    recipe = recipe.model_copy(update={"data": data, "tokenizer": tokenizer_config})
    prepared = prepare(recipe, work, say=lambda _: None)
    assert prepared.validation is not None and recipe.model is not None
    vocab = prepared.tokenizer.vocab_size
    if run.model == "nanogpt":
        torch.manual_seed(run.seed)
        model: Any = GPT2(vocab, recipe.model.dim, recipe.model.n_layers, recipe.model.n_heads, SEQ)
        objective: Any = next_token
    else:
        config = recipe.model.model_copy(update={"vocab_size": vocab})
        model, objective = Transformer(config).init_weights(run.seed), objective_of(recipe)
        if run.scaled_init:
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if name.endswith(RESIDUAL_WRITERS):
                        p.normal_(
                            0, 0.02 / math.sqrt(2 * config.n_layers), generator=parameter_generator(run.seed, name)
                        )
    if run.model == "nanogpt":
        model.config = recipe.model.model_copy(update={"vocab_size": vocab})  # what the objective asks of it: no cap
    loader, held_out = (
        loader_of(recipe, part, prepared.tokenizer.pad_id) for part in (prepared.train, prepared.validation)
    )
    steps = total_steps(recipe, loader.rows_per_epoch)
    if steps * recipe.train.batch_tokens // SEQ > loader.rows_per_epoch:
        raise SystemExit(f"{run.key}: the text has {loader.rows_per_epoch} rows, fewer than the run reads")
    rows = recipe.train.batch_tokens // SEQ // 2
    bits = make_evaluator(held_out, TextBytes(prepared.tokenizer), held_out.rows_per_epoch, 8)
    spent = {"validating": 0.0}
    curve: list[tuple[int, float, float]] = []
    begin = time.process_time()

    def evaluate(model: Any, step: int) -> dict[str, float]:
        start = time.process_time()
        trained = start - begin - spent["validating"]
        figures = bits(model, step)
        curve.append((step * recipe.train.batch_tokens, figures["val_bpb"], round(trained, 2)))
        spent["validating"] += time.process_time() - start
        return figures

    folder = work / "runs" / run.key.replace("/", "_").replace(" ", "-")
    train = recipe.train.model_copy(
        update={"validate_every": max(1, steps // VALIDATIONS), "save_every": steps, "sample_every": 0}
    )
    trainer = Trainer(
        model, objective, loader, optimizer=recipe.optimizer, schedule=recipe.schedule, config=train, total_steps=steps,
        micro_rows=rows, seed=run.seed, streams=1, compute=torch.bfloat16,
        checkpointer=_NoCheckpoints(folder, 1), metrics=MetricsLog(folder / "metrics.jsonl"), checkpoint_files={},
        identity={}, evaluators=[evaluate], say=lambda _: None,
    )  # fmt: skip
    begin = time.process_time()
    result = trainer.fit()
    trainer.close()
    losses = [(r["tokens"], round(r["loss"], 4)) for r in read_metrics(folder / "metrics.jsonl") if "loss" in r]
    return {
        "key": run.key, **asdict(run), "parameters": sum(p.numel() for p in model.parameters()), "steps": steps,
        "bits_per_byte": curve[-1][1], "cpu_seconds": curve[-1][2], "curve": curve, "final_train_loss": losses[-1][1],
        "tokens_trained": result.tokens, "torch": torch.__version__, "compute": "bf16", "commit": commit(),
    }  # fmt: skip


class _NoCheckpoints:
    """A study repeats a run rather than continue it."""

    def __init__(self, folder: Path, keep_last: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)

    def save(self, *args: Any, **kwargs: Any) -> None: ...

    def latest(self) -> None:
        return None


def finished() -> dict[str, dict[str, Any]]:
    if not RESULTS.is_file():
        return {}
    return {row["key"]: row for row in map(json.loads, RESULTS.read_text().splitlines())}


def append(row: dict[str, Any]) -> None:
    """One whole line, or none: appends of one write never mix, whoever else appends."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with open(RESULTS, "ab", buffering=0) as f:
        f.write((json.dumps(row) + "\n").encode())


def run_study(runs: list[Run], work: Path, jobs: int, say: Callable[[str], None] = print) -> None:
    """``jobs`` processes at a time, each taking the next run that has not been finished."""
    waiting = [run for run in runs if run.key not in finished()]
    say(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before")
    under_way: dict[Run, subprocess.Popen[bytes]] = {}
    started, done = time.time(), 0
    while waiting or under_way:
        while waiting and len(under_way) < jobs:
            run = waiting.pop(0)
            command = [sys.executable, __file__, "--work", str(work), "--one", run.key]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            under_way[run] = subprocess.Popen(command, env=environment, preexec_fn=lambda: os.nice(10))
        for run, process in list(under_way.items()):
            if process.poll() is not None:
                del under_way[run]
                done += 1
                row = finished().get(run.key)
                left = (time.time() - started) / done * (len(waiting) + len(under_way)) / 60
                found = (
                    f"{row['bits_per_byte']:.4f} bits per byte, {row['cpu_seconds']:.0f} s"
                    if row
                    else f"FAILED (exit {process.returncode})"
                )
                say(f"{run.key}: {found}; about {left:.0f} min left")
        time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data", help="the folder with the real sets")
    parser.add_argument("--work", type=Path, default=ROOT / "runs/recipe-study")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--only", default="", help="groups, or a part of the names")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--page", type=Path)
    parser.add_argument(
        "--rates", action="store_true", help="time the finalists' steps in turns; wants a quiet machine"
    )
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    runs = {run.key: run for run in study()}
    if args.one:
        append(train_one(runs[args.one], args.work))
        return
    if args.page:
        from recipe_page import write_page

        write_page(list(finished().values()), args.page)
        return
    wanted = [
        r
        for r in runs.values()
        if not args.only
        or any(
            o in (r.group, r.size, r.seed, "final" * (r.name in FINALISTS)) or o in r.name for o in args.only.split(",")
        )
    ]
    if args.list:
        found = finished()
        for run in wanted:
            print(f"{'done' if run.key in found else 'open':5} {run.group:9} {run.key}")
        return
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "text.jsonl").is_file():
        write_text(args.data, args.work / "text.jsonl")
    run_study(wanted, args.work, args.jobs)


if __name__ == "__main__":
    main()
