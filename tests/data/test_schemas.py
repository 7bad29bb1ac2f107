"""Each schema is told from its rows, read, and written back without loss; what it cannot hold is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sproutlm.data.formats import FORMATS, resolve_format
from sproutlm.data.records import Chat, Labelled, Message, Preference, Text, ToolCall, UnpairedPreference

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "schemas"
BY_NAME = {f.name: f for f in FORMATS}

# --- any record -----------------------------------------------------------------------------------------------------

letters = st.text(alphabet="ab 春，\n\t\"'{}<>|[]\\/:,.#🌱", min_size=0, max_size=12)
said = letters.map(lambda text: f"{text}x")  # something that is not blank
values = st.recursive(
    st.none() | st.booleans() | st.integers() | letters, lambda inner: st.lists(inner, max_size=2), max_leaves=4
)
names = st.sampled_from(["add", "天气", "look_up"])


@st.composite
def tools(draw):
    found = draw(st.lists(names, unique=True, max_size=2))
    return tuple(
        {"type": "function", "function": {"name": name, "description": draw(letters), "parameters": draw(st.dictionaries(letters, values, max_size=2))}}
        for name in found
    )  # fmt: skip


train = st.sampled_from([None, None, True, False])
thoughts = st.sampled_from([None, None, "", "\n", "so\n", "想"])


@st.composite
def calls(draw):
    ids = st.sampled_from([None, "call_1"])
    arguments = st.dictionaries(letters, values, max_size=2)
    return tuple(ToolCall(draw(names), draw(arguments), draw(ids)) for _ in range(draw(st.integers(1, 2))))


@st.composite
def any_chat(draw):
    """A conversation with whatever a ``Message`` can have, roles in an order that is not always strict."""
    turns = [Message("system", draw(letters), draw(train))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Message("user", draw(letters), draw(train), name=draw(st.sampled_from([None, "Ann"]))))
        if draw(st.booleans()):
            turns.append(Message("assistant", draw(letters), draw(train), draw(thoughts), draw(calls())))
            turns.append(Message("tool", draw(letters), None, name=draw(names), tool_call_id="call_1"))
        turns.append(Message("assistant", draw(said), draw(train), draw(thoughts)))
    return Chat(tuple(turns), draw(tools()))


@st.composite
def sharegpt_chat(draw):
    turns = [Message("system", draw(letters), draw(train))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(Message("user", draw(letters), draw(train)))
        if draw(st.booleans()):
            called = tuple(ToolCall(call.name, call.arguments) for call in draw(calls()))
            turns.append(Message("assistant", "", draw(train), draw(thoughts), called))
            turns.append(Message("tool", draw(letters)))
        turns.append(Message("assistant", draw(said), draw(train), draw(thoughts)))
    return Chat(tuple(turns), draw(tools()))


def exchange(draw):
    return Message("user", draw(said)), Message("assistant", draw(said), None, draw(thoughts))


def opening(draw):
    return (Message("system", draw(said)),) if draw(st.booleans()) else ()


@st.composite
def plain_chat(draw, exchanges=1):
    turns = [turn for _ in range(draw(st.integers(1, exchanges))) for turn in exchange(draw)]
    return Chat((*opening(draw), *turns))


@st.composite
def plain_pair(draw):
    answers = [(Message("assistant", draw(said), None, draw(thoughts)),) for _ in range(2)]
    return Preference((*opening(draw), Message("user", draw(said))), *answers)


@st.composite
def any_pair(draw, chats=any_chat):
    chat, asked = draw(chats()), Message("user", draw(said))
    answers = [(Message("assistant", draw(said), draw(train), draw(thoughts)),) for _ in range(2)]
    return Preference((*chat.messages, asked), *answers, chat.tools)


def rated(pair, desirable):
    return UnpairedPreference(pair.prompt, pair.chosen, desirable, pair.tools)


RECORDS = {
    "text": st.builds(Text, said),
    "labelled": st.builds(Labelled, said, st.integers() | st.sampled_from(["spam", "好评", "1"])),
    "instruction": plain_chat(exchanges=3),
    "prompt_completion": plain_chat(),
    "question_answer": plain_chat(),
    "messages": any_chat(),
    "conversations": any_chat(),
    "sharegpt": sharegpt_chat(),
    "preference": plain_pair(),
    "preference_messages": any_pair(),
    "sharegpt_ranking": any_pair(sharegpt_chat),
    "unpaired_preference": st.builds(rated, plain_pair(), st.booleans()),
    "unpaired_messages": st.builds(rated, any_pair(), st.booleans()),
}


def test_every_known_schema_is_written_and_tried_here():
    assert set(RECORDS) == set(BY_NAME) and all(f.to_row is not None for f in FORMATS)


@pytest.mark.parametrize("name", RECORDS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_what_a_schema_can_hold_comes_back_as_it_was(name, data):
    """Through JSON, as a file would hold it; and the written row is told for what it is."""
    record = data.draw(RECORDS[name])
    row = json.loads(json.dumps(BY_NAME[name].to_row(record)))
    assert set(row) <= set(BY_NAME[name].writes)
    found = resolve_format("auto", [row])
    assert found.parse(row, {}) == record and BY_NAME[name].parse(row, {}) == record
    assert found.name == name
