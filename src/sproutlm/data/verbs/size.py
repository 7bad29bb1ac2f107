"""How much a row weighs: one, its bytes, or its tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import SproutError
from ..records import Chat, Record, Text, texts_of
from ..sources import Row
from ..typed_cells import dumps

Weigh = Callable[[Row, Record], int]


def bytes_of(row: Row) -> int:
    """Bytes of a row as one JSON line."""
    return len(dumps(row.value).encode("utf-8")) + 1


def token_counter(folder: Path) -> tuple[Weigh, str]:
    """What counts a row's tokens with the tokenizer in ``folder``, as training would see them, and the tokenizer's name.

    Texts and conversations are counted with their control tokens; of other records, and of conversations that the
    tokenizer has no template for, the texts alone.
    """
    from ...tokenizer.template import ChatTemplate
    from ...tokenizer.tokenizer import Tokenizer
    from ..encode import encode

    tokenizer = Tokenizer.load(Path(folder))
    template = ChatTemplate.of(tokenizer) if tokenizer.chat_template is not None else None

    def count(row: Row, record: Record) -> int:
        try:
            if isinstance(record, Text):
                return len(tokenizer.encode(record.text)) + 2  # framed by document ends, as ``encode`` does
            if isinstance(record, Chat) and template is not None:
                return len(encode(record, tokenizer, template).ids)
        except SproutError:
            pass  # the template refuses this conversation; its texts still have a size
        return sum(len(tokenizer.encode(text)) for text in texts_of(record))

    return count, str(tokenizer.where)
