"""A token file as a shard of a prepared data set: its documents are noted beside the manifest, its tokens stay where they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..config.data import SourceConfig
from ..errors import DataError
from .encode import Encoder, Tally
from .shards import edges_of
from .sources import Counts
from .token_files import Spans, TokenFile, find_documents, open_token_file

Say = Callable[[str], None]


def eos_of(source: SourceConfig, eos_id: int) -> int:
    """The id that ends a document: ``columns: {eos: ID}``, else the tokenizer's."""
    stated = source.columns.get("eos", str(eos_id))
    if not stated.isdecimal():
        raise DataError(f"{source.path}: columns.eos is {stated!r}; give the id of the end token, a whole number")
    return int(stated)


def note_token_file(
    out: Path, number: int, path: Path, source: SourceConfig, encoder: Encoder, limit: int | None, say: Say
) -> tuple[dict[str, Any], Tally]:
    """Look through a token file for at most ``limit`` documents, note them in ``out``; its entry for the manifest."""
    tokenizer = encoder.tokenizer
    file = open_token_file(path, source, tokenizer.vocab_size)
    eos_id = eos_of(source, tokenizer.eos_id)
    spans = find_documents(file, eos_id, tokenizer.vocab_size, max_documents=limit, say=say)
    starts, lengths, tally = fit(file, spans, encoder.seq_len, encoder.on_long)
    name = f"{number:05d}.spans"
    content = np.stack([starts, lengths]).astype("<i8").tobytes()
    temporary = out / f".{name}.tmp"
    with open(temporary, "wb") as f:
        f.write(content)
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, out / name)
    say(
        f"{path}: {file.n_tokens:,} tokens ({file.kind}, {file.dtype.name}), {len(starts):,} documents, used where they lie"
    )
    if spans.without_end:
        share = spans.without_end / (spans.rows_in or 1)
        say(
            f"  {spans.without_end:,} documents ({share:.1%}) do not end in the end token, id {eos_id} (columns: {{eos: ID}})"
        )
    entry = {
        "file": name,
        "external": describe(file),
        "documents": len(starts),
        "tokens": int(lengths.sum()),
        "max_id": spans.max_id,
        "files": {"": hashlib.sha256(content).hexdigest()},
    }
    return entry, tally


def fit(file: TokenFile, spans: Spans, seq_len: int, on_long: str) -> tuple[np.ndarray, np.ndarray, Tally]:
    """Apply ``on_long`` to a file's documents, and count; (starts, lengths, tally)."""
    long = spans.lengths > seq_len
    n_long = int(long.sum())
    counts = Counts(rows_in=spans.rows_in, records_out=len(spans.starts))
    counts.dropped.update(spans.dropped)
    tally = Tally(counts, int(spans.lengths.sum()), int(spans.trained.sum()))
    if n_long and on_long in ("error", "truncate"):
        first = int(np.argmax(long))
        why = "; a cut document has no end token, and nothing is written into a file that is used where it lies"
        raise DataError(
            f"{file.path}: document {first + 1:,} has {int(spans.lengths[first]):,} tokens, more than seq_len={seq_len:,}"
            f"{why if on_long == 'truncate' else ''}; raise data.seq_len, or set data.on_long to split or drop"
        )
    if n_long and on_long == "drop":
        if n_long == len(long):
            raise DataError(f"{file.path}: every document has more than seq_len={seq_len:,} tokens; raise data.seq_len")
        counts.records_out -= n_long
        counts.dropped["longer than seq_len"] += n_long
        tally.lost_tokens = int(spans.lengths[long].sum())
        tally.tokens -= tally.lost_tokens
        tally.trained_tokens -= int(spans.trained[long].sum())
        return spans.starts[~long], spans.lengths[~long], tally
    tally.split = n_long
    return spans.starts, spans.lengths, tally


def describe(file: TokenFile) -> dict[str, Any]:
    """What a manifest says of a token file: how to read it, and what tells that it is still the same."""
    stat = file.path.stat()
    return {
        "path": str(file.path.absolute()),
        "kind": file.kind,
        "dtype": file.dtype.str,
        "offset": file.offset,
        "tokens": file.n_tokens,
        "loss": str(file.loss.absolute()) if file.loss else None,
        "size": stat.st_size,
        "mtime_ns": stat.st_mtime_ns,
        "edges": edges_of(file.path),
    }
