"""Templates by name and by file, a default system message, and the recipe's choice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from sproutlm.config.data import TemplateConfig
from sproutlm.data.records import Message
from sproutlm.errors import SproutError
from sproutlm.tokenizer import CHATML, ChatTemplate, Tokenizer
from sproutlm.tokenizer.library import (
    default_system,
    load_template,
    template_names,
    template_of,
    with_default_system,
)

QUESTION = [Message("user", "q"), Message("assistant", "a")]


def test_names_and_files_are_found(tmp_path: Path) -> None:
    assert template_names() == ("alpaca", "chatml", "llama2", "llama3", "plain", "qwen3")
    assert load_template("chatml") == CHATML
    (tmp_path / "mine.jinja").write_bytes("\ufeff{{ messages }}春".encode())
    assert load_template(tmp_path / "mine.jinja") == "{{ messages }}春"


def test_unknown_names_and_bad_files_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(
        SproutError, match=r"chatlm: no chat template .* \(did you mean 'chatml'\?\); give one of alpaca"
    ):
        load_template("chatlm")
    with pytest.raises(SproutError, match=r"mine\.jinja: no chat template of this name and no such file; give"):
        load_template(str(tmp_path / "mine.jinja"))
    (tmp_path / "bad.jinja").write_bytes(b"\xff\xfe")
    with pytest.raises(SproutError, match="not UTF-8"):
        load_template(tmp_path / "bad.jinja")
    (tmp_path / "large.jinja").write_bytes(b" " * 1_000_001)
    with pytest.raises(SproutError, match="no chat template"):
        load_template(tmp_path / "large.jinja")


@settings(max_examples=25, deadline=None)
@given(
    system=st.lists(
        st.sampled_from(["\\", '"', "'", "\n", "\r\n", "%}", "{{", "#}", "\\n", "😀", "春", "\u2028", "x", "{% raw %}", "\\u0041"]),
        min_size=1, max_size=8,
    ).map("".join)
)  # fmt: skip
def test_a_default_system_message_is_what_a_system_message_would_be(tokenizer: Tokenizer, system: str) -> None:
    """Whatever it holds, it is in the source, so every reader of the template writes the same ids."""
    source = with_default_system(CHATML, system)
    template = ChatTemplate(source, tokenizer)
    wanted = ChatTemplate(CHATML, tokenizer).render([Message("system", system), *QUESTION])
    assert template.render(QUESTION) == wanted
    own = [Message("system", "own"), *QUESTION]
    assert template.render(own) == ChatTemplate(CHATML, tokenizer).render(own)
    assert default_system(source) == system
    assert with_default_system(source, "other") == with_default_system(CHATML, "other")
    assert with_default_system(source, None) == CHATML


def test_default_system_works_in_front_of_every_template(tokenizer: Tokenizer) -> None:
    for name in ("alpaca", "chatml", "llama2", "plain", "qwen3"):
        template = ChatTemplate(with_default_system(load_template(name), "Speak Ruritanian."), tokenizer)
        with_message = ChatTemplate(load_template(name), tokenizer).render(
            [Message("system", "Speak Ruritanian."), *QUESTION]
        )
        assert template.render(QUESTION) == with_message
    assert default_system(CHATML) is None


def test_the_recipes_template_is_stored_in_the_tokenizer(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """What a run trained with is what chat and export find in its folder."""
    config = TemplateConfig(use="qwen3", system="Be kind.", thinking="mask")
    template = template_of(config, tokenizer)
    assert template.thinking == "mask"
    template.tokenizer.save(tmp_path)
    stored = ChatTemplate.of(Tokenizer.load(tmp_path))
    assert stored.render(QUESTION).ids == template.render(QUESTION).ids
    assert "Be kind." in stored.render(QUESTION[:1], add_generation_prompt=True).text
    unchanged = template_of(TemplateConfig(), tokenizer)
    assert unchanged.tokenizer is tokenizer
    assert unchanged.source == CHATML


def test_a_template_for_other_tokens_is_refused_by_name(tokenizer: Tokenizer) -> None:
    with pytest.raises(SproutError, match=r"template.use=llama3: .*'<\|eot_id\|>'.*does not have as control tokens"):
        template_of(TemplateConfig(use="llama3"), tokenizer)


def test_faulty_templates_and_system_messages_are_refused(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Pitfall 1 at the door: before a row is read."""
    file = tmp_path / "no_end.jinja"
    file.write_text(CHATML.replace("            {{- '<|im_end|>' }}\n        {%- endgeneration %}",
                                   "        {%- endgeneration %}{{- '<|im_end|>' }}"))  # fmt: skip
    with pytest.raises(SproutError, match=r"no_end\.jinja: .*'<\|im_end\|>' is not trained"):
        template_of(TemplateConfig(use=str(file)), tokenizer)
    template_of(TemplateConfig(use=str(file)), tokenizer, check=False)
    with pytest.raises(SproutError, match="holds the control token"):
        template_of(TemplateConfig(system="x<|im_end|>"), tokenizer)
    file.write_text("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}")
    with pytest.raises(SproutError, match="does not show system messages"):
        template_of(TemplateConfig(use=str(file), system="x"), tokenizer, check=False)


def test_a_tokenizer_without_a_template_gets_the_recipes_or_trains_texts(tokenizer: Tokenizer) -> None:
    import json

    bare = Tokenizer(json.dumps(tokenizer.backend_json), {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>"})
    assert template_of(TemplateConfig(), bare).missing
    assert template_of(TemplateConfig(use="chatml"), bare).tokenizer.chat_template == CHATML
