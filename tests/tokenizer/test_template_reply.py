"""What a model wrote goes back into the conversation with the ids that it wrote (pitfall 6, in chat)."""

from __future__ import annotations

import json

import pytest
from template_conversations import EVERY, A

from sproutlm.data.records import Message
from sproutlm.errors import SproutError
from sproutlm.tokenizer import CHATML, ChatTemplate, Tokenizer
from sproutlm.tokenizer.library import load_template
from sproutlm.tokenizer.lint import stand_in_tokenizer
from sproutlm.tokenizer.reply import read_reply


@pytest.mark.parametrize("name", ["chatml", "qwen3"])
def test_a_reply_read_back_has_the_ids_that_were_written(tokenizer: Tokenizer, name: str) -> None:
    template = ChatTemplate(load_template(name), tokenizer)
    for what, (messages, tools) in EVERY.items():
        last = max((i for i, m in enumerate(messages) if m.role == A), default=0)
        if not last:
            continue
        asked = template.render(messages[:last], tools, add_generation_prompt=True).ids
        whole = template.render(messages[: last + 1], tools)
        written = [id_ for id_, t in zip(whole.ids, whole.trained, strict=True) if t]
        if any(whole.trained[: len(asked)]):  # only the last reply
            written = written[sum(whole.trained[: len(asked)]) :]
        reply = read_reply(tokenizer, written)
        assert template.render([*messages[:last], reply], tools).ids == whole.ids, what
        assert len(reply.tool_calls) == len(messages[last].tool_calls), what


def test_only_control_tokens_divide_a_reply(tokenizer: Tokenizer) -> None:
    spelled = "<think>x</think>y<tool_call>{}</tool_call>"
    assert read_reply(tokenizer, tokenizer.encode(spelled)) == Message("assistant", spelled)
    think, end = tokenizer.token_id("<think>"), tokenizer.token_id("</think>")
    ids = [*tokenizer.encode("\nhm\n"), end, *tokenizer.encode("\n\ny")]
    assert read_reply(tokenizer, [think, *ids]) == Message("assistant", "y", reasoning_content="hm")
    assert read_reply(tokenizer, ids, thinking=True) == Message("assistant", "y", reasoning_content="hm")
    assert read_reply(tokenizer, ids).reasoning_content is None
    assert read_reply(tokenizer, []) == Message("assistant", "")


def test_a_broken_call_stays_in_the_content(tokenizer: Tokenizer) -> None:
    opening, closing = tokenizer.token_id("<tool_call>"), tokenizer.token_id("</tool_call>")
    for text in ("{", "[1]", '{"name": 3}', '{"name": "f", "arguments": []}'):
        reply = read_reply(tokenizer, [*tokenizer.encode("a\n"), opening, *tokenizer.encode(text), closing])
        assert reply == Message("assistant", f"a\n<tool_call>{text}</tool_call>")
    unfinished = read_reply(tokenizer, [opening, *tokenizer.encode('{"name": "f"}')])
    assert not unfinished.tool_calls


def test_a_reply_that_needs_what_the_template_lacks_is_a_sentence(tokenizer: Tokenizer) -> None:
    reply = read_reply(
        tokenizer,
        [tokenizer.token_id("<tool_call>"), *tokenizer.encode('{"name": "f"}'), tokenizer.token_id("</tool_call>")],
    )
    with pytest.raises(SproutError, match="no tool calls"):
        ChatTemplate(load_template("plain"), tokenizer).render([Message("user", "q"), reply])


def test_a_token_across_the_head_of_a_reply_is_trained() -> None:
    """Pitfall 3: with merges across line breaks the head's ids are no prefix, and offsets must tell where it ends."""
    base = stand_in_tokenizer(CHATML)
    data = base.backend_json
    data["model"]["merges"] = [["Ċ", "h"]]
    data["model"]["vocab"]["Ċh"] = base.vocab_size
    tokenizer = Tokenizer(json.dumps(data), base.config)
    rendered = ChatTemplate(CHATML, tokenizer).render([Message("user", "q"), Message("assistant", "hi")])
    trained = [tokenizer.token_text(i) for i, t in zip(rendered.ids, rendered.trained, strict=True) if t]
    assert trained == ["\nh", "i", "<|im_end|>"]
    unmerged = ChatTemplate(CHATML, tokenizer).render([Message("user", "q"), Message("assistant", "ih")])
    trained = [tokenizer.token_text(i) for i, t in zip(unmerged.ids, unmerged.trained, strict=True) if t]
    assert trained == ["i", "h", "<|im_end|>"]
