"""The merge by which a byte-pair vocabulary makes a piece, found from the order of its pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

Piece = TypeVar("Piece", str, bytes)


def merge_of(piece: Piece, rank: Mapping[Piece, int]) -> tuple[Piece, Piece] | None:
    """The last merge that makes ``piece``, or None where no merges do.

    Both ``sentencepiece`` and ``tiktoken`` store only how early each piece is made (``rank``, low first) and join any
    two neighbours that together are a piece, the leftmost first. Letting them do it to the piece alone shows the pair
    that ``tokenizers`` must list. What earlier merges make inside a piece does not depend on what stands around it.
    """
    limit = rank[piece]
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        best, place = limit, -1
        for i in range(len(parts) - 1):
            found = rank.get(parts[i] + parts[i + 1], limit)
            if found < best:
                best, place = found, i
        if place < 0:
            return None
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
    return (parts[0], parts[1]) if len(parts) == 2 else None
