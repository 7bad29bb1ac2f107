"""Questions whose answers can be checked by rule: read, asked greedily, and judged. No reply is ever executed."""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from ..config.schema import SourceConfig
from ..data.sources import Counts, Row, read_rows
from ..errors import DataError
from ..infer.engine import Engine, Request
from ..infer.sampling import SamplingParams
from ..model import Transformer
from ..tokenizer.template import ChatTemplate
from ..tokenizer.tokenizer import Tokenizer

CHECKS = ("only", "last_number", "exact")
# A sign counts only where no digit stands before it: "80-15" ends in 15.
_NUMBER = re.compile(r"(?:(?<!\d)[-−])?\d+(?:,\d{3})*(?:\.\d+)?")
_FULL_STOPS = "。.．"


@dataclass(frozen=True, slots=True)
class Question:
    """One question and how its reply is judged; see ``docs/architecture.md``."""

    id: str
    kind: str
    language: str
    messages: tuple[dict[str, str], ...]
    answer: str
    check: str
    options: tuple[str, ...] = ()


def load_questions(path: Path | str) -> list[Question]:
    """The questions of a ``questions.jsonl``. DataError with file:line for the first row that is none."""
    questions: dict[str, Question] = {}
    for row in read_rows(SourceConfig(path=str(path)), "error", Counts()):
        question = _question(row)
        if question.id in questions:
            raise DataError(f"{row.where}: id {question.id!r} stands twice; give each question an id of its own")
        questions[question.id] = question
    return list(questions.values())


def _question(row: Row) -> Question:
    value = row.value

    def fault(sentence: str) -> DataError:
        return DataError(
            f"{row.where}: {sentence}; a question has id, kind, language, messages, answer, check, options"
        )

    if not isinstance(value, dict):
        raise fault(f"expected an object, found {type(value).__name__}")
    for key in ("id", "kind", "language", "answer", "check"):
        if not isinstance(value.get(key), str) or not value[key].strip():
            raise fault(f"{key} must be text that is not empty, found {value.get(key)!r}")
    if value["check"] not in CHECKS:
        raise fault(f"check is {value['check']!r}; choose one of {', '.join(CHECKS)}")
    if value["check"] == "last_number" and not _NUMBER.fullmatch(_plain_digits(value["answer"])):
        raise fault(f"check is last_number, and the answer {value['answer']!r} is no number")
    messages, options = value.get("messages"), value.get("options") or []
    if not isinstance(messages, list) or not messages or not all(_is_message(m) for m in messages):
        raise fault("messages must be a list of {role, content}, at least one")
    if messages[-1]["role"] != "user":
        raise fault(f"the last message must be the user's, found role {messages[-1]['role']!r}")
    if not isinstance(options, list) or not all(isinstance(option, str) and option for option in options):
        raise fault("options must be a list of texts")
    chat = tuple({"role": m["role"], "content": m["content"]} for m in messages)
    id_, kind, language = (value[key] for key in ("id", "kind", "language"))
    return Question(id_, kind, language, chat, value["answer"], value["check"], tuple(options))


def _is_message(message: Any) -> bool:
    return isinstance(message, dict) and all(isinstance(message.get(key), str) for key in ("role", "content"))


# --- judging ------------------------------------------------------------------------------------------------------------


def check(reply: str, question: Question) -> bool:
    """Whether ``reply`` answers the question, by the question's own rule."""
    if question.check == "only":
        return _only(reply, question)
    if question.check == "last_number":
        numbers = _NUMBER.findall(_plain_digits(reply))
        return bool(numbers) and _value(numbers[-1]) == _value(_plain_digits(question.answer))
    return _trimmed(reply) == _trimmed(question.answer)


def _only(reply: str, question: Question) -> bool:
    """The reply names the answer and no other option; letters' case aside.

    An option named in the question may be named again in the reply, except where the question also names the answer:
    that one asks to choose, and naming both chooses nothing.
    """
    answer = _folded(question.answer)
    options = {_folded(option) for option in question.options} | {answer}
    asked = _named(_folded(" ".join(m["content"] for m in question.messages if m["role"] == "user")), options)
    named = _named(_folded(reply), options)
    excused = asked if answer not in asked else set()
    return answer in named and not named - {answer} - excused


def _named(text: str, options: set[str]) -> set[str]:
    """Options that stand in ``text``, but not merely as a part of a longer one that stands there."""
    spans = [(start, start + len(option), option) for option in options for start in _places(text, option)]
    return {
        option
        for start, end, option in spans
        if not any(a <= start and end <= b and b - a > end - start for a, b, _ in spans)
    }


def _places(text: str, option: str) -> list[int]:
    """Where ``option`` begins in ``text``; in alphabets with spaces only as whole words ("Leo" is not in "leopard")."""
    places, start = [], text.find(option)
    while start >= 0:
        end = start + len(option)
        inside_word = (start > 0 and _joined(text[start - 1], text[start])) or (
            end < len(text) and _joined(text[end - 1], text[end])
        )
        if not inside_word:
            places.append(start)
        start = text.find(option, start + 1)
    return places


def _joined(left: str, right: str) -> bool:
    return all(c.isalnum() and ord(c) < 0x250 for c in (left, right))  # Latin letters and digits


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _plain_digits(text: str) -> str:
    return unicodedata.normalize("NFKC", text).strip()


def _value(number: str) -> Decimal:
    return Decimal(number.replace(",", "").replace("−", "-"))


def _trimmed(text: str) -> str:
    text = unicodedata.normalize("NFC", text).strip()
    return text[:-1].rstrip() if text and text[-1] in _FULL_STOPS else text


# --- asking -------------------------------------------------------------------------------------------------------------


def ask(
    model: Transformer,
    tokenizer: Tokenizer,
    questions: Sequence[Question],
    *,
    max_tokens: int = 64,
    batch_size: int = 128,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Ask every question greedily and judge the replies.

    Returns ``checked`` (share right: overall, by_kind, by_language; counts of questions by kind), ``stop_rate`` (share
    of replies that ended by themselves) and ``replies``. ``progress`` is told (done, all).
    """
    if not questions:
        raise DataError("there is no question to ask; name a questions.jsonl with at least one, or other kinds")
    template = ChatTemplate.of(tokenizer)
    engine = Engine(model, tokenizer, batch_size=batch_size)
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    requests = []
    for question in questions:
        ids = template.render(question.messages, add_generation_prompt=True).ids
        if len(ids) >= model.config.max_seq_len:
            raise DataError(
                f"question {question.id!r} takes {len(ids)} tokens and the model's context holds "
                f"{model.config.max_seq_len}, the answer included; take the question out, or shorten it"
            )
        requests.append(Request(ids, params, template.stop_ids))
    done = 0

    def finished(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, len(questions))

    completions = engine.generate(requests, on_finished=finished)
    # As written, broken bytes included: they make an exact answer wrong.
    texts = [tokenizer.decode(c.ids, after=r.continues) for r, c in zip(requests, completions, strict=True)]
    replies = [
        {"id": q.id, "reply": text, "ok": check(text, q), "stopped": c.finish_reason == "stop"}
        for q, c, text in zip(questions, completions, texts, strict=True)
    ]
    return {
        "checked": _shares(questions, [bool(reply["ok"]) for reply in replies]),
        "stop_rate": sum(bool(reply["stopped"]) for reply in replies) / len(replies),
        "replies": replies,
    }


def _shares(questions: Sequence[Question], right: Sequence[bool]) -> dict[str, Any]:
    by_kind, by_language = defaultdict(list), defaultdict(list)
    for question, ok in zip(questions, right, strict=True):
        by_kind[question.kind].append(ok)
        by_language[question.language].append(ok)
    return {
        "overall": sum(right) / len(right),
        "by_kind": {kind: sum(oks) / len(oks) for kind, oks in sorted(by_kind.items())},
        "by_language": {language: sum(oks) / len(oks) for language, oks in sorted(by_language.items())},
        "counts": {kind: len(oks) for kind, oks in sorted(by_kind.items())},
    }
