"""What becomes of a row longer than ``seq_len``: conversations are cut at whole exchanges, and every answer keeps its end.

An exchange begins at a user's turn. It is never cut in its middle, so a tool call and its result stay together; only the
text of its last answer may be shortened.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from .records import Chat, Message

if TYPE_CHECKING:
    from ..tokenizer.template import ChatTemplate, Rendered

# No token of a usual vocabulary spells more characters: a bound on what is worth trying when an answer is cut.
LONGEST_TOKEN = 64


class Document(NamedTuple):
    """Token ids and, for each, whether it is a target: (n,) of the shards' dtype, (n,) bool."""

    ids: np.ndarray
    trained: np.ndarray


@dataclass
class Pieces:
    """What is left of a long conversation: its documents, oldest first, and what that took."""

    documents: list[Document] = field(default_factory=list)
    cut: int = 0  # exchanges whose last answer was shortened
    dropped: int = 0  # exchanges without room for any answer
    lost_tokens: int = 0


def as_document(shown: Rendered, dtype: np.dtype | type = np.int64) -> Document:
    """What a template rendered, as arrays."""
    return Document(np.array(shown.ids, dtype=dtype), np.array(shown.trained, dtype=np.bool_))


def rendered(chat: Chat, template: ChatTemplate, dtype: np.dtype | type = np.int64) -> Document:
    """A conversation as tokens, whatever its length."""
    return as_document(template.render(chat.messages, chat.tools), dtype)


def truncate_chat(chat: Chat, limit: int, template: ChatTemplate, dtype: np.dtype | type = np.int64) -> Document | None:
    """A conversation cut to ``limit`` tokens, its end token kept (pitfall 2); None when no answer would be left.

    What follows the last trained turn goes first, then the oldest exchanges (a leading system message and the tools
    stay), and when one exchange alone is too long, the end of its last answer.
    """
    cuts = _Exchanges(chat, template, dtype)
    if not cuts.starts:
        return None
    first, document = cuts.first_that_fits(len(cuts.starts), limit)
    return document if first is not None else cuts.shortened(len(cuts.starts) - 1, len(cuts.starts), limit)


def split_chat(chat: Chat, limit: int, template: ChatTemplate, dtype: np.dtype | type = np.int64) -> Pieces:
    """A conversation as several of at most ``limit`` tokens, each with the system message and the tools.

    From the newest exchange back, each document takes as many whole ones as fit, so every trained turn is in exactly
    one. An exchange that alone is too long has its last answer shortened, or is dropped where nothing of it would be left.
    """
    cuts, pieces = _Exchanges(chat, template, dtype), Pieces()
    stop = len(cuts.starts)
    while stop:
        first, document = cuts.first_that_fits(stop, limit)
        if first is None:
            first = stop - 1
            length = len(cuts.document(first, stop).ids)
            document = cuts.shortened(first, stop, limit)
            pieces.cut += document is not None
            pieces.dropped += document is None
            pieces.lost_tokens += length - (0 if document is None else len(document.ids))
        if document is not None:
            pieces.documents.append(document)
        stop = first
    pieces.documents.reverse()
    return pieces


class _Exchanges:
    """A conversation up to its last trained turn, seen as its head (a system message) and exchanges."""

    def __init__(self, chat: Chat, template: ChatTemplate, dtype: np.dtype | type) -> None:
        self.template, self.dtype, self.tools = template, dtype, chat.tools
        self.head = chat.messages[:1] if chat.messages[0].role == "system" else ()
        turns = chat.messages[len(self.head) :]
        last = max((i for i, m in enumerate(turns) if _is_trained(m)), default=None)
        self.turns = () if last is None else turns[: last + 1]
        self.starts = [i for i, m in enumerate(self.turns) if not i or m.role == "user"]

    def messages(self, first: int, stop: int) -> tuple[Message, ...]:
        end = self.starts[stop] if stop < len(self.starts) else len(self.turns)
        return (*self.head, *self.turns[self.starts[first] : end])

    def document(self, first: int, stop: int) -> Document:
        return rendered(Chat(self.messages(first, stop), self.tools), self.template, self.dtype)

    def first_that_fits(self, stop: int, limit: int) -> tuple[int | None, Document | None]:
        """The earliest exchange from which all up to ``stop`` fit, by bisection: later beginnings are shorter."""
        low, high = 0, stop
        best: tuple[int | None, Document | None] = (None, None)
        while low < high:
            middle = (low + high) // 2
            document = self.document(middle, stop)
            if len(document.ids) <= limit:
                best, high = (middle, document), middle
            else:
                low = middle + 1
        return best

    def shortened(self, first: int, stop: int, limit: int) -> Document | None:
        """One exchange with as much of its last answer as fits, by bisection on characters, so that none is cut in two."""
        *before, last = self.messages(first, stop)
        if not _is_trained(last) or last.tool_calls:  # a call without its arguments is no call
            return None
        best = None
        low, high = 1, min(len(last.content), limit * LONGEST_TOKEN)
        while low <= high:
            middle = (low + high) // 2
            cut = replace(last, content=last.content[:middle])
            document = rendered(Chat((*before, cut), self.tools), self.template, self.dtype)
            if len(document.ids) <= limit:
                best, low = document, middle + 1
            else:
                high = middle - 1
        return best


def _is_trained(message: Message) -> bool:
    return message.role == "assistant" if message.train is None else message.train
