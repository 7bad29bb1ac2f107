"""At the door: a row of another schema, turns out of order and placeholders are told, counted, and never pass unseen."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from sproutlm.config.schema import SourceConfig
from sproutlm.data.records import Chat, Message, Preference, Text, UnpairedPreference
from sproutlm.data.sources import Counts, Door, open_source, read_records, record_from
from sproutlm.errors import DataError

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "schemas"
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


def read(path, on_bad_row="error", **fields):
    counts = Counts()
    found = list(read_records([SourceConfig(path=str(path), **fields)], on_bad_row, counts))
    counts.check()
    return found, counts


def refusal(path, **fields) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- another schema in the same file ----------------------------------------------------------------------------------

TEXTS = [{"text": f"line {i}"} for i in range(4)]
PROMPTS = [{"prompt": f"{i}?", "completion": f"{i}."} for i in range(4)]


@pytest.mark.parametrize(
    ("rows", "odd", "looks", "name"),
    [
        (TEXTS, {"instruction": "a", "output": "b"}, "instruction", "text"),
        (PROMPTS, {"messages": [{"role": "user", "content": "a"}]}, "messages", "prompt_completion"),
        (PROMPTS, {"prompt": "a", "completion": "bad", "label": False}, "unpaired_preference", "prompt_completion"),
        (TEXTS, {"text": "a", "chosen": "b", "rejected": "c"}, "preference", "text"),
    ],
)
def test_a_row_of_another_schema_is_named_even_where_it_could_be_read(jsonl, rows, odd, looks, name):
    """The third would train an answer that was rated bad, and the fourth a text without its answers."""
    path = jsonl([*rows, odd])
    said = refusal(path)
    assert said.startswith(f"{path}:5: the row looks like {looks}, and the file is read as {name}: set format: mixed")
    found, counts = read(path, "skip")
    assert len(found) == 4 and counts.dropped == {f"looks like {looks}": 1}


def test_a_named_format_reads_what_it_can_and_says_what_the_others_look_like(jsonl):
    path = jsonl([*TEXTS, {"text": "a", "label": "b"}, {"instruction": "a", "output": "b"}])
    assert "looks like labelled" in refusal(path)
    found, counts = read(path, "skip", format="text")
    assert len(found) == 5 and counts.dropped == {"looks like instruction": 1}


def test_a_mixed_file_is_read_row_by_row_and_counted_by_schema():
    found, counts = read(FIXTURES / "mixed.jsonl", format="mixed")
    assert [type(record) for record in found] == [Chat, Chat, Chat, Text, Chat]
    assert counts.schemas == {"instruction": 1, "prompt_completion": 1, "messages": 1, "text": 1, "sharegpt": 1}
    assert any("rows by schema: " in line for line in counts.lines())


def test_a_file_without_a_schema_of_most_rows_is_told_to_be_mixed():
    said = refusal(FIXTURES / "mixed.jsonl")
    assert "the first 5 rows have several schemas (instruction 1, " in said and "set format: mixed" in said


def test_a_row_of_no_known_schema_in_a_mixed_file_is_a_bad_row(jsonl):
    path = jsonl([*TEXTS, {"note": "x"}, 7])
    assert "5: the row has no known schema (it has the keys note)" in refusal(path, format="mixed")
    assert read(path, "skip", format="mixed")[1].dropped == {"no known schema": 2}


def test_columns_that_are_null_do_not_decide(tmp_path):
    """A table joined of two sets has every column in every row."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"text": "a", "prompt": None, "completion": None}, {"text": None, "prompt": "b", "completion": "c"}]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    found, _ = read(tmp_path / "a.parquet", format="mixed")
    assert found == [Text("a"), Chat((Message("user", "b"), Message("assistant", "c")))]


# --- roles in turn ------------------------------------------------------------------------------------------------------

U, A = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
S, T = {"role": "system", "content": "s"}, {"role": "tool", "content": "t"}
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {}}]}


@pytest.mark.parametrize(
    "turns", [[U, A], [S, U, A, U, A], [U, A, U], [U, CALL, T, A], [U, CALL, T, T, CALL, T, A, U, A], [U, CALL]]
)
def test_conversations_in_turn_pass(jsonl, turns):
    (chat,), _ = read(jsonl([{"messages": turns}]))
    assert [m.role for m in chat.messages] == [t["role"] for t in turns]


@pytest.mark.parametrize(
    ("turns", "number", "reason", "words"),
    [
        ([A, U, A], 1, "assistant first", "comes first, where a user's turn was expected"),
        ([S, A], 2, "assistant first", "what does the assistant answer?"),
        ([T, A], 1, "tool first", "what does the tool answer?"),
        ([U, U, A], 2, "roles out of order", "follows another turn of the user"),
        ([U, A, A], 3, "roles out of order", "follows another turn of the assistant"),
        ([U, T, A], 2, "tool without a call", "follows a turn of the user that calls no tool"),
        ([U, A, T, A], 3, "tool without a call", "follows a turn of the assistant that calls no tool"),
        ([U, CALL, T, U, A], 4, "user after tool", "which the assistant must answer first"),
        ([{"role": "user", "content": " "}, A], 1, "empty turn", "(user) is empty"),
        ([U, A, U, {"role": "assistant", "content": ""}], 4, "empty turn", "(assistant) is empty"),
    ],
)
def test_turns_out_of_order_are_refused_and_taken_only_when_asked(jsonl, turns, number, reason, words):
    path = jsonl([{"messages": turns}, {"messages": [U, A]}])
    said = refusal(path)
    assert said.startswith(f"{path}:1: message {number} (") and words in said and "role_order: any" in said
    found, counts = read(path, "skip")
    assert len(found) == 1 and counts.dropped == {reason: 1}
    assert len(read(path, role_order="any")[0]) == 2


def test_the_number_of_a_message_is_that_in_the_rows_list(jsonl):
    """A system text beside the list is a message of the record, not of the list that a person looks at."""
    assert ":1: message 2 (user: 'u')" in refusal(jsonl([{"system": "s", "messages": [U, U, A]}]))
    assert ":1: message 3 (user: 'u')" in refusal(jsonl([{"messages": [S, U, U, A]}]))


def test_an_empty_answer_that_is_not_trained_is_let_through(jsonl):
    (chat,), _ = read(jsonl([{"messages": [U, {**A, "content": "", "train": False}, U, A]}]))
    assert len(chat.messages) == 4


def test_the_sides_of_a_pair_follow_their_prompt_in_turn(jsonl):
    pair = {"prompt": [U, A], "chosen": [A], "rejected": [A]}
    assert "message 3 (assistant: 'a') follows another turn of the assistant" in refusal(jsonl([pair]))
    (record,), _ = read(jsonl([{"prompt": [U], "chosen": [A], "rejected": [{**A, "content": "b"}]}]))
    assert isinstance(record, Preference)
    rated = {"prompt": [U, U], "completion": [A], "label": True}
    assert "message 2" in refusal(jsonl([rated]))
    assert isinstance(read(jsonl([rated]), role_order="any")[0][0], UnpairedPreference)


# --- placeholders -------------------------------------------------------------------------------------------------------

NAMED = {"messages": [{"role": "user", "content": "Who are you, {{ name }}?"}, {"role": "assistant", "content": "{{name}}, of {{author}}."}]}  # fmt: skip


def test_placeholders_are_filled_in_every_string_of_a_row(jsonl):
    path = jsonl([NAMED, {"messages": [U, {"role": "assistant", "content": "{{author}}"}]}])
    (first, second), counts = read(path, fill={"name": "小芽", "author": r"A\1 {{name}}"})
    assert [m.content for m in first.messages] == ["Who are you, 小芽?", r"小芽, of A\1 {{name}}."]
    assert second.messages[1].content == r"A\1 {{name}}", "text that was put in is not filled again"
    assert counts.filled == {"name": 1, "author": 2}
    assert "placeholders filled, in rows: author 2, name 1" in counts.lines()


def test_a_name_that_no_row_uses_is_said_once_and_what_stays_is_counted_with_an_example(jsonl):
    path = jsonl([NAMED] * 3)
    _, counts = read(path, fill={"name": "Sprout", "autor": "Ann"})
    said = [line for line in counts.lines() if "{{" in line]
    assert len(said) == 2
    assert said[0].startswith("fill: no row has {{autor}};")
    assert said[1].startswith("3 records hold a placeholder") and f"first at {path}:1: {{{{author}}}};" in said[1]
    assert "set fill: {author: TEXT}" in said[1]


def test_placeholders_are_counted_where_nothing_is_filled(jsonl):
    """Nobody should train {{name}} without knowing."""
    code = {"text": "{{ x + 1 }} {%raw%} {{}} { {a} }"}
    found, counts = read(jsonl([{"text": "I am {{name}}."}, code, {"text": "no"}]))
    assert found[0].text == "I am {{name}}." and found[1].text == code["text"]
    assert counts.placeholders == 1 and any("set fill: {name: TEXT}" in line for line in counts.lines())


def test_a_door_travels_to_a_worker_and_does_the_same_there(jsonl):
    opened = open_source(SourceConfig(path=str(jsonl([NAMED])), fill={"name": "S"}))
    (raw,) = opened.rows
    here, there = Counts(), Counts()
    record = record_from(raw, opened.door, "error", here)
    door = pickle.loads(pickle.dumps(opened.door))
    assert isinstance(door, Door) and record_from(raw, door, "error", there) == record
    assert here == there and here.filled == {"name": 1}
    both = Counts.from_dict(here.as_dict())
    both.merge(there)
    assert (both.filled, both.placeholders, both.schemas) == ({"name": 2}, 2, {"messages": 2})
    assert both.placeholder_example == here.placeholder_example


# --- the real sets ------------------------------------------------------------------------------------------------------

FILLED = {"fill": {"name": "Sprout", "author": "Ann"}}
EQUATIONS = {"columns": {"prompt": "text.prompt", "completion": "text.final_answer"}, "format": "prompt_completion"}
SETS = [  # file, settings, schema, rows, records
    ("sft/toolcall_zh_sharegpt.jsonl", {}, "sharegpt", 300, 298),
    ("sft/toolcall_zh_sharegpt.jsonl", {"role_order": "any"}, "sharegpt", 300, 300),
    ("sft/identity.jsonl", FILLED, "instruction", 91, 91),
    ("sft/alpaca_en.jsonl.gz", {"max_rows": 5000}, "instruction", 5000, 5000),
    ("sft/alpaca_zh.jsonl.gz", {"max_rows": 5000}, "instruction", 5000, 5000),
    ("sft/gsm8k_train.jsonl.gz", {}, "question_answer", 7473, 7473),
    ("preference/dpo_zh.jsonl", {}, "sharegpt_ranking", 300, 300),
    ("preference/dpo_en.jsonl", {}, "sharegpt_ranking", 300, 300),
    ("preference/instruction_pairs_en.jsonl", {}, "preference", 1100, 1100),
    ("classification/sms_spam.tsv", {}, "labelled", 5574, 5574),
    ("classification/hotel_reviews_zh.csv", {}, "labelled", 7766, 7765),
    ("pretrain/equations_nested_text.jsonl", {"columns": {"text": "text.prompt"}}, "text", 3000, 3000),
    ("pretrain/equations_nested_text.jsonl", EQUATIONS, "prompt_completion", 3000, 2972),
    ("pretrain/c4_en.jsonl", {}, "text", 300, 300),
]


@pytest.mark.parametrize(("name", "settings", "schema", "rows", "records"), SETS)
def test_the_real_sets_go_in_whole_and_come_back_as_they_were(name, settings, schema, rows, records):
    """Pitfall 13. Every record is written in its schema and read again, and no row is lost on the way."""
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"real data {name} is not here")
    found, counts = read(path, "skip", **settings)
    assert (counts.rows_in, len(found)) == (rows, records)
    assert counts.schemas == {schema: records} and counts.dropped.total() == rows - records
    assert counts.placeholders == 0
    known = Door(schema).format
    assert all(known.parse(known.to_row(record), {}) == record for record in found[::7])


def test_the_real_tool_calls_are_all_read():
    path = SHARED / "sft" / "toolcall_zh_sharegpt.jsonl"
    if not path.exists():
        pytest.skip("real data toolcall_zh_sharegpt.jsonl is not here")
    found, counts = read(path, role_order="any")
    calls = [call for chat in found for message in chat.messages for call in message.tool_calls]
    assert len(calls) == 216 and all(isinstance(call.arguments, dict) for call in calls)
    assert sum(len(chat.tools) for chat in found) == 239 and counts.special["tools"] == 200
    assert sum(message.role == "tool" for chat in found for message in chat.messages) == 218
    said = refusal(path)
    assert ":198: message 3 (tool: " in said, "an answer there tells of a call in words, and has none"
