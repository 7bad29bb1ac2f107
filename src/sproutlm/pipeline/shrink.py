"""``sprout tokenizer shrink``: a tokenizer, and the model that has it, with only the tokens that a person's texts use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckFailed, SproutError
from ..tokenizer.shrink import choose, count_ids, refuse_other_kinds, shrink
from ..tokenizer.tokenizer import Tokenizer
from .extend import in_place_of, refuse_other_files
from .remap import with_rows, write_model

if TYPE_CHECKING:
    from torch import Tensor

    from ..config.model import ModelConfig

MODEL_FILES = ("config.json", "model_config.json", "model/config.json", "checkpoints")
TRIED = 200  # texts that are encoded again by the new tokenizer


def shrink_folder(
    source: Path,
    files: Iterable[Path],
    out: Path,
    *,
    keep: int | None = None,
    min_count: int = 1,
    tokenizer_only: bool = False,
    check: bool = True,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """The tokenizer of ``source``, and its model where it is one, with the tokens that ``files`` use, written to ``out``.

    Rows of embedding and head are exact copies. With ``check`` texts are encoded and the model is run before and after.
    Returns the counts. Nothing is written where anything is wrong.
    """
    from ..export.load import load_state
    from ..model.init import has_vocabulary_rows

    refuse_other_files(out)
    with_model = not tokenizer_only and source.is_dir() and any((source / name).exists() for name in MODEL_FILES)
    old = Tokenizer.load(source)
    refuse_other_kinds(old)
    say(f"counting the tokens of {', '.join(map(str, files := list(files)))}")
    counts = count_ids(old, _texts(files), say)
    if not counts.any():
        raise SproutError(
            f"{', '.join(map(str, files))}: there is no text in it, so every token would go; give other data"
        )
    kept = choose(old, counts.tolist(), keep=keep, min_count=min_count)
    if len(kept) == old.vocab_size:
        raise SproutError(f"{source}: all of its {old.vocab_size:,} ids would be kept; nothing was written")
    new = shrink(old, kept)
    report: dict[str, Any] = {
        "vocab_size": new.vocab_size,
        "was": old.vocab_size,
        **_tokens(counts, kept),
        **_tried(old, new, kept, files),
    }
    if with_model:
        config, state, _ = load_state(source, None)
        rows = [[id_] for id_ in kept]
        smaller = {name: with_rows(it, rows) if has_vocabulary_rows(name) else it for name, it in state.items()}
        resized = config.model_copy(update={"vocab_size": new.vocab_size})
        report |= {"parameters": _size(smaller), "parameters_before": _size(state)}
        if check:
            report["logits_differ"] = _same_logits(config, state, resized, smaller, kept)
        in_place_of(out, lambda folder: write_model(resized, smaller, new, folder))
    else:
        in_place_of(out, new.save)
    return {**report, "out": str(out), "model": with_model}


def _texts(files: Iterable[Path]) -> Iterator[str]:
    from ..config.schema import SourceConfig
    from ..data.records import texts_of
    from ..data.sources import Counts, read_records

    sources = [SourceConfig(path=str(file), role_order="any") for file in files]
    return (text for record in read_records(sources, "error", Counts()) for text in texts_of(record))


def _tokens(counts: Any, kept: list[int]) -> dict[str, int]:
    """Tokens of the texts, and how many of them are of a kind that is gone."""
    return {
        "used": int((counts > 0).sum()),
        "tokens": int(counts.sum()),
        "tokens_dropped": int(counts.sum() - counts[kept].sum()),
    }


def _tried(old: Tokenizer, new: Tokenizer, kept: list[int], files: list[Path]) -> dict[str, int]:
    """Encode the first texts by both. CheckFailed unless those of kept tokens alone have the same pieces, and all come back."""
    import itertools

    to = {id_: number for number, id_ in enumerate(kept)}
    same = before = after = tried = 0
    for text in itertools.islice(_texts(files), TRIED):
        ids, others = old.encode(text), new.encode(text)
        tried, before, after = tried + 1, before + len(ids), after + len(others)
        if all(id_ in to for id_ in ids):
            same += 1
            if others != [to[id_] for id_ in ids]:
                raise CheckFailed(
                    f"{old.where}: {text[:60]!r} has other pieces in the smaller vocabulary; nothing was written"
                )
        if new.decode_bytes(others) != old.decode_bytes(ids):
            raise CheckFailed(
                f"{old.where}: {text[:60]!r} does not come back from the smaller vocabulary; nothing was written"
            )
    return {"texts_tried": tried, "texts_same": same, "tokens_tried": before, "tokens_tried_after": after}


def _size(state: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def _same_logits(
    config: ModelConfig, state: dict[str, Tensor], resized: ModelConfig, smaller: dict[str, Tensor], kept: list[int]
) -> float:
    """The largest difference of a logit of a kept id, on the same kept tokens; CheckFailed where it is more than rounding."""
    import torch

    from ..export.compare import LENGTH, MOST, build, largest

    ids = torch.randint(0, len(kept), (2, min(LENGTH, config.max_seq_len)), generator=torch.Generator().manual_seed(0))
    order = torch.tensor(kept)
    with torch.no_grad():
        expected = build(config, state)(order[ids])[..., order]
        differ = largest(build(resized, smaller)(ids), expected)
    if not differ <= MOST * max(1.0, float(expected.abs().max())):
        raise CheckFailed(f"logits of the kept ids differ by up to {differ:.3g}; nothing was written")
    return differ
