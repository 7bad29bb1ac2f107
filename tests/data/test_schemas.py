"""Each schema is told from its rows, read, and written back without loss; what it cannot hold is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sproutlm.config.schema import SourceConfig
from sproutlm.data.fields import RowError
from sproutlm.data.formats import FORMATS, resolve_format
from sproutlm.data.records import Chat, Labelled, Message, Preference, Text, ToolCall, UnpairedPreference
from sproutlm.data.sources import Counts, read_records
from sproutlm.errors import DataError

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


# --- fixtures: one file of each schema ---------------------------------------------------------------------------------


def read(path, on_bad_row="error", **fields):
    counts = Counts()
    found = list(read_records([SourceConfig(path=str(path), **fields)], on_bad_row, counts))
    counts.check()
    return found, counts


FILES = sorted(path.name for path in FIXTURES.iterdir() if not path.name.startswith("mixed"))
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "当地的天气",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def test_every_schema_has_a_fixture():
    assert {name.split(".")[0] for name in FILES} == set(BY_NAME)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_told_from_its_rows_read_whole_and_written_back(name):
    schema = BY_NAME[name.split(".")[0]]
    found, counts = read(FIXTURES / name)
    assert counts.rows_in == len(found) == counts.schemas[schema.name] > 0
    for record in found:
        row = json.loads(json.dumps(schema.to_row(record)))
        assert schema.parse(row, {}) == record


def turns(name, row):
    return read(FIXTURES / name)[0][row].messages


def test_a_call_is_one_thing_however_it_is_written():
    """Objects, JSON strings, OpenAI's wrapping, a function_call turn, one call or a list."""
    call = ToolCall("get_weather", {"city": "北京"}, "call_1")
    assert turns("messages.tools.jsonl", 0)[1] == Message("assistant", "", tool_calls=(call,))
    assert turns("messages.tools.jsonl", 0)[2] == Message(
        "tool", '{"t": 21}', name="get_weather", tool_call_id="call_1"
    )
    said = Message("assistant", "One moment.", None, "I must look.", (ToolCall("get_weather", {"city": "Oslo"}),))
    assert turns("messages.tools.jsonl", 1)[1] == said
    assert turns("messages.tools.jsonl", 2)[1:3] == (
        Message("assistant", "", tool_calls=(ToolCall("get_weather", {}),)), Message("tool", "9", name="get_weather"))  # fmt: skip
    assert turns("conversations.jsonl", 1)[2].tool_calls == (ToolCall("get_weather", {"city": "上海"}),)
    assert turns("sharegpt.jsonl", 1)[1].tool_calls == (ToolCall("get_weather", {"city": "东京"}),)
    two = turns("sharegpt.jsonl", 2)[1]
    assert two.reasoning_content == "都查。" and [call.arguments for call in two.tool_calls] == [{"city": "东京"}, {}]


def test_tools_are_one_thing_wherever_they_stand():
    """Beside the messages or in the system message, wrapped or bare, objects or a JSON string."""
    for name, row in [("messages.tools.jsonl", 0), ("messages.tools.jsonl", 1), ("conversations.jsonl", 1),
                      ("sharegpt.jsonl", 1), ("preference_messages.jsonl", 3)]:  # fmt: skip
        assert read(FIXTURES / name)[0][row].tools == (WEATHER,), name
    assert read(FIXTURES / "sharegpt.jsonl")[1].special == {"tools": 1, "tool calls": 2, "thinking": 1}


def test_thinking_at_the_beginning_of_an_answer_becomes_its_own_field():
    """Left in the text, its tags would be trained as letters, and the recipe's `thinking` could not reach it."""
    assert turns("messages.jsonl", 2) == (
        Message("user", "two parts"), Message("assistant", "One answer.", reasoning_content="Two."))  # fmt: skip
    empty = read(FIXTURES / "preference.jsonl")[0][1].chosen[0]
    assert (empty.reasoning_content, empty.content) == ("", "Hello.")
    later = BY_NAME["prompt_completion"].parse({"prompt": "a", "completion": "say <think>x</think>"}, {})
    assert later.messages[1] == Message("assistant", "say <think>x</think>")


def test_a_rated_answer_is_one_thing_however_its_prompt_stands():
    """Apart, at the beginning of the completion, or as the messages before the last."""
    asked, four, five = (Message("user", "2 + 2?"),), (Message("assistant", "4"),), (Message("assistant", "5"),)
    good, bad = UnpairedPreference(asked, four, True), UnpairedPreference(asked, five, False)
    assert read(FIXTURES / "unpaired_messages.jsonl")[0] == [good, bad, good, good]
    assert read(FIXTURES / "unpaired_preference.jsonl")[0][:2] == [good, bad]


def test_labels_stay_what_they_are_in_the_file():
    assert [r.label for r in read(FIXTURES / "labelled.jsonl")[0]] == ["spam", 0, "ham", 1]
    assert [r.label for r in read(FIXTURES / "labelled.csv")[0]] == ["1", "0"]


def test_a_table_without_header_is_told_by_what_its_columns_hold_and_that_is_said(tmp_path):
    found, counts = read(FIXTURES / "labelled.headless.tsv")
    assert found[0] == Labelled("Ok lar... Joking wif u oni...", "ham")
    (note,) = counts.notes
    assert "column_1 was taken for the label (first values: ham, spam)" in note and note in counts.lines()
    turned = tmp_path / "turned.tsv"
    lines = (FIXTURES / "labelled.headless.tsv").read_text("utf-8-sig").splitlines()
    turned.write_text("".join("\t".join(line.split("\t")[::-1]) + "\n" for line in lines), encoding="utf-8")
    assert read(turned)[0] == found


@pytest.mark.parametrize("cells", [[("one", "un"), ("two", "deux"), ("three", "trois"), ("four", "quatre")],
                                   [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")],
                                   [("ham", "hello you"), ("spam", "win now")]])  # fmt: skip
def test_two_columns_that_could_be_anything_are_not_guessed_at(tmp_path, cells):
    """Pairs of words; two columns of classes; too few rows to tell."""
    (tmp_path / "a.tsv").write_text("".join(f"{a}?\t{b}!\n" for a, b in cells))
    with pytest.raises(DataError, match="cannot tell the format"):
        read(tmp_path / "a.tsv")


def test_two_named_columns_that_look_labelled_are_not_guessed_at_but_proposed(tmp_path):
    """`source, text` of a corpus looks just so."""
    rows = "".join(f"this is message number {i},{'ham' if i % 2 else 'spam'}\n" for i in range(6))
    (tmp_path / "a.csv").write_text("v1,v2\n" + rows)
    with pytest.raises(DataError, match=r"for example format: labelled, columns: \{label: v2, text: v1\}"):
        read(tmp_path / "a.csv")
    assert read(tmp_path / "a.csv", columns={"label": "v2", "text": "v1"})[0][0].label == "spam"


def test_nulls_that_a_table_fills_in_are_no_part_of_a_tool(tmp_path):
    """In parquet every object of a list has the keys of all the others."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    called = [*messages[:1], {"role": "assistant", "tool_calls": [{"name": "f", "arguments": "{}"}]}]
    offered = [{"name": "f", "description": "d"}, {"name": "g"}]
    rows = [{"messages": messages, "tools": offered}, {"messages": called, "tools": None}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    first, second = read(tmp_path / "a.parquet")[0]
    assert [tool["function"] for tool in first.tools] == offered
    assert second == Chat((Message("user", "a"), Message("assistant", "", tool_calls=(ToolCall("f", {}),))))


# --- what a schema cannot hold ------------------------------------------------------------------------------------------

HI, HELLO = Message("user", "Hi"), Message("assistant", "Hello.")
CALL = Message("assistant", "", tool_calls=(ToolCall("get_weather", {}),))
PAIR = Preference((HI,), (HELLO,), (Message("assistant", "No."),))


@pytest.mark.parametrize(
    ("name", "record", "words"),
    [
        ("instruction", Chat((HI, HELLO), (WEATHER,)), "instruction cannot hold tools"),
        ("instruction", Chat((HI, CALL, Message("tool", "4"), HELLO)), "cannot hold tool calls"),
        ("prompt_completion", Chat((HI, HELLO, HI, HELLO)), "cannot hold more than one exchange"),
        ("question_answer", Chat((HI, Message("assistant", "a", train=False))), "cannot hold a message's train"),
        ("instruction", Chat((HI, HI, HELLO)), "turns other than a user's and the assistant's by turns"),
        ("sharegpt", Chat((HI, Message("assistant", "wait", tool_calls=CALL.tool_calls))), "an answer beside tool calls"),
        ("sharegpt", Chat((HI, HELLO, Message("tool", "x", tool_call_id="1"))), "ids of tool calls"),
        ("text", Chat((HI, HELLO)), "text cannot hold a conversation"),
        ("messages", PAIR, "messages cannot hold a pair of answers"),
        ("preference", Preference((HI, HELLO, HI), (HELLO,), (HELLO,)), "a prompt of several turns"),
        ("sharegpt_ranking", Preference((HI,), (HELLO, HI, HELLO), (HELLO,)), "an answer of several turns"),
        ("unpaired_preference", UnpairedPreference((HI,), (HELLO,), True, (WEATHER,)), "cannot hold tools"),
        ("labelled", Text("a"), "labelled cannot hold a plain text"),
        ("labelled", Labelled("a", " b"), "read back otherwise"),
        ("messages", Chat((HI, Message("assistant", "<think>a</think>b"))), "read back otherwise"),
        ("preference", Preference((HI,), (HELLO,), (Message("assistant", " "),)), "rejected is empty"),
    ],
)  # fmt: skip
def test_what_a_schema_cannot_hold_is_named_and_not_written(name, record, words):
    with pytest.raises(RowError) as caught:
        BY_NAME[name].to_row(record)
    assert words in str(caught.value) and name in str(caught.value)
