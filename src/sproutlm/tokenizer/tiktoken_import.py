"""tiktoken's encodings from their rank files, as ``tokenizer.json``. Needs no network and no tiktoken."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .locate import parse_object, read_bytes, read_text
from .merges import merge_of
from .spelling import BYTE_OF_CHARACTER
from .text_only import Data
from .tokenizer import END_OF_TEXT, Tokenizer

_HOST = "https://openaipublic.blob.core.windows.net/"
_CHARACTER_OF_BYTE = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
_RANK_LINE = re.compile(rb"([A-Za-z0-9+/]+={0,2}) (\d+)")

# The cut of each encoding, as tiktoken 0.14 makes it, in the regex dialect of ``tokenizers``: possessive repeats, which
# only save time, are left out (there, ``{1,3}+`` would mean something else), and the end of the text is ``\z``.
_GPT2_CUT = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+\z|\s+(?!\S)|\s"
_CL100K_CUT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s+\z|\s*[\r\n]|\s+(?!\S)|\s"
)
_CAPITALS, _SMALL = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_ENDING = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_O200K_CUT = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}*{_SMALL}+{_ENDING}",
        rf"[^\r\n\p{{L}}\p{{N}}]?{_CAPITALS}+{_SMALL}*{_ENDING}",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)


@dataclass(frozen=True)
class Encoding:
    """What tiktoken pins of an encoding: its rank file with the file's sha256, its cut, its control tokens."""

    cut: str
    special: dict[str, int]
    path: str
    sha256: str

    @property
    def url(self) -> str:
        return _HOST + self.path


_END = {END_OF_TEXT: 50256}
_CL100K_SPECIAL = {
    END_OF_TEXT: 100257, "<|fim_prefix|>": 100258, "<|fim_middle|>": 100259, "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}  # fmt: skip
ENCODINGS = {
    "gpt2": Encoding(
        _GPT2_CUT, _END, "gpt-2/encodings/main/vocab.bpe",
        "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    ),
    "r50k_base": Encoding(
        _GPT2_CUT, _END, "encodings/r50k_base.tiktoken",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
    ),
    "p50k_base": Encoding(
        _GPT2_CUT, _END, "encodings/p50k_base.tiktoken",
        "94b5ca7dff4d00767bc256fdd1b27e5b17361d7b8a5f968547f9f23eb70d2069",
    ),
    "cl100k_base": Encoding(
        _CL100K_CUT, _CL100K_SPECIAL, "encodings/cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    ),
    "o200k_base": Encoding(
        _O200K_CUT, {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}, "encodings/o200k_base.tiktoken",
        "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
    ),
}  # fmt: skip
_ENCODER_JSON = (
    "gpt-2/encodings/main/encoder.json",
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
)


def is_encoding_name(name: str) -> bool:
    """Whether ``name`` is that of a tiktoken encoding, with or without ``tiktoken:`` before it."""
    return name.startswith("tiktoken:") or name in ENCODINGS


def looks_like_ranks(file: Path) -> bool:
    """Whether a file holds tiktoken's ranks: lines of base64 and a number. Llama 3 calls such a file tokenizer.model."""
    with file.open("rb") as stream:
        return _RANK_LINE.fullmatch(stream.readline(300).strip()) is not None


def from_tiktoken(name_or_file: str | os.PathLike[str], *, encoding: str | None = None) -> Tokenizer:
    """A tokenizer with the ids of a tiktoken encoding: gpt2, r50k_base, p50k_base, cl100k_base or o200k_base.

    ``name_or_file`` is the encoding's name (``tiktoken:gpt2`` too), whose ranks are then taken from tiktoken's own cache
    (TIKTOKEN_CACHE_DIR, DATA_GYM_CACHE_DIR), or a file: NAME.tiktoken, or gpt2's vocab.bpe with encoder.json beside it.
    Files of these names must have the pinned sha256. ``encoding`` names the cut for a file of another name, whose
    control tokens then come after its ranks where their usual ids are taken.
    """
    text = str(name_or_file).removeprefix("tiktoken:")
    if text in ENCODINGS and not Path(text).is_file():
        name, file, pinned = text, _cached(text), True
    else:
        file = Path(text)
        name, pinned = _name_of(file, encoding), encoding is None
    known = ENCODINGS[name]
    data = read_bytes(file)
    if pinned and hashlib.sha256(data).hexdigest() != known.sha256:
        raise SproutError(
            f"{file}: not the ranks of {name} as published (sha256 {hashlib.sha256(data).hexdigest()[:12]}…, expected "
            f"{known.sha256[:12]}…); the file is damaged or cut off, copy it again from {known.url}"
        )
    if data.startswith(b"#version") or file.suffix == ".bpe":
        ranks = _gpt2_ranks(data, file, _encoder_beside(file))
    else:
        ranks = _ranks(data, file)
    special = _free_ids(known.special, ranks)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "add_prefix_space": False,
    }
    converted = convert(ranks, known.cut, special)
    return Tokenizer(json.dumps(converted, ensure_ascii=False), config, where=str(file))


def _name_of(file: Path, encoding: str | None) -> str:
    name = encoding or ("gpt2" if file.name == "vocab.bpe" else file.stem)
    if name in ENCODINGS:
        return name
    if encoding is None and file.is_file():
        sha256 = hashlib.sha256(read_bytes(file)).hexdigest()
        for known, found in ENCODINGS.items():
            if found.sha256 == sha256:
                return known
    raise SproutError(
        f"{encoding or file}: no encoding that is known; its ranks alone do not say how text is cut. Known are "
        f"{', '.join(ENCODINGS)}; name the file after its encoding (cl100k_base.tiktoken)"
        + ("" if encoding else ", or load the model's tokenizer.json instead")
    )


def _cached(name: str) -> Path:
    """The encoding's rank file in tiktoken's cache, where files are named by the sha1 of their address."""
    url = ENCODINGS[name].url
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    folder = folder or os.path.join(tempfile.gettempdir(), "data-gym-cache")
    file = Path(folder) / hashlib.sha1(url.encode()).hexdigest()
    if not file.is_file():
        raise SproutError(
            f"the ranks of {name} are not here, and nothing is downloaded: fetch {url} "
            + (f"and {_HOST}{_ENCODER_JSON[0]} into one folder and give the path of vocab.bpe" if name == "gpt2" else
               f"and give the path of the file ({name}.tiktoken)")
            + f", or put it at {file}, which is where tiktoken itself keeps it"
        )  # fmt: skip
    return file


def _encoder_beside(file: Path) -> Path:
    """gpt2's ids: encoder.json beside vocab.bpe, or in tiktoken's cache under the sha1 of its address."""
    names = (hashlib.sha1((_HOST + _ENCODER_JSON[0]).encode()).hexdigest(), "encoder.json", "vocab.json")
    for name in names if file.suffix != ".bpe" else names[1:]:
        if (file.parent / name).is_file():
            return file.parent / name
    raise SproutError(
        f"{file}: encoder.json, which gives the merges their ids, is not beside it; fetch {_HOST}{_ENCODER_JSON[0]} "
        f"and put it there{'' if file.suffix == '.bpe' else f' as {names[0]}'}"
    )


def _ranks(data: bytes, file: Path) -> dict[bytes, int]:
    """Token -> rank from lines of base64 and a number."""
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line:
            continue
        try:
            match = _RANK_LINE.fullmatch(line)
            if match is None:
                raise ValueError
            ranks[base64.b64decode(match.group(1), validate=True)] = int(match.group(2))
        except (ValueError, binascii.Error):
            raise SproutError(
                f"{file}:{number}: expected base64 and a rank, found {line[:40]!r}; the file is damaged or cut off, copy it "
                "again"
            ) from None
    return _whole(ranks, file)


def _whole(ranks: dict[bytes, int], file: Path) -> dict[bytes, int]:
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or len(set(ranks.values())) != len(ranks):
        what = f"{len(missing)} of the 256 bytes have no rank" if missing else "two tokens share a rank"
        raise SproutError(f"{file}: {what}; the file is damaged or cut off, copy it again")
    return ranks


def _gpt2_ranks(data: bytes, file: Path, encoder: Path) -> dict[bytes, int]:
    """Ranks from gpt2's two files; the ids of encoder.json are ranks, too, in the order of the merges."""
    ids = parse_object(read_text(encoder), str(encoder))
    if not all(isinstance(id_, int) for id_ in ids.values()):
        raise SproutError(f"{encoder}: expected tokens with their ids; copy it again from {_HOST}{_ENCODER_JSON[0]}")

    def plain(token: str) -> bytes:
        return bytes(BYTE_OF_CHARACTER[character] for character in token)

    special = {END_OF_TEXT, "<|startoftext|>"}
    try:
        ranks = {plain(token): id_ for token, id_ in ids.items() if token not in special}
        pairs = [line.split() for line in data.decode().split("\n")[1:] if line.strip()]
        places = [ranks[plain(left + right)] for left, right in pairs]
    except (KeyError, ValueError):
        places = [0, 0]
    if any(a >= b for a, b in zip(places, places[1:], strict=False)):
        raise SproutError(f"{file}: its merges and the ids of {encoder.name} do not agree; copy both files again")
    return _whole(ranks, file)


def _free_ids(special: dict[str, int], ranks: dict[bytes, int]) -> dict[str, int]:
    taken, following = set(ranks.values()), max(ranks.values()) + 1
    if taken.isdisjoint(special.values()):
        return special
    return {token: following + i for i, token in enumerate(special)}


def convert(ranks: dict[bytes, int], cut: str, special: dict[str, int]) -> Data:
    """``tokenizer.json``, as parsed, that gives tiktoken's ids. Ids may have gaps, as cl100k_base's have."""

    def written(token: bytes) -> str:
        return "".join(_CHARACTER_OF_BYTE[byte] for byte in token)

    long = sorted((token for token in ranks if len(token) > 1), key=ranks.__getitem__)
    merges = [[written(part) for part in pair] for token in long if (pair := merge_of(token, ranks))]
    step: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": cut}, "behavior": "Isolated", "invert": False}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    if cut == _GPT2_CUT:  # the step's own cut is the same one, and other programs know gpt2 by it
        before = {**step, "use_regex": True}
    else:
        before = {"type": "Sequence", "pretokenizers": [split, step]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": id_, "content": token, **flags} for token, id_ in special.items()],
        "normalizer": None,
        "pre_tokenizer": before,
        "post_processor": None,
        "decoder": {**step, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,  # tiktoken looks a whole piece up before it merges
            # Control tokens stand in the vocabulary, too, so that the library leaves their ids as they are.
            "vocab": {**{written(token): rank for token, rank in ranks.items()}, **special},
            "merges": merges,
        },
    }
