"""Counterparts of the Gopher, C4 and FineWeb rules for text without spaces: everything is counted in characters.

Sources: Rae et al. 2021 (Gopher), table A1; Raffel et al. 2020 (C4), 2.2; Penedo et al. 2024 (FineWeb), 3.6. A Chinese
word has about 1.7 characters; an n-gram of words became one of about twice as many characters, with the same share.
Each rule takes a text and gives the reason to reject it, or None.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np

from ...config.clean import ChineseRules
from .language import script_share
from .units import APART, codes_of, kinds, run_hashes

_SPACE = re.compile(r"\s+")
_PUNCTUATION = re.compile(r"""[^\w\s]|_""")
_LETTERS = re.compile(r"[^\W\d_]")
_CLAUSE = re.compile(r"[^\w]+")
_SENTENCE = re.compile(r"[。！？!?…；;]+|\.(?=\s|$)")
TERMINAL = tuple("。！？!?…；;.”’」』）)》\"'~～")
BULLETS = tuple("•-·●■◆★*、")
_POLICY = (
    "隐私政策",
    "隐私权政策",
    "使用条款",
    "服务条款",
    "版权所有",
    "免责声明",
    "cookie",
    "privacy policy",
    "terms of use",
)


def gopher_quality(text: str, rules: ChineseRules) -> str | None:
    letters = len(_LETTERS.findall(text))
    solid = len(_SPACE.sub("", text))
    if letters < rules.min_characters:
        return "gopher_short_doc"
    if letters > rules.max_characters:
        return "gopher_long_doc"
    clauses = [clause for clause in _CLAUSE.split(text) if clause]
    mean = sum(map(len, clauses)) / len(clauses)
    if mean < rules.min_mean_clause:
        return "gopher_short_clauses"
    if mean > rules.max_mean_clause:
        return "gopher_long_clauses"
    if text.count("#") / solid > rules.max_symbol_ratio:
        return "gopher_too_many_hashes"
    if (text.count("...") + text.count("…")) / solid > rules.max_symbol_ratio:
        return "gopher_too_many_ellipsis"
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    if sum(line.startswith(BULLETS) for line in lines) > rules.max_bullet_lines * len(lines):
        return "gopher_too_many_bullets"
    if sum(line.endswith(("...", "…")) for line in lines) > rules.max_ellipsis_lines * len(lines):
        return "gopher_too_many_end_ellipsis"
    if letters < rules.min_letters * solid:
        return "gopher_below_alpha_threshold"
    if len(_PUNCTUATION.findall(text)) > rules.max_punctuation * solid:
        return "gopher_too_much_punctuation"
    if len(set(rules.stop_characters).intersection(text)) < rules.min_stop_characters:
        return "gopher_stop_characters"
    if rules.script != "any":
        simplified, traditional = script_share(text)
        if (traditional if rules.script == "simplified" else simplified) > rules.max_other_script:
            return "other_script"
    return None


def gopher_repetition(text: str, rules: ChineseRules) -> str | None:
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    repeated, characters = _repeated(lines)
    if repeated > rules.max_duplicate_lines * len(lines):
        return "dup_line_frac"
    if characters > rules.max_duplicate_line_characters * len(text):
        return "dup_line_char_frac"
    codes = codes_of(text)
    codes = codes[kinds()[codes] != APART].astype(np.uint64)
    shortest = min([*rules.top_ngrams, *rules.duplicate_ngrams], default=0)
    windows = _windows(codes, shortest)
    if len(np.unique(windows)) == len(windows):
        return None  # what repeats a longer run repeats a shorter one, too; most texts end here
    for n, share in sorted(rules.top_ngrams.items()):
        if _top_share(codes, n) > share:
            return f"top_{n}_character_gram"
    for n, share in sorted(rules.duplicate_ngrams.items()):
        if _duplicate_share(codes, n) > share:
            return f"duplicated_{n}_character_grams"
    return None


def c4(text: str, rules: ChineseRules, changed: Counter[str]) -> tuple[str | None, str]:
    """The reason to reject, and the text without the lines that C4 leaves out."""
    if "lorem ipsum" in text.lower():
        return "c4_lorem_ipsum", text
    if rules.refuse_curly_brackets and "{" in text:
        return "c4_curly_bracket", text
    lines = [line for line in (line.strip() for line in text.splitlines()) if line]
    kept, sentences = [], 0
    for line in lines:
        lower = line.lower()
        if (
            not line.endswith(TERMINAL)
            or len(_LETTERS.findall(line)) < rules.min_characters_per_line
            or "javascript" in lower
            or any(phrase in lower for phrase in _POLICY)
        ):
            continue
        kept.append(line)
        sentences += max(1, len(_SENTENCE.findall(line)))
    if sentences < rules.min_sentences:
        return "c4_too_few_sentences", text
    changed["lines removed"] += len(lines) - len(kept)
    return None, "\n".join(kept)


def fineweb(text: str, rules: ChineseRules) -> str | None:
    lines = [line for line in (line.strip() for line in text.split("\n")) if line]
    if sum(line.endswith(TERMINAL) for line in lines) < rules.min_lines_with_punctuation * len(lines):
        return "fineweb_line_punctuation"
    if sum(len(line) <= rules.short_line for line in lines) > rules.max_short_lines * len(lines):
        return "fineweb_short_lines"
    if _repeated(lines)[1] > rules.max_duplicate_line_characters / 2 * sum(map(len, lines)):
        return "fineweb_duplicate_characters"
    if text.count("\n") > rules.max_newlines * len(_SPACE.sub("", text)):
        return "fineweb_list"
    return None


# --- repetition -----------------------------------------------------------------------------------------------------------


def _repeated(lines: list[str]) -> tuple[int, int]:
    """How many lines occurred before, and how many characters they have."""
    seen: set[str] = set()
    number = characters = 0
    for line in lines:
        if line in seen:
            number += 1
            characters += len(line)
        seen.add(line)
    return number, characters


def _windows(codes: np.ndarray, n: int) -> np.ndarray:
    first = np.arange(max(0, len(codes) - n + 1))
    return run_hashes(codes, first, first + n)


def _top_share(codes: np.ndarray, n: int) -> float:
    """Share of the characters that the commonest n-gram covers, if it occurs twice or more."""
    hashes = _windows(codes, n)
    if not len(hashes):
        return 0.0
    most = int(np.unique(hashes, return_counts=True)[1].max())
    return most * n / len(codes) if most > 1 else 0.0


def _duplicate_share(codes: np.ndarray, n: int) -> float:
    """Share of the characters that lie in an n-gram which occurred before; none is counted twice."""
    hashes = _windows(codes, n)
    if not len(hashes):
        return 0.0
    _, first, which = np.unique(hashes, return_index=True, return_inverse=True)
    again = np.flatnonzero(first[which] != np.arange(len(hashes)))
    edges = np.zeros(len(codes) + 1, np.int64)
    np.add.at(edges, again, 1)
    np.add.at(edges, again + n, -1)
    return np.count_nonzero(np.cumsum(edges)[:-1]) / len(codes)
