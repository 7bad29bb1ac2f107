"""Train a tokenizer on texts: byte-level BPE, or SentencePiece."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer as Backend, decoders, models, pre_tokenizers, trainers

from ..data.records import texts_of
from ..errors import SproutError
from .cuts import Cjk, Digits, Rules, Spaces, pre_tokenizer, training_pre_tokenizer
from .reading import Sample, Used, read
from .template import CHATML
from .tokenizer import CONTROL_TOKENS, END_OF_TEXT, PAD, UNKNOWN, Tokenizer

LEAST_VOCAB_SIZE = 256 + len(CONTROL_TOKENS)
# What the chat template writes in every turn. Fed along with every text, because plain documents lack these words and
# "assistant" would cost nine tokens in each reply; their dozen merges are well spent.
TEMPLATE_WORDS = "system\nuser\nassistant\n"
SENTENCEPIECE = {"sentencepiece_bpe": "bpe", "sentencepiece_unigram": "unigram"}


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    *,
    kind: str = "byte_bpe",
    digits: Digits = "single",
    spaces: Spaces = "single",
    cjk: Cjk = "runs",
    sample: Sample = "spread",
    seed: int = 0,
    max_bytes: int = 200_000_000,
    say: Callable[[str], None] | None = None,
    used: Used | None = None,
) -> Tokenizer:
    """A tokenizer of ``vocab_size`` ids (fewer where the text has too few different pieces; ``say`` hears of it).

    Uses at most ``max_bytes`` bytes of text: an even sample of all of it (``sample="spread"``), or its beginning
    (``"first"``, which reads no further); ``reading.read`` says how. Memory is bounded by ``max_bytes`` (spread) and the
    number of different pieces. The same texts give the same bytes of ``tokenizer.json``. ``used`` is filled with how much
    text was read and used.
    """
    if vocab_size < LEAST_VOCAB_SIZE:
        raise SproutError(
            f"vocab_size={vocab_size} is too small: 256 bytes and {len(CONTROL_TOKENS)} control tokens need at least "
            f"{LEAST_VOCAB_SIZE}; set tokenizer.vocab_size to {LEAST_VOCAB_SIZE} or more"
        )
    say = say or (lambda sentence: None)
    rules, used = Rules(digits, spaces, cjk), used or Used(sample, max_bytes)
    used.sample, used.max_bytes = sample, max_bytes
    pieces = _at_least_one(read(texts, used, seed=seed, say=say))
    if kind in SENTENCEPIECE:
        tokenizer = _sentencepiece(pieces, vocab_size, SENTENCEPIECE[kind], rules, max_bytes, say)
    elif kind == "byte_bpe":
        tokenizer = _byte_bpe(pieces, vocab_size, rules)
    else:
        raise SproutError(f"tokenizer.kind={kind!r} is not known; choose byte_bpe, {' or '.join(SENTENCEPIECE)}")
    if used.cut:
        say(used.sentence())
    if tokenizer.vocab_size < vocab_size:
        say(
            f"tokenizer: {used.used:,} bytes of text have only enough different pieces for "
            f"{tokenizer.vocab_size:,} ids, not {vocab_size:,}; the smaller size is used"
        )
    return tokenizer


def _byte_bpe(pieces: Iterator[str], vocab_size: int, rules: Rules) -> Tokenizer:
    backend = Backend(models.BPE())
    backend.pre_tokenizer = training_pre_tokenizer(rules)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(t, special=True, normalized=False) for t in CONTROL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    fed = (f"{piece}\n{TEMPLATE_WORDS}" for piece in pieces)  # a line break stands alone: it joins no merge
    backend.train_from_iterator(fed, trainer=trainer)
    backend.pre_tokenizer = pre_tokenizer(rules)
    return Tokenizer(backend.to_str(), tokenizer_config(), where="new tokenizer")


def _sentencepiece(
    pieces: Iterator[str], vocab_size: int, model: str, rules: Rules, max_bytes: int, say: Callable[[str], None]
) -> Tokenizer:
    from .spm_train import train_sentencepiece

    return train_sentencepiece(
        pieces,
        vocab_size,
        model=model,
        digits=rules.digits,
        cjk=rules.cjk,
        spaces=rules.spaces,
        max_bytes=max_bytes,
        say=say,
    )


def _at_least_one(pieces: Iterator[str]) -> Iterator[str]:
    some = False
    for piece in pieces:
        some = some or bool(piece)
        yield piece
    if not some:
        raise SproutError("no text to train a tokenizer on: every row was empty; check the data's columns and format")


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


def train_from_files(
    files: Iterable[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    vocab_size: int,
    *,
    format: str = "auto",
    columns: dict[str, str] | None = None,
    on_bad_row: str = "error",
    max_bytes: int = 200_000_000,
    say: Callable[[str], None] | None = None,
    **options: Any,
) -> Tokenizer:
    """Train on files of any format that ``data`` reads and save into the folder ``out``; ``options`` are those of
    ``train_tokenizer``.
    """
    from ..config.schema import SourceConfig
    from ..data.sources import Counts, read_records

    how: dict[str, Any] = {"format": format, "columns": columns or {}, "role_order": "any"}  # only the words count here
    sources = [SourceConfig(path=str(file), **how) for file in files]
    counts = Counts()
    records = read_records(sources, on_bad_row, counts)
    texts = (text for record in records for text in texts_of(record))
    tokenizer = train_tokenizer(texts, vocab_size, max_bytes=max_bytes, say=say, **options)
    if say and counts.dropped:
        for sentence in counts.lines():
            say(sentence)
    tokenizer.save(Path(out))
    tokenizer.where = str(Path(out) / "tokenizer.json")
    return tokenizer
