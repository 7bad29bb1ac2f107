"""Conversations longer than a row: cut between exchanges, every answer in one piece and with its end, all of it counted."""

from __future__ import annotations

import json

import pytest

from sproutlm.data.encode import Encoder
from sproutlm.data.long_rows import rendered, split_chat, truncate_chat
from sproutlm.data.readers import RawRow
from sproutlm.data.records import Chat, Message, ToolCall
from sproutlm.data.sources import Door
from sproutlm.errors import SproutError
from sproutlm.tokenizer import ChatTemplate

SYSTEM = Message("system", "Be brief.")


def exchange(number: int, words: int = 3) -> tuple[Message, Message]:
    return Message("user", f"question {number}?"), Message("assistant", " ".join([f"answer {number}"] * words) + ".")


def learnt(document, tokenizer) -> str:
    return tokenizer.decode(document.ids[document.trained].tolist(), keep_control=True)


@pytest.mark.parametrize("limit", range(40, 180, 13))
def test_split_trains_every_answer_exactly_once_in_order_under_its_system_message(tokenizer, template, limit):
    chat = Chat((SYSTEM, *(turn for i in range(6) for turn in exchange(i))))
    pieces = split_chat(chat, limit, template)
    assert all(len(document.ids) <= limit for document in pieces.documents)
    shown = [tokenizer.decode(document.ids.tolist()) for document in pieces.documents]
    assert all("Be brief." in text for text in shown)
    if not pieces.cut and not pieces.dropped:
        whole = "".join(learnt(document, tokenizer) for document in pieces.documents)
        assert whole == learnt(rendered(chat, template), tokenizer)
        assert pieces.lost_tokens == 0
    assert len(pieces.documents) > 1


def test_split_fills_the_newest_piece_first(tokenizer, template):
    chat = Chat(tuple(turn for i in range(3) for turn in exchange(i)))
    two = len(rendered(Chat(chat.messages[2:]), template).ids)
    pieces = split_chat(chat, two, template)
    questions = [tokenizer.decode(document.ids.tolist()).count("question") for document in pieces.documents]
    assert questions == [1, 2]


def test_split_shortens_or_drops_only_the_exchange_that_is_too_long(tokenizer, template):
    long_answer, long_question = exchange(1, words=60), (Message("user", "why? " * 80), Message("assistant", "So."))
    chat = Chat((*exchange(0), *long_answer, *exchange(2), *long_question, *exchange(4)))
    pieces = split_chat(chat, 60, template)
    assert (pieces.cut, pieces.dropped) == (1, 1) and pieces.lost_tokens > 200
    texts = [learnt(document, tokenizer) for document in pieces.documents]
    assert all(text.endswith("<|im_end|>") for text in texts)  # pitfall 2
    assert "So." not in "".join(texts)
    assert all(f"answer {i}" in "".join(texts) for i in (0, 1, 2, 4))


def with_tools(result: str = "24 degrees", answer: str = "It is warm. " * 12) -> Chat:
    call = Message("assistant", "", tool_calls=(ToolCall("weather", {"city": "Beijing"}),))
    tool = {"type": "function", "function": {"name": "weather", "description": "", "parameters": {}}}
    return Chat(
        (*exchange(0), Message("user", "Weather?"), call, Message("tool", result), Message("assistant", answer)),
        (tool,),
    )


def test_a_call_and_its_result_stay_together_and_the_tools_stay_in_each_piece(tokenizer, template):
    """Whatever the limit: where the call is, its result is, too."""
    chat = with_tools()
    whole = len(rendered(chat, template).ids)
    seen = 0
    for limit in range(30, whole, 7):
        for document in [truncate_chat(chat, limit, template), *split_chat(chat, limit, template).documents]:
            if document is None:
                continue
            text = tokenizer.decode(document.ids.tolist(), keep_control=True)
            assert ("Beijing" in text) == ("24 degrees" in text)
            assert '"weather"' in text  # the tools' list
            seen += "Beijing" in text
    assert seen


def test_a_call_that_does_not_fit_is_dropped_and_never_cut(template):
    call = Message("assistant", "", tool_calls=(ToolCall("write", {"text": "a long text " * 40}),))
    assert truncate_chat(Chat((Message("user", "Write."), call)), 60, template) is None


def test_thinking_is_kept_where_the_answer_after_it_is_cut(tokenizer, template):
    turns = (Message("user", "2 + 2?"), Message("assistant", "The answer is 4. " * 20, reasoning_content="two twos"))
    document = truncate_chat(Chat(turns), 60, template)
    assert "two twos" in tokenizer.decode(document.ids.tolist())


# --- counted ----------------------------------------------------------------------------------------------------------


def row(path, chat: Chat) -> RawRow:
    turns = [{"role": m.role, "content": m.content} for m in chat.messages]
    return RawRow(path / "rows.jsonl", 1, json.dumps({"messages": turns}), is_json=True)


def test_a_split_row_counts_once_as_out_and_its_pieces_as_documents(tmp_path, tokenizer, template):
    """Pitfall 13: rows in = rows out + dropped, and documents = rows out + further pieces."""
    chat = Chat(tuple(turn for i in range(4) for turn in exchange(i)))
    tally = Encoder(tokenizer, template, 60, "error", "split").chunk([row(tmp_path, chat)] * 3, Door("messages")).tally
    tally.counts.check()
    assert (tally.counts.rows_in, tally.counts.records_out, tally.split_chats) == (3, 3, 3)
    assert tally.pieces > 0 and tally.pieces % 3 == 0
    assert (tally.chats, tally.chats_with_stop) == (3, 3)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_a_template_that_refuses_the_cut_conversation_names_the_row(tmp_path, tokenizer, on_bad_row):
    picky = tokenizer.with_chat_template(
        "{% if messages | length == 2 %}{{ raise_exception('too few turns') }}{% endif %}{% for m in messages %}"
        "<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    )
    chat = Chat((*exchange(0, 20), *exchange(1)))
    encoder = Encoder(picky, ChatTemplate.of(picky), 60, on_bad_row, "truncate")
    if on_bad_row == "error":
        with pytest.raises(SproutError, match=r"rows\.jsonl:1: .*too few turns"):
            encoder.chunk([row(tmp_path, chat)], Door("messages"))
    else:
        tally = encoder.chunk([row(tmp_path, chat)], Door("messages")).tally
        assert tally.counts.dropped == {"cannot be encoded": 1}
        tally.counts.check()
