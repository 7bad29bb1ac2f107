"""Ids to text one at a time, without ever showing half a character (pitfall 10)."""

from __future__ import annotations

import codecs

from .tokenizer import Tokenizer


class StreamDecoder:
    """Turns a stream of ids into a stream of text.

    A character whose bytes have not all arrived is held back. Bytes that can no longer become a character are replaced
    by U+FFFD when that is certain. Control tokens give no text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id_: int) -> str:
        """The text that ``id_`` completes; often empty inside a character."""
        return self._decoder.decode(self._tokenizer.decode_bytes((id_,)))

    def flush(self) -> str:
        """End of the stream: a character that never became whole is dropped. The decoder can be used again."""
        self._decoder.reset()
        return ""
