"""Train a byte-level BPE tokenizer on texts."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer as Backend, decoders, models, pre_tokenizers, trainers

from ..data.records import Labelled, Record, Text, messages_of
from ..errors import SproutError
from .template import CHATML
from .tokenizer import CONTROL_TOKENS, END_OF_TEXT, PAD, UNKNOWN, Tokenizer

LEAST_VOCAB_SIZE = 256 + len(CONTROL_TOKENS)
PIECE_CHARACTERS = 65_536
# What the chat template writes in every turn. Fed along with every text, because plain documents lack these words and
# "assistant" would cost nine tokens in each reply; their dozen merges are well spent.
TEMPLATE_WORDS = "system\nuser\nassistant\n"

# Where text is cut before merges are learned; merges never cross a cut. Five rules, each applied to what the one
# before left whole:
#   each line break stands alone -- so "assistant\n" at the head of a turn has the same ids whatever follows it, and a
#     prompt's ids are always a prefix of the whole conversation's (a GPT-4-style rule glues "\n\n" together);
#   a run of letters, with at most one blank before it;
#   a run of punctuation, likewise -- so "，" never sticks to a word and "，" + word needs no entry of its own;
#   runs of Chinese, Japanese or Korean letters apart from Latin ones ("用Python写" is three pieces);
#   digits one by one -- so that numbers have one spelling and sums can be learned column by column.
# It is the same cut that llama.cpp knows as "deepseek-coder", so a model exports there without a patch.
_LINE_BREAK = r"[\r\n]"
_LETTERS = r"\s?\p{L}+"
_PUNCTUATION = r"\s?\p{P}+"
_EAST_ASIAN = r"[一-龥ࠀ-一가-퟿]+"


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)


def _untrained() -> Backend:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(_split(pattern) for pattern in (_LINE_BREAK, _LETTERS, _PUNCTUATION, _EAST_ASIAN)),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    return backend


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    max_bytes: int = 200_000_000,
    say: Callable[[str], None] | None = None,
) -> Tokenizer:
    """A tokenizer of ``vocab_size`` ids (fewer where the text has too few different pieces; ``say`` hears of it).

    Reads at most ``max_bytes`` bytes of text, in memory bounded by the number of different pieces.
    The same texts give the same bytes of ``tokenizer.json``.
    """
    if vocab_size < LEAST_VOCAB_SIZE:
        raise SproutError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {len(CONTROL_TOKENS)} control tokens need at least "
            f"{LEAST_VOCAB_SIZE}; set tokenizer.vocab_size to {LEAST_VOCAB_SIZE} or more"
        )
    say = say or (lambda sentence: None)
    backend = _untrained()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    reading = _Reading(max_bytes)
    backend.train_from_iterator(reading.pieces(texts), trainer=trainer)
    if not reading.bytes:
        raise SproutError("no text to train a tokenizer on: every row was empty; check the data's columns and format")
    if reading.full:
        say(f"tokenizer: read the first {reading.bytes:,} bytes of text (max_bytes={max_bytes:,})")
    tokenizer = Tokenizer(backend.to_str(), tokenizer_config(), where="new tokenizer")
    if tokenizer.vocab_size < vocab_size:
        say(
            f"tokenizer: {reading.bytes:,} bytes of text have only enough different pieces for "
            f"{tokenizer.vocab_size:,} ids, not {vocab_size:,}; the smaller size is used"
        )
    return tokenizer


class _Reading:
    """Feeds texts to the trainer in bounded pieces and counts their bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.full = False

    def pieces(self, texts: Iterable[str]) -> Iterator[str]:
        for text in texts:
            for piece in _cut(text):
                # Half a surrogate pair is no Unicode text; the row is refused where it is encoded, with its line.
                data = piece.encode("utf-8", errors="replace")
                left = self.max_bytes - self.bytes
                if len(data) > left:
                    self.full = True
                    data = data[:left]
                self.bytes += len(data)
                yield data.decode("utf-8", errors="ignore")
                yield TEMPLATE_WORDS
                if self.full:
                    return


def _cut(text: str) -> Iterator[str]:
    """Pieces of at most PIECE_CHARACTERS, cut after a line break where there is one (no merge crosses it)."""
    start = 0
    while len(text) - start > PIECE_CHARACTERS:
        end = start + PIECE_CHARACTERS
        line_break = text.rfind("\n", start, end)
        end = line_break + 1 if line_break > start else end
        yield text[start:end]
        start = end
    if start < len(text):
        yield text[start:]


def tokenizer_config() -> dict[str, Any]:
    """``tokenizer_config.json`` of our own tokenizers; loads in transformers' AutoTokenizer without remote code."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": END_OF_TEXT,
        "pad_token": PAD,
        "unk_token": UNKNOWN,
        "add_bos_token": False,
        "add_eos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(1e30),  # the model's config knows its length; the tokenizer has no limit
        "added_tokens_decoder": {
            str(i): {
                "content": token,
                "lstrip": False,
                "normalized": False,
                "rstrip": False,
                "single_word": False,
                "special": True,
            }
            for i, token in enumerate(CONTROL_TOKENS)
        },
        "chat_template": CHATML,
    }


def texts_of(record: Record) -> Iterator[str]:
    """The text of a record, whatever its kind."""
    if isinstance(record, Text | Labelled):
        yield record.text
    for messages in messages_of(record):
        for message in messages:
            yield message.content
            if message.reasoning_content:
                yield message.reasoning_content


def train_from_files(
    files: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    vocab_size: int,
    *,
    format: str = "auto",
    on_bad_row: str = "error",
    max_bytes: int = 200_000_000,
    say: Callable[[str], None] | None = None,
) -> Tokenizer:
    """Train on files of any format that ``data`` reads and save into the folder ``out``."""
    from ..config.schema import SourceConfig
    from ..data.sources import Counts, read_records

    sources = [SourceConfig(path=str(file), format=format) for file in files]
    records = read_records(sources, on_bad_row, Counts())
    tokenizer = train_tokenizer(
        (text for record in records for text in texts_of(record)), vocab_size, max_bytes=max_bytes, say=say
    )
    tokenizer.save(Path(out))
    tokenizer.where = str(Path(out) / "tokenizer.json")
    return tokenizer
