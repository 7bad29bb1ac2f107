"""Hugging Face folders, written for transformers to load without code of ours."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from torch import Tensor

from ..atomic import fsync_path
from ..config.model import ModelConfig
from ..errors import CheckpointError, SproutError
from ..families import for_family
from .fold import folded
from .read import TOKENIZER_FILES, check_vocabulary
from .weights import INDEX, SHARD_BYTES, SINGLE, dtype_named, write_weights

if TYPE_CHECKING:
    from ..model import Transformer
    from ..tokenizer.tokenizer import Tokenizer


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
    refuse_research(config)
    config, state = folded(config, state)
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


def stop_ids(tokenizer: Tokenizer | None) -> list[int]:
    """Ids at which generation ends: the tokenizer's own, and those that its chat template ends a turn with."""
    if tokenizer is None:
        return []
    stops = list(tokenizer.stop_ids)
    if tokenizer.chat_template:
        from ..tokenizer.template import ChatTemplate

        stops += ChatTemplate(tokenizer.chat_template, tokenizer).stop_ids
    return list(dict.fromkeys(stops))


def unexportable(config: ModelConfig) -> str | None:
    """Why no other program could run a model of this shape, as a sentence; None where one can."""
    if config.family == "research":
        parts = f" with {', '.join(config.research)}" if config.research else ""
        return (
            f"this model has family: research{parts}, a shape that no other program knows, so it cannot be exported; train a model "
            "of an exportable family on its answers (distillation), or set another family before training"
        )
    return None


def refuse_research(config: ModelConfig) -> None:
    """SproutError for what ``unexportable`` names."""
    fault = unexportable(config)
    if fault is not None:
        raise SproutError(fault)


def export_run(
    run: Path | str,
    out: Path | str,
    *,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    check: bool = False,
) -> dict[str, Any]:
    """Write the model of a run folder or checkpoint to ``out``; returns what was written (JSON values).

    ``dtype``: None keeps the type of the source. With ``check`` the folder is loaded again, here and in transformers
    where it is installed, and the largest differences of a logit are in the report.
    """
    from .load import load_state, locate

    out = Path(out)
    source = locate(run)
    config, state, tokenizer = load_state(run, None)
    dtype = dtype_named(dtype) if dtype else main_dtype(state)
    refuse_research(config)
    refuse_damaged(state, str(source.folder))
    write_folder(config, state, tokenizer, out, dtype=dtype, shard_bytes=shard_bytes)
    report: dict[str, Any] = {
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
    if check:
        from .compare import check_folder

        report["check"] = check_folder(config, state, tokenizer, out)
    return report


def refuse_damaged(state: Mapping[str, Tensor], where: str) -> None:
    """CheckpointError for the first tensor that holds NaN or infinity: no program could answer with it."""
    for name, tensor in state.items():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"{where}: {name} holds NaN or infinity; the model is damaged: use an earlier checkpoint"
            )


def main_dtype(state: Mapping[str, Tensor]) -> str:
    """The type that most of the weights have."""
    sizes: Counter[str] = Counter()
    for tensor in state.values():
        sizes[str(tensor.dtype).removeprefix("torch.")] += tensor.numel()
    return sizes.most_common(1)[0][0]


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
