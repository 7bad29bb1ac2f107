"""Checkpoints and Hugging Face folders: damage, half-finished saves, weights that are missing, not finite or never moved."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from ..config.model import ModelConfig
from ..errors import SproutError
from ..export.huggingface import stop_ids
from ..export.load import CHECKPOINT_CONFIG, checkpoint_tensors
from ..export.read import read_tokenizer, recognise_folder
from ..export.weights import SafetensorsFolder, read_json
from ..families import check_state
from ..tokenizer.tokenizer import Tokenizer
from ..train.checkpoint import MARKER, OPTIMIZER, Checkpointer, verify
from ..train.tensor_parts import part_files
from .finding import Examination, listed
from .tokenizer import vocabulary

COPY_AGAIN = "copy or save it again"
RESIDUAL_WRITERS = ("o_proj.weight", "down_proj.weight")  # by our names and by Hugging Face's; they start at zero


def examine_checkpoint(folder: Path) -> Examination:
    """Examine one checkpoint of ours, ``checkpoints/step-*``."""
    found = Examination(str(folder), "checkpoint")
    fault = verify(folder)
    if fault is not None:
        cure = "use the run folder: it takes the newest undamaged checkpoint by itself; or restore this one from a copy"
        found.fail("checksums", fault, cure, 27)
        return found
    found.ok("checksums", "every file is whole and matches its checksum", 27)
    saves(found, folder.parent)
    resumable(found, folder)
    read, config = found.attempt("config", COPY_AGAIN, None, lambda: stored_config(folder))
    opened, tensors = found.attempt("tensors", COPY_AGAIN, 32, lambda: checkpoint_tensors(folder))
    if read and opened:
        cure = "save it again with the version that wrote it; nothing is filled in by itself"
        whole, _ = found.attempt("tensors", cure, 32, lambda: check_state(config, tensors))
        if whole:
            found.ok("tensors", f"all {len(tensors):,} tensors are there and have their shapes", 32)
        weights(found, tensors.items(), masters=True)
    tokenizer_beside(found, folder, config.vocab_size if read else None)
    return found


def stored_config(folder: Path) -> ModelConfig:
    try:
        return ModelConfig.model_validate(read_json(folder / CHECKPOINT_CONFIG))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise SproutError(f"{folder / CHECKPOINT_CONFIG}: {faults}") from None


def resumable(found: Examination, folder: Path) -> None:
    """pitfall 26: what a run needs, beside the weights, to go on exactly."""
    missing = [name for name in ("trainer.json", "recipe.yaml") if not (folder / name).is_file()]
    if not (folder / OPTIMIZER).is_file() and not part_files(folder, "optimizer"):
        missing.append(OPTIMIZER)
    if missing:
        found.warn(
            "resuming",
            f"{folder.name} has no {', '.join(missing)}: a run that continues from it would not go on exactly",
            "use it to chat, evaluate or start another run (init_from), not to continue",
            26,
        )
        return
    state = json.loads((folder / "trainer.json").read_text(encoding="utf-8")).get("state") or {}
    named = folder.name.removeprefix("step-")
    if named.isdigit() and state.get("step", int(named)) != int(named):
        what = f"the folder says step {int(named):,}, its trainer.json step {state['step']:,}"
        found.fail("resuming", what, "give the folder its own name back", 26)
    else:
        found.ok("resuming", "optimizer, step and recipe are stored with the weights", 26)


def saves(found: Examination, checkpoints: Path) -> None:
    """pitfall 27: saves that were cut off, and a ``latest`` that points at one."""
    if not checkpoints.is_dir():
        return
    leftover = sorted(path.name for path in checkpoints.glob(".step-*.tmp"))
    if leftover:
        what = f"{checkpoints}: a save was cut off and left {listed(leftover)}; it is never read"
        found.warn("unfinished save", what, "start the same command again: the next save clears it; or delete it", 27)
    halves = [p.name for p in sorted(checkpoints.glob("step-*")) if p.is_dir() and not (p / MARKER).is_file()]
    if halves:
        what = f"{checkpoints}: {listed(halves)} has no {MARKER} marker, so it is half a checkpoint"
        found.warn("half a checkpoint", what, "delete it; the whole ones are used without asking", 27)
    pointer, steps = checkpoints / "latest", Checkpointer(checkpoints).steps()
    if not pointer.is_file():
        return
    named = pointer.read_text(encoding="utf-8", errors="replace").strip()
    whole = [f"step-{step:08d}" for step in steps]
    if named not in whole:
        found.fail(
            "latest",
            f"{pointer} names {named!r}, which is no whole checkpoint",
            f"write {whole[-1]} into it" if whole else "delete it; there is no whole checkpoint beside it",
            27,
        )
    elif named != whole[-1]:
        what = f"{pointer} names {named}, but {whole[-1]} is newer"
        found.warn("latest", what, f"write {whole[-1]} into it; sprout itself takes the newest", 27)
    else:
        found.ok("latest", f"{named}, the newest whole checkpoint", 27)


# --- Hugging Face folders -------------------------------------------------------------------------------------------------


def examine_huggingface(folder: Path) -> Examination:
    """Examine a Hugging Face folder, ours or another's."""
    found = Examination(str(folder), "Hugging Face folder")
    cure = "models of other architectures cannot be read; import one that can: sprout import hf"
    read, config = found.attempt("config", cure, None, lambda: config_of(folder))
    opened, tensors = found.attempt("tensors", COPY_AGAIN, 32, lambda: SafetensorsFolder(folder))
    if read and opened:
        cure = "convert or download it again; nothing is filled in by itself"
        family = recognise_folder(folder).family
        whole, _ = found.attempt("tensors", cure, 32, lambda: family.state_from_hf(config, tensors))
        if whole:
            found.ok("tensors", f"all {len(tensors):,} tensors are there and have their shapes", 32)
        weights(found, tensors.items(), masters=False)
    tokenizer = tokenizer_beside(found, folder, config.vocab_size if read else None)
    if tokenizer is not None:
        generation_ends(found, folder, tokenizer)
    return found


def config_of(folder: Path) -> ModelConfig:
    found = recognise_folder(folder)
    return found.family.config_from_hf(found.config)


def generation_ends(found: Examination, folder: Path, tokenizer: Tokenizer) -> None:
    """pitfall 1, from the other side: generation must stop at what training ended answers with."""
    try:
        trained = stop_ids(tokenizer)
    except SproutError as error:
        found.fail("end of generation", str(error), "repair the chat template", 1)
        return
    path = folder / "generation_config.json"
    given = read_json(path).get("eos_token_id") if path.is_file() else None
    source = "generation_config.json"
    if given is None:
        given, source = read_json(folder / "config.json").get("eos_token_id"), "config.json"
    ends = given if isinstance(given, list) else [] if given is None else [given]
    names = ", ".join(f"{tokenizer.token_text(i)} = {i}" for i in trained)
    cure = f'write "eos_token_id": {trained} into generation_config.json, or export again'
    if not ends:
        what = f"no eos_token_id in generation_config.json: generation would never stop; training ends with {names}"
        found.fail("end of generation", what, cure, 1)
    elif answer_end(tokenizer) not in ends:
        found.fail("end of generation", f"{source} stops at {ends}, but answers end with {names}", cure, 1)
    else:
        found.ok("end of generation", f"{source} stops at {ends}, where training ends", 1)


def answer_end(tokenizer: Tokenizer) -> int:
    """The id that an answer ends with: by the chat template where there is one, else the document end."""
    from ..tokenizer.template import ChatTemplate

    return tokenizer.eos_id if tokenizer.chat_template is None else ChatTemplate.of(tokenizer).stop_ids[0]


# --- weights ----------------------------------------------------------------------------------------------------------------


def weights(found: Examination, tensors: Iterable[tuple[str, Tensor]], masters: bool) -> None:
    """Look at every value, one tensor in memory at a time."""
    broken: list[str] = []
    zero: list[str] = []
    half: list[str] = []
    norms = ones = values = 0
    for name, tensor in tensors:
        values += tensor.numel()
        if not tensor.is_floating_point():
            continue
        if tensor.dtype != torch.float32:
            half.append(name)
        n_broken = int((~torch.isfinite(tensor)).sum())
        if n_broken:
            broken.append(f"{name} ({n_broken:,} of {tensor.numel():,})")
        elif tensor.ndim == 2 and not bool(tensor.any()):
            zero.append(name)
        if "norm" in name and name.endswith(".weight"):
            norms += 1
            ones += bool((tensor == 1).all())
    if broken:
        what = f"values that are not finite in {len(broken)} tensors: {listed(broken)}"
        found.fail("finite weights", what, "use an earlier checkpoint, and a lower optimizer.lr", 33)
    else:
        found.ok("finite weights", f"all {values:,} values are finite", 33)
    moved(found, zero, norms, ones)
    if masters and half:
        what = f"{len(half)} tensors are stored below float32: {listed(half)}; small updates are lost in them"
        found.fail("float32 masters", what, "continue from a checkpoint with float32 weights", 29)
    elif masters:
        found.ok("float32 masters", "weights are stored in float32", 29)


def moved(found: Examination, zero: list[str], norms: int, ones: int) -> None:
    """pitfalls 16 and 29: matrices still zero and norms still one are where training began."""
    if zero:
        starts = all(name.endswith(RESIDUAL_WRITERS) for name in zero)
        why = "; these start at zero, so they were never trained" if starts else ""
        what = f"{len(zero)} matrices are all zero: {listed(zero)}{why}"
        found.fail("zero matrices", what, "train the model, or find out why these got no gradient", 16)
    else:
        found.ok("zero matrices", "no matrix is all zero", 16)
    if norms and ones == norms:
        what = f"all {norms} norm weights are exactly 1, as at the start"
        found.warn("untouched norms", what, "train longer or at a higher rate, in float32 masters", 29)


def tokenizer_beside(found: Examination, folder: Path, rows: int | None) -> Tokenizer | None:
    """The folder's tokenizer, compared with the model's ``rows``; None, as a finding, where there is none."""
    cure = "copy tokenizer.json and tokenizer_config.json of the training beside the weights"
    read, tokenizer = found.attempt("tokenizer", cure, 8, lambda: read_tokenizer(folder))
    if not read:
        return None
    if tokenizer is None:
        found.warn("tokenizer", "there is none in this folder, so nothing ties ids to text", cure, 9)
    elif rows is not None:
        vocabulary(found, rows, tokenizer, "the model")
    return tokenizer
