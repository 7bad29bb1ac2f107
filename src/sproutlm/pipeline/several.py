"""What a run of several processes does once: who speaks, who writes, and whether all of them see the same."""

from __future__ import annotations

import uuid
from pathlib import Path

from ..config.schema import Recipe
from ..distributed import Ranks
from ..errors import SproutError
from ..train.checkpoint import Checkpointer
from ..train.rank_checkpoint import RankCheckpointer
from .prepare import Prepared, Say


def voice_of(ranks: Ranks, say: Say) -> Say:
    """Rank 0 speaks for all; of the others only warnings are heard, with their number."""
    if ranks.first:
        return say
    return lambda line: say(f"rank {ranks.rank}: {line}") if line.startswith("warning") else None


def share_of(recipe: Recipe, ranks: Ranks) -> Recipe:
    """The recipe with the rows that one rank has of a step: what decides its micro-batches and its memory."""
    if ranks.data_size == 1:
        return recipe
    rows = -(-(recipe.train.batch_tokens // recipe.data.seq_len) // ranks.data_size)
    train = recipe.train.model_copy(update={"batch_tokens": rows * recipe.data.seq_len})
    return recipe.model_copy(update={"train": train})


def checkpointer_of(folder: Path, keep_last: int, ranks: Ranks, say: Say) -> Checkpointer:
    return Checkpointer(folder, keep_last, say) if ranks.size == 1 else RankCheckpointer(folder, keep_last, say, ranks)


def same_for_all(ranks: Ranks, run: Path, prepared: Prepared) -> None:
    """Refuse a run whose hosts do not share the run folder, or whose data are not the same everywhere."""
    if ranks.size == 1:
        return
    mark = run / f".seen-{ranks.told(uuid.uuid4().hex)}"
    if ranks.first:
        mark.touch()
    ranks.barrier()
    prints = (prepared.train.fingerprint, prepared.tokenizer.fingerprint, prepared.template.fingerprint)
    found = ranks.gathered((mark.exists(), prints, ranks.host))
    if ranks.first:
        mark.unlink()
    apart = [f"rank {rank} on {host}" for rank, (seen, _, host) in enumerate(found) if not seen]
    if apart:
        raise SproutError(
            f"{run}: {', '.join(apart)} cannot see this run folder; put it on storage that all hosts share (run=DIR)"
        )
    other = [f"rank {rank} on {host}" for rank, (_, theirs, host) in enumerate(found) if theirs != found[0][1]]
    if other:
        raise SproutError(
            f"{run}: data, tokenizer or template of {', '.join(other)} differ from rank 0's; give every host the same files"
        )
