"""Ready-made token streams (.bin, .ds, Megatron): do they belong to the tokenizer, and where do their documents end?"""

from __future__ import annotations

from functools import partial

from ..config.data import SourceConfig
from ..data.token_files import TokenFile, find_documents, find_token_files, open_token_file
from ..errors import SproutError
from .finding import Examination, counted, share
from .tokens import Context

STREAM_TOKENS = 50_000_000  # of each file; larger ones are looked at no further than their tables
FILES = 20
ANY_VOCAB = 1 << 31
END_SHARE = 0.01


def examine_stream(source: SourceConfig, context: Context) -> Examination:
    """Examine token files. Their ids mean nothing without the tokenizer, so only their shape is judged where none is given."""
    found = Examination(source.path, "token stream")
    cure = "copy it again; or say what it holds in a recipe, columns: {dtype: uint32}, and examine that"
    opened, paths = found.attempt("token file", cure, 12, lambda: find_token_files(source))
    if not opened:
        return found
    if len(paths) > FILES:
        found.notes.append(f"only the first {FILES} of {len(paths):,} files were looked at")
    tokenizer = None
    if context.tokenizer_dir is not None:
        from ..tokenizer.tokenizer import Tokenizer

        read, tokenizer = found.attempt(
            "tokenizer", "give another tokenizer", 9, lambda: Tokenizer.load(context.tokenizer_dir or "")
        )
        if not read:
            return found
    size = ANY_VOCAB if tokenizer is None else tokenizer.vocab_size
    files: list[TokenFile] = []
    for path in paths[:FILES]:
        whole, file = found.attempt("token file", cure, 12, partial(open_token_file, path, source, min(size, 1 << 17)))
        if whole:
            files.append(file)
    if files:
        n = sum(file.n_tokens for file in files)
        kinds = ", ".join(sorted({f"{file.kind}, {file.dtype.name}" for file in files}))
        found.ok("token file", f"{counted(len(files), 'file')} ({kinds}), {n:,} tokens, as long as it says", 12)
    if tokenizer is None:
        found.notes.append(
            "whether its ids and its document ends fit is told with its tokenizer: sprout doctor FILE TOKENIZER"
        )
        return found
    for file in files:
        if file.n_tokens > STREAM_TOKENS:
            found.notes.append(f"{file.path}: {file.n_tokens:,} tokens, too many to look through here; training does")
            continue
        documents(found, file, source, tokenizer.eos_id, size)
    return found


def documents(found: Examination, file: TokenFile, source: SourceConfig, eos_id: int, vocab_size: int) -> None:
    """pitfalls 9 and 1: ids without a row in the model, and documents that never train an end."""
    from ..data.external import eos_of

    cure = "name the tokenizer that the file was made with"
    fits, spans = found.attempt("token ids", cure, 9, lambda: find_documents(file, eos_of(source, eos_id), vocab_size))
    if not fits:
        return
    found.ok("token ids", f"{file.path}: the largest id is {spans.max_id:,}, the tokenizer has {vocab_size:,}", 9)
    n, dropped = len(spans.starts), sum(spans.dropped.values())
    what = f"{file.path}: {counted(n, 'document')}, of which {spans.without_end:,} ({share(spans.without_end, n)}) do not end in the end token, id {eos_id}"
    if spans.without_end > max(1, END_SHARE * n) or (n == 1 and spans.without_end and file.n_tokens > 10_000):
        cure = (
            "name the id that ends its documents, columns: {eos: ID}; without ends, the model learns no end of a text"
        )
        found.warn("stop token", what, cure, 1)
    else:
        found.ok("stop token", what, 1)
    if dropped:
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in spans.dropped.items())
        found.warn(
            "rows",
            f"{file.path}: {counted(dropped, 'document')} of {spans.rows_in:,} train nothing: {reasons}",
            "none needed: they are left out and counted",
            13,
        )


def is_stream(source: SourceConfig) -> bool:
    from ..data.token_files import is_token_source

    try:
        return is_token_source(source)
    except SproutError:
        return False
