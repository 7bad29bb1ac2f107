"""Cures in the words of the command line: the rows' own sentences name recipe keys, which a command has as options."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

from ...errors import SproutError

_MAPPINGS = re.compile(r"\b(columns|fill): \{([^{}]+)\}")
_KEYS = (
    (re.compile(r"set encoding: to the right one"), "name the right one with --encoding"),
    (re.compile(r"\bencoding: (?=[a-z])"), "--encoding "),
    (re.compile(r"\bformat: (?=[a-z])"), "--format "),
    (re.compile(r"\bformat:(?=[,;])"), "--format"),
    (re.compile(r"(--format \w+), (?=--)"), r"\1 "),
    (re.compile(r"\brole_order: any(?: on the source)?"), "--role-order any"),
    (re.compile(r"\bon_bad_row: skip(?!, in a recipe)"), "--on-bad-row skip"),
    (re.compile(r"(--fill \S+) on the source"), r"\1"),
    (re.compile(r"\bset (?=--)"), "add "),
    (re.compile(r"; relative paths start at the recipe's folder"), ""),
)


def as_options(sentence: str) -> str:
    """``sentence`` with recipe keys as options: ``set columns: {text: body}`` becomes ``add --columns text=body``."""

    def options(found: re.Match[str]) -> str:
        pairs = (pair.partition(": ") for pair in found[2].split(", "))
        return " ".join(f"--{found[1]} {name}={value}" for name, _, value in pairs)

    sentence = _MAPPINGS.sub(options, sentence)
    for key, option in _KEYS:
        sentence = key.sub(option, sentence)
    return sentence


def in_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """A verb whose errors name options."""

    @functools.wraps(verb)
    def told(*arguments: Any, **options: Any) -> Any:
        try:
            return verb(*arguments, **options)
        except SproutError as error:
            if type(error).__init__ is SproutError.__init__:
                error.args = (as_options(str(error)),)
            raise

    return told
