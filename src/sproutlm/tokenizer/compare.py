"""``sprout tokenizer compare``: what tokenizers make of the same text, by language; how fast, and how far they agree."""

from __future__ import annotations

import re
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import SproutError
from .tokenizer import Tokenizer

LANGUAGES = ("zh", "en", "code", "digits", "other")
SPEED_BYTES = 4_000_000
ROUNDS = 5

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN = re.compile(r"[A-Za-z\u00c0-\u024f]")
_OTHER_LETTER = re.compile(r"[^\W\d_]")
_CODE_SIGN = re.compile(r"[{}()\[\];=<>_#\\|&@`*/]")
_DIGIT_SIGN = re.compile(r"[\d+\-*/=.,:%()]")


def language(line: str) -> str:
    """zh, en, code, digits or other: what most of a line is written in, by its characters alone."""
    bare = "".join(line.split())
    if not bare:
        return "other"
    digits = len(re.findall(r"\d", bare))
    if digits * 3 >= len(bare) and len(_DIGIT_SIGN.findall(bare)) * 10 >= len(bare) * 8:
        return "digits"
    han = len(_HAN.findall(bare))
    if han * 3 >= len(bare):  # a third: one Chinese character says as much as several letters
        return "zh"
    ascii_only = bare.isascii()
    if ascii_only and len(_CODE_SIGN.findall(bare)) * 10 >= len(bare):
        return "code"
    latin = len(_LATIN.findall(bare))
    letters = len(_OTHER_LETTER.findall(bare))
    return "en" if latin * 2 >= len(bare) and latin * 10 >= letters * 9 else "other"


def by_language(texts: Iterable[str]) -> dict[str, str]:
    """The lines of ``texts`` by language, each joined into one text; languages that do not occur are left out.

    A blank line, or a line that begins with blanks, stays with the language before it: it belongs to the same text.
    """
    parts: dict[str, list[str]] = {name: [] for name in LANGUAGES}
    for text in texts:
        found = "other"
        for line in text.splitlines(keepends=True):
            if line.strip() and not (found == "code" and line[0] in " \t"):
                found = language(line)
            parts[found].append(line if line.endswith("\n") else line + "\n")
    return {name: "".join(lines) for name, lines in parts.items() if lines}


def compare(
    tokenizers: Sequence[tuple[str, Tokenizer]],
    texts: dict[str, str],
    *,
    rounds: int = ROUNDS,
    say: Callable[[str], None] = lambda sentence: None,
) -> dict[str, Any]:
    """Figures of each tokenizer on each of ``texts`` (language -> text), speeds, and the vocabularies' overlap.

    ``encode_ratio`` and ``decode_ratio`` are to the first tokenizer, medians over ``rounds`` of one run in which all take
    turns, every other round in the opposite order, on one thread.
    """
    if not any(texts.values()):
        raise SproutError("no text to compare on: every row was empty; check --data")
    report: dict[str, Any] = {
        "bytes": {name: len(text.encode()) for name, text in texts.items()},
        "tokenizers": [
            {
                "name": name,
                "vocab_size": tokenizer.vocab_size,
                "fingerprint": tokenizer.fingerprint,
                "languages": {language: figures(tokenizer, text) for language, text in texts.items() if text},
            }
            for name, tokenizer in tokenizers
        ],
        "overlap": _overlaps(tokenizers),
    }
    say(f"measuring speed, {rounds} rounds")
    for entry, speeds in zip(report["tokenizers"], _speeds(tokenizers, texts, rounds), strict=True):
        entry.update(speeds)
    return report


def figures(tokenizer: Tokenizer, text: str) -> dict[str, Any]:
    """Compression and fertility of one text.

    ``tokens_per_word`` is by words between blanks, ``tokens_per_character`` by characters that are no blanks (the measure
    for Chinese). ``broken_share`` is the share of bytes in tokens that are no whole characters: what had to be written
    byte by byte.
    """
    ids = [id_ for line in text.splitlines(keepends=True) for id_ in tokenizer.encode(line)]
    pieces = pieces_of(tokenizer)
    broken = sum(len(pieces[id_]) for id_ in ids if not _whole(pieces[id_]))
    size, tokens = len(text.encode("utf-8", "replace")), max(len(ids), 1)
    return {
        "tokens": len(ids),
        "bytes_per_token": size / tokens,
        "tokens_per_word": len(ids) / max(len(text.split()), 1),
        "tokens_per_character": len(ids) / max(len("".join(text.split())), 1),
        "broken_share": broken / max(size, 1),
    }


def _whole(piece: bytes) -> bool:
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def pieces_of(tokenizer: Tokenizer) -> list[bytes]:
    """Bytes of each id; none for control tokens and ids without a token."""
    return [tokenizer.piece(id_) for id_ in range(tokenizer.vocab_size)]


def _overlaps(tokenizers: Sequence[tuple[str, Tokenizer]]) -> list[dict[str, Any]]:
    """For each pair: texts that are a token in both, and their share of all (Jaccard)."""
    sets = [(name, {piece for piece in pieces_of(tokenizer) if piece}) for name, tokenizer in tokenizers]
    return [
        {"of": [name, other], "shared": len(a & b), "share": len(a & b) / max(len(a | b), 1)}
        for i, (name, a) in enumerate(sets)
        for other, b in sets[i + 1 :]
    ]


def _speeds(tokenizers: Sequence[tuple[str, Tokenizer]], texts: dict[str, str], rounds: int) -> list[dict[str, float]]:
    lines = _speed_lines(texts)
    size = sum(len(line.encode("utf-8", "replace")) for line in lines) / 1e6
    encode: list[list[float]] = [[] for _ in tokenizers]
    decode: list[list[float]] = [[] for _ in tokenizers]
    for number in range(rounds):
        order = list(enumerate(tokenizers))
        for i, (_, tokenizer) in order if number % 2 == 0 else reversed(order):
            begin = time.perf_counter()
            ids = [tokenizer.encode(line) for line in lines]
            middle = time.perf_counter()
            for row in ids:
                tokenizer.decode(row)
            encode[i].append(middle - begin)
            decode[i].append(time.perf_counter() - middle)
    return [
        {
            "encode_mb_per_s": size / statistics.median(encode[i]),
            "decode_mb_per_s": size / statistics.median(decode[i]),
            # Each round's own ratio: what slows the machine down slows both.
            "encode_ratio": statistics.median(a / b for a, b in zip(encode[0], encode[i], strict=True)),
            "decode_ratio": statistics.median(a / b for a, b in zip(decode[0], decode[i], strict=True)),
        }
        for i in range(len(tokenizers))
    ]


def _speed_lines(texts: dict[str, str]) -> list[str]:
    """The beginning of each language's text, SPEED_BYTES in all, in the proportions that the data have."""
    whole = sum(len(text) for text in texts.values())
    share = min(1.0, SPEED_BYTES / max(whole, 1))
    return [line for text in texts.values() for line in text[: int(len(text) * share) + 1].splitlines(keepends=True)]


def read_texts(files: Iterable[Path], max_bytes: int) -> list[str]:
    """The first texts of each file, ``max_bytes`` at most in all; code and other plain files as they are."""
    from .check import texts_of_file

    files = list(files)
    return [text for file in files for text in texts_of_file(file, max_bytes // len(files))]


def print_comparison(report: dict[str, Any], say: Callable[[str], None] = print) -> None:
    """Tables, one line a tokenizer."""
    entries = report["tokenizers"]
    width = max(len(entry["name"]) for entry in entries)
    languages = [name for name in LANGUAGES if name in report["bytes"]]
    tables = (
        ("bytes per token", "bytes_per_token", 1),
        ("tokens per word", "tokens_per_word", 1),
        ("tokens per character", "tokens_per_character", 1),
        ("% of bytes in broken characters", "broken_share", 100),
    )
    for title, key, scale in tables:
        say(f"{title:{max(width, 31)}} " + " ".join(f"{name:>8}" for name in languages))
        for entry in entries:
            row = " ".join(f"{entry['languages'][name][key] * scale:8.3f}" for name in languages)
            say(f"  {entry['name']:{max(width, 31) - 2}} {row}")
    say(f"{'speed, one thread':{max(width, 31)}} {'encode':>8} {'':>8} {'decode':>8}")
    for entry in entries:
        say(
            f"  {entry['name']:{max(width, 31) - 2}} {entry['encode_mb_per_s']:8.2f} MB/s ×{entry['encode_ratio']:<5.2f} "
            f"{entry['decode_mb_per_s']:8.2f} MB/s ×{entry['decode_ratio']:<5.2f}"
        )
    for pair in report["overlap"]:
        say(f"{pair['of'][0]} and {pair['of'][1]} share {pair['shared']:,} tokens ({pair['share']:.1%} of both)")


def plot_comparison(report: dict[str, Any], path: Path) -> None:
    """Bars: bytes per token and tokens per word or character by language, and speed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    entries = report["tokenizers"]
    languages = [name for name in LANGUAGES if name in report["bytes"]]
    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
    bar = 0.8 / len(entries)
    for number, entry in enumerate(entries):
        places = [i + (number - (len(entries) - 1) / 2) * bar for i in range(len(languages))]
        rows = entry["languages"]
        left.bar(places, [rows[name]["bytes_per_token"] for name in languages], bar, label=entry["name"])
        fertility = [rows[n]["tokens_per_character" if n == "zh" else "tokens_per_word"] for n in languages]
        middle.bar(places, fertility, bar)
        offset = (number - (len(entries) - 1) / 2) * bar
        right.bar([offset, 1 + offset], [entry["encode_mb_per_s"], entry["decode_mb_per_s"]], bar)
    for axes, title in ((left, "bytes per token"), (middle, "tokens per word (zh: per character)")):
        axes.set_title(title)
        axes.set_xticks(range(len(languages)), languages)
    right.set_title("MB/s, one thread")
    right.set_xticks(range(2), ["encode", "decode"])
    right.set_yscale("log")
    figure.legend(loc="outside lower center", ncols=min(len(entries), 4), frameon=False)
    figure.savefig(path, dpi=120, format=path.suffix.lstrip(".") or "png")
    pyplot.close(figure)
