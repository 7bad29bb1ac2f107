"""``sprout plan``: what a preset or a recipe costs, before anything is built or loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.clean import CleanRecipe
from ..config.load import load_text
from ..config.model import ModelConfig
from ..config.presets import PRESETS, suggest
from ..errors import SproutError
from ..plan import count, flops, inference_memory, training_memory
from ..plan.fit import MOST_ROWS, Place, cards, fit_training, longest_context, machine
from ..plan.memory import BYTES, Compute, Setting, kv_bytes_per_token
from .dry_run import Training, setting_of, trainings

if TYPE_CHECKING:
    from ..config.load import Loaded

# What a preset suggests, as a recipe: one row at once, so that the table says how many fit.
PRESET_TEXT = """\
name: {name}
model: {{preset: {name}, vocab_size: {vocab_size}}}
data: {{train: "synth:pretrain", seq_len: {seq_len}}}
train: {{tokens: {tokens}, batch_tokens: {batch_tokens}, micro_batch: 1}}
"""


@dataclass(frozen=True)
class Subject:
    """One model to plan for. ``rows``: at once while training; ``step_rows``: in a whole optimizer step."""

    name: str
    config: ModelConfig
    setting: Setting
    step_rows: int
    answers: int
    preset: str | None = None


def load_preset(name: str, settings: Sequence[str], context: int | None) -> Loaded:
    """A preset as the recipe that it suggests, with ``key=value`` settings in place of its own."""
    preset, suggested = PRESETS[name], suggest(name)
    seq_len = context or suggested.seq_len
    batch_tokens = max(round(suggested.batch_tokens / seq_len), 1) * seq_len
    text = PRESET_TEXT.format(
        name=name,
        vocab_size=preset.shape["vocab_size"],
        seq_len=seq_len,
        tokens=max(suggested.tokens, batch_tokens),
        batch_tokens=batch_tokens,
    )
    return load_text(text, f"preset {name}", Path.cwd() / f"{name}.yaml", settings)


def subjects(loaded: Loaded, context: int | None, batch: int | None, preset: str | None = None) -> list[Subject]:
    """Every training run of a recipe; ``context`` and ``batch`` in place of its row length and rows at once."""
    if isinstance(loaded.recipe, CleanRecipe):
        raise SproutError(f"{loaded.path}: describes the cleaning of data, and has no model to plan")
    found = []
    for part in trainings(loaded):
        if not isinstance(part, Training):
            continue
        recipe, config = part.recipe, part.config
        if context is not None and context > config.max_seq_len:
            raise SproutError(
                f"--context {context}: {recipe.name} holds {config.max_seq_len:,} tokens; lower it, "
                "or raise model.max_seq_len"
            )
        # What a card with bf16 units would choose for `auto`; this machine is not asked.
        compute: Compute = "float32" if recipe.train.compute == "float32" else "bf16"
        setting = setting_of(recipe, compute)
        setting = replace(setting, seq_len=context or setting.seq_len, rows=batch or setting.rows)
        step_rows = recipe.train.batch_tokens // setting.seq_len
        # A shape that was changed is no longer what was published.
        same = preset if preset is not None and config == ModelConfig(**PRESETS[preset].shape) else None
        found.append(Subject(recipe.name, config, setting, max(step_rows, setting.rows), batch or 1, same))
    if not found:
        raise SproutError(f"{loaded.path}: no stage of it trains a model, so there is nothing to plan")
    return found


def plan(subject: Subject, where: Sequence[Place]) -> dict[str, Any]:
    """The figures of one subject; bytes and counts are whole numbers."""
    config, setting, rows = subject.config, subject.setting, subject.answers
    training = training_memory(config, setting)
    inference: dict[Compute, dict[str, Any]] = {}
    for compute in BYTES:
        parts = inference_memory(config, rows, setting.seq_len, compute)
        per_token = kv_bytes_per_token(config, compute)
        total = sum(parts.values())
        inference[compute] = {"memory_by_part": parts, "memory_bytes": total, "kv_bytes_per_token": per_token}
    report: dict[str, Any] = {
        "name": subject.name,
        "parameters": asdict(count(config)),
        "flops_per_token": asdict(flops(config, setting.seq_len)),
        "training": {
            "setting": asdict(setting),
            "memory_by_part": training,
            "memory_bytes": sum(training.values()),
        },
        "inference": {"rows": rows, "context": setting.seq_len} | inference,
        "places": [_at(subject, place, inference) for place in where],
        "model": config.model_dump(),
    }
    if subject.preset is not None:
        preset, suggested = PRESETS[subject.preset], suggest(subject.preset)
        published = {key: getattr(preset, key) for key in ("parameters", "digits", "active", "active_digits", "source")}
        report |= {"preset": subject.preset, "published": published, "suggested": asdict(suggested)}
    return report


def _at(subject: Subject, place: Place, inference: dict[Compute, dict[str, Any]]) -> dict[str, Any]:
    config, rows = subject.config, subject.answers
    answering = {
        compute: {
            "fits": inference[compute]["memory_bytes"] <= place.room,
            "context_at_most": longest_context(config, rows, place.room, compute),
        }
        for compute in BYTES
    }
    most = min(subject.step_rows, MOST_ROWS)
    training = fit_training(config, subject.setting, place.room, most)
    return {"name": place.name, "room_bytes": place.room, "training": training, "inference": answering}


def here() -> Place | None:
    """This machine's memory; None where nobody can say how much there is."""
    import psutil

    from ..doctor.environment import memory_limit

    try:
        return machine(psutil.virtual_memory().total, memory_limit())
    except (OSError, RuntimeError):
        return None


def plan_all(loaded: Loaded, context: int | None, batch: int | None, preset: str | None = None) -> dict[str, Any]:
    own = here()
    where = [*cards(), own] if own is not None else cards()
    return {"plans": [plan(subject, where) for subject in subjects(loaded, context, batch, preset)]}


def listing() -> list[dict[str, Any]]:
    """Every preset with its shape and its published count; nothing is built."""
    rows = []
    for name, preset in PRESETS.items():
        config = ModelConfig(**preset.shape)
        rows.append(
            {"name": name, "parameters": preset.parameters, "active": preset.active, "source": preset.source}
            | config.model_dump(include={"family", "dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size"})
            | {"max_seq_len": config.max_seq_len, "seq_len": preset.seq_len}
        )
    return rows
