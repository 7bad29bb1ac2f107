"""Safetensors files, one or several: lazy reading, writing in shards. Pickled weights are refused: they run code."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import CheckpointError
from ..families.lazy import header_of, read_all

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD_BYTES = 4_000_000_000
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
SHORT = {"f32": "float32", "fp32": "float32", "bf16": "bfloat16", "f16": "float16", "fp16": "float16"}
HEADER_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
# Biases that choose experts differ by little; transformers, too, keeps them in float32 in a bf16 model.
ALWAYS_FLOAT32 = ("e_score_correction_bias", "expert_bias")
PART = 1 << 24  # values that are cast at a time: their part of the file is in memory as long as that takes
LFS_POINTER = b"version https://git-lfs"
MADV_POPULATE_READ = 22  # Linux 5.14: lays out all pages of a mapping in one call
VIEWS = os.name != "nt"  # Windows lets no file be replaced that is mapped
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from ``path``; CheckpointError with the line where it is damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))  # some editors begin a file with a mark
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path}: not UTF-8 text; the file is damaged") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}:{error.lineno}: not valid JSON ({error.msg}); the file is damaged") from None
    except RecursionError:
        raise CheckpointError(f"{path}: nested deeper than any such file is; the file is damaged") from None
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


def dtype_named(name: str) -> str:
    """``bfloat16`` for ``bf16`` and the like; CheckpointError for a type that weights are not written in."""
    full = SHORT.get(name, name)
    if full not in DTYPES:
        raise CheckpointError(f"dtype: {name!r} is not one of {', '.join([*DTYPES, *SHORT])}")
    return full


def cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    """``tensor`` in ``dtype``; CheckpointError where a finite value does not fit (float16 ends at 65,504)."""
    made = tensor.to(_type_after(tensor, dtype, name))
    _refuse_overflow(_overflowed(tensor, made), name)
    return made


def _type_after(tensor: Tensor, dtype: torch.dtype | None, name: str) -> torch.dtype:
    """The type that a tensor has after a cast to ``dtype``; None: no cast."""
    stays = dtype is None or name.endswith(ALWAYS_FLOAT32) or not tensor.is_floating_point()
    return tensor.dtype if stays or dtype is None else dtype


def _overflowed(before: Tensor, after: Tensor) -> int:
    """How many finite values became infinite in a cast to float16."""
    if after.dtype != torch.float16 or before.dtype == torch.float16 or not after.numel():
        return 0
    if all(bool(end.isfinite()) for end in after.aminmax()):
        return 0
    return int((after.isinf() & before.isfinite()).sum())


def _refuse_overflow(values: int, name: str) -> None:
    if values:
        raise CheckpointError(
            f"{name}: {values} values are beyond the range of float16 (65,504) and would become infinite; use bfloat16"
        )


class OneFile:
    """A safetensors file, its header checked by the library.

    A tensor in the file's own type is a view of a private mapping of the file: nothing is read before it is used, and what is
    changed in place goes to pages of this process, never to the file. A file that is replaced by another under its name, as
    every save here does it, stays readable through the view; one that is cut short in place does not. A tensor that is cast,
    or asked for by ``own``, has memory of its own, and the file's pages do not stay beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._handle = safe_open(path, framework="pt")  # compares the file's size with what its header says
            self.header = {name: _meta(self._handle.get_slice(name)) for name in self._handle.keys()}
            self._file = path.open("rb", buffering=0)
            length = int.from_bytes(self._file.read(8), "little")
            entries = json.loads(self._file.read(length))
        except (SafetensorError, OSError, ValueError) as error:
            raise CheckpointError(damaged(path, error)) from None
        self._starts = {name: 8 + length + entries[name]["data_offsets"][0] for name in self.header}

    def tensor(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """``name`` in ``dtype`` (None: the file's), as a view of the file where no cast is needed."""
        meta, start = self.header[name], self._starts[name]
        # Old writers padded no header, and values that straddle their own alignment are slow or refused by some kernels.
        if VIEWS and _type_after(meta, dtype, name) == meta.dtype and start % meta.itemsize == 0 and meta.numel():
            try:
                return self._handle.get_tensor(name)
            except (SafetensorError, OSError, RuntimeError) as error:
                raise CheckpointError(damaged(self.path, error, name)) from None
        return self.own(name, dtype)

    def own(self, name: str, dtype: torch.dtype | None) -> Tensor:
        """``name`` in ``dtype``, in memory of its own, by parts."""
        meta, start = self.header[name], self._starts[name]
        made = torch.empty(meta.shape, dtype=_type_after(meta, dtype, name), device="cpu")
        flat, overflowed = made.view(-1), 0
        for begin in range(0, meta.numel(), PART):
            after = flat[begin : begin + PART]
            before = self._part(start + begin * meta.itemsize, len(after), meta.dtype, name)
            after.copy_(before)
            overflowed += _overflowed(before, after)
        _refuse_overflow(overflowed, name)
        return made

    def _part(self, start: int, values: int, dtype: torch.dtype, name: str) -> Tensor:
        """A stretch of the file through a mapping that ends with the tensor. Against reading into a buffer this saves one
        copy, and against a mapping of the whole file, that its pages stay in memory."""
        lead = start % mmap.ALLOCATIONGRANULARITY
        size = values * dtype.itemsize
        try:
            mapped = mmap.mmap(self._file.fileno(), lead + size, access=mmap.ACCESS_COPY, offset=start - lead)
        except (OSError, ValueError) as error:  # ValueError: the file has become shorter
            raise CheckpointError(damaged(self.path, error, name)) from None
        if sys.platform == "linux":
            with contextlib.suppress(OSError):  # an older kernel lays them out as they are touched
                mapped.madvise(MADV_POPULATE_READ)
        stretch = torch.frombuffer(mapped, dtype=torch.uint8, count=size, offset=lead)
        return (stretch.clone() if start % dtype.itemsize else stretch).view(dtype)


def _meta(part: Any) -> Tensor:
    """Shape and type of a tensor of a file, without its values; a type that torch lacks counts as bytes."""
    return torch.empty(part.get_shape(), dtype=HEADER_DTYPES.get(part.get_dtype(), torch.uint8), device="meta")


class SafetensorsFolder(Mapping[str, Tensor]):
    """The tensors of a folder by name, read from disk when asked for; ``dtype``: cast as they are read.

    What is not cast is a view of its file (see ``OneFile``); ``own(name)`` is for what is copied into another tensor anyway.
    ``header()`` has the same names with tensors on torch's meta device: shapes and types, no values. CheckpointError where a
    file is damaged or missing.
    """

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        files = weight_files(folder)
        if files["missing"]:
            names = ", ".join(f.name for f in files["missing"])
            raise CheckpointError(f"{folder}: {INDEX} names files that are not there: {names}; copy the folder again")
        if not files["present"]:
            raise CheckpointError(no_weights(folder))
        self._dtype = dtype
        self._files: dict[str, OneFile] = {}
        for path in files["present"]:
            file = OneFile(path)
            twice = sorted(set(file.header) & set(self._files))
            if twice:
                other = self._files[twice[0]].path.name
                raise CheckpointError(
                    f"{path}: {twice[0]} is in {other}, too; shards of different models lie in one folder: copy it again"
                )
            self._files |= dict.fromkeys(file.header, file)
        if (folder / INDEX).is_file():
            absent = sorted(set(shard_map(folder)) - set(self._files))
            if absent:
                raise CheckpointError(f"{folder}: {INDEX} names tensors that no file holds: {', '.join(absent[:8])}")

    def header(self) -> Mapping[str, Tensor]:
        return {name: file.header[name] for name, file in self._files.items()}

    def __getitem__(self, name: str) -> Tensor:
        return self._files[name].tensor(name, self._dtype)

    def own(self, name: str) -> Tensor:
        return self._files[name].own(name, self._dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)


def damaged(path: Path, error: Exception, name: str = "") -> str:
    with contextlib.suppress(OSError), path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            return f"{path}: a pointer of Git LFS, not the weights; fetch them: git lfs pull, in the folder it was cloned to"
    where = f"{path}: {name}" if name else str(path)
    return f"{where}: not a whole safetensors file ({error}); it is damaged or was cut short: copy or save it again"


def no_weights(folder: Path) -> str:
    shards = sorted(folder.glob("model-*.safetensors"))
    if shards:
        return f"{folder}: {shards[0].name} is part of a model, and {INDEX} is not there; copy the whole folder again"
    pickles = sorted(file for pattern in PICKLES for file in folder.glob(pattern))
    pickles = [file for file in pickles if file.stem not in ("training_args", "optimizer", "scheduler")]
    if pickles:
        return refused_pickle(pickles[0])
    return f"{folder}: no weights; looked for {SINGLE} and {INDEX}"


def refused_pickle(file: Path) -> str:
    """The sentence for weights that would have to be unpickled, with a command that converts them and runs no code of theirs:
    torch's own reader, told to admit tensors and nothing else."""
    of_several = re.fullmatch(r"(.+)-\d+-of-\d+(\.\w+)", file.name)
    files = file.with_name(f"{of_several[1]}-*{of_several[2]}" if of_several else file.name)
    command = (
        'python -c "import glob, torch, safetensors.torch as s; '
        f"s.save_file({{k: v.clone().contiguous() for f in glob.glob('{files}') "
        "for k, v in torch.load(f, map_location='cpu', weights_only=True).items()}, "
        f"'{file.with_name(SINGLE)}', {{'format': 'pt'}})\""
    )
    return (
        f"{file}: a pickle file can run any code when it is opened, so it is not read; convert it once (this admits "
        f"tensors alone, and leaves config.json to lie beside them): {command}"
    )


def write_weights(folder: Path, state: Mapping[str, Tensor], dtype: str, shard_bytes: int = SHARD_BYTES) -> list[str]:
    """Write ``state`` as ``dtype``, in several files where it exceeds ``shard_bytes``; returns the files' names."""
    target = DTYPES[dtype_named(dtype)]
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, tensor in header_of(state).items():
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
        tensors = read_all(state, names)
        for name in names:
            tensors[name] = cast(tensors[name].detach().cpu(), target, name).contiguous()
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) == 1:
        return files
    weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return [*files, INDEX]
