"""The one chat-template renderer: messages to token ids and the mask of what is trained.

How a conversation becomes ids (pitfalls 3 to 7):

1. What a person wrote goes into the template between private marks: one pair around each message's content, reasoning
   and tool names, one pair around every control token's name in anything of theirs (tools and arguments too).
   ``{% generation %}`` blocks put marks around what the model writes.
2. The rendered text is read once from left to right. Marks are taken out and become spans; a control token counts only
   where no mark touches it, that is, where the template itself wrote it.
3. The text between two control tokens is encoded in one go, control tokens off; character offsets give the mask.

Nothing is found by searching ids, and no text of a person can become a control token.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..data.records import Message
from ..errors import SproutError
from .jinja import compile_template
from .library import load_template
from .marks import Marks, Reading, Span, choose_marks, read_marked
from .shapes import Shapes
from .spans import Piece, cut, require_shown, spans_of, templates_own
from .tokenizer import Tokenizer, token_name
from .turns import Turns, plain_messages, plain_tools

CHATML = load_template("chatml")  # of the tokenizers that we train
THINKING = ("keep", "drop", "mask")
NOTHING_KNOWN: Mapping[str, list[int]] = {}
SHORT = 32  # characters; "\n" and "user\n" come up in every turn, so their ids are kept


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as the model sees it. ``ids`` and ``trained`` have one entry per token; ``text`` is for the eye."""

    ids: list[int]
    trained: list[bool]
    text: str


class ChatTemplate:
    """Renders conversations with one Jinja template and one tokenizer. Safe to share between threads.

    ``source`` is None for a tokenizer without a template: texts can be trained with it, and the first conversation is
    refused with a sentence. It is never written as plain text or JSON instead (pitfall 14).

    ``thinking`` says what becomes of ``reasoning_content``: trained (keep), left out before rendering (drop), or shown
    and not trained, with the tags around it (mask).
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer, *, thinking: str = "keep") -> None:
        self.missing = source is None
        self.source = source = source or ""
        self.tokenizer = tokenizer
        self.thinking = _known_mode(thinking)
        self._compiled = compile_template(source)
        # Longest first: where one control token begins with another, the longer one is meant.
        self._control_names = tuple(sorted(tokenizer.control_tokens, key=len, reverse=True))
        self._named = {
            key: token_name(tokenizer.config.get(key)) or ""
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
            if token_name(tokenizer.config.get(key))
        }
        self.shapes = Shapes(source, self._named, tokenizer.control_tokens, self.thinking)
        self._short_ids: dict[tuple[str, bool], list[int]] = {}

    @classmethod
    def of(cls, tokenizer: Tokenizer, *, thinking: str = "keep") -> ChatTemplate:
        """The tokenizer's own template; a sentence where it has none."""
        template = cls(tokenizer.chat_template, tokenizer, thinking=thinking)
        template._require_source()
        return template

    def _require_source(self) -> None:
        if self.missing:
            raise SproutError(
                f"{self.tokenizer.where}: this tokenizer has no chat template, so conversations cannot be written as "
                "tokens; set template.use in the recipe (chatml, say), or add chat_template to its tokenizer_config.json"
            )

    def __reduce__(self) -> tuple[Any, ...]:  # a compiled template does not pickle; it is made again
        return _unpickled, (None if self.missing else self.source, self.tokenizer, self.thinking)

    @property
    def marks_generation(self) -> bool:
        """Whether the template has ``{% generation %}`` tags; without them spans come from rendering prefixes."""
        return self._compiled.marks_generation

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of what decides ids and mask beside the tokenizer: the template's text, and ``thinking``."""
        decides = self.source if self.thinking == "keep" else f"{self.source}\0thinking={self.thinking}"
        return hashlib.sha256(decides.encode("utf-8", errors="surrogatepass")).hexdigest()

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn, as a probe conversation shows, then the end of text."""
        probe = self.render(PROBE[:2])
        control = set(self.tokenizer.control_tokens.values())
        ends = [id_ for id_, trained in zip(probe.ids, probe.trained, strict=True) if trained and id_ in control]
        return tuple(dict.fromkeys([*ends[-1:], self.tokenizer.eos_id]))

    def render(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Iterable[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
        thinking: str | None = None,
        **variables: Any,
    ) -> Rendered:
        """Ids and mask of a conversation, with the tools that the model may call.

        Trained are the generation spans of assistant turns, end token included. A message's ``train`` overrides:
        False leaves an assistant turn out, True trains another turn's content and the end token after it.
        With ``add_generation_prompt`` the conversation is a question to the model and nothing in it is trained.
        ``thinking`` overrides the template's own; ``variables`` are handed to the template (``enable_thinking=False``
        for Qwen3's). SproutError where the template refuses the conversation.
        """
        return self.trace(messages, tools, add_generation_prompt=add_generation_prompt, thinking=thinking, **variables)[
            0
        ]

    def trace(
        self,
        messages: Sequence[Message | Mapping[str, Any]],
        tools: Iterable[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
        thinking: str | None = None,
        **variables: Any,
    ) -> tuple[Rendered, Reading]:
        """``render``, and the reading that ids and mask were made from; for lints."""
        mode = self.thinking if thinking is None else _known_mode(thinking)
        plain, overrides = plain_messages(messages, mode)
        reading = self.read(plain, tools, add_generation_prompt=add_generation_prompt, **variables)
        if add_generation_prompt:
            return self._encode(cut(reading, [], self.tokenizer.control_tokens)), reading
        return self._encode(self._cut(reading, plain, overrides, mode)), reading

    def render_batch(
        self, conversations: Sequence[tuple[Sequence[Message | Mapping[str, Any]], Iterable[Mapping[str, Any]]]]
    ) -> list[Rendered]:
        """``render`` of several (messages, tools), their texts encoded together: the same ids and masks, in less time.

        SproutError where the template refuses one of them; rendering them one by one tells which.
        """
        cuts: list[list[Piece]] = []
        for messages, tools in conversations:
            pieces = self.shapes.fill(messages, tools)
            if pieces is None:
                plain, overrides = plain_messages(messages, self.thinking)
                pieces = self._cut(self.read(plain, tools), plain, overrides, self.thinking)
            cuts.append(pieces)
        known: dict[str, list[int]] = {}
        if self.tokenizer.dummy_blank == "none":  # a piece has the same ids wherever it stands
            long = {piece.text for pieces in cuts for piece in pieces if piece.control < 0 and len(piece.text) > SHORT}
            texts = list(long)
            known = dict(zip(texts, self.tokenizer.encode_batch(texts), strict=True))
        return [self._encode(pieces, known) for pieces in cuts]

    def _cut(self, reading: Reading, plain: Turns, overrides: list[bool | None], mode: str) -> list[Piece]:
        return cut(reading, spans_of(reading, plain, overrides, mode), self.tokenizer.control_tokens)

    def read(
        self,
        plain: Turns,
        tools: Iterable[Mapping[str, Any]] = (),
        *,
        add_generation_prompt: bool = False,
        **variables: Any,
    ) -> Reading:
        """The rendered text of plain messages (``turns.plain_messages``) and what its parts are; for ``render`` and lints."""
        self._require_source()
        offered = plain_tools(tools)
        marks = choose_marks([plain, offered, variables], self.source)
        given = {"documents": None, **self._named, "tools": offered}
        if variables or offered:
            given = marks.shield({**given, **variables, "tools": offered}, self._control_names) | self._named
        marked = marks.mark(plain, self._control_names)

        def raw(upto: int, prompt: bool) -> str:
            values = {**given, "messages": marked[:upto], "add_generation_prompt": prompt}
            return self._compiled.render(values, marks.generation, marks.characters)

        reading = read_marked(raw(len(plain), add_generation_prompt), marks, self._control_names)
        reading.controls = templates_own(reading, plain)
        require_shown(reading, plain, offered)
        if not self.marks_generation and not add_generation_prompt:
            reading.generations = self._spans_by_prefixes(plain, reading, raw, marks)
        return reading

    def _spans_by_prefixes(self, messages: Turns, reading: Reading, raw: Any, marks: Marks) -> list[Span]:
        """Assistant spans of a template without generation tags: what each reply adds to its own prompt."""
        unmarked = str.maketrans("", "", marks.characters)

        def text(upto: int, prompt: bool) -> str:
            if upto == len(messages) and not prompt:
                return reading.text
            cleaned: str = raw(upto, prompt).translate(unmarked)
            return cleaned

        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = text(i, True), text(i + 1, False)
            # White space around the reply may be the template's to trim; anything else must agree to the letter.
            if not after.startswith(before) or not reading.text.startswith(after.rstrip()):
                raise SproutError(
                    f"the chat template has no {{% generation %}} tags, and message {i + 1} changes how earlier "
                    "messages are written, so the reply's span cannot be found; set template.use to one that has them "
                    "(chatml, qwen3, llama3 ...), or put {% generation %} and {% endgeneration %} around the "
                    "assistant's content and its end token"
                )
            spans.append((len(before), self._end_of_turn(reading, len(before), len(after))))
        return spans

    @staticmethod
    def _end_of_turn(reading: Reading, start: int, end: int) -> int:
        """The end of a reply is after its last control token; what follows (a line break) the model need not write."""
        ends = [stop for begin, stop, _ in reading.controls if start <= begin and stop <= end]
        return ends[-1] if ends else end

    def _encode(self, pieces: list[Piece], known: Mapping[str, list[int]] = NOTHING_KNOWN) -> Rendered:
        """Ids and mask of a conversation; a token is trained where it touches a span.

        ``known`` holds ids of pieces that were encoded before."""
        ids: list[int] = []
        trained: list[bool] = []
        at_start = True
        for text, control, inside in pieces:
            if control >= 0:
                ids.append(control)
                trained.append(bool(inside))
            elif isinstance(inside, bool):
                piece_ids = self._ids_of(text, at_start, known)
                ids += piece_ids
                trained += [inside] * len(piece_ids)
            else:
                self._encode_mixed(text, at_start, inside, ids, trained, known)
            at_start = False
        return Rendered(ids, trained, "".join([piece.text for piece in pieces]))

    def _encode_mixed(
        self,
        piece: str,
        at_start: bool,
        spans: Sequence[Span],
        ids: list[int],
        trained: list[bool],
        known: Mapping[str, list[int]],
    ) -> None:
        """A piece of text that is trained in part; spans are counted from its start."""
        head = spans[0][0]
        if 0 < head <= SHORT and spans[0][1] >= len(piece):
            # The usual case, "assistant\n" and a reply. Where the ids begin with the head's own ids, the head ends
            # there, because a token always stands for the same text; asking for no offsets saves a fifth of the time.
            head_ids = self._ids_of(piece[:head], at_start, known)
            piece_ids = self._ids_of(piece, at_start, known)
            if piece_ids[: len(head_ids)] == head_ids:
                ids += piece_ids
                trained += [False] * len(head_ids)
                trained += [True] * (len(piece_ids) - len(head_ids))
                return
        piece_ids, offsets = self.tokenizer.encode_with_offsets(piece, at_start=at_start)
        mask = [False] * len(piece_ids)
        for a, b in spans:
            first = bisect_right(offsets, a, key=_end)
            behind = bisect_left(offsets, b, lo=first, key=_start)
            mask[first:behind] = [True] * (behind - first)
        ids += piece_ids
        trained += mask

    def _ids_of(self, piece: str, at_start: bool, known: Mapping[str, list[int]]) -> list[int]:
        if len(piece) > SHORT:
            found = known.get(piece)
            return self.tokenizer.encode(piece, at_start=at_start) if found is None else found
        short = self._short_ids.get((piece, at_start))
        if short is None:
            short = self.tokenizer.encode(piece, at_start=at_start)
            if len(self._short_ids) < 4096:
                self._short_ids[piece, at_start] = short
        return short


def _unpickled(source: str | None, tokenizer: Tokenizer, thinking: str) -> ChatTemplate:
    return ChatTemplate(source, tokenizer, thinking=thinking)


def _known_mode(thinking: str) -> str:
    if thinking not in THINKING:
        raise SproutError(f"thinking is {thinking!r}; expected {', '.join(THINKING)}")
    return thinking


def _start(offset: Span) -> int:
    return offset[0]


def _end(offset: Span) -> int:
    return offset[1]


# --- what a template must do ------------------------------------------------------------------------------------------

PROBE = (Message("user", "2 + 2 ="), Message("assistant", "4"), Message("user", "3 + 3 ="), Message("assistant", "6"))


def check_template(template: ChatTemplate) -> int:
    """The id of the trained end token. SproutError with the first fault that ``lint_template`` finds."""
    from .lint import require_sound

    return require_sound(template)
