"""A conversation with a model: what was said, and as much of it as the context holds."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any

from ..errors import SproutError
from ..model import Transformer
from ..tokenizer.reply import read_reply
from ..tokenizer.template import ChatTemplate
from ..tokenizer.tokenizer import Tokenizer
from .engine import Completion, Engine, PrefixCache, Request
from .sampling import SamplingParams

RESET = "/reset"


class Conversation:
    """Turns of one conversation, rendered by the tokenizer's own template.

    ``messages`` holds everything that was said. When the context is full the model is shown the newest turns only (the
    system message stays); ``dropped`` says how many messages the last answer had to do without.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer, params: SamplingParams, system: str | None = None
    ) -> None:
        self.template = ChatTemplate.of(tokenizer)
        self.engine = Engine(model, tokenizer, batch_size=1)
        self.tokenizer, self.params, self.system = tokenizer, params, system
        self.context = model.config.max_seq_len
        self.messages: list[dict[str, Any]] = []
        self.completion: Completion | None = None  # of the last answer; None where it was cut off
        self.dropped = 0
        self._prefix = PrefixCache()
        self._answers = 0

    def reset(self) -> None:
        """Forget what was said; the system message stays."""
        self.messages, self.dropped = [], 0
        self._prefix.clear()

    def answer(self, text: str) -> Generator[str, None, None]:
        """Say ``text`` and stream the answer in pieces of whole characters.

        When the caller stops in the middle, what came so far is kept as the answer, marked as not to be trained on: it
        has no end. SproutError, and nothing is kept, where ``text`` alone is more than the context holds.
        """
        asked = {"role": "user", "content": text}
        prompt_ids = self._fit([*self.messages, asked])
        request = Request(prompt_ids, self._next_params(), self.template.stop_ids)
        self.completion = None
        said: list[str] = []
        pieces = self.engine.stream_text(request, self._prefix)
        try:
            while True:
                try:
                    piece = next(pieces)
                except StopIteration as end:
                    self.completion = end.value
                    break
                said.append(piece)
                yield piece
        finally:
            whole = self.completion is not None and self.completion.finish_reason == "stop"
            reply = {"role": "assistant", "content": "".join(said)}
            if self.completion is not None:  # thinking and calls go back as what they were, so that their ids do
                reply = read_reply(self.tokenizer, self.completion.ids).as_dict()
            self.messages += [asked, reply]
            if not whole:
                self.messages[-1]["train"] = False

    def _next_params(self) -> SamplingParams:
        """The same seed must not give every answer the same luck: each has a seed of its own that follows from it."""
        seed = self.params.seed
        params = self.params if seed is None else replace(self.params, seed=(seed + self._answers) % 2**63)
        self._answers += 1
        return params

    def _fit(self, messages: list[dict[str, Any]]) -> list[int]:
        """Ids of the newest turns that leave room for an answer: what was asked for, or a quarter of the context."""
        room = min(self.params.max_tokens, max(self.context // 4, 1))
        head = [{"role": "system", "content": self.system}] if self.system else []
        first = 0
        while True:
            shown = [{key: value for key, value in m.items() if key != "train"} for m in messages[first:]]
            ids = self.template.render([*head, *shown], add_generation_prompt=True).ids
            if len(ids) + room <= self.context:
                break
            later = next((i for i in range(first + 1, len(messages)) if messages[i]["role"] == "user"), None)
            if later is None:
                raise SproutError(
                    f"this message takes {len(ids)} tokens{' with the system prompt' if head else ''}, and the model's "
                    f"context of {self.context} has to leave {room} for the answer; say it in fewer words"
                )
            first = later
        self.dropped = first
        return ids


def converse(
    model: Transformer, tokenizer: Tokenizer, says: list[str], params: SamplingParams, system: str | None = None
) -> list[dict[str, str]]:
    """Hold a scripted conversation: one answer to each line, ``/reset`` starts over. Returns all turns, in order."""
    conversation = Conversation(model, tokenizer, params, system)
    turns: list[dict[str, str]] = []
    for line in says:
        if line.strip() == RESET:
            conversation.reset()
            continue
        reply = "".join(conversation.answer(line))
        turns += [{"role": "user", "content": line}, {"role": "assistant", "content": reply}]
    return turns
