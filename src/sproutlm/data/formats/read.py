"""From a row to a record: one function for each family of schemas, tolerant of the shapes its members have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..conversations import (
    answer_turn,
    as_turns,
    check_chat,
    conversation,
    reply_turns,
    says_something,
    tools_in,
    turns_from,
    with_system,
)
from ..fields import EmptyRow, RowError, a_kind, column_of, lookup, optional_string, string_at
from ..records import Chat, Labelled, Message, Preference, Text, Tools, UnpairedPreference
from ..tool_calls import from_json, tools_of

PROMPTS, COMPLETIONS = ("prompt", "question"), ("completion", "answer")
TEXT_COLUMNS = ("text", "sentence", "review", "content")
RATINGS = ("label", "kto_tag")


# --- text and labelled ------------------------------------------------------------------------------------------------


def text(value: Any, columns: dict[str, str]) -> Text:
    """``text``, or a row that is a string."""
    return Text(_filled(value if isinstance(value, str) else string_at(value, "text", columns)))


def _filled(found: str) -> str:
    if not found.strip():
        raise EmptyRow("the text is empty")
    return found


def labelled(value: Any, columns: dict[str, str]) -> Labelled:
    """A label, a name or an integer as the file has it, and a text under one of its usual names."""
    label = _label(lookup(value, "label", columns))
    field = column_of(value, TEXT_COLUMNS, columns)
    if field not in columns and isinstance(value, dict) and field not in value and len(value) == 2 and "label" in value:
        field = next(key for key in value if key != "label")  # label and one other column: that is the text
    return Labelled(_filled(string_at(value, field, columns)), label)


def _label(label: Any) -> str | int:
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, float) and label.is_integer():
        return int(label)  # pandas makes 1.0 of 1 where another row has none
    if isinstance(label, str):
        label = label.strip()
        if not label:
            raise RowError("the label is empty; name the class, or take the row out", reason="label is empty")
        return label
    if not isinstance(label, int):
        raise RowError(
            f"label is {a_kind(label)}, not a name or a whole number", reason="label is not a name or a number"
        )
    return label


# --- conversations ----------------------------------------------------------------------------------------------------


def instruction(value: Any, columns: dict[str, str]) -> Chat:
    """Alpaca's columns: the input goes below the instruction; ``system`` and ``history`` (pairs) are honoured."""
    asked = string_at(value, "instruction", columns)
    extra = optional_string(value, "input", columns)
    question = f"{asked}\n{extra}" if extra.strip() else asked
    answer = string_at(value, "output", columns)
    history = from_json(lookup(value, "history", columns, default=None), "history") or []
    if not isinstance(history, list):
        raise RowError(f"history is {a_kind(history)}, not a list of pairs", reason="history is not pairs")
    return _chat_of_pairs([*map(_pair, history), (question, answer)], value, columns)


def _pair(past: Any) -> tuple[str, str]:
    if isinstance(past, list | tuple) and len(past) == 2 and all(isinstance(p, str) for p in past):
        return past[0], past[1]
    raise RowError("history is not a list of [question, answer] pairs of strings", reason="history is not pairs")


def _chat_of_pairs(pairs: Sequence[tuple[str, str]], value: Any, columns: dict[str, str]) -> Chat:
    messages: list[Message] = []
    for question, answer in pairs:
        if not question.strip() or not answer.strip():
            raise EmptyRow("the question or the answer is empty")
        messages += [Message("user", question), answer_turn(answer)]
    tools = tools_of(lookup(value, "tools", columns, default=None))
    return Chat(with_system(tuple(messages), optional_string(value, "system", columns)), tools)


def pair(value: Any, columns: dict[str, str]) -> Chat:
    """A prompt and its completion, or a question and its answer, as strings or as message lists."""
    prompt_field, completion_field = column_of(value, PROMPTS, columns), column_of(value, COMPLETIONS, columns)
    prompt = as_turns(lookup(value, prompt_field, columns))
    if not isinstance(prompt, list):
        question = string_at(value, prompt_field, columns)
        return _chat_of_pairs([(question, string_at(value, completion_field, columns))], value, columns)
    reply = reply_turns(lookup(value, completion_field, columns), completion_field)
    turns = with_system((*turns_from(prompt, prompt_field), *reply), optional_string(value, "system", columns))
    return check_chat(turns, tools_in(prompt, lookup(value, "tools", columns, default=None)))


def messages(value: Any, columns: dict[str, str]) -> Chat:
    """A message list, bare or under ``messages`` or ``conversations``."""
    return check_chat(*conversation(value, columns))


# --- preference -------------------------------------------------------------------------------------------------------


def preference(value: Any, columns: dict[str, str]) -> Preference:
    """chosen and rejected as strings, as one message, or as message lists; the prompt apart or their common beginning."""
    chosen = reply_turns(lookup(value, "chosen", columns), "chosen")
    rejected = reply_turns(lookup(value, "rejected", columns), "rejected")
    prompt, tools = _prompt(value, columns)
    if not prompt:  # both sides hold the whole conversation
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    elif chosen[: len(prompt)] == prompt and rejected[: len(prompt)] == prompt:
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not prompt:
        raise RowError("there is no prompt: chosen and rejected share no first message", reason="no prompt")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        _check_side(prompt, side, name)
    return Preference(prompt, chosen, rejected, tools)


def _check_side(prompt: tuple[Message, ...], side: tuple[Message, ...], name: str) -> None:
    replies = [turn for turn in side if turn.role == "assistant"]
    if side and not replies:
        raise RowError(f"{name} has no assistant turn, so there is no answer to compare", reason="no assistant turn")
    if not any(says_something(turn) for turn in replies):
        raise EmptyRow(f"{name} is empty")
    check_chat((*prompt, *side))


def _prompt(value: Any, columns: dict[str, str]) -> tuple[tuple[Message, ...], Tools]:
    """The turns before the answer, under whichever name they have, and the tools on offer; no turns where there are none."""
    for field in ("prompt", "conversations", "messages", "instruction", "question"):
        found = as_turns(lookup(value, field, columns, default=None))
        if isinstance(found, list):
            inner = {"messages": found} | {
                name: lookup(value, name, columns, default=None) for name in ("system", "tools")
            }
            return conversation(inner, {})
        if found is not None:
            asked = string_at(value, field, columns)
            extra = optional_string(value, "input", columns) if field == "instruction" else ""
            turns = (Message("user", f"{asked}\n{extra}" if extra.strip() else asked),)
            if not asked.strip():
                raise EmptyRow(f"{field} is empty")
            tools = tools_of(lookup(value, "tools", columns, default=None))
            return with_system(turns, optional_string(value, "system", columns)), tools
    return (), tools_of(lookup(value, "tools", columns, default=None))


def unpaired(value: Any, columns: dict[str, str]) -> UnpairedPreference:
    """One answer and whether it was liked: prompt and completion, or a message list that ends with the answer."""
    desirable = as_rating(lookup(value, column_of(value, RATINGS, columns), columns))
    if desirable is None:
        given = lookup(value, column_of(value, RATINGS, columns), columns)
        raise RowError(f"the rating is {given!r}; write true (liked) or false", reason="rating is not true or false")
    if lookup(value, "completion", columns, default=None) is not None:
        prompt, tools = _prompt(value, columns)
        completion = reply_turns(lookup(value, "completion", columns), "completion")
        if completion[: len(prompt)] == prompt:
            completion = completion[len(prompt) :]
    else:
        turns, tools = conversation(value, columns)
        if turns and turns[-1].role != "assistant":
            raise RowError(
                "the last message is not the assistant's, so there is no answer to rate", "no answer to rate"
            )
        prompt, completion = turns[:-1], turns[-1:]
    if not prompt:
        raise RowError("there is no prompt before the rated answer", reason="no prompt")
    _check_side(prompt, completion, "the completion")
    return UnpairedPreference(prompt, completion, desirable, tools)


def as_rating(value: Any) -> bool | None:
    """true and false as JSON, a table or a number has them; None for anything else."""
    if isinstance(value, str):
        return {"true": True, "false": False, "1": True, "0": False}.get(value.strip().lower())
    return bool(value) if isinstance(value, bool | int | float) and value in (0, 1) else None
