"""Token shards on disk, in datatrove's layout, and the data set that reads them memory-mapped.

``00000.ds`` little-endian uint16 (uint32 above 65,536 ids), ``00000.ds.index`` uint64 document ends,
``00000.ds.metadata`` text, ``00000.ds.loss`` one byte a token (1 = trained; absent: all are), ``manifest.json`` ours.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

MANIFEST = "manifest.json"


def token_dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


@dataclass(frozen=True)
class Shard:
    """One memory-mapped shard; ``first`` is the number of documents before it."""

    tokens: np.ndarray
    trained: np.ndarray | None
    ends: np.ndarray
    first: int


class TokenDataset:
    """Documents of tokens. A folder that datatrove wrote (no manifest) loads as it is, every token trained."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        files = sorted(self.path.glob("*.ds")) if self.path.is_dir() else []
        if not files:
            raise DataError(f"{self.path}: no token shards (*.ds) there; run `sprout data prepare` first")
        manifest_file = self.path / MANIFEST
        self.manifest: dict[str, Any] = (
            json.loads(manifest_file.read_text(encoding="utf-8")) if manifest_file.is_file() else {}
        )
        if self.manifest:
            files = [self.path / s["file"] for s in self.manifest["shards"]]
        self.shards: list[Shard] = []
        self._shard_lengths: list[np.ndarray] = []
        for file in files:
            self._open(file)
        self._firsts = np.array([s.first for s in self.shards])
        all_lengths = np.concatenate(self._shard_lengths) if self._shard_lengths else np.zeros(0, dtype=np.int64)
        self._range = (0, len(all_lengths))
        self._lengths = all_lengths
        self._base_fingerprint = self.manifest.get("fingerprint") or self._foreign_fingerprint(files)

    def _open(self, file: Path) -> None:
        index_file, loss_file = Path(f"{file}.index"), Path(f"{file}.loss")
        if not file.is_file() or not index_file.is_file():
            raise DataError(f"{file}: the shard or its .index is missing; run `sprout data prepare` again")
        ends = np.fromfile(index_file, dtype="<u8").astype(np.int64)
        total = int(ends[-1]) if len(ends) else 0
        width = self._token_width(file)
        if file.stat().st_size != total * width:
            raise DataError(
                f"{file}: {file.stat().st_size} bytes, but its index promises {total} tokens of {width} bytes: "
                "truncated or overwritten; delete the folder and prepare it again"
            )
        tokens = np.memmap(file, dtype=f"<u{width}", mode="r") if total else np.zeros(0, dtype=np.uint16)
        trained = None
        if loss_file.is_file():
            if loss_file.stat().st_size != total:
                raise DataError(f"{loss_file}: {loss_file.stat().st_size} bytes for {total} tokens; prepare it again")
            trained = np.memmap(loss_file, dtype=np.bool_, mode="r") if total else np.zeros(0, dtype=np.bool_)
        first = sum(len(lengths) for lengths in self._shard_lengths)
        self.shards.append(Shard(tokens, trained, ends, first))
        self._shard_lengths.append(np.diff(ends, prepend=0))

    def _token_width(self, file: Path) -> int:
        """Bytes per token: the manifest's, or the metadata's (``tokenizer|size`` on its first line), or 2."""
        if self.manifest:
            return int(self.manifest["token_bytes"])
        metadata = Path(f"{file}.metadata")
        if metadata.is_file():
            size = metadata.read_text(encoding="utf-8").splitlines()[0].rpartition("|")[2]
            if size.isdigit():
                return int(size)
        return 2

    @staticmethod
    def _foreign_fingerprint(files: list[Path]) -> str:
        digest = hashlib.sha256()
        for file in files:
            for part in (file, Path(f"{file}.index"), Path(f"{file}.loss")):
                if part.is_file():
                    with open(part, "rb") as f:
                        digest.update(hashlib.file_digest(f, "sha256").digest())
        return digest.hexdigest()

    # --- what is in it ------------------------------------------------------------------------------------------------

    @property
    def n_documents(self) -> int:
        return self._range[1] - self._range[0]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, (n_documents,) int64."""
        return self._lengths[self._range[0] : self._range[1]]

    @property
    def n_tokens(self) -> int:
        return int(self.lengths.sum())

    @property
    def vocab_size(self) -> int | None:
        """Size of the vocabulary it was tokenised with, where that is known."""
        return self.manifest.get("vocab_size")

    @property
    def fingerprint(self) -> str:
        whole = self._range == (0, len(self._lengths))
        return self._base_fingerprint if whole else f"{self._base_fingerprint}[{self._range[0]}:{self._range[1]}]"

    def view(self, start: int, stop: int) -> TokenDataset:
        """Documents ``start`` to ``stop`` as a data set of their own; nothing is copied."""
        if not 0 <= start <= stop <= self.n_documents:
            raise IndexError(f"documents {start}:{stop} of {self.n_documents}")
        view = object.__new__(TokenDataset)
        view.__dict__.update(self.__dict__)
        view._range = (self._range[0] + start, self._range[0] + stop)
        return view

    def epoch_entries(self) -> np.ndarray:
        """Document indices of one epoch: a source with ``repeat: k`` counts k times. int64"""
        low, high = self._range
        parts = []
        for source in self.manifest.get("sources") or [{"documents": [low, high], "repeat": 1}]:
            start, stop = source["documents"]
            inside = np.arange(max(start, low), min(stop, high), dtype=np.int64) - low
            parts += [inside] * source["repeat"]
        return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and trained mask of a whole document."""
        return self.read_document(index, 0, int(self.lengths[index]))

    def read_document(self, index: int, offset: int, length: int) -> tuple[np.ndarray, np.ndarray]:
        """``length`` tokens of a document from ``offset`` on: (ids, trained)."""
        absolute = self._range[0] + index
        shard = self.shards[int(np.searchsorted(self._firsts, absolute, side="right")) - 1]
        local = absolute - shard.first
        start = (int(shard.ends[local - 1]) if local else 0) + offset
        ids = shard.tokens[start : start + length]
        trained = np.ones(length, dtype=bool) if shard.trained is None else shard.trained[start : start + length]
        return ids, trained

    def check_vocab(self, vocab_size: int) -> None:
        """Refuse ids that the model has no row for (pitfall 9). Reads every token of a foreign data set, once."""
        if self.vocab_size is not None:
            highest = self.vocab_size - 1
        else:
            highest = max((int(s.tokens.max()) for s in self.shards if len(s.tokens)), default=0)
        if highest >= vocab_size:
            raise DataError(
                f"{self.path}: holds token id {highest}, but the vocabulary has {vocab_size} ids (0 to {vocab_size - 1}); "
                "it was made with another tokenizer: use that one, or prepare the data again"
            )
