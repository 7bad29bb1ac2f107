"""From keys to the documents that go: the first of each group of duplicates stays, whatever the number of tasks.

Documents are looked at in the order of the input. One goes if it shares a key with an earlier one that stays. (Taking
whole connected components, as is common, also removes what is only like a removed one; here every removed document is
like a kept one, which is named beside it.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ...config.clean import MinhashStep
from .minhash import band_keys, least_similarity, similarity

KEPT_PER_GROUP = 100  # kept documents that a later one of the same key is compared with
KEYS_PER_PASS = 1 << 26  # 64 M keys, 1 GB while they are sorted


@dataclass(frozen=True)
class Groups:
    """Documents that share a key: ``document[i]`` belongs to ``group[i]``; in the order of documents within a group."""

    document: np.ndarray  # int64
    group: np.ndarray  # int64


def groups_of(keys: np.ndarray, second: np.ndarray | None = None) -> Groups:
    """Groups of two or more documents with equal keys (and equal ``second`` ones); a key of 0 belongs to none."""
    index = np.flatnonzero(keys)
    chosen = keys[index]
    if second is None:
        order = np.argsort(chosen, kind="stable")
        same = _equal_neighbours(chosen[order])
    else:
        order = np.lexsort((second[index], chosen))
        same = _equal_neighbours(chosen[order]) & _equal_neighbours(second[index][order])
    member = np.zeros(len(index), bool)
    member[1:] |= same
    member[:-1] |= same
    number = np.cumsum(np.concatenate([[False], ~same]))[: len(index)] if len(index) else np.zeros(0, np.int64)
    return Groups(index[order[member]], number[member].astype(np.int64))


def _equal_neighbours(values: np.ndarray) -> np.ndarray:
    return values[1:] == values[:-1]


def groups_in_passes(
    parts: list[np.ndarray], second: list[np.ndarray] | None = None, keys_per_pass: int = KEYS_PER_PASS
) -> Groups:
    """``groups_of`` over keys that lie in many (memory-mapped) parts, by ranges of keys, so that memory is bounded."""
    total = sum(len(part) for part in parts)
    passes = max(1, -(-total // keys_per_pass))
    bounds = [(1 << 64) * number // passes for number in range(passes + 1)]
    documents, groups, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for low, high in zip(bounds, bounds[1:], strict=False):
        index, keys, others, offset = [], [], [], 0
        for number, part in enumerate(parts):
            inside = np.flatnonzero((part >= np.uint64(max(low, 1))) & (part <= np.uint64(high - 1)))
            index.append(inside + offset)
            keys.append(part[inside])
            if second is not None:
                others.append(second[number][inside])
            offset += len(part)
        if not parts:
            continue
        found = groups_of(np.concatenate(keys), np.concatenate(others) if others else None)
        documents.append(np.concatenate(index)[found.document])
        groups.append(found.group + count)
        count += int(found.group[-1]) + 1 if len(found.group) else 0
    return Groups(np.concatenate(documents), np.concatenate(groups))


def choose(
    exact: Groups | None, bands: Iterable[Groups], alike: Callable[[int, int], bool] = lambda one, other: True
) -> tuple[dict[int, int], dict[int, int]]:
    """Which documents go: (exact duplicates, near duplicates), each a map from the document to the kept one it is like.

    A key in common makes two documents candidates; ``alike`` decides.
    """
    first_of = _first_of(exact) if exact is not None else {}
    document, group = _members(bands)
    kept_of_group: dict[int, list[int]] = {}
    near: dict[int, int] = {}
    bounds = np.append(np.flatnonzero(np.diff(document, prepend=-1)), len(document)).tolist()
    for begin, end in zip(bounds, bounds[1:], strict=False):
        one = int(document[begin])
        if one in first_of:
            continue
        own = group[begin:end].tolist()
        candidates = sorted({kept for number in own for kept in kept_of_group.get(number, ())})
        like = next((kept for kept in candidates if alike(kept, one)), None)
        if like is not None:
            near[one] = like
            continue
        for number in own:
            kept = kept_of_group.setdefault(number, [])
            if len(kept) < KEPT_PER_GROUP:
                kept.append(one)
    # What an exact duplicate equals may itself be near to an earlier one: that one is what stays.
    return {one: near.get(first, first) for one, first in first_of.items()}, near


def near_duplicates(texts: Sequence[str], step: MinhashStep) -> dict[int, int]:
    """Near duplicates among texts that fit in memory: the number of each that goes -> that of the kept one it is like."""
    keys, sketches = band_keys(texts, step)
    least = least_similarity(step)
    return choose(
        None,
        [groups_of(band) for band in keys],
        lambda one, other: similarity(sketches[one], sketches[other]) >= least,
    )[1]


def _first_of(groups: Groups) -> dict[int, int]:
    """Each document of a group but its first -> the first."""
    begins = np.flatnonzero(np.diff(groups.group, prepend=-1))
    first = np.repeat(groups.document[begins], np.diff(np.append(begins, len(groups.group))))
    later = groups.document != first
    return dict(zip(groups.document[later].tolist(), first[later].tolist(), strict=True))


def _members(bands: Iterable[Groups]) -> tuple[np.ndarray, np.ndarray]:
    """All memberships in the order of documents; the groups of different bands get different numbers."""
    documents, groups, count = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)], 0
    for band in bands:
        documents.append(band.document)
        groups.append(band.group + count)
        count += int(band.group[-1]) + 1 if len(band.group) else 0
    document, group = np.concatenate(documents), np.concatenate(groups)
    order = np.argsort(document, kind="stable")
    return document[order], group[order]
