"""From rows to token ids and the mask of what is trained; ``Encoder`` is the part that travels to worker processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import DataError, SproutError
from .records import Chat, Message, Record, Text
from .sources import Counts, Door, RawRow, record_from

if TYPE_CHECKING:
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer

# No token of a usual vocabulary spells more characters: a bound on what is worth trying when an answer is cut.
LONGEST_TOKEN = 64


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
        rendered = template.render(record.messages)
        return Encoded(rendered.ids, rendered.trained)
    raise DataError(refusal(record))


def frame(ids: list[int], eos_id: int) -> Encoded:
    """A text's ids between two document-end tokens, the first not trained."""
    if not ids:
        return Encoded([], [])
    return Encoded([eos_id, *ids, eos_id], [False] + [True] * (len(ids) + 1))


def refusal(record: object) -> str:
    kind = {"Preference": "a pair of a better and a worse answer", "Labelled": "a labelled text"}
    name = type(record).__name__
    return (
        f"the row is {kind.get(name, name)}, which pretraining and SFT cannot learn from: give texts or conversations, "
        "or name the format and its columns if it is one (format: text, columns: {text: COLUMN})"
    )


# --- conversations that are too long ----------------------------------------------------------------------------------


def fit_chat(chat: Chat, limit: int, tokenizer: Tokenizer, template: ChatTemplate) -> Encoded | None:
    """A conversation cut to ``limit`` tokens, its end token kept (pitfall 2); None when no answer would be left.

    What follows the last trained turn goes first, then the oldest turns up to a user's (a leading system message
    stays), and when one exchange alone is too long, the end of its last answer.
    """
    head = chat.messages[:1] if chat.messages[0].role == "system" else ()
    turns = chat.messages[len(head) :]
    last = max((i for i, m in enumerate(turns) if _is_trained(m)), default=None)
    if last is None:
        return None
    turns = turns[: last + 1]
    starts = [0, *(i for i, m in enumerate(turns) if i and m.role == "user")]
    low, high = 0, len(starts)  # the first start from which all fits; later starts are shorter
    best = None
    while low < high:
        middle = (low + high) // 2
        encoded = encode(Chat((*head, *turns[starts[middle] :])), tokenizer, template)
        if len(encoded.ids) <= limit:
            best, high = encoded, middle
        else:
            low = middle + 1
    return best or _cut_last_answer((*head, *turns[starts[-1] :]), limit, tokenizer, template)


def _is_trained(message: Message) -> bool:
    return message.role == "assistant" if message.train is None else message.train


def _cut_last_answer(
    messages: tuple[Message, ...], limit: int, tokenizer: Tokenizer, template: ChatTemplate
) -> Encoded | None:
    """Keep as much of the last turn's text as fits, by bisection on its characters, so that none is cut in two."""
    *before, last = messages
    best = None
    low, high = 1, min(len(last.content), limit * LONGEST_TOKEN)
    while low <= high:
        middle = (low + high) // 2
        cut = Message(last.role, last.content[:middle], last.train)
        encoded = encode(Chat((*before, cut)), tokenizer, template)
        if len(encoded.ids) <= limit:
            best, low = encoded, middle + 1
        else:
            high = middle - 1
    return best


# --- chunks of rows ---------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What became of rows, and of their tokens."""

    counts: Counts = field(default_factory=Counts)
    tokens: int = 0
    trained_tokens: int = 0
    lost_tokens: int = 0  # by truncating or dropping rows longer than seq_len
    split: int = 0  # texts longer than seq_len, left for the packer to cut into pieces
    chats: int = 0
    chats_with_stop: int = 0  # conversations in which a stop token is trained

    def merge(self, other: Tally) -> None:
        """Add another's figures to these."""
        self.counts.merge(other.counts)
        for name in ("tokens", "trained_tokens", "lost_tokens", "split", "chats", "chats_with_stop"):
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
        documents: list[Encoded] = []
        for (raw, record), encoded in zip(accepted, self._encode_all(accepted, tally), strict=True):
            kept = self._keep(record, encoded, f"{raw.path}:{raw.line}", tally) if encoded is not None else None
            if kept is not None:
                documents.append(kept)
        lengths = np.array([len(document.ids) for document in documents], dtype=np.int64)
        return EncodedChunk(
            np.array([i for document in documents for i in document.ids], dtype=self.dtype),
            np.array([t for document in documents for t in document.trained], dtype=np.bool_),
            lengths,
            tally,
        )

    def _encode_all(self, accepted: Sequence[tuple[RawRow, Record]], tally: Tally) -> list[Encoded | None]:
        """Encode records, texts in one go; None for one that could not be and was counted."""
        texts = [record.text for _, record in accepted if isinstance(record, Text)]
        try:
            ids = iter(self.tokenizer.encode_batch(texts))
            batched = True
        except SproutError:
            batched = False  # some row's fault: one by one tells whose
        encoded: list[Encoded | None] = []
        for raw, record in accepted:
            try:
                if batched and isinstance(record, Text):
                    encoded.append(frame(next(ids), self.tokenizer.eos_id))
                else:
                    encoded.append(encode(record, self.tokenizer, self.template))
            except SproutError as error:
                where = f"{raw.path}:{raw.line}"
                if self.on_bad_row != "skip":
                    raise DataError(f"{where}: {error}. Mend the row, or set on_bad_row: skip") from error
                tally.counts.withdraw("cannot be encoded", f"{where}: {error}; the row was skipped")
                encoded.append(None)
        return encoded

    def _keep(self, record: Record, encoded: Encoded, where: str, tally: Tally) -> Encoded | None:
        """Apply ``on_long``, leave out what trains nothing (pitfall 23), and count; None when the row is dropped."""
        if not encoded.ids:
            tally.counts.withdraw("empty")
            return None
        kept: Encoded | None = encoded
        if len(encoded.ids) > self.seq_len:
            kept = self._shorten(record, encoded, where, tally)
            if kept is None:
                return None
        assert kept is not None
        if not any(kept.trained[1:]):  # nothing comes before the first token, so it is never a target
            tally.counts.withdraw("nothing trained")
            return None
        tally.tokens += len(kept.ids)
        tally.trained_tokens += sum(kept.trained)
        if isinstance(record, Chat):
            stops = self.template.stop_ids
            tally.chats += 1
            tally.chats_with_stop += any(t and i in stops for i, t in zip(*kept, strict=True))
        return kept

    def _shorten(self, record: Record, encoded: Encoded, where: str, tally: Tally) -> Encoded | None:
        """What ``on_long`` makes of a document of more than ``seq_len`` tokens; None when it is dropped."""
        is_chat, policy, length = isinstance(record, Chat), self.on_long, len(encoded.ids)
        if policy == "auto":
            policy = "truncate" if is_chat else "split"
        if policy == "split":
            if is_chat:
                raise DataError(
                    f"{where}: the conversation has {length:,} tokens, more than seq_len={self.seq_len:,}, and a piece "
                    "without its question teaches nothing: set data.on_long to truncate, drop or error, or raise "
                    "data.seq_len"
                )
            tally.split += 1
            return encoded  # the packer cuts it into pieces; no token is lost
        if policy == "error":
            raise DataError(
                f"{where}: the row has {length:,} tokens, more than seq_len={self.seq_len:,}; raise data.seq_len, or set "
                "data.on_long to truncate, split (texts only) or drop"
            )
        short = None
        if policy == "truncate" and isinstance(record, Chat):
            short = fit_chat(record, self.seq_len, self.tokenizer, self.template)
        elif policy == "truncate":  # the end is kept here too: every document teaches to stop
            keep = self.seq_len - 1
            short = Encoded([*encoded.ids[:keep], encoded.ids[-1]], [*encoded.trained[:keep], encoded.trained[-1]])
        tally.lost_tokens += length - (len(short.ids) if short else 0)
        if short is None:
            reason = "longer than seq_len" if policy == "drop" else "prompt longer than seq_len"
            tally.counts.withdraw(reason)
        else:
            tally.counts.truncated += 1
        return short
