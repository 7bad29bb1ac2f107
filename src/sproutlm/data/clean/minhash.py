"""MinHash signatures, banded: two texts whose sets of n-grams have Jaccard similarity s share at least one of ``bands``
keys with probability 1 - (1 - s^rows)^bands (Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4).

Among N documents that are hardly alike (equations of one form, say) some of N^2 / 2 pairs share a key by chance, and an
original would be lost; so what shares a key must also be alike by its whole signature, of which a byte per hash is kept.

Instead of ``rows`` hashes per band only their 64-bit hash is kept: an eighth of the bytes, and among 10^9 documents
0.03 pairs are expected to meet by chance in a band.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from ...config.clean import MinhashStep
from .units import mix, ngrams_of, units_of

NONE = np.uint64(0)  # the key of a text without any unit: it is like no other
# Characters hashed at a time: arrays of this many 8-byte values stay in a core's cache through all bands * rows passes.
BATCH_CHARACTERS = 1 << 15


@lru_cache(maxsize=4)
def parameters(seed: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and offsets of ``size`` permutations x -> a x + b of the 64-bit integers."""
    generator = np.random.Generator(np.random.PCG64(seed))
    a = generator.integers(0, 1 << 64, size, np.uint64, endpoint=False) | np.uint64(1)
    return a, generator.integers(0, 1 << 64, size, np.uint64, endpoint=False)


def signatures(shingles: np.ndarray, starts: np.ndarray, seed: int, size: int) -> np.ndarray:
    """The least value of each permutation over each text's shingles, (texts, size) uint64; every text has shingles."""
    a, b = parameters(seed, size)
    out = np.empty((size, len(starts) - 1), np.uint64)
    scratch = np.empty_like(shingles)
    for number in range(size):
        np.multiply(shingles, a[number], out=scratch)
        np.add(scratch, b[number], out=scratch)
        np.minimum.reduceat(scratch, starts[:-1], out=out[number])
    return out.T


def band_keys(texts: Sequence[str], step: MinhashStep) -> tuple[np.ndarray, np.ndarray]:
    """Keys (bands, texts) uint64 and sketches (texts, bands * rows) uint8.

    Texts that share a key in a band are candidates for duplicates; ``similarity`` of two sketches tells how alike they are.
    """
    keys = np.full((step.bands, len(texts)), NONE, np.uint64)
    sketches = np.zeros((len(texts), step.bands * step.rows), np.uint8)
    first = 0
    while first < len(texts):
        end, size = first, 0
        while end < len(texts) and (end == first or size + len(texts[end]) <= BATCH_CHARACTERS):
            size += len(texts[end])
            end += 1
        _fill(keys[:, first:end], sketches[first:end], texts[first:end], step)
        first = end
    return keys, sketches


def _fill(keys: np.ndarray, sketches: np.ndarray, texts: Sequence[str], step: MinhashStep) -> None:
    units, starts = units_of(texts, step.numbers)
    shingles, starts = ngrams_of(units, starts, step.ngram)
    filled = np.flatnonzero(np.diff(starts))
    if not len(filled):
        return
    # Texts without shingles have an empty span: leaving out their starts leaves the others' spans as they are.
    bounds = np.append(starts[filled], starts[-1])
    found = signatures(shingles, bounds, step.seed, step.bands * step.rows)
    sketches[filled] = found & np.uint64(0xFF)
    found = found.reshape(len(filled), step.bands, step.rows)
    key = np.zeros((len(filled), step.bands), np.uint64)
    for row in range(step.rows):
        key = mix(key + found[:, :, row])
    keys[:, filled] = np.maximum(key, np.uint64(1)).T


def similarity(one: np.ndarray, other: np.ndarray) -> float:
    """Jaccard similarity by two sketches; standard error sqrt(s (1 - s) / len). Unlike hashes agree once in 256."""
    return (np.count_nonzero(one == other) / len(one) - 1 / 256) / (1 - 1 / 256)


def least_similarity(step: MinhashStep) -> float:
    """How alike documents that share a key must be."""
    return step.min_similarity if step.min_similarity is not None else (1 / step.bands) ** (1 / step.rows) / 2


def expected_recall(similarity: float, step: MinhashStep) -> float:
    """The chance that two texts of this Jaccard similarity share a key."""
    return 1 - (1 - similarity**step.rows) ** step.bands


def jaccard(one: str, other: str, step: MinhashStep) -> float:
    """Jaccard similarity of two texts' sets of n-grams, exactly; 0 where neither has any."""
    units, starts = units_of([one, other], step.numbers)
    shingles, starts = ngrams_of(units, starts, step.ngram)
    a, b = (set(shingles[starts[i] : starts[i + 1]].tolist()) for i in range(2))
    return len(a & b) / len(a | b) if a | b else 0.0
