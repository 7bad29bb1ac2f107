"""Tools, results and thinking through the renderer: literal layouts, what is trained, one shape for every input."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from sproutlm.data.records import Message, ToolCall
from sproutlm.errors import SproutError
from sproutlm.tokenizer import CHATML, ChatTemplate, Rendered, Tokenizer, jinja
from sproutlm.tokenizer.library import load_template

ADD = {"type": "function", "function": {"name": "add", "description": "加<b>", "parameters": {"type": "object"}}}
CONVERSATION = [
    Message("system", "Be brief."),
    Message("user", "1 + 2"),
    Message("assistant", "Adding.", reasoning_content=" I add. ", tool_calls=(ToolCall("add", {"a": 1, "b": "二"}),)),
    Message("tool", "3"),
    Message("tool", "three"),
    Message("assistant", "It is 3."),
]
CHATML_TEXT = """\
<|im_start|>system
Be brief.

Tools:
{"name": "add", "description": "加<b>", "parameters": {"type": "object"}}
Call a tool with <tool_call>{"name": ..., "arguments": {...}}</tool_call>.<|im_end|>
<|im_start|>user
1 + 2<|im_end|>
<|im_start|>assistant
<think>
I add.
</think>

Adding.
<tool_call>
{"name": "add", "arguments": {"a": 1, "b": "二"}}
</tool_call><|im_end|>
<|im_start|>user
<tool_response>
3
</tool_response>
<tool_response>
three
</tool_response><|im_end|>
<|im_start|>assistant
It is 3.<|im_end|>
"""
CHATML_TRAINED = """\
<think>
I add.
</think>

Adding.
<tool_call>
{"name": "add", "arguments": {"a": 1, "b": "二"}}
</tool_call><|im_end|>It is 3.<|im_end|>"""


def trained_text(tokenizer: Tokenizer, rendered: Rendered) -> str:
    ids = [id_ for id_, trained in zip(rendered.ids, rendered.trained, strict=True) if trained]
    return tokenizer.decode(ids, keep_control=True)


def test_chatml_with_everything_reads_like_this(tokenizer: Tokenizer, template: ChatTemplate) -> None:
    """Pitfall 1 for calls: the end token of a tool-call turn is trained, too."""
    rendered = template.render(CONVERSATION, [ADD])
    assert rendered.text == CHATML_TEXT
    assert trained_text(tokenizer, rendered) == CHATML_TRAINED
    for name in ("<think>", "</think>", "</tool_call>", "</tool_response>"):
        assert tokenizer.token_id(name) in rendered.ids  # written by the template: control tokens


def test_qwen3_reads_like_this(tokenizer: Tokenizer) -> None:
    """Thinking is shown from the last question on, and the last reply has a block even when it is empty."""
    template = ChatTemplate(load_template("qwen3"), tokenizer)
    earlier = [Message("user", "q"), Message("assistant", "a", reasoning_content="gone")]
    text = template.render([*earlier, *CONVERSATION[1:3], Message("tool", "3"), Message("assistant", "3.")]).text
    assert text == (
        "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\na<|im_end|>\n<|im_start|>user\n1 + 2<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n I add. \n</think>\n\nAdding.\n"
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "二"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n3\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n3.<|im_end|>\n"
    )
    offered = template.render([Message("user", "q")], [ADD], add_generation_prompt=True, enable_thinking=False).text
    assert offered.startswith("<|im_start|>system\n# Tools\n\nYou may call one or more functions to assist with")
    assert '<tools>\n{"type": "function", "function": {"name": "add", "description": "加<b>"' in offered
    assert offered.endswith("<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n")


def test_llama2_alpaca_and_plain_read_like_this(tokenizer: Tokenizer) -> None:
    messages = [Message("system", "S"), Message("user", " q "), Message("assistant", " a "), Message("user", "r")]
    end = "<|endoftext|>"

    def text(name: str) -> str:
        return ChatTemplate(load_template(name), tokenizer).render(messages, add_generation_prompt=True).text

    assert text("llama2") == f"[INST] <<SYS>>\nS\n<</SYS>>\n\nq [/INST] a {end}[INST] r [/INST]"
    assert text("plain") == f"S\n\nUser: q\nAI: a{end}\nUser: r\nAI:"
    assert text("alpaca") == (
        f"S\n\n### Instruction:\n q \n\n### Response:\n a {end}\n\n### Instruction:\nr\n\n### Response:\n"
    )


# --- thinking ---------------------------------------------------------------------------------------------------------


def test_thinking_is_kept_dropped_or_masked(tokenizer: Tokenizer) -> None:
    messages = [Message("user", "q"), Message("assistant", "a", reasoning_content="hm"), *CONVERSATION[1:3]]
    texts = {}
    for mode in ("keep", "drop", "mask"):
        rendered = ChatTemplate(CHATML, tokenizer, thinking=mode).render(messages)
        assert rendered == ChatTemplate(CHATML, tokenizer).render(messages, thinking=mode)
        texts[mode] = rendered.text, trained_text(tokenizer, rendered)
    call = 'Adding.\n<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": "二"}}\n</tool_call><|im_end|>'
    thinking = "<think>\nhm\n</think>\n\n", "<think>\nI add.\n</think>\n\n"
    assert texts["keep"][1] == f"{thinking[0]}a<|im_end|>{thinking[1]}{call}"
    assert texts["mask"] == (texts["keep"][0], f"a<|im_end|>{call}")
    assert texts["drop"][1] == texts["mask"][1]
    assert "<think>" not in texts["drop"][0]


def test_masked_thinking_without_tokens_for_it_is_masked_with_its_tags(tokenizer: Tokenizer) -> None:
    source = (
        "{% for m in messages %}{% generation %}[{{ m.reasoning_content }}]{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% endfor %}"
    )
    messages = [{"role": "assistant", "content": "a", "reasoning_content": "hm</think>"}]
    rendered = ChatTemplate(source, tokenizer).render(messages, thinking="mask")
    assert trained_text(tokenizer, rendered) == "[]a<|im_end|>"  # other people's brackets are not known as tags
    spelled = source.replace("[", "<think>\n").replace("]", "\n</think>\n")
    without = [name for name in tokenizer.control_tokens if "think" not in name]
    data = tokenizer.backend_json
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] in without]
    import json

    bare = Tokenizer(json.dumps(data), {"eos_token": "<|endoftext|>"})
    rendered = ChatTemplate(spelled, bare).render(messages, thinking="mask")
    assert trained_text(bare, rendered) == "a<|im_end|>"


def test_thinking_mode_changes_the_fingerprint_and_travels(tokenizer: Tokenizer) -> None:
    """Shards of one mode must not be taken for those of another."""
    modes = {mode: ChatTemplate(CHATML, tokenizer, thinking=mode) for mode in ("keep", "drop", "mask")}
    assert len({template.fingerprint for template in modes.values()}) == 3
    assert pickle.loads(pickle.dumps(modes["mask"])).thinking == "mask"
    with pytest.raises(SproutError, match="expected keep, drop, mask"):
        ChatTemplate(CHATML, tokenizer, thinking="hide")


def test_thinking_can_be_asked_for(template: ChatTemplate) -> None:
    prompt = template.render([Message("user", "q")], add_generation_prompt=True, enable_thinking=True)
    whole = template.render([Message("user", "q"), Message("assistant", "a", reasoning_content="hm")])
    assert prompt.text.endswith("assistant\n<think>\n")
    assert whole.ids[: len(prompt.ids)] == prompt.ids


# --- one shape for every input ----------------------------------------------------------------------------------------


def test_calls_have_the_same_ids_whatever_shape_they_came_in(template: ChatTemplate) -> None:
    """Pitfall 6: a client sends arguments as JSON text and no content; training has objects."""
    wanted = template.render([Message("user", "q"), Message("assistant", "", tool_calls=(ToolCall("f", {"x": "é"}),))])
    for call in (
        {"type": "function", "id": "call_1", "function": {"name": "f", "arguments": '{"x":  "\\u00e9"}'}},
        {"function": {"name": "f", "arguments": {"x": "é"}}},
        {"name": "f", "arguments": {"x": "é"}},
    ):
        for content in ("", None):
            messages = [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": content, "tool_calls": [call]},
            ]
            assert template.render(messages) == wanted
    bare = [{"name": "add", "description": "加<b>", "parameters": {"type": "object"}}]
    assert template.render([Message("user", "q")], bare) == template.render([Message("user", "q")], [ADD])


@pytest.mark.parametrize(
    ("fields", "tools", "sentence"),
    [
        ({"tool_calls": "f"}, [], "message 1: tool_calls must be a list, found str"),
        ({"tool_calls": ["f"]}, [], "message 1, tool call 1: expected {function"),
        ({"tool_calls": [{"function": {"name": 3}}]}, [], "message 1, tool call 1: expected {function"),
        ({"tool_calls": [{"name": "f", "arguments": "{"}]}, [], "arguments must be a JSON object"),
        ({"tool_calls": [{"name": "f", "arguments": "[1]"}]}, [], "arguments must be a JSON object"),
        ({"reasoning_content": ["x"]}, [], "message 1: reasoning_content must be text, found list"),
        ({"content": None}, [], "message 1: content must be text, found NoneType"),
        ({}, [{"type": "function"}], "tool 1: expected {type: function"),
        ({}, ["add"], "tool 1: expected {type: function"),
    ],
)
def test_faults_of_tools_are_sentences(template: ChatTemplate, fields: dict, tools: list, sentence: str) -> None:
    with pytest.raises(SproutError) as error:
        template.render([{"role": "assistant", "content": "x", **fields}], tools)
    assert sentence in str(error.value)


def test_calls_and_tools_that_a_template_leaves_out_are_refused(tokenizer: Tokenizer) -> None:
    """A template without tools would train an empty reply where a call was."""
    plain = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n{% endfor %}"
    template = ChatTemplate(plain, tokenizer)
    with pytest.raises(SproutError, match="leaves out the tool calls of message 3"):
        template.render(CONVERSATION)
    with pytest.raises(SproutError, match="leaves out the tools that the conversation offers"):
        template.render(CONVERSATION[:2], [ADD])
    with pytest.raises(SproutError, match="llama2 template has no tools; use chatml"):
        ChatTemplate(load_template("llama2"), tokenizer).render(CONVERSATION[:2], [ADD])


def test_train_false_leaves_out_a_turn_that_only_calls(tokenizer: Tokenizer, template: ChatTemplate) -> None:
    messages = [
        Message("user", "q"),
        Message("assistant", "", tool_calls=(ToolCall("f", {}),), train=False),
        Message("tool", "r", train=True),
        Message("assistant", "a"),
    ]
    assert trained_text(tokenizer, template.render(messages)) == "r\n</tool_response><|im_end|>a<|im_end|>".replace(
        "\n</tool_response><|im_end|>", "\n</tool_response>"
    )


# --- JSON under shields -----------------------------------------------------------------------------------------------

NASTY = st.lists(
    st.sampled_from(["<|im_end|>", "<tool_call>", '"', "\\", "\n", "é", "春", "😀", "\x00", "\u2028", "\ufdd0", "\ufdd3", "'"]),
    max_size=6,
).map("".join)  # fmt: skip
VALUES: Any = st.recursive(
    NASTY | st.integers() | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NASTY, inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(arguments=st.dictionaries(NASTY, VALUES, max_size=3), name=NASTY, ascii_only=st.booleans())
def test_json_in_a_rendering_is_the_json_of_the_arguments(
    tokenizer: Tokenizer, arguments: dict, name: str, ascii_only: bool
) -> None:
    """Marks and shields never get into the JSON, escaped or not, and no name in it becomes a control token."""
    import json

    source = (
        "{% generation %}{% for c in messages[0].tool_calls %}{{ c.function | tojson(ensure_ascii=%s) }}{% endfor %}"
        "{% endgeneration %}"
    )
    template = ChatTemplate(source.replace("%s", "true" if ascii_only else "false"), tokenizer)
    function = {"name": f"n{name}", "arguments": arguments}
    rendered = template.render([{"role": "assistant", "content": "", "tool_calls": [{"function": function}]}])
    assert rendered.text == json.dumps(function, ensure_ascii=ascii_only)
    assert not set(rendered.ids) & set(tokenizer.control_tokens.values())


# --- templates that never end -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}", "its loops run more than"),
        ("{% for a in range(90000) %}{{ messages[0].content * 9000 }}{% endfor %}", "writes more than"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "never ends"),
        ("{{ 'x' * 10 ** 10 }}", "power"),
        ("{{ 'x' * 99999999 }}", "repeats a text"),
        ("{{ 99999999 * [1] }}", "repeats a text"),
        ("{% for a in range(900000) %}{% endfor %}", "never ends"),
        (
            "{% for a in range(90000) recursive %}{% if loop.depth < 3 %}{{ loop(range(90000)) }}{% endif %}{% endfor %}",
            "its loops run",
        ),
        ("{{ 'a'.ljust(1000000000) }}", "columns"),
        ("{{ 'a' | center(1000000000) }}", "columns"),
        ("{{ 'a' | indent(1000000000) }}", "columns"),
        ("{{ '%1000000000d' % 1 }}", "columns"),
        ("{{ '%1000000000d' | format(1) }}", "columns"),
        ("{{ messages | tojson(indent=1000000000) }}", "columns"),
        ("{{ (('a' * 90000,) * 100) | join }}", "makes a text"),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
            "makes a text",
        ),
        (
            "{% set n = namespace(x='ab') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "makes a text",
        ),
        (
            "{% set n = namespace(x=['ab']) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
            "makes a list",
        ),
        ("{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}", "digits"),
        ("{{ lipsum(n=9000000) }}", "undefined"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ messages[0].content", "not a valid Jinja template"),
        ("{% if %}{% endif %}", "line 1"),
    ],
)
def test_templates_that_never_end_or_fail_are_one_sentence(
    tokenizer: Tokenizer, source: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jinja, "MOST_PASSES", 20_000)
    monkeypatch.setattr(jinja, "MOST_CHARACTERS", 5_000_000)
    with pytest.raises(SproutError, match=sentence) as error:
        ChatTemplate(source, tokenizer).render([{"role": "user", "content": "x" * 100}])
    assert "\n" not in str(error.value)


def test_limits_are_counted_anew_for_each_conversation(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jinja, "MOST_PASSES", 1000)
    template = ChatTemplate("{% for a in range(900) %}{% endfor %}" + CHATML, tokenizer)
    for _ in range(3):
        template.render([{"role": "user", "content": "x"}])
