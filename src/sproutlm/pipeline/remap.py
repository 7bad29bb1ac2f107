"""``sprout tokenizer remap``: a model that reads and writes through another tokenizer, to be trained further.

Every id of the new tokenizer is given the row of the old one that means the same: an exact copy where the token's bytes (or
a control token's name) are the same, else the mean of the rows that the old tokenizer writes it with. All other weights
stay bit for bit. What the model predicts after a token of several pieces is only a beginning: train it on text.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import SproutError
from ..tokenizer.extend import names_of
from ..tokenizer.tokenizer import Tokenizer
from .extend import in_place_of, refuse_other_files

if TYPE_CHECKING:
    from torch import Tensor

    from ..config.model import ModelConfig

COPY, MEAN, NOTHING = "copied", "mean of pieces", "mean of all"


def remap_folder(model: Path, tokenizer: Path, out: Path, *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """The model at ``model`` with the vocabulary of ``tokenizer``, written to ``out`` (see ``write_model``).

    Returns how many rows came from where. SproutError where ``model`` has no tokenizer; nothing is written then.
    """
    from ..export.load import load_state
    from ..model.init import has_vocabulary_rows

    refuse_other_files(out)
    new = Tokenizer.load(tokenizer)
    config, state, old = load_state(model, None)
    if old is None:
        raise SproutError(
            f"{model} has no tokenizer.json, so it is not known what its ids mean; put its tokenizer there"
        )
    if old.fingerprint == new.fingerprint:
        raise SproutError(f"{tokenizer} is the tokenizer that {model} has already; nothing was written")
    rows, counts = plan_rows(old, new)
    remapped = {
        name: with_rows(tensor, rows) if has_vocabulary_rows(name) else tensor for name, tensor in state.items()
    }
    resized = config.model_copy(update={"vocab_size": new.vocab_size})
    in_place_of(out, lambda folder: write_model(resized, remapped, new, folder))
    say(
        f"{new.vocab_size:,} ids ({config.vocab_size:,} before): {counts[COPY]:,} rows copied from tokens that mean the same, "
        f"{counts[MEAN]:,} means of the pieces they were written with, {counts[NOTHING]:,} means of all rows"
    )
    if not new.chat_template and old.chat_template:
        say(
            "warning: the new tokenizer has no chat template, and the old one had; name one in the recipe you train with"
        )
    return {"vocab_size": new.vocab_size, "was": config.vocab_size, "out": str(out), "rows": dict(counts)}


def write_model(config: ModelConfig, state: Mapping[str, Tensor], tokenizer: Tokenizer, folder: Path) -> None:
    """Write a Hugging Face folder in the weights' own type, to start from with ``init_from``.

    A shape that no such folder can hold (``family: research``) is written as a run with one checkpoint, of step 0.
    """
    from ..export.huggingface import unexportable, write_folder
    from ..train.checkpoint import Checkpointer

    types = {str(tensor.dtype).removeprefix("torch.") for tensor in state.values()}
    if unexportable(config) is None:
        dtype = types.pop() if len(types) == 1 else "float32"
        write_folder(config, state, tokenizer, folder, dtype=dtype if dtype != "float64" else "float32")
        return
    files = {"model_config.json": config.model_dump_json(indent=1) + "\n", **tokenizer.files()}
    tensors = {name: tensor.float() for name, tensor in state.items()}  # checkpoints hold float32 masters
    Checkpointer(folder / "checkpoints").save(0, tensors, {}, {}, files)


def plan_rows(old: Tokenizer, new: Tokenizer) -> tuple[list[list[int]], Counter[str]]:
    """For each id of ``new`` the ids of ``old`` whose mean its row is (none: the mean of all), and how many of each kind."""
    names, old_names = names_of(new), names_of(old)
    same_token = {(name, old.piece(id_)): id_ for id_, name in old_names.items()}
    same_bytes: dict[bytes, int] = {}
    for id_ in sorted(old_names):
        if old.piece(id_):
            same_bytes.setdefault(old.piece(id_), id_)
    roles = {new.eos_id: old.eos_id, new.pad_id: old.pad_id, new.unk_id: old.unk_id}
    control = {id_: name for name, id_ in new.control_tokens.items()}
    rows: list[list[int]] = []
    counts: Counter[str] = Counter({COPY: 0, MEAN: 0, NOTHING: 0})
    for id_ in range(new.vocab_size):
        piece = new.piece(id_)
        if id_ in control:
            known = old.control_tokens.get(control[id_], roles.get(id_))
            found = [known] if known is not None else _written(old, control[id_].encode(), same_bytes)
        elif not piece:
            found, known = [], None
        else:
            known = same_token.get((names.get(id_, ""), piece), same_bytes.get(piece))
            found = [known] if known is not None else _written(old, piece, same_bytes)
        rows.append(found)
        counts[COPY if known is not None else MEAN if found else NOTHING] += 1
    return rows, counts


def _written(old: Tokenizer, piece: bytes, same_bytes: Mapping[bytes, int]) -> list[int]:
    """The ids that ``old`` writes these bytes with; unknown ones left out."""
    try:
        ids = old.encode(piece.decode("utf-8"), at_start=False)
        return [id_ for id_ in ids if id_ != old.unk_id]
    except UnicodeDecodeError:  # a part of a character
        pass
    found, begin = [], 0
    while begin < len(piece):
        end = next((end for end in range(len(piece), begin, -1) if piece[begin:end] in same_bytes), None)
        if end is not None:
            found.append(same_bytes[piece[begin:end]])
        begin = end or begin + 1
    return found


def with_rows(tensor: Tensor, rows: Sequence[Sequence[int]]) -> Tensor:
    """(old vocab, dim) -> (len(rows), dim): each row the mean, in float32, of those that are named; exact where it is one."""
    import torch

    made = torch.empty(len(rows), tensor.shape[1], dtype=tensor.dtype)
    everything = tensor.float().mean(0).to(tensor.dtype)
    single = torch.tensor([i for i, ids in enumerate(rows) if len(ids) == 1], dtype=torch.long)
    made[single] = tensor[torch.tensor([ids[0] for ids in rows if len(ids) == 1], dtype=torch.long)]
    for i, ids in enumerate(rows):
        if len(ids) != 1:
            made[i] = tensor[list(ids)].float().mean(0).to(tensor.dtype) if ids else everything
    return made
