"""Show rows as the model will see them: tokens, which of them are trained, and the statistics of a file or a recipe.

The report is plain data (for ``--json``); ``render`` prints it for a person.
"""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ..config.schema import SourceConfig
from ..errors import DataError, SproutError
from .encode import encode
from .external import eos_of
from .packing import pack, packing_lines, packing_statistics
from .records import Record, texts_of
from .sources import Counts, OpenSource, no_records, open_source, record_from
from .token_files import documents_of, find_documents, find_token_files, is_token_source, open_token_file

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text as RichText

    from ..config.load import Loaded
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer

STATISTICS_ROWS = 20_000  # rows the statistics look at: seconds, not minutes, and enough to tell
SAMPLE_BYTES = 1_000_000  # text the throw-away tokenizer is trained on
SAMPLE_VOCAB = 2048
SHOWN_TOKENS = 400  # of one row, on the screen


# --- reports ----------------------------------------------------------------------------------------------------------


def inspect_file(
    path: str | Path,
    tokenizer_dir: str | Path | None = None,
    rows: int = 3,
    seq_len: int | None = None,
    format: str = "auto",
    columns: dict[str, str] | None = None,
    encoding: str = "utf-8",
    limit: int = STATISTICS_ROWS,
    fill: dict[str, str] | None = None,
    role_order: Literal["strict", "any"] = "strict",
) -> dict[str, Any]:
    """Report on a file, glob or folder: ``rows`` (``where``, ``ids``, ``trained``, ``text``, ``pieces``) and ``statistics``.

    Without ``tokenizer_dir`` a small tokenizer is trained on the file's beginning, and ``notes`` says so. Bad rows are
    skipped and counted. Raises ``DataError`` when no row can be used.
    """
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer

    source = SourceConfig(
        path=str(path), format=format, columns=columns or {}, encoding=encoding, fill=fill or {}, role_order=role_order
    )
    if is_token_source(source):
        return _inspect_tokens(source, tokenizer_dir, rows, seq_len, limit)
    notes: list[str] = []
    if tokenizer_dir is not None:
        tokenizer = Tokenizer.load(Path(tokenizer_dir))
        notes += tokenizer.notes
    else:
        tokenizer = _throw_away_tokenizer(source, notes)
    template = ChatTemplate.of(tokenizer)
    counts = Counts()
    opened = open_source(source, counts)
    statistics = _Statistics(tokenizer, template, seq_len)
    shown: list[dict[str, Any]] = []
    for where, record in _records(opened, counts, limit):
        try:
            encoded = encode(record, tokenizer, template)
        except SproutError as error:
            counts.withdraw("cannot be encoded", f"{where}: {error}")
            continue
        statistics.add(encoded.ids, encoded.trained)
        if len(shown) < rows:
            shown.append(_shown(where, type(record).__name__, encoded.ids, encoded.trained, tokenizer))
    counts.check()
    if counts.records_out == 0:
        raise no_records(source, counts.dropped, counts.examples)
    if next(opened.rows, None) is not None:
        notes.append(f"statistics are over the first {limit:,} rows")
    return {
        "source": str(path),
        "format": opened.door.format.name,
        "tokenizer": tokenizer.where,
        "notes": notes,
        "rows": shown,
        "statistics": {**counts.as_dict(), **statistics.as_dict()},
    }


def _inspect_tokens(
    source: SourceConfig, tokenizer_dir: str | Path | None, rows: int, seq_len: int | None, limit: int
) -> dict[str, Any]:
    """The report on ready-made token streams: their first ``limit`` documents."""
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer

    if tokenizer_dir is None:
        raise DataError(f"{source.path}: holds token ids; name the folder of their tokenizer with --tokenizer")
    tokenizer = Tokenizer.load(Path(tokenizer_dir))
    statistics = _Statistics(tokenizer, ChatTemplate(tokenizer.chat_template, tokenizer), seq_len)
    counts, kinds = Counts(), set()
    shown: list[dict[str, Any]] = []
    notes = list(tokenizer.notes)
    eos_id = eos_of(source, tokenizer.eos_id)
    for path in find_token_files(source):
        room = limit - counts.rows_in
        if room <= 0:
            break
        file = open_token_file(path, source, tokenizer.vocab_size)
        spans = find_documents(file, eos_id, tokenizer.vocab_size, max_documents=room)
        kinds.add(f"{file.kind}, {file.dtype.name}")
        counts.rows_in += spans.rows_in
        counts.records_out += len(spans.starts)
        counts.dropped.update(spans.dropped)
        for number, (ids, trained) in enumerate(documents_of(file, spans), 1):
            statistics.add(ids.tolist(), trained.tolist())
            if len(shown) < rows:
                shown.append(_shown(f"{path}:{number}", "document", ids.tolist(), trained.tolist(), tokenizer))
    if counts.rows_in >= limit:
        notes.append(f"statistics are over the first {limit:,} documents")
    return {
        "source": source.path,
        "format": f"tokens ({'; '.join(sorted(kinds))})",
        "tokenizer": tokenizer.where,
        "notes": notes,
        "rows": shown,
        "statistics": {**counts.as_dict(), **statistics.as_dict()},
    }


def _records(opened: OpenSource, counts: Counts, limit: int) -> Iterator[tuple[str, Record]]:
    for raw in itertools.islice(opened.rows, limit):
        record = record_from(raw, opened.door, "skip", counts)
        if record is not None:
            yield f"{raw.path}:{raw.line}", record


def _throw_away_tokenizer(source: SourceConfig, notes: list[str]) -> Tokenizer:
    from ..tokenizer.train import train_tokenizer

    counts = Counts()
    opened = open_source(source)
    records = (record for _, record in _records(opened, counts, STATISTICS_ROWS))
    texts = _first_bytes((text for record in records for text in texts_of(record)), SAMPLE_BYTES)
    first = next(texts, None)
    if first is None:
        raise no_records(source, counts.dropped, counts.examples)
    tokenizer = train_tokenizer(itertools.chain([first], texts), SAMPLE_VOCAB, max_bytes=SAMPLE_BYTES)
    tokenizer.where = f"a throw-away tokenizer of {tokenizer.vocab_size:,} ids"
    notes.append(
        f"no tokenizer was given: {tokenizer.where} was trained on the first megabyte of the text; "
        "token counts will differ with the real one"
    )
    return tokenizer


def _first_bytes(texts: Iterable[str], size: int) -> Iterator[str]:
    for text in texts:
        yield text
        size -= len(text.encode("utf-8", "replace"))
        if size <= 0:
            return


def inspect_recipe(loaded: Loaded, rows: int = 3, limit: int = STATISTICS_ROWS) -> dict[str, Any]:
    """Report on the training documents of a recipe; builds its tokenizer and shards first where they are missing."""
    from ..pipeline import prepare as pipeline

    notes: list[str] = []
    prepared = pipeline.prepare(loaded.recipe, loaded.run_dir)  # type: ignore[arg-type]
    dataset, tokenizer = prepared.train, prepared.tokenizer
    data = loaded.recipe.data  # type: ignore[union-attr]
    statistics = _Statistics(tokenizer, prepared.template, data.seq_len, data.packing)
    shown: list[dict[str, Any]] = []
    for number in range(min(dataset.n_documents, limit)):
        ids, trained = (array.tolist() for array in dataset.document(number))
        statistics.add(ids, trained)
        if len(shown) < rows:
            shown.append(_shown(f"document {number}", "document", ids, trained, tokenizer))
    if dataset.n_documents > limit:
        notes.append(f"statistics are over the first {limit:,} of {dataset.n_documents:,} documents")
    counts = dataset.manifest.get("counts", {})
    return {
        "source": loaded.recipe.name,
        "format": "packed documents",
        "tokenizer": tokenizer.where,
        "notes": notes,
        "rows": shown,
        "statistics": {**Counts().as_dict(), **counts, **statistics.as_dict()},
    }


def _shown(where: str, kind: str, ids: Sequence[int], trained: Sequence[bool], tokenizer: Tokenizer) -> dict[str, Any]:
    pieces = pieces_of(ids, tokenizer)
    return {
        "where": where,
        "kind": kind,
        "ids": list(ids),
        "trained": [int(t) for t in trained],
        "text": "".join(pieces),
        "pieces": pieces,
        "control": [int(i in set(tokenizer.control_tokens.values())) for i in ids],
    }


def pieces_of(ids: Sequence[int], tokenizer: Tokenizer) -> list[str]:
    """What each token adds to the text. A character spread over several tokens stands at the last of them."""
    control = {id_: name for name, id_ in tokenizer.control_tokens.items()}
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces, fresh = [], tokenizer.begins_text(None)
    for id_ in ids:
        piece, fresh = tokenizer.spell(id_, fresh)
        if id_ in control:
            pieces.append(decoder.decode(b"", final=True) + control[id_])
            decoder.reset()
        else:
            pieces.append(decoder.decode(piece))
    if pieces:
        pieces[-1] += decoder.decode(b"", final=True)
    return pieces


class _Statistics:
    """Sums over encoded rows."""

    def __init__(
        self, tokenizer: Tokenizer, template: ChatTemplate, seq_len: int | None, packing: str = "best_fit"
    ) -> None:
        self._bytes_of = tokenizer.token_bytes()  # (vocab,) bytes of each token, control tokens 0
        self._stops = {*tokenizer.stop_ids, *template.stop_ids}
        self._seq_len, self._packing = seq_len, packing
        self._lengths: list[int] = []
        self._trained = self._text_bytes = self._text_tokens = self._rows_with_stop = 0

    def add(self, ids: Sequence[int], trained: Sequence[bool]) -> None:
        sizes = self._bytes_of[np.asarray(ids, dtype=np.int64)]
        self._lengths.append(len(ids))
        self._trained += sum(trained)
        self._text_bytes += int(sizes.sum())
        self._text_tokens += int((sizes > 0).sum())
        self._rows_with_stop += any(t and i in self._stops for i, t in zip(ids, trained, strict=True))

    def as_dict(self) -> dict[str, Any]:
        lengths = np.asarray(self._lengths or [0])
        tokens, rows = int(lengths.sum()), max(len(self._lengths), 1)
        report: dict[str, Any] = {
            "rows": len(self._lengths),
            "tokens": tokens,
            "trained_tokens": self._trained,
            "share_trained": self._trained / max(tokens, 1),
            "bytes": self._text_bytes,
            "bytes_per_token": self._text_bytes / max(self._text_tokens, 1),
            "rows_training_a_stop_token": self._rows_with_stop,
            "share_training_a_stop_token": self._rows_with_stop / rows,
            "length": {
                "least": int(lengths.min()),
                "median": float(np.median(lengths)),
                "mean": tokens / rows,
                "most": int(lengths.max()),
            },
            "length_histogram": _histogram(lengths),
        }
        if self._seq_len is not None:
            report["seq_len"] = self._seq_len
            report["rows_longer_than_seq_len"] = int((lengths > self._seq_len).sum())
            report["packing"] = packing_statistics(lengths, pack(lengths, self._seq_len, self._packing), self._seq_len)
            report["packing"]["mode"] = self._packing
        return report


def _histogram(lengths: np.ndarray) -> list[dict[str, int]]:
    """Rows by length in tokens, in buckets that double: 1, 2-3, 4-7, ..."""
    exponents = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    low, high = int(exponents.min()), int(exponents.max())
    return [{"from": 2**k, "to": 2 ** (k + 1) - 1, "rows": int((exponents == k).sum())} for k in range(low, high + 1)]


# --- for a person -----------------------------------------------------------------------------------------------------


def render(report: dict[str, Any], console: Console) -> None:
    """Print a report: trained tokens on green (in brackets where there is no colour), others dim, control tokens marked."""
    from rich.text import Text as RichText

    console.print(f"{report['source']}: {report['format']}, {report['tokenizer']}", markup=False, highlight=False)
    for note in report["notes"]:
        console.print(f"note: {note}", markup=False, highlight=False)
    coloured = console.color_system is not None
    legend = "trained tokens are on green, others dim" if coloured else "trained tokens are in [[ ]]"
    console.print(f"{legend}; shades alternate from token to token" if coloured else legend, markup=False)
    for row in report["rows"]:
        title = f"{row['where']}  {len(row['ids']):,} tokens, {sum(row['trained']):,} trained"
        console.rule(RichText(title), align="left")
        console.print(_coloured(row) if coloured else _bracketed(row), soft_wrap=True)
        if len(row["ids"]) > SHOWN_TOKENS:
            console.print(f"... and {len(row['ids']) - SHOWN_TOKENS:,} more tokens", markup=False)
    console.rule("statistics", align="left")
    for line in statistics_lines(report["statistics"]):
        console.print(line, markup=False, highlight=False)


def _coloured(row: dict[str, Any]) -> RichText:
    from rich.text import Text as RichText

    styles = {
        (1, 0): "bold black on green",
        (1, 1): "bold black on bright_green",
        (0, 0): "dim",
        (0, 1): "dim underline",
    }
    text = RichText()
    shade = 0
    for piece, trained, control in itertools.islice(
        zip(row["pieces"], row["trained"], row["control"], strict=True), SHOWN_TOKENS
    ):
        style = styles[trained, shade]
        if control:
            style = "bold magenta on green" if trained else "magenta"
        if piece:  # the earlier tokens of a spread character show nothing
            text.append(piece.replace("\n", "↵\n"), style=style)
            shade = 1 - shade
    return text


def _bracketed(row: dict[str, Any]) -> RichText:
    from rich.text import Text as RichText

    parts = []
    marked = itertools.islice(zip(row["trained"], row["pieces"], strict=True), SHOWN_TOKENS)
    for trained, group in itertools.groupby(marked, key=lambda pair: pair[0]):
        span = "".join(piece for _, piece in group)
        parts.append(f"[[{span}]]" if trained else span)
    return RichText("".join(parts))


def statistics_lines(statistics: dict[str, Any]) -> list[str]:
    """The statistics in words, one line each, with a histogram of lengths."""
    s = statistics
    lines = [
        *Counts.from_dict({name: s[name] for name in Counts().as_dict()}).lines(),
        f"{s['tokens']:,} tokens, {s['bytes_per_token']:.2f} bytes per token",
        f"{s['share_trained']:.1%} of the tokens are trained",
        f"{s['share_training_a_stop_token']:.1%} of the rows train a stop token",
        "tokens per row: least {least:,}, median {median:,.0f}, mean {mean:,.1f}, most {most:,}".format(**s["length"]),
    ]
    if "seq_len" in s:
        lines.append(f"{s['rows_longer_than_seq_len']:,} rows are longer than seq_len={s['seq_len']:,}")
        lines += packing_lines(s["packing"], s["packing"]["mode"])
    most = max(bucket["rows"] for bucket in s["length_histogram"]) or 1
    for bucket in s["length_histogram"]:
        bar = "#" * round(40 * bucket["rows"] / most)
        lines.append(f"{bucket['from']:>9,} - {bucket['to']:<9,} {bucket['rows']:>9,} {bar}")
    return lines
