"""Whether the two sides of a preference pair differ in what was said alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..data.records import Message, Tools
from .marks import REASONING, Reading
from .spans import thinking_spans
from .template import ChatTemplate

_EMPTY_THOUGHT = re.compile(r"<think>\s*</think>")


def pair_parity(
    template: ChatTemplate,
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    tools: Tools = (),
) -> str | None:
    """None where the two sides of a preference pair differ in what was said alone; else a sentence (pitfall 6).

    A difference that the template makes (an empty think block on one side, another wrapper around the reply) would be
    what a model learns to prefer.
    """
    asked = template.render(prompt, tools, add_generation_prompt=True)
    sides = []
    for name, reply in (("chosen", chosen), ("rejected", rejected)):
        rendered, reading = template.trace([*prompt, *reply], tools)
        if rendered.ids[: len(asked.ids)] != asked.ids:
            return f"the {name} side does not begin with the ids of the prompt"
        sides.append(_Side(reading, len(prompt), len(asked.text)))
    first, second = sides
    for name, side, other in (("chosen", first, second), ("rejected", second, first)):
        if side.empty_thoughts and not other.empty_thoughts and not other.thinks:
            return f"an empty think block stands on the {name} side only"
    same_shape = [m.role for m in chosen] == [m.role for m in rejected]
    if same_shape and not any(m.tool_calls for m in (*chosen, *rejected)) and first.wrapper != second.wrapper:
        return f"the replies are wrapped differently: {first.wrapper!r} around the chosen, {second.wrapper!r} around the rejected"
    return None


class _Side:
    """One side's reply: what the template wrote around it."""

    def __init__(self, reading: Reading, prompt_messages: int, start: int) -> None:
        said = [(a, b) for parts in reading.parts for a, b, i in parts if i >= prompt_messages]
        self.thinks = any(i >= prompt_messages for _, _, i in reading.parts[REASONING])
        cut = sorted({*said, *(span for span in thinking_spans(reading) if span[0] >= start)})
        pieces, position = [], start
        for a, b in cut:
            pieces.append(reading.text[position : max(a, position)])
            position = max(position, b)
        around = "\0".join([*pieces, reading.text[position:]])
        self.empty_thoughts = len(_EMPTY_THOUGHT.findall(around))
        # Blanks around a message are the message's own; an empty message has no place that could be marked.
        self.wrapper = re.sub(r"[\s\0]+", "", _EMPTY_THOUGHT.sub("", around))
