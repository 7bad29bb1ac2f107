"""What a chat template must do, shown on probe conversations: ends trained, prompts that match, nothing dropped."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..data.records import Message, ToolCall, Tools
from ..errors import SproutError
from .library import load_template
from .template import PROBE, ChatTemplate
from .tokenizer import BYTE_OF_CHARACTER, CONTROL_TOKENS, Tokenizer
from .turns import plain_messages

# What looks like a control token of some family. One that the tokenizer lacks would be spelled out in pieces.
_TOKEN_LIKE = re.compile(r"<\|[^|<>\s]{1,40}\|>|<｜[^｜<>\s]{1,40}｜>|<(?:start|end)_of_turn>")
_TAG_LIKE = re.compile(r"</?(?:think|tool_call|tool_response)>")

_TOOLS: Tools = (
    {
        "type": "function",
        "function": {
            "name": "weather_of",
            "description": "Tells tomorrow's weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    },
)
_CALL = (ToolCall("weather_of", {"city": "Lisbon"}),)


@dataclass(frozen=True, slots=True)
class Finding:
    """One fault: ``fail`` refuses the template, ``warn`` is for the eye. ``pitfall`` is a number of docs/pitfalls.md."""

    level: Literal["fail", "warn"]
    rule: str
    sentence: str
    cure: str
    pitfall: int | None = None


@dataclass(frozen=True, slots=True)
class _Probe:
    """A conversation to render. Its texts are words that no template writes."""

    what: str
    messages: tuple[Message, ...]
    tools: Tools = ()


_PROBES = (
    _Probe("a conversation", PROBE[:2]),
    _Probe("a conversation of two turns", PROBE),
    _Probe("a system message", (Message("system", "Answer in Ruritanian."), *PROBE)),
    _Probe(
        "thinking",
        (
            Message("user", "Qualms?"),
            Message("assistant", "Nonesuch.", reasoning_content="Pondering uno."),
            Message("user", "Surely?"),
            Message("assistant", "Verily.", reasoning_content="Pondering duo."),
        ),
    ),
    _Probe(
        "tools",
        (
            Message("system", "Answer in Ruritanian."),
            Message("user", "Umbrella?"),
            Message("assistant", "", tool_calls=_CALL),
            Message("tool", "Drizzling.", name="weather_of"),
            Message("assistant", "Bring it."),
            Message("user", "Again?"),
            Message("assistant", "Looking.", tool_calls=_CALL),
            Message("tool", "Hailing.", name="weather_of"),
            Message("assistant", "Helmet."),
        ),
        _TOOLS,
    ),
)


def lint_template(template: ChatTemplate) -> list[Finding]:
    """Every fault of a template with its tokenizer, as probe conversations show it; an empty list is a sound template."""
    findings: list[Finding] = []
    try:
        first = _Traced(template, _PROBES[0])
    except SproutError as error:
        return [Finding("fail", "renders", str(error), "mend the template")]
    findings += _missing_tokens(first)
    end = first.ends[0]
    ends = {end, template.tokenizer.token_text(template.tokenizer.eos_id)}
    for probe in _PROBES:
        try:
            traced = _Traced(template, probe)
        except SproutError as error:
            findings.append(_refused(template, probe, error))
            continue
        findings += _ends(traced, ends)
        for check in (_missing_tokens, _others_trained, _dropped, _first_token, _prompts, _injection):
            findings += check(traced)
    by_rule: dict[str, Finding] = {}  # one finding for each rule: the first place where it is broken tells enough
    for finding in findings:
        by_rule.setdefault(finding.rule, finding)
    return list(by_rule.values())


class _Traced:
    """A probe, rendered: ids, mask, and the reading that they were made from."""

    def __init__(self, template: ChatTemplate, probe: _Probe) -> None:
        self.template, self.probe = template, probe
        self.rendered, self.reading = template.trace(probe.messages, probe.tools, thinking="keep")

    @property
    def text(self) -> str:
        return self.reading.text

    @property
    def turns(self) -> Iterator[tuple[int, Message, tuple[int, int] | None]]:
        """Assistant turns with their span: from the first to the last generation block that holds a part of theirs."""
        assistants = [i for i, message in enumerate(self.probe.messages) if message.role == "assistant"]
        generations = self.reading.generations
        for k, i in enumerate(assistants):
            parts = [(a, b) for parts in self.reading.parts for a, b, owner in parts if owner == i]
            spans = [(a, b) for a, b in generations if any(a <= start and end <= b for start, end in parts)]
            if not parts and len(generations) == len(assistants):
                spans = [generations[k]]
            yield i, self.probe.messages[i], (spans[0][0], spans[-1][1]) if spans else None

    @property
    def ends(self) -> list[str | None]:
        """The control token that ends each assistant turn's span; None where ordinary text does, or nothing is trained."""
        return [None if span is None else self.end_of(span) for _, _, span in self.turns]

    def end_of(self, span: tuple[int, int]) -> str | None:
        inside = [c for c in self.reading.controls if span[0] <= c[0] and c[1] <= span[1]]
        return inside[-1][2] if inside and not self.text[inside[-1][1] : span[1]].strip() else None


def _refused(template: ChatTemplate, probe: _Probe, error: SproutError) -> Finding:
    """A probe that the template, or the renderer, does not take: a limit to know of, and no fault unless it is plain."""
    if probe.messages == PROBE and template.marks_generation:
        return Finding("fail", "renders", f"on {probe.what}: {error}", "mend the template")
    return Finding(
        "warn",
        f"takes {probe.what}",
        f"rows with {probe.what} will be refused: {error}",
        "use another template for them",
    )


# --- the checks -------------------------------------------------------------------------------------------------------


def _ends(traced: _Traced, ends: set[str | None]) -> Iterator[Finding]:
    for i, message, span in traced.turns:
        kind = (
            "a tool call"
            if message.tool_calls
            else "a reply after thinking"
            if message.reasoning_content
            else "a reply"
        )
        where = f"{traced.probe.what}, message {i + 1} ({kind})"
        if span is None or not traced.text[span[0] : span[1]].strip():
            yield Finding(
                "fail",
                f"{kind} is trained",
                f"the chat template trains nothing of an assistant's turn ({where}): it does not lie inside {{% generation %}}",
                "put {% generation %} and {% endgeneration %} around the assistant's content and its end token",
                1,
            )
            continue
        end = traced.end_of(span)
        if end is None or end not in ends:
            missing = next((name for start, _, name in traced.reading.controls if start >= span[1]), None)
            missing = missing or traced.template.tokenizer.token_text(traced.template.tokenizer.eos_id)
            tail = traced.text[span[0] : span[1]][-20:] if end is None else end
            yield Finding(
                "fail",
                f"the end token of {kind} is trained",
                f"the chat template ends what is trained of an assistant's turn at {tail!r} ({where}): "
                f"the end token {missing!r} is not trained, so the model would never stop",
                "move {% endgeneration %} behind the end token",
                1,
            )


def _others_trained(traced: _Traced) -> Iterator[Finding]:
    for a, b, i in traced.reading.contents:
        role = traced.probe.messages[i].role
        if role != "assistant" and any(start < b and a < end for start, end in traced.reading.generations):
            yield Finding(
                "fail",
                "only the assistant is trained",
                f"the chat template trains the text of a {role} message ({traced.probe.what}, message {i + 1})",
                "end the {% generation %} block of a turn before the next turn begins",
                3,
            )


def _missing_tokens(traced: _Traced) -> Iterator[Finding]:
    spans = {(start, end) for start, end, _ in traced.reading.controls}
    written = {m.group() for m in _TOKEN_LIKE.finditer(traced.text) if m.span() not in spans}
    if written:
        yield Finding(
            "fail",
            "the tokenizer has its control tokens",
            f"the chat template writes {', '.join(map(repr, sorted(written)))}, which this tokenizer does not have as "
            "control tokens, so they would be spelled out as text",
            "use a template made for this tokenizer, or add the tokens to it (tokenizer.new_tokens in the recipe)",
            6,
        )
    spelled = {m.group() for m in _TAG_LIKE.finditer(traced.text) if m.span() not in spans}
    if spelled:
        yield Finding(
            "warn",
            "tags are tokens",
            f"{', '.join(map(repr, sorted(spelled)))} are no control tokens of this tokenizer and are written as text",
            "add them with tokenizer.new_tokens if they should be one token each",
        )


def _dropped(traced: _Traced) -> Iterator[Finding]:
    for i, message in enumerate(traced.probe.messages):
        if message.content not in traced.text:
            yield Finding(
                "fail",
                "every message is shown",
                f"the chat template drops the {message.role} message ({traced.probe.what}, message {i + 1})",
                "make it write every message",
                13,
            )
        if message.reasoning_content and message.reasoning_content not in traced.text:
            which = "the last turn" if i == len(traced.probe.messages) - 1 else "earlier turns"
            yield Finding(
                "warn",
                f"thinking of {which} is shown",
                f"the chat template leaves out the reasoning of {which}, so it is not trained",
                "use chatml, which shows all of it",
                13,
            )


def _first_token(traced: _Traced) -> Iterator[Finding]:
    ids, tokenizer = traced.rendered.ids, traced.template.tokenizer
    if len(ids) > 1 and ids[0] == ids[1] and ids[0] in tokenizer.control_tokens.values():
        yield Finding(
            "fail",
            "one first token",
            f"the chat template writes {tokenizer.token_text(ids[0])!r} twice at the start of a conversation",
            "take one out of the template",
            7,
        )


def _prompts(traced: _Traced) -> Iterator[Finding]:
    template, probe = traced.template, traced.probe
    for i, message in enumerate(probe.messages):
        if message.role != "assistant":
            continue
        prompt = template.render(probe.messages[:i], probe.tools, add_generation_prompt=True).ids
        alone = template.render(probe.messages[: i + 1], probe.tools).ids
        if alone[: len(prompt)] != prompt:
            yield Finding(
                "fail",
                "prompts begin their conversation",
                f"the prompt before a reply has other ids than the same text in training ({probe.what}, message {i + 1}), "
                "so the model would meet a prompt that it never saw",
                "let the generation prompt write exactly what stands before the assistant's content",
                6,
            )
        elif traced.rendered.ids[: len(prompt)] != prompt:
            yield Finding(
                "warn",
                "earlier turns stay as they are",
                f"the chat template writes earlier turns anew when more is said ({probe.what}, message {i + 1})",
                "use a template that only appends, such as chatml",
                6,
            )


def _injection(traced: _Traced) -> Iterator[Finding]:
    """Control tokens of a conversation whose user, system and tool texts hold their names: none may come of that."""
    template = traced.template
    names = " ".join(template.tokenizer.control_tokens)

    def with_text(text: str) -> list[str]:
        messages = [
            m if m.role == "assistant" else Message(m.role, f"{m.content} {text}", name=m.name)
            for m in traced.probe.messages
        ]
        plain, _ = plain_messages(messages, "keep")
        tools = [{**tool, "function": {**tool["function"], "description": text}} for tool in traced.probe.tools]
        return [name for _, _, name in template.read(plain, tools).controls]

    if with_text(names) != with_text("word"):
        yield Finding(
            "fail",
            "text stays text",
            f"a control token written in a message becomes a control token ({traced.probe.what})",
            "let the template write messages as they are, without taking parts out of them",
            4,
        )


# --- as a report ------------------------------------------------------------------------------------------------------


def require_sound(template: ChatTemplate) -> int:
    """The id of the token that ends an assistant's turn. SproutError with the first fault that refuses the template."""
    for finding in lint_template(template):
        if finding.level == "fail":
            raise SproutError(f"{finding.sentence}; {finding.cure}")
    return template.stop_ids[0]


def lint(path_or_name: str | Path, tokenizer: Tokenizer | None = None) -> dict[str, Any]:
    """Report on a tokenizer's own template (a folder), or on a template by name or file.

    A template alone is tried with ``tokenizer``, else with a stand-in that has every control token the template writes.
    The report: ``template``, ``tokenizer``, ``ok``, ``end`` (the trained end token), ``findings``.
    """
    path = Path(path_or_name)
    if path.is_dir():
        tokenizer = tokenizer or Tokenizer.load(path)
        template = ChatTemplate.of(tokenizer)
    else:
        source = load_template(path_or_name)
        tokenizer = tokenizer or stand_in_tokenizer(source)
        template = ChatTemplate(source, tokenizer)
    findings = lint_template(template)
    ok = all(finding.level != "fail" for finding in findings)
    return {
        "template": str(path_or_name),
        "tokenizer": tokenizer.where,
        "ok": ok,
        "end": tokenizer.token_text(template.stop_ids[0]) if ok else None,
        "findings": [asdict(finding) for finding in findings],
    }


def print_lint(report: dict[str, Any], say: Callable[[str], None] = print) -> bool:
    """Show a report, worst first; whether the template may be trained with."""
    for finding in sorted(report["findings"], key=lambda f: f["level"]):
        say(f"  {'FAIL' if finding['level'] == 'fail' else 'note':5} {finding['rule']}: {finding['sentence']}")
        say(f"        cure: {finding['cure']}")
    if report["ok"]:
        say(f"{report['template']}: sound; {report['end']!r} ends an assistant's turn and is trained")
    else:
        say(f"{report['template']}: refused")
    return bool(report["ok"])


def stand_in_tokenizer(source: str, extra: Sequence[str] = ()) -> Tokenizer:
    """A byte-level tokenizer without merges that has our control tokens and every one that ``source`` writes."""
    control = list(dict.fromkeys([*CONTROL_TOKENS, *_TOKEN_LIKE.findall(source), *_TAG_LIKE.findall(source), *extra]))
    added = [
        {"id": i, "content": name, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, name in enumerate(control)
    ]
    vocabulary = {name: i for i, name in enumerate([*control, *sorted(BYTE_OF_CHARACTER)])}
    step = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    data = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": step,
        "decoder": step,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    named = {"eos_token": CONTROL_TOKENS[0], "pad_token": CONTROL_TOKENS[1], "unk_token": CONTROL_TOKENS[2]}
    return Tokenizer(json.dumps(data, ensure_ascii=False), named, where="stand-in tokenizer")
