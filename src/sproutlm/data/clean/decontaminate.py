"""Which documents share a run of words (characters, for CJK) with an evaluation set.

The index holds hashes of the evaluation texts' n-grams; texts shorter than n are looked for whole. A match by hash among
2^64 is no chance: 10^7 n-grams of evaluation sets against 10^12 of a corpus meet by accident 0.5 times.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...config.clean import DecontaminateStep
from ...config.data import SourceConfig
from ..sources import Counts, field_columns, read_rows
from .units import ngrams_of, units_of


@dataclass(frozen=True)
class Index:
    """Sorted n-gram hashes by their length in units, and the evaluation set that each comes from."""

    hashes: dict[int, np.ndarray]
    sources: dict[int, np.ndarray]
    names: list[str]

    def save(self, path: Path) -> None:
        arrays = {f"hashes_{n}": values for n, values in self.hashes.items()}
        arrays |= {f"sources_{n}": values for n, values in self.sources.items()}
        with open(path, "wb") as file:
            np.savez(file, names=np.array(self.names), **arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Index:
        with np.load(path) as arrays:
            lengths = [int(name[7:]) for name in arrays.files if name.startswith("hashes_")]
            hashes, sources = ({n: arrays[f"{kind}_{n}"] for n in lengths} for kind in ("hashes", "sources"))
            return cls(hashes, sources, arrays["names"].tolist())

    def matches(self, texts: Sequence[str]) -> list[str | None]:
        """For each text the name of an evaluation set that it shares an n-gram with, or None."""
        found: list[str | None] = [None] * len(texts)
        units, starts = units_of(texts)
        for n, known in self.hashes.items():
            grams, bounds = ngrams_of(units, starts, n)
            place = np.minimum(np.searchsorted(known, grams), len(known) - 1)
            hits = np.flatnonzero(known[place] == grams)
            owners = np.searchsorted(bounds, hits, side="right") - 1
            for hit, owner in zip(hits.tolist(), owners.tolist(), strict=True):
                found[owner] = found[owner] or self.names[int(self.sources[n][place[hit]])]
        return found


def build_index(step: DecontaminateStep, counts: Counts) -> Index:
    """Index the evaluation sets of a recipe; ``counts`` says what became of their rows."""
    by_length: dict[int, list[np.ndarray]] = {}
    owners: dict[int, list[np.ndarray]] = {}
    for number, source in enumerate(step.against):
        units, starts = units_of(list(_telling_texts(source, step, counts)))
        lengths = np.minimum(np.diff(starts), step.ngram)
        for n in np.unique(lengths[lengths >= step.min_ngram]).tolist():
            chosen = np.flatnonzero(lengths == n)
            parts = [units[starts[i] : starts[i + 1]] for i in chosen]
            bounds = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
            grams, _ = ngrams_of(np.concatenate(parts), bounds, n)
            by_length.setdefault(n, []).append(np.unique(grams))
            owners.setdefault(n, []).append(np.full(len(by_length[n][-1]), number, np.int32))
    hashes, sources = {}, {}
    for n, parts in by_length.items():
        hashes[n], first = np.unique(np.concatenate(parts), return_index=True)
        sources[n] = np.concatenate(owners[n])[first]
    return Index(hashes, sources, [Path(source.path).name for source in step.against])


def _telling_texts(source: SourceConfig, step: DecontaminateStep, counts: Counts) -> Iterator[str]:
    """Of each row its texts of ``ngram`` units or more, or else its longest, if that has ``min_ngram``.

    A table of questions (such as CMMLU) is told by its questions: its options are phrases that stand in any text.
    """
    for row in read_rows(source, "skip", counts):
        texts = [text for text in _strings(row.value, frozenset(field_columns(source).values())) if text.strip()]
        if not texts:
            counts.drop("no text")
            continue
        lengths = np.diff(units_of(texts)[1]).tolist()
        telling = [text for text, length in zip(texts, lengths, strict=True) if length >= step.ngram]
        if not telling and max(lengths) < step.min_ngram:
            counts.drop(f"shorter than min_ngram ({step.min_ngram})")
            continue
        counts.records_out += 1
        yield from telling or [texts[int(np.argmax(lengths))]]


def _strings(value: object, columns: frozenset[str] = frozenset()) -> Iterator[str]:
    """Every text in a row, however deep; of a table only the ``columns``, where the recipe names some."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for name, child in value.items():
            if not columns or name in columns:
                yield from _strings(child)
    elif isinstance(value, list):
        for child in value:
            yield from _strings(child)
