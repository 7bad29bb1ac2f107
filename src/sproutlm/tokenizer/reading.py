"""What of a corpus a tokenizer is trained on: everything, its beginning, or an even sample, in bounded memory."""

from __future__ import annotations

import hashlib
import heapq
import time
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

Sample = Literal["spread", "first"]

PIECE_CHARACTERS = 65_536
BLOCK_BYTES = 16_384
SAY_EVERY = 10.0  # seconds


@dataclass
class Used:
    """How much text was used: ``used`` of ``total`` bytes. ``total`` is None where reading stopped before the end."""

    sample: Sample
    max_bytes: int
    used: int = 0
    total: int | None = 0
    blocks: int = 0
    blocks_used: int = 0

    @property
    def cut(self) -> bool:
        return self.total is None or self.used < self.total

    def sentence(self) -> str:
        """For the person, where not all was used."""
        limit = f"max_bytes={self.max_bytes:,}"
        if self.total is None:
            return f"tokenizer: read the first {self.used:,} bytes of text ({limit}, sample=first)"
        share = self.used / max(self.total, 1)
        return (
            f"tokenizer: trained on {self.used:,} of {self.total:,} bytes of text ({share:.1%}), an even sample of "
            f"{self.blocks_used:,} of {self.blocks:,} blocks ({limit})"
        )


def read(
    texts: Iterable[str], used: Used, *, seed: int = 0, say: Callable[[str], None] = lambda sentence: None
) -> Iterator[str]:
    """Pieces of ``texts``, ``used.max_bytes`` bytes at most; ``used`` is complete when they have been consumed.

    ``first`` gives the beginning, as it comes, and reads no further. ``spread`` reads to the end and keeps a sample: the
    pieces are gathered into blocks of about ``BLOCK_BYTES`` (less where max_bytes is small), each block gets a number
    from sha256(seed, its index), and those with the lowest numbers are kept, as many as fit. So at most ``max_bytes``
    and one block are held, the sample depends on the texts and the seed alone, and it is everything, in the same pieces,
    where everything fits. Kept blocks come in the order of the corpus.
    """
    pieces = (piece for text in texts for piece in cut(text))
    return _first(pieces, used) if used.sample == "first" else _spread(pieces, used, seed, say)


def cut(text: str) -> Iterator[str]:
    """Pieces of at most PIECE_CHARACTERS, cut after a line break where there is one (no merge crosses it)."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        line_break = text.rfind("\n", start, end)
        end = line_break + 1 if line_break > start else end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def _encoded(piece: str) -> bytes:
    # Half a surrogate pair is no Unicode text; the row is refused where it is encoded, with its line.
    return piece.encode("utf-8", errors="replace")


def _first(pieces: Iterable[str], used: Used) -> Iterator[str]:
    for piece in pieces:
        data = _encoded(piece)
        left = used.max_bytes - used.used
        if len(data) > left:
            used.total = None
            data = data[:left]
        used.used += len(data)
        yield data.decode("utf-8", errors="ignore")
        if used.total is None:
            return
    used.total = used.used


def _spread(pieces: Iterable[str], used: Used, seed: int, say: Callable[[str], None]) -> Iterator[str]:
    # Lowest numbers win: the heap's head is the kept block with the highest one, the next to go.
    kept: list[tuple[int, int, Block]] = []
    limit = None  # a block with a number from here on can never be kept
    held = total = 0
    told = time.monotonic()
    for index, block in enumerate(_blocks(pieces, max(64, min(BLOCK_BYTES, used.max_bytes // 256)))):
        total += len(block.data)
        used.blocks = index + 1
        number = int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big")
        if limit is None or number < limit:
            heapq.heappush(kept, (-number, index, block))
            held += len(block.data)
            while held > used.max_bytes and len(kept) > 1:
                gone = heapq.heappop(kept)
                limit = -gone[0]
                held -= len(gone[2].data)
        if time.monotonic() - told > SAY_EVERY:
            told = time.monotonic()
            say(f"tokenizer: {total / 1e6:,.0f} MB of text read, {held / 1e6:,.0f} MB kept as a sample")
    kept.sort(key=lambda entry: entry[1])
    used.total, used.blocks_used = total, len(kept)
    for _, _, block in kept:
        for data in block.pieces():
            data = data[: used.max_bytes - used.used]  # a single piece may be longer than all that is allowed
            used.used += len(data)
            yield data.decode("utf-8", errors="ignore")


@dataclass(frozen=True, slots=True)
class Block:
    """Neighbouring pieces in one string: millions of short rows would cost more in objects than in text."""

    data: bytes
    lengths: array[int]

    def pieces(self) -> Iterator[bytes]:
        start = 0
        for length in self.lengths:
            yield self.data[start : start + length]
            start += length


def _blocks(pieces: Iterable[str], least: int) -> Iterator[Block]:
    gathered: list[bytes] = []
    size = 0
    for piece in pieces:
        gathered.append(_encoded(piece))
        size += len(gathered[-1])
        if size >= least:
            yield Block(b"".join(gathered), array("I", map(len, gathered)))
            gathered, size = [], 0
    if gathered:
        yield Block(b"".join(gathered), array("I", map(len, gathered)))
