"""Writers of small token streams in the layouts that other programs use."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np


def flat(path: Path, encoded, eos: int, dtype="<u2", leading=False, head: bytes = b"") -> Path:
    ids = ([eos] if leading else []) + [i for document in encoded for i in (*document, eos)]
    path.write_bytes(head + np.array(ids, dtype=dtype).tobytes())
    return path


def llm_c(path: Path, encoded, eos: int) -> Path:
    ids = [i for document in encoded for i in (eos, *document)]
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(ids)
    path.write_bytes(header.tobytes() + np.array(ids, dtype="<u2").tobytes())
    return path


def datatrove(folder: Path, encoded, eos: int, loss=None) -> Path:
    folder.mkdir()
    documents = [[*document, eos] for document in encoded]
    (folder / "00000_unshuffled.ds").write_bytes(np.array([i for d in documents for i in d], dtype="<u2").tobytes())
    ends = np.cumsum([len(d) for d in documents]).astype("<u8")
    (folder / "00000_unshuffled.ds.index").write_bytes(ends.tobytes())
    if loss is not None:
        (folder / "00000_unshuffled.ds.loss").write_bytes(np.array(loss, dtype=np.uint8).tobytes())
    return folder


def megatron(prefix: Path, encoded, eos: int, dtype="<i4", code=4) -> Path:
    documents = [[*document, eos] for document in encoded]
    width = np.dtype(dtype).itemsize
    lengths = np.array([len(d) for d in documents], dtype="<i4")
    places = (np.cumsum(lengths) - lengths).astype("<i8") * width
    Path(f"{prefix}.bin").write_bytes(np.array([i for d in documents for i in d], dtype=dtype).tobytes())
    head = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, code, len(documents), len(documents) + 1)
    first = np.arange(len(documents) + 1, dtype="<i8")
    Path(f"{prefix}.idx").write_bytes(head + lengths.tobytes() + places.tobytes() + first.tobytes())
    return Path(f"{prefix}.bin")
