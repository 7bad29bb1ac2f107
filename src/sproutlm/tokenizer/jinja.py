"""The sandbox that chat templates run in, with the filters and functions that Hugging Face templates expect."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from typing import Any, ClassVar

import jinja2
import jinja2.filters
import jinja2.visitor
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import SproutError

# What a template may use up on one conversation. Real ones take a few passes a message; a template of a stranger's
# folder may be built to never end.
MOST_PASSES = 300_000  # through the bodies of its loops, all together
MOST_CHARACTERS = 200_000_000
_LONGEST_REPEAT = 1_000_000  # of a text or list by ``*``
_LONGEST_LIST = 10_000_000
_WIDEST = 10_000  # columns that a text is filled up to
_WIDTH = re.compile(r"%[^a-zA-Z%]*(\d{5}|\*)")
_FILLING = ("center", "indent", "batch", "slice")


class Limits(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which also bounds loops, powers and repetition."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])
    passes = 0

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop, each counted. Every loop's items go through here (``_count_loops``)."""
        for item in items:
            self.passes += 1
            if self.passes > MOST_PASSES:
                raise _TooMuch(f"its loops run more than {MOST_PASSES:,} times")
            yield item

    def count(self) -> str:
        return "".join(self.counted([""]))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise _TooMuch("it raises to a power, which no chat template needs")
        for times, value in ((left, right), (right, left)):
            sized = isinstance(value, str | list | tuple)
            if sized and isinstance(times, int) and times * len(value) > _LONGEST_REPEAT:
                raise _TooMuch(f"it repeats a text more than {_LONGEST_REPEAT:,} characters long")
        if operator == "*" and isinstance(left, int) and isinstance(right, int):
            if left.bit_length() + right.bit_length() > 1024:
                raise _TooMuch("it makes numbers of hundreds of digits")
        if operator == "%" and isinstance(left, str):
            self.not_wide(left)
        return self.bounded(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - Jinja's own signature
        if isinstance(getattr(__obj, "__self__", None), str):  # "a".ljust(10 ** 9)
            __self.not_wide("", *args, *kwargs.values())
        return __self.bounded(super().call(__context, __obj, *args, **kwargs))

    def not_wide(self, pattern: Any, *widths: Any) -> None:
        """Refuse to fill a text up to a width that would take all memory in a single step."""
        if (
            isinstance(pattern, str)
            and _WIDTH.search(pattern)
            or any(isinstance(w, int) and w > _WIDEST for w in widths)
        ):
            raise _TooMuch(f"it fills a text up to more than {_WIDEST:,} columns")

    def bounded(self, value: Any) -> Any:
        """A value made by the template: a text that doubles in each pass of a loop would soon take all memory."""
        if isinstance(value, str) and len(value) > MOST_CHARACTERS:
            raise _TooMuch(f"it makes a text of more than {MOST_CHARACTERS:,} characters")
        if isinstance(value, list | tuple) and len(value) > _LONGEST_LIST:
            raise _TooMuch(f"it makes a list of more than {_LONGEST_LIST:,} entries")
        return value

    def bound_filter(self, name: str) -> None:
        plain = self.filters[name]

        def bounded(value: Any, *args: Any, **kwargs: Any) -> Any:
            self.not_wide(value if name == "format" else "", *args, *kwargs.values())
            return self.bounded(plain(value, *args, **kwargs))

        self.filters[name] = bounded


class _TooMuch(jinja2.TemplateError):
    pass


@jinja2.pass_eval_context
def _join(context: Any, value: Iterable[Any], d: str = "", attribute: Any = None) -> str:
    """Jinja's filter, which would first make the text and then look at it."""
    items = list(value)
    if sum(len(item) for item in items if isinstance(item, str)) + len(items) * len(d) > MOST_CHARACTERS:
        raise _TooMuch(f"it makes a text of more than {MOST_CHARACTERS:,} characters")
    return jinja2.filters.do_join(context, items, d, attribute)


class _BoundJoints(jinja2.visitor.NodeTransformer):
    """``a ~ b`` is no operator to the sandbox; its result is looked at by a filter."""

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802 - Jinja's own name
        self.generic_visit(node)
        return jinja2.nodes.Filter(node, "_bounded", [], [], None, None, lineno=node.lineno)


def _count_loops(tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
    """The template with its loops counted. A recursive loop gets its items from itself, so its body counts."""
    for loop in tree.find_all(jinja2.nodes.For):
        loop.iter = jinja2.nodes.Filter(loop.iter, "_counted", [], [], None, None, lineno=loop.lineno)
        if loop.recursive:
            call = jinja2.nodes.Call(jinja2.nodes.Name("_count", "load"), [], [], None, None, lineno=loop.lineno)
            loop.body.insert(0, jinja2.nodes.ExprStmt(call, lineno=loop.lineno))
    return tree


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}``: the part of a turn that the model writes.

    The block's text is put between two marks, which ``template.py`` takes out again and turns into spans.
    """

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration
    marks: tuple[str, str] = ("", "")
    private: str = ""

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Callable[[], str]) -> str:
        return f"{self.marks[0]}{caller()}{self.marks[1]}"


def _raise_exception(message: str) -> str:
    raise jinja2.TemplateError(message)


class CompiledTemplate:
    """A template ready to render. Threads may share one: it renders one conversation at a time."""

    options: ClassVar[dict[str, Any]] = {
        "trim_blocks": True,
        "lstrip_blocks": True,
        "extensions": [_Generation, loopcontrols],
    }

    def __init__(self, source: str) -> None:
        environment = self._make_environment()
        environment.filters["tojson"] = self._to_json
        environment.filters["_counted"] = environment.counted
        environment.filters["_bounded"] = environment.bounded
        environment.filters["join"] = _join
        for name in (*_FILLING, "format"):
            environment.bound_filter(name)
        del environment.globals["lipsum"]  # writes as much as it is told to
        environment.globals["_count"] = environment.count
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
        self._environment = environment
        self._generation = next(e for e in environment.extensions.values() if isinstance(e, _Generation))
        self._lock = threading.Lock()  # the extensions hold the marks and counts of the conversation being rendered
        try:
            tree = environment.parse(source)
            # The parsed tag, not its spelling, decides: {%generation%} and {%- generation -%} are the same.
            self.marks_generation = any(map(self._is_generation, tree.find_all(jinja2.nodes.CallBlock)))
            code = environment.compile(_BoundJoints().visit(self._rewritten(tree)), filename="<chat template>")
            self._template = jinja2.Template.from_code(environment, code, environment.make_globals(None))
        except jinja2.TemplateSyntaxError as error:
            raise SproutError(
                f"chat template, line {error.lineno}: {error.message}; it is not a valid Jinja template"
            ) from None
        except RecursionError:
            raise SproutError("the chat template nests too deeply to be read; it is not a usable template") from None

    def _make_environment(self) -> Limits:
        return Limits(**self.options)

    def _rewritten(self, tree: jinja2.nodes.Template) -> jinja2.nodes.Template:
        return _count_loops(tree)

    @staticmethod
    def _is_generation(node: jinja2.nodes.Node) -> bool:
        call = node.call if isinstance(node, jinja2.nodes.CallBlock) else None
        return isinstance(call, jinja2.nodes.Call) and isinstance(call.node, jinja2.nodes.ExtensionAttribute)

    def _to_json(
        self,
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        """JSON as chat templates want it: Jinja's own filter escapes <, > and & for HTML. Marks pass through unescaped."""
        self._environment.not_wide("", indent)
        text = json.dumps(value, ensure_ascii=False, indent=indent, separators=separators, sort_keys=sort_keys)
        if not ensure_ascii:
            return text
        # Outside ASCII are only characters of strings, so they can be escaped afterwards, and the marks left alone.
        return re.sub(
            r"[^\x00-\x7f]", lambda m: m[0] if m[0] in self._generation.private else json.dumps(m[0])[1:-1], text
        )

    @contextmanager
    def _with_marks(self, marks: tuple[str, str], private: str) -> Iterator[None]:
        with self._lock:
            self._generation.marks, self._generation.private, self._environment.passes = marks, private, 0
            try:
                yield
            finally:
                self._generation.marks, self._generation.private = ("", ""), ""

    def render(self, variables: dict[str, Any], marks: tuple[str, str], private: str = "") -> str:
        """The rendered text with ``marks`` around every generation block; the template's own refusals as SproutError.

        ``private`` are the characters that filters leave as they are.
        """
        with self._with_marks(marks, private):
            try:
                return "".join(self._bounded(variables))
            except _TooMuch as error:
                raise SproutError(f"the chat template was stopped: {error}; it is not a usable template") from None
            except jinja2.TemplateError as error:
                raise SproutError(f"the chat template refuses this conversation: {error}") from None
            except (RecursionError, MemoryError, OverflowError) as error:
                raise SproutError(
                    f"the chat template was stopped: it never ends or grows without bound ({type(error).__name__})"
                ) from None
            except (TypeError, ValueError, KeyError, AttributeError, IndexError, ArithmeticError) as error:
                raise SproutError(
                    f"the chat template fails on this conversation ({type(error).__name__}: {error}); "
                    "check that every message has the fields that the template reads"
                ) from None

    def _bounded(self, variables: dict[str, Any]) -> Iterator[str]:
        written = 0
        for piece in self._template.generate(variables):
            written += len(piece)
            if written > MOST_CHARACTERS:
                raise _TooMuch(f"it writes more than {MOST_CHARACTERS:,} characters")
            yield piece


@lru_cache(maxsize=32)
def compile_template(source: str) -> CompiledTemplate:
    return CompiledTemplate(source)
