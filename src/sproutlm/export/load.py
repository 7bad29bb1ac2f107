"""``load``: a model and its tokenizer from anything that holds one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from ..config.model import ModelConfig
from ..errors import CheckpointError, SproutError
from ..families import check_state
from ..families.lazy import read_all
from ..model import Transformer
from ..model.meta import on_meta
from ..train.checkpoint import Checkpointer, verify
from ..train.tensor_parts import part_files, read_tensors
from .read import check_vocabulary, read, read_tokenizer
from .weights import PICKLES, SafetensorsFolder, read_json, refused_pickle

if TYPE_CHECKING:
    from ..tokenizer.tokenizer import Tokenizer

CHECKPOINT_CONFIG = "model_config.json"


@dataclass(frozen=True)
class Source:
    """Where a model's files were found."""

    kind: Literal["huggingface", "checkpoint"]
    folder: Path
    step: int | None = None


def load(path: Path | str, dtype: torch.dtype | None = torch.float32) -> tuple[Transformer, Tokenizer | None]:
    """The model in eval mode, with its tokenizer (None for a Hugging Face folder without tokenizer.json).

    ``path`` is a run folder (its ``model/``, else its newest undamaged checkpoint), a checkpoint, or a Hugging Face
    folder; ``dtype`` the type of the weights, None for that of the files. The weights are in memory once; those that need no
    cast are views of the files, which training changes in memory alone. A file may be replaced or deleted meanwhile, not
    cut short in place. Raises SproutError; CheckpointError where files are damaged or do not belong together.
    """
    config, state, tokenizer = load_state(path, dtype)
    model = on_meta(config)  # the parameters below take the place of these: none is allocated or drawn twice
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval(), tokenizer


def load_state(
    path: Path | str, dtype: torch.dtype | None = torch.float32
) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer | None]:
    """``load`` without building the model: config, tensors by our parameter names, tokenizer."""
    source = locate(path)
    reader = read if source.kind == "huggingface" else read_checkpoint
    config, state, tokenizer = reader(source.folder, dtype)
    return config, read_all(state), tokenizer


def read_checkpoint(
    folder: Path, dtype: torch.dtype | None = None
) -> tuple[ModelConfig, Mapping[str, Tensor], Tokenizer | None]:
    """A checkpoint of ours, verified before: its files hold our own names and types."""
    try:
        config = ModelConfig.model_validate(read_json(folder / CHECKPOINT_CONFIG))
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise CheckpointError(f"{folder / CHECKPOINT_CONFIG}: {faults}") from None
    state = checkpoint_tensors(folder, dtype)
    try:
        check_state(config, state)
    except SproutError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    tokenizer = read_tokenizer(folder)
    check_vocabulary(config, tokenizer, str(folder))
    return config, state, tokenizer


def checkpoint_tensors(folder: Path, dtype: torch.dtype | None = None) -> Mapping[str, Tensor]:
    """A checkpoint's weights: views of its file, or put together from those that several ranks wrote."""
    if part_files(folder, "model"):
        return {name: value.to(dtype or value.dtype) for name, value in read_tensors(folder, "model").items()}
    return SafetensorsFolder(folder, dtype)


def say_to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def locate(path: Path | str, say: Callable[[str], None] = say_to_stderr) -> Source:
    """Where the model of ``path`` is. A damaged part that is passed over is said; SproutError where nothing is left."""
    path = Path(path)
    if not path.exists():
        raise SproutError(
            f"{path}: no such folder. Expected a run folder, a checkpoint or a Hugging Face folder on this disk; "
            "a model named by its hub name has to be downloaded first"
        )
    if not path.is_dir():
        if any(map(path.match, PICKLES)):
            raise CheckpointError(refused_pickle(path))
        raise SproutError(f"{path} is a file; give the folder that it is in")
    if (path / CHECKPOINT_CONFIG).is_file():
        fault = verify(path)
        if fault:
            raise CheckpointError(f"{fault}; use another checkpoint, or the run folder: it takes the newest good one")
        return Source("checkpoint", path, int(read_json(path / "COMPLETE").get("step", 0)))
    if (path / "config.json").is_file():
        return Source("huggingface", path)

    exported = path / "model"
    unusable: CheckpointError | None = None
    if (exported / "config.json").is_file():
        try:
            SafetensorsFolder(exported)  # opens each file and compares its size with what its header says
            return Source("huggingface", exported)
        except CheckpointError as error:
            unusable = error
    newest = Checkpointer(path / "checkpoints", say=say).latest()
    if newest is None and unusable is not None:
        raise unusable
    if newest is None:
        raise SproutError(
            f"{path}: no model found. Looked for config.json (a Hugging Face folder), {CHECKPOINT_CONFIG} "
            "(a checkpoint), model/config.json and checkpoints/step-* (a run folder)"
        )
    if unusable is not None:
        say(f"warning: {unusable}; using the checkpoint of step {newest.step}")
    return Source("checkpoint", newest.path, newest.step)
