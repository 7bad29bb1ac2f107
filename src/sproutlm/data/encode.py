"""From rows to token ids and the mask of what is trained; ``Encoder`` is the part that travels to worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import DataError, SproutError
from .long_rows import Document, as_document, rendered, split_chat, truncate_chat
from .records import Chat, Record, Text
from .sources import Counts, Door, RawRow, record_from

if TYPE_CHECKING:
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer


class Encoded(NamedTuple):
    """Token ids of one document and, for each, whether it is a target."""

    ids: list[int]
    trained: list[bool]


def encode(record: Record, tokenizer: Tokenizer, template: ChatTemplate) -> Encoded:
    """Ids and mask of a record, whatever its length.

    A text is framed by the document-end token: ``[eos] text [eos]``. The first is where generation from nothing and
    bits-per-byte begin and is never trained; the last is trained, so that a text has an end. An empty text gives
    nothing. A conversation is what the template renders. DataError for other kinds of record.
    """
    if isinstance(record, Text):
        return frame(tokenizer.encode(record.text), tokenizer.eos_id)
    if isinstance(record, Chat):
        ids, trained = rendered(record, template)
        return Encoded(ids.tolist(), trained.tolist())
    raise DataError(refusal(record))


def frame(ids: list[int], eos_id: int) -> Encoded:
    """A text's ids between two document-end tokens, the first not trained."""
    if not ids:
        return Encoded([], [])
    return Encoded([eos_id, *ids, eos_id], [False] + [True] * (len(ids) + 1))


def refusal(record: object) -> str:
    kind = {
        "Preference": "a pair of a better and a worse answer",
        "UnpairedPreference": "an answer with a verdict, liked or not",
        "Labelled": "a labelled text",
    }
    name = type(record).__name__
    return (
        f"the row is {kind.get(name, name)}, which pretraining and SFT cannot learn from: give texts or conversations, "
        "or name the format and its columns if it is one (format: text, columns: {text: COLUMN})"
    )


# --- chunks of rows ---------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of rows, and of their tokens. A row that was split counts once as out, its pieces as documents."""

    counts: Counts = field(default_factory=Counts)
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0  # by truncating or dropping rows longer than seq_len, or exchanges of them
    split: int = 0  # texts longer than seq_len, left for the packer to cut into pieces
    split_chats: int = 0  # conversations longer than seq_len that were cut between exchanges
    pieces: int = 0  # documents beyond one a row, from split conversations
    cut_exchanges: int = 0  # of split conversations: too long by themselves, their last answer shortened
    dropped_exchanges: int = 0  # of split conversations: no room for any answer
    chats: int = 0
    chats_with_stop: int = 0  # conversations in which a stop token is trained

    def merge(self, other: Tally) -> None:
        """Add another's figures to these."""
        self.counts.merge(other.counts)
        for name in (each.name for each in fields(self) if each.name != "counts"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "counts": self.counts.as_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Tally:
        return cls(**{**values, "counts": Counts.from_dict(values["counts"])})


@dataclass
class EncodedChunk:
    """Documents of a chunk of rows, one after another: ``tokens`` and ``trained`` (n_tokens,), ``lengths`` (documents,)."""

    tokens: np.ndarray
    trained: np.ndarray
    lengths: np.ndarray
    tally: Tally


@dataclass(frozen=True)
class Encoder:
    """Turns raw rows into tokens. Pickles, so that each worker process gets it once."""

    tokenizer: Tokenizer
    template: ChatTemplate
    seq_len: int
    on_bad_row: str
    on_long: str

    @property
    def options(self) -> dict[str, Any]:
        """What beside tokenizer and template decides the tokens of a row."""
        return {"seq_len": self.seq_len, "on_bad_row": self.on_bad_row, "on_long": self.on_long}

    @property
    def dtype(self) -> np.dtype:
        """Little-endian uint16 up to 65,536 ids, else uint32."""
        return np.dtype("<u2" if self.tokenizer.vocab_size <= 1 << 16 else "<u4")

    def chunk(self, rows: Sequence[RawRow], door: Door) -> EncodedChunk:
        """Encode a chunk; every row of it becomes a document or is counted as dropped."""
        tally = Tally()
        accepted: list[tuple[RawRow, Record]] = []
        for raw in rows:
            record = record_from(raw, door, self.on_bad_row, tally.counts)
            if record is None:
                continue
            if not isinstance(record, Text | Chat):  # the wrong data for this stage: no row will be better
                raise DataError(f"{raw.path}:{raw.line}: {refusal(record)}")
            accepted.append((raw, record))
        documents: list[Document] = []
        for (raw, record), document in zip(accepted, self._encode_all(accepted, tally), strict=True):
            if document is None:
                continue
            try:
                documents += self._keep(record, document, f"{raw.path}:{raw.line}", tally)
            except DataError:
                raise  # names its place already
            except SproutError as error:  # the template refuses what was cut
                self._refused(raw, error, tally)
        return EncodedChunk(
            np.concatenate([np.zeros(0, self.dtype), *(ids for ids, _ in documents)]),
            np.concatenate([np.zeros(0, np.bool_), *(trained for _, trained in documents)]),
            np.array([len(ids) for ids, _ in documents], dtype=np.int64),
            tally,
        )

    def _encode_all(self, accepted: Sequence[tuple[RawRow, Record]], tally: Tally) -> list[Document | None]:
        """Encode records, texts in one go; None for one that could not be and was counted."""
        texts = [record.text for _, record in accepted if isinstance(record, Text)]
        chats = [(record.messages, record.tools) for _, record in accepted if isinstance(record, Chat)]
        try:
            framed = iter(self._framed(self.tokenizer.encode_batch(texts)))
            shown = iter(self.template.render_batch(chats))
            batched = True
        except SproutError:
            batched = False  # some row's fault: one by one tells whose
        documents: list[Document | None] = []
        for raw, record in accepted:
            try:
                if isinstance(record, Text):
                    documents.append(next(framed) if batched else self._framed([self.tokenizer.encode(record.text)])[0])
                    continue
                assert isinstance(record, Chat)
                document = (
                    as_document(next(shown), self.dtype) if batched else rendered(record, self.template, self.dtype)
                )
                documents.append(document)
            except SproutError as error:
                self._refused(raw, error, tally)
                documents.append(None)
        return documents

    def _refused(self, raw: RawRow, error: SproutError, tally: Tally) -> None:
        where = f"{raw.path}:{raw.line}"
        if self.on_bad_row != "skip":
            raise DataError(f"{where}: {error}. Mend the row, or set on_bad_row: skip") from error
        tally.counts.withdraw("cannot be encoded", f"{where}: {error}; the row was skipped")

    def _framed(self, batch: Sequence[Sequence[int]]) -> list[Document]:
        """``frame`` for many texts at once: most of a large corpus goes through here."""
        sizes = np.array([len(ids) + 2 if ids else 0 for ids in batch], dtype=np.int64)
        ends = np.cumsum(sizes)
        first = (ends - sizes)[sizes > 0]
        tokens = np.full(int(sizes.sum()), self.tokenizer.eos_id, dtype=self.dtype)
        trained = np.ones(len(tokens), dtype=np.bool_)
        trained[first] = False
        inside = trained.copy()
        inside[ends[sizes > 0] - 1] = False
        count = len(tokens) - 2 * len(first)
        tokens[inside] = np.fromiter(chain.from_iterable(batch), dtype=self.dtype, count=count)
        starts = (ends - sizes).tolist()
        return [Document(tokens[a:b], trained[a:b]) for a, b in zip(starts, ends.tolist(), strict=True)]

    def _keep(self, record: Record, document: Document, where: str, tally: Tally) -> list[Document]:
        """Apply ``on_long``, leave out what trains nothing (pitfall 23), and count; empty when the row is dropped."""
        if not len(document.ids):
            tally.counts.withdraw("empty")
            return []
        kept = [document]
        if isinstance(record, Text) and len(document.ids) <= self.seq_len:  # the usual case: all but its first token
            tally.tokens += len(document.ids)
            tally.trained_tokens += len(document.ids) - 1
            return kept
        if len(document.ids) > self.seq_len:
            kept = self._shorten(record, document, where, tally)
            if not kept:
                return []
        # Nothing comes before a document's first token, so it is never a target.
        teaching = [document for document in kept if document.trained[1:].any()]
        if not teaching:
            tally.counts.withdraw("nothing trained")
            return []
        tally.pieces += len(teaching) - 1
        for ids, trained in teaching:
            tally.tokens += len(ids)
            tally.trained_tokens += int(trained.sum())
        if isinstance(record, Chat):
            tally.chats += 1
            tally.chats_with_stop += all(self._stops(document) for document in teaching)
        return teaching

    def _stops(self, document: Document) -> bool:
        """Whether a stop token is trained."""
        return any((document.trained & (document.ids == stop)).any() for stop in self.template.stop_ids)

    def _shorten(self, record: Record, document: Document, where: str, tally: Tally) -> list[Document]:
        """What ``on_long`` makes of a document of more than ``seq_len`` tokens; empty when it is dropped."""
        policy, length = self.on_long, len(document.ids)
        if policy == "auto":
            policy = "truncate" if isinstance(record, Chat) else "split"
        if policy == "error":
            raise DataError(
                f"{where}: the row has {length:,} tokens, more than seq_len={self.seq_len:,}; raise data.seq_len, or set "
                "data.on_long to truncate, split or drop"
            )
        if policy == "split" and not isinstance(record, Chat):
            tally.split += 1
            return [document]  # the packer cuts it into pieces; no token is lost
        if policy == "split":
            assert isinstance(record, Chat)
            return self._split(record, length, tally)
        short = None
        if policy == "truncate" and isinstance(record, Chat):
            short = truncate_chat(record, self.seq_len, self.template, self.dtype)
        elif policy == "truncate":  # the end is kept here too: every document teaches to stop
            keep = [*range(self.seq_len - 1), -1]
            short = Document(document.ids[keep], document.trained[keep])
        if short is None:
            tally.lost_tokens += length
            tally.counts.withdraw("longer than seq_len" if policy == "drop" else "prompt longer than seq_len")
            return []
        tally.lost_tokens += length - len(short.ids)
        tally.counts.truncated += 1
        return [short]

    def _split(self, chat: Chat, length: int, tally: Tally) -> list[Document]:
        pieces = split_chat(chat, self.seq_len, self.template, self.dtype)
        if not pieces.documents:
            tally.lost_tokens += length
            tally.counts.withdraw("prompt longer than seq_len")
            return []
        tally.split_chats += 1
        tally.counts.truncated += pieces.cut > 0
        tally.cut_exchanges += pieces.cut
        tally.dropped_exchanges += pieces.dropped
        tally.lost_tokens += pieces.lost_tokens
        return pieces.documents
