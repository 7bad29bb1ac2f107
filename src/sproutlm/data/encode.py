"""From a record to token ids and the mask of what is trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DataError
from .records import Chat, Message, Record, Text

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
    bits-per-byte begin and is never trained; the last is trained, so that a text has an end. A conversation is what
    the template renders.
    """
    if isinstance(record, Text):
        return _framed(tokenizer.encode(record.text), tokenizer.eos_id)
    if isinstance(record, Chat):
        rendered = template.render(record.messages)
        return Encoded(list(rendered.ids), [bool(t) for t in rendered.trained])
    kind = type(record).__name__
    raise DataError(f"a {kind} record cannot be trained by next-token prediction; give texts or conversations")


def encode_all(records: Sequence[Record], tokenizer: Tokenizer, template: ChatTemplate) -> list[Encoded]:
    """``encode`` of each record; texts go to the tokenizer together, which is several times faster."""
    texts = [record.text for record in records if isinstance(record, Text)]
    ids = iter(tokenizer.encode_batch(texts))
    return [
        _framed(next(ids), tokenizer.eos_id) if isinstance(record, Text) else encode(record, tokenizer, template)
        for record in records
    ]


def _framed(ids: list[int], eos_id: int) -> Encoded:
    return Encoded([eos_id, *ids, eos_id], [False] + [True] * (len(ids) + 1))


def fit_chat(chat: Chat, limit: int, tokenizer: Tokenizer, template: ChatTemplate) -> Encoded | None:
    """A conversation cut to ``limit`` tokens: oldest turns go first (a system message stays), then the end of the last
    answer, whose end token is kept (pitfall 2). None when not even the question leaves room for an answer."""
    messages = list(chat.messages)
    head = messages[:1] if messages and messages[0].role == "system" else []
    turns = messages[len(head) :]
    while turns:
        encoded = encode(Chat(tuple(head + turns)), tokenizer, template)
        if len(encoded.ids) <= limit:
            return encoded if any(encoded.trained) else None
        later = next((i for i, m in enumerate(turns) if i > 0 and m.role == "user"), None)
        if later is None:
            return _cut_last_answer(head + turns, limit, tokenizer, template)
        turns = turns[later:]
    return None


def _cut_last_answer(
    messages: list[Message], limit: int, tokenizer: Tokenizer, template: ChatTemplate
) -> Encoded | None:
    """Keep as much of the last assistant turn's text as fits, by bisection on its characters."""
    last = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=None)
    if last is None:
        return None
    answer, best = messages[last].content, None
    low, high = 1, len(answer)
    while low <= high:
        middle = (low + high) // 2
        cut = Message("assistant", answer[:middle], messages[last].train)
        encoded = encode(Chat(tuple([*messages[:last], cut])), tokenizer, template)
        if len(encoded.ids) <= limit:
            best, low = encoded, middle + 1
        else:
            high = middle - 1
    return best if best is not None and any(best.trained) else None
