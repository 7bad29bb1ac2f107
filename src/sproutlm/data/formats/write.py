"""From a record to a row: each schema writes what it can hold, and names what it cannot."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from ..fields import RowError
from ..records import Chat, Labelled, Message, Preference, Record, Text, ToolCall, Tools, UnpairedPreference
from ..thinking import join_thinking

_KINDS = {
    Text: "a plain text",
    Chat: "a conversation",
    Preference: "a pair of answers",
    UnpairedPreference: "a rated answer",
    Labelled: "a labelled text",
}


def cannot(schema: str, what: str) -> RowError:
    return RowError(f"{schema} cannot hold {what}", reason=f"{schema} cannot hold {what}")


def _kind(record: Record, schema: str) -> RowError:
    return cannot(schema, _KINDS[type(record)])


# --- strings ----------------------------------------------------------------------------------------------------------


def text(record: Record) -> dict[str, Any]:
    if not isinstance(record, Text):
        raise _kind(record, "text")
    return {"text": record.text}


def labelled(record: Record) -> dict[str, Any]:
    if not isinstance(record, Labelled):
        raise _kind(record, "labelled")
    return {"text": record.text, "label": record.label}


def instruction(record: Record) -> dict[str, Any]:
    """Earlier exchanges go into ``history``; an input stays below its instruction, where reading puts it."""
    system, pairs = _exchanges(record, "instruction")
    *history, (question, answer) = pairs
    row: dict[str, Any] = {"instruction": question, "input": "", "output": answer}
    if system:
        row["system"] = system
    if history:
        row["history"] = [list(past) for past in history]
    return row


def prompt_completion(record: Record) -> dict[str, Any]:
    return _pair(record, "prompt_completion", "prompt", "completion")


def question_answer(record: Record) -> dict[str, Any]:
    return _pair(record, "question_answer", "question", "answer")


def _pair(record: Record, schema: str, prompt: str, completion: str) -> dict[str, Any]:
    system, pairs = _exchanges(record, schema)
    if len(pairs) > 1:
        raise cannot(schema, "more than one exchange")
    row = {prompt: pairs[0][0], completion: pairs[0][1]}
    return {**row, "system": system} if system else row


def _exchanges(record: Record, schema: str) -> tuple[str, list[tuple[str, str]]]:
    """(system text, pairs of a question and its answer) of a conversation that is nothing else."""
    if not isinstance(record, Chat):
        raise _kind(record, schema)
    system, turns = _after_system(record.messages, record.tools, schema)
    said = [_only_text(turn, schema) for turn in turns]
    if [turn.role for turn in turns] != ["user", "assistant"] * (len(turns) // 2) or not turns:
        raise cannot(schema, "turns other than a user's and the assistant's by turns")
    return system, list(zip(said[::2], said[1::2], strict=True))


def _after_system(messages: Sequence[Message], tools: Tools, schema: str) -> tuple[str, Sequence[Message]]:
    """(system text, the other messages) for schemas whose turns are strings."""
    if tools:
        raise cannot(schema, "tools")
    if messages and messages[0].role == "system":
        return _only_text(messages[0], schema), messages[1:]
    return "", messages


def _only_text(message: Message, schema: str) -> str:
    """What a turn says, thinking in tags; RowError that names what else it has."""
    for found, what in (
        (message.role == "tool", "a tool's result"),
        (message.tool_calls, "tool calls"),
        (message.train is not None, "a message's train"),
        (message.name, "a message's name"),
        (message.tool_call_id, "tool_call_id"),
    ):
        if found:
            raise cannot(schema, what)
    return join_thinking(message.reasoning_content, message.content)


# --- message lists ----------------------------------------------------------------------------------------------------


def messages(record: Record) -> dict[str, Any]:
    return _message_list(record, "messages")


def conversations(record: Record) -> dict[str, Any]:
    return _message_list(record, "conversations")


def _message_list(record: Record, field: str) -> dict[str, Any]:
    if not isinstance(record, Chat):
        raise _kind(record, field)
    return {field: _objects(record.messages), **_offered(record.tools)}


def _offered(tools: Tools) -> dict[str, Any]:
    return {"tools": list(tools)} if tools else {}


def _objects(turns: Sequence[Message]) -> list[dict[str, Any]]:
    return [turn.as_dict() if turn.train is None else {**turn.as_dict(), "train": turn.train} for turn in turns]


def sharegpt(record: Record) -> dict[str, Any]:
    """from and value; the system text and the tools (as JSON text) beside the list, as the schema's readers want them."""
    if not isinstance(record, Chat):
        raise _kind(record, "sharegpt")
    return _sharegpt_list(record.messages, record.tools, "sharegpt")


def _sharegpt_list(turns: Sequence[Message], tools: Tools, schema: str) -> dict[str, Any]:
    row: dict[str, Any] = {"conversations": [_from_value(turn, schema) for turn in turns]}
    if tools:
        row["tools"] = json.dumps(list(tools), ensure_ascii=False)
    return row


_SHAREGPT_ROLES = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _from_value(turn: Message, schema: str) -> dict[str, Any]:
    if turn.name is not None or turn.tool_call_id is not None or any(call.id is not None for call in turn.tool_calls):
        raise cannot(schema, "names of messages or ids of tool calls")
    said_by, value = _SHAREGPT_ROLES[turn.role], turn.content
    if turn.tool_calls:
        if turn.content:
            raise cannot(schema, "an answer beside tool calls in one turn")
        said_by, value = "function_call", _calls_as_json(turn.tool_calls)
    row: dict[str, Any] = {"from": said_by, "value": join_thinking(turn.reasoning_content, value)}
    return row if turn.train is None else {**row, "train": turn.train}


def _calls_as_json(calls: Sequence[ToolCall]) -> str:
    items = [{"name": call.name, "arguments": call.arguments} for call in calls]
    return json.dumps(items[0] if len(items) == 1 else items, ensure_ascii=False)


# --- preference -------------------------------------------------------------------------------------------------------


def preference(record: Record) -> dict[str, Any]:
    if not isinstance(record, Preference):
        raise _kind(record, "preference")
    row = _asked(record.prompt, record.tools, "preference")
    row |= {"chosen": _answer(record.chosen, "preference"), "rejected": _answer(record.rejected, "preference")}
    return _system_last(row)


def _asked(prompt: Sequence[Message], tools: Tools, schema: str) -> dict[str, Any]:
    system, turns = _after_system(prompt, tools, schema)
    if [turn.role for turn in turns] != ["user"]:
        raise cannot(schema, "a prompt of several turns")
    row: dict[str, Any] = {"system": system} if system else {}
    return {**row, "prompt": _only_text(turns[0], schema)}


def _answer(turns: Sequence[Message], schema: str) -> str:
    if [turn.role for turn in turns] != ["assistant"]:
        raise cannot(schema, "an answer of several turns")
    return _only_text(turns[0], schema)


def _system_last(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "system": row.pop("system")} if "system" in row else row


def preference_messages(record: Record) -> dict[str, Any]:
    if not isinstance(record, Preference):
        raise _kind(record, "preference_messages")
    sides = {"chosen": _objects(record.chosen), "rejected": _objects(record.rejected)}
    return {"prompt": _objects(record.prompt), **sides, **_offered(record.tools)}


def sharegpt_ranking(record: Record) -> dict[str, Any]:
    if not isinstance(record, Preference):
        raise _kind(record, "sharegpt_ranking")
    if len(record.chosen) != 1 or len(record.rejected) != 1:
        raise cannot("sharegpt_ranking", "an answer of several turns")
    row = _sharegpt_list(record.prompt, (), "sharegpt_ranking")
    for name, side in (("chosen", record.chosen), ("rejected", record.rejected)):
        row[name] = _from_value(side[0], "sharegpt_ranking")
    return {**row, **_sharegpt_list((), record.tools, "sharegpt_ranking"), "conversations": row["conversations"]}


def unpaired_preference(record: Record) -> dict[str, Any]:
    if not isinstance(record, UnpairedPreference):
        raise _kind(record, "unpaired_preference")
    row = _asked(record.prompt, record.tools, "unpaired_preference")
    row |= {"completion": _answer(record.completion, "unpaired_preference"), "label": record.desirable}
    return _system_last(row)


def unpaired_messages(record: Record) -> dict[str, Any]:
    if not isinstance(record, UnpairedPreference):
        raise _kind(record, "unpaired_messages")
    sides = {"prompt": _objects(record.prompt), "completion": _objects(record.completion)}
    return {**sides, "label": record.desirable, **_offered(record.tools)}
