"""Tensors into a safetensors file, hashed while they are written, so that no file is read again for its checksum.

The format: eight bytes with the header's length (little-endian), the header as JSON, then the values, tensor by tensor. The
bytes are those that ``safetensors.torch.save_file`` writes of the same tensors; readers are the library's.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What may be stored, by its name in the format; tensors of later types come first in a file, so that each begins at a
# multiple of its size.
KINDS: dict[torch.dtype, str] = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
PART = 4 * 2**20  # bytes written and hashed at once: what the processor's cache holds
AHEAD = 4  # parts that writing may be ahead of hashing: what they hold of a card's tensors stays in memory


def value_bytes(tensor: Tensor) -> Tensor:
    """(bytes,) uint8: a tensor's values in order, on the CPU; a view of it where they lie so already."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Write ``tensors`` to ``path``, durably, with ``header`` in its metadata; returns ``{"bytes", "sha256"}`` of the file. OSError as writing has it.

    Hashing runs beside writing, in a thread of its own: both are loops of the C library, outside Python's lock. Tensors of
    a GPU come over one at a time.
    """
    digest, size = hashlib.sha256(), 0
    hashing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as hasher, open(path, "wb") as file:
        for part in _parts(tensors, header or {}):
            hashing.append(hasher.submit(digest.update, part))
            if len(hashing) > AHEAD:
                hashing.popleft().result()
            size += file.write(part)
        file.flush()
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _parts(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """The file, piece by piece."""
    order = list(KINDS)
    strange = [f"{name} ({t.dtype})" for name, t in tensors.items() if t.dtype not in KINDS]
    if strange:
        raise TypeError(f"a checkpoint cannot hold tensors of these types: {', '.join(strange[:5])}")
    names = sorted(tensors, key=lambda name: (-order.index(tensors[name].dtype), name))
    yield _header({name: tensors[name] for name in names}, header)
    for name in names:
        values = value_bytes(tensors[name]).numpy().data
        for start in range(0, len(values), PART):
            yield values[start : start + PART]


def _header(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The length and the JSON header, filled with spaces to a multiple of eight bytes."""
    table: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        table[name] = {"dtype": KINDS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
