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
from ..config.schema import Recipe
from ..errors import OutOfMemory, SproutError
from ..plan import count, flops, inference_memory, training_memory
from ..plan.cluster import card_share, device_seconds
from ..plan.fit import MOST_ROWS, checkpointing_time, fit_training, longest_context
from ..plan.memory import ANSWERING, Compute, Device, Setting, kv_bytes_per_token, step_bytes
from ..plan.places import Place, cards, machine, place_of
from .dry_run import COMPUTE_NAMES, Training, source_tokens, step_seconds, trainings
from .split import setting_of

if TYPE_CHECKING:
    from ..config.load import Loaded

# What a preset suggests, as a recipe: one row at once, so that the table says how many fit.
PRESET_TEXT = """\
name: {name}
model: {{preset: {name}, vocab_size: {vocab_size}}}
data: {{train: "synth:pretrain", seq_len: {seq_len}}}
train: {{tokens: {tokens}, batch_tokens: {batch_tokens}, micro_batch: 1}}
"""

MOST_TO_TIME = 8 * 10**9  # bytes of a step above which none is timed


@dataclass(frozen=True)
class Subject:
    """One model to plan for. ``rows``: at once while training; ``step_rows``: in a whole optimizer step."""

    name: str
    config: ModelConfig
    setting: Setting
    step_rows: int
    answers: int
    preset: str | None = None
    recipe: Recipe | None = None
    here: Setting | None = None  # as a CPU would run it: its own streams
    at: tuple[str | int, ...] = ()  # where the recipe stands in its file: ("stages", 2, "recipe")


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


def subjects(
    loaded: Loaded,
    context: int | None,
    batch: int | None,
    preset: str | None = None,
    compute_here: Compute | None = None,
) -> list[Subject]:
    """Every training run of a recipe; ``context`` and ``batch`` in place of its row length and rows at once.

    ``compute_here``: what ``compute: auto`` is on this machine, where it is planned for.
    """
    if isinstance(loaded.recipe, CleanRecipe):
        raise SproutError(f"{loaded.path}: describes the cleaning of data, and has no model to plan")
    found = []
    for number, part in enumerate(trainings(loaded)):
        if not isinstance(part, Training):
            continue
        recipe, config = part.recipe, part.config
        if context is not None and context > config.max_seq_len:
            raise SproutError(
                f"--context {context}: {recipe.name} holds {config.max_seq_len:,} tokens; lower it, "
                "or raise model.max_seq_len"
            )
        # What a card with bf16 units would choose for `auto`; this machine is not asked.
        compute: Compute = "bf16" if recipe.train.compute == "auto" else recipe.train.compute
        device: Device = "cpu" if recipe.train.device == "cpu" else "card"
        setting = _with(setting_of(recipe, compute, device, config), context, batch)
        chosen = compute_here if compute_here and recipe.train.compute == "auto" else compute
        own = _with(setting_of(recipe, chosen, "cpu", config), context, batch)
        step_rows = recipe.train.batch_tokens // setting.seq_len
        # A shape that was changed is no longer what was published.
        same = preset if preset is not None and config == ModelConfig(**PRESETS[preset].shape) else None
        at = () if isinstance(loaded.recipe, Recipe) else ("stages", number, "recipe")
        most = max(step_rows, setting.rows)
        found.append(Subject(recipe.name, config, setting, most, batch or 1, same, recipe, own, at))
    if not found:
        raise SproutError(f"{loaded.path}: no stage of it trains a model, so there is nothing to plan")
    return found


def _with(setting: Setting, context: int | None, batch: int | None) -> Setting:
    return replace(setting, seq_len=context or setting.seq_len, rows=batch or setting.rows)


def plan(subject: Subject, where: Sequence[Place]) -> dict[str, Any]:
    """The figures of one subject; bytes and counts are whole numbers."""
    config, setting, rows = subject.config, subject.setting, subject.answers
    training = training_memory(config, setting)
    inference: dict[Compute, dict[str, Any]] = {}
    for compute in ANSWERING:
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
        for compute in ANSWERING
    }
    most = min(subject.step_rows, MOST_ROWS)
    training = fit_training(config, setting_at(subject, place), place.room, most)
    return {"name": place.name, "room_bytes": place.room, "training": training, "inference": answering}


def setting_at(subject: Subject, place: Place) -> Setting:
    """The recipe's setting as it would be there: side by side on a CPU, one after the other on a card."""
    if place.kind == "cpu":
        return subject.here or subject.setting
    return replace(subject.setting, device="card", streams=1)


def here() -> Place | None:
    """This machine's memory, or its control group's; None where nobody can say how much there is."""
    import psutil

    from ..plan.limits import tightest

    try:
        total = psutil.virtual_memory().total
        limit = tightest(psutil.Process().memory_info().rss, total)
    except (OSError, RuntimeError):
        return None
    return machine(total, limit.room if limit.room < total else None)


def plan_all(
    loaded: Loaded,
    context: int | None,
    batch: int | None,
    preset: str | None = None,
    device: str | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """Figures of every training run of ``loaded``; with ``device`` for that alone, with time, cost (``price`` an hour) and
    cures."""
    own = here()
    if device is None:
        where = [*cards(), own] if own is not None else cards()
        return {"plans": [plan(subject, where) for subject in subjects(loaded, context, batch, preset)]}
    if device.strip().lower() == "cpu" and own is None:
        raise SproutError("--device cpu: this system does not say how much memory it has; give a size, such as 8GB")
    place = own if device.strip().lower() == "cpu" and own is not None else place_of(device)
    found = subjects(loaded, context, batch, preset, _compute_here() if place.kind == "cpu" else None)
    plans = []
    for subject in found:
        subject = replace(subject, setting=setting_at(subject, place))
        plans.append(plan(subject, [place]) | {"device": _device(subject, place, price)})
    return {"plans": plans}


def apply_all(loaded: Loaded, report: dict[str, Any]) -> dict[str, Any]:
    """Write the first cure of every run of a recipe into its file; says what changed, or that nothing had to."""
    from .apply import apply_to_file, with_companions

    changes: dict[tuple[str | int, ...], dict[str, Any]] = {}
    for subject, one in zip(subjects(loaded, None, None), report["plans"], strict=True):
        (place,) = one["places"]
        settings = place["training"]["settings"]
        if settings is None:
            raise OutOfMemory(f"{subject.name}: no setting makes it fit {place['name']}; nothing was written")
        assert subject.recipe is not None
        if settings:
            changes[subject.at] = with_companions(subject.recipe, settings)
    shown = apply_to_file(loaded.path, changes) if changes else ""
    print(shown if shown else f"{loaded.path}: it fits as it is; nothing was written", end="" if shown else "\n")
    return {"file": str(loaded.path), "settings": [dict(one) for one in changes.values()], "difference": shown}


def probe_all(loaded: Loaded, context: int | None, batch: int | None) -> list[dict[str, Any]]:
    """One real longest step of every run, in a process of its own, beside what was predicted for it."""
    import torch

    from .probe import probe

    on_card = torch.cuda.is_available()
    found = []
    for subject in subjects(loaded, context, batch, None, None if on_card else _compute_here()):
        assert subject.recipe is not None
        on_cpu = not on_card or subject.recipe.train.device == "cpu"
        setting = subject.here if on_cpu and subject.here is not None else replace(subject.setting, device="card")
        predicted = step_bytes(subject.config, setting)
        recipe = subject.recipe.model_copy(
            update={"data": subject.recipe.data.model_copy(update={"seq_len": setting.seq_len})}
        )
        measured = probe(recipe, subject.config, setting)
        found.append({"name": subject.name, "predicted_bytes": predicted, "setting": asdict(setting)} | measured)
    return found


def _compute_here() -> Compute:
    import torch

    from ..train.precision import choose_compute

    return COMPUTE_NAMES[choose_compute(torch.device("cpu"))[0]]


def _device(subject: Subject, place: Place, price: float | None) -> dict[str, Any]:
    """Time and cost of the whole run at ``place``; None where nothing is known of its speed or of the run's length."""
    recipe, config, setting = subject.recipe, subject.config, subject.setting
    assert recipe is not None
    tokens = tokens_of(recipe)
    rate, how = token_rate(recipe, config, setting, place)
    seconds = None if rate is None or tokens is None else tokens / rate
    return {
        "name": place.name,
        "kind": place.kind,
        "room_bytes": place.room,
        "tokens": tokens,
        "tokens_per_second": rate,
        "rate_from": how,
        "seconds": seconds,
        "price_per_hour": price,
        "cost": None if price is None or seconds is None else seconds / 3600 * price,
        "source": place.source,
    }


def tokens_of(recipe: Recipe) -> int | None:
    """Tokens of the whole run; estimated from the files' sizes where epochs are given, None where these are not there."""
    if recipe.train.tokens is not None:
        return recipe.train.tokens
    if recipe.train.steps is not None:
        return recipe.train.steps * recipe.train.batch_tokens
    try:
        once = source_tokens(recipe.data.train, set())
    except SproutError:
        return None
    return None if once is None else int(once * (recipe.train.epochs or 1))


def token_rate(recipe: Recipe, config: ModelConfig, setting: Setting, place: Place) -> tuple[float | None, str]:
    """Tokens a second at ``place``, and where that figure comes from."""
    if place.kind == "cpu":
        import torch

        if step_bytes(config, setting) > min(place.room, MOST_TO_TIME):
            return None, "not timed: too large"
        compute = {name: dtype for dtype, name in COMPUTE_NAMES.items()}[setting.compute]
        seconds = step_seconds(config, recipe, compute, torch.device("cpu"), setting.streams)
        return recipe.train.batch_tokens / seconds, "a micro-batch timed here"
    if not place.bf16:
        return None, "a size says nothing of speed; name a card"
    share = card_share()
    if setting.compute == "float32":
        return None, "no published figure of float32 training to go by"
    step = device_seconds(config, setting.seq_len, place.bf16, place.memory, share)
    again = checkpointing_time(config, replace(setting, checkpointing="none"), setting)
    if again is None:
        return None, "what is computed again was not timed"
    return 1 / (step * again), f"published rates of the card, of whose products {share:.0%} are reached (see --nodes)"


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
