"""Ready-made token streams, used where they lie: flat ``.bin``, datatrove's ``.ds``, Megatron's ``.bin`` with ``.idx``.

Nothing is copied. One streaming pass finds the documents, the highest id and what to refuse; it holds 16 bytes a document.
Where documents end in the end token, each one begins with that of its predecessor, so that a document reads ``[eos] text
[eos]`` as those that this program encodes: the first is never a target, the last is trained.
"""

from __future__ import annotations

import glob
import os
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from ..config.data import SourceConfig
from ..errors import DataError
from .files import find_files, kind_of, reading
from .shards import edges_of, read_index

SUFFIXES = (".bin", ".ds")
DTYPES = {"uint8": "u1", "int8": "i1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4", "int64": "<i8"}
# llm.c: 256 int32, of which the first is a magic number and the third counts the tokens.
HEADERS = {20240520: "uint16", 20240801: "uint32"}
HEADER_BYTES = 1024
MEGATRON = b"MMIDIDX\x00\x00"
MEGATRON_DTYPES = {1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 8: "uint16"}
SCAN_TOKENS = 1 << 22  # at a time
GUESS_TOKENS, GUESS_LEAST = 1 << 16, 16
LINE_SECONDS = 10.0
COLUMNS = ("dtype", "eos")


@dataclass(frozen=True)
class TokenFile:
    """A file of token ids: where they begin in it, how they are written, and its documents where it names them."""

    path: Path
    kind: str
    dtype: np.dtype
    offset: int  # bytes before the first token
    n_tokens: int
    starts: np.ndarray | None = None  # (documents,) first token of each; None: parted by the end token
    ends: np.ndarray | None = None  # (documents,) after the last token of each
    loss: Path | None = None  # one byte a token: is it trained?
    framed: bool = False  # documents of this program's own shards begin and end as they should

    @property
    def files(self) -> tuple[Path, ...]:
        """All files that decide what is read."""
        return (self.path, *index_files(self.path), *([self.loss] if self.loss else []))


def index_files(path: Path) -> tuple[Path, ...]:
    """The files beside a token file that say where its documents are."""
    beside = (path.with_suffix(".idx"), Path(f"{path}.index"))
    return tuple(file for file in beside if file.is_file())


# --- finding them -----------------------------------------------------------------------------------------------------


def is_token_source(source: SourceConfig) -> bool:
    """Whether a source holds token ids: it says so (``format: tokens``), or its files are of such a kind."""
    if source.format != "auto":
        return source.format == "tokens"
    path = Path(source.path).expanduser()
    if path.is_dir():
        names = [name for _, _, names in os.walk(path) for name in names]
        kinds = {Path(name).suffix for name in names}
        # A .bin beside data files may be anything; shards of datatrove or of this program lie beside their .json.
        return ".ds" in kinds or (".bin" in kinds and not any(kind_of(Path(name)) for name in names))
    if path.exists():
        return path.suffix in (*SUFFIXES, ".idx")
    if glob.has_magic(source.path):
        matches = glob.glob(str(path), recursive=True)
        return bool(matches) and all(Path(name).suffix in (*SUFFIXES, ".idx") for name in matches)
    return Path(f"{path}.bin").is_file() and Path(f"{path}.idx").is_file()


def find_token_files(source: SourceConfig) -> list[Path]:
    """Token files of a source, sorted by name. DataError where there is none."""
    path = Path(source.path).expanduser()
    with reading(path):
        if path.is_dir():
            found = [each for each in path.rglob("*") if each.suffix in SUFFIXES and not each.name.startswith(".")]
        elif path.is_file():
            found = [path.with_suffix(".bin") if path.suffix == ".idx" else path]
        elif Path(f"{path}.bin").is_file():
            found = [Path(f"{path}.bin")]
        elif glob.has_magic(source.path):
            found = [Path(name) for name in glob.glob(str(path), recursive=True) if Path(name).suffix in SUFFIXES]
        else:
            return list(find_files(source.path).paths)  # its sentence, with the nearest name
    if not found:
        raise DataError(f"{source.path}: no token file there; expected .bin (flat, or Megatron's beside .idx) or .ds")
    return sorted(found)


# --- opening one ------------------------------------------------------------------------------------------------------


def open_token_file(path: Path, source: SourceConfig, vocab_size: int) -> TokenFile:
    """Find out how a file is written. DataError where it is cut short, or not what its recipe says."""
    unknown = sorted(set(source.columns) - set(COLUMNS))
    if unknown:
        raise DataError(f"{source.path}: columns.{unknown[0]} means nothing for token files; known: dtype, eos")
    stated = source.columns.get("dtype")
    if stated is not None and stated not in DTYPES:
        raise DataError(f"{source.path}: columns.dtype is {stated!r}; choose among {', '.join(DTYPES)}")
    with reading(path):
        if path.suffix == ".ds":
            return _datatrove(path)
        if path.with_suffix(".idx").is_file():
            return _megatron(path)
        return _flat(path, stated, vocab_size)


def _flat(path: Path, stated: str | None, vocab_size: int) -> TokenFile:
    size = path.stat().st_size
    with open(path, "rb") as f:
        head = f.read(HEADER_BYTES)
    magic = int.from_bytes(head[:4], "little")
    if magic in HEADERS and len(head) == HEADER_BYTES:
        promised = int.from_bytes(head[8:12], "little")
        dtype = np.dtype(DTYPES[stated or HEADERS[magic]])
        _whole(path, size - HEADER_BYTES, promised, dtype, "header")
        return TokenFile(path, "llm.c", dtype, HEADER_BYTES, promised)
    guessed = _guess(path, vocab_size)
    if stated == "uint16" and guessed == "uint32":
        raise DataError(
            f"{path}: every second number is 0 when read as uint16, so it holds uint32; set columns: {{dtype: uint32}}"
        )
    dtype = np.dtype(DTYPES[stated or guessed])
    if size % dtype.itemsize:
        raise DataError(
            f"{path}: {size:,} bytes, not a multiple of {dtype.itemsize}, so it is cut short or does not hold "
            f"{stated or guessed}; copy it again, or say what it holds: columns: {{dtype: uint16}} or uint32"
        )
    if not size:
        raise DataError(f"{path}: the file is empty; give a file with at least one token")
    return TokenFile(path, "flat", dtype, 0, size // dtype.itemsize)


def _guess(path: Path, vocab_size: int) -> str:
    """uint32 where the upper halves of 32-bit numbers are as small as a vocabulary's would be, else uint16."""
    numbers = np.fromfile(path, dtype="<u2", count=GUESS_TOKENS)
    upper = numbers[1::2]
    small = len(upper) >= GUESS_LEAST and path.stat().st_size % 4 == 0 and int(upper.max()) <= (vocab_size - 1) >> 16
    return "uint32" if small and numbers[::2].any() else "uint16"


def _whole(path: Path, size: int, promised: int, dtype: np.dtype, who: str) -> None:
    if size != promised * dtype.itemsize:
        raise DataError(
            f"{path}: {size:,} bytes of tokens, where its {who} promises {promised:,} of {dtype.itemsize} bytes; it was "
            "cut short, or its dtype is another: copy it again"
        )


def _datatrove(path: Path) -> TokenFile:
    ends, width = read_index(path)
    loss = Path(f"{path}.loss")
    total = int(ends[-1]) if len(ends) else 0
    if loss.is_file() and loss.stat().st_size != total:
        raise DataError(f"{loss}: {loss.stat().st_size:,} bytes for {total:,} tokens; it was cut short: copy it again")
    return TokenFile(
        path,
        "datatrove",
        np.dtype(f"<u{width}"),
        0,
        total,
        np.concatenate([[0], ends[:-1]]) if len(ends) else ends,
        ends,
        loss if loss.is_file() else None,
        framed=(path.parent / "manifest.json").is_file(),
    )


def _megatron(path: Path) -> TokenFile:
    """Sequences by length and byte address, and the sequences at which documents begin (Megatron's indexed data set)."""
    index = path.with_suffix(".idx")
    cut = f"{index}: cut short; copy it again"
    with open(index, "rb") as f:
        if f.read(len(MEGATRON)) != MEGATRON:
            raise DataError(
                f"{index}: not a Megatron index (it does not begin with MMIDIDX); move it away, or copy it again"
            )
        head = f.read(25)
        if len(head) < 25:
            raise DataError(cut)
        version, code, sequences, documents = struct.unpack("<QBQQ", head)
        if version != 1 or code not in MEGATRON_DTYPES:
            raise DataError(f"{index}: version {version}, dtype code {code}; known: version 1 with whole numbers")
        if index.stat().st_size < f.tell() + 12 * sequences + 8 * documents:
            raise DataError(cut)
        dtype = np.dtype(DTYPES[MEGATRON_DTYPES[code]])
        lengths = np.fromfile(f, dtype="<i4", count=sequences).astype(np.int64)
        places = np.fromfile(f, dtype="<i8", count=sequences)
        first = np.fromfile(f, dtype="<i8", count=documents)  # of each document, and one more at the end
    if not sequences or documents < 2 or first[-1] != sequences or (places % dtype.itemsize).any():
        raise DataError(f"{index}: its tables do not belong together, so it is damaged; make it again")
    starts = places // dtype.itemsize
    ends = starts + lengths
    size = path.stat().st_size
    if int(ends.max()) * dtype.itemsize > size or size % dtype.itemsize:
        raise DataError(
            f"{path}: {size:,} bytes, where its .idx promises {int(ends.max()):,} tokens of {dtype.itemsize} bytes; it was "
            "cut short: copy it again"
        )
    apart = np.flatnonzero(starts[1:] != ends[:-1]) + 1
    if not np.isin(apart, first).all():
        raise DataError(f"{index}: a document's sequences do not lie one after another; build it anew with one writer")
    filled = np.flatnonzero(np.diff(first))  # a document may have no sequence
    return TokenFile(
        path, "Megatron", dtype, 0, size // dtype.itemsize, starts[first[filled]], ends[first[filled + 1] - 1]
    )


# --- its documents ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spans:
    """Documents of a token file as ranges of its tokens (they share their end tokens), and what was seen on the way."""

    starts: np.ndarray  # (documents,) int64
    lengths: np.ndarray  # (documents,) int64
    max_id: int
    rows_in: int
    dropped: dict[str, int]
    without_end: int  # documents that do not end in the end token
    trained: np.ndarray  # (documents,) targets of each

    def __post_init__(self) -> None:
        assert self.rows_in == len(self.starts) + sum(self.dropped.values())


def find_documents(
    file: TokenFile,
    eos_id: int,
    vocab_size: int,
    *,
    max_documents: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Spans:
    """Read the file once, in bounded memory. DataError names the first id that the vocabulary has no row for (pitfall 9)."""
    marks: list[np.ndarray] = [np.zeros(0, dtype=np.int64)]
    found, highest = 0, 0
    for at, tokens in _scan(file, say):
        if int(tokens.max()) >= vocab_size or int(tokens.min()) < 0:
            wrong = int(np.argmax((tokens >= vocab_size) | (tokens < 0)))
            raise DataError(
                f"{file.path}: token {at + wrong:,} is the id {int(tokens[wrong])}, but the tokenizer has {vocab_size:,} "
                f"ids (0 to {vocab_size - 1}); name the tokenizer that the file was made with (tokenizer.path), or, if "
                f"it does not hold {file.dtype.name}, what it holds (columns: {{dtype: uint32}})"
            )
        highest = max(highest, int(tokens.max()))
        if file.starts is None:
            marks.append(np.flatnonzero(tokens == eos_id) + at)
            found += len(marks[-1])
            if max_documents is not None and found > max_documents:
                break  # enough is known
    if file.starts is None or file.ends is None:
        ends = np.concatenate(marks) + 1
        if not len(ends) or ends[-1] < file.n_tokens:
            ends = np.append(ends, file.n_tokens)
        starts = np.concatenate([[0], ends[:-1] - 1])
        real = np.ones(len(starts), dtype=np.bool_)
        real[0] = ends[0] > 1  # an end token at the very beginning ends nothing
        starts, ends = starts[real], ends[real]
        ids = _map(file)
    else:
        starts, ends, ids = file.starts.copy(), file.ends, _map(file)
    starts, ends = starts[:max_documents], ends[:max_documents]
    if file.starts is not None and not file.framed:
        before = ids[np.maximum(starts - 1, 0)]
        starts -= (starts > 0) & (before == eos_id) & (ids[np.minimum(starts, file.n_tokens - 1)] != eos_id)
    return _teaching(file, ids, starts, ends, eos_id, highest)


def _teaching(
    file: TokenFile, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, eos_id: int, highest: int
) -> Spans:
    """Leave out, and count, documents that teach nothing: empty ones, and those with no trained token."""
    lengths, trained = ends - starts, _trained_of(file, starts, ends)
    empty = lengths < 2
    short = np.flatnonzero(lengths == 2)
    empty[short] = (ids[starts[short]] == eos_id) & (ids[starts[short] + 1] == eos_id)
    silent = ~empty & (trained == 0)
    kept = ~(empty | silent)
    dropped = {"empty": int(empty.sum()), "nothing trained": int(silent.sum())}
    if not kept.any():
        raise DataError(f"{file.path}: no document in it has a token to train; give a file with text")
    return Spans(
        starts[kept],
        lengths[kept],
        highest,
        len(starts),
        {reason: n for reason, n in dropped.items() if n},
        int((ids[ends[kept] - 1] != eos_id).sum()),
        trained[kept],
    )


def _trained_of(file: TokenFile, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Targets of each document: what ``.loss`` marks, but never the first token. (documents,) int64"""
    if file.loss is None or not file.n_tokens:
        return np.maximum(ends - starts - 1, 0)
    marked = np.memmap(file.loss, dtype=np.bool_, mode="r")
    spans = zip(starts.tolist(), ends.tolist(), strict=True)
    return np.array([np.count_nonzero(marked[start + 1 : end]) for start, end in spans], dtype=np.int64)


def documents_of(file: TokenFile, spans: Spans) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(ids, trained) of each document."""
    ids = _map(file)
    marked = np.memmap(file.loss, dtype=np.bool_, mode="r") if file.loss else None
    for start, length in zip(spans.starts.tolist(), spans.lengths.tolist(), strict=True):
        span = slice(start, start + length)
        trained = np.ones(length, dtype=np.bool_) if marked is None else np.array(marked[span])
        trained[0] = False
        yield ids[span], trained


def _map(file: TokenFile) -> np.ndarray:
    return np.memmap(file.path, dtype=file.dtype, mode="r", offset=file.offset, shape=(file.n_tokens,))


def _scan(file: TokenFile, say: Callable[[str], None]) -> Iterator[tuple[int, np.ndarray]]:
    """(place of the first, tokens) of consecutive parts, read and not mapped: a mapped file would fill the memory."""
    started = time.monotonic()
    next_line = started + LINE_SECONDS
    with reading(file.path), open(file.path, "rb") as f:
        f.seek(file.offset)
        at = 0
        while at < file.n_tokens:
            tokens = _read(f, file.dtype, min(SCAN_TOKENS, file.n_tokens - at))
            if not len(tokens):
                raise DataError(f"{file.path}: the file became shorter while it was read; run the same command again")
            yield at, tokens
            at += len(tokens)
            now = time.monotonic()
            if now >= next_line:
                next_line = now + LINE_SECONDS
                left = (now - started) * (file.n_tokens - at) / at
                say(f"looking for documents in {file.path}: {at / file.n_tokens:.0%}, ETA {left:.0f} s")


def _read(f: IO[bytes], dtype: np.dtype, count: int) -> np.ndarray:
    return np.frombuffer(f.read(count * dtype.itemsize), dtype=dtype)


# --- knowing it again -------------------------------------------------------------------------------------------------


def stamp(path: Path) -> list[object]:
    """Size, time and both ends of a file and of its index: reading hundreds of gigabytes to know them would take hours."""
    known: list[object] = []
    for file in (path, *index_files(path), Path(f"{path}.loss")):
        if file.is_file():
            stat = file.stat()
            known.append([file.name, stat.st_size, stat.st_mtime_ns, edges_of(file)])
    return known
