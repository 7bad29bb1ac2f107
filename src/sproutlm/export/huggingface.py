"""Hugging Face folders: written for transformers to load without code of ours, read with every tensor accounted for."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor

from ..config.model import ModelConfig
from ..errors import CheckpointError, SproutError
from ..families import for_architecture, for_family
from ..train.checkpoint import file_sha256, fsync_path
from .weights import INDEX, SHARD_BYTES, SINGLE, SafetensorsFolder, read_json, weight_files, write_weights

if TYPE_CHECKING:
    from ..model import Transformer
    from ..tokenizer.tokenizer import Tokenizer

IMPORT_NOTE = "import.json"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def save(model: Transformer, tokenizer: Tokenizer | None, out: Path | str, *, dtype: str = "float32") -> None:
    """Write ``model`` and ``tokenizer`` as a Hugging Face folder, in one step: ``out`` is the old or the new one.

    ``dtype``: float32, bfloat16 or float16. An ``out`` that holds anything but an earlier export is refused.
    """
    write_folder(model.config, dict(model.state_dict()), tokenizer, Path(out), dtype=dtype)


def write_folder(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer | None,
    out: Path,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """``save`` for weights that are not in a module: ``state`` by our parameter names."""
    family = for_family(config.family)
    check_vocabulary(config, tokenizer, str(out))
    stops = stop_ids(tokenizer)
    pad = None if tokenizer is None else tokenizer.pad_id
    ends = {"bos_token_id": None, "eos_token_id": stops or None, "pad_token_id": pad}
    hf = family.config_to_hf(config, eos_token_id=stops or None, pad_token_id=pad, dtype=dtype)
    with replacing(out, TOKENIZER_FILES + ("config.json", "generation_config.json", SINGLE, INDEX)) as folder:
        write_json(folder / "config.json", hf)
        write_json(folder / "generation_config.json", ends)
        write_weights(folder, family.state_to_hf(config, state), dtype, shard_bytes)
        if tokenizer is not None:
            tokenizer.save(folder)


def read(folder: Path | str) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer | None]:
    """A Hugging Face folder -> config, tensors by our names in the file's own type, tokenizer or None.

    Raises SproutError (CheckpointError for damaged files) that names the file, and the field or tensor at fault.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: no config.json; expected a Hugging Face folder")
    hf = read_json(folder / "config.json")
    architectures = hf.get("architectures") or []
    if len(architectures) != 1:
        raise CheckpointError(f"{folder / 'config.json'}: architectures is {architectures!r}; expected one name")
    try:
        family = for_architecture(architectures[0])
        config = family.config_from_hf(hf)
        state = family.state_from_hf(config, SafetensorsFolder(folder))
    except CheckpointError:
        raise
    except SproutError as error:
        raise CheckpointError(f"{folder}: {error}") from None
    tokenizer = read_tokenizer(folder)
    check_vocabulary(config, tokenizer, str(folder))
    return config, state, tokenizer


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The folder's tokenizer; None where it has no tokenizer.json."""
    if not (folder / "tokenizer.json").is_file():
        return None
    from ..tokenizer.tokenizer import Tokenizer

    return Tokenizer.load(folder)


def check_vocabulary(config: ModelConfig, tokenizer: Tokenizer | None, where: str) -> None:
    """CheckpointError where the tokenizer can write ids that the model has no row for. Spare rows are fine."""
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise CheckpointError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} ids, but the model's embedding only "
            f"{config.vocab_size} rows: use the tokenizer that the model was trained with"
        )


def stop_ids(tokenizer: Tokenizer | None) -> list[int]:
    """Ids at which generation ends: the tokenizer's own, and those that its chat template ends a turn with."""
    if tokenizer is None:
        return []
    stops = list(tokenizer.stop_ids)
    if tokenizer.chat_template:
        from ..tokenizer.template import ChatTemplate

        stops += ChatTemplate(tokenizer.chat_template, tokenizer).stop_ids
    return list(dict.fromkeys(stops))


def export_run(run: Path | str, out: Path | str, *, dtype: str = "float32") -> dict[str, Any]:
    """Write the model of a run folder or checkpoint to ``out``; returns what was written (JSON values)."""
    from .load import load_state, locate

    out = Path(out)
    source = locate(run)
    config, state, tokenizer = load_state(run)
    write_folder(config, state, tokenizer, out, dtype=dtype)
    return {
        "source": str(source.folder),
        "step": source.step,
        "out": str(out),
        "files": sorted(path.name for path in out.iterdir()),
        "bytes": sum(path.stat().st_size for path in out.iterdir()),
        "architecture": for_family(config.family).architecture,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "vocab_size": config.vocab_size,
        "dtype": dtype,
        "stop_ids": stop_ids(tokenizer),
    }


def import_folder(hf_dir: Path | str, out: Path | str) -> dict[str, Any]:
    """Check a Hugging Face folder and copy it to ``out/model``, so that ``out`` can be used like a run folder.

    Only the files that belong to such a folder are copied, unchanged. Returns what ``out/import.json`` holds.
    """
    hf_dir, out = Path(hf_dir), Path(out)
    config, state, tokenizer = read(hf_dir)
    weights = weight_files(hf_dir)["present"]
    note = {
        "source": str(hf_dir),
        "architecture": for_family(config.family).architecture,
        "parameters": sum(tensor.numel() for tensor in state.values()),
        "vocab_size": config.vocab_size,
        "dtype": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}),
        "tokenizer": tokenizer is not None,
        "sha256": {path.name: file_sha256(path) for path in weights},
    }
    names = ("config.json", "generation_config.json", INDEX, *TOKENIZER_FILES)
    with replacing(out, ("model", IMPORT_NOTE)) as folder:
        (folder / "model").mkdir()
        for path in [*(hf_dir / name for name in names), *weights]:
            if path.is_file():
                shutil.copyfile(path, folder / "model" / path.name)
        write_json(folder / IMPORT_NOTE, note)
    return {**note, "out": str(out)}


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8", newline="\n")


@contextlib.contextmanager
def replacing(out: Path, own_names: tuple[str, ...]) -> Iterator[Path]:
    """A folder beside ``out`` to write into, which takes ``out``'s place at the end; on any error ``out`` is as before.

    ``out`` may be absent, empty, or hold only files of ``own_names`` (an earlier export); anything else is refused.
    """
    out = out.resolve()
    if out.is_file():
        raise SproutError(f"{out} is a file; give a folder to write to")
    foreign = [p.name for p in out.iterdir() if not is_own(p.name, own_names)] if out.is_dir() else []
    if foreign:
        raise SproutError(
            f"{out} is not empty and no earlier export (it holds {', '.join(sorted(foreign)[:3])}); "
            "nothing was written. Give a new folder"
        )
    temporary, old = (out.with_name(f".{out.name}.{kind}-{os.getpid()}") for kind in ("writing", "old"))
    try:
        for stale in (temporary, old):
            shutil.rmtree(stale, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            fsync_path(path)
        if out.exists():
            os.replace(out, old)
        os.replace(temporary, out)
        fsync_path(out.parent)
    except (OSError, SafetensorError) as error:
        if old.exists() and not out.exists():
            os.replace(old, out)
        reason = getattr(error, "strerror", None) or str(error)
        raise SproutError(f"{out}: could not be written ({reason}); what was there before is untouched") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        if out.exists():
            shutil.rmtree(old, ignore_errors=True)


def is_own(name: str, own_names: tuple[str, ...]) -> bool:
    shard = SINGLE in own_names and name.startswith("model-") and name.endswith(".safetensors")
    return name in own_names or shard
