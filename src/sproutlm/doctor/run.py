"""A run folder: what its metrics, its data's manifest and its checkpoints say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..config.load import load_recipe
from ..config.schema import Recipe
from ..data.shards import MANIFEST, TokenDataset
from ..errors import SproutError
from ..export.weights import read_json
from ..tokenizer.tokenizer import Tokenizer
from ..train.checkpoint import Checkpointer
from ..train.metrics import read_metrics
from .checkpoint import examine_checkpoint, examine_huggingface, saves
from .course import examine_course
from .finding import Examination, share
from .recipe import settings
from .tokenizer import same_tokenizer

VERIFY_BYTES = 1_000_000_000  # of token shards, above which checksums are left out
COMPARE_BYTES = 2_000_000_000  # of weights, above which a run is not compared with what it started from
DROPPED_SHARE, CUT_SHARE, STOP_SHARE = 0.05, 0.1, 0.99
CHANGED_LEAST = 0.01


def examine_run(run: Path) -> list[Examination]:
    """The run itself, then its newest checkpoint and its final model."""
    found = Examination(str(run), "run folder")
    recipe = stored_recipe(found, run)
    if (run / "metrics.jsonl").is_file():
        examine_course(found, run, recipe)
    manifest_of(found, run, recipe)
    checkpoints = Checkpointer(run / "checkpoints", say=found.notes.append)
    saved, newest = found.attempt("checkpoints", "restore one from a copy, or start over", 27, checkpoints.latest)
    parts = []
    if newest is None:
        saves(found, run / "checkpoints")
    else:
        parts.append(examine_checkpoint(newest.path))
    if (run / "model" / "config.json").is_file():
        parts.append(examine_huggingface(run / "model"))
    if saved:
        progress(found, run, recipe, None if newest is None else newest.step)
    one_tokenizer(found, run, None if newest is None else newest.path)
    if recipe is not None:
        change_from_start(found, run, recipe)
    return [found, *parts]


def stored_recipe(found: Examination, run: Path) -> Recipe | None:
    path = run / "recipe.yaml"
    if not path.is_file() and not (run / "metrics.jsonl").is_file():
        return None  # prepared and not yet trained, or imported
    if not path.is_file():
        what = "there is no recipe.yaml, so nothing says how this run was made"
        found.warn("recipe", what, "train with `sprout train`, which stores it", 26)
        return None
    cure = "it was written by another version, or edited: compare it with the one in a checkpoint"
    read, loaded = found.attempt("recipe", cure, None, lambda: load_recipe(path))
    if not read or not isinstance(loaded.recipe, Recipe):
        return None
    found.ok("recipe", f"{path.name} resolves")
    settings(found, loaded.recipe)
    return loaded.recipe


# --- data, progress, start ------------------------------------------------------------------------------------------------


def manifest_of(found: Examination, run: Path, recipe: Recipe | None) -> None:
    """The token shards that the run trained on: whole, and what was lost on the way to them."""
    cache = Path(recipe.data.cache) if recipe is not None and recipe.data.cache else run / "data"
    folder = cache / "train"
    if (folder / MANIFEST).is_file():
        shards(found, folder)
        tokenizer = tokenizer_of(run)
        if tokenizer is not None:
            written = read_json(folder / MANIFEST).get("tokenizer")
            same_tokenizer(found, "tokenizer of the data", tokenizer.fingerprint, written, str(folder))


def examine_shards(folder: Path) -> Examination:
    """Examine a folder of token shards by itself."""
    found = Examination(str(folder), "token shards")
    shards(found, folder)
    return found


def shards(found: Examination, folder: Path) -> None:
    cure = "delete this folder and prepare the data again"
    read, dataset = found.attempt("token shards", cure, 12, lambda: TokenDataset(folder))
    if not read:
        return
    size = sum(shard.path.stat().st_size for shard in dataset.shards)
    if size > VERIFY_BYTES:
        found.notes.append(f"{size / 1e9:.1f} GB of token shards: their checksums were not computed")
        whole = True
    else:
        whole, _ = found.attempt("token shards", cure, 12, dataset.verify)
    if whole and dataset.vocab_size is not None:
        whole, _ = found.attempt("token shards", cure, 9, lambda: dataset.check_vocab(dataset.vocab_size))
    if whole:
        found.ok("token shards", f"{dataset.n_documents:,} documents, {dataset.n_tokens:,} tokens, undamaged", 12)
    if dataset.manifest:
        losses(found, dataset.manifest)


def losses(found: Examination, manifest: dict[str, Any]) -> None:
    """pitfalls 1, 2, 13: stop tokens trained, rows cut, rows dropped, as counted when the data was prepared."""
    counts = manifest.get("counts", {})
    rows, dropped = counts.get("rows_in", 0), counts.get("dropped", {})
    n = sum(dropped.values())
    what = f"{n:,} of {rows:,} rows were dropped ({share(n, rows)})" + (
        ": " + ", ".join(f"{reason} {count:,}" for reason, count in dropped.items()) if n else ""
    )
    if n > DROPPED_SHARE * rows:
        found.warn("rows dropped", what, "look at the file itself: sprout doctor FILE", 13)
    else:
        found.ok("rows dropped", what, 13)
    cut, lost = counts.get("truncated", 0), manifest.get("lost_tokens", 0)
    what = f"{cut:,} of {rows:,} records were cut, {lost:,} tokens lost"
    if cut > CUT_SHARE * rows or lost > CUT_SHARE * (manifest.get("tokens", 0) + lost):
        found.warn("records cut", what, "raise data.seq_len, or shorten the records", 2)
    else:
        found.ok("records cut", what, 2)
    chats, stopping = manifest.get("chats", 0), manifest.get("chats_with_stop", 0)
    if not chats:
        return
    what = f"{stopping:,} of {chats:,} conversations ({share(stopping, chats)}) train a stop token"
    if not stopping:
        found.fail("stop token", what, "repair the chat template (see: sprout tokenizer test)", 1)
    elif stopping < STOP_SHARE * chats:
        found.warn("stop token", what, "look at the others: sprout data inspect FILE", 1)
    else:
        found.ok("stop token", what, 1)


def progress(found: Examination, run: Path, recipe: Recipe | None, saved: int | None) -> None:
    """pitfall 28: whether what was trained was also saved."""
    rows = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
    trained = max((row["step"] for row in rows if "loss" in row), default=0)
    finished = (run / "model" / "config.json").is_file()
    again = "start the same command again: it continues by itself (or wait, if it is still running)"
    if saved is None:
        if finished:
            found.ok("saved", "the final model is there; no checkpoints are kept", 28)
        elif not rows:
            found.ok("saved", "not trained yet: only what training needs is here", 28)
        else:
            found.fail("saved", f"trained to step {trained:,} and nothing was saved", again, 28)
    elif trained > saved:
        what = f"the newest checkpoint is of step {saved:,}, the last metrics of step {trained:,}"
        found.warn("saved", f"{what}: {trained - saved:,} steps will be repeated", again, 28)
    elif not finished:
        total = recipe.train.steps if recipe is not None else None
        goal = f" of {total:,}" if total else ""
        found.warn("saved", f"stopped at step {saved:,}{goal}; there is no final model/ yet", again, 28)
    else:
        found.ok("saved", f"step {saved:,}, and the final model", 28)


def tokenizer_of(folder: Path) -> Tokenizer | None:
    try:
        return Tokenizer.load(folder)
    except SproutError:
        return None


def one_tokenizer(found: Examination, run: Path, checkpoint: Path | None) -> None:
    """pitfall 6: the model that is handed on has the tokenizer and the chat template of the training."""
    if checkpoint is None or not (run / "model" / "tokenizer.json").is_file():
        return
    ours, theirs = tokenizer_of(checkpoint), tokenizer_of(run / "model")
    if ours is None or theirs is None:
        return
    same_tokenizer(found, "tokenizer of model/", ours.fingerprint, theirs.fingerprint, "checkpoint and model/")
    if ours.chat_template != theirs.chat_template:
        what = "the chat template in model/ is not the one that the checkpoint was trained with"
        found.fail(
            "chat template", what, "copy tokenizer_config.json of the checkpoint into model/, or export again", 6
        )


def change_from_start(found: Examination, run: Path, recipe: Recipe) -> None:
    """pitfall 29: a stage whose updates were lost leaves the weights where they were."""
    start = recipe.init_from
    if start in (None, "random"):
        return
    if not Path(str(start)).exists():  # then what the run itself saw of it counts
        rows = read_metrics(run / "metrics.jsonl") if (run / "metrics.jsonl").is_file() else []
        shares = [row["changed_share"] for row in rows if isinstance(row.get("changed_share"), int | float)]
        if shares:
            judge_change(found, shares[-1], str(start))
        return
    from ..export.load import load
    from ..pipeline.train import changed_share

    size = sum(path.stat().st_size for path in Path(str(start)).rglob("model*.safetensors"))
    if size > COMPARE_BYTES:
        found.notes.append(f"{size / 1e9:.1f} GB of weights: not compared with {start}")
        return
    cure = "what init_from names may have changed since; nothing can be compared"
    read, changed = found.attempt("change", cure, None, lambda: changed_share(load(run)[0], Path(str(start))))
    if not read:
        return
    judge_change(found, changed, str(start))


def judge_change(found: Examination, changed: float, start: str) -> None:
    what = f"{changed:.1%} of the weights differ from {start} (as bf16)"
    if changed < CHANGED_LEAST:
        found.warn("change", what, "raise optimizer.lr or train longer: saved as bf16, this stage is lost", 29)
    else:
        found.ok("change", what, 29)


def examine_saves(folder: Path) -> list[Examination]:
    """A run's ``checkpoints`` folder by itself."""
    found = Examination(str(folder), "checkpoints")
    checkpoints = Checkpointer(folder, say=found.notes.append)
    _, newest = found.attempt("checkpoints", "restore one from a copy, or start over", 27, checkpoints.latest)
    if newest is not None:
        return [examine_checkpoint(newest.path)]
    saves(found, folder)
    return [found]
