"""What the course of a run says: ``metrics.jsonl`` against the recipe, and the samples it took on the way."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import Any

from ..config.schema import Recipe
from ..train.metrics import read_metrics
from ..train.schedule import multiplier, warmup_steps
from .finding import Examination
from .samples import examine_samples

LEAST_POINTS = 12  # logged losses, below which their course says nothing
RISE, DIVERGED, OVERFIT, OVERFIT_SHARE = 0.15, 0.5, 0.01, 0.3
FLAT = 0.02  # share of the first loss, below which a fall is none
NEAR_CHANCE, ABOVE_CHANCE = 0.95, 1.3  # of ln V, the loss of one who knows nothing and says so
EXPLOSION = 20.0  # times the median gradient norm
GAP, GAP_NATS = 0.35, 0.2  # validation above training loss: share of it, and nats, both exceeded
WAIT = 0.05  # share of a step

Rows = list[dict[str, Any]]


def examine_course(found: Examination, run: Path, recipe: Recipe | None) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    logged = [row for row in rows if isinstance(row.get("loss"), int | float)]
    if not logged:
        found.warn("loss", "metrics.jsonl holds no loss", "lower train.log_every, or train longer")
        return
    fresh = recipe is None or recipe.init_from in (None, "random")
    finite(found, rows)
    loss_course(found, logged, fresh)
    if fresh and recipe is not None and recipe.model is not None:
        against_chance(found, logged, recipe.model.vocab_size)
    validation_course(found, rows)
    validation_gap(found, rows, logged)
    gradient_norms(found, logged)
    data_wait(found, logged)
    examine_samples(found, run, rows, recipe)
    if recipe is not None:
        learning_rates(found, run, logged, recipe)


def finite(found: Examination, rows: Rows) -> None:
    """pitfall 33: a figure that is not a number, and from where on."""
    bad = [
        (row["step"], name)
        for row in rows
        for name, value in row.items()
        if isinstance(value, float) and not math.isfinite(value)
    ]
    if bad:
        step, name = bad[0]
        what = f"{len(bad)} figures are not finite, first {name} at step {step:,}"
        found.fail("finite figures", what, "go back to a checkpoint before that step, and lower optimizer.lr", 33)
    else:
        found.ok("finite figures", f"all figures of {len(rows):,} rows are finite", 33)


def loss_course(found: Examination, logged: Rows, fresh: bool) -> None:
    losses = [row["loss"] for row in logged if math.isfinite(row["loss"])]
    if len(losses) < LEAST_POINTS:
        found.ok("loss", f"{len(losses)} losses were logged, too few to judge their course")
        return
    means = window_means(losses)
    best, last = min(means), means[-1]
    at = logged[means.index(best)]["step"]
    what = f"from {means[0]:.3f} to {last:.3f}, at best {best:.3f} around step {at:,}"
    say = found.fail if fresh else found.warn
    look = "look at the rows with `sprout data inspect`"
    if last > best * (1 + DIVERGED):
        say(
            "loss",
            f"it diverged: {what}",
            f"go back to a checkpoint before, lower optimizer.lr, keep train.clip; {look}",
            30,
        )
    elif last >= means[0]:
        say("loss", f"it has not fallen: {what}", f"lower optimizer.lr; {look}", 30)
    elif last > best * (1 + RISE):
        found.warn("loss", f"it rises again: {what}", "lower optimizer.lr, or train fewer steps", 30)
    elif fresh and means[0] - best < FLAT * means[0]:
        cure = f"raise optimizer.lr (or shorten schedule.warmup), train longer, and {look}: are targets masked away?"
        found.fail("loss", f"it is flat: {what}", cure, 30)
    else:
        found.ok("loss", what)


def window_means(losses: list[float]) -> list[float]:
    """Running means over a tenth of the rows, at least three."""
    window = max(3, len(losses) // 10)
    return [statistics.fmean(losses[i : i + window]) for i in range(len(losses) - window + 1)]


def against_chance(found: Examination, logged: Rows, vocabulary: int) -> None:
    """A model that knows nothing has the loss ln V. One that starts far above it is badly set up; one that ends there
    has learnt nothing from its inputs."""
    losses = [row["loss"] for row in logged if math.isfinite(row["loss"])]
    if len(losses) < LEAST_POINTS or vocabulary < 2:
        return
    chance, last = math.log(vocabulary), window_means(losses)[-1]
    what = f"ln V is {chance:.3f} ({vocabulary:,} ids); it began at {losses[0]:.3f} and ended at {last:.3f}"
    if last >= NEAR_CHANCE * chance:
        cure = (
            "train longer, or find what hides the text from the model: `sprout data inspect` shows the rows, their "
            "targets and masks; `sprout verify` the model; optimizer.lr may be far too low or too high"
        )
        found.fail("loss against chance", f"it ends where guessing would: {what}", cure, 30)
    elif losses[0] > ABOVE_CHANCE * chance:
        cure = "first weights too large, or a rate too high at the start: lower optimizer.lr, lengthen schedule.warmup"
        found.warn("loss against chance", f"it begins well above guessing: {what}", cure, 30)
    else:
        found.ok("loss against chance", what)


def validation_course(found: Examination, rows: Rows) -> None:
    points = [(row["step"], row["val_loss"]) for row in rows if isinstance(row.get("val_loss"), int | float)]
    if len(points) < 3:
        return
    at, best = min(points, key=lambda point: point[1])
    end, last = points[-1]
    what = f"best {best:.4f} at step {at:,}, last {last:.4f} at step {end:,}"
    if last > best * (1 + OVERFIT) and end - at > OVERFIT_SHARE * end:
        cure = f"use checkpoints/step-{at:08d}, or set train.early_stop, fewer epochs, or model.dropout"
        found.warn("validation loss", f"it has risen for {end - at:,} steps (overfitting): {what}", cure)
    else:
        found.ok("validation loss", what)


def validation_gap(found: Examination, rows: Rows, logged: Rows) -> None:
    """The last validation loss beside the training loss of the same time."""
    points = [(row["step"], row["val_loss"]) for row in rows if isinstance(row.get("val_loss"), int | float)]
    if not points or not math.isfinite(points[-1][1]):
        return
    step, validation = points[-1]
    near = sorted(logged, key=lambda row: abs(row["step"] - step))[:3]
    training = statistics.fmean(row["loss"] for row in near)
    what = f"at step {step:,} training {training:.3f}, validation {validation:.3f}"
    if validation > training * (1 + GAP) and validation - training > GAP_NATS:
        cure = (
            "more data, fewer epochs, or model.dropout; or the validation rows are of another kind than the training's"
        )
        found.warn("training and validation", f"validation is far above training: {what}", cure)
    elif training > validation * (1 + GAP) and training - validation > GAP_NATS:
        cure = "are validation rows easier, or among the training rows? Compare: sprout doctor TRAIN VALIDATION"
        found.warn("training and validation", f"validation is far below training: {what}", cure)
    else:
        found.ok("training and validation", what)


def data_wait(found: Examination, logged: Rows) -> None:
    waits = [row["data_wait"] for row in logged if isinstance(row.get("data_wait"), int | float)]
    if len(waits) < 3:
        return
    mean, most = statistics.fmean(waits), max(waits)
    what = f"{mean:.1%} of the time of a step is waiting for its batch (at most {most:.1%})"
    if mean > WAIT:
        cure = "put data.cache on a local disk, leave a core free for reading, or pack longer rows (data.packing)"
        found.warn("data wait", what, cure)
    else:
        found.ok("data wait", what)


def gradient_norms(found: Examination, logged: Rows) -> None:
    norms = [(row["grad_norm"], row["step"]) for row in logged if math.isfinite(row.get("grad_norm", math.nan))]
    norms = norms[len(norms) // 4 :]  # the first steps are wild in every run
    if len(norms) < LEAST_POINTS // 2:
        return
    median = statistics.median(norm for norm, _ in norms)
    most, at = max(norms)
    what = f"median {median:.3g}, most {most:.3g} at step {at:,}"
    if most > EXPLOSION * median:
        found.warn(
            "gradient norm", f"it jumps: {what}", "lower optimizer.lr, set train.clip, look at the data there", 33
        )
    else:
        found.ok("gradient norm", what, 33)


def learning_rates(found: Examination, run: Path, logged: Rows, recipe: Recipe) -> None:
    """pitfall 30: the rates that were used are those of the schedule. After a change on resume, only later ones count."""
    changed = [row["step"] for row in read_metrics(run / "changes.jsonl")] if (run / "changes.jsonl").is_file() else []
    rows = [row for row in logged if row["step"] > max(changed, default=0) and "lr_multiplier" in row]
    total, peak = recipe.train.steps, recipe.optimizer.lr
    if total is None or not rows:
        return
    cure = "train again with an unchanged recipe; changes on resume belong to --change, which records them"
    above = [row for row in rows if row.get("lr", 0) > peak * (1 + 1e-6)]
    if above:
        what = f"{above[0]['lr']:g} at step {above[0]['step']:,}, above optimizer.lr={peak:g}"
        found.fail("learning rate", what, cure, 30)
        return
    for row in rows:
        wanted = multiplier(recipe.schedule, row["step"] - 1, total)
        if abs(row["lr_multiplier"] - wanted) > 1e-6:
            rising = row["step"] <= warmup_steps(recipe.schedule, total)
            what = (
                f"at step {row['step']:,} {row['lr_multiplier']:.4g} of the peak, where {recipe.schedule.name} has "
                f"{wanted:.4g}{': the warm-up is absent' if rising else ''}"
            )
            found.fail("learning rate", what, cure, 30)
            return
    found.ok("learning rate", f"{len(rows)} logged rates are those of the schedule, at most {peak:g}", 30)
