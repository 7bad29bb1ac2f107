"""Thinking inside an answer: ``<think>...</think>`` at its beginning is a field of the message, not part of its text.

Content is encoded with control tokens off, so that tags left in it would be trained as ordinary letters, and a recipe's
choice to keep, drop or mask the thinking could not reach it.
"""

from __future__ import annotations

import re

_THOUGHT = re.compile(r"\s*<think>(.*?)</think>", re.DOTALL)


def split_thinking(text: str) -> tuple[str | None, str]:
    """(thinking, answer) of a text that begins with ``<think>...</think>``, else (None, text); empty tags give ``""``.

    The line ends that ``join_thinking`` writes are taken off, and no other character.
    """
    found = _THOUGHT.match(text) if "</think>" in text else None
    if found is None:
        return None, text
    rest = text[found.end() :]
    for _ in range(2):
        rest = rest.removeprefix("\n")
    return found[1].removeprefix("\n").removesuffix("\n"), rest


def join_thinking(thinking: str | None, answer: str) -> str:
    """The text that ``split_thinking`` takes apart again, with the line ends that thinking models are trained on."""
    return answer if thinking is None else f"<think>\n{thinking}\n</think>\n\n{answer}"
