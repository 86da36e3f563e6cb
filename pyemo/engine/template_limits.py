"""A sandbox that ends: what a stranger's chat template may take of time and memory.

Loops, macros, calls, filters and arithmetic ask for the time; what makes a text or a number larger
is looked at before it is computed. Imports Jinja: import it where a template is compiled.
"""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_SECONDS = 2.0
"""Of this thread's computing, for one conversation."""
MAX_SIZE = 1 << 24
"""Characters of a text, items of a list."""
MAX_BITS = 1 << 16
"""Of a whole number."""
MAX_SOURCE = 1 << 20
"""Characters of a template."""

_WIDE = re.compile(r"\d{6}|%[-+ #0]*\*")  # a field of a million characters, or of any width
_WIDENS = {"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice"}
_WIDENS |= {"wordwrap", "tojson"}
_SLOW = ("urlize", "striptags")  # quadratic; no conversation needs them


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's immutable sandbox, with limits."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._ends_at = 0.0
        for name in _SLOW:
            del self.filters[name]
        del self.globals["lipsum"]
        self.filters = {name: self._limited(name, f) for name, f in self.filters.items()}

    def compiled(self, source: str) -> Template:
        """Return the template, not yet run.

        Raises:
            TemplateError: it is too long, or not valid.
        """
        if len(source) > MAX_SOURCE:
            raise TemplateError(f"it has {len(source)} characters, more than {MAX_SOURCE}")
        return self.from_string(source)

    def written(self, template: Template, values: dict[str, object]) -> str:
        """Return what the template writes.

        Raises:
            TemplateError: it takes too long, or makes too much.
            otherwise what a template raises.
        """
        self._ends_at = time.thread_time() + MAX_SECONDS
        parts: list[str] = []
        size = 0
        for part in template.generate(values):
            size += len(part)
            _require(size, MAX_SIZE)
            parts.append(part)
        return "".join(parts)

    def tick(self) -> None:
        """Raise if the time is over."""
        if time.thread_time() > self._ends_at:
            raise TemplateError(f"it takes longer than {MAX_SECONDS:g} s")

    def join_texts(self, *values: object) -> str:
        """Return the values as one text: Jinja's operator ~."""
        texts = [str(value) for value in values]
        _require(sum(map(len, texts)), MAX_SIZE)
        return "".join(texts)

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Call what a template calls."""
        self.tick()
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | list | dict):
            _look(getattr(obj, "__name__", ""), owner, args)
        return super().call(context, obj, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute what a template adds and multiplies."""
        self.tick()
        if operator == "+":
            _require(_size(left) + _size(right), MAX_SIZE)
        elif operator == "*":
            for one, other in (left, right), (right, left):
                if isinstance(other, int):
                    _require(_size(one) * abs(other), MAX_SIZE)
                    if isinstance(one, int):
                        _require(one.bit_length() + other.bit_length(), MAX_BITS)
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _require(left.bit_length() * abs(right), MAX_BITS)
        elif operator == "%" and isinstance(left, str) and _WIDE.search(left):
            raise TemplateError("it formats a field that is too wide")
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Limits().visit(super()._parse(source, name, filename))
        return tree.set_environment(self)  # type: ignore[return-value]

    def _limited(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        takes_more = hasattr(function, "jinja_pass_arg")  # the environment or context comes first

        @functools.wraps(function)
        def limited(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            value, *rest = args[1:] if takes_more else args
            if name == "join":
                _look(name, str(rest[0]) if rest else "", [list(value)])
            else:
                _look(name, value, [*rest, *kwargs.values()])
            return function(*args, **kwargs)

        return limited


class _Limits(NodeTransformer):
    """Lets every turn of a loop and every call of a macro ask for the time."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        return self._ticking(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        return self._ticking(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _call("join_texts", node.nodes, node.lineno)

    def _ticking(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_call("tick", [], node.lineno), lineno=node.lineno))
        return node  # type: ignore[no-any-return]


def _call(name: str, args: list[nodes.Expr], line: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=line)
    return nodes.Call(function, args, [], None, None, lineno=line)


def _look(name: str, owner: Any, args: Any) -> None:
    """Raise where the method or filter ``name`` would make too much of ``owner``."""
    if name in _WIDENS:
        for width in args:
            if isinstance(width, int):
                _require(max(1, _size(owner)) * abs(width), MAX_SIZE)
    elif name == "replace" and len(args) > 1:
        text, old, new = str(owner), str(args[0]), str(args[1])
        _require(len(text) + text.count(old) * len(new), MAX_SIZE)
    elif name == "join" and args and isinstance(args[0], list | tuple):
        items = args[0]
        _require(sum(map(_size, items)) + len(str(owner)) * len(items), MAX_SIZE)
    elif name in ("format", "format_map") and _WIDE.search(str(owner)):
        raise TemplateError("it formats a field that is too wide")


def _size(value: object) -> int:
    return len(value) if isinstance(value, str | bytes | list | tuple | dict) else 0


def _require(size: int, most: int) -> None:
    if size > most:
        raise TemplateError(f"it makes something of size {size}, more than {most}")
