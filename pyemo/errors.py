"""Every error pyemo raises on purpose, and what bad calls become. Knows nothing of what raises it.

PyemoError
├─ ModelError                    get another model file, or repair this one
│  ├─ ModelNotFoundError         no such name or path, or its package is not installed
│  ├─ ModelChecksumError         the file is not the one the catalog names
│  ├─ ModelLoadError             not a GGUF, cut off, damaged, or not supported
│  └─ SteeringUnsupportedError   the model runs, but its blocks cannot be steered
├─ VectorError(ValueError)       get another vector
│  ├─ VectorNotFoundError        no such file and no bundled vector of that name
│  ├─ VectorFileError            not a readable control-vector file
│  ├─ VectorShapeError           wrong width, dtype, layer or non-finite numbers
│  └─ VectorModelMismatchError   made for other weights
├─ InputError(ValueError)        fix the call: tokens, strengths, layers, sampler values
│  ├─ ClosedError                the engine, model or sequence was closed
│  ├─ NotBuiltError              what is asked for is not built in pyemo
│  └─ ForkedError                the process was forked after a model was loaded
├─ DecodeError                   shrink or reset the context
│  ├─ ContextFullError           no room left for these tokens
│  ├─ SequenceLimitError         no room left for another sequence
│  └─ DecodeAbortedError         interrupted, or the engine could not compute
├─ QueueFullError                send the request again later
├─ SchedulerError                start the scheduler, then the same study again
├─ ServerError                   start the server, or ask it for what it has
└─ MissingExtraError(ImportError)  an optional dependency is not installed

One branch per decision of the caller. Every message says what was wrong, the value, the allowed
range and the next step.
"""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar


class PyemoError(Exception):
    """Base of every error pyemo raises on purpose."""


class ModelError(PyemoError):
    """Something is wrong with a model file."""


class ModelNotFoundError(ModelError):
    """No model of that name or path, or the package that carries it is not installed."""


class ModelChecksumError(ModelError):
    """The file's SHA-256 is not the one the catalog names."""


class ModelLoadError(ModelError):
    """The file is not a GGUF, is cut off or damaged, or llama.cpp does not support it."""


class SteeringUnsupportedError(ModelError):
    """The model generates text, but its block outputs cannot be steered or read."""


class VectorError(PyemoError, ValueError):
    """Something is wrong with a control vector."""


class VectorNotFoundError(VectorError):
    """No file at that path and no bundled vector of that name for the model."""


class VectorFileError(VectorError):
    """The file is not a readable control vector."""


class VectorShapeError(VectorError):
    """A direction has the wrong width, dtype or layer, or holds NaN or infinity."""


class VectorModelMismatchError(VectorError):
    """The vector was made for other weights than those loaded."""


class InputError(PyemoError, ValueError):
    """An argument is outside its range."""


class ClosedError(InputError):
    """The engine, model or sequence was closed before this call."""


class NotBuiltError(InputError):
    """An argument asks for what pyemo does not have; a reply without it would be another one."""


class ForkedError(InputError):
    """The process was forked from one that had loaded a model; nothing native works in it."""


class DecodeError(PyemoError):
    """A decode could not be carried out."""


class ContextFullError(DecodeError):
    """The context has no room for these tokens."""


class SequenceLimitError(DecodeError):
    """The engine has no room for another sequence."""


class DecodeAbortedError(DecodeError):
    """The decode was interrupted, or the engine could not compute it."""


class QueueFullError(PyemoError):
    """As many requests wait as may wait."""


class SchedulerError(PyemoError):
    """The scheduler of a study is not there, or was lost; what was computed is kept."""


class ServerError(PyemoError):
    """A server that was asked does not answer, or refuses; the message has its words."""


class MissingExtraError(PyemoError, ImportError):
    """An optional dependency is not installed; the message names the command that installs it."""


# --- bad calls ---

# What Python raises where an argument is not what it should be.
_UNNAMED = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RecursionError)
_OPERATORS = ("__init__", "__add__", "__sub__", "__mul__", "__rmul__", "__truediv__", "__neg__")
_OURS = os.path.dirname(os.path.abspath(__file__)) + os.sep
_STANDARD = os.path.dirname(os.__file__) + os.sep

_C = TypeVar("_C", bound=type)
_F = TypeVar("_F", bound=Callable[..., Any])


_HOLDERS: dict[str, type] = {}
"""Classes whose values are given together, by the name of the parameter that takes one."""


def held_by(parameter: str) -> Callable[[_C], _C]:
    """Return a decorator of a dataclass that callers pass as ``parameter``.

    A call that gives one of its fields beside ``parameter`` is told how to pass it.
    """

    def kept(cls: _C) -> _C:
        _HOLDERS[parameter] = cls
        return cls

    return kept


def names_bad_calls(function: _F) -> _F:
    """Return ``function``, whose bad calls are an :class:`InputError`.

    What a caller's own code raises, such as a schedule or a callback, comes through as it is.
    """

    @functools.wraps(function)
    def named(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except PyemoError:
            raise
        except _UNNAMED as error:
            if _is_callers(error.__traceback__):
                raise
            name = function.__qualname__.removesuffix(".__init__")
            if remedy := _held_elsewhere(function, kwargs):
                raise InputError(f"{name} {remedy}") from error
            text = str(error).partition("\n")[0] or type(error).__name__
            raise InputError(
                f"{name} cannot use what it was given: {text}; its help() says what it takes"
            ) from error

    return named  # type: ignore[return-value]


def _held_elsewhere(function: Callable[..., Any], given: dict[str, Any]) -> str:
    """Return how to pass what was given by a name that another parameter's class has, or ""."""
    taken = inspect.signature(function).parameters
    for parameter in taken:
        fields = getattr(_HOLDERS.get(parameter), "__dataclass_fields__", ())
        held = {key: value for key, value in given.items() if key in fields and key not in taken}
        if held:
            words = ", ".join(f"{key}={_literal(value)}" for key, value in held.items())
            call = f"{parameter}={_HOLDERS[parameter].__name__}({words})"
            return f"has no parameter {next(iter(held))!r}; pass {call}"
    return ""


def _literal(value: object) -> str:
    """Return a short value as it is written, and three dots for any other."""
    is_short = isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 64)
    return repr(value) if is_short else "..."


def all_calls_named(cls: _C) -> _C:
    """Apply :func:`names_bad_calls` to the public methods, setters and arithmetic of a class."""
    for name, value in list(vars(cls).items()):
        if name.startswith("_") and name not in _OPERATORS:
            continue
        if isinstance(value, classmethod | staticmethod):
            setattr(cls, name, type(value)(names_bad_calls(value.__func__)))
        elif isinstance(value, property) and value.fset is not None:
            setattr(cls, name, value.setter(names_bad_calls(value.fset)))
        elif callable(value) and not isinstance(value, type):
            setattr(cls, name, names_bad_calls(value))
    return cls


def _is_callers(trace: TracebackType | None) -> bool:
    """Whether an error comes from code that is not pyemo's, and was called by it."""
    is_callers = False
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if path.startswith(_OURS):
            is_callers = False
        elif not _is_library(path):
            is_callers = True
        trace = trace.tb_next
    return is_callers


def _is_library(path: str) -> bool:
    """Whether it is Python's own code, or NumPy's, which raise on behalf of who calls them."""
    is_numpy = f"{os.sep}numpy{os.sep}" in path
    is_standard = path.startswith(_STANDARD) and "site-packages" not in path
    return path.startswith("<") or is_numpy or is_standard
