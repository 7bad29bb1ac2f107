"""Ids to text one at a time, without ever showing half a character (pitfall 10)."""

from __future__ import annotations

import codecs

from .tokenizer import Tokenizer


class StreamDecoder:
    """Turns a stream of ids into a stream of text; the pieces together are what ``decode`` gives for the whole.

    A character whose bytes have not all arrived is held back. Bytes that can no longer become a character are replaced
    by U+FFFD when that is certain. Control tokens give no text.

    ``after``: the id before the stream, where it continues a prompt; None where a text starts. It decides, with
    tokenizers that put a blank before a text, whether a first blank is theirs.
    """

    def __init__(self, tokenizer: Tokenizer, *, after: int | None = None) -> None:
        self._tokenizer = tokenizer
        self._begin = self._fresh = tokenizer.begins_text(after)
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id_: int) -> str:
        """The text that ``id_`` completes; often empty inside a character."""
        piece, self._fresh = self._tokenizer.spell(id_, self._fresh)
        return self._decoder.decode(piece)

    def flush(self) -> str:
        """End of the stream: a character that never became whole is dropped. The decoder can be used again."""
        self._decoder.reset()
        self._fresh = self._begin
        return ""
