"""Text to token ids and back: a thin wrapper over ``tokenizers.Tokenizer`` that never reads control tokens out of text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ..errors import SproutError
from .locate import (
    config_beside,
    find_tokenizer,
    find_tokenizer_folder as find_tokenizer_folder,
    parse_object,
    read_text,
)
from .spelling import BYTE_OF_CHARACTER as BYTE_OF_CHARACTER, Spelling
from .text_only import BYTE_TOKEN, Data, check_shape, is_control, keep_gaps, model_ids, text_encoders

END_OF_TEXT, PAD, UNKNOWN = "<|endoftext|>", "<|pad|>", "<|unk|>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

# Control tokens of the tokenizers that we train: ids 0, 1, 2 ... in this order, for good. Names for thinking and tools
# and a few free ones are there from the start, because adding one later changes the shape of a trained model.
CONTROL_TOKENS: tuple[str, ...] = (
    END_OF_TEXT, PAD, UNKNOWN, TURN_START, TURN_END,
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>",
    "<|reserved_0|>", "<|reserved_1|>", "<|reserved_2|>", "<|reserved_3|>", "<|reserved_4|>",
)  # fmt: skip

# Where a foreign tokenizer does not name its end token, these are tried in order.
_KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")
_SPARE = re.compile(r"pad|reserved|unused|extra", re.IGNORECASE)


# Texts on which tokenizers are known to lose something; with the 256 bytes, they decide ``Tokenizer.byte_exact``.
_PROBES = (
    "Two  blanks, a Capital and a\ttab; “full width”，１２３！", " blank first", "  two first", "blank last ",
    "\n\r\n\n \r", "\u3000 \u00a0", "Ünï \u200b e\u0301 ﬁ 👩\u200d👩 𠀀 \x00\x7f \ufffd", "<0x41> ## ##ing </s>",
)  # fmt: skip


def token_name(value: Any) -> str | None:
    """A token in ``tokenizer_config.json`` is a string or an object with ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


class Tokenizer:
    """Any ``tokenizer.json``: byte-level BPE, BPE or Unigram with byte fallback (SentencePiece's kinds), WordPiece.

    ``encode`` has control tokens off: ``"<|im_end|>"`` in a text stays text. Only ``token_id`` (and the chat template,
    for what it wrote itself) makes control ids. Safe to share between threads; pickles as its JSON.

    ``byte_exact``: whether every text comes back byte for byte (up to NFC where the file asks for that form; and a "▁"
    comes back as a blank where it stands for one). ``dummy_blank``: where the tokenizer puts a blank of its own before
    a text: ``none``, at its start (``first``), or after every control token, too (``each``).
    ``notes`` holds sentences about choices made while loading (a missing pad token, say) and about what is lost; empty
    for our own tokenizers.
    """

    def __init__(self, tokenizer_json: str, config: dict[str, Any] | None = None, *, where: str = "tokenizer.json"):
        self._json = tokenizer_json
        self.config: dict[str, Any] = dict(config or {})
        self.where = where
        self.notes: list[str] = []
        self._build()

    def _build(self) -> None:
        data = parse_object(self._json, self.where)
        check_shape(data, self.where)
        if moved := keep_gaps(data):
            self._json = json.dumps(data, ensure_ascii=False)
            self.notes.append(
                f"{self.where}: there are gaps between its ids, which the tokenizers library would close; {len(moved)} "
                f"added tokens (first: {moved[0]!r}) were written into the vocabulary, so that they keep their ids"
            )
        vocabulary, added = model_ids(data), data["added_tokens"]
        self.control_tokens: dict[str, int] = {t["content"]: t["id"] for t in added if is_control(t)}
        unknown = data["model"].get("unk_token")
        if unknown in vocabulary:  # some files do not add the unknown token that their model names
            self.control_tokens.setdefault(unknown, vocabulary[unknown])
        self.vocab_size: int = max([*vocabulary.values(), *(t["id"] for t in added)], default=-1) + 1
        spelling = Spelling.of(data)
        self.dummy_blank: str = spelling.dummy
        self._bytes = spelling.table(data, self.control_tokens, self.vocab_size)
        self._control_text = {id_: text for text, id_ in self.control_tokens.items()}
        self._encoder, self._inside = text_encoders(data, self.control_tokens, self.where)
        self._byte_ids: frozenset[int] = frozenset()
        if data["model"].get("type") == "Unigram" and spelling.byte_fallback:
            self._byte_ids = frozenset(id_ for token, id_ in vocabulary.items() if BYTE_TOKEN.fullmatch(token))
        self._name_tokens(unknown)
        plain = spelling.byte_level and not data.get("normalizer") and spelling.dummy == "none" and not spelling.prefix
        lost = _lost_bytes(self._bytes) or (None if plain else self._lost_text(data))
        self.byte_exact = lost is None
        if lost:
            kind = data["model"].get("type", "of an unnamed type")
            self.notes.append(f"{self.where}: this tokenizer ({kind}) is not byte-exact: {lost}")

    def _lost_text(self, data: Data) -> str | None:
        """The first probe that does not survive, as half a sentence."""
        composes = (data.get("normalizer") or {}).get("type") == "NFC"
        for probe in _PROBES:
            wanted = unicodedata.normalize("NFC", probe) if composes else probe
            got = self.decode(self.encode(probe))
            if got != wanted:
                return f"{probe!r} comes back as {got!r}"
        return None

    def _name_tokens(self, model_unknown: str | None) -> None:
        """Settle eos, pad and unk. Never makes pad = eos without a word: a loss that ignores pad would untrain the end."""
        eos = token_name(self.config.get("eos_token"))
        if eos is not None and eos not in self.control_tokens:
            raise SproutError(
                f"{self.where}: eos_token {eos!r} of tokenizer_config.json is not among the added tokens of "
                "tokenizer.json; the two files belong to different tokenizers"
            )
        if eos is None:
            eos = next((name for name in _KNOWN_ENDS if name in self.control_tokens), None)
        if eos is None:
            raise SproutError(
                f"{self.where}: no end token; name one as eos_token in tokenizer_config.json "
                f"(control tokens there are: {', '.join(self.control_tokens) or 'none'})"
            )
        self.eos_id: int = self.control_tokens[eos]
        unknown = self._named("unk_token", {self.eos_id})
        if unknown is None and self.control_tokens.get(model_unknown or "", self.eos_id) != self.eos_id:
            unknown = self.control_tokens[model_unknown or ""]
        pad = self._named("pad_token", {self.eos_id})
        spare = [i for text, i in self.control_tokens.items() if i != self.eos_id and _SPARE.search(text)]
        if pad is None:
            pad = next((i for i in spare if i != unknown), unknown)
            if pad is None:
                pad = self.eos_id
                self.notes.append(
                    f"{self.where}: no token is left for padding, so pad = eos = {eos!r}; add a pad token to the "
                    "tokenizer before training with anything that ignores pad in the loss"
                )
                warnings.warn(self.notes[-1], stacklevel=4)
            else:
                self.notes.append(f"{self.where}: no pad token of its own; {self.token_text(pad)!r} pads")
        if unknown is None:
            unknown = next((i for i in spare if i != pad), pad)
        self.pad_id: int = pad
        self.unk_id: int = unknown
        # What was settled is written down: templates say eos_token, and transformers is to pad and stop with the same ids.
        self.config["eos_token"] = self.config.get("eos_token") or eos
        if (
            pad != self.eos_id and token_name(self.config.get("pad_token")) is None
        ):  # a stated pad = eos: doctor names it
            self.config["pad_token"] = self.token_text(pad)
        turn_end = self.control_tokens.get(TURN_END, self.eos_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((turn_end, self.eos_id)))

    def _named(self, key: str, taken: set[int]) -> int | None:
        id_ = self.control_tokens.get(token_name(self.config.get(key)) or "")
        return None if id_ in taken else id_

    # --- text -> ids ------------------------------------------------------------------------------------------------

    def encode(self, text: str, *, at_start: bool = True) -> list[int]:
        """Ids of ``text``, control tokens off. SproutError where the text is not valid Unicode.

        ``at_start=False``: the text comes after a control token, where the tokenizer may write no blank of its own.
        """
        return self._encoding(text, at_start).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of several texts at once, on the threads that the ``tokenizers`` library takes."""
        try:
            return [e.ids for e in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError):
            return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str, *, at_start: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and, for each, its span in characters. Tokens that share one character have the same span."""
        encoding = self._encoding(text, at_start)
        if self._byte_ids:
            return encoding.ids, self._spans_of_runs(encoding.ids, encoding.offsets)
        return encoding.ids, encoding.offsets

    def _spans_of_runs(self, ids: list[int], offsets: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Unigram gives a whole run of unknown characters one span; each byte gets that of its own character."""
        spans = list(offsets)
        begin = 0
        while begin < len(ids):
            end = begin + 1
            if ids[begin] in self._byte_ids:
                while end < len(ids) and ids[end] in self._byte_ids and offsets[end] == offsets[begin]:
                    end += 1
                start, stop = offsets[begin]
                leads = [self._bytes[id_][0] & 0xC0 != 0x80 for id_ in ids[begin:end]]  # not a continuation byte
                if stop - start > 1 and sum(leads) == stop - start:
                    place = start - 1
                    for i, lead in enumerate(leads, begin):
                        place += lead
                        spans[i] = (place, place + 1)
            begin = end
        return spans

    def _encoding(self, text: str, at_start: bool) -> tokenizers.Encoding:
        try:
            return (self._encoder if at_start else self._inside).encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise _not_text(text) from None

    def token_id(self, control_token: str) -> int:
        """Id of a control token by name."""
        if control_token not in self.control_tokens:
            raise SproutError(
                f"{self.where}: no control token {control_token!r}; there are: {', '.join(self.control_tokens)}"
            )
        return self.control_tokens[control_token]

    # --- ids -> text ------------------------------------------------------------------------------------------------

    def decode_bytes(self, ids: Iterable[int], keep_control: bool = False, *, after: int | None = None) -> bytes:
        """Exact bytes; control tokens, and ids beyond the vocabulary (a model may have spare rows), give none.

        ``after``: the id that stands before ``ids`` where they continue something; None where a text starts. A blank
        that the tokenizer itself put before a text (``dummy_blank``) is taken away again.
        """
        pieces = []
        if self.dummy_blank == "none":
            table, size = self._bytes, self.vocab_size
            for id_ in ids:
                if keep_control and id_ in self._control_text:
                    pieces.append(self._control_text[id_].encode())
                elif 0 <= id_ < size:
                    pieces.append(table[id_])
            return b"".join(pieces)
        fresh = self.begins_text(after)
        for id_ in ids:
            piece, fresh = self.spell(id_, fresh)
            pieces.append(self._control_text[id_].encode() if keep_control and id_ in self._control_text else piece)
        return b"".join(pieces)

    def begins_text(self, after: int | None) -> bool:
        """Whether the token after ``after`` begins a text that the tokenizer put a blank before."""
        if after is None:
            return self.dummy_blank != "none"
        return self.dummy_blank == "each" and after in self._control_text

    def spell(self, id_: int, fresh: bool) -> tuple[bytes, bool]:
        """Bytes of one id, less the tokenizer's own blank where it is ``fresh``, and whether the next one is fresh."""
        if id_ in self._control_text:
            return b"", fresh or self.dummy_blank == "each"
        piece = self.piece(id_)
        if fresh and piece:
            return piece.removeprefix(b" "), False
        return piece, fresh

    def piece(self, id_: int) -> bytes:
        """What one id spells, whatever stands before it; nothing for control tokens and ids without a token."""
        return self._bytes[id_] if 0 <= id_ < self.vocab_size else b""

    def decode(self, ids: Iterable[int], keep_control: bool = False, *, after: int | None = None) -> str:
        """Text; bytes that are not UTF-8 become U+FFFD (``StreamDecoder`` is the one for a stream)."""
        return self.decode_bytes(ids, keep_control, after=after).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """(vocab,) int64: how many bytes of text each id stands for; 0 for control tokens.

        A text has one byte less than its tokens together where the tokenizer put a blank before it (``dummy_blank``).
        """
        return np.array([len(piece) for piece in self._bytes], dtype=np.int64)

    def token_text(self, id_: int) -> str:
        """One token for the eye: a control token's name, else its text."""
        if id_ in self._control_text:
            return self._control_text[id_]
        return self.piece(id_).decode("utf-8", errors="replace")

    # --- files ------------------------------------------------------------------------------------------------------

    @property
    def chat_template(self) -> str | None:
        template = self.config.get("chat_template")
        if isinstance(template, list):  # several named templates: the default one
            by_name = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
            template = by_name.get("default")
        return template if isinstance(template, str) else None

    def with_chat_template(self, source: str) -> Tokenizer:
        """The same tokenizer with another chat template."""
        return Tokenizer(self._json, {**self.config, "chat_template": source}, where=self.where)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides ids; the chat template has a fingerprint of its own."""
        data = json.loads(self._json)
        content = {key: data.get(key) for key in ("normalizer", "pre_tokenizer", "model", "added_tokens")}
        content["named"] = [self.eos_id, self.pad_id, self.unk_id]
        canonical = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def backend_json(self) -> dict[str, Any]:
        """``tokenizer.json`` as parsed, for checks and exporters."""
        return json.loads(self._json)

    def files(self) -> dict[str, str]:
        """The tokenizer as text files by name; the chat template is inside ``tokenizer_config.json``."""
        config = dict(self.config)
        if self.chat_template is not None:
            config["chat_template"] = self.chat_template
        return {
            "tokenizer.json": self._json,
            "tokenizer_config.json": json.dumps(config, ensure_ascii=False, indent=2) + "\n",
        }

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write ``files()`` into ``folder``."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        # tokenizer.json comes last and whole: where it stands, the tokenizer is complete, whatever ended the program.
        for name, text in sorted(self.files().items(), reverse=True):
            temporary = folder / f".{name}.tmp"
            temporary.write_bytes(text.encode())
            os.replace(temporary, folder / name)
        (folder / "chat_template.jinja").unlink(missing_ok=True)  # an older template there would win over ours

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Tokenizer:
        """Load from a folder with ``tokenizer.json`` (ours or Hugging Face's) or ``tokenizer.model`` (SentencePiece), a
        checkpoint, a run folder, a file of one of these kinds or NAME.tiktoken, or the name of a tiktoken encoding.
        """
        place = find_tokenizer(path)
        if place.kind == "sentencepiece":
            from .spm import from_sentencepiece

            return from_sentencepiece(place.file)
        if place.kind == "tiktoken":
            from .tiktoken_import import from_tiktoken

            return from_tiktoken(place.file)
        file = Path(place.file)
        return cls(read_text(file), config_beside(file), where=str(file))

    def __getstate__(self) -> tuple[str, dict[str, Any], str]:
        return self._json, self.config, self.where

    def __setstate__(self, state: tuple[str, dict[str, Any], str]) -> None:
        self._json, self.config, self.where = state
        self.notes = []
        self._build()

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, where={self.where!r})"


def _lost_bytes(table: list[bytes]) -> str | None:
    missing = {bytes([byte]) for byte in range(256)}.difference(table)
    if not missing:
        return None
    return f"{len(missing)} bytes have no token of their own (first: 0x{min(missing)[0]:02X})"


def _not_text(text: Any) -> SproutError:
    if not isinstance(text, str):
        return SproutError(f"expected text to encode, found {type(text).__name__}")
    place = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), 0)
    return SproutError(
        f"the text holds half of a surrogate pair (U+{ord(text[place]):04X}, character {place}), which is not Unicode "
        "text; repair the file (a \\uD8xx escape without its second half), or skip the row"
    )
