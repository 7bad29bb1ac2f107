"""SproutLM's side of ``benchmarks/train.py``: what it trains on, its contestants, and a step's profile.

    python benchmarks/train_ours.py ours|ours-muon|products SPEC     (benchmarks/train.py starts it and takes turns)

``ours`` is ``sprout train`` on a recipe with AdamW as the peers have it, ``ours-muon`` the same with the recipe's default
optimizer. ``products`` makes the matrix products of the model's linear layers alone, forward and backward, by
``torch.mm``: the rate that a step's arithmetic could have here.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from contest import Turns, channel, peak_bytes

from sproutlm.config.load import load_recipe
from sproutlm.config.model import ModelConfig
from sproutlm.config.schema import Recipe
from sproutlm.pipeline import train as pipeline
from sproutlm.pipeline.prepare import prepare
from sproutlm.plan.count import is_table, parameters
from sproutlm.tokenizer.tokenizer import Tokenizer
from sproutlm.tokenizer.train import train_tokenizer
from sproutlm.train.trainer import Trainer

# One learning rate, decay and pair of betas for all AdamW contestants; none of it bears on the time of a step.
ADAMW = {"name": "adamw", "lr": 3e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.1}
TOKENS, FIRST_ID, MANY = 2**21, 300, 1_000_000
PROFILED_STEP, TOP = 4, 25


# --- what is trained on -----------------------------------------------------------------------------------------------


def make_data(folder: Path, vocab_size: int, seq: int) -> dict[str, Any]:
    """A file of random token ids, read by every contestant, and a tokenizer of as many ids, which ours asks for."""
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    ids = np.random.default_rng(1).integers(FIRST_ID, vocab_size, TOKENS, dtype=np.int64)
    ids[::seq] = 0  # the end token: documents of a row each
    ids.astype(dtype).tofile(folder / "tokens.bin")
    padded_tokenizer(vocab_size).save(folder / "tokenizer")
    return {"tokens": str(folder / "tokens.bin"), "token_type": dtype, "tokenizer": str(folder / "tokenizer")}


def padded_tokenizer(vocab_size: int) -> Tokenizer:
    """A byte-level tokenizer with merges of arbitrary bytes, up to ``vocab_size`` ids: no text is ever tokenised."""
    made = json.loads(train_tokenizer(["a b"], FIRST_ID - 20).files()["tokenizer.json"])
    vocab, merges = made["model"]["vocab"], made["model"]["merges"]
    units = [token for token in vocab if len(token) == 1]
    firsts = list(units)
    for first in firsts:  # grows while it is walked: pairs, then threes
        for unit in units:
            if len(vocab) == vocab_size:
                return Tokenizer(json.dumps(made))
            if first + unit not in vocab:
                vocab[first + unit] = len(vocab)
                merges.append([first, unit])
                firsts.append(first + unit)
    raise AssertionError("there is always a longer token")


def recipe_of(spec: dict[str, Any], optimizer: dict[str, Any]) -> Recipe:
    """The recipe of a run on the random tokens; what is not said here is the schema's default."""
    fields = {
        "name": "bench-train",
        "run": str(Path(spec["tokens"]).parent / "run"),
        "data": {
            "train": [{"path": spec["tokens"], "format": "tokens", "columns": {"dtype": spec["token_type"]}}],
            "validation": None, "seq_len": spec["seq"], "packing": "stream", "document_mask": False,
            "cache": str(Path(spec["tokens"]).parent / "cache"),
        },
        "tokenizer": {"path": spec["tokenizer"]},
        "model": spec["model"],
        "optimizer": optimizer,
        "train": {
            "steps": MANY, "batch_tokens": spec["rows"] * spec["seq"], "log_every": spec["steps"], "save_every": MANY,
            "device": spec["device"],
        },
        "sample": {"prompts": []},
    }  # fmt: skip
    file = Path(spec["tokens"]).parent / f"{optimizer.get('name', 'default')}.yaml"
    file.write_text(json.dumps(fields))  # JSON is YAML
    recipe = load_recipe(file, [f"train.{key}={value}" for key, value in spec["train"].items()]).recipe
    assert isinstance(recipe, Recipe)
    return recipe


def prepare_shards(spec: dict[str, Any]) -> None:
    """Build what each run then finds ready, so that no contestant's memory holds it."""
    prepare(recipe_of(spec, ADAMW), Path(spec["tokens"]).parent / "prepared", lambda line: None)


# --- the contestants --------------------------------------------------------------------------------------------------


def train(who: str, spec: dict[str, Any]) -> None:
    """``sprout train``, held before each step; with ``profile`` in the spec, a table of one step and the end."""
    profiled = spec.get("profile", False)
    turns = None if profiled else Turns(channel(), spec["clock"], spec["device"])
    folder = Path(spec["tokens"]).parent / who

    class Held(Trainer):
        """The trainer, which asks before each step whether it is its turn."""

        def train_step(self, step: int) -> Any:
            if turns is not None:
                turns.step_begins()
            elif step == PROFILED_STEP:
                return profile(super().train_step, step)
            return super().train_step(step)

    def about() -> dict[str, Any]:
        resolved = load_recipe(folder / "recipe.yaml").recipe
        assert isinstance(resolved, Recipe) and resolved.model is not None
        return {
            "parameters": sum(p.numel() for _, p in parameters(resolved.model)),
            "compute": resolved.train.compute, "streams": resolved.train.streams,
            "micro_batch": resolved.train.micro_batch, "optimizer": resolved.optimizer.name,
            "versions": {"torch": torch.__version__},
        }  # fmt: skip

    if turns is not None:
        turns.introduce(about)
    pipeline.Trainer = Held  # type: ignore[misc]  # train_recipe builds it under this name
    optimizer = ADAMW if who == "ours" else {}
    pipeline.train_recipe(recipe_of(spec, optimizer), folder)


def profile(step_of: Any, step: int) -> None:
    """Print where one step's processor time went, by operator, and end."""
    from torch._C._profiler import _ExperimentalConfig
    from torch.profiler import ProfilerActivity, profile as profiler

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])
    everywhere = _ExperimentalConfig(profile_all_threads=True)  # streams are threads
    with profiler(activities=activities, experimental_config=everywhere) as found:
        step_of(step)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(found.key_averages().table(sort_by=key, row_limit=TOP, max_name_column_width=45))
    raise SystemExit(0)


def linear_shapes(config: ModelConfig) -> Counter[tuple[int, int]]:
    """(out, in) of every matrix a token is multiplied with, a tied head included, and how often."""
    found: Counter[tuple[int, int]] = Counter()
    for name, parameter in parameters(config):
        a_head_too = name.startswith("embed_tokens") and config.tie_embeddings
        if parameter.ndim == 2 and (a_head_too or not is_table(name)):
            found[tuple(parameter.shape)] += 1
    return found


def products(spec: dict[str, Any], repeats: int = 3) -> None:
    """Answers each line with the seconds of one step's products in ``spec["products"]``'s type: for every matrix y = x W',
    its input's gradient and its own, each the median of ``repeats``."""
    out = channel()
    device, dtype = spec["device"], {"bf16": torch.bfloat16, "float32": torch.float32}[spec["products"]]
    shapes = linear_shapes(ModelConfig.model_validate(spec["model"]))
    tokens = spec["rows"] * spec["seq"]
    operations = sum(3 * 2 * tokens * rows * cols * count for (rows, cols), count in shapes.items())
    print(json.dumps({"operations": operations}), file=out)
    clock = time.process_time if spec["clock"] == "cpu" else time.perf_counter

    def seconds(a: torch.Tensor, b: torch.Tensor) -> float:
        times = []
        for _ in range(repeats):
            begin = clock()
            torch.mm(a, b)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - begin)
        return statistics.median(times)

    for _line in sys.stdin:
        total = 0.0
        for (rows, cols), count in shapes.items():
            x = torch.randn(tokens, cols, device=device).to(dtype)
            weight, grad = (torch.randn(n, m, device=device).to(dtype) for n, m in ((rows, cols), (tokens, rows)))
            total += count * (seconds(x, weight.T) + seconds(grad, weight) + seconds(grad.T, x))
        print(json.dumps({"seconds": total, "peak_bytes": peak_bytes(device)}), file=out)


def main() -> None:
    who, path = sys.argv[1:]
    spec = json.loads(Path(path).read_text())
    torch.set_num_threads(spec["threads"])
    if who == "products":
        products(spec)
    else:
        train(who, spec)


if __name__ == "__main__":
    main()
