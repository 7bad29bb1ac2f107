"""A template run on texts that it cannot look at, to learn where it writes them out as they are.

``Hole`` stands for a text of which only this is known: it is not blank. A template may put it beside other texts, trim
blanks from it, hand it on and write it; it may ask what has one answer for every such text (is it empty? is it a
string?). Whatever else it does raises ``Looked``. So where a template gets through, its run is the same for all texts,
and its output with holes is its output with any texts put in.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import nodes
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from .jinja import CompiledTemplate, Limits

# A hole in the written text: the first one is this character, the second the next. A private plane, so that the check
# in ``written_once`` is all it takes to know that the template wrote none itself.
FIRST_HOLE = 0x100000
MOST_HOLES = 4096


class Looked(Exception):
    """The template looks at a text, so what it writes depends on it. No kind of error that Jinja catches."""


Slot = tuple[int, str]  # which message, which field
Strips = tuple[tuple[str, str | None], ...]  # calls of str.strip and its kin, with their argument


class Hole:
    """Texts and unknown ones in a row: ``made`` holds str for what is known, (slot, strips) for what is not."""

    __slots__ = ("_made",)
    _made: tuple[str | tuple[Slot, Strips], ...]

    def __init__(self, made: tuple[str | tuple[Slot, Strips], ...]) -> None:
        self._made = made

    @classmethod
    def of(cls, slot: Slot) -> Hole:
        return cls(((slot, ()),))

    def beside(self, other: Any, *, before: bool) -> Hole:
        """This and another text; ``before``: the other one comes first."""
        if isinstance(other, Hole):
            more = other._made
        elif type(other) is str:
            more = (other,)
        else:
            raise Looked
        return Hole(more + self._made if before else self._made + more)

    def stripped(self, method: str, chars: Any = None) -> Hole:
        """A text that is not blank stays so when blanks are taken off."""
        blanks = chars is None or (type(chars) is str and (chars == "" or chars.isspace()))
        if not blanks or len(self._made) != 1:
            raise Looked
        (only,) = self._made
        assert not isinstance(only, str)
        return Hole(((only[0], (*only[1], (method, chars))),))

    def strip(self, chars: Any = None) -> Hole:
        return self.stripped("strip", chars)

    def lstrip(self, chars: Any = None) -> Hole:
        return self.stripped("lstrip", chars)

    def rstrip(self, chars: Any = None) -> Hole:
        return self.stripped("rstrip", chars)

    def __bool__(self) -> bool:
        return True

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Hole) or (isinstance(other, str) and other.strip()):
            raise Looked
        return False  # it is a text, and not blank

    def __ne__(self, other: object) -> bool:
        return not self == other

    def _looked(self, *_: Any, **__: Any) -> NoReturn:
        raise Looked

    __hash__ = __str__ = __repr__ = __format__ = __iter__ = __len__ = __contains__ = __getitem__ = _looked  # type: ignore[assignment]
    __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __index__ = __call__ = __reversed__ = _looked
    __add__ = __radd__ = __mul__ = __rmul__ = __mod__ = __rmod__ = __html__ = __bytes__ = _looked  # type: ignore[assignment]


def _answering(answer: bool) -> Callable[..., bool]:
    return lambda _: answer


_METHODS = ("strip", "lstrip", "rstrip")
_ANSWERS: dict[str, bool] = {  # tests with one answer for every text that is not blank
    "string": True, "defined": True, "iterable": True, "sequence": True, "undefined": False, "none": False,
    "mapping": False, "number": False, "boolean": False, "integer": False, "float": False,
}  # fmt: skip
_FILTERS: dict[str, Callable[..., Any]] = {  # the few that may be given a hole
    "trim": lambda hole, chars=None: hole.stripped("strip", chars),
    "default": lambda hole, *_, **__: hole,
    "string": lambda hole: hole,
    "_text": lambda hole: hole,
}
_FILTERS["d"] = _FILTERS["default"]
_TESTS = {name: _answering(answer) for name, answer in _ANSWERS.items()}
# Statements whose text goes to the output and nowhere else. Macros, set blocks and the like hand it back as a string.
_STATEMENTS = (nodes.Output, nodes.For, nodes.If, nodes.Assign, nodes.ExprStmt, nodes.With, nodes.Break, nodes.Continue)


def _has_hole(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(type(value) is Hole for value in (*args, *kwargs.values()))


class _HoleEnvironment(Limits):
    """Jinja's sandbox in which every way to a hole is watched; the holes themselves refuse what Python could ask."""

    intercepted_binops = frozenset(["*", "**", "+", "-", "/", "//", "%"])
    holes: list[tuple[Slot, Strips]]

    def guard(self) -> None:
        """Watch filters and tests, and refuse what is not the same each time."""
        for table in (self.filters, self.tests):
            allowed = _FILTERS if table is self.filters else _TESTS
            for name in list(table):
                table[name] = _guarded(table[name], allowed.get(name))  # type: ignore[arg-type,assignment]
        self.filters["random"] = self.globals["lipsum"] = self.globals["strftime_now"] = _refuse

    def written(self, value: Any) -> Any:
        """What a ``{{ }}`` writes: for a hole a character of its own."""
        if type(value) is not Hole:
            return value
        pieces = []
        for each in value._made:
            if isinstance(each, str):
                pieces.append(each)
            elif len(self.holes) == MOST_HOLES:
                raise Looked
            else:
                pieces.append(chr(FIRST_HOLE + len(self.holes)))
                self.holes.append(each)
        return "".join(pieces)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if type(left) is not Hole and type(right) is not Hole:
            if operator in super().intercepted_binops:
                return super().call_binop(context, operator, left, right)
            return self.binop_table[operator](left, right)
        if operator != "+":
            raise Looked
        return left.beside(right, before=False) if type(left) is Hole else right.beside(left, before=True)

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is Hole and attribute not in _METHODS:
            raise Looked
        return super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        if type(obj) is Hole or type(argument) is Hole:
            raise Looked
        return super().getitem(obj, argument)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - Jinja's own signature
        if _has_hole(args, kwargs) and __obj is not Namespace and __obj is not dict:
            raise Looked
        return super().call(__context, __obj, *args, **kwargs)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise Looked


def _guarded(function: Callable[..., Any], instead: Callable[..., Any] | None) -> Callable[..., Any]:
    """A filter or test that is given a hole: as its first argument where there is an answer to that, else not at all."""
    passed = int(hasattr(function, "jinja_pass_arg"))  # whether Jinja gives it the context or the environment first

    def guarded(*args: Any, **kwargs: Any) -> Any:
        given = args[passed:]
        if not _has_hole(given, kwargs):
            return function(*args, **kwargs)
        if instead is None or type(given[0]) is not Hole or _has_hole(given[1:], kwargs):
            raise Looked
        return instead(*given, **kwargs)

    if passed:
        guarded.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return guarded


class _PlainSums(NodeTransformer):
    """``a ~ b`` as ``a + b`` of texts: the sum of holes is a hole, where Jinja's own joining would ask for a string."""

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        texts = [nodes.Filter(each, "_text", [], [], None, None, lineno=node.lineno) for each in node.nodes]
        total: nodes.Expr = texts[0]
        for text in texts[1:]:
            total = nodes.Add(total, text, lineno=node.lineno)
        return total


class HoleTemplate(CompiledTemplate):
    """A template that is rendered with holes. ``usable`` says whether that can come to anything."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self._rendering = threading.Lock()
        assert isinstance(self._environment, _HoleEnvironment)
        self._environment.guard()

    def _make_environment(self) -> Limits:
        environment = _HoleEnvironment(**self.options)
        environment.finalize = environment.written
        environment.filters["_text"] = str
        return environment

    def _rewritten(self, tree: nodes.Template) -> nodes.Template:
        self.usable = all(
            isinstance(each, _STATEMENTS) and not getattr(each, "recursive", False)
            for each in tree.find_all(nodes.Stmt)
            if not self._is_generation(each)
        )
        return _PlainSums().visit(super()._rewritten(tree))

    def written(self, variables: dict[str, Any], marks: tuple[str, str]) -> tuple[str, list[tuple[Slot, Strips]]]:
        """The text with a private character for each hole, and the holes in their order; ``Looked``, or SproutError."""
        environment = self._environment
        assert isinstance(environment, _HoleEnvironment)
        with self._rendering:
            environment.holes = []
            raw = self.render(variables, marks)
            if [ord(character) - FIRST_HOLE for character in raw if ord(character) >= FIRST_HOLE] != list(
                range(len(environment.holes))
            ):
                raise Looked  # the template wrote such characters itself
            return raw, environment.holes


@lru_cache(maxsize=32)
def hole_template(source: str) -> HoleTemplate:
    return HoleTemplate(source)
