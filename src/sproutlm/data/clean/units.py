"""Text as hashed units (words, or single characters where a script has no spaces) and as n-grams of them.

Everything is done for many documents at once, by arrays: a Chinese poem costs microseconds, not a word splitter's
milliseconds. A hash of a run of units is a polynomial over Z/2^64 taken from prefix sums: for an odd base B,
hash(i..j) = (S[j] - S[i]) * B^-i with S[k] = sum of units[m] * B^m below k, so that every n costs one pass.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

APART, WORD, SINGLE = 0, 1, 2  # what a character does: parts units, belongs to a word, is a unit by itself
_BASE = 0x9E3779B97F4A7C15
_MARK = "\uffff"  # parts documents while they are joined; no character, and nothing composes with it
# Scripts written without spaces: Han, kana, bopomofo, Thai, Lao, Myanmar, Khmer, Han extensions.
_SPACELESS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3040, 0x312F),
              (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
              (0x20000, 0x3FFFF))  # fmt: skip
_OPERATORS = "-*/%^"  # without them 3 - 1 and 3 / 1 were one equation
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")


@lru_cache(maxsize=1)
def kinds() -> np.ndarray:
    """What each code point does, (0x110000,) uint8."""
    table = np.full(0x110000, WORD, np.uint8)
    for code in range(0x32000):
        category = unicodedata.category(chr(code))
        if category[0] in "PZC" and category != "Co":
            table[code] = APART
        elif category[0] == "S":
            table[code] = SINGLE
    for first, last in _SPACELESS:
        spaceless = table[first : last + 1]
        spaceless[spaceless == WORD] = SINGLE
    table[[ord(sign) for sign in _OPERATORS]] = SINGLE
    table[ord(_MARK)] = APART
    return table


def mix(values: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: every bit of the result depends on every bit of ``values`` (uint64)."""
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


class _Powers:
    """Powers of the base and of its inverse modulo 2^64, as many as were asked for so far."""

    def __init__(self) -> None:
        self.up = self.down = np.ones(1, np.uint64)

    def upto(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        if len(self.up) < size:
            size = 1 << (size - 1).bit_length()
            for name, base in (("up", _BASE), ("down", pow(_BASE, -1, 1 << 64))):
                factors = np.full(size, base, np.uint64)
                factors[0] = 1
                setattr(self, name, np.cumprod(factors, dtype=np.uint64))
        return self.up, self.down


_POWERS = _Powers()


def run_hashes(values: np.ndarray, first: np.ndarray, end: np.ndarray) -> np.ndarray:
    """A hash of each run ``values[first:end]`` that depends on its values alone, not on its place. All uint64."""
    up, down = _POWERS.upto(len(values) + 1)
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * up[: len(values)], out=sums[1:])
    return mix((sums[end] - sums[first]) * down[first])


def codes_of(text: str) -> np.ndarray:
    """The code points of a text, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.dtype("<u4"))


def units_of(texts: Sequence[str], numbers: str = "keep") -> tuple[np.ndarray, np.ndarray]:
    """Hashed units of many texts: (units uint64, starts int64 of length n + 1; text i has units[starts[i]:starts[i+1]]).

    Case, compatibility forms, white space and punctuation do not count; signs of arithmetic and other symbols do, and
    so do numbers unless ``numbers`` is ``merge``.
    """
    joined = _MARK.join(text.replace(_MARK, " ") if _MARK in text else text for text in texts)
    if not joined.isascii():
        joined = unicodedata.normalize("NFKC", joined)
    joined = joined.lower()
    if numbers == "merge":
        joined = _NUMBER.sub("0", joined)
    codes = codes_of(joined)
    kind = kinds()[codes]
    in_word = kind == WORD
    begins = in_word.copy()
    begins[1:] &= ~in_word[:-1]
    ends = in_word.copy()
    ends[:-1] &= ~in_word[1:]
    single = kind == SINGLE
    first = np.flatnonzero(begins | single)
    end = np.flatnonzero(ends | single) + 1
    units = run_hashes(mix(codes.astype(np.uint64) + np.uint64(_BASE)), first, end)
    starts = np.zeros(len(texts) + 1, np.int64)
    if len(texts):
        marks = np.flatnonzero(codes == ord(_MARK))
        starts[1:-1] = np.searchsorted(first, marks)
        starts[-1] = len(units)
    return units, starts


def ngrams_of(units: np.ndarray, starts: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the n-grams of each text, laid out as ``units_of`` lays out units.

    A text with fewer than ``n`` units, but any, has one n-gram: itself. So no short text escapes deduplication.
    """
    lengths = np.diff(starts)
    counts = np.where(lengths >= n, lengths - n + 1, (lengths > 0).astype(np.int64))
    new_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    first = np.arange(new_starts[-1]) + np.repeat(starts[:-1] - new_starts[:-1], counts)
    end = np.minimum(first + n, np.repeat(starts[1:], counts))
    return run_hashes(units, first, end), new_starts
