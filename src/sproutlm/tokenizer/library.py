"""The chat templates that come with the package, by name, and any Jinja file by path."""

from __future__ import annotations

import difflib
import os
import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SproutError

if TYPE_CHECKING:
    from ..config.data import TemplateConfig
    from .template import ChatTemplate
    from .tokenizer import Tokenizer

_FOLDER = Path(__file__).parent / "templates"
_LARGEST = 1_000_000  # bytes; real templates have a few thousand
_ADDED = re.compile(
    r"\{%- set default_system = .* %\}\n"
    r"\{%- if not messages or messages\[0\]\['role'\] != 'system' %\}\n.*\n\{%- endif %\}\n"
)


def template_names() -> tuple[str, ...]:
    """Names that ``load_template`` knows."""
    return tuple(sorted(file.stem for file in _FOLDER.glob("*.jinja")))


@lru_cache(maxsize=32)
def _shipped(name: str) -> str:
    return (_FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def load_template(name_or_path: str | os.PathLike[str]) -> str:
    """The source of a template: one of ours by name, else a Jinja file. SproutError names the nearest where neither is."""
    wanted = os.fspath(name_or_path)
    if wanted in template_names():
        return _shipped(wanted)
    file = Path(wanted)
    if not file.is_file():
        near = [] if file.suffix or "/" in wanted else difflib.get_close_matches(wanted.lower(), template_names(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise SproutError(
            f"{wanted}: no chat template of this name and no such file{hint}; give one of "
            f"{', '.join(template_names())}, or the path of a Jinja file"
        )
    try:
        if file.stat().st_size > _LARGEST:
            raise SproutError(f"{wanted}: {file.stat().st_size:,} bytes are no chat template; give a Jinja file")
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SproutError(f"{wanted}: not UTF-8 text (byte {error.start}); save the template as UTF-8") from None
    except OSError as error:
        raise SproutError(f"{wanted}: cannot be read ({error.strerror})") from None


def with_default_system(source: str, system: str | None) -> str:
    """The template with a system message for conversations that begin without one; None takes an earlier one away.

    It becomes part of the source, so that chat, server, export and ``transformers`` write the same ids. The lines work
    in front of any template that knows system messages, because they change what it reads, not what it writes.
    """
    source = _ADDED.sub("", source, count=1)
    if system is None:
        return source
    return (
        f"{{%- set default_system = {_literal(system)} %}}\n"
        "{%- if not messages or messages[0]['role'] != 'system' %}\n"
        "    {%- set messages = [{'role': 'system', 'content': default_system}] + (messages | list) %}\n"
        "{%- endif %}\n"
        f"{source}"
    )


def default_system(source: str) -> str | None:
    """The system message that ``with_default_system`` put into a template."""
    import jinja2

    if not _ADDED.match(source):
        return None
    tree = jinja2.Environment().parse(source.partition("\n")[0])
    value = tree.body[0].node.value  # type: ignore[attr-defined]  # the parsed {% set %}
    return str(value)


def _literal(text: str) -> str:
    """A Jinja string. Jinja reads Python's escapes, and line breaks must not stand in the one line that this is."""
    escapes = {
        "\\": "\\\\",
        '"': '\\"',
        "\n": "\\n",
        "\r": "\\r",
        "\x85": "\\x85",
        "\u2028": "\\u2028",
        "\u2029": "\\u2029",
    }
    return '"' + "".join(escapes.get(character, character) for character in text) + '"'


def template_of(config: TemplateConfig, tokenizer: Tokenizer, *, check: bool = True) -> ChatTemplate:
    """The template that a recipe asks for; its ``.tokenizer`` carries it, so that a run stores what it trained with.

    With ``check`` a template that ``lint`` refuses is a SproutError, and so is a default system message that it does
    not show. A tokenizer without a template, and a recipe that names none, can still train texts.
    """
    from .lint import require_sound
    from .template import ChatTemplate

    source = tokenizer.chat_template if config.use is None else load_template(config.use)
    if config.system is not None and source is not None:
        source = with_default_system(source, config.system)
    if source != tokenizer.chat_template and source is not None:
        tokenizer = tokenizer.with_chat_template(source)
    template = ChatTemplate(source, tokenizer, thinking=config.thinking)
    if config.system is not None:
        _require_shown(template, config.system)
    if check and source is not None:
        try:
            require_sound(template)
        except SproutError as error:
            which = "the tokenizer's own template" if config.use is None else f"template.use={config.use}"
            raise SproutError(f"{which}: {error}") from None
    return template


def _require_shown(template: ChatTemplate, system: str) -> None:
    held = next((name for name in template.tokenizer.control_tokens if name in system), None)
    if held is not None:
        raise SproutError(
            f"template.system holds the control token {held!r}; a system message is plain text, take it out"
        )
    shown = template.render([{"role": "user", "content": "?"}], add_generation_prompt=True).text
    if system.strip() not in shown:
        raise SproutError(
            "template.system: this template does not show system messages; use chatml, or leave system out"
        )
