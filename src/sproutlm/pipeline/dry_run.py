"""``--dry-run``: parameters, tokens per step, steps, estimated memory and time, before anything is built or loaded."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config.model import ModelConfig
from ..config.schema import Pipeline, Recipe, SourceConfig, Stage, SynthStage, TokenizerStage, TrainStage
from ..data.loader import Batch
from ..errors import DataError
from ..model import Transformer
from ..objectives.next_token import next_token
from ..plan import count, training_memory
from ..plan.memory import TORCH, Compute, Device
from ..train.metrics import format_seconds
from ..train.precision import MasterWeights, choose_compute
from ..train.streams import Streams
from .run import resolve_stages
from .split import setting_of
from .train import COMPUTE_TYPES, choose_device, objective_of, total_steps

if TYPE_CHECKING:
    from ..config.load import Loaded

COMPUTE_NAMES: dict[torch.dtype, Compute] = {dtype: name for name, dtype in TORCH.items()}
# Bytes of text per token where nothing is tokenised yet: about 3.4 for the embedded world and for English at 6,400 ids,
# 3.3 for Chinese poems. An estimate, and called one.
BYTES_PER_TOKEN = 3.4
# Tokens of the embedded world's files (tokenizer of 2,048 ids), measured.
WORLD_TOKENS = {"pretrain": 2_060_000, "sft": 230_000}


def source_tokens(sources: list[SourceConfig], outputs_of: set[str]) -> int | None:
    """Tokens in ``sources``, from the files' sizes; None where a file is not there yet and not known."""
    total = 0.0
    for source in sources:
        stem = Path(source.path).name.split(".")[0]
        made_by_us = source.path.startswith("synth:") or any(source.path.startswith(o) for o in outputs_of)
        files = sorted(glob.glob(source.path)) or ([source.path] if Path(source.path).exists() else [])
        if files:
            total += sum(_text_bytes(Path(f)) for f in files) / BYTES_PER_TOKEN * source.repeat
        elif made_by_us:
            known = WORLD_TOKENS.get(stem.rpartition(":")[2].rpartition("/")[2])
            if known is None:
                return None
            total += (known / 20 if "tiny/" in source.path else known) * source.repeat
        else:
            raise DataError(f"{source.path}: no such file or folder; give its path in data.train")
    return int(total)


def _text_bytes(path: Path) -> float:
    """Size of the text in a file or folder; a compressed byte holds about three."""
    if path.is_dir():
        return sum(_text_bytes(p) for p in path.rglob("*") if p.is_file())
    return path.stat().st_size * (3.0 if path.suffix in (".gz", ".zst", ".parquet") else 1.0)


def config_of(recipe: Recipe, inherited: ModelConfig | None = None) -> ModelConfig:
    """The shape that a recipe trains, its vocabulary known. ``inherited``: of a model that an earlier stage will make."""
    config = recipe.model or inherited
    if config is None and recipe.init_from not in (None, "random"):
        from ..export.load import load_state

        config = load_state(Path(str(recipe.init_from)))[0]
    assert config is not None
    return config.model_copy(update={"vocab_size": config.vocab_size or _vocabulary(recipe)})


def _vocabulary(recipe: Recipe) -> int:
    """Size of the recipe's tokenizer: of the one at ``path`` where that is there, else of the one to be trained."""
    if recipe.tokenizer.path is None or not Path(recipe.tokenizer.path).exists():
        return recipe.tokenizer.vocab_size
    from ..tokenizer import Tokenizer

    return Tokenizer.load(Path(recipe.tokenizer.path)).vocab_size


def step_seconds(
    config: ModelConfig, recipe: Recipe, compute: torch.dtype, device: torch.device, streams: int = 1
) -> float:
    """Seconds of one optimizer step, from timed micro-batches of random tokens (after one that warms up): one, or as
    many side by side as ``streams`` says."""
    seq = recipe.data.seq_len
    rows = min(recipe.train.micro_batch or recipe.train.batch_tokens // seq, max(1, 4096 // seq))
    rows = max(1, rows // streams)
    model = Transformer(config).init_weights(0).to(device)
    model.checkpointing = recipe.train.checkpointing
    weights = MasterWeights(model, compute)
    tokens = torch.randint(0, config.vocab_size, (rows, seq), generator=torch.Generator().manual_seed(0)).to(device)
    positions = torch.arange(seq, device=device).expand(rows, seq)
    document_ids = positions // max(1, seq // 3) if recipe.data.document_mask else None
    batch = Batch(tokens, tokens.roll(-1, 1), positions, document_ids, torch.arange(rows))
    side_by_side = Streams(streams) if streams > 1 else None
    best = float("inf")
    for _ in range(3):
        begin = time.perf_counter()
        if side_by_side is not None:
            for _, _, grads, _ in side_by_side.run(model, next_token, [batch] * streams):
                weights.add_gradients(grads)
        else:
            loss, _, _ = next_token(model, batch)
            loss.backward()
            weights.collect_gradients()
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    if side_by_side is not None:
        side_by_side.close()
    # The update costs about a tenth of a step of 4,096 tokens with Muon (profiled on two CPU cores).
    return best * (recipe.train.batch_tokens / (rows * seq * streams)) * 1.12


def dry_run_recipe(recipe: Recipe, run: Path, config: ModelConfig, outputs_of: set[str]) -> dict[str, Any]:
    """The figures of one training run."""
    objective_of(recipe)  # a person's own is there, or a sentence says what is wrong
    device = choose_device(recipe.train.device)
    compute = COMPUTE_TYPES.get(recipe.train.compute) or choose_compute(device)[0]
    tokens = source_tokens(recipe.data.train, outputs_of)
    rows_per_epoch = None if tokens is None else -(-tokens // recipe.data.seq_len)
    needs_data = recipe.train.epochs is not None
    steps = None if needs_data and rows_per_epoch is None else total_steps(recipe, rows_per_epoch or 1)
    place: Device = "cpu" if device.type == "cpu" else "card"
    setting = setting_of(recipe, COMPUTE_NAMES[compute], place, config)
    memory = training_memory(config, setting)
    per_step = step_seconds(config, recipe, compute, device, setting.streams) if sum(memory.values()) < 8e9 else None
    return {
        "name": recipe.name,
        "run": str(run),
        "parameters": count(config).total,
        "tokens_per_step": recipe.train.batch_tokens,
        "steps": steps,
        "steps_are_estimated": needs_data,
        "data_tokens_estimated": tokens,
        "compute": COMPUTE_NAMES[compute],
        "device": str(device),
        "memory_bytes": sum(memory.values()),
        "memory_by_part": memory,
        "seconds_estimated": None if per_step is None or steps is None else round(per_step * steps, 1),
        "model": config.model_dump(),
    }


@dataclass(frozen=True)
class Training:
    """One training run of a recipe or of a stage, as it will be; ``config`` with its vocabulary."""

    recipe: Recipe
    run: Path
    config: ModelConfig


def trainings(loaded: Loaded) -> Iterator[Training | Stage]:
    """The runs of a recipe in order; stages that train nothing come as they are."""
    if isinstance(loaded.recipe, Recipe):
        yield Training(loaded.recipe, loaded.run_dir, config_of(loaded.recipe))
        return
    pipeline, run = loaded.recipe, loaded.run_dir
    assert isinstance(pipeline, Pipeline)
    shapes: dict[str, ModelConfig] = {}
    vocab_sizes: dict[Path, int] = {}  # of the tokenizers that stages will have made, by folder
    for stage in pipeline.stages:
        if isinstance(stage, TokenizerStage):
            vocab_sizes[run / stage.name] = stage.tokenizer.vocab_size
        if not isinstance(stage, TrainStage):
            yield stage
            continue
        fields = resolve_stages(stage.recipe, run, set())
        recipe = Recipe.model_validate({"name": stage.name, "seed": pipeline.seed, **fields})
        made = vocab_sizes.get(Path(recipe.tokenizer.path or ""))
        if made is not None:  # whatever lies in that folder now
            tokenizer = recipe.tokenizer.model_copy(update={"vocab_size": made, "path": None})
            recipe = recipe.model_copy(update={"tokenizer": tokenizer})
        config = config_of(recipe, shapes.get(str(recipe.init_from)))
        shapes[str(run / stage.name)] = config
        vocab_sizes[run / stage.name] = config.vocab_size if made is None else made
        yield Training(recipe, run / stage.name, config)


def dry_run(loaded: Loaded) -> dict[str, Any]:
    """Figures of a recipe, or of every training stage of a pipeline."""
    outputs: set[str] = set()
    if isinstance(loaded.recipe, Pipeline):
        outputs = {str(loaded.run_dir / s.name) for s in loaded.recipe.stages if isinstance(s, SynthStage)}
    stages: list[dict[str, Any]] = [
        dry_run_recipe(part.recipe, part.run, part.config, outputs)
        if isinstance(part, Training)
        else {"name": part.name, "do": part.do}
        for part in trainings(loaded)
    ]
    if isinstance(loaded.recipe, Recipe):
        return {"stages": stages}
    return {"stages": stages, "seconds_estimated": round(sum(s.get("seconds_estimated") or 0 for s in stages), 1)}


def print_dry_run(report: dict[str, Any]) -> None:
    for stage in report["stages"]:
        if "parameters" not in stage:
            print(f"{stage['name']}: {stage['do']}")
            continue
        about = "about " if stage["steps_are_estimated"] else ""
        parts = ", ".join(f"{k} {v / 2**20:,.0f}" for k, v in stage["memory_by_part"].items())
        seconds = stage["seconds_estimated"]
        print(f"{stage['name']}: {stage['parameters']:,} parameters, {stage['compute']} on {stage['device']}")
        print(f"  tokens per step: {stage['tokens_per_step']:,}")
        print(
            f"  steps: {about + format(stage['steps'], ',') if stage['steps'] else 'known once the data is tokenised'}"
        )
        print(f"  memory (estimate): {stage['memory_bytes'] / 2**20:,.0f} MB ({parts})")
        print(f"  time (estimate): {'not estimated' if seconds is None else format_seconds(seconds)}")
    print("nothing was written")
