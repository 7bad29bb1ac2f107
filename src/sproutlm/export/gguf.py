"""GGUF files for llama.cpp and what is built on it: written one tensor at a time, then read back and compared."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..atomic import fsync_path
from ..config.model import ModelConfig
from ..errors import SproutError
from ..families import expected_shapes
from .fold import folded
from .gguf_shape import ARCHITECTURES, entries, metadata, refuse_unsupported
from .gguf_vocabulary import vocabulary, write
from .huggingface import main_dtype, refuse_research, replacing, stop_ids
from .read import check_vocabulary

if TYPE_CHECKING:
    from ..tokenizer.tokenizer import Tokenizer

TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
FILE_TYPES = {
    "f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0",
    "q5_1": "MOSTLY_Q5_1", "q5_0": "MOSTLY_Q5_0", "q4_1": "MOSTLY_Q4_1", "q4_0": "MOSTLY_Q4_0",
}  # fmt: skip
F16_MOST = 65504.0
# Small, and what all else hangs on: kept in float32 as llama.cpp's own converter does.
ALWAYS_F32 = ("ffn_gate_inp.weight", "position_embd.weight", "rope_freqs.weight")


@dataclass
class Written:
    """What a file holds: tensors by type, and sentences for the person."""

    types: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    context: int = 0
    tokenizer: str = ""
    add_bos: bool = False


def write_gguf(
    config: ModelConfig,
    state: Mapping[str, Tensor],
    tokenizer: Tokenizer,
    out: Path,
    *,
    kind: str = "f16",
    name: str = "",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Written:
    """Write one GGUF file, whole or not at all. ``state`` by our parameter names; ``kind``: one of ``TYPES``.

    Memory: one tensor beside ``state``. SproutError for a shape or tokenizer that llama.cpp would run otherwise.
    """
    gguf = library()
    if kind not in TYPES:
        raise SproutError(f"--type {kind}: not a type that can be written; choose one of {', '.join(TYPES)}")
    refuse_research(config)
    config, state = folded(config, state)
    refuse_unsupported(config)
    check_vocabulary(config, tokenizer, str(out))
    with replacing_file(out) as temporary:
        writer = gguf.GGUFWriter(temporary, ARCHITECTURES[config.family])
        written = Written()
        writer.add_type("model")
        writer.add_name(name or out.stem)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[kind]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        written.context, notes = metadata(config, writer)
        written.notes += notes
        vocab = vocabulary(tokenizer, config.vocab_size, stop_ids(tokenizer))
        written.notes += vocab.notes
        written.tokenizer, written.add_bos = f"{vocab.model}/{vocab.pre}", vocab.add_bos
        write(vocab, writer)
        _write_tensors(gguf, writer, config, state, kind, written, progress)
    return written


def _write_tensors(
    gguf: Any,
    writer: Any,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    kind: str,
    written: Written,
    progress: Callable[[int, int], None],
) -> None:
    plan, sizes = entries(config), expected_shapes(config)
    shapes = [tuple(e.forward([torch.empty(sizes[n], device="meta") for n in e.ours]).shape) for e in plan]
    types = [type_of(gguf, entry.name, shape, kind) for entry, shape in zip(plan, shapes, strict=True)]
    for entry, shape, qtype in zip(plan, shapes, types, strict=True):
        packed = gguf.quant_shape_to_byte_shape(shape, qtype)
        size = _product(shape) * 4 if qtype == gguf.GGMLQuantizationType.F32 else _product(packed)
        writer.add_tensor_info(
            entry.name, packed if _packed(gguf, qtype) else shape, _numpy_type(gguf, qtype), size, qtype
        )
        written.types[qtype.name.lower()] = written.types.get(qtype.name.lower(), 0) + 1
    fallen = [shape for shape, qtype in zip(shapes, types, strict=True) if kind[0] == "q" and qtype.name == "F16"]
    if fallen:
        written.notes.append(
            f"{len(fallen)} tensors were written as f16: {kind} takes rows of a multiple of 32 numbers (first: {fallen[0]})"
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for number, (entry, qtype) in enumerate(zip(plan, types, strict=True)):
        tensor = entry.forward([state[n].detach() for n in entry.ours]).float().contiguous()
        if not torch.isfinite(tensor).all():
            raise SproutError(f"{', '.join(entry.ours)}: holds NaN or infinity; the model is damaged")
        if qtype == gguf.GGMLQuantizationType.F16 and tensor.abs().max() > F16_MOST:
            raise SproutError(
                f"{', '.join(entry.ours)}: holds numbers beyond f16's {F16_MOST:g}; use --type bf16 or f32"
            )
        writer.write_tensor_data(gguf.quants.quantize(tensor.numpy(), qtype))
        progress(number + 1, len(plan))
    writer.close()


def type_of(gguf: Any, name: str, shape: tuple[int, ...], kind: str) -> Any:
    """The type a tensor is stored in: vectors and routers float32; in 4 and 5 bits the embedding and head take 8."""
    types = gguf.GGMLQuantizationType
    if len(shape) == 1 or name.endswith(ALWAYS_F32):
        return types.F32
    wanted = types[kind.upper()]
    if kind[0] == "q" and shape[-1] % 32:
        return types.F16
    if kind[:2] in ("q4", "q5") and name in ("token_embd.weight", "output.weight"):
        return types.Q8_0
    return wanted


def _packed(gguf: Any, qtype: Any) -> bool:
    types = gguf.GGMLQuantizationType
    return qtype not in (types.F32, types.F16)


def _numpy_type(gguf: Any, qtype: Any) -> Any:
    import numpy as np

    types = gguf.GGMLQuantizationType
    return np.dtype({types.F32: np.float32, types.F16: np.float16}.get(qtype, np.uint8))


def _product(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def export_gguf(
    run: Path | str,
    out: Path | str,
    *,
    kind: str | None = None,
    check: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write the model of a run folder, checkpoint or Hugging Face folder as one GGUF file; returns what was written.

    ``kind``: one of ``TYPES``; None takes the source's own (bf16 and f16 as they are, else f32). With ``check`` the file
    is read back here, and run in llama.cpp where the ``xllamacpp`` wheel is installed.
    """
    out = Path(out)
    config, state, tokenizer, name = _source(run)
    return _exported(config, state, tokenizer, out, kind, name, check, progress)[0]


def export_ollama(
    run: Path | str,
    out: Path | str,
    *,
    kind: str | None = None,
    check: bool = True,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Write ``out/model.gguf`` and ``out/Modelfile``; an ``out`` that holds anything but an earlier export is refused."""
    from .ollama import MODEL, MODELFILE, OWN_NAMES, modelfile, template_name

    out = Path(out)
    config, state, tokenizer, name = _source(run)
    template_name(tokenizer)  # refused before the work, not after it
    with replacing(out, OWN_NAMES) as folder:
        report, written = _exported(config, state, tokenizer, folder / MODEL, kind, name, check, progress)
        text = modelfile(tokenizer, stop_ids(tokenizer), written.context, add_bos=written.add_bos)
        (folder / MODELFILE).write_text(text, encoding="utf-8", newline="\n")
    return {**report, "out": str(out), "template": template_name(tokenizer)}


def _source(run: Path | str) -> tuple[ModelConfig, dict[str, Tensor], Tokenizer, str]:
    from .load import load_state

    config, state, tokenizer = load_state(run, None)
    refuse_research(config)
    if tokenizer is None:
        raise SproutError(
            f"{run}: there is no tokenizer beside this model, and a GGUF file holds one; add tokenizer.json"
        )
    return config, state, tokenizer, Path(run).resolve().name


def _exported(
    config: ModelConfig,
    state: dict[str, Tensor],
    tokenizer: Tokenizer,
    out: Path,
    kind: str | None,
    name: str,
    check: bool,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Any], Written]:
    kind = kind or {"bfloat16": "bf16", "float16": "f16"}.get(main_dtype(state), "f32")
    written = write_gguf(config, state, tokenizer, out, kind=kind, name=name, progress=progress)
    report: dict[str, Any] = {
        "out": str(out),
        "bytes": out.stat().st_size,
        "architecture": ARCHITECTURES[config.family],
        "type": kind,
        "tensors": written.types,
        "tokenizer": written.tokenizer,
        "context": written.context,
        "stop_ids": stop_ids(tokenizer),
        "notes": written.notes,
    }
    if check:
        from .compare import check_gguf

        report["check"] = check_gguf(config, state, tokenizer, out, kind)
    return report, written


# --- reading back -----------------------------------------------------------------------------------------------------


def read_weights(file: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a file that ``write_gguf`` made for ``config``, float32, by our names."""
    gguf = library()
    reader = gguf.GGUFReader(file)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    state: dict[str, Tensor] = {}
    plan = entries(config)
    extra = sorted(set(stored) - {entry.name for entry in plan})
    missing = [entry.name for entry in plan if entry.name not in stored]
    if extra or missing:
        raise SproutError(
            f"{file}: missing {missing[:4]}, not part of this model {extra[:4]}; the file is another model's"
        )
    for entry in plan:
        tensor = stored[entry.name]
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        shape = tuple(int(n) for n in reversed(tensor.shape))
        parts = entry.back(torch.from_numpy(values.copy()).float().view(shape))
        state |= {ours: part.contiguous() for ours, part in zip(entry.ours, parts, strict=True)}
    return state


def library() -> Any:
    """The ``gguf`` package; a sentence where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise SproutError('GGUF files need the gguf package; install it with: pip install "sproutlm[export]"') from None
    import gguf.quants

    return gguf


def _head(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(4)


@contextlib.contextmanager
def replacing_file(out: Path) -> Iterator[Path]:
    """A temporary file beside ``out`` that takes its place at the end; on any error ``out`` is as before."""
    if out.is_dir():
        raise SproutError(f"{out} is a folder; give a file, such as {out / 'model.gguf'}")
    if out.is_file() and _head(out) not in (b"GGUF", b""):
        raise SproutError(f"{out} is there and is no GGUF file; nothing was written. Give another name")
    if not out.absolute().parent.is_dir():
        raise SproutError(f"{out}: the folder {out.absolute().parent} does not exist; make it first")
    temporary = out.with_name(f".{out.name}.writing-{os.getpid()}")
    try:
        yield temporary
        fsync_path(temporary)
        os.replace(temporary, out)
        fsync_path(out.absolute().parent)
    except OSError as error:
        raise SproutError(
            f"{out}: could not be written ({error.strerror or error}); what was there is untouched"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)
