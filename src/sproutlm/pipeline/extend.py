"""``sprout tokenizer extend``: new tokens for a tokenizer, and rows for them in a model."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..errors import SproutError
from ..tokenizer.extend import extend, new_ids
from ..tokenizer.tokenizer import Tokenizer


def extend_folder(
    source: Path,
    out: Path,
    new_tokens: Iterable[str],
    *,
    text_tokens: Iterable[str] = (),
    take_reserved: bool = False,
    model: Path | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Extend the tokenizer at ``source`` into ``out``; with ``model``, write that model there, too, with rows for the new
    ids (a Hugging Face folder, to start from with ``init_from``). Nothing is written where anything is wrong.
    """
    refuse_other_files(out)
    old = Tokenizer.load(source)
    new = extend(old, new_tokens, text_tokens=text_tokens, take_reserved=take_reserved)
    added = new_ids(old, new)
    if not added:
        raise SproutError(f"{source} has all of these tokens already; nothing was written")
    report: dict[str, Any] = {
        "vocab_size": new.vocab_size,
        "was": old.vocab_size,
        "tokens": {n: i for i, n in added.items()},
    }
    if model is None:
        in_place_of(out, new.save)
    else:
        report["rows"] = in_place_of(out, lambda folder: _with_model(old, new, model, folder, say))
    return report


def refuse_other_files(out: Path) -> None:
    """``out`` must be new or empty: a folder that holds something may be needed by a run."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SproutError(f"{out} is there already and not empty; give a folder that does not exist yet")


def in_place_of(out: Path, write: Callable[[Path], Any]) -> Any:
    """Write into a folder beside ``out`` and rename it when it is whole."""
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    try:
        result = write(temporary)
        temporary.chmod(0o755)
        if out.is_dir():
            out.rmdir()  # empty, as was made sure before
        os.replace(temporary, out)
        return result
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _with_model(old: Tokenizer, new: Tokenizer, model: Path, folder: Path, say: Callable[[str], None]) -> int:
    from ..export.load import load_state
    from .remap import write_model
    from .train import with_rows_for

    config, state, own = load_state(model, None)
    if own is None or own.fingerprint != old.fingerprint:
        raise SproutError(
            f"{model} was trained with another tokenizer than {old.where}; extend the model's own: give {model}"
        )
    resized, grown = with_rows_for(old, new, config, state, say)
    write_model(resized, {name: it.to(state[name].dtype) for name, it in grown.items()}, new, folder)
    return resized.vocab_size
