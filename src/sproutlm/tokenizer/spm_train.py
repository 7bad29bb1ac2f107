"""Train a SentencePiece tokenizer, BPE or unigram, whose texts come back byte for byte."""

from __future__ import annotations

import io
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, pre_tokenizers

from ..errors import SproutError
from .tokenizer import CONTROL_TOKENS, END_OF_TEXT, PAD, UNKNOWN, Tokenizer

LEAST_VOCAB_SIZE = 256 + len(CONTROL_TOKENS) + 16
# Different pieces of text held at once. Beyond this, the rarest are forgotten, which the result can hardly notice: they
# stand in the text a few times in a million, and what they are made of is counted in other pieces.
MOST_PIECES = 4_000_000
_LONGEST = 512  # characters of one piece; the trainer skips longer lines than 4,192 bytes
_COVERAGE = 0.9995  # share of the text whose letters have pieces of their own
# One fixed number: unigram training adds up floats per thread, so that the number of cores must not decide it.
_THREADS = 4

_EAST_ASIAN = r"一-龥ࠀ-一가-퟿"
_CJK_RULE = {"runs": f"[{_EAST_ASIAN}]+", "single": f"[{_EAST_ASIAN}]"}
_DIGIT_RULE = {"single": r"\p{N}", "groups": r"\p{N}{1,3}"}


def train_sentencepiece(
    texts: Iterable[str],
    vocab_size: int,
    *,
    model: str = "bpe",
    digits: str = "single",
    cjk: str = "runs",
    spaces: str = "single",
    max_bytes: int = 200_000_000,
    say: Callable[[str], None] | None = None,
) -> Tokenizer:
    """A tokenizer of ``vocab_size`` ids (fewer where the text has too few different pieces).

    ``model`` is ``bpe`` or ``unigram``. Control tokens come first, in the order of CONTROL_TOKENS, then the 256 bytes,
    then pieces. Nothing normalises and no blank is added. ``digits`` (single, groups of up to three, free), ``cjk``
    (runs, single, free) and ``spaces`` (single, runs) say where pieces end.

    Line breaks and tabs are byte tokens, one each: pieces never hold them. Reads at most ``max_bytes`` of text once;
    memory is bounded by the number of different pieces. The same texts give the same bytes of ``tokenizer.json``.
    """
    _check(vocab_size, model)
    say = say or (lambda sentence: None)
    counts = _count(texts, _cutter(digits, cjk, spaces), max_bytes, say)
    counts = _without_rare_letters(counts, (vocab_size - 256 - len(CONTROL_TOKENS)) // 2)
    proto = _train(counts, vocab_size, model, cjk, digits, spaces)
    return _converted(proto)


def _check(vocab_size: int, model: str) -> None:
    if model not in ("bpe", "unigram"):
        raise SproutError(f"SentencePiece model {model!r} is unknown; expected bpe or unigram")
    if vocab_size < LEAST_VOCAB_SIZE:
        raise SproutError(
            f"vocab_size={vocab_size} is too small: 256 bytes, {len(CONTROL_TOKENS)} control tokens and a few letters need "
            f"at least {LEAST_VOCAB_SIZE}; set tokenizer.vocab_size to {LEAST_VOCAB_SIZE} or more"
        )


def _cutter(digits: str, cjk: str, spaces: str) -> pre_tokenizers.PreTokenizer:
    """Where text is cut before pieces are learned: at blanks (a blank joins what follows), and as the options say."""

    def split(pattern: str, behavior: str = "isolated") -> pre_tokenizers.PreTokenizer:
        return pre_tokenizers.Split(Regex(pattern), behavior=behavior)

    blanks = split(" {2,}| ?[^ ]+") if spaces == "runs" else split(" ", "merged_with_next")
    rules = [split(table[option]) for table, option in ((_CJK_RULE, cjk), (_DIGIT_RULE, digits)) if option in table]
    # Control characters end a piece and are in none: in the trainer's file, tabs and line breaks mean something else.
    return pre_tokenizers.Sequence([split(r"[\x00-\x1f\x7f▁]+", "removed"), blanks, split(r" ?\p{P}+"), *rules])


def _count(
    texts: Iterable[str], cutter: pre_tokenizers.PreTokenizer, max_bytes: int, say: Callable[[str], None]
) -> Counter[str]:
    """How often each piece stands in the first ``max_bytes`` of the texts."""
    from .reading import Used, read
    from .train import TEMPLATE_WORDS

    counts: Counter[str] = Counter()
    n_texts = forgotten = 0
    used = Used("first", max_bytes)
    for text in read(texts, used, say=say):
        n_texts += 1
        counts.update(piece for piece, _ in cutter.pre_tokenize_str(text))
        if len(counts) > MOST_PIECES:
            before = len(counts)
            least = sorted(counts.values())[before // 2]
            counts = Counter({piece: n for piece, n in counts.items() if n > least})
            forgotten += before - len(counts)
    if not counts:
        raise SproutError("no text to train a tokenizer on: every row was empty; check the data's columns and format")
    for word in TEMPLATE_WORDS.split():  # as often as with byte_bpe, for the same reason
        counts[word] += n_texts
    if used.cut:
        say(used.sentence())
    if forgotten:
        say(f"tokenizer: {forgotten:,} of the rarest pieces of text were left out to bound memory")
    return counts


def _train(counts: Counter[str], vocab_size: int, model: str, cjk: str, digits: str, spaces: str) -> bytes:
    """The model's bytes, learned from pieces and their counts."""
    try:
        import sentencepiece
    except ImportError:
        raise SproutError(
            'training a SentencePiece tokenizer needs sentencepiece; install it with: pip install "sproutlm[data]", or '
            "set tokenizer.kind to byte_bpe"
        ) from None
    special = {END_OF_TEXT: "eos", PAD: "pad", UNKNOWN: "unk"}
    named: dict[str, Any] = {}
    for token, name in special.items():
        named |= {f"{name}_id": CONTROL_TOKENS.index(token), f"{name}_piece": token}
    proto = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "pieces.tsv"
        with file.open("w", encoding="utf-8", newline="\n") as lines:
            lines.writelines(_lines(counts))
        sentencepiece.set_random_generator_seed(0)
        try:
            sentencepiece.SentencePieceTrainer.train(
                input=str(file),
                input_format="tsv",
                model_writer=proto,
                model_type=model,
                vocab_size=vocab_size,
                hard_vocab_limit=False,
                character_coverage=1.0,
                byte_fallback=True,
                normalization_rule_name="identity",
                add_dummy_prefix=False,
                remove_extra_whitespaces=False,
                split_by_unicode_script=cjk != "free",
                split_by_number=digits != "free",
                split_digits=digits == "single",
                allow_whitespace_only_pieces=spaces == "runs",
                control_symbols=[token for token in CONTROL_TOKENS if token not in special],
                bos_id=-1,
                num_threads=_THREADS,
                minloglevel=2,
                **named,
            )
        except RuntimeError as error:
            raise SproutError(
                f"SentencePiece cannot train {vocab_size:,} ids on this text ({_reason(error)}); give it more text, or "
                "another tokenizer.vocab_size"
            ) from None
    return proto.getvalue()


def _lines(counts: Counter[str]) -> Iterator[str]:
    """``piece<tab>count``, most frequent first; the order is part of what makes training reproducible."""
    for piece, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        for start in range(0, len(piece), _LONGEST):
            yield f"{piece[start : start + _LONGEST]}\t{count}\n"


def _without_rare_letters(counts: Counter[str], most: int) -> Counter[str]:
    """Pieces cut at letters that get no piece of their own: beyond 99.95 % of the text, or the ``most`` frequent ones.

    They are written with byte tokens. The trainer's own option for this cannot go below 98 %, which a small vocabulary
    on Chinese text needs.
    """
    letters: Counter[str] = Counter()
    for piece, count in counts.items():
        for letter in piece:
            letters[letter] += count
    enough, covered = _COVERAGE * letters.total(), 0
    kept = set()
    for letter, count in sorted(letters.items(), key=lambda item: (-item[1], item[0]))[:most]:
        if covered >= enough:
            break
        kept.add(letter)
        covered += count
    remaining: Counter[str] = Counter()
    for piece, count in counts.items():
        if kept.issuperset(piece):
            remaining[piece] += count
            continue
        for part in "".join(letter if letter in kept else "\n" for letter in piece).split("\n"):
            if part:
                remaining[part] += count
    return remaining


def _reason(error: Exception) -> str:
    return str(error).rsplit("] ", 1)[-1].strip().rstrip(".") or type(error).__name__


def _converted(proto: bytes) -> Tokenizer:
    """The trained model as our tokenizer. Its pieces hold real blanks, so that "▁" itself is a letter like any other."""
    from .spm import convert
    from .spm_model import read_model
    from .train import tokenizer_config

    data = convert(read_model(proto, "new tokenizer"), blank=" ")
    return Tokenizer(json.dumps(data, ensure_ascii=False), tokenizer_config(), where="new tokenizer")
