"""The sandbox that chat templates run in, with the filters and functions that Hugging Face templates expect."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import SproutError


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}``: the part of a turn that the model writes.

    The block's text is put between two marks, which ``template.py`` takes out again and turns into spans.
    """

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration
    marks: tuple[str, str] = ("", "")

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{self.marks[0]}{caller()}{self.marks[1]}"


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes <, > and & for HTML, which no chat template wants.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class CompiledTemplate:
    """A template ready to render. Threads may share one: it renders one conversation at a time."""

    def __init__(self, source: str) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise SproutError(
                f"chat template, line {error.lineno}: {error.message}; it is not a valid Jinja template"
            ) from None
        # The parsed tag, not its spelling, decides: {%generation%} and {%- generation -%} are the same.
        self.marks_generation = any(
            isinstance(call.call.node, jinja2.nodes.ExtensionAttribute) for call in tree.find_all(jinja2.nodes.CallBlock)
            if isinstance(call.call, jinja2.nodes.Call)
        )  # fmt: skip
        self._generation = next(e for e in environment.extensions.values() if isinstance(e, _Generation))
        self._lock = threading.Lock()  # the extension holds the marks of the conversation being rendered

    @contextmanager
    def _with_marks(self, marks: tuple[str, str]) -> Iterator[None]:
        with self._lock:
            self._generation.marks = marks
            try:
                yield
            finally:
                self._generation.marks = ("", "")

    def render(self, variables: dict[str, Any], marks: tuple[str, str]) -> str:
        """The rendered text with ``marks`` around every generation block; the template's own refusals as SproutError."""
        with self._with_marks(marks):
            try:
                return self._template.render(**variables)
            except jinja2.TemplateError as error:
                raise SproutError(f"the chat template refuses this conversation: {error}") from None
            except (TypeError, ValueError, KeyError, AttributeError, IndexError) as error:
                raise SproutError(
                    f"the chat template fails on this conversation ({type(error).__name__}: {error}); "
                    "check that every message has the fields that the template reads"
                ) from None


@lru_cache(maxsize=32)
def compile_template(source: str) -> CompiledTemplate:
    return CompiledTemplate(source)
