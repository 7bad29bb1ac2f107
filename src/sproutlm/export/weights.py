"""Safetensors files, one or several: lazy reading, writing in shards. Pickled weights are refused: they run code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4_000_000_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``; CheckpointError with the line where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text; the file is damaged") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); the file is damaged") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def weight_files(folder: Path) -> dict[str, list[Path]]:
    """What weights a folder has: ``present`` and ``missing`` safetensors files; both empty where there are none."""
    if (folder / INDEX).is_file():
        names = sorted(set(shard_map(folder).values()))
    else:
        names = [SINGLE] if (folder / SINGLE).is_file() else []
    files = [folder / name for name in names]
    return {"present": [f for f in files if f.is_file()], "missing": [f for f in files if not f.is_file()]}


def shard_map(folder: Path) -> dict[str, str]:
    """Tensor name -> file name, from the index of a sharded model."""
    mapping = read_json(folder / INDEX).get("weight_map")
    if not isinstance(mapping, dict) or not all(
        isinstance(file, str) and Path(file).name == file for file in mapping.values()
    ):
        raise CheckpointError(f"{folder / INDEX}: weight_map must give a file of this folder for each tensor")
    return mapping


class SafetensorsFolder(Mapping[str, Tensor]):
    """The tensors of a folder by name, read from disk when asked for. CheckpointError where a file is damaged."""

    def __init__(self, folder: Path) -> None:
        files = weight_files(folder)
        if files["missing"]:
            names = ", ".join(f.name for f in files["missing"])
            raise CheckpointError(f"{folder}: {INDEX} names files that are not there: {names}; copy the folder again")
        if not files["present"]:
            raise CheckpointError(no_weights(folder))
        self._handles: dict[str, Any] = {}
        for path in files["present"]:
            try:
                handle = safe_open(path, framework="pt")
                for name in handle.keys():
                    self._handles[name] = handle
            except (SafetensorError, OSError) as error:
                raise CheckpointError(damaged(path, error)) from None
        if (folder / INDEX).is_file():
            absent = sorted(set(shard_map(folder)) - set(self._handles))
            if absent:
                raise CheckpointError(f"{folder}: {INDEX} names tensors that no file holds: {', '.join(absent[:8])}")
        self._folder = folder

    def __getitem__(self, name: str) -> Tensor:
        handle = self._handles[name]
        try:
            # A copy: what safetensors hands out may be a view of the file, which a later save replaces.
            return handle.get_tensor(name).clone()
        except (SafetensorError, OSError) as error:
            raise CheckpointError(damaged(self._folder, error, name)) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._handles)

    def __len__(self) -> int:
        return len(self._handles)


def damaged(path: Path, error: Exception, name: str = "") -> str:
    where = f"{path}: {name}" if name else str(path)
    return f"{where}: not a whole safetensors file ({error}); it is damaged or was cut short: copy or save it again"


def no_weights(folder: Path) -> str:
    pickles = sorted(folder.glob("pytorch_model*.bin"))
    if pickles:
        return (
            f"{pickles[0]}: a pickle file can run any code when it is opened, so it is not read. Convert it once: "
            "transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW, safe_serialization=True)"
        )
    return f"{folder}: no weights; looked for {SINGLE} and {INDEX}"


def write_weights(folder: Path, state: Mapping[str, Tensor], dtype: str, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write ``state`` as ``dtype``, in several files where it exceeds ``shard_bytes``; returns the files' names."""
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}")
    target = DTYPES[dtype]
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, tensor in state.items():
        n_bytes = tensor.numel() * target.itemsize
        if shards[-1] and size + n_bytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += n_bytes
        total += n_bytes
    files = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    )
    for file, names in zip(files, shards, strict=True):
        tensors = {name: state[name].detach().to("cpu", target).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) == 1:
        return files
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*files, INDEX]
