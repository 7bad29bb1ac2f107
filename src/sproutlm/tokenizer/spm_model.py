"""Read a SentencePiece model file. It is one protocol-buffer message; the few fields that matter are read by hand,
because the generated reader would pull in the whole protobuf package.

Field numbers: sentencepiece_model.proto of google/sentencepiece 0.2.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from ..errors import SproutError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE, WORD, CHAR = range(1, 5)
KINDS = {UNIGRAM: "unigram", BPE: "bpe", WORD: "word", CHAR: "char"}


@dataclass(slots=True)
class SentencePieceModel:
    """What a model file says; ids are places in ``pieces``, each (text, score, type)."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = UNIGRAM
    byte_fallback: bool = False
    unk_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int = -1
    normalizer: str = ""
    charsmap: bytes = b""
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    escape_whitespaces: bool = True
    whitespace_as_suffix: bool = False
    denormalizes: bool = False


def read_model(data: bytes, where: str) -> SentencePieceModel:
    """Parse a model file's bytes. SproutError where they break off or are something else."""
    model, seen = SentencePieceModel(), set()
    try:
        for number, value in _fields(data):
            seen.add(number)
            if number == 1:
                model.pieces.append(_piece(_bytes(value)))
            elif number == 2:
                _trainer(model, _bytes(value))
            elif number == 3:
                _normalizer(model, _bytes(value))
            elif number == 5:
                model.denormalizes = any(n == 2 and v for n, v in _fields(_bytes(value)))
        if not seen >= {1, 2, 3}:  # a file cut between two fields still parses; settings come after the pieces
            raise ValueError("breaks off")
    except (ValueError, IndexError, struct.error, UnicodeDecodeError):
        raise SproutError(
            f"{where}: not a whole SentencePiece model ({len(data):,} bytes, {len(model.pieces):,} pieces could be read); "
            "the file is damaged or cut off, copy it again"
        ) from None
    return model


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1:
            text = _bytes(value).decode()
        elif number == 2:
            (score,) = struct.unpack("<f", _bytes(value))
        elif number == 3:
            kind = _number(value)
    return text, score, kind


def _trainer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 3:
            model.kind = _number(value)
        elif number == 24:
            model.whitespace_as_suffix = bool(value)
        elif number == 35:
            model.byte_fallback = bool(value)
        elif number in (40, 41, 42, 43):
            name = {40: "unk_id", 41: "bos_id", 42: "eos_id", 43: "pad_id"}[number]
            setattr(model, name, _signed(_number(value)))


def _normalizer(model: SentencePieceModel, data: bytes) -> None:
    for number, value in _fields(data):
        if number == 1:
            model.normalizer = _bytes(value).decode()
        elif number == 2:
            model.charsmap = _bytes(value)
        elif number == 3:
            model.add_dummy_prefix = bool(value)
        elif number == 4:
            model.remove_extra_whitespaces = bool(value)
        elif number == 5:
            model.escape_whitespaces = bool(value)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(field number, value) of one message: numbers as int, everything else as bytes. ValueError where it breaks off."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, place = _varint(data, place)
            yield number, value
            continue
        if wire == 2:
            length, place = _varint(data, place)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError("no such wire type")
        if number == 0 or place + length > len(data):
            raise ValueError("breaks off")
        yield number, data[place : place + length]
        place += length


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number without end")


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where text was expected")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("text where a number was expected")
    return value


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
