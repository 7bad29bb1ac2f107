"""Where text is cut before merges are learned; merges never cross a cut.

The rules of the default, each applied to what the one before left whole:

- each line break stands alone, so that "assistant\\n" at the head of a turn has the same ids whatever follows it, and a
  prompt's ids are always a prefix of the whole conversation's (a GPT-4-style rule glues "\\n\\n" together);
- a run of letters, with at most one blank before it;
- a run of punctuation, likewise, so that "，" never sticks to a word and "，" + word needs no entry of its own;
- runs of Chinese, Japanese or Korean letters apart from Latin ones ("用Python写" is three pieces);
- digits one by one, so that numbers have one spelling and sums can be learned column by column.

This is the cut that llama.cpp knows as "deepseek-coder", so a model exports there without a patch; a tokenizer with
another rule needs one. Line breaks stand alone under every option.
"""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args

from tokenizers import Regex, pre_tokenizers

Digits = Literal["single", "groups", "free"]
Spaces = Literal["single", "runs"]
Cjk = Literal["runs", "single", "free"]

_LINE_BREAK = r"[\r\n]"
_BLANK_RUN = r" {2,}|\t+"
_BLANK = r"[\s&&[^\r\n]]"
# What the library's Digits step takes for a numeral: the regex's own, and the newest ones, which its table lacks.
_NUMERAL = "[\\p{N}\U00011de0-\U00011de9\U00016ff4-\U00016ff6]"
_LETTERS = r"\s?\p{L}+"
_PUNCTUATION = r"\s?\p{P}+"
_EAST_ASIAN = r"[一-龥ࠀ-一가-퟿]"  # beside the letters, most signs above U+0800 fall into it


@dataclass(frozen=True)
class Rules:
    """The options of a cut, as ``TokenizerConfig`` has them."""

    digits: Digits = "single"
    spaces: Spaces = "single"
    cjk: Cjk = "runs"


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)


def pre_tokenizer(rules: Rules) -> pre_tokenizers.PreTokenizer:
    """The cut as it is stored in ``tokenizer.json``: one step a rule, in forms that other programs know."""
    steps: list[pre_tokenizers.PreTokenizer] = [_split(_LINE_BREAK)]
    if rules.spaces == "runs":
        steps.append(_split(_BLANK_RUN))
    steps += [_split(_LETTERS), _split(_PUNCTUATION)]
    if rules.cjk != "free":
        steps.append(_split(_EAST_ASIAN + ("+" if rules.cjk == "runs" else "")))
    if rules.digits == "single":
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    elif rules.digits == "groups":
        steps.append(_split(r"\p{N}{1,3}"))
    return pre_tokenizers.Sequence([*steps, _bytes()])


def training_pre_tokenizer(rules: Rules) -> pre_tokenizers.PreTokenizer:
    """The same cut in one step, for training: it takes two thirds of the time that the steps one by one take."""
    return pre_tokenizers.Sequence([_split("|".join(_alternatives(rules))), _bytes()])


@lru_cache(maxsize=1)
def _known() -> list[tuple[Any, Any]]:
    """(steps, one step) of every combination of rules, as they are stored."""
    options = itertools.product(get_args(Digits), get_args(Spaces), get_args(Cjk))
    made = [Rules(*each) for each in options]
    return [tuple(json.loads(cut(r).__getstate__()) for cut in (pre_tokenizer, training_pre_tokenizer)) for r in made]  # type: ignore[misc]


def in_one_step(stored: Any) -> Any:
    """What ``tokenizer.json`` stores of a cut, as one step where it is one of ours: the same pieces, found sooner.

    For encoding in this program only; what is saved stays in the form that others know.
    """
    return next((copy.deepcopy(fast) for slow, fast in _known() if slow == stored), stored)


def _alternatives(rules: Rules) -> list[str]:
    """Kinds of pieces that share no character, so that one pass from left to right finds them as they stand in the end;
    the frequent ones first, as far as order is free.

    A blank belongs to the letters or the punctuation after it, unless the East Asian rule cuts between the two.
    """
    sides = _sides(rules.cjk)
    letters, punctuation = ([f"{side(_BLANK)}?{side(kind)}+" for side in sides] for kind in (r"\p{L}", r"\p{P}"))
    number = {"single": _NUMERAL, "groups": r"\p{N}", "free": ""}[rules.digits]
    numbers = [side(number) + ("{1,3}" if rules.digits == "groups" else "") for side in sides if number]
    sign = r"[^\p{L}\p{P}\r\n" + number.strip("[]") + "]"
    stop = r"(?!\s[\p{L}\p{P}])" + (f"(?!{_BLANK_RUN})" if rules.spaces == "runs" else "")
    return [
        *([_BLANK_RUN] if rules.spaces == "runs" else []),
        *([_EAST_ASIAN] if rules.cjk == "single" else []),
        *letters,
        _LINE_BREAK,
        *punctuation,
        *numbers,
        r"\s(?=[\p{L}\p{P}])",
        *(f"(?:{stop}{side(sign)})+" for side in sides),
    ]


def _sides(cjk: Cjk) -> list[Callable[[str], str]]:
    """The sides of the East Asian rule's cut: each narrows a class to the characters on its side."""
    inside, outside = _EAST_ASIAN, "[^" + _EAST_ASIAN[1:]
    sides = {"free": [""], "single": [outside], "runs": [outside, inside]}[cjk]
    return [lambda kind, side=side: f"[{kind}&&{side}]" if side else kind for side in sides]  # type: ignore[misc]


def _bytes() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
