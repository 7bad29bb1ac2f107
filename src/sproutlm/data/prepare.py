"""From sources to token shards: on all cores, in bounded memory, and resumable to the same bytes.

Rows are cut into chunks by count and size alone, encoded by workers, and written in order, so nothing depends on their
number. After each shard ``progress.json`` holds its checksums and the place reached in the sources; an interrupted run
continues there. The manifest comes last: its presence says that the data set is whole.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..config.schema import SourceConfig
from ..errors import DataError
from .encode import EncodedChunk, Encoder, Tally
from .external import note_token_file
from .file_hashes import FileHashes
from .files import find_files
from .formats import resolve_format
from .shard_folder import alone_in, read_json, write_json, writing
from .shards import FORMAT, MANIFEST, PROGRESS, ShardWriter, TokenDataset
from .sources import Counts, no_records, open_source
from .token_files import find_token_files, is_token_source, stamp
from .workers import Encoding, chunks, encode_chunks, encoding_processes, expected_bytes, worker_count

if TYPE_CHECKING:
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer

Say = Callable[[str], None]
OUR_FILES = re.compile(r"\.?(\d{5,}\.(spans|ds(\.index|\.loss|\.metadata)?)|manifest\.json|progress\.json)(\.tmp)?")
EARLY_CHATS = 1000  # conversations after which a stop token that none has trained is no accident


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
    hold_out: int = 0,
    say: Say = print,
) -> TokenDataset:
    """Tokenise ``sources`` into shards at ``out``, or reuse those there when nothing they depend on has changed.

    ``workers=0`` takes all cores. ``hold_out`` documents at the end are meant for validation: DataError where that
    leaves none to train on; the caller takes both parts with ``view``.
    """
    out = Path(out)
    hashes = FileHashes(out / ".files.json", say)
    encoder = Encoder(tokenizer, template, seq_len, on_bad_row, on_long)
    key = _key(sources, encoder, shard_tokens, hashes)
    dataset = _reuse(out, key, sources, hashes, say)
    if dataset is None:
        with writing(out):
            out.mkdir(parents=True, exist_ok=True)
        with alone_in(out):
            job = _Job(out, key, sources, encoder, shard_tokens, say)
            try:
                job.run(hashes, workers)
            except BaseException:
                job.abandon()
                raise
        dataset = TokenDataset(out)
    hashes.save()
    if hold_out >= dataset.n_documents:
        raise DataError(
            f"{hold_out:,} rows are to be held out, but there are only {dataset.n_documents:,} documents; lower "
            "data.validation.rows, or give more rows"
        )
    return dataset


def _key(sources: Sequence[SourceConfig], encoder: Encoder, shard_tokens: int, hashes: FileHashes) -> str:
    """sha256 of all that the shards' bytes depend on: contents of files (not where they lie), tokenizer, options."""
    described = []
    for source in sources:
        entry = source.model_dump(exclude={"path", "repeat"})
        if is_token_source(source):
            entry["files"] = [stamp(path) for path in find_token_files(source)]
            hashes.stamp(*find_token_files(source))
        else:
            entry["files"] = [[path.name, hashes.sha256(path)] for path in find_files(source.path).paths]
        if ":" in source.format:
            entry["code"] = _code_of(source.format)
        described.append(entry)
    wanted = {
        "format": FORMAT,
        "sources": described,
        "tokenizer": encoder.tokenizer.fingerprint,
        "template": encoder.template.fingerprint,
        "options": {**encoder.options, "shard_tokens": shard_tokens},
    }
    return hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()


def _code_of(spec: str) -> str:
    """Source text of the module of a person's own format: when it is edited, its records may be others."""
    parse = resolve_format(spec, []).parse
    try:
        file = inspect.getsourcefile(parse)
        return Path(file).read_text(encoding="utf-8") if file else ""
    except (TypeError, OSError):
        return ""


def _reuse(out: Path, key: str, sources: Sequence[SourceConfig], hashes: FileHashes, say: Say) -> TokenDataset | None:
    """The data set at ``out`` if it is what would be made now; a changed ``repeat`` needs only another manifest."""
    manifest = read_json(out / MANIFEST)
    if manifest.get("key") != key or manifest.get("format") != FORMAT:
        return None
    if not all(_is_whole(out, shard, hashes) for shard in manifest["shards"]):
        return None
    if [s["repeat"] for s in manifest["sources"]] != [s.repeat for s in sources]:
        with writing(out):
            _write_manifest(out, manifest, sources)
    dataset = TokenDataset(out)
    say(f"reusing the token shards at {out}: {dataset.n_documents:,} documents, {dataset.n_tokens:,} tokens")
    return dataset


def _is_whole(folder: Path, shard: dict[str, Any], hashes: FileHashes) -> bool:
    """Whether every file of a finished shard still has the bytes that were written."""
    files = {folder / f"{shard['file']}{suffix}": digest for suffix, digest in shard["files"].items()}
    return all(file.is_file() and hashes.sha256(file) == digest for file, digest in files.items())


@dataclass
class _SourceState:
    """How far a source has come: ``rows`` of whole chunks, and ``skip`` documents of the next one in finished shards."""

    tally: Tally = field(default_factory=Tally)
    documents: int = 0
    rows: int = 0
    skip: int = 0
    done: bool = False

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "tally": self.tally.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> _SourceState:
        return cls(**{**values, "tally": Tally.from_dict(values["tally"])})


class _Job:
    """One run of ``prepare``: the place reached in the sources, the finished shards and the open one."""

    def __init__(
        self, out: Path, key: str, sources: Sequence[SourceConfig], encoder: Encoder, shard_tokens: int, say: Say
    ) -> None:
        self.out, self.key, self.sources = out, key, sources
        self.encoder, self.shard_tokens, self.say = encoder, shard_tokens, say
        self.states = [_SourceState() for _ in sources]
        self.finished: list[dict[str, Any]] = []  # what the writer says of each shard, and the states after it
        self.writer: ShardWriter | None = None

    def run(self, hashes: FileHashes, workers: int) -> None:
        with writing(self.out):
            self._continue(hashes)
        texts = [source for source in self.sources if not is_token_source(source)]
        total = expected_bytes([path for source in texts for path in find_files(source.path).paths])
        with encoding_processes(self.encoder, worker_count(workers, total), total, self.say) as encoding:
            for index in range(len(self.sources)):
                if self.states[index].done:
                    continue
                if is_token_source(self.sources[index]):
                    self._token_source(index)
                else:
                    self._source(index, encoding)
        if self.writer is not None:
            self._close_shard()
        for path in (path for source in self.sources for path in files_of(source)):
            if not hashes.unchanged(path):
                raise DataError(f"{path}: the file changed while it was being read; run the same command again")
        self._conclude()

    def _continue(self, hashes: FileHashes) -> None:
        """Keep finished shards that are whole; everything after the first that is not is made again."""
        records = [read_json(self.out / name) for name in (PROGRESS, MANIFEST)]
        if not any((self.out / name).exists() for name in (PROGRESS, MANIFEST)) and any(self.out.glob("*.ds")):
            raise DataError(
                f"{self.out}: holds token shards that this program did not write, and they would be overwritten; choose "
                "another folder with data.cache"
            )
        record = next((record for record in records if record.get("key") == self.key), None)
        if record is None and any(records):
            self.say(f"the token shards at {self.out} were made from other data or settings; they are made again")
        for shard in record["shards"] if record else []:
            if not _is_whole(self.out, shard, hashes):
                self.say(f"{self.out / shard['file']}: damaged or missing; it and what follows it are made again")
                break
            self.finished.append(shard)
        if self.finished:
            self.states = [_SourceState.from_dict(saved) for saved in self.finished[-1]["sources"]]
            self.say(f"continuing after {len(self.finished)} finished token shards at {self.out}")
        self._save_progress()  # from here on the folder is known as ours, and as unfinished
        (self.out / MANIFEST).unlink(missing_ok=True)  # before anything it vouches for is touched
        kept = {PROGRESS, *(f"{shard['file']}{suffix}" for shard in self.finished for suffix in shard["files"])}
        for file in self.out.iterdir():
            if OUR_FILES.fullmatch(file.name) and file.name not in kept:
                file.unlink()

    def _save_progress(self) -> None:
        write_json(self.out / PROGRESS, {"key": self.key, "shards": self.finished})

    def _source(self, index: int, encoding: Encoding) -> None:
        source, state = self.sources[index], self.states[index]
        opening = Counts()
        opened = open_source(source, opening)
        encoding.passed(islice(opened.rows, state.rows))
        for n_rows, chunk in encode_chunks(encoding, chunks(opened.rows), opened.door):
            self._add(state, n_rows, chunk)
            self._check_stops(source, state.tally, EARLY_CHATS)
        counts = state.tally.counts
        counts.ignored_files = opening.ignored_files
        counts.check()
        if not counts.records_out:
            raise no_records(source, counts.dropped, counts.examples)
        self._check_stops(source, state.tally, 1)
        state.done = True

    def _token_source(self, index: int) -> None:
        """Take over token files as they lie, each as a shard of its own between ours."""
        source, state = self.sources[index], self.states[index]
        if self.writer is not None:
            self._close_shard()  # documents are numbered in the order of the sources
        for path in find_token_files(source)[state.rows :]:
            seen = state.tally.counts.rows_in
            if source.max_rows is not None and seen >= source.max_rows:
                break
            limit = None if source.max_rows is None else source.max_rows - seen
            with writing(self.out):
                entry, tally = note_token_file(
                    self.out, len(self.finished), path, source, self.encoder, limit, self.say
                )
            state.tally.merge(tally)
            state.rows += 1
            state.documents += entry["documents"]
            self._finish(entry)
        state.tally.counts.check()
        state.done = True

    def _check_stops(self, source: SourceConfig, tally: Tally, least: int) -> None:
        """Refuse conversations none of which trains a stop token (pitfall 1), once ``least`` of them were seen."""
        if tally.chats >= least and not tally.chats_with_stop:
            raise DataError(
                f"{source.path}: none of {tally.chats:,} conversations trains a stop token, so the model would never end "
                "an answer; the chat template must have its end token inside {% generation %}, and the last turn must "
                "be one that is trained"
            )

    def _add(self, state: _SourceState, n_rows: int, chunk: EncodedChunk) -> None:
        """Write a chunk's documents, ending a shard before the document that would make it too long."""
        ends = np.concatenate([[0], np.cumsum(chunk.lengths)])
        at, n = state.skip, len(chunk.lengths)
        while at < n:
            if self.writer is None:
                name = f"sproutlm-{self.encoder.tokenizer.fingerprint[:16]}"
                self.writer = ShardWriter(self.out, len(self.finished), self.encoder.dtype, name)
            room = self.shard_tokens - self.writer.n_tokens
            upto = int(np.searchsorted(ends, ends[at] + room, side="right")) - 1
            if upto == at and not self.writer.n_tokens:
                upto = at + 1  # longer than a shard: it has one to itself
            if upto > at:
                tokens = slice(ends[at], ends[upto])
                with writing(self.out):
                    self.writer.add(chunk.tokens[tokens], chunk.trained[tokens], chunk.lengths[at:upto])
                state.documents += upto - at
                at = upto
            if at < n or self.writer.n_tokens >= self.shard_tokens:
                state.skip = at
                self._close_shard()
        state.tally.merge(chunk.tally)
        state.rows += n_rows
        state.skip = 0

    def _close_shard(self) -> None:
        assert self.writer is not None
        with writing(self.out):
            shard = self.writer.close()
            self.writer = None
        self._finish(shard)

    def _finish(self, shard: dict[str, Any]) -> None:
        with writing(self.out):
            self.finished.append({**shard, "sources": [state.as_dict() for state in self.states]})
            self._save_progress()

    def _conclude(self) -> None:
        """Write the manifest and say what became of the rows."""
        whole, documents, entries = Tally(), 0, []
        for source, state in zip(self.sources, self.states, strict=True):
            whole.merge(state.tally)
            entries.append({"path": source.path, "documents": [documents, documents + state.documents]})
            documents += state.documents
        tokens = sum(shard["tokens"] for shard in self.finished)
        assert (
            documents == whole.counts.records_out + whole.pieces == sum(shard["documents"] for shard in self.finished)
        )
        assert tokens == whole.tokens
        manifest = {
            "format": FORMAT,
            "key": self.key,
            "documents": documents,
            "tokens": tokens,
            "token_bytes": self.encoder.dtype.itemsize,
            "max_id": max(shard["max_id"] for shard in self.finished),
            "vocab_size": self.encoder.tokenizer.vocab_size,
            "tokenizer": self.encoder.tokenizer.fingerprint,
            "template": self.encoder.template.fingerprint,
            "options": {**self.encoder.options, "shard_tokens": self.shard_tokens},
            **whole.as_dict(),
            "sources": entries,
            "shards": self.finished,  # with the place reached after each, from where a damaged one is made again
        }
        with writing(self.out):
            _write_manifest(self.out, manifest, self.sources)
            (self.out / PROGRESS).unlink(missing_ok=True)
        for line in said_of(whole):
            self.say(line)

    def abandon(self) -> None:
        """Leave nothing half-written behind."""
        if self.writer is not None:
            self.writer.abandon()


def said_of(tally: Tally) -> list[str]:
    """What a person should be told of prepared data, one sentence each."""
    lines = tally.counts.lines()
    share = tally.trained_tokens / max(tally.tokens, 1)
    lines.append(f"{tally.tokens:,} tokens, {share:.1%} of them trained")
    if tally.lost_tokens:
        lines.append(f"{tally.lost_tokens:,} tokens lost to rows longer than seq_len (data.on_long, data.seq_len)")
    if tally.split:
        lines.append(f"{tally.split:,} texts longer than seq_len: cut into pieces, no token lost")
    if tally.split_chats:
        lines.append(
            f"{tally.split_chats:,} conversations longer than seq_len: cut between exchanges into "
            f"{tally.split_chats + tally.pieces:,} documents"
        )
    if tally.cut_exchanges or tally.dropped_exchanges:
        lines.append(
            f"  exchanges too long by themselves: {tally.cut_exchanges:,} with their answer shortened, "
            f"{tally.dropped_exchanges:,} dropped"
        )
    if tally.chats:
        lines.append(f"{tally.chats_with_stop:,} of {tally.chats:,} conversations train a stop token")
    return lines


def _write_manifest(out: Path, manifest: dict[str, Any], sources: Sequence[SourceConfig]) -> None:
    """Write the manifest with the sources' repeats and the fingerprint that follows from all of it."""
    for entry, source in zip(manifest["sources"], sources, strict=True):
        entry["repeat"] = source.repeat
    decisive = {
        "shards": [[shard["files"], *_content_of(shard)] for shard in manifest["shards"]]
        if any("external" in shard for shard in manifest["shards"])
        else [shard["files"] for shard in manifest["shards"]],
        "tokenizer": manifest["tokenizer"],
        "template": manifest["template"],
        "repeat": [[entry["documents"], entry["repeat"]] for entry in manifest["sources"]],
    }
    manifest["fingerprint"] = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    write_json(out / MANIFEST, manifest)


def _content_of(shard: dict[str, Any]) -> list[Any]:
    """What a token file's tokens follow from, and not where it lies or when it was copied there."""
    return [shard["external"][name] for name in ("dtype", "offset", "size", "edges")] if "external" in shard else []


def files_of(source: SourceConfig) -> Sequence[Path]:
    """The files of a source, of text or of tokens."""
    return find_token_files(source) if is_token_source(source) else find_files(source.path).paths
