"""Text to token ids and back: a thin wrapper over ``tokenizers.Tokenizer`` that never reads control tokens out of text."""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from ..errors import SproutError

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
_KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[EOS]")
_SPARE = re.compile(r"pad|reserved|unused|extra", re.IGNORECASE)


def _byte_alphabet() -> dict[str, int]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2's table), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    shifted = [byte for byte in range(256) if byte not in set(printable)]
    table = {chr(byte): byte for byte in printable}
    table.update({chr(256 + i): byte for i, byte in enumerate(shifted)})
    return table


BYTE_OF_CHARACTER = _byte_alphabet()


def token_name(value: Any) -> str | None:
    """A token in ``tokenizer_config.json`` is a string or an object with ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


class Tokenizer:
    """A byte-level BPE tokenizer.

    ``encode`` has control tokens off: ``"<|im_end|>"`` in a text stays text. Only ``token_id`` (and the chat template,
    for what it wrote itself) makes control ids. Safe to share between threads; pickles as its JSON.

    ``notes`` holds sentences about choices made while loading (a missing pad token, say); empty for our own tokenizers.
    """

    def __init__(self, tokenizer_json: str, config: dict[str, Any] | None = None, *, where: str = "tokenizer.json"):
        self._json = tokenizer_json
        self.config: dict[str, Any] = dict(config or {})
        self.where = where
        self.notes: list[str] = []
        self._build()

    def _build(self) -> None:
        data = _parse_object(self._json, self.where)
        if not _is_byte_level(data):
            raise SproutError(
                f"{self.where}: this is not a byte-level tokenizer (model {data.get('model', {}).get('type')!r}, no "
                "ByteLevel step), so its text cannot be rebuilt byte by byte; use a byte-level BPE tokenizer "
                "(Qwen's, Llama 3's, GPT-2's), or train one with `sprout tokenizer train`"
            )
        added: list[dict[str, Any]] = data.get("added_tokens", [])
        # Runs of blanks that some vocabularies add are ordinary text; everything else that was added is control.
        self.control_tokens: dict[str, int] = {
            t["content"]: t["id"] for t in added if t.get("special") or not t["content"].isspace()
        }
        self._added = {t["content"]: t for t in added}
        self._encoder = _text_only_encoder(data, set(self.control_tokens), self.where)
        vocabulary = self._encoder.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocabulary.values()) + 1
        self._bytes = self._table(vocabulary)
        self._control_text = {id_: text for text, id_ in self.control_tokens.items()}
        self._name_tokens()

    def _table(self, vocabulary: dict[str, int]) -> list[bytes]:
        """Bytes of every id; empty for control tokens and for ids that no token has."""
        table = [b""] * self.vocab_size
        for token, id_ in vocabulary.items():
            if token in self._added:
                table[id_] = b"" if token in self.control_tokens else token.encode()
            elif all(character in BYTE_OF_CHARACTER for character in token):
                table[id_] = bytes(BYTE_OF_CHARACTER[character] for character in token)
            else:
                table[id_] = token.encode()
        return table

    def _name_tokens(self) -> None:
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
        turn_end = self.control_tokens.get(TURN_END, self.eos_id)
        self.stop_ids: tuple[int, ...] = tuple(dict.fromkeys((turn_end, self.eos_id)))

    def _named(self, key: str, taken: set[int]) -> int | None:
        id_ = self.control_tokens.get(token_name(self.config.get(key)) or "")
        return None if id_ in taken else id_

    # --- text -> ids ------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, control tokens off. SproutError where the text is not valid Unicode."""
        return self._encoding(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """``encode`` of several texts at once, on the threads that the ``tokenizers`` library takes."""
        try:
            return [e.ids for e in self._encoder.encode_batch_fast(list(texts), add_special_tokens=False)]
        except (UnicodeEncodeError, TypeError):
            return [self.encode(text) for text in texts]

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids and, for each, its span in characters. Tokens that share one character have the same span."""
        encoding = self._encoding(text)
        return encoding.ids, encoding.offsets

    def _encoding(self, text: str) -> tokenizers.Encoding:
        try:
            return self._encoder.encode(text, add_special_tokens=False)
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

    def decode_bytes(self, ids: Iterable[int], keep_control: bool = False) -> bytes:
        """Exact bytes; control tokens, and ids beyond the vocabulary (a model may have spare rows), give none."""
        table, size = self._bytes, self.vocab_size
        pieces = []
        for id_ in ids:
            if keep_control and id_ in self._control_text:
                pieces.append(self._control_text[id_].encode())
            elif 0 <= id_ < size:
                pieces.append(table[id_])
        return b"".join(pieces)

    def decode(self, ids: Iterable[int], keep_control: bool = False) -> str:
        """Text; bytes that are not UTF-8 become U+FFFD (``StreamDecoder`` is the one for a stream)."""
        return self.decode_bytes(ids, keep_control).decode("utf-8", errors="replace")

    def token_bytes(self) -> np.ndarray:
        """(vocab,) int64: how many bytes of text each id stands for; 0 for control tokens."""
        return np.array([len(piece) for piece in self._bytes], dtype=np.int64)

    def token_text(self, id_: int) -> str:
        """One token for the eye: a control token's name, else its text."""
        return self.decode([id_], keep_control=True)

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
        """Load from a folder with ``tokenizer.json`` (ours or Hugging Face's), a checkpoint, or a run folder."""
        folder = find_tokenizer_folder(Path(path))
        file = folder / "tokenizer.json"
        config_file = folder / "tokenizer_config.json"
        config = _parse_object(_read(config_file), str(config_file)) if config_file.exists() else {}
        jinja = folder / "chat_template.jinja"
        if jinja.exists():
            config["chat_template"] = _read(jinja)
        return cls(_read(file), config, where=str(file))

    def __getstate__(self) -> tuple[str, dict[str, Any], str]:
        return self._json, self.config, self.where

    def __setstate__(self, state: tuple[str, dict[str, Any], str]) -> None:
        self._json, self.config, self.where = state
        self.notes = []
        self._build()

    def __repr__(self) -> str:
        return f"Tokenizer(vocab_size={self.vocab_size}, where={self.where!r})"


def find_tokenizer_folder(path: Path) -> Path:
    """The folder that holds ``tokenizer.json``: ``path``, or inside a run its ``model/`` or newest whole checkpoint."""
    if path.name == "tokenizer.json" and path.is_file():
        return path.parent
    if not path.exists():
        raise SproutError(f"{path}: no such folder; give a tokenizer's folder, a run folder or a Hugging Face folder")
    checkpoints = sorted(path.glob("checkpoints/step-*"), reverse=True)
    whole = [folder for folder in checkpoints if (folder / "COMPLETE").exists()]
    for folder in (path, path / "model", *whole, path / "tokenizer"):
        if (folder / "tokenizer.json").is_file():
            return folder
    if (path / "tokenizer.model").exists():
        raise SproutError(
            f"{path}: only tokenizer.model (SentencePiece) is there and no tokenizer.json; save it with "
            "transformers' AutoTokenizer first, which writes tokenizer.json"
        )
    raise SproutError(
        f"{path}: no tokenizer.json there, nor in its model/ or checkpoints/; give a tokenizer's folder, "
        "a run folder or a Hugging Face folder, or train one with `sprout tokenizer train`"
    )


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SproutError(f"{file}: not UTF-8 text (byte {error.start}); the file is damaged, copy it again") from None
    except OSError as error:
        raise SproutError(f"{file}: cannot be read ({error.strerror})") from None


def _parse_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise SproutError(
            f"{where}:{error.lineno}: not JSON ({error.msg}); the file is damaged, copy it again"
        ) from None
    if not isinstance(value, dict):
        raise SproutError(f"{where}: expected a JSON object, found {type(value).__name__}")
    return value


def _is_byte_level(data: dict[str, Any]) -> bool:
    steps = json.dumps([data.get("pre_tokenizer"), data.get("decoder")])
    return '"ByteLevel"' in steps


def _text_only_encoder(data: dict[str, Any], control: set[str], where: str) -> tokenizers.Tokenizer:
    """An encoder for text alone: no control token is ever recognised, nothing is added, cut or padded.

    ``encode_special_tokens`` switches off only the added tokens that are marked special, and many folders leave
    ``<think>`` and the like unmarked, so every control token is marked here. Post-processors go: they add a first
    token (pitfall 7) and trim the offsets that masks are made from.
    """
    added = [{**t, "special": t.get("special") or t["content"] in control} for t in data.get("added_tokens", [])]
    text_only = {**data, "added_tokens": added, "post_processor": None, "truncation": None, "padding": None}
    try:
        encoder = tokenizers.Tokenizer.from_str(json.dumps(text_only, ensure_ascii=False))
    except BaseException as error:  # the library raises bare Exception, and where its Rust code panics, not even that
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise SproutError(f"{where}: the tokenizers library cannot read this file ({error})") from None
    encoder.encode_special_tokens = True
    return encoder


def _not_text(text: Any) -> SproutError:
    if not isinstance(text, str):
        return SproutError(f"expected text to encode, found {type(text).__name__}")
    place = next((i for i, c in enumerate(text) if "\ud800" <= c <= "\udfff"), 0)
    return SproutError(
        f"the text holds half of a surrogate pair (U+{ord(text[place]):04X}, character {place}), which is not Unicode "
        "text; repair the file (a \\uD8xx escape without its second half), or skip the row"
    )
