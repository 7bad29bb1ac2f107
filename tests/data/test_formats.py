"""Every schema that people have becomes one of the kinds of record at the door, or says why it cannot."""

from __future__ import annotations

import sys

import pytest

from sproutlm.data.fields import EmptyRow, RowError
from sproutlm.data.formats import FORMATS, Format, resolve_format
from sproutlm.data.records import Chat, Labelled, Message, Preference, Text
from sproutlm.errors import DataError


def parse(value, columns=None):
    return resolve_format("auto", [value], columns).parse(value, columns or {})


def chat(*turns):
    return Chat(tuple(Message(role, content) for role, content in turns))


HI = (("user", "Hi"), ("assistant", "Hello."))

SCHEMAS = [
    ("text", {"text": "床前明月光"}, Text("床前明月光")),
    ("text", "a bare string", Text("a bare string")),
    ("text", {"text": "x", "url": "y", "score": 3}, Text("x")),
    ("instruction", {"instruction": "Hi", "input": "", "output": "Hello."}, chat(*HI)),
    ("instruction", {"instruction": "Hi", "output": "Hello."}, chat(*HI)),
    (
        "instruction",
        {"instruction": "Add", "input": "1, 2", "output": "3"},
        chat(("user", "Add\n1, 2"), ("assistant", "3")),
    ),
    (
        "instruction",
        {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]},
        chat(("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")),
    ),
    ("prompt_completion", {"prompt": "Hi", "completion": "Hello."}, chat(*HI)),
    ("question_answer", {"question": "Hi", "answer": "Hello."}, chat(*HI)),
    (
        "prompt_completion",
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello."}]},
        chat(*HI),
    ),
    ("messages", [{"role": r, "content": c} for r, c in HI], chat(*HI)),
    ("messages", {"messages": [{"role": r, "content": c} for r, c in HI]}, chat(*HI)),
    ("messages", {"messages": [{"role": r, "content": c} for r, c in HI], "label": 0}, chat(*HI)),
    ("sharegpt", {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}, chat(*HI)),
    ("conversations", {"conversations": [{"role": r, "content": c} for r, c in HI], "tools": ""}, chat(*HI)),
    (
        "sharegpt",
        {"system": "Be kind.", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]},
        chat(("system", "Be kind."), *HI),
    ),
    ("labelled", {"label": 1, "review": "房间很大"}, Labelled("房间很大", 1)),
    ("labelled", {"label": "1", "sms": "win"}, Labelled("win", "1")),
    ("labelled", {"text": "win a prize", "label": "spam"}, Labelled("win a prize", "spam")),
]


@pytest.mark.parametrize(("name", "value", "record"), SCHEMAS)
def test_schema_is_detected_and_normalised(name, value, record):
    assert resolve_format("auto", [value]).name == name
    assert parse(value) == record


PREFERENCES = ("preference", "preference_messages", "sharegpt_ranking")
ASKED = (Message("user", "2+2?"),)
FOUR, FIVE = (Message("assistant", "4"),), (Message("assistant", "5"),)
SIDES = {"role": "user", "content": "2+2?"}


@pytest.mark.parametrize(
    "value",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {
            "prompt": [SIDES],
            "chosen": [{"role": "assistant", "content": "4"}],
            "rejected": [{"role": "assistant", "content": "5"}],
        },
        {
            "conversations": [{"from": "human", "value": "2+2?"}],
            "chosen": {"from": "gpt", "value": "4"},
            "rejected": {"from": "gpt", "value": "5"},
        },
        {
            "chosen": [SIDES, {"role": "assistant", "content": "4"}],
            "rejected": [SIDES, {"role": "assistant", "content": "5"}],
        },
        {
            "prompt": [SIDES],
            "chosen": [SIDES, {"role": "assistant", "content": "4"}],
            "rejected": [SIDES, {"role": "assistant", "content": "5"}],
        },
    ],
)
def test_every_way_to_write_a_preference_pair_gives_the_same_record(value):
    assert "chosen" in value and resolve_format("auto", [value]).name in PREFERENCES
    assert parse(value) == Preference(ASKED, FOUR, FIVE)


def test_all_turns_of_a_conversation_are_kept():
    """Pitfall 13: not the first two turns only, and not even counts only."""
    turns = [("user", "a"), ("assistant", "b"), ("user", "c"), ("user", "d"), ("assistant", "e")]
    assert parse([{"role": r, "content": c} for r, c in turns]) == chat(*turns)


@pytest.mark.parametrize(
    ("extra", "train"), [({}, None), ({"train": False}, False), ({"train": True}, True), ({"weight": 0}, False), ({"weight": 1.0}, True)]
)  # fmt: skip
def test_train_and_weight_of_a_message_are_honoured(extra, train):
    """Pitfall 3: which turns are trained can be said per message."""
    record = parse([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", **extra}])
    assert record.messages[1].train is train


USER = {"role": "user", "content": "a"}
REPLY = {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("messages", "reason", "words"),
    [
        ([USER], "no assistant turn", "nothing to learn"),
        ([USER, {"role": "narrator", "content": "b"}], "unknown role narrator", "message 2 has the role 'narrator'"),
        ([USER, {"role": "asistant", "content": "b"}], "unknown role asistant", "did you mean assistant?"),
        ([USER, REPLY, {"role": "system", "content": "s"}], "system not first", "message 3 is a system message"),
        ([USER, {"role": "assistant", "content": {"x": 1}}], "content is not a string", "an object, not a string"),
        ([USER, {"role": "assistant"}], "message without content", "neither content nor value"),
        ([USER, {**REPLY, "train": "yes"}], "train is not true or false", "'yes'"),
        ([USER, {**REPLY, "weight": 0.5}], "weight is not 0 or 1", "0.5"),
        ([USER, {**REPLY, "content": "\ud800"}], "half a surrogate pair", "U+D800"),
        ([USER, "b"], "message is not an object", "message 2 is a string"),
    ],
)
def test_a_conversation_that_cannot_be_trained_says_why(messages, reason, words):
    with pytest.raises(RowError, match=".") as caught:
        resolve_format("messages", []).parse({"messages": messages}, {})
    assert caught.value.reason == reason
    assert words in str(caught.value)
    assert not isinstance(caught.value, EmptyRow)


@pytest.mark.parametrize(
    "value",
    [
        {"text": "  \n"},
        {"text": None},
        {"instruction": "a", "output": ""},
        {"instruction": "", "output": "b"},
        {"messages": []},
        {"messages": [USER, {"role": "assistant", "content": ""}]},
        {"prompt": "p", "chosen": "a", "rejected": ""},
        {"label": "x", "text": ""},
    ],
)
def test_empty_rows_are_dropped_under_the_reason_empty(value):
    with pytest.raises(EmptyRow) as caught:
        parse(value)
    assert caught.value.reason == "empty"


def test_a_text_that_is_an_object_names_its_keys_and_the_cure():
    with pytest.raises(RowError, match="text is an object with the keys prompt, steps") as caught:
        parse({"text": {"prompt": "x = 1", "steps": []}})
    assert "columns: {text: text.prompt}" in str(caught.value)
    assert parse({"text": {"prompt": "x = 1"}}, {"text": "text.prompt"}) == Text("x = 1")


def test_columns_are_mapped_and_may_be_dotted_paths():
    value = {"data": {"q": "Hi", "replies": ["Hello."]}}
    columns = {"instruction": "data.q", "output": "data.replies.0"}
    assert parse(value, columns) == chat(*HI)
    assert parse({"a.b": "literal name wins"}, {"text": "a.b"}) == Text("literal name wins")


def test_a_missing_field_names_what_is_there_and_the_nearest():
    with pytest.raises(
        RowError, match=r"no 'output'; the row has instruction, outputs; set columns: \{output: outputs\}"
    ):
        resolve_format("instruction", []).parse({"instruction": "a", "outputs": "b"}, {})


def test_the_format_is_decided_by_several_rows_not_by_the_first():
    rows = [{"note": "header"}, {"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert resolve_format("auto", rows).name == "text"


def test_undecided_formats_list_the_columns_seen_and_what_each_format_needs():
    with pytest.raises(DataError) as caught:
        resolve_format("auto", [{"": "0", "Question": "q", "A": "a", "Answer": "A"}])
    said = str(caught.value)
    assert "Question, A, Answer" in said
    assert all(f.name in said for f in FORMATS)
    assert "format: question_answer, columns: {question: Question, answer: Answer}" in said


def test_an_unknown_format_or_field_names_the_nearest():
    with pytest.raises(DataError, match="did you mean instruction"):
        resolve_format("instructions", [])
    with pytest.raises(DataError, match="no field 'txt'.*did you mean text"):
        resolve_format("text", [], {"txt": "body"})


def test_a_format_of_ones_own_is_imported_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_format_of_tests.py").write_text(
        "from sproutlm.data.formats import Format\nfrom sproutlm.data.records import Text\n"
        "pairs = Format('pairs', lambda v: 'a' in v, lambda v, columns: Text(v['a'] + v['b']))\nnumber = 3\n"
    )
    (tmp_path / "broken_format_of_tests.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    found = resolve_format("my_format_of_tests:pairs", [])
    assert isinstance(found, Format) and found.parse({"a": "x", "b": "y"}, {}) == Text("xy")
    assert str(tmp_path) not in sys.path
    for spec, words in [
        ("my_format_of_tests:pear", "no attribute 'pear'; did you mean pairs"),
        ("my_format_of_tests:number", "it is a int, not a sproutlm.data.formats.Format"),
        ("no_such_module_of_tests:x", "the module 'no_such_module_of_tests' was not found"),
        ("broken_format_of_tests:x", "ZeroDivisionError"),
    ]:
        with pytest.raises(DataError, match=words):
            resolve_format(spec, [])
