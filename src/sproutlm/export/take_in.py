"""``sprout import``: a Hugging Face folder, checked and taken in as something that can be used like a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from ..families.lazy import header_of
from ..train.checkpoint import file_sha256
from .huggingface import replacing, write_json
from .read import TOKENIZER_FILES, read, recognise_folder
from .weights import DTYPES, INDEX, dtype_named, read_json, weight_files, write_weights

IMPORT_NOTE = "import.json"


def import_folder(
    hf_dir: Path | str,
    out: Path | str,
    *,
    dtype: str | None = None,
    shard_bytes: int = 1_000_000_000,  # a shard is in memory twice while it is written
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Check a Hugging Face folder and copy it to ``out/model``, so that ``out`` can be used like a run folder.

    Only the files that belong to such a folder are copied, unchanged; with ``dtype`` (float32, bfloat16, float16) the
    weights are written anew in it. Where a foreign config.json means a family of transformers, the copy says so. Returns
    what ``out/import.json`` holds. Nothing is written where anything is wrong.
    """
    hf_dir, out = Path(hf_dir), Path(out)
    dtype = dtype and dtype_named(dtype)
    config, state, tokenizer = read(hf_dir, DTYPES[dtype] if dtype else None, say)
    if tokenizer is None and say is not None:
        say(
            f"{hf_dir}: no tokenizer.json, so the model comes without a tokenizer: it can be trained further, not talked to"
        )
    if tokenizer is not None and say is not None and tokenizer.vocab_size < 0.9 * config.vocab_size:
        say(
            f"warning: {hf_dir}: the tokenizer has {tokenizer.vocab_size:,} ids and the model {config.vocab_size:,} rows; that "
            "is more than spare rows usually are: make sure that it is the tokenizer the model was trained with"
        )
    found, header, weights = recognise_folder(hf_dir), header_of(state), weight_files(hf_dir)["present"]
    note: dict[str, Any] = {
        "source": str(hf_dir),
        "architecture": found.family.architecture,
        "family": found.family.name,
        "parameters": sum(tensor.numel() for tensor in header.values()),
        "vocab_size": config.vocab_size,
        "dtype": [dtype] if dtype else sorted({_type(tensor) for tensor in header.values()}),
        "tokenizer": tokenizer is not None,
        "notes": found.notes,
    }
    names = ["generation_config.json", *TOKENIZER_FILES]
    with replacing(out, ("model", IMPORT_NOTE)) as folder, ThreadPoolExecutor(2) as threads:
        sums = {path.name: threads.submit(file_sha256, path) for path in weights}  # while the weights are written
        inner = folder / "model"
        inner.mkdir()
        # A model that no family holds keeps its own config.json: this program knows it by that.
        hf = dict(found.config) if found.exportable else read_json(hf_dir / "config.json")
        if dtype is not None:
            hf |= {"dtype": dtype, "torch_dtype": dtype}
            stored = found.family.state_to_hf(config, state)
            write_weights(inner, stored, dtype, shard_bytes)
        else:
            names.append(INDEX)
            for path in weights:
                shutil.copyfile(path, inner / path.name)
        if dtype is None and (not found.notes or not found.exportable):
            names.append("config.json")
        else:
            write_json(inner / "config.json", hf)
        for name in names:
            if (hf_dir / name).is_file():
                shutil.copyfile(hf_dir / name, inner / name)
        note["sha256"] = {name: sum_.result() for name, sum_ in sums.items()}
        write_json(folder / IMPORT_NOTE, note)
    return {**note, "out": str(out)}


def _type(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
