"""What of a rendered conversation is trained, in characters, and the pieces that are encoded in one go each."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from typing import NamedTuple

from ..errors import SproutError
from .marks import CALL, REASONING, Reading, Span
from .turns import Turns


class Piece(NamedTuple):
    """A control token, or the text between two of them. ``trained``: all of it, none, or spans counted from its start."""

    text: str
    control: int  # the token's id; -1 for a text
    trained: bool | tuple[Span, ...]


def cut(reading: Reading, spans: list[Span], control_ids: Mapping[str, int]) -> list[Piece]:
    """A text, piece by piece between control tokens; a control token is trained where it touches a span."""
    pieces: list[Piece] = []
    text = reading.text
    position = following = 0  # following: the first span that is not behind us
    for start, end, name in [*reading.controls, (len(text), len(text), "")]:
        for a, b, control in ((position, start, -1), (start, end, control_ids.get(name, -1))):
            if a == b:
                continue
            while following < len(spans) and spans[following][1] <= a:
                following += 1
            trained: bool | tuple[Span, ...] = following < len(spans) and spans[following][0] < b
            if trained and control < 0 and not (spans[following][0] <= a and b <= spans[following][1]):
                trained = tuple((s - a, e - a) for s, e in spans[following:] if s < b)
            pieces.append(Piece(text[a:b], control, trained))
        position = end
    return pieces


def spans_of(reading: Reading, plain: Turns, overrides: list[bool | None], mode: str) -> list[Span]:
    """The trained spans of a conversation, in order."""
    spans = trained_spans(reading, [message["role"] for message in plain], overrides)
    return _without(spans, thinking_spans(reading)) if mode == "mask" else spans


def require_shown(reading: Reading, messages: Turns, tools: Turns | None) -> None:
    """A template made without tools in mind leaves them out without a word; a row that has them must not be trained so."""
    shown = {i for _, _, i in reading.parts[CALL]}
    for i, message in enumerate(messages):
        if message.get("tool_calls") and message["role"] == "assistant" and i not in shown:
            raise SproutError(
                f"the chat template leaves out the tool calls of message {i + 1}; use one that writes them "
                "(template.use: chatml or qwen3)"
            )
    if tools and tools[0]["function"]["name"] not in reading.text:
        raise SproutError(
            "the chat template leaves out the tools that the conversation offers; use one that writes them "
            "(template.use: chatml or qwen3)"
        )


def templates_own(reading: Reading, messages: Turns) -> list[tuple[int, int, str]]:
    """The control tokens, less those whose name came about inside the text of a user, system or tool turn.

    Names that stand in the content are shielded; these the template put together by leaving something out, say
    ``replace('#', '')`` on ``<|im_#end|>``. In a reply it is the template's own doing: Qwen's writes ``</think>`` there.
    """
    foreign = sorted((a, b) for a, b, i in reading.contents if messages[i]["role"] != "assistant")
    if not foreign:
        return reading.controls
    kept = []
    for control in reading.controls:
        before = bisect_right(foreign, (control[0], len(reading.text))) - 1
        if before < 0 or not foreign[before][0] <= control[0] < foreign[before][1]:
            kept.append(control)
    return kept


def trained_spans(reading: Reading, roles: list[str], overrides: list[bool | None]) -> list[Span]:
    """Generation spans, less the turns that say train=False, plus the turns of others that say train=True."""
    spans = list(reading.generations)
    if any(override is not None for override in overrides):
        spans = [span for k, span in enumerate(spans) if not _says_no(k, reading, roles, overrides)]
        for a, b, i in reading.contents:
            if overrides[i] and roles[i] != "assistant":
                end = next((stop for begin, stop, _ in reading.controls if begin >= b), b)
                spans.append((a, end))
    return merged(spans)


def _says_no(k: int, reading: Reading, roles: list[str], overrides: list[bool | None]) -> bool:
    """Whether the turn of the k-th generation span says train=False."""
    start, end = reading.generations[k]
    owners = {i for parts in reading.parts for a, b, i in parts if start <= a and b <= end}
    assistants = [i for i, role in enumerate(roles) if role == "assistant"]
    if not owners and len(reading.generations) == len(assistants):
        owners = {assistants[k]}  # an empty reply carries no mark; its place in the order tells whose it is
    return any(overrides[i] is False for i in owners)


def thinking_spans(reading: Reading) -> list[Span]:
    """Where the reasoning stands, with the tags around it and the blanks behind them."""
    text = reading.text
    starts = {start: end for start, end, _ in reading.controls}
    ends = {end: start for start, end, _ in reading.controls}
    spans = []
    for a, b, _ in reading.parts[REASONING]:
        before = len(text[:a].rstrip())
        after = b + len(text[b:]) - len(text[b:].lstrip())
        opening = ends.get(before, before - len("<think>") if text.endswith("<think>", 0, before) else None)
        closing = starts.get(after, after + len("</think>") if text.startswith("</think>", after) else None)
        if opening is not None and closing is not None:
            a, b = opening, closing + len(text[closing:]) - len(text[closing:].lstrip())
        spans.append((a, b))
    return spans


def _without(spans: list[Span], holes: list[Span]) -> list[Span]:
    """``spans`` less ``holes``."""
    for a, b in holes:
        spans = [piece for start, end in spans for piece in ((start, min(end, a)), (max(start, b), end))]
        spans = [(start, end) for start, end in spans if start < end]
    return sorted(set(spans))


def merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged
