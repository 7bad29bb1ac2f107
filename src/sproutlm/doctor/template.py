"""A chat template: a Jinja file, or what a recipe asks for. What ``sprout tokenizer lint`` finds, as findings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.data import TemplateConfig
from ..tokenizer.lint import Finding as Lint
from .finding import Examination

if TYPE_CHECKING:
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer


def examine_template(path: Path, tokenizer_dir: Path | None = None) -> Examination:
    """Examine a Jinja file with a tokenizer, else with a stand-in that has every control token the file writes."""
    from ..tokenizer.library import load_template
    from ..tokenizer.lint import stand_in_tokenizer
    from ..tokenizer.template import ChatTemplate
    from ..tokenizer.tokenizer import Tokenizer

    found = Examination(str(path), "chat template")
    read, source = found.attempt("template", "give a Jinja file in UTF-8", None, lambda: load_template(path))
    if not read:
        return found
    if tokenizer_dir is None:
        found.notes.append(
            "tried with a stand-in tokenizer that has every control token it writes (to name the real one: sprout doctor FILE TOKENIZER)"
        )
        tokenizer = stand_in_tokenizer(source)
    else:
        loaded, tokenizer = found.attempt(
            "tokenizer", "give another tokenizer", None, lambda: Tokenizer.load(tokenizer_dir)
        )
        if not loaded:
            return found
    lint_findings(found, ChatTemplate(source, tokenizer))
    return found


def lint_findings(found: Examination, template: ChatTemplate, label: str = "") -> None:
    """The linter's findings; a limit that only some rows meet (tools, thinking, a system message) is a note."""
    from ..tokenizer.lint import lint_template

    findings: list[Lint] = lint_template(template)
    for each in findings:
        if each.level == "fail":
            found.fail(f"template: {each.rule}", f"{label}{each.sentence}", each.cure, each.pitfall)
        else:
            found.notes.append(f"{label}template: {each.sentence}")
    if all(each.level != "fail" for each in findings):
        end = template.tokenizer.token_text(template.stop_ids[0])
        found.ok(
            "end of turn is trained", f"{label}the template ends an assistant's turn with {end!r} and trains it", 1
        )


def recipe_template(
    found: Examination, config: TemplateConfig, tokenizer: Tokenizer | None, new_tokens: Sequence[str], label: str
) -> None:
    """The template of a recipe, with the tokenizer that it names or will train."""
    from ..tokenizer.extend import extend
    from ..tokenizer.library import template_of
    from ..tokenizer.lint import stand_in_tokenizer

    if tokenizer is None:  # the recipe trains one: it will have our control tokens, and the new ones
        tokenizer = stand_in_tokenizer("", list(new_tokens)).with_chat_template(shipped())
    elif new_tokens:
        tokenizer = extend(tokenizer, list(new_tokens))
    cure = "name another template: chatml works with every tokenizer that is trained here"
    made, template = found.attempt("template", cure, None, lambda: template_of(config, tokenizer, check=False))
    if not made:
        return
    if tokenizer.chat_template is None and config.use is None:
        what = f"{label}neither the recipe nor its tokenizer has a chat template, so no conversation can be written"
        found.fail("chat template", what, "set template: {use: chatml}", 14)
        return
    lint_findings(found, template, label)


def shipped() -> str:
    """The template of tokenizers that are trained here."""
    from ..tokenizer.library import load_template

    return load_template("chatml")
