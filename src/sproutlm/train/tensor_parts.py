"""Tensors that several ranks wrote, each its parts, read as any layout needs them: whole, or the part of another rank.

The files are those of ``torch.distributed.checkpoint`` with safetensors: each header says where in the whole tensor its parts
begin, so that torch's own ``HuggingFaceStorageReader`` and consolidation read them too, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..errors import CheckpointError

OFFSETS = "DCP_SHARDING_INFO"
Bounds = Sequence[tuple[int, int]]  # first and last (exclusive) entry along each dimension


def offsets_header(offsets: Mapping[str, Sequence[int]]) -> dict[str, str]:
    """Header entries that say where each part begins in its whole tensor."""
    return {
        OFFSETS: json.dumps({name: {"saved_offsets": list(at)} for name, at in offsets.items()}),
        "DCP_VERSION": "1.0",
    }


def part_name(stem: str, rank: int, size: int) -> str:
    return f"{stem}-{rank + 1:05d}-of-{size:05d}.safetensors"


def part_files(folder: Path, stem: str) -> list[Path]:
    """The files that several ranks wrote of ``stem`` (model, optimizer); none where one process wrote it."""
    return sorted(folder.glob(f"{stem}-*-of-*.safetensors"))


@dataclass(frozen=True)
class _Part:
    file: Path
    at: tuple[int, ...]
    shape: tuple[int, ...]


def read_tensors(folder: Path, stem: str, bounds: Mapping[str, Bounds] | None = None) -> dict[str, Tensor]:
    """Tensors of ``stem`` (model, optimizer) by name: whole, or of each the part within its ``bounds``."""
    single = folder / f"{stem}.safetensors"
    if single.is_file() and bounds is None:
        return load_file(single)
    files = [single] if single.is_file() else part_files(folder, stem)
    parts = _index(files)
    if not parts:
        raise CheckpointError(f"{folder}: no {stem}.safetensors, and no parts of it; restore the folder from a copy")
    out = {}
    for name, found in parts.items():
        shape = [max(part.at[d] + part.shape[d] for part in found) for d in range(len(found[0].shape))]
        wanted = [(0, n) for n in shape] if bounds is None or name not in bounds else list(bounds[name])
        out[name] = _assemble(name, found, wanted)
    return out


def _index(files: Sequence[Path]) -> dict[str, list[_Part]]:
    found: dict[str, list[_Part]] = defaultdict(list)
    for path in files:
        with safe_open(path, framework="pt") as file:
            where = json.loads((file.metadata() or {}).get(OFFSETS, "{}"))
            for name in file.keys():  # noqa: SIM118: it is no mapping
                shape = tuple(file.get_slice(name).get_shape())
                at = tuple(where[name]["saved_offsets"]) if name in where else (0,) * len(shape)
                found[name].append(_Part(path, at, shape))
    return found


def _assemble(name: str, parts: Sequence[_Part], wanted: Bounds) -> Tensor:
    """What of ``parts`` lies within ``wanted``, in its place."""
    out: Tensor | None = None
    filled = 0
    for part in parts:
        spans = [
            (max(first, at), min(last, at + n))
            for (first, last), at, n in zip(wanted, part.at, part.shape, strict=True)
        ]
        empty = any(stop <= start for start, stop in spans)
        if empty and out is not None:
            continue
        with safe_open(part.file, framework="pt") as file:
            source = file.get_slice(name)
            if empty:  # only its type is asked for
                cut = source[tuple(slice(0, 0) for _ in spans)]
            else:
                cut = source[tuple(slice(a - at, b - at) for (a, b), at in zip(spans, part.at, strict=True))]
        if out is None:
            out = torch.empty([last - first for first, last in wanted], dtype=cut.dtype)
        if not empty:
            place = out[tuple(slice(a - first, b - first) for (a, b), (first, _) in zip(spans, wanted, strict=True))]
            place.copy_(cut)
            filled += cut.numel()
    assert out is not None
    if filled != out.numel():
        raise CheckpointError(
            f"{parts[0].file.parent}: of {name} {filled:,} entries are there, {out.numel():,} are needed; a rank's file is missing"
        )
    return out
