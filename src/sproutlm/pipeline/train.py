"""From a recipe to a trained run folder."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import __version__
from ..atomic import write_atomic
from ..config.model import ModelConfig
from ..config.schema import Recipe
from ..data.formats import import_module_here
from ..distributed import ALONE, Layout, Ranks, parallelize
from ..distributed.heartbeat import joined
from ..distributed.parallelize import fill
from ..errors import CheckpointError, RecipeError, SproutError
from ..model import Transformer
from ..model.init import first_values, resize_vocab
from ..model.meta import on_meta
from ..objectives.next_token import next_token
from ..plan import count
from ..train.allocator import keep_freed_memory
from ..train.checkpoint import Checkpoint
from ..train.metrics import plot_or_say, read_metrics
from ..train.precision import choose_compute
from ..train.trackers import Unwatched
from ..train.trainer import Objective, Sampler, Trainer
from .continuation import identity_of, record_continuation, run_lock
from .prepare import Prepared, Say, loader_of, prepare
from .several import checkpointer_of, same_for_all, share_of, voice_of
from .split import micro_rows, setting_of
from .watching import trackers_of, work_of

if TYPE_CHECKING:
    from ..config.load import Loaded
    from ..tokenizer.tokenizer import Tokenizer

COMPUTE_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "float32": torch.float32}


def import_attribute(reference: str, what: str) -> Any:
    """``module:attribute``, as a recipe names a person's own part: installed, or a file in the current folder."""
    module, _, attribute = reference.partition(":")
    try:
        return getattr(import_module_here(module), attribute)
    except Exception as error:  # a person's own file may fail in any way while it is imported
        looked = f"looked in the installed packages and in {Path.cwd()}"
        raise RecipeError(
            [
                f"{what}: {reference!r} cannot be imported ({type(error).__name__}: {error}; {looked}); "
                "expected module:attribute, such as my_file:my_loss for my_loss in my_file.py"
            ]
        ) from error


def objective_of(recipe: Recipe) -> Objective:
    """The recipe's objective; a ``RecipeError`` where it is not there or cannot be called."""
    if recipe.objective == "next_token":
        return partial(next_token, z_loss=recipe.train.z_loss, chunk=recipe.train.loss_chunk)
    found = import_attribute(recipe.objective, "objective")
    if not callable(found):
        raise RecipeError(
            [
                f"objective: {recipe.objective!r} is a {type(found).__name__}; "
                "expected a function (model, batch) -> (loss sum, count, metrics)"
            ]
        )
    return found


def total_steps(recipe: Recipe, rows_per_epoch: int) -> int:
    """Optimizer steps of the run."""
    train = recipe.train
    if train.steps is not None:
        return train.steps
    if train.tokens is not None:
        return max(1, train.tokens // train.batch_tokens)
    assert train.epochs is not None
    return max(1, round(train.epochs * rows_per_epoch / (train.batch_tokens // recipe.data.seq_len)))


def choose_device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise SproutError("train.device=cuda, but torch sees no CUDA device; use device: auto, or see `sprout doctor`")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def environment() -> dict[str, Any]:
    """What the run ran on, for env.json."""
    return {
        "sproutlm": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


State = dict[str, torch.Tensor]


def start_of(
    recipe: Recipe, vocab_size: int, say: Say, tokenizer: Tokenizer | None = None
) -> tuple[ModelConfig, State | None]:
    """The model's shape and, from ``init_from``, its first weights; None where they are drawn from the seed.

    ``tokenizer`` is the run's; with ``tokenizer.new_tokens`` a model from ``init_from`` gets rows for what it adds.
    """
    start = recipe.init_from
    if start not in (None, "random"):
        from ..export.load import load_state

        config, state, own = load_state(Path(start))
        if recipe.tokenizer.new_tokens and own is not None and tokenizer is not None:
            config, state = with_rows_for(own, tokenizer, config, state, say)
        if recipe.model is not None:
            asked = recipe.model.model_dump(exclude={"dropout", "max_seq_len"})
            there = config.model_dump()
            asked["vocab_size"] = asked["vocab_size"] or config.vocab_size
            wrong = [f"{k}: {there[k]} there, {asked[k]} in the recipe" for k in asked if asked[k] != there[k]]
            if wrong:
                raise CheckpointError(
                    f"init_from {start}: its model has another shape ({'; '.join(wrong)}); remove `model:` from the recipe to take it"
                )
            config = config.model_copy(update={"dropout": recipe.model.dropout})
        if recipe.data.seq_len > config.max_seq_len:
            raise CheckpointError(
                f"init_from {start}: it holds {config.max_seq_len} positions, data.seq_len is {recipe.data.seq_len}; lower data.seq_len"
            )
        if vocab_size > config.vocab_size:
            raise CheckpointError(
                f"init_from {start}: its vocabulary has {config.vocab_size} ids, the tokenizer {vocab_size}; "
                "use the tokenizer it was trained with, and name what it is to have besides in tokenizer.new_tokens"
            )
        say(f"starting from {start} ({sum(value.numel() for value in state.values()):,} parameters)")
        return config, state
    if recipe.stage == "sft":
        say("warning: init_from is 'random': this fine-tuning starts from RANDOM weights, not from a trained model")
    assert recipe.model is not None
    config = recipe.model.model_copy(update={"vocab_size": recipe.model.vocab_size or vocab_size})
    if config.vocab_size < vocab_size:
        raise RecipeError(
            [f"model.vocab_size={config.vocab_size} is less than the tokenizer's {vocab_size} ids; set 0 to follow it"]
        )
    return config, None


def build_model(config: ModelConfig, state: State | None, seed: int) -> Transformer:
    """The model with its first weights, whole."""
    model = on_meta(config).to_empty(device="cpu")  # not drawn by torch first
    if state is None:
        return model.init_weights(seed)
    model.load_state_dict(state)  # strict: load_state has named any missing, extra or misshapen tensor
    return model


def build_part(
    config: ModelConfig, state: State | None, recipe: Recipe, compute: str, ranks: Ranks
) -> tuple[Transformer, Layout]:
    """This rank's part of the same model; the whole of it is never here, but for one tensor at a time."""
    model = on_meta(config)
    values = first_values(model, recipe.seed) if state is None else state.__getitem__
    layout = parallelize(model, ranks, recipe.parallel, COMPUTE_TYPES[compute])
    fill(model, layout, values)
    return model, layout


def with_rows_for(
    own: Tokenizer, tokenizer: Tokenizer, config: ModelConfig, state: dict[str, torch.Tensor], say: Say
) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Config and tensors with a row for each id that ``tokenizer`` has beyond ``own``, the tokenizer of the model."""
    from ..tokenizer.extend import new_ids

    added = new_ids(own, tokenizer)
    state, resized = resize_vocab(state, config, {id_: own.encode(name) for id_, name in added.items()})
    if added:
        grown = resized.vocab_size - config.vocab_size
        say(
            f"{len(added)} new tokens ({', '.join(list(added.values())[:8])}{', …' if len(added) > 8 else ''}): each begins "
            f"as the mean of what it was written as; {grown:,} rows added to {config.vocab_size:,}"
        )
    return resized, state


def resolve(recipe: Recipe, run: Path, config: ModelConfig, steps: int, how: dict[str, Any]) -> Recipe:
    """The recipe with nothing left open: what is stored in the run folder and in each checkpoint."""
    train = recipe.train.model_copy(update={"steps": steps, "tokens": None, "epochs": None, **how})
    return recipe.model_copy(update={"run": str(run), "model": config, "train": train})


def pinned(
    recipe: Recipe, checkpoint: Checkpoint | None, config: ModelConfig, device: torch.device, say: Say
) -> dict[str, Any]:
    """Settings that are decided once per run: one that continues keeps the type and the split it began with."""
    if checkpoint is not None:
        before = checkpoint.state()["identity"]["recipe"]["train"]
        compute = before["compute"] if recipe.train.compute == "auto" else recipe.train.compute
        streams = recipe.train.streams or before.get("streams") or 1
        return {
            "compute": compute,
            "streams": streams,
            "micro_batch": recipe.train.micro_batch or before["micro_batch"],
        }
    compute = chosen_compute(recipe, device, say)
    setting = setting_of(recipe, compute, "cpu" if device.type == "cpu" else "card", config)  # type: ignore[arg-type]
    return {"compute": compute, "streams": recipe.train.streams or setting.streams, "micro_batch": setting.rows}


def compute_name(dtype: torch.dtype) -> str:
    """As a recipe says it."""
    return next(name for name, known in COMPUTE_TYPES.items() if known == dtype)


def chosen_compute(recipe: Recipe, device: torch.device, say: Say) -> str:
    if recipe.train.compute == "fp16" and device.type == "cpu":
        say(
            "warning: train.compute is fp16 on a CPU, where it is slower than float32; it is meant for cards without bf16 units"
        )
    if recipe.train.compute != "auto":
        return recipe.train.compute
    dtype, why = choose_compute(device)
    name = compute_name(dtype)
    say(f"compute type {name}: {why}")
    return name


def train(loaded: Loaded, changes: list[str] | None = None, say: Say = print) -> dict[str, Any]:
    """``sprout train``: build what is missing, train or continue, write ``model/``, ``loss.png``, ``env.json``."""
    assert isinstance(loaded.recipe, Recipe)
    return train_recipe(loaded.recipe, loaded.run_dir, changes or [], say)


def train_recipe(recipe: Recipe, run: Path, changes: list[str] | None = None, say: Say = print) -> dict[str, Any]:
    from ..config.load import dump_recipe
    from .memory_guard import full_card_explained, refuse_too_large  # which asks this module, too

    objective = objective_of(recipe)  # before anything is built for it
    with ExitStack() as until_end:
        ranks = until_end.enter_context(joined(recipe.parallel, choose_device(recipe.train.device)))
        say = voice_of(ranks, say)
        device, mine = ranks.device, share_of(recipe, ranks)
        with ranks.in_turn():
            if ranks.first:
                until_end.enter_context(run_lock(run))
            refuse_too_large(mine, device)
            prepared = prepare(recipe, run, say)
        same_for_all(ranks, run, prepared)
        if device.type == "cpu":
            keep_freed_memory()
        checkpointer = checkpointer_of(run / "checkpoints", recipe.train.keep_last, ranks, say)
        config, state = start_of(recipe, prepared.tokenizer.vocab_size, say, prepared.tokenizer)
        loader = loader_of(recipe, prepared.train, prepared.tokenizer.pad_id)
        steps = total_steps(recipe, loader.rows_per_epoch)
        newest = checkpointer.latest()
        how = ranks.told(pinned(mine, newest, config, device, say) if ranks.first else None)
        resolved = resolve(recipe, run, config, steps, how)
        refuse_too_large(share_of(resolved, ranks), device, config)
        if ranks.size == 1:
            model, layout = build_model(config, state, recipe.seed), Layout()
        else:
            model, layout = build_part(config, state, recipe, how["compute"], ranks)
        identity = {}
        if ranks.first:
            identity = identity_of(resolved, prepared, state, ranks.dims.words())
            record_continuation(newest, identity, changes or [], run, say)
            write_atomic(run / "recipe.yaml", dump_recipe(resolved))
            write_atomic(run / "env.json", json.dumps(environment() | {"ranks": ranks.size}, indent=1) + "\n")
        files = {
            "recipe.yaml": dump_recipe(resolved),
            "model_config.json": config.model_dump_json(indent=1),
            **prepared.tokenizer.files(),
        }
        trainer = Trainer(
            model.to(device),
            objective,
            loader,
            optimizer=recipe.optimizer,
            schedule=recipe.schedule,
            config=recipe.train,
            total_steps=steps,
            micro_rows=how["micro_batch"],
            seed=recipe.seed,
            streams=how["streams"],
            compute=COMPUTE_TYPES[how["compute"]],
            checkpointer=checkpointer,
            metrics=trackers_of(resolved, run, say) if ranks.first else Unwatched(),
            checkpoint_files=files,
            identity=identity,
            evaluators=evaluators_of(recipe, prepared, ranks),
            sampler=sampler_of(recipe, prepared, layout, say),
            work=work_of(recipe, config, device, COMPUTE_TYPES[how["compute"]], say) if ranks.first else None,
            layout=layout,
            check_every=recipe.parallel.check_every,
            say=say,
        )
        announce(recipe, prepared, config, steps, ranks, say)
        with closing(trainer), full_card_explained(resolved, config, device):
            result = trainer.fit()
        return finish(recipe, run, trainer, prepared, result, say)


def announce(recipe: Recipe, prepared: Prepared, config: ModelConfig, steps: int, ranks: Ranks, say: Say) -> None:
    data = prepared.train
    if ranks.size > 1:
        say(f"{ranks.size} processes: {ranks.dims.words()}")
    say(
        f"{recipe.name}: {count(config).total:,} parameters, {data.n_documents:,} documents, "
        f"{data.n_tokens:,} tokens; {steps} steps of {recipe.train.batch_tokens:,} tokens"
    )


def evaluators_of(recipe: Recipe, prepared: Prepared, ranks: Ranks = ALONE) -> list[Callable]:
    if prepared.validation is None:
        return []
    from ..eval.bits_per_byte import TextBytes, make_evaluator

    loader = loader_of(recipe, prepared.validation, prepared.tokenizer.pad_id, training=False)
    text_bytes = TextBytes(prepared.tokenizer)
    rows = recipe.train.validation_rows or loader.rows_per_epoch
    return [make_evaluator(loader, text_bytes, min(rows, loader.rows_per_epoch), micro_rows(recipe), ranks)]


def sampler_of(recipe: Recipe, prepared: Prepared, layout: Layout, say: Say) -> Sampler | None:
    """Continue each of the recipe's prompts (pretraining) or answer it (SFT); ``ended``: not cut off at max_tokens."""
    if not recipe.sample.prompts:
        return None
    if layout.exchanges:
        say("no samples while training: no rank can compute the whole model by itself")
        return None
    from ..infer.engine import Engine, Request
    from ..infer.sampling import SamplingParams

    tokenizer, template = prepared.tokenizer, prepared.template
    params = SamplingParams(
        temperature=recipe.sample.temperature, max_tokens=recipe.sample.max_tokens, seed=recipe.seed
    )

    def sample(model: Transformer, step: int) -> list[str | dict[str, Any]]:
        requests = []
        for prompt in recipe.sample.prompts:
            if recipe.stage == "sft":
                ids = template.render([{"role": "user", "content": prompt}], add_generation_prompt=True).ids
                stops = template.stop_ids
            else:
                ids, stops = [tokenizer.eos_id, *tokenizer.encode(prompt)], tokenizer.stop_ids
            requests.append(Request(ids, params, stops))
        completions = Engine(model, tokenizer).generate(requests)
        joint = " -> " if recipe.stage == "sft" else ""
        return [
            {"sample": f"{prompt}{joint}{completion.text}", "ended": completion.finish_reason == "stop"}
            for prompt, completion in zip(recipe.sample.prompts, completions, strict=True)
        ]

    return sample


def finish(recipe: Recipe, run: Path, trainer: Trainer, prepared: Prepared, result: Any, say: Say) -> dict[str, Any]:
    """Write the final model and the plot; return the run's figures."""
    from ..export.huggingface import save, unexportable

    started = time.perf_counter()
    layout, whole = trainer.layout, {}
    for name, master in trainer.weights.masters.items():
        value = layout.piece(name, master).whole(master.detach(), layout.ranks)
        if layout.ranks.first:
            whole[name] = value.cpu()
    if not layout.ranks.first:
        return {"run": str(run), "steps": result.step, "rank": layout.ranks.rank}
    final = Transformer(trainer.model.config)
    final.load_state_dict(whole)
    fault = unexportable(final.config)
    if fault is None:
        save(final, prepared.tokenizer, run / "model")
    else:
        say(f"the model stays in the checkpoints and is not written to {run / 'model'}: {fault}")
    try:
        metrics = read_metrics(run / "metrics.jsonl")
    except OSError:  # it could never be written, which was said
        metrics = []
    share = None
    if recipe.init_from not in (None, "random"):
        share = changed_share(final, Path(recipe.init_from))
        say(f"{share:.1%} of the weights changed (as bf16)")
    if metrics:
        plot_or_say({recipe.name: run / "metrics.jsonl"}, run / "loss.png", say)
    losses = [r["loss"] for r in metrics if "loss" in r]
    validation: dict[str, Any] = next((r for r in reversed(metrics) if "val_loss" in r), {})
    say(f"done: {run / 'model'} (written in {time.perf_counter() - started:.1f} s)")
    return {
        "run": str(run),
        "steps": result.step,
        "tokens": result.tokens,
        "seconds": round(result.seconds, 1),
        "resumed_from": result.resumed_from,
        "stopped_early": result.stopped_early,
        "loss": losses[-1] if losses else None,
        "val_loss": validation.get("val_loss"),
        "bits_per_byte": validation.get("val_bpb"),
        "compute": compute_name(trainer.weights.compute),
        "parameters": sum(p.numel() for p in final.parameters()),
        "changed_share": share,
    }


def changed_share(model: Transformer, start: Path) -> float:
    """Share of weights that differ from the start once both are rounded to bf16: near 0 means the rate was too small."""
    from ..export.load import load_state

    _, state, _ = load_state(start)
    changed = total = 0
    for name, parameter in model.named_parameters():
        before = state[name]
        kept = parameter[: before.shape[0]]  # rows of new tokens had no value before
        changed += int((kept.bfloat16() != before.bfloat16()).sum())
        total += kept.numel()
    return changed / total
