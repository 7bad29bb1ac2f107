"""From sources to token shards: on all cores, in bounded memory, and resumable to the same bytes.

Rows are cut into chunks by count and size alone, so the chunks, and with them the shards, do not depend on the number of
workers. A shard is closed at the end of a chunk; its name, checksum and the place reached in the sources go into
``progress.json``, from which an interrupted run continues.
"""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..config.schema import SourceConfig
from ..errors import DataError, SproutError
from .encode import Encoded, encode_all, fit_chat
from .files import find_files
from .formats import resolve_format
from .records import Chat, Record
from .shards import MANIFEST, TokenDataset, token_dtype
from .sources import Counts, RawRow, no_records, open_source, record_from

if TYPE_CHECKING:
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer

Say = Callable[[str], None]
CHUNK_ROWS, CHUNK_CHARACTERS = 256, 1 << 20
SMALL_BYTES = 4 << 20  # below this, starting worker processes costs more than they save
PROGRESS = "progress.json"
LAYOUT = 1  # raised when the same input would give other bytes


@dataclass
class Tally:
    """Counts of what became tokens, beside what became of the rows."""

    counts: Counts = field(default_factory=Counts)
    trained_tokens: int = 0
    lost_tokens: int = 0
    chats: int = 0
    chats_with_stop: int = 0

    def merge(self, other: Tally) -> None:
        self.counts.merge(other.counts)
        self.trained_tokens += other.trained_tokens
        self.lost_tokens += other.lost_tokens
        self.chats += other.chats
        self.chats_with_stop += other.chats_with_stop

    def as_dict(self) -> dict[str, Any]:
        return {**self.__dict__, "counts": self.counts.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tally:
        return cls(**{**values, "counts": Counts.from_dict(values["counts"])})


@dataclass(frozen=True)
class Encoder:
    """What a worker needs to turn rows into tokens; travels to it once."""

    tokenizer: Tokenizer
    template: ChatTemplate
    seq_len: int
    on_bad_row: str
    on_long: str

    def chunk(self, rows: Sequence[RawRow], spec: str, columns: dict[str, str]) -> tuple[list[Encoded], Tally]:
        """Encode a chunk; every row of it is a document or counted."""
        chosen = resolve_format(spec, [], columns)
        tally = Tally()
        read = [(raw, record_from(raw, chosen, columns, self.on_bad_row, tally.counts)) for raw in rows]
        records = [(f"{raw.path}:{raw.line}", record) for raw, record in read if record is not None]
        try:
            encoded = encode_all([record for _, record in records], self.tokenizer, self.template)
        except SproutError as error:
            raise DataError(f"{rows[0].path}, rows {rows[0].line} to {rows[-1].line}: {error}") from None
        documents = []
        for (where, record), document in zip(records, encoded, strict=True):
            kept = self._keep(where, record, document, tally)
            if kept is not None:
                documents.append(kept)
        return documents, tally

    def _keep(self, where: str, record: Record, encoded: Encoded, tally: Tally) -> Encoded | None:
        """The document as it will be trained, and its share of the tally; None when it is dropped."""
        if len(encoded.ids) > self.seq_len:
            shortened = self._shorten(record, encoded, where, tally)
            if shortened is None:
                return None
            encoded = shortened
        if not any(encoded.trained):
            tally.counts.withdraw("nothing trained")
            return None
        tally.trained_tokens += sum(encoded.trained)
        if isinstance(record, Chat):
            stops = self.template.stop_ids
            tally.chats += 1
            tally.chats_with_stop += any(t and i in stops for i, t in zip(*encoded, strict=True))
        return encoded

    def _shorten(self, record: Record, encoded: Encoded, where: str, tally: Tally) -> Encoded | None:
        """Apply ``on_long`` to a document of more than ``seq_len`` tokens; None when it is dropped."""
        chat, policy = isinstance(record, Chat), self.on_long
        if policy == "auto":
            policy = "truncate" if chat else "split"
        if policy == "split" and not chat:
            return encoded  # the packer cuts it into pieces; no token is lost
        length = len(encoded.ids)
        if policy == "split":
            raise DataError(
                f"{where}: on_long: split is for texts; a conversation can be truncated, dropped or refused"
            )
        if policy == "error":
            raise DataError(
                f"{where}: {length} tokens, more than seq_len={self.seq_len}; raise data.seq_len, or set data.on_long"
            )
        if policy == "truncate":
            if chat:
                short = fit_chat(record, self.seq_len, self.tokenizer, self.template)
            else:  # the document's end is kept
                keep = self.seq_len - 1
                short = Encoded([*encoded.ids[:keep], encoded.ids[-1]], [*encoded.trained[:keep], True])
            if short is not None:
                tally.counts.truncated += 1
                tally.lost_tokens += length - len(short.ids)
                return short
        tally.lost_tokens += length
        tally.counts.withdraw("longer than seq_len")
        return None


_worker_encoder: Encoder | None = None


def _start_worker(encoder: Encoder) -> None:
    global _worker_encoder  # one per worker process: sending the tokenizer with every chunk would cost more than encoding
    _worker_encoder = encoder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _work(rows: Sequence[RawRow], spec: str, columns: dict[str, str]) -> tuple[list[Encoded], Tally]:
    assert _worker_encoder is not None
    return _worker_encoder.chunk(rows, spec, columns)


def chunks(rows: Iterable[RawRow]) -> Iterator[list[RawRow]]:
    """Consecutive rows in lists bounded by count and by characters."""
    chunk: list[RawRow] = []
    size = 0
    for row in rows:
        chunk.append(row)
        size += len(row.payload) if isinstance(row.payload, str) else 200
        if len(chunk) == CHUNK_ROWS or size >= CHUNK_CHARACTERS:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


class ShardWriter:
    """Writes one shard under hidden names; ``close`` makes it durable and gives it its real ones."""

    def __init__(self, folder: Path, number: int, dtype: np.dtype, tokenizer_name: str) -> None:
        self.name = f"{number:05d}.ds"
        self.folder, self.dtype, self.tokenizer_name = folder, dtype, tokenizer_name
        self._tokens, self._loss = self._begin(self.name), self._begin(f"{self.name}.loss")
        self.ends: list[int] = []
        self.n_tokens = 0

    def _begin(self, name: str) -> IO[bytes]:
        return open(self.folder / f".{name}.tmp", "wb")

    def add(self, document: Encoded) -> None:
        self._tokens.write(np.asarray(document.ids, dtype=self.dtype).tobytes())
        self._loss.write(np.asarray(document.trained, dtype=np.bool_).tobytes())
        self.n_tokens += len(document.ids)
        self.ends.append(self.n_tokens)

    def close(self) -> dict[str, Any]:
        with self._begin(f"{self.name}.index") as index, self._begin(f"{self.name}.metadata") as metadata:
            index.write(np.asarray(self.ends, dtype="<u8").tobytes())
            metadata.write(f"{self.tokenizer_name}|{self.dtype.itemsize}\n{self.n_tokens}\n".encode())
            for f in (self._tokens, self._loss, index, metadata):
                f.flush()
                os.fsync(f.fileno())
        self._tokens.close()
        self._loss.close()
        digest = hashlib.sha256()
        for suffix in ("", ".loss", ".index", ".metadata"):
            final = self.folder / f"{self.name}{suffix}"
            os.replace(self.folder / f".{self.name}{suffix}.tmp", final)
            if suffix != ".metadata":
                digest.update(_sha256(final).encode())
        return {
            "file": self.name,
            "tokens": self.n_tokens,
            "documents": len(self.ends),
            "sha256": digest.hexdigest(),
        }

    def abandon(self) -> None:
        self._tokens.close()
        self._loss.close()
        for file in self.folder.glob(".*.tmp"):
            file.unlink()


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def shard_is_whole(folder: Path, shard: dict[str, Any]) -> bool:
    """Whether a finished shard still has the bytes that were written."""
    digest = hashlib.sha256()
    for suffix in ("", ".loss", ".index"):
        path = folder / f"{shard['file']}{suffix}"
        if not path.is_file():
            return False
        digest.update(_sha256(path).encode())
    return digest.hexdigest() == shard["sha256"]


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    with open(temporary, "w", encoding="utf-8") as f:
        json.dump(value, f, indent=1, ensure_ascii=False)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def source_files(sources: Sequence[SourceConfig], known: dict[str, Any]) -> dict[str, Any]:
    """Size, time and content hash of every source file; a file whose size and time are known is not read again."""
    files: dict[str, Any] = {}
    for source in sources:
        for path in find_files(source.path).paths:
            stat = path.stat()
            old = known.get(str(path), {})
            same = old.get("bytes") == stat.st_size and old.get("mtime_ns") == stat.st_mtime_ns
            digest = old["sha256"] if same else _sha256(path)
            files[str(path)] = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "sha256": digest}
    return files


def prepare(
    sources: Sequence[SourceConfig],
    tokenizer: Tokenizer,
    template: ChatTemplate,
    out: Path,
    *,
    seq_len: int,
    on_bad_row: str = "error",
    on_long: str = "auto",
    shard_tokens: int = 50_000_000,
    workers: int = 0,
    say: Say = print,
) -> TokenDataset:
    """Tokenise ``sources`` into shards at ``out``, or reuse those there when nothing they depend on has changed."""
    manifest, progress = _read_json(out / MANIFEST), _read_json(out / PROGRESS)
    files = source_files(sources, manifest.get("files") or progress.get("files") or {})
    wanted = {
        "layout": LAYOUT,
        "sources": [{**s.model_dump(exclude={"path", "repeat"}), "path": s.path} for s in sources],
        "content": [f["sha256"] for f in files.values()],
        "tokenizer": tokenizer.fingerprint,
        "template": template.fingerprint,
        "on_bad_row": on_bad_row,
        "on_long": on_long,
        "seq_len": seq_len,
        "shard_tokens": shard_tokens,
    }
    key = hashlib.sha256(json.dumps(wanted, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
    if manifest.get("key") == key and all(shard_is_whole(out, s) for s in manifest["shards"]):
        if [s["repeat"] for s in manifest["sources"]] != [s.repeat for s in sources]:
            manifest = _finish(out, manifest, sources, files)
        say(f"reusing token shards at {out}")
        return TokenDataset(out)
    encoder = Encoder(tokenizer, template, seq_len, on_bad_row, on_long)
    job = _Job(out, key, files, sources, encoder, shard_tokens, say)
    try:
        out.mkdir(parents=True, exist_ok=True)
        job.run(progress if progress.get("key") == key else {}, workers)
    except OSError as error:
        job.abandon()
        reason = "the disk is full" if error.errno == errno.ENOSPC else str(error)
        raise DataError(
            f"{out}: writing token shards failed: {reason}; finished shards are kept and the same command continues"
        ) from error
    except BaseException:
        job.abandon()
        raise
    return TokenDataset(out)


class _Job:
    """One run of ``prepare``: the place reached in the sources, the open shard, the tallies."""

    def __init__(
        self,
        out: Path,
        key: str,
        files: dict[str, Any],
        sources: Sequence[SourceConfig],
        encoder: Encoder,
        shard_tokens: int,
        say: Say,
    ) -> None:
        self.out, self.key, self.files, self.sources = out, key, files, sources
        self.encoder, self.shard_tokens, self.say = encoder, shard_tokens, say
        self.dtype = token_dtype(encoder.tokenizer.vocab_size)
        self.shards: list[dict[str, Any]] = []
        self.per_source = [{"tally": Tally(), "documents": 0, "rows": 0} for _ in sources]
        self.writer: ShardWriter | None = None
        self.started = self.said = time.perf_counter()
        self.expected_bytes = sum(f["bytes"] * (3 if p.endswith((".gz", ".zst")) else 1) for p, f in files.items())
        self.seen_characters = 0

    def run(self, progress: dict[str, Any], workers: int) -> None:
        self._continue_from(progress)
        workers = workers or os.cpu_count() or 1
        pool = None
        if workers > 1 and self.expected_bytes > SMALL_BYTES:
            context = multiprocessing.get_context("spawn")
            pool = ProcessPoolExecutor(workers, context, _start_worker, (self.encoder,))
        try:
            for index in range(len(self.sources)):
                self._source(index, pool, workers)
        finally:
            if pool is not None:
                pool.shutdown(cancel_futures=True)
        if self.writer is not None:
            self._close_shard()
        self._conclude()

    def _continue_from(self, progress: dict[str, Any]) -> None:
        """Keep finished shards that are whole; everything after the first that is not is made again."""
        kept = []
        for entry in progress.get("shards", []):
            if not shard_is_whole(self.out, entry["shard"]):
                break
            kept.append(entry)
        if kept:
            self.shards = [entry["shard"] for entry in kept]
            for own, saved in zip(self.per_source, kept[-1]["sources"], strict=True):
                own.update(tally=Tally.from_dict(saved["tally"]), documents=saved["documents"], rows=saved["rows"])
            self.say(f"continuing after {len(kept)} finished token shards at {self.out}")
        self._kept_entries = kept
        names = {s["file"] for s in self.shards}
        for file in [*self.out.glob("*.ds*"), *self.out.glob(".*.tmp"), *self.out.glob(MANIFEST)]:
            if file.name.split(".ds")[0] + ".ds" not in names:
                file.unlink()

    def _source(self, index: int, pool: ProcessPoolExecutor | None, workers: int) -> None:
        source, state = self.sources[index], self.per_source[index]
        opened = open_source(source)
        skip = state["rows"]
        for _ in zip(range(skip), opened.rows, strict=False):
            pass
        done: Iterator[tuple[int, int, tuple[list[Encoded], Tally]]]
        if pool is None:
            done = (
                (len(c), _characters(c), self.encoder.chunk(c, opened.spec, opened.columns))
                for c in chunks(opened.rows)
            )
        else:
            done = _in_order(pool, workers, chunks(opened.rows), opened.spec, opened.columns)
        for n_rows, characters, (documents, tally) in done:
            self._add(index, n_rows, documents, tally)
            self.seen_characters += characters
            self._report()
        counts = state["tally"].counts
        if not counts.records_out:
            raise no_records(source, counts.dropped, counts.examples)

    def _add(self, index: int, n_rows: int, documents: list[Encoded], tally: Tally) -> None:
        state = self.per_source[index]
        if self.writer is None:
            name = self.encoder.tokenizer.fingerprint[:16]
            self.writer = ShardWriter(self.out, len(self.shards), self.dtype, name)
        for document in documents:
            self.writer.add(document)
        state["tally"].merge(tally)
        state["documents"] += len(documents)
        state["rows"] += n_rows
        if self.writer.n_tokens >= self.shard_tokens:
            self._close_shard()

    def _close_shard(self) -> None:
        assert self.writer is not None
        shard = self.writer.close()
        self.writer = None
        self.shards.append(shard)
        states = [{**s, "tally": s["tally"].as_dict()} for s in self.per_source]
        self._kept_entries.append({"shard": shard, "sources": states})
        _write_json(self.out / PROGRESS, {"key": self.key, "files": self.files, "shards": self._kept_entries})

    def _report(self) -> None:
        now = time.perf_counter()
        if now - self.said < 2:
            return
        self.said = now
        tokens = sum(s["tokens"] for s in self.shards) + (self.writer.n_tokens if self.writer else 0)
        share = min(0.99, self.seen_characters / max(1, self.expected_bytes))
        eta = (now - self.started) / share * (1 - share) if share > 0.01 else 0.0
        rows = sum(s["rows"] for s in self.per_source)
        self.say(f"tokenising: {rows:,} rows, {tokens:,} tokens, about {share:.0%}, ETA {eta:.0f} s")

    def _conclude(self) -> None:
        whole = Tally()
        for state in self.per_source:
            state["tally"].counts.check()
            whole.merge(state["tally"])
        if whole.chats and not whole.chats_with_stop:
            raise DataError(
                f"{self.sources[0].path}: no conversation trains a stop token, so the model would never end an answer; "
                "the chat template must put its end token inside the generation block (see `sprout tokenizer test`)"
            )
        start, entries = 0, []
        for source, state in zip(self.sources, self.per_source, strict=True):
            entries.append({"path": source.path, "documents": [start, start + state["documents"]]})
            start += state["documents"]
        manifest = {
            "key": self.key,
            "shards": self.shards,
            "token_bytes": self.dtype.itemsize,
            "vocab_size": self.encoder.tokenizer.vocab_size,
            "tokenizer": self.encoder.tokenizer.fingerprint,
            "template": self.encoder.template.fingerprint,
            "documents": start,
            "tokens": sum(s["tokens"] for s in self.shards),
            **whole.as_dict(),
            "sources": entries,
        }
        _finish(self.out, manifest, self.sources, self.files)
        (self.out / PROGRESS).unlink(missing_ok=True)
        for line in [*whole.counts.lines(), *([f"{whole.lost_tokens:,} tokens lost"] if whole.lost_tokens else [])]:
            self.say(line)

    def abandon(self) -> None:
        if self.writer is not None:
            self.writer.abandon()


def _finish(
    out: Path, manifest: dict[str, Any], sources: Sequence[SourceConfig], files: dict[str, Any]
) -> dict[str, Any]:
    """Write the manifest, last of all: its presence says that the data set is whole."""
    for entry, source in zip(manifest["sources"], sources, strict=True):
        entry["repeat"] = source.repeat
    parts = {
        "shards": [s["sha256"] for s in manifest["shards"]],
        "tokenizer": manifest["tokenizer"],
        "template": manifest["template"],
        "repeat": [[s["documents"], s["repeat"]] for s in manifest["sources"]],
    }
    manifest["fingerprint"] = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    manifest["files"] = files
    _write_json(out / MANIFEST, manifest)
    return manifest


def _characters(chunk: Sequence[RawRow]) -> int:
    return sum(len(r.payload) if isinstance(r.payload, str) else 200 for r in chunk)


def _in_order(
    pool: ProcessPoolExecutor, workers: int, parts: Iterator[list[RawRow]], spec: str, columns: dict[str, str]
) -> Iterator[tuple[int, int, tuple[list[Encoded], Tally]]]:
    """Encode chunks in the pool, a bounded number under way, and give the results in their order."""
    waiting: deque[tuple[int, int, Future[tuple[list[Encoded], Tally]]]] = deque()
    for part in parts:
        waiting.append((len(part), _characters(part), pool.submit(_work, part, spec, columns)))
        if len(waiting) >= 3 * workers:
            n, characters, future = waiting.popleft()
            yield n, characters, future.result()
    while waiting:
        n, characters, future = waiting.popleft()
        yield n, characters, future.result()
