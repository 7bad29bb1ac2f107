"""Token shards on disk, in datatrove's layout: the data set that reads them memory-mapped, and the writer of one shard.

``00000.ds`` little-endian uint16 (uint32 above 65,536 ids), ``00000.ds.index`` uint64 document ends,
``00000.ds.metadata`` text, ``00000.ds.loss`` one byte a token, 1 = trained. Where every token is trained but each
document's first, which nothing precedes, there is no ``.loss``. ``manifest.json`` is ours, and written last.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ..errors import DataError

MANIFEST = "manifest.json"
PROGRESS = "progress.json"  # beside shards that are not all there yet
FORMAT = 2  # raised when the layout, or what is made of the same input, changes
SUFFIXES = ("", ".index", ".loss", ".metadata")
EDGE_BYTES = 1 << 20  # read at each end of a foreign shard to know it again
CURE = "prepare the data again (delete this folder first)"


@dataclass(frozen=True)
class Shard:
    """One memory-mapped shard: tokens, and which are trained where that is stored.

    A token file used where it lies has ``starts``, the first token of each document in it; ``first`` is the number of
    the first of them. In shards of our own, documents lie one after another.
    """

    path: Path
    tokens: np.ndarray
    trained: np.ndarray | None
    starts: np.ndarray | None = None
    first: int = 0


class TokenDataset:
    """Documents of tokens, numbered through over all shards.

    A folder that datatrove wrote (no manifest) loads as it is, every token trained unless it has ``.loss`` files.
    DataError where files are missing, cut short or do not belong together.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest: dict[str, Any] = _read_manifest(self.path)
        entries: list[dict[str, Any]] = self.manifest.get("shards") or [
            {"file": file.name} for file in sorted(self.path.glob("*.ds"))
        ]
        self.shards: list[Shard] = []
        ends: list[np.ndarray] = [np.zeros(1, dtype=np.int64)]
        starts = [0]  # first token of each shard
        n_documents = 0
        for entry in entries:
            shard_ends = self._map_external(entry, n_documents) if "external" in entry else self._map(entry)
            ends.append(shard_ends + starts[-1])
            starts.append(int(ends[-1][-1]) if len(shard_ends) else starts[-1])
            n_documents += len(shard_ends)
        self._shard_starts = np.array(starts[:-1], dtype=np.int64)
        self._bounds = np.concatenate(ends)  # (documents + 1,): document i holds tokens bounds[i] up to bounds[i + 1]
        self._range = (0, len(self._bounds) - 1)
        files = [shard.path for shard in self.shards]
        self._fingerprint = self.manifest.get("fingerprint") or _foreign_fingerprint(files)

    def _map(self, entry: dict[str, Any]) -> np.ndarray:
        """Map one shard; returns its document ends, int64."""
        file = self.path / entry["file"]
        loss_file = Path(f"{file}.loss")
        ends, width = read_index(file, self.manifest.get("token_bytes"))
        total = int(ends[-1]) if len(ends) else 0
        if loss_file.is_file() if not self.manifest else ".loss" in entry["files"]:
            found = loss_file.stat().st_size if loss_file.is_file() else 0
            if found != total:
                raise DataError(f"{loss_file}: {found:,} bytes for {total:,} tokens; {CURE}")
            trained = np.memmap(loss_file, dtype=np.bool_, mode="r") if total else np.zeros(0, dtype=np.bool_)
        else:
            trained = None
        tokens = np.memmap(file, dtype=f"<u{width}", mode="r") if total else np.zeros(0, dtype=np.uint16)
        self.shards.append(Shard(file, tokens, trained))
        return ends

    def _map_external(self, entry: dict[str, Any], first: int) -> np.ndarray:
        """Map a token file where it lies, and where its documents are in it; returns their ends in our numbering."""
        spans_file, external = self.path / entry["file"], entry["external"]
        check_external(external)
        wanted = 16 * entry["documents"]
        if not spans_file.is_file() or spans_file.stat().st_size != wanted:
            raise DataError(f"{spans_file}: missing or cut short; {CURE}")
        spans = np.memmap(spans_file, dtype="<i8", mode="r", shape=(2, entry["documents"]))
        shape = (external["tokens"],)
        tokens = np.memmap(external["path"], external["dtype"], "r", external["offset"], shape)
        trained = np.memmap(external["loss"], np.bool_, "r", shape=shape) if external["loss"] else None
        self.shards.append(Shard(Path(external["path"]), tokens, trained, spans[0], first))
        return np.cumsum(spans[1])

    # --- what is in it ------------------------------------------------------------------------------------------------

    @property
    def n_documents(self) -> int:
        return self._range[1] - self._range[0]

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each document, (n_documents,) int64."""
        return np.diff(self._bounds[self._range[0] : self._range[1] + 1])

    @property
    def starts(self) -> np.ndarray:
        """First token of each document in the data set's own numbering, (n_documents,) int64."""
        return self._bounds[self._range[0] : self._range[1]] - self._bounds[self._range[0]]

    @property
    def n_tokens(self) -> int:
        return int(self._bounds[self._range[1]] - self._bounds[self._range[0]])

    @property
    def vocab_size(self) -> int | None:
        """Size of the vocabulary it was tokenised with; None where a foreign folder does not tell."""
        return self.manifest.get("vocab_size")

    @property
    def fingerprint(self) -> str:
        """Changes when a token, the mask, the tokenizer, the template or a source's ``repeat`` does."""
        whole = self._range == (0, len(self._bounds) - 1)
        return self._fingerprint if whole else f"{self._fingerprint}[{self._range[0]}:{self._range[1]}]"

    def view(self, start: int, stop: int) -> TokenDataset:
        """Documents ``start`` up to ``stop`` as a data set of their own; nothing is copied."""
        if not 0 <= start <= stop <= self.n_documents:
            raise DataError(f"{self.path}: documents {start} to {stop} of {self.n_documents:,} do not exist")
        view = object.__new__(TokenDataset)
        view.__dict__.update(self.__dict__)
        view._range = (self._range[0] + start, self._range[0] + stop)
        return view

    def epoch_entries(self) -> np.ndarray:
        """Document indices of one epoch: those of a source with ``repeat: k`` come k times. int64"""
        low, high = self._range
        parts = [np.zeros(0, dtype=np.int64)]
        for source in self.manifest.get("sources") or [{"documents": [low, high], "repeat": 1}]:
            start, stop = source["documents"]
            inside = np.arange(max(start, low), min(stop, high), dtype=np.int64) - low
            parts += [inside] * source["repeat"]
        return np.concatenate(parts)

    # --- reading ------------------------------------------------------------------------------------------------------

    def document(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and trained mask of one document."""
        if not 0 <= index < self.n_documents:
            raise IndexError(f"document {index} of {self.n_documents}")
        first = self._range[0] + index
        base = self._bounds[self._range[0]]
        return self.read(int(self._bounds[first] - base), int(self._bounds[first + 1] - base))

    def read(self, start_token: int, stop_token: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64, trained bool) of consecutive tokens in the data set's own numbering."""
        return self.gather(np.arange(start_token, min(stop_token, self.n_tokens), dtype=np.int64))

    def gather(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64, trained bool) of the tokens at ``indices``, in any order, in the data set's own numbering."""
        absolute = indices + self._bounds[self._range[0]]
        ids = np.empty(len(absolute), dtype=np.int64)
        trained = np.ones(len(absolute), dtype=np.bool_)
        shard_of = np.searchsorted(self._shard_starts, absolute, side="right") - 1
        for number in np.unique(shard_of):
            shard, here = self.shards[number], np.flatnonzero(shard_of == number)
            if shard.starts is None:
                local = absolute[here] - self._shard_starts[number]
            else:
                document = np.searchsorted(self._bounds, absolute[here], side="right") - 1
                local = shard.starts[document - shard.first] + absolute[here] - self._bounds[document]
            ids[here] = shard.tokens[local]
            if shard.trained is not None:
                trained[here] = shard.trained[local]
            if shard.starts is not None or (self.manifest and shard.trained is None):
                # Ours leave .loss out when only first tokens are untrained; in a token file a document's first token
                # may be the last of the one before.
                begins = self._bounds[np.searchsorted(self._bounds, absolute[here])] == absolute[here]
                trained[here] &= ~begins
        return ids, trained

    # --- checks -------------------------------------------------------------------------------------------------------

    def check_vocab(self, vocab_size: int) -> None:
        """Refuse ids that the model has no row for (pitfall 9). Reads every token of a foreign data set, once."""
        highest = self.manifest.get("max_id")
        if highest is None:
            highest = max((int(s.tokens.max()) for s in self.shards if len(s.tokens)), default=0)
        if highest >= vocab_size:
            raise DataError(
                f"{self.path}: holds the token id {highest}, but the vocabulary has {vocab_size} ids (0 to "
                f"{vocab_size - 1}); it was made with another tokenizer: use that one, or prepare the data again"
            )

    def verify(self) -> None:
        """Compare every file with the checksum in the manifest; DataError names the first that differs."""
        for shard in self.manifest.get("shards", []):
            for suffix, expected in shard["files"].items():
                file = self.path / f"{shard['file']}{suffix}"
                if not file.is_file() or sha256_of(file) != expected:
                    raise DataError(
                        f"{file}: its checksum is not the manifest's, so it is damaged; prepare the data again"
                    )


def _read_manifest(folder: Path) -> dict[str, Any]:
    """``manifest.json`` of a folder of shards; empty where another program wrote them."""
    file = folder / MANIFEST
    if not file.is_file():
        if (folder / PROGRESS).is_file():
            raise DataError(f"{folder}: these token shards are not finished; run the same command again to go on")
        if not any(folder.glob("*.ds")):
            raise DataError(f"{folder}: no token shards (*.ds) there; run `sprout data prepare` first")
        return {}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        complete = manifest["format"] == FORMAT and manifest["shards"] and manifest["token_bytes"]
    except (ValueError, KeyError, TypeError):
        complete = False
    if not complete:
        raise DataError(f"{file}: damaged, or of another version of this program; delete the folder and prepare again")
    return manifest


def read_index(file: Path, token_bytes: int | None = None) -> tuple[np.ndarray, int]:
    """Document ends, int64, and bytes per token of a shard; DataError where its files do not belong together.

    Bytes per token are, where not given, the metadata's (``tokenizer|bytes`` in its first line), or follow from the size.
    """
    index_file = Path(f"{file}.index")
    for part in (file, index_file):
        if not part.is_file():
            raise DataError(f"{part}: this file of the token shards is missing; {CURE}")
    if index_file.stat().st_size % 8:
        raise DataError(f"{index_file}: cut short ({index_file.stat().st_size} bytes, not a multiple of 8); {CURE}")
    ends = np.fromfile(index_file, dtype="<u8").astype(np.int64)
    if (np.diff(ends, prepend=0) < 0).any():
        raise DataError(f"{index_file}: document ends go backwards, so the file is damaged; {CURE}")
    total, size = int(ends[-1]) if len(ends) else 0, file.stat().st_size
    if token_bytes is None:
        metadata = Path(f"{file}.metadata")
        first = metadata.read_text(encoding="utf-8").splitlines()[:1] if metadata.is_file() else []
        stated = first[0].rpartition("|")[2] if first else ""
        token_bytes = int(stated) if stated in ("2", "4") else 4 if size == 4 * total else 2
    if size != total * token_bytes:
        raise DataError(
            f"{file}: {size:,} bytes, where its index promises {total:,} tokens of {token_bytes} bytes; it was cut short "
            f"or overwritten: {CURE}"
        )
    return ends, token_bytes


def check_external(external: dict[str, Any]) -> None:
    """Refuse a token file that is gone, or is not the one that was looked through: its documents would lie elsewhere."""
    file = Path(external["path"])
    if not file.is_file() or (external["loss"] and not Path(external["loss"]).is_file()):
        raise DataError(f"{file}: this token file is used where it lies and is gone; put it back, or prepare again")
    stat = file.stat()
    same = stat.st_size == external["size"]
    if same and stat.st_mtime_ns != external["mtime_ns"]:
        same = edges_of(file) == external["edges"]  # it may only have been copied
    if not same:
        raise DataError(f"{file}: changed since the data was prepared; prepare the data again")


def _foreign_fingerprint(files: list[Path]) -> str:
    """Of a folder without manifest: all document ends, and both ends of every token file."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(f"{file.name} {file.stat().st_size}\n".encode())
        digest.update(sha256_of(Path(f"{file}.index")).encode())
        for part in (file, Path(f"{file}.loss")):
            if part.is_file():
                digest.update(_edges(part))
    return digest.hexdigest()


def _edges(path: Path) -> bytes:
    with open(path, "rb") as f:
        head = f.read(EDGE_BYTES)
        f.seek(-min(EDGE_BYTES, path.stat().st_size), os.SEEK_END)
        return head + f.read()


def edges_of(path: Path) -> str:
    """sha256 of both ends of a file: enough to know a large one again."""
    return hashlib.sha256(_edges(path)).hexdigest()


def sha256_of(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# --- writing ----------------------------------------------------------------------------------------------------------


class ShardWriter:
    """Writes one shard under hidden names; ``close`` makes it durable, then gives it its real ones."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype, tokenizer_name: str) -> None:
        self.name = f"{number:05d}.ds"
        self.folder, self.dtype, self.tokenizer_name = folder, dtype, tokenizer_name
        self.n_tokens, self.n_documents, self.max_id = 0, 0, 0
        self._ends: list[np.ndarray] = []
        self._all_trained = True  # but the first token of each document
        self._files: dict[str, IO[bytes]] = {}
        self._hashes = {suffix: hashlib.sha256() for suffix in SUFFIXES}

    def add(self, tokens: np.ndarray, trained: np.ndarray, lengths: np.ndarray) -> None:
        """Append whole documents: their tokens one after another, and the length of each."""
        ends = np.cumsum(lengths)
        self._write("", tokens.astype(self.dtype, copy=False))
        self._write(".loss", trained)
        first_tokens = ends - lengths
        untrained = len(trained) - int(trained.sum())
        if untrained != len(lengths) or trained[first_tokens].any():
            self._all_trained = False
        self._ends.append(ends + self.n_tokens)
        self.n_tokens += len(tokens)
        self.n_documents += len(lengths)
        self.max_id = max(self.max_id, int(tokens.max()))

    def _write(self, suffix: str, values: np.ndarray) -> None:
        if suffix not in self._files:
            self._files[suffix] = open(self._hidden(suffix), "wb")
        data = values.tobytes()
        self._files[suffix].write(data)
        self._hashes[suffix].update(data)

    def _hidden(self, suffix: str) -> Path:
        return self.folder / f".{self.name}{suffix}.tmp"

    def close(self) -> dict[str, Any]:
        """Finish the shard; returns its entry for the manifest."""
        self._write(".index", np.concatenate(self._ends).astype("<u8"))
        about = f"{self.tokenizer_name}|{self.dtype.itemsize}\n{self.n_tokens}\n{self.n_documents} documents\n"
        self._write(".metadata", np.frombuffer(about.encode(), dtype=np.uint8))
        for suffix, file in self._files.items():
            file.flush()
            if not (suffix == ".loss" and self._all_trained):
                os.fsync(file.fileno())
            file.close()
        if self._all_trained:
            self._hidden(".loss").unlink()
            (self.folder / f"{self.name}.loss").unlink(missing_ok=True)
            del self._files[".loss"]
        for suffix in self._files:
            os.replace(self._hidden(suffix), self.folder / f"{self.name}{suffix}")
        return {
            "file": self.name,
            "documents": self.n_documents,
            "tokens": self.n_tokens,
            "max_id": self.max_id,
            "files": {suffix: self._hashes[suffix].hexdigest() for suffix in sorted(self._files)},
        }

    def abandon(self) -> None:
        """Remove what was not finished. Never raises: the disk may be full."""
        for suffix, file in self._files.items():
            try:
                file.close()
            except OSError:
                pass  # the rest of its buffer could not be written either
            self._hidden(suffix).unlink(missing_ok=True)
