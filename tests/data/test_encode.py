"""Rows become ids and a mask: an end to every document, nothing lost without a count."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sproutlm.data.encode import Encoded, Encoder, encode
from sproutlm.data.long_rows import truncate_chat
from sproutlm.data.readers import RawRow
from sproutlm.data.records import Chat, Labelled, Message, Preference, Text, UnpairedPreference
from sproutlm.data.sources import Door
from sproutlm.errors import DataError, SproutError
from sproutlm.tokenizer import ChatTemplate, Tokenizer

QUESTION, ANSWER = "What is 2 + 2?", "The answer is 4."


def chat(*contents: str, system: str = "") -> Chat:
    """Turns of user and assistant in alternation."""
    turns = [Message("user" if i % 2 == 0 else "assistant", content) for i, content in enumerate(contents)]
    return Chat((*([Message("system", system)] if system else []), *turns))


def fit_chat(record, limit, tokenizer, template):
    document = truncate_chat(record, limit, template)
    return document and Encoded(document.ids.tolist(), document.trained.tolist())


@pytest.fixture
def encoder(tokenizer, template):
    def make(seq_len=40, on_long="auto", on_bad_row="error", template=template):
        return Encoder(tokenizer, template, seq_len, on_bad_row, on_long)

    return make


def rows(tmp_path, *values):
    return [RawRow(tmp_path / "rows.jsonl", line, value) for line, value in enumerate(values, 1)]


def asked(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


# --- one record -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["hello", " ", "春眠不觉晓", "a <|endoftext|> in the text\r\n", "<|im_end|>"])
def test_text_has_exactly_one_end_token_on_each_side(text, tokenizer, template):
    """Pitfalls 1, 4 and 7: one leading, one trailing, the trailing one trained, and none out of the text itself."""
    ids, trained = encode(Text(text), tokenizer, template)
    assert ids[0] == ids[-1] == tokenizer.eos_id
    assert ids.count(tokenizer.eos_id) == 2
    assert trained == [False] + [True] * (len(ids) - 1)
    assert tokenizer.decode(ids) == text


def test_empty_text_gives_nothing(tokenizer, template):
    assert encode(Text(""), tokenizer, template) == ([], [])


def test_eos_is_trained_in_every_chat_row_and_user_text_is_not(tokenizer, template):
    """Pitfalls 1 and 3."""
    ids, trained = encode(chat(QUESTION, ANSWER, QUESTION, ANSWER), tokenizer, template)
    learnt = [i for i, t in zip(ids, trained, strict=True) if t]
    assert tokenizer.decode(learnt, keep_control=True) == f"{ANSWER}<|im_end|>" * 2


def test_other_kinds_of_record_are_refused_with_the_cure(tokenizer, template):
    turns = (Message("user", "a"),)
    for record in (Preference(turns, turns, turns), Labelled("good", "1")):
        with pytest.raises(DataError, match="pretraining and SFT cannot learn from.*format: text"):
            encode(record, tokenizer, template)


# --- conversations that are too long ----------------------------------------------------------------------------------


def test_a_cut_answer_keeps_its_end_token_and_its_question_at_every_length(tokenizer, template):
    """Pitfall 2: whatever the limit, what is left ends in a trained end token, or nothing is left."""
    long = chat("夜来风雨声？", "春眠不觉晓，处处闻啼鸟。" * 8)
    whole = len(encode(long, tokenizer, template).ids)
    end = tokenizer.token_id("<|im_end|>")
    lengths = []
    for limit in range(5, whole):
        encoded = fit_chat(long, limit, tokenizer, template)
        if encoded is None:
            assert not lengths, "a longer limit keeps at least as much"
            continue
        assert len(encoded.ids) <= limit
        learnt = [i for i, t in zip(*encoded, strict=True) if t]
        assert learnt[-1] == end
        assert long.messages[1].content.startswith(tokenizer.decode(learnt))  # no character is cut in two
        assert "夜来风雨声？" in tokenizer.decode(encoded.ids)
        lengths.append(len(encoded.ids))
    assert lengths and max(lengths) >= whole - 4


def test_a_long_conversation_keeps_system_message_and_newest_turns(tokenizer, template):
    """Pitfall 2: the oldest exchanges go first, whole ones, and the system message stays."""
    turns = [f"{word} {i}" for i in range(6) for word in ("question", "answer")]
    long = chat(*turns, system="Be brief.")
    newest = chat(*turns[-4:], system="Be brief.")
    limit = len(encode(newest, tokenizer, template).ids)
    assert fit_chat(long, limit, tokenizer, template) == encode(newest, tokenizer, template)
    assert fit_chat(long, limit + 1, tokenizer, template) == encode(newest, tokenizer, template)


def test_turns_after_the_last_answer_are_the_first_to_go(tokenizer, template):
    exchange = chat(QUESTION, ANSWER)
    longer = Chat((*exchange.messages, Message("user", "And one thing more? " * 9)))
    limit = len(encode(exchange, tokenizer, template).ids)
    assert fit_chat(longer, limit, tokenizer, template) == encode(exchange, tokenizer, template)


def test_a_prompt_without_room_for_an_answer_is_given_up(tokenizer, template):
    assert fit_chat(chat(QUESTION * 20, ANSWER), 30, tokenizer, template) is None


# --- chunks of rows ---------------------------------------------------------------------------------------------------


def test_a_chunk_gives_what_encode_gives_row_by_row(tmp_path, encoder, tokenizer, template):
    values = [{"text": "春眠不觉晓"}, {"text": "hello <|im_end|>"}, {"text": "a"}]
    chunk = encoder().chunk(rows(tmp_path, *values), Door("text"))
    expected = [encode(Text(value["text"]), tokenizer, template) for value in values]
    assert chunk.lengths.tolist() == [len(e.ids) for e in expected]
    assert chunk.tokens.tolist() == [i for e in expected for i in e.ids]
    assert chunk.trained.tolist() == [t for e in expected for t in e.trained]
    assert chunk.tokens.dtype == np.dtype("<u2")
    assert (chunk.tally.tokens, chunk.tally.trained_tokens) == (len(chunk.tokens), int(chunk.trained.sum()))


def test_a_chunk_of_conversations_gives_what_each_gives_alone(tmp_path, encoder, tokenizer, template):
    """They are encoded together; ids and masks must not notice."""
    long = "The quick brown fox jumps over the lazy dog, <|im_end|> and 春眠不觉晓. "
    turns = [
        ("user", long),
        ("assistant", long * 2),
        ("user", "a"),
        ("assistant", "b"),
        ("user", long),
        ("assistant", ""),
    ]
    chats = [[{"role": r, "content": c} for r, c in turns[i : i + 2]] for i in (0, 2, 4)] + [
        [{"role": r, "content": c} for r, c in turns],
        [{"role": "user", "content": long, "train": True}, {"role": "assistant", "content": long, "train": False}],
        [{"role": "system", "content": long}, *({"role": r, "content": c} for r, c in turns[:2])],
    ]
    chunk = encoder(seq_len=4096).chunk(rows(tmp_path, *({"messages": m} for m in chats)), Door("messages"))
    alone = [template.render(m) for m in chats]
    assert chunk.lengths.tolist() == [len(each.ids) for each in alone]
    assert chunk.tokens.tolist() == [i for each in alone for i in each.ids]
    assert chunk.trained.tolist() == [t for each in alone for t in each.trained]


def test_an_encoder_that_travelled_to_a_worker_encodes_the_same(tmp_path, encoder):
    here, there = encoder(), pickle.loads(pickle.dumps(encoder()))
    some = rows(tmp_path, asked(QUESTION, ANSWER), asked("你好", "春眠不觉晓"))
    one, other = (e.chunk(some, Door("messages")) for e in (here, there))
    assert one.tokens.tolist() == other.tokens.tolist() and one.trained.tolist() == other.trained.tolist()
    assert one.tally.as_dict() == other.tally.as_dict()


def test_ids_beyond_65535_take_four_bytes(template):
    class Big:
        vocab_size = 65_537

    class Fits:
        vocab_size = 65_536

    assert Encoder(Big(), template, 8, "error", "auto").dtype == np.dtype("<u4")
    assert Encoder(Fits(), template, 8, "error", "auto").dtype == np.dtype("<u2")


def test_rows_that_train_nothing_are_dropped_and_counted(tmp_path, encoder):
    """Pitfall 23: a batch of such rows would have a loss of 0 / 0."""
    silent = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "train": False}]}
    chunk = encoder(on_bad_row="skip").chunk(rows(tmp_path, silent, asked(QUESTION, ANSWER)), Door("messages"))
    assert len(chunk.lengths) == 1
    assert chunk.tally.counts.dropped.total() == 1
    chunk.tally.counts.check()


def test_the_share_of_conversations_that_train_a_stop_token_is_counted(tmp_path, encoder, tokenizer):
    """Pitfall 1."""
    chunk = encoder().chunk(rows(tmp_path, asked(QUESTION, ANSWER), asked("a", "b")), Door("messages"))
    assert (chunk.tally.chats, chunk.tally.chats_with_stop) == (2, 2)
    endless = tokenizer.with_chat_template(
        "{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    )
    chunk = encoder(template=ChatTemplate.of(endless)).chunk(rows(tmp_path, asked("a", "b")), Door("messages"))
    assert (chunk.tally.chats, chunk.tally.chats_with_stop) == (1, 0)


@pytest.mark.parametrize("on_bad_row", ["error", "skip"])
def test_chat_rows_without_a_template_are_not_trained_as_json_text(tmp_path, tokenizer, on_bad_row):
    """Pitfall 14."""
    files = tokenizer.files()
    bare = Tokenizer(files["tokenizer.json"], {k: v for k, v in tokenizer.config.items() if k != "chat_template"})
    encoder = Encoder(bare, ChatTemplate(None, bare), 40, on_bad_row, "auto")
    some = rows(tmp_path, asked(QUESTION, ANSWER))
    if on_bad_row == "error":
        with pytest.raises(DataError, match=r"rows\.jsonl:1: .*no chat template"):
            encoder.chunk(some, Door("messages"))
    else:
        chunk = encoder.chunk(some, Door("messages"))
        assert len(chunk.tokens) == 0 and chunk.tally.counts.dropped.total() == 1
        assert "no chat template" in chunk.tally.counts.examples[0]


LONG = "hello " * 60


@pytest.mark.parametrize("policy", ["auto", "split"])
def test_a_long_text_is_left_whole_for_the_packer_and_counted(tmp_path, encoder, tokenizer, policy):
    chunk = encoder(on_long=policy).chunk(rows(tmp_path, {"text": LONG}), Door("text"))
    assert tokenizer.decode(chunk.tokens.tolist()) == LONG
    assert (chunk.tally.split, chunk.tally.lost_tokens, chunk.tally.counts.truncated) == (1, 0, 0)


def test_a_truncated_text_keeps_its_end_token_and_the_loss_is_counted(tmp_path, encoder, tokenizer):
    """Pitfall 2."""
    whole = len(tokenizer.encode(LONG)) + 2
    chunk = encoder(on_long="truncate").chunk(rows(tmp_path, {"text": LONG}, {"text": "short"}), Door("text"))
    assert chunk.lengths[0] == 40 and chunk.tokens[39] == tokenizer.eos_id and chunk.trained[39]
    assert (chunk.tally.counts.truncated, chunk.tally.lost_tokens) == (1, whole - 40)


def test_dropped_and_refused_long_rows(tmp_path, encoder, tokenizer):
    some = rows(tmp_path, {"text": "short"}, {"text": LONG})
    chunk = encoder(on_long="drop").chunk(some, Door("text"))
    assert len(chunk.lengths) == 1 and chunk.tally.counts.dropped == {"longer than seq_len": 1}
    assert chunk.tally.lost_tokens == len(tokenizer.encode(LONG)) + 2
    chunk.tally.counts.check()
    with pytest.raises(DataError, match=r"rows\.jsonl:2: .*more than seq_len=40.*data\.on_long"):
        encoder(on_long="error").chunk(some, Door("text"))


def test_a_long_chat_is_truncated_unless_split_is_asked(tmp_path, encoder):
    some = rows(tmp_path, asked(QUESTION, "The answer is 4. " * 30))
    chunk = encoder(on_long="auto").chunk(some, Door("messages"))
    assert chunk.lengths.tolist() == [40] and chunk.tally.counts.truncated == 1
    chunk = encoder(on_long="split").chunk(some, Door("messages"))  # one exchange: there is nothing to cut between
    assert chunk.lengths.tolist() == [40] and (chunk.tally.counts.truncated, chunk.tally.cut_exchanges) == (1, 1)


def test_a_chat_whose_prompt_fills_the_row_is_dropped_by_name(tmp_path, encoder):
    chunk = encoder().chunk(rows(tmp_path, asked(QUESTION * 20, ANSWER)), Door("messages"))
    assert chunk.tally.counts.dropped == {"prompt longer than seq_len": 1} and len(chunk.tokens) == 0
    chunk.tally.counts.check()


def test_a_row_that_is_no_unicode_is_named_or_skipped_and_the_others_stay(tmp_path, encoder, tokenizer):
    """Pitfall 13: one bad row must not take its chunk with it."""
    some = rows(tmp_path, {"text": "good"}, {"text": "half \ud83d"}, {"text": "better"})
    with pytest.raises(SproutError, match=r"rows\.jsonl:2: .*surrogate.*on_bad_row: skip"):
        encoder().chunk(some, Door("text"))
    chunk = encoder(on_bad_row="skip").chunk(some, Door("text"))
    assert tokenizer.decode(chunk.tokens.tolist()) == "goodbetter"
    assert (chunk.tally.counts.rows_in, chunk.tally.counts.records_out) == (3, 2)
    chunk.tally.counts.check()


def test_pairs_in_a_training_source_are_refused_with_file_and_line(tmp_path, encoder):
    pair = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError, match=r"rows\.jsonl:1: .*better and a worse answer"):
        encoder(on_bad_row="skip").chunk(rows(tmp_path, pair), Door("preference"))


def test_an_answer_with_a_verdict_is_refused_by_its_name(tokenizer, template):
    turns = (Message("user", "a"),)
    with pytest.raises(DataError, match="an answer with a verdict.*pretraining and SFT cannot learn from"):
        encode(UnpairedPreference(turns, turns, True), tokenizer, template)
