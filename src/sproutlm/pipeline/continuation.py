"""Whether a run may go on where its checkpoints end: the same settings and the same content, or a change asked for by name."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch import Tensor

from ..config.schema import Recipe
from ..errors import CheckpointError, SproutError
from ..train.checkpoint import Checkpoint
from .prepare import Prepared, Say

# What may differ when a run continues: where things lie and how fast they are made, not what they are. (train.loss_chunk is
# none of them: sums over other chunks round otherwise, as those over other micro-batches do.)
# A file's content is compared in place of its path: see ``identity_of``.
PLACE_KEYS = (
    "ranks", "run", "init_from", "data.cache", "data.workers", "train.streams", "train.checkpointing", "train.force_memory",
    "train.async_save", "parallel.dp", "parallel.shard", "parallel.tp", "parallel.cp", "parallel.ep", "parallel.timeout",
    "parallel.check_every", "train.trackers", "train.tracker_project", "train.tracker_name",
)  # fmt: skip
ALONE_WORDS = "one process"
CONTENTS = {
    "data": "the training data (another file, or other rows or bytes in it)",
    "validation": "the validation data (another file, or other rows or bytes in it)",
    "tokenizer": "the tokenizer (other ids for the same text)",
    "template": "the tokenizer's chat template",
    "start": "the model that init_from names (other weights)",
}


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Refuse a second process on the same run folder. The lock dies with its process, also under kill -9."""
    try:
        run.mkdir(parents=True, exist_ok=True)
        handle = open(run / ".lock", "w")
    except OSError as error:
        raise SproutError(
            f"{run}: this run folder cannot be written ({error.strerror}); choose another with run=DIR"
        ) from error
    with handle:
        if os.name != "nt":
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SproutError(
                    f"{run}: another process trains in this folder; wait for it, or use another run=DIR"
                ) from error
        yield


def differences(old: Any, new: Any, path: str = "") -> list[tuple[str, Any, Any]]:
    """Keys whose values differ between two resolved recipes, as (dotted key, old, new)."""
    key = path.removeprefix("recipe.")
    if key in PLACE_KEYS or key.rsplit(".", 1)[-1] == "path":
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        out = []
        for name in sorted(old.keys() | new.keys()):
            out += differences(old.get(name), new.get(name), f"{path}.{name}" if path else name)
        return out
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [d for i, (a, b) in enumerate(zip(old, new, strict=True)) for d in differences(a, b, f"{path}.{i}")]
    return [] if old == new else [(key, old, new)]


def check_continuation(
    old: dict[str, Any], new: dict[str, Any], allowed: set[str], run: Path
) -> list[tuple[str, Any, Any]]:
    """Compare what a checkpoint was made with and what is asked now; refuse differences that were not asked for."""
    # A checkpoint of an earlier version knows nothing of newer settings: it was made with their defaults.
    found = differences({**old, "recipe": filled(old["recipe"])}, {key: new[key] for key in new if key in old})
    contents = {key for key, _, _ in found if key in CONTENTS}
    if contents & {"tokenizer", "template"}:
        contents -= {"data", "validation"}  # encoded anew, so other tokens: a consequence, not the cause
    # A recipe that leaves the size open takes the tokenizer's: a consequence, too.
    known = {*allowed, *CONTENTS, *(["model.vocab_size"] if "tokenizer" in contents else [])}
    settings = [f"{key}: was {a!r}, now {b!r}" for key, a, b in found if key not in known]
    if settings:
        raise CheckpointError(
            f"{run}: the checkpoints there were made with other settings ({'; '.join(settings)}). Start again with the old "
            "settings, or name what shall change (--change key=value), or use another run folder (run=DIR)"
        )
    if contents:
        changed = "; ".join(CONTENTS[key] for key in sorted(contents))
        raise CheckpointError(
            f"{run}: what the checkpoints there were made with has changed since: {changed}. Put back what was "
            "there, or use another run folder (run=DIR); there init_from=RUN begins from the weights of a finished run"
        )
    return found


def filled(recipe: dict[str, Any]) -> dict[str, Any]:
    """A stored recipe with the fields that this version has beyond it; as it is where this version cannot read it."""
    try:
        return json.loads(Recipe.model_validate(recipe).model_dump_json())
    except ValidationError:
        return recipe


def identity_of(
    resolved: Recipe, prepared: Prepared, start: dict[str, Tensor] | None, ranks: str = ALONE_WORDS
) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued: every setting, and the content behind every path.

    ``start``: the weights that init_from names; ``ranks``: how several processes share the run, which may change.
    """
    identity: dict[str, Any] = {
        "recipe": json.loads(resolved.model_dump_json()),
        "data": prepared.train.fingerprint,
        "validation": prepared.validation.fingerprint if prepared.validation else None,
        "tokenizer": prepared.tokenizer.fingerprint,
        "template": prepared.template.fingerprint,
        "start": None,
        "ranks": ranks,
    }
    if start is not None:
        digest = hashlib.sha256()
        for name, value in sorted(start.items()):
            digest.update(name.encode())
            digest.update(value.detach().float().contiguous().numpy().tobytes())
        identity["start"] = digest.hexdigest()
    return identity


def record_continuation(
    checkpoint: Checkpoint | None, identity: dict[str, Any], changes: list[str], run: Path, say: Say
) -> None:
    """Compare with the newest checkpoint; changes asked for by name are let through, said, and kept in changes.jsonl."""
    if checkpoint is None:
        return
    allowed = {c.partition("=")[0].strip() for c in changes}
    # One wish changes what follows from it: the number of steps may have been given as tokens or epochs.
    if allowed & {"train.steps", "train.tokens", "train.epochs"}:
        allowed.add("train.steps")
    before = checkpoint.state()["identity"]
    found = check_continuation(before, identity, allowed, run)
    if before.get("ranks", ALONE_WORDS) != identity["ranks"]:
        model = identity["recipe"]["model"]
        also = [
            words
            for words, there in (
                ("dropout draws otherwise", model["dropout"]),
                (
                    "experts are balanced over other parts of a step",
                    (model["moe"] or {}).get("balance", "none") != "none",
                ),
            )
            if there
        ]
        say(
            f"written by {before.get('ranks', ALONE_WORDS)}, continued by {identity['ranks']}: the same rows in every step; "
            + ", ".join(["sums are rounded in another order", *also])
        )
    steps = identity["recipe"]["train"]["steps"]
    if steps < checkpoint.step:
        raise CheckpointError(
            f"{run}: it is at step {checkpoint.step} already, so train.steps={steps} cannot be its end; give at least "
            f"{checkpoint.step}, or use another run folder (run=DIR)"
        )
    record = run / "changes.jsonl"
    known = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    for key, old, new in found:
        say(f"change at step {checkpoint.step}: {key} {old!r} -> {new!r}")
        line = json.dumps({"step": checkpoint.step, "key": key, "old": old, "new": new})
        if line not in known:  # the same command again, after it was stopped before its first checkpoint
            with open(record, "a", encoding="utf-8") as f:
                f.write(line + "\n")
