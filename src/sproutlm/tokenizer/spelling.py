"""What each id of a tokenizer spells, byte by byte, and which blanks the tokenizer itself put there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from .text_only import BYTE_TOKEN, Data, model_ids, steps

SPACE_MARK = "▁"  # U+2581, SentencePiece's blank


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(shifted)})
    return table


BYTE_OF_CHARACTER = _byte_alphabet()


@dataclass(frozen=True, slots=True)
class Spelling:
    """How tokens are written in a ``tokenizer.json``.

    ``dummy``: where the tokenizer puts a blank of its own before a text, which decoding takes away again: ``none``;
    ``first``, at the start of a text only; ``each``, after every control token, too.
    """

    byte_level: bool
    byte_fallback: bool  # "<0x0A>" is the byte 10
    blank: str | None  # the character that stands for a blank
    words: bool  # tokens are whole words, with a blank between them that no token holds
    prefix: str  # what marks the inside of a word, "##"
    suffix: str  # what marks the end of a word, "</w>"
    dummy: str

    @classmethod
    def of(cls, data: Data) -> Spelling:
        model = data["model"]
        before, decoders = steps(data.get("pre_tokenizer")), steps(data.get("decoder"))
        normalizers = steps(data.get("normalizer"))
        everything = [*normalizers, *before, *decoders]
        kinds = {step.get("type") for step in everything}
        words = model.get("type") in ("WordPiece", "WordLevel") or "WordPiece" in kinds
        return cls(
            byte_level="ByteLevel" in kinds,
            byte_fallback=bool(model.get("byte_fallback")) or "ByteFallback" in kinds,
            blank=_blank(everything),
            words=words,
            prefix=model.get("continuing_subword_prefix") or "",
            suffix=model.get("end_of_word_suffix") or "",
            dummy="each" if words else _dummy(normalizers, before),
        )

    def bytes_of(self, token: str, added: bool) -> bytes:
        """The bytes of one token that is no control token; ``added``: it stands among the added tokens."""
        if self.byte_fallback and (byte := BYTE_TOKEN.fullmatch(token)):
            return bytes([int(byte.group(1), 16)])
        if self.byte_level and not added and all(character in BYTE_OF_CHARACTER for character in token):
            return bytes(BYTE_OF_CHARACTER[character] for character in token)
        if self.words:
            return self._word(token).encode()
        if self.blank is not None:
            token = token.replace(self.blank, " ")
        if self.suffix and token.endswith(self.suffix):
            token = token.removesuffix(self.suffix) + " "
        return token.encode()

    def _word(self, token: str) -> str:
        """A word with the blank before it; none inside words, at punctuation, and at letters of scripts without blanks."""
        if self.prefix and token.startswith(self.prefix):
            return token.removeprefix(self.prefix)
        return " " + token if token[:1].isalnum() and not "\u2e80" <= token[:1] <= "\uffef" else token

    def table(self, data: Data, control: Iterable[str], vocab_size: int) -> list[bytes]:
        """Bytes of every id; empty for control tokens and for ids that no token has."""
        control = set(control)
        table = [b""] * vocab_size
        for token, id_ in model_ids(data).items():
            if token not in control:
                table[id_] = self.bytes_of(token, added=False)
        for added in data.get("added_tokens", []):
            text = added["content"]
            table[added["id"]] = b"" if text in control else self.bytes_of(text, added=True)
        return table


def _blank(everything: list[Data]) -> str | None:
    for step in everything:
        if step.get("type") == "Metaspace":
            return step.get("replacement", SPACE_MARK)
        if step.get("type") == "Replace":
            pattern, content = _pattern(step), step.get("content")
            if pattern == " " and content:
                return content
            if content == " " and pattern == SPACE_MARK:
                return pattern
    return None


def _pattern(step: Data) -> Any:
    pattern = step.get("pattern")
    return pattern.get("String") if isinstance(pattern, dict) else pattern


def _dummy(normalizers: list[Data], before: list[Data]) -> str:
    if any(step.get("type") == "Prepend" and step.get("prepend") in (SPACE_MARK, " ") for step in normalizers):
        return "each"
    for step in before:
        if step.get("type") == "Metaspace":
            # Files from before prepend_scheme say add_prefix_space.
            scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
            return {"first": "first", "always": "each"}.get(scheme, "none")
        if step.get("type") == "ByteLevel" and step.get("add_prefix_space"):
            return "each"
    return "none"
