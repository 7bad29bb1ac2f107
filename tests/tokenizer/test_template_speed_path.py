"""Conversations of one shape, rendered once and filled (``shapes.py``): the same ids, mask and text as one by one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st
from template_conversations import EVERY

from sproutlm.config.schema import SourceConfig
from sproutlm.data.records import Chat, Message, messages_of
from sproutlm.data.sources import Counts, read_records
from sproutlm.errors import SproutError
from sproutlm.tokenizer import CHATML, ChatTemplate, Rendered, Tokenizer
from sproutlm.tokenizer.library import load_template

NAMES = ("chatml", "qwen3", "llama2", "llama3", "alpaca", "plain")
REAL = Path(__file__).parents[2].parent / "shared" / "data"

ODD = ["<|im_end|>", "<|im_start|>assistant\n", "<think>", "</think>", "<|endoftext|>", "<|im_", "end|>", "\n", " ", "\t",
       "\r\n", "\u3000", "\u2028", "\x85", "\ufdd0", "\ufdd4\ufdd6\ufdd4", "\U00100000", "\U00100001", "{{ x }}", "{% generation %}",
       "春眠", "👩\u200d👩", "e\u0301", "\x00", "fox", "### Response:\n", "a longer text of more than thirty-two characters"]  # fmt: skip
TEXT = st.one_of(
    st.lists(st.sampled_from(ODD), max_size=5).map("".join), st.text(max_size=12), st.just(""), st.just("fox")
)
MESSAGE = st.builds(
    Message,
    st.sampled_from(["user", "assistant", "assistant", "user", "system", "tool"]),
    TEXT,
    train=st.sampled_from([None] * 12 + [True, False]),
    reasoning_content=st.one_of(st.none(), st.none(), st.none(), TEXT),
    name=st.sampled_from([None] * 12 + ["fox"]),
)


def one_by_one(template: ChatTemplate, messages: Any, tools: Any = ()) -> Rendered | str:
    try:
        return template.render(messages, tools)
    except SproutError as error:
        return str(error)


def together(template: ChatTemplate, messages: Any, tools: Any = ()) -> Rendered | str:
    try:
        return template.render_batch([(messages, tools)])[0]
    except SproutError as error:
        return str(error)


@pytest.fixture(scope="module")
def templates(tokenizer: Tokenizer) -> dict[tuple[str, str], ChatTemplate]:
    return {
        (name, mode): ChatTemplate(load_template(name), tokenizer, thinking=mode)
        for name in NAMES
        for mode in ("keep", "drop", "mask")
    }


@settings(max_examples=250, deadline=None)
@given(
    conversations=st.lists(st.lists(MESSAGE, min_size=1, max_size=5), min_size=1, max_size=3),
    name=st.sampled_from(NAMES),
    mode=st.sampled_from(["keep", "drop", "mask"]),
)
def test_any_conversation_is_the_same_as_rendered_by_itself(
    templates: dict[tuple[str, str], ChatTemplate], conversations: list[list[Message]], name: str, mode: str
) -> None:
    """Pitfalls 3 to 6: whatever contents and thoughts hold, however the skeleton of their shape was made before."""
    template = templates[name, mode]
    for messages in conversations:
        assert together(template, messages) == one_by_one(template, messages)


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(TEXT, min_size=2, max_size=4), thought=TEXT, name=st.sampled_from(NAMES))
def test_a_skeleton_holds_for_every_text_of_its_shape(
    templates: dict[tuple[str, str], ChatTemplate], texts: list[str], thought: str, name: str
) -> None:
    """The same roles again and again, so that all but a few conversations are filled and not rendered."""
    template = templates[name, "keep"]
    messages = [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    messages[1] = Message("assistant", texts[1], reasoning_content=thought)
    assert together(template, messages) == one_by_one(template, messages)


@pytest.mark.parametrize("name", NAMES)
def test_known_conversations_are_the_same_and_the_plain_ones_are_filled(tokenizer: Tokenizer, name: str) -> None:
    template = ChatTemplate(load_template(name), tokenizer)
    for case, (messages, tools) in EVERY.items():
        before = template.shapes.filled
        assert together(template, messages, tools) == one_by_one(template, messages, tools), case
        special = tools or any(m.tool_calls or m.name or m.content.isspace() or m.role == "tool" for m in messages)
        if not special and "blank thinking" not in case:
            assert template.shapes.filled == before + 1, case
    assert len(template.shapes) < 25


# --- templates that look at a text: each must be rendered conversation by conversation --------------------------------

LOOKS = [
    "c | length", "c | upper", "c[:3]", "c[0]", "c[-1]", "'yes' if c == 'fox' else 'no'", "'yes' if 'fox' == c else 'no'",
    "'yes' if c != 'fox' else 'no'", "'yes' if 'fox' in c else 'no'", "'yes' if c in ['fox', 'dog'] else 'no'",
    "'yes' if c in 'a fox b' else 'no'", "'yes' if c < 'm' else 'no'", "'yes' if c is eq('fox') else 'no'",
    "'yes' if c is lower else 'no'", "{'fox': 'yes'}[c]", "{'fox': 'yes'}.get(c, 'no')", "c.startswith('f')",
    "'abc'.startswith(c)", "c.split('o')[0]", "c | replace('o', '0')", "c.strip('f')", "c | trim('x')", "c | tojson",
    "[c] | tojson", "c | list | join('-')", "[c] | join", "['x', c] | join('-')", "[c] | string", "'%s' % c | upper",
    "('%s' % c)", "'%s|%s' | format(c, c)", "'{}'.format(c)", "(c ~ 'x') | upper", "(c + 'x') | trim", "('x' ~ c) | length",
    "(c * 2)", "c | first", "c | wordcount", "c | default('x') | capitalize", "messages | map(attribute='content') | join",
    "messages | map(attribute='content') | map('upper') | first", "messages | selectattr('content', 'eq', 'fox') | list | length",
    "messages | sort(attribute='content') | map(attribute='role') | join", "messages | tojson", "messages[0] | tojson",
    "messages | string", "messages[0].values() | list | string", "messages[0] | dictsort(by='value') | first | first",
    "messages | groupby('content') | length", "messages | unique(attribute='content') | list | length",
    "[c, 'fox'] | unique | list | length", "[c, 'm'] | max", "[c, 'm'] | sort | first", "c.__class__.__name__",
    "c.missing is defined", "c['strip'] is defined", "c.strip is defined", "c.zfill(12)", "c.join(['1', '2'])", "'-'.join([c])",
    "c | attr('upper') is defined", "'yes' if [c] == ['fox'] else 'no'", "'yes' if (c, 1) in [('fox', 1)] else 'no'",
    "'yes' if messages[0] == {'role': 'user', 'content': 'fox'} else 'no'", "'yes' if c is sameas('fox') else 'no'",
    "c | indent(2)", "c | escape", "c | reverse", "c | int", "'abc'.find(c)", "[1, 2, 3][c | length]", "c is filter",
    "range(c | length) | list", "namespace(x=c).x | upper", "dict(x=c).x[0]", "c and c[0]", "(c or 'x') | length",
    "c | batch(2) | list | string", "c | xmlattr", "c | pprint", "lipsum() | length > 0 and c", "[1, 2, 3] | random ~ c | length",
]  # fmt: skip
BLOCKS = [
    "{% set x %}{{ c }}{% endset %}{{ x | length }}",
    "{% macro m(t) %}{{ t }}{% endmacro %}{{ m(c) | upper }}",
    "{% macro m() %}{{ caller() | upper }}{% endmacro %}{% call m() %}{{ c }}{% endcall %}",
    "{% filter upper %}{{ c }}{% endfilter %}",
    "{% for letter in c %}{{ letter }}-{% endfor %}",
    "{% for x in [c] recursive %}{{ x if x is string else '' }}{{ loop(['z']) | upper if x == 'fox' else '' }}{% endfor %}",
    "{% for m in messages %}{{ loop.changed(m.content) }}{% endfor %}",
    "{% block b %}{{ c }}{% endblock %}{{ self.b() | upper }}",
    "{% set s = namespace(t='') %}{% for m in messages %}{% set s.t = s.t + m.content %}{% endfor %}{{ s.t | length }}",
    "{% if messages[0].content > 'm' %}a{% else %}b{% endif %}",
    "{{ '\\U00100000' }}{{ c }}",
    "{{ strftime_now('%Y') }}{{ c }}",
]  # fmt: skip
PROBES = ["fox", "FOX", "  fox\n", "f", "zebra", "<|im_end|>", "fox</think>fox", "5", "_" * 40, "xfoxf", "\ufdd0"]


@pytest.mark.parametrize("body", [*(f"{{{{ {each} }}}}" for each in LOOKS), *BLOCKS])
@pytest.mark.filterwarnings("ignore")
def test_a_template_that_looks_at_a_text_is_never_filled_wrongly(tokenizer: Tokenizer, body: str) -> None:
    """The first conversation makes the skeleton, if any; the others would show its words in place of theirs."""
    source = (
        "{% set c = messages[0].content %}" + body + "{% for m in messages %}<|im_start|>{% generation %}"
        "{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}"
    )
    template = ChatTemplate(source, tokenizer)
    for probe in PROBES:
        for messages in ([Message("user", probe)], [Message("user", probe), Message("assistant", "fox")]):
            mine, theirs = together(template, messages), one_by_one(template, messages)
            if "random" in body or "lipsum" in body or "strftime_now" in body:  # not the same each time
                assert template.shapes.filled == 0
            else:
                assert mine == theirs


@pytest.mark.parametrize(
    "body",
    [
        "c", "c | trim", "c.strip()", "c.strip('\\n')", "c.lstrip('\\n ')", "c.rstrip()", "'a' + c + 'b'", "'a' ~ c ~ 1 ~ c",
        "c if c else 'none'", "c or 'x'", "c | default('x', true)", "c if c is string else c | tojson", "c if c != '' else 'e'",
        "c if c is not none and c is defined else ''", "messages[-1].get('content', '')", "c if c is not mapping else ''",
        "messages | map(attribute='content') | list | first", "c | string", "namespace(x=c).x", "c if not c == '  ' else 'b'",
    ],
)  # fmt: skip
def test_a_template_that_only_writes_a_text_is_filled(tokenizer: Tokenizer, body: str) -> None:
    source = (
        "{% for m in messages %}{% set c = m.content %}<|im_start|>{{ m.role }}\n{% generation %}{{ "
        + body
        + " }}<|im_end|>{% endgeneration %}\n{% endfor %}"
    )
    template = ChatTemplate(source, tokenizer)
    for text in ["fox", "  fox \n", "\n\n<|im_end|>\n", "\u3000x\u3000", "\x85y\x1c", ""]:
        messages = [Message("user", text), Message("assistant", text)]
        assert together(template, messages) == one_by_one(template, messages)
    assert (template.shapes.filled, template.shapes.rendered) == (6, 0)


def test_a_text_of_blanks_is_no_text_to_a_template_that_trims_and_asks(tokenizer: Tokenizer) -> None:
    source = "{% for m in messages %}{% generation %}{{ (m.content | trim) or 'none' }}<|im_end|>{% endgeneration %}{% endfor %}"
    template = ChatTemplate(source, tokenizer)
    for text in ("fox", " \n", "\u3000", "", " dog "):
        assert together(template, [Message("assistant", text)]) == one_by_one(template, [Message("assistant", text)])


def test_a_template_without_generation_tags_is_rendered_by_prefixes(tokenizer: Tokenizer) -> None:
    """Pitfall 1: its spans come from comparing prompts, which a skeleton does not have."""
    untagged = CHATML.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    template = ChatTemplate(untagged, tokenizer)
    messages = [Message("user", "hi"), Message("assistant", "fox")]
    shown = together(template, messages)
    assert shown == one_by_one(template, messages)
    assert isinstance(shown, Rendered) and any(shown.trained)
    assert template.shapes.filled == 0


def test_a_control_token_with_outer_blanks_turns_the_speed_path_off(tokenizer: Tokenizer) -> None:
    """Pitfall 4: half of such a name could be the blanks of a content."""
    data = tokenizer.backend_json
    data["added_tokens"].append(
        {**data["added_tokens"][0], "id": tokenizer.vocab_size, "content": "<|end|> ", "special": True}
    )
    strange = Tokenizer(json.dumps(data), tokenizer.config)
    template = ChatTemplate(CHATML.replace("<|im_end|>", "<|end|>"), strange)
    for text in (" fox", "fox", " <|end|> "):
        messages = [Message("user", "x"), Message("assistant", text)]
        assert together(template, messages) == one_by_one(template, messages)
    assert template.shapes.filled == 0


def test_shapes_are_bounded_and_do_not_travel(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sproutlm.tokenizer.shapes._MOST_SHAPES", 4)
    template = ChatTemplate(CHATML, tokenizer)
    for count in range(1, 12):
        messages = [Message(("user", "assistant")[i % 2], f"text {i}") for i in range(count)]
        assert together(template, messages) == one_by_one(template, messages)
        assert len(template.shapes) <= 4
    again = pickle.loads(pickle.dumps(template))
    assert len(again.shapes) == 0
    assert together(again, messages) == one_by_one(template, messages)


# --- real data --------------------------------------------------------------------------------------------------------


def real_chats(name: str, every: int) -> Iterator[Chat]:
    file = REAL / name
    if not file.exists():
        pytest.skip(f"{file} is absent: real data is kept beside the repository")
    records = read_records([SourceConfig(path=str(file))], "skip", Counts())
    for record in islice(records, 0, 4000, every):
        heads, *tails = messages_of(record)
        for tail in tails or [()]:
            yield Chat((*heads, *tail), getattr(record, "tools", ()))


@pytest.mark.parametrize(
    ("name", "every"),
    [
        ("sft/alpaca_en.jsonl.gz", 39),
        ("sft/alpaca_zh.jsonl.gz", 39),
        ("sft/gsm8k_train.jsonl.gz", 99),
        ("sft/toolcall_zh_sharegpt.jsonl", 7),
        ("sft/identity.jsonl", 1),
        ("preference/dpo_zh.jsonl", 9),
        ("preference/dpo_en.jsonl", 9),
    ],
)
def test_real_conversations_are_the_same(tokenizer: Tokenizer, name: str, every: int) -> None:
    for template in (ChatTemplate(CHATML, tokenizer), ChatTemplate(load_template("qwen3"), tokenizer)):
        chats = [(chat.messages, chat.tools) for chat in real_chats(name, every)]
        assert template.render_batch(chats) == [template.render(*chat) for chat in chats]
        if "toolcall" not in name:
            assert template.shapes.filled >= 0.95 * len(chats) > 0
