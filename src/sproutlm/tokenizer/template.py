"""The one chat-template renderer: messages to token ids and the mask of what is trained.

How a conversation becomes ids (pitfalls 3 to 7):

1. What a person wrote goes into the template between private marks: one pair around each message's content, one pair
   around every control token's name inside it. ``{% generation %}`` blocks put marks around what the model writes.
2. The rendered text is read once from left to right. Marks are taken out and become spans; a control token counts only
   where no mark touches it, that is, where the template itself wrote it.
3. The text between two control tokens is encoded in one go, control tokens off; character offsets give the mask.

Nothing is found by searching ids, and no text of a person can become a control token.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..data.records import Message
from ..errors import SproutError
from .jinja import compile_template
from .marks import Reading, Span, choose_marks, read_marked
from .tokenizer import Tokenizer, token_name

CHATML = """\
{%- for message in messages %}
    {%- if message['role'] not in ('system', 'user', 'assistant') %}
        {{- raise_exception("role '" + message['role'] + "' is unknown; roles are system, user and assistant") }}
    {%- endif %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['role'] == 'assistant' %}
        {%- generation %}
            {{- message['content'] + '<|im_end|>' }}
        {%- endgeneration %}
    {%- else %}
        {{- message['content'] + '<|im_end|>' }}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


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
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer) -> None:
        self.missing = source is None
        self.source = source = source or ""
        self.tokenizer = tokenizer
        self._compiled = compile_template(source)
        # Longest first: where one control token begins with another, the longer one is meant.
        self._control_names = tuple(sorted(tokenizer.control_tokens, key=len, reverse=True))
        self._named = {
            key: token_name(tokenizer.config.get(key)) or ""
            for key in ("bos_token", "eos_token", "pad_token", "unk_token")
            if token_name(tokenizer.config.get(key))
        }

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> ChatTemplate:
        """The tokenizer's own template; a sentence where it has none."""
        template = cls(tokenizer.chat_template, tokenizer)
        template._require_source()
        return template

    def _require_source(self) -> None:
        if self.missing:
            raise SproutError(
                f"{self.tokenizer.where}: this tokenizer has no chat template, so conversations cannot be written as "
                "tokens; add chat_template to its tokenizer_config.json"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatTemplate, (
            None if self.missing else self.source,
            self.tokenizer,
        )  # a compiled template does not pickle; it is made again

    @property
    def marks_generation(self) -> bool:
        """Whether the template has ``{% generation %}`` tags; without them spans come from rendering prefixes."""
        return self._compiled.marks_generation

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the template's text."""
        return hashlib.sha256(self.source.encode("utf-8", errors="surrogatepass")).hexdigest()

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids that end an assistant's turn, as a probe conversation shows, then the end of text."""
        probe = self.render(PROBE[:2])
        control = set(self.tokenizer.control_tokens.values())
        ends = [id_ for id_, trained in zip(probe.ids, probe.trained, strict=True) if trained and id_ in control]
        return tuple(dict.fromkeys([*ends[-1:], self.tokenizer.eos_id]))

    def render(
        self, messages: Sequence[Message | Mapping[str, Any]], *, add_generation_prompt: bool = False
    ) -> Rendered:
        """Ids and mask of a conversation.

        Trained are the generation spans of assistant turns, end token included. A message's ``train`` overrides:
        False leaves an assistant turn out, True trains another turn's content and the end token after it.
        With ``add_generation_prompt`` the conversation is a question to the model and nothing in it is trained.
        SproutError where the template refuses the conversation.
        """
        self._require_source()
        plain, overrides = _plain(messages)
        marks = choose_marks(plain, self.source)
        raw = self._render_text(marks.mark(plain, self._control_names), add_generation_prompt, marks.generation)
        reading = read_marked(raw, marks, self._control_names)
        roles = [message["role"] for message in plain]
        reading.controls = [c for c in reading.controls if not _inside_anothers_content(c, reading, roles)]
        if add_generation_prompt:
            return self._encode(reading, [])
        if not self.marks_generation:
            reading.generations = self._spans_by_prefixes(plain, reading)
        spans = _trained_spans(reading, roles, overrides)
        return self._encode(reading, spans)

    def _render_text(self, messages: list[dict[str, Any]], add_generation_prompt: bool, marks: tuple[str, str]) -> str:
        variables = {
            **self._named,
            "messages": messages,
            "tools": None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        return self._compiled.render(variables, marks)

    def _spans_by_prefixes(self, messages: list[dict[str, Any]], reading: Reading) -> list[Span]:
        """Assistant spans of a template without generation tags: what each reply adds to its own prompt."""

        def text(upto: int, prompt: bool) -> str:
            marks = choose_marks(messages, self.source)
            marked = marks.mark(messages[:upto], self._control_names)
            return read_marked(self._render_text(marked, prompt, marks.generation), marks, self._control_names).text

        spans = []
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before, after = text(i, True), text(i + 1, False)
            # White space around the reply may be the template's to trim; anything else must agree to the letter.
            if not after.startswith(before) or not reading.text.startswith(after.rstrip()):
                raise SproutError(
                    f"the chat template has no {{% generation %}} tags, and message {i + 1} changes how earlier "
                    "messages are written, so the reply's span cannot be found; put {% generation %} and "
                    "{% endgeneration %} around the assistant's content and its end token in the template"
                )
            spans.append((len(before), self._end_of_turn(reading, len(before), len(after))))
        return spans

    @staticmethod
    def _end_of_turn(reading: Reading, start: int, end: int) -> int:
        """The end of a reply is after its last control token; what follows (a line break) the model need not write."""
        ends = [stop for begin, stop, _ in reading.controls if start <= begin and stop <= end]
        return ends[-1] if ends else end

    def _encode(self, reading: Reading, spans: list[Span]) -> Rendered:
        ids: list[int] = []
        trained: list[bool] = []
        remaining = _Spans(spans)

        def text_piece(start: int, end: int) -> None:
            if start == end:
                return
            piece_ids, offsets = self.tokenizer.encode_with_offsets(reading.text[start:end])
            ids.extend(piece_ids)
            trained.extend(remaining.touch(start + a, start + b) for a, b in offsets)

        position = 0
        for start, end, name in reading.controls:
            text_piece(position, start)
            ids.append(self.tokenizer.control_tokens[name])
            trained.append(remaining.touch(start, end))
            position = end
        text_piece(position, len(reading.text))
        return Rendered(ids, trained, reading.text)


class _Spans:
    """Answers "does this token touch a trained span?" for tokens in order, looking at each span once."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self._spans = sorted(spans)
        self._next = 0

    def touch(self, start: int, end: int) -> bool:
        while self._next < len(self._spans) and self._spans[self._next][1] <= start:
            self._next += 1
        return self._next < len(self._spans) and self._spans[self._next][0] < end


def _inside_anothers_content(control: tuple[int, int, str], reading: Reading, roles: list[str]) -> bool:
    """Whether a control token's name came about inside the text of a user, system or tool turn.

    Names that stand in the content are shielded; this one the template put together by leaving something out, say
    ``replace('#', '')`` on ``<|im_#end|>``. In a reply it is the template's own doing: Qwen's writes ``</think>`` there.
    """
    return any(a <= control[0] < b and roles[i] != "assistant" for a, b, i in reading.contents)


def _trained_spans(reading: Reading, roles: list[str], overrides: list[bool | None]) -> list[Span]:
    """Generation spans, less the turns that say train=False, plus the turns of others that say train=True."""
    assistants = [i for i, role in enumerate(roles) if role == "assistant"]
    spans: list[Span] = []
    for k, (start, end) in enumerate(reading.generations):
        owners = {i for a, b, i in reading.contents if start <= a and b <= end}
        if not owners and len(reading.generations) == len(assistants):
            owners = {assistants[k]}  # an empty reply carries no mark; its place in the order tells whose it is
        if not any(overrides[i] is False for i in owners):
            spans.append((start, end))
    for a, b, i in reading.contents:
        if overrides[i] and roles[i] != "assistant":
            end = next((stop for begin, stop, _ in reading.controls if begin >= b), b)
            spans.append((a, end))
    return _merged(spans)


def _merged(spans: list[Span]) -> list[Span]:
    merged: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def _plain(messages: Sequence[Message | Mapping[str, Any]]) -> tuple[list[dict[str, Any]], list[bool | None]]:
    """Messages as dictionaries for the template, and their ``train`` overrides apart."""
    plain: list[dict[str, Any]] = []
    overrides: list[bool | None] = []
    for index, message in enumerate(messages):
        fields = {**message.as_dict(), "train": message.train} if isinstance(message, Message) else dict(message)
        train = fields.pop("train", None)
        overrides.append(None if train is None else bool(train))
        for key in ("role", "content"):
            if not isinstance(fields.get(key), str):
                raise SproutError(
                    f"message {index + 1}: {key} must be text, found {type(fields.get(key)).__name__}; "
                    "a message is {role: system|user|assistant, content: text}"
                )
        plain.append(fields)
    if not plain:
        raise SproutError("a conversation needs at least one message; this one is empty")
    return plain, overrides


# --- what a template must do ------------------------------------------------------------------------------------------

PROBE = (Message("user", "2 + 2 ="), Message("assistant", "4"), Message("user", "3 + 3 ="), Message("assistant", "6"))


def check_template(template: ChatTemplate) -> int:
    """The id of the trained end token. SproutError where a model trained with this template could never stop."""
    # Two turns show whether every turn's end is trained; a template without tags may allow only one (Qwen3's does).
    probe = template.render(PROBE if template.marks_generation else PROBE[:2])
    tokenizer = template.tokenizer
    trained = [id_ for id_, t in zip(probe.ids, probe.trained, strict=True) if t]
    if not trained:
        raise SproutError(
            "the chat template trains nothing: no token of the assistant's turns lies inside {% generation %}; "
            "put {% generation %} and {% endgeneration %} around the assistant's content and its end token"
        )
    last_by_turn = [
        id_
        for i, (id_, t) in enumerate(zip(probe.ids, probe.trained, strict=True))
        if t and (i + 1 == len(probe.ids) or not probe.trained[i + 1])
    ]
    control = set(tokenizer.control_tokens.values())
    for id_ in last_by_turn:
        if id_ not in control:
            after = next((i for i in reversed(probe.ids) if i in control), tokenizer.eos_id)
            raise SproutError(
                f"the chat template ends what is trained of an assistant's turn at {tokenizer.token_text(id_)!r}, "
                f"which is no stop token: the end token {tokenizer.token_text(after)!r} is not trained, so the model "
                "would never stop; move {% endgeneration %} behind the end token"
            )
    return last_by_turn[-1]
