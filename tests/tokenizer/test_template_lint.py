"""The linter: each fault of a template is found and named, and sound ones pass."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from sproutlm.data.records import Message
from sproutlm.errors import SproutError
from sproutlm.tokenizer import CHATML, ChatTemplate, Tokenizer, check_template
from sproutlm.tokenizer.library import load_template, template_names
from sproutlm.tokenizer.lint import lint, lint_template, print_lint, stand_in_tokenizer
from sproutlm.tokenizer.parity import pair_parity

END_INSIDE = "            {{- '<|im_end|>' }}\n        {%- endgeneration %}"


def edited(old: str, new: str, source: str = CHATML) -> str:
    assert old in source
    return source.replace(old, new)


@pytest.mark.parametrize("name", template_names())
def test_shipped_templates_are_sound(name: str) -> None:
    report = lint(name)
    assert report["ok"], report
    assert {f["rule"] for f in report["findings"]} <= {"takes tools", "thinking of earlier turns is shown"}
    said: list[str] = []
    assert print_lint(report, said.append)
    assert f"{name}: sound" in said[-1]
    template = ChatTemplate(load_template(name), stand_in_tokenizer(load_template(name)))
    assert check_template(template) == template.stop_ids[0]


FAULTS = {
    "end outside": (
        edited(END_INSIDE, "        {%- endgeneration %}{{- '<|im_end|>' }}"),
        "the end token of a reply is trained", r"'<\|im_end\|>' is not trained",
    ),
    "end of calls outside": (
        edited(END_INSIDE, "{%- if not message['tool_calls'] %}{{- '<|im_end|>' }}{%- endif %}{%- endgeneration %}"
                           "{%- if message['tool_calls'] %}{{- '<|im_end|>' }}{%- endif %}"),
        "the end token of a tool call is trained", r"message 3 \(a tool call\).*'<\|im_end\|>' is not trained",
    ),
    "end after thinking outside": (
        edited(END_INSIDE, "{%- if not message['reasoning_content'] %}{{- '<|im_end|>' }}{%- endif %}{%- endgeneration %}"
                           "{%- if message['reasoning_content'] %}{{- '<|im_end|>' }}{%- endif %}"),
        "the end token of a reply after thinking is trained", r"'<\|im_end\|>' is not trained",
    ),
    "calls outside": (
        "{% for m in messages %}{% if m.tool_calls %}<|im_start|>assistant\n{{ m.tool_calls | tojson }}<|im_end|>\n"
        "{% else %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>"
        "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endif %}{% endfor %}{{ tools }}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "a tool call is trained", "trains nothing of an assistant's turn",
    ),
    "user trained": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "only the assistant is trained", "trains the text of a user message",
    ),
    "other prompt": (
        edited("assistant\\n' }}\n    {%- if enable", "assistant: ' }}\n    {%- if enable"),
        "prompts begin their conversation", "a prompt that it never saw",
    ),
    "first turns only": (
        edited("{%- for message in messages %}", "{%- for message in messages[:2] %}"),
        "every message is shown", "drops the user message",
    ),
    "system dropped": (
        edited("{%- elif role == 'user' or role == 'system' %}", "{%- elif role == 'system' %}{%- elif role == 'user' %}"),
        "every message is shown", "drops the system message",
    ),
    "first token twice": ("{{ '<|endoftext|><|endoftext|>' }}" + CHATML, "one first token", "twice at the start"),
    "tokens it lacks": (
        "{{ '<|begin_of_text|>' }}" + CHATML, "the tokenizer has its control tokens", r"'<\|begin_of_text\|>'",
    ),
    "raises": ("{{ raise_exception('never') }}", "renders", "never"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_and_refused(tokenizer: Tokenizer, fault: str) -> None:
    source, rule, sentence = FAULTS[fault]
    template = ChatTemplate(source, tokenizer)
    found = {f.rule: f for f in lint_template(template) if f.level == "fail"}
    assert rule in found, found
    with pytest.raises(SproutError):
        check_template(template)
    assert re.search(sentence, found[rule].sentence, re.DOTALL), found[rule].sentence


def test_end_token_with_a_line_break_behind_it_is_an_end(tokenizer: Tokenizer) -> None:
    """Some templates have the line break inside the block, too; the model stops all the same."""
    inside = edited("{%- endgeneration %}\n        {{- '\\n' }}", "{{- '\\n' }}{%- endgeneration %}")
    assert not [f for f in lint_template(ChatTemplate(inside, tokenizer)) if f.level == "fail"]


def test_templates_without_tags_pass_with_notes(tokenizer: Tokenizer) -> None:
    untagged = CHATML.replace("{%- generation %}", "").replace("{%- endgeneration %}", "")
    assert lint_template(ChatTemplate(untagged, tokenizer)) == []
    changing = untagged.replace(
        "{{- message['content'] }}", "{{- message['content'] + '!' * (messages | length - loop.index) }}"
    )
    assert changing != untagged
    findings = lint_template(ChatTemplate(changing, tokenizer))
    assert {f.level for f in findings} == {"warn"}
    assert any("no {% generation %} tags" in f.sentence for f in findings)


def test_a_folder_is_linted_with_its_own_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.with_chat_template(FAULTS["end outside"][0]).save(tmp_path)
    report = lint(tmp_path)
    assert not report["ok"]
    said: list[str] = []
    assert not print_lint(report, said.append)
    assert any("FAIL" in line and "is not trained" in line for line in said)
    assert not lint("llama3", tokenizer)["ok"]


# --- the two sides of a pair ------------------------------------------------------------------------------------------

PROMPT = (Message("user", "q"),)


def reply(content: str, thought: str | None = None) -> tuple[Message, ...]:
    return (Message("assistant", content, reasoning_content=thought),)


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (reply("good"), reply("bad")),
        (reply("good", "hm"), reply("bad", "what")),
        (reply("good", "hm"), reply("bad")),
        (reply(" good\n"), reply("")),
        (reply("<think></think>"), reply("bad")),
        (reply("good", ""), reply("bad")),
        ((*reply("a"), Message("user", "r"), *reply("b")), (*reply("c"), Message("user", "s"), *reply("d"))),
    ],
)
@pytest.mark.parametrize("name", ["chatml", "qwen3", "llama2", "alpaca", "plain"])
def test_sides_of_a_pair_are_wrapped_alike(tokenizer: Tokenizer, name: str, chosen: tuple, rejected: tuple) -> None:
    """Pitfall 6: what differs is what was said."""
    template = ChatTemplate(load_template(name), tokenizer)
    assert pair_parity(template, PROMPT, chosen, rejected) is None


def test_spurious_differences_between_the_sides_are_named(tokenizer: Tokenizer) -> None:
    """Pitfall 6: an empty think block, or another wrapper, on one side only."""
    block = edited("{%- if thought %}", "{%- if message['reasoning_content'] is defined %}")
    template = ChatTemplate(block, tokenizer)
    sentence = pair_parity(template, PROMPT, reply("good", ""), reply("bad"))
    assert sentence == "an empty think block stands on the chosen side only"
    assert pair_parity(template, PROMPT, reply("good", ""), reply("bad", "")) is None
    longer = edited(
        "{{- message['content'] }}", "{{- message['content'] + ('!' if 'long' in message['content'] else '') }}"
    )
    sentence = pair_parity(ChatTemplate(longer, tokenizer), PROMPT, reply("bad"), reply("a long reply"))
    assert sentence is not None
    assert "wrapped differently" in sentence
    prompting = edited("assistant\\n' }}\n    {%- if enable", "assistant: ' }}\n    {%- if enable")
    sentence = pair_parity(ChatTemplate(prompting, tokenizer), PROMPT, reply("good"), reply("bad"))
    assert sentence == "the chosen side does not begin with the ids of the prompt"
