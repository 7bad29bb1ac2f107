"""The engine: requests to completions, many at a time, over one preallocated key-value cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import SproutError
from ..model import KVCache, Transformer
from ..tokenizer.stream import StreamDecoder
from ..tokenizer.tokenizer import TURN_START, Tokenizer
from .sampling import SamplingParams, sample

FinishReason = Literal["stop", "length"]
_NEVER_WRITTEN = re.compile(r"reserved|unused|extra_id", re.IGNORECASE)
_SMALLEST_CACHE = 256


@dataclass(frozen=True)
class Request:
    """One prompt to go on from. ``stop_ids`` end the answer; None means the tokenizer's own."""

    prompt_ids: Sequence[int]
    params: SamplingParams = field(default_factory=SamplingParams)
    stop_ids: Sequence[int] | None = None

    @property
    def continues(self) -> int | None:
        """The id that the answer comes after; None where the prompt is only the token that begins a text."""
        return self.prompt_ids[-1] if len(self.prompt_ids) > 1 else None


@dataclass(frozen=True)
class Completion:
    """What the model wrote. The stop token is no part of ``ids`` and ``text``; ``stop_id`` says which one it was.

    ``text`` holds whole characters only; bytes that form none are left out.
    """

    ids: list[int]
    text: str
    finish_reason: FinishReason
    stop_id: int | None = None


class PrefixCache:
    """Keys and values of one conversation, kept between its turns: what a new prompt shares with it is not run again.

    An id is noted after its keys and values are written, so an answer may be abandoned at any moment.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []  # the tokens whose keys and values are in the cache
        self.cache: KVCache | None = None

    def clear(self) -> None:
        self.ids, self.cache = [], None

    def open(self, model: Transformer, prompt_ids: Sequence[int], total: int) -> tuple[KVCache, int]:
        """A cache with room for ``total`` tokens that holds the first ones of the prompt, and how many those are."""
        limit = model.config.max_seq_len
        if self.cache is None or self.cache.max_len < total:
            # Doubling: a foreign model's whole context can be gigabytes, most of it never used.
            size = max(_SMALLEST_CACHE, 1 << (total - 1).bit_length())
            self.clear()
            self.cache = new_cache(model, 1, min(size, max(limit, total)))
        shared = 0
        for ours, wanted in zip(self.ids, prompt_ids[:-1], strict=False):  # the last one must run: it gives the logits
            if ours != wanted:
                break
            shared += 1
        self.cache.length = shared
        del self.ids[shared:]
        return self.cache, shared


class Engine:
    """Generates with one model and its tokenizer.

    Every answer depends on its own request only: rows of a batch share nothing but the time they take. The model may be
    in the middle of training: its mode is put back, and no global random stream is touched.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, *, batch_size: int = 64) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; expected 1 or more")
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.forbidden_ids = forbidden_ids(tokenizer, model.config.vocab_size)

    def generate(
        self, requests: Sequence[Request], on_finished: Callable[[int], None] | None = None
    ) -> list[Completion]:
        """The completions, in the order of the requests. ``on_finished`` is told how many more are done."""
        for request in requests:
            self.check(request)
        # Neighbours in length share a batch, so that little is spent on padding.
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt_ids))
        completions: dict[int, Completion] = {}
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            decoding = _Decoding(self, [requests[i] for i in chosen])
            every = list(decoding.rows)
            while decoding.rows:
                before = sum(not row.done for row in every)
                decoding.step()
                finished = before - sum(not row.done for row in every)
                if on_finished is not None and finished:
                    on_finished(finished)
            completions.update((i, row.completion(self.tokenizer)) for i, row in zip(chosen, every, strict=True))
        return [completions[i] for i in range(len(requests))]

    def stream(self, request: Request, prefix: PrefixCache | None = None) -> Generator[int, None, Completion]:
        """The tokens of one answer as they are drawn (no stop token); the generator's value is the completion.

        ``prefix`` carries keys and values from one turn of a conversation to the next.
        """
        self.check(request)
        decoding = _Decoding(self, [request], prefix)
        row = decoding.rows[0]
        while decoding.rows:
            decoding.step()
            if row.stop_id is None:
                yield row.ids[-1]
        return row.completion(self.tokenizer)

    def stream_text(self, request: Request, prefix: PrefixCache | None = None) -> Generator[str, None, Completion]:
        """``stream`` as text: pieces of whole characters, none of them empty, that together are the completion's text."""
        decoder = StreamDecoder(self.tokenizer, after=request.continues)
        tokens = self.stream(request, prefix)
        while True:
            try:
                piece = _whole(decoder.push(next(tokens)))
            except StopIteration as end:
                return end.value
            if piece:
                yield piece

    def check(self, request: Request) -> None:
        """SproutError where the prompt cannot be run."""
        length, limit = len(request.prompt_ids), self.model.config.max_seq_len
        if not length:
            raise SproutError(
                "the prompt has no tokens; begin with the tokenizer's end-of-document token to start anew"
            )
        if length >= limit:
            raise SproutError(
                f"the prompt has {length} tokens and the model's context holds {limit}, the answer included; "
                "shorten the prompt"
            )
        largest = max(request.prompt_ids)
        if largest >= self.model.config.vocab_size or min(request.prompt_ids) < 0:
            raise SproutError(
                f"the prompt holds id {largest} and the model knows ids 0 to {self.model.config.vocab_size - 1}; "
                "use the tokenizer that the model was trained with"
            )


def forbidden_ids(tokenizer: Tokenizer, vocab_size: int) -> frozenset[int]:
    """Ids that are never drawn unless they stop the answer: padding, unknown, a turn's start, reserved ones, and rows of
    the embedding that no token has."""
    control = tokenizer.control_tokens
    never = {tokenizer.pad_id, tokenizer.unk_id, *range(tokenizer.vocab_size, vocab_size)}
    never |= {id_ for name, id_ in control.items() if name == TURN_START or _NEVER_WRITTEN.search(name)}
    return frozenset(id_ for id_ in never if 0 <= id_ < vocab_size) - set(tokenizer.stop_ids)


def _whole(text: str) -> str:
    """Without the stand-ins for bytes that are no characters: a half-trained model writes such bytes, and nobody can
    read them. ``Tokenizer.decode_bytes(ids)`` has what was really written."""
    return text.replace("\ufffd", "")


def new_cache(model: Transformer, batch: int, max_len: int) -> KVCache:
    weight = model.embed_tokens.weight
    return KVCache(model.config, batch, max_len, weight.dtype, weight.device)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout) inside, the mode before it afterwards."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@dataclass
class _Row:
    """One request while it is being answered."""

    request: Request
    stop_ids: frozenset[int]
    limit: int  # most tokens it may get: its own wish, or what the context has left
    generator: torch.Generator
    ids: list[int] = field(default_factory=list)
    stop_id: int | None = None

    @property
    def done(self) -> bool:
        return self.stop_id is not None or len(self.ids) >= self.limit

    def take(self, token: int) -> None:
        if token in self.stop_ids:
            self.stop_id = token
        else:
            self.ids.append(token)

    def completion(self, tokenizer: Tokenizer) -> Completion:
        # An answer cut inside a character loses that character, as on the screen.
        decoder = StreamDecoder(tokenizer, after=self.request.continues)
        text = _whole("".join(map(decoder.push, self.ids)))
        return Completion(list(self.ids), text, "length" if self.stop_id is None else "stop", self.stop_id)


class _Decoding:
    """Requests answered together. ``rows`` are those still in the batch; each ``step`` draws one token for each."""

    def __init__(self, engine: Engine, requests: Sequence[Request], prefix: PrefixCache | None = None) -> None:
        self.model, config = engine.model, engine.model.config
        self.device = engine.model.embed_tokens.weight.device
        stops = engine.tokenizer.stop_ids
        self.rows = [
            _Row(
                request,
                frozenset(stops if request.stop_ids is None else request.stop_ids),
                min(request.params.max_tokens, config.max_seq_len - len(request.prompt_ids)),
                request.params.generator(),
            )
            for request in requests
        ]
        self.forbidden = self._mask([engine.forbidden_ids - row.stop_ids for row in self.rows])
        penalised = any(row.request.params.repetition_penalty != 1 for row in self.rows)
        self.seen = self._mask([row.request.prompt_ids for row in self.rows]) if penalised else None
        self.prefix = prefix
        self.tokens = self._open(engine.tokenizer.pad_id)

    def _mask(self, ids_of_rows: Sequence[Sequence[int] | frozenset[int]]) -> Tensor:
        """(batch, vocab) bool, true at each row's ids."""
        mask = torch.zeros(len(ids_of_rows), self.model.config.vocab_size, dtype=torch.bool)
        for row, ids in enumerate(ids_of_rows):
            mask[row, list(ids)] = True
        return mask.to(self.device)

    def _open(self, pad_id: int) -> Tensor:
        """Allocate the cache and return the first tokens to run, (batch, longest prompt), padded on the left."""
        prompts = [list(row.request.prompt_ids) for row in self.rows]
        longest = max(map(len, prompts))
        room = longest + max(row.limit for row in self.rows)
        if self.prefix is not None:
            self.cache, shared = self.prefix.open(self.model, prompts[0], room)
            return torch.tensor([prompts[0][shared:]], device=self.device)
        self.cache = new_cache(self.model, len(prompts), room)
        self.cache.set_start(torch.tensor([longest - len(prompt) for prompt in prompts]))
        padded = [[pad_id] * (longest - len(prompt)) + prompt for prompt in prompts]
        return torch.tensor(padded, device=self.device)

    @torch.inference_mode()
    def step(self) -> None:
        """Run the newest tokens, draw the next ones, and drop rows that are done once they are half of the batch."""
        # A row that is done runs on until the batch is halved, past the end of a table of learned positions; what it says
        # there is not read.
        last = self.model.config.max_seq_len - 1
        positions = self.cache.positions(self.tokens.shape[1]).clamp_max(last)
        with evaluating(self.model), torch.autocast(self.device.type, enabled=False):
            # (batch, seq, dim) -> (batch, vocab): only the last position is asked for its logits.
            logits = self.model(
                self.tokens, positions, cache=self.cache, head=lambda hidden, w: F.linear(hidden[:, -1], w)
            )
        if self.prefix is not None:
            self.prefix.ids += self.tokens[0].tolist()
        params = [row.request.params for row in self.rows]
        generators = [row.generator for row in self.rows]
        drawn = sample(logits, params, seen=self.seen, generators=generators, forbidden=self.forbidden)
        if self.seen is not None:
            self.seen.scatter_(1, drawn[:, None], True)
        self.tokens = drawn[:, None]
        for row, token in zip(self.rows, drawn.tolist(), strict=True):
            if not row.done:
                row.take(token)
        live = [i for i, row in enumerate(self.rows) if not row.done]
        if not live:
            self.rows = []
        elif 2 * len(live) <= len(self.rows):  # each drop copies the cache: halving keeps that cheap
            self._keep(live)

    def _keep(self, live: list[int]) -> None:
        index = torch.tensor(live, device=self.device)
        self.cache.keep(index)
        self.tokens, self.forbidden = self.tokens[index], self.forbidden[index]
        self.seen = None if self.seen is None else self.seen[index]
        self.rows = [self.rows[i] for i in live]
