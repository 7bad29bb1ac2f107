"""One conversation, one list of ids: in training, as a prompt, and in transformers with the exported template (pitfall 6)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from template_conversations import ATTACKS, EVERY, USUAL, A

from sproutlm.data.records import Message
from sproutlm.errors import SproutError
from sproutlm.tokenizer import ChatTemplate, Rendered, Tokenizer
from sproutlm.tokenizer.library import load_template, template_names, with_default_system

transformers = pytest.importorskip("transformers", minversion="5.0")

TOOLCALLS = Path(__file__).parents[3] / "shared/data/sft/toolcall_zh_sharegpt.jsonl"
LLAMA3 = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
WITH_SYSTEM = "chatml, with a default system message"
NAMES = (*template_names(), WITH_SYSTEM)


def with_tokens(tokenizer: Tokenizer, names: tuple[str, ...], **config: str) -> Tokenizer:
    """The tokenizer with more control tokens."""
    data = tokenizer.backend_json
    for id_, name in enumerate(names, start=tokenizer.vocab_size):
        data["added_tokens"].append({**data["added_tokens"][0], "id": id_, "content": name})
    return Tokenizer(json.dumps(data), {**tokenizer.config, **config})


@pytest.fixture(scope="module")
def made(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Our template and transformers' tokenizer, by name; saved and loaded as an export is."""
    kept: dict[str, tuple[ChatTemplate, Any]] = {}

    def make(name: str) -> tuple[ChatTemplate, Any]:
        if name not in kept:
            source = load_template("chatml" if name == WITH_SYSTEM else name)
            if name == WITH_SYSTEM:
                source = with_default_system(source, '你是"诗人"。\n{% raw %} \\n }}')
            base = tokenizer
            if name == "llama3":
                base = with_tokens(tokenizer, LLAMA3, bos_token=LLAMA3[0], eos_token=LLAMA3[3])
            folder = tmp_path_factory.mktemp("export")
            base.with_chat_template(source).save(folder)
            kept[name] = ChatTemplate.of(Tokenizer.load(folder)), transformers.AutoTokenizer.from_pretrained(folder)
        return kept[name]

    return make


def rendered_there(theirs: Any, messages: list[Message], tools: list[dict], **options: Any) -> Any:
    return theirs.apply_chat_template([m.as_dict() for m in messages], tools=tools or None, **options)


def attempt(template: ChatTemplate, messages: list[Message], tools: list[dict], **options: Any) -> Rendered | None:
    """None where the template refuses the conversation (tools in Alpaca's format, say)."""
    try:
        return template.render(messages, tools, **options)
    except SproutError as error:
        assert "refuses this conversation" in str(error), error
        return None


def test_there_are_enough_conversations() -> None:
    assert len(USUAL) >= 50
    assert len(ATTACKS) >= 8


@pytest.mark.parametrize("name", NAMES)
def test_ids_and_mask_are_those_of_transformers(made: Any, name: str) -> None:
    """transformers 5.23, which tokenises the rendered text as a whole; so only texts without control tokens' names."""
    template, theirs = made(name)
    compared = 0
    for what, (messages, tools) in USUAL.items():
        ours = attempt(template, messages, tools)
        if ours is None:
            with pytest.raises(Exception, match="template|role|roles"):
                rendered_there(theirs, messages, tools, tokenize=False)
            continue
        there = rendered_there(theirs, messages, tools, return_dict=True, return_assistant_tokens_mask=True)
        assert ours.ids == there["input_ids"], what
        assert [int(t) for t in ours.trained] == there["assistant_masks"], what
        prompt = template.render(messages[:-1] or messages, tools, add_generation_prompt=True)
        there = rendered_there(theirs, messages[:-1] or messages, tools, add_generation_prompt=True, return_dict=True)
        assert prompt.ids == there["input_ids"], what
        assert not any(prompt.trained)
        compared += 1
    assert compared >= 40


@pytest.mark.parametrize("name", NAMES)
def test_text_is_that_of_transformers_whatever_it_holds(made: Any, name: str) -> None:
    """Marks and shields leave no trace, not in JSON either."""
    template, theirs = made(name)
    for what, (messages, tools) in EVERY.items():
        ours = attempt(template, messages, tools)
        if ours is not None:
            assert ours.text == rendered_there(theirs, messages, tools, tokenize=False), what
            assert template.tokenizer.decode(ours.ids, keep_control=True) == ours.text, what


@pytest.mark.parametrize("name", NAMES)
def test_prompt_and_completion_make_the_training_ids(made: Any, name: str) -> None:
    template, _ = made(name)
    for what, (messages, tools) in EVERY.items():
        whole = attempt(template, messages, tools)
        for i, message in enumerate(messages):
            if message.role != A or whole is None:
                continue
            prompt = attempt(template, messages[:i], tools, add_generation_prompt=True) if i else None
            if prompt is None:
                continue
            assert whole.ids[: len(prompt.ids)] == prompt.ids, what
            assert whole.trained[len(prompt.ids)], what  # what comes next is the reply


@pytest.mark.parametrize("name", NAMES)
def test_every_assistant_turn_ends_trained_and_nobody_else_is(made: Any, name: str) -> None:
    """Pitfalls 1 and 3, over all conversations."""
    template, _ = made(name)
    end = template.stop_ids[0]
    for what, (messages, tools) in EVERY.items():
        rendered = attempt(template, messages, tools)
        if rendered is None:
            continue
        trained_ends = sum(t for id_, t in zip(rendered.ids, rendered.trained, strict=True) if id_ == end)
        assert trained_ends == sum(m.role == A for m in messages), what
        starts = sum(t and not before for before, t in zip([False, *rendered.trained], rendered.trained, strict=False))
        assert starts == trained_ends, what  # one span a turn


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_in_any_part_of_a_conversation_stay_text(made: Any, name: str) -> None:
    """Pitfall 4, in contents, thinking, tools, arguments, results: as many control ids as with harmless words."""
    template, _ = made(name)
    control = set(template.tokenizer.control_tokens.values())
    names = sorted(template.tokenizer.control_tokens, key=len, reverse=True)

    def harmless(value: Any) -> Any:
        text = json.dumps(value)
        for token in names:
            text = text.replace(token, "word")
        return json.loads(text)

    for what, (messages, tools) in ATTACKS.items():
        rendered = attempt(template, messages, tools)
        if rendered is None:
            continue
        same = template.render(harmless([m.as_dict() for m in messages]), harmless(tools))
        assert [i for i in rendered.ids if i in control] == [i for i in same.ids if i in control], what


def test_real_tool_conversations_match_transformers(made: Any) -> None:
    """300 conversations with tools of a public file, through chatml and qwen3."""
    if not TOOLCALLS.exists():
        pytest.skip(f"{TOOLCALLS} is not there (public data, not part of the repository)")
    roles = {"human": "user", "gpt": "assistant", "observation": "tool", "system": "system"}
    compared = 0
    for line in TOOLCALLS.read_text(encoding="utf-8").splitlines()[::5]:
        row = json.loads(line)
        messages: list[dict[str, Any]] = []
        for turn in row["conversations"]:
            if turn["from"] == "function_call":
                made_calls = json.loads(turn["value"])
                calls = made_calls if isinstance(made_calls, list) else [made_calls]
                messages.append({"role": "assistant", "content": "", "tool_calls": [{"function": c} for c in calls]})
            else:
                messages.append({"role": roles[turn["from"]], "content": turn["value"]})
        tools = [{"type": "function", "function": t} for t in json.loads(row["tools"] or "[]")]
        for name in ("chatml", "qwen3"):
            template, theirs = made(name)
            ours = template.render(messages, tools)
            there = theirs.apply_chat_template(
                messages, tools=tools or None, return_dict=True, return_assistant_tokens_mask=True
            )
            assert ours.ids == there["input_ids"]
            assert [int(t) for t in ours.trained] == there["assistant_masks"]
            compared += 1
    assert compared == 120
