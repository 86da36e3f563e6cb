"""pyemo: steer quantized small language models with emotion control vectors, on the device that
runs them.

Start with :class:`Engine`, :class:`ControlVector` and :class:`Steering`; README.md has the first
program.

A name is imported when it is first used (PEP 562), so that ``import pyemo`` and the commands' help
are instant; type checkers and editors read the imports below.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pyemo.chat import Chat
    from pyemo.engine.engine import Engine
    from pyemo.engine.gauges import Gauge, GaugeReading
    from pyemo.engine.grammar import Grammar
    from pyemo.engine.model import Model
    from pyemo.engine.replies import Reply
    from pyemo.engine.row import ReplyLimits
    from pyemo.engine.rules import Condition
    from pyemo.engine.sampling import SamplerParams
    from pyemo.engine.scheduler import Scheduler
    from pyemo.engine.schedules import HalfLife, Ramp
    from pyemo.engine.sequence import Sequence
    from pyemo.engine.steering import Steering
    from pyemo.engine.terms import SteeringTerm
    from pyemo.engine.tickets import Request, Ticket
    from pyemo.engine.tokens import Token
    from pyemo.errors import PyemoError
    from pyemo.measures.perplexity import Score
    from pyemo.vectors.cache_vector import CacheVector
    from pyemo.vectors.control_vector import ControlVector

    __version__: str

__all__ = [
    "CacheVector",
    "Chat",
    "Condition",
    "ControlVector",
    "Engine",
    "Gauge",
    "GaugeReading",
    "Grammar",
    "HalfLife",
    "Model",
    "PyemoError",
    "Ramp",
    "Reply",
    "ReplyLimits",
    "Request",
    "SamplerParams",
    "Scheduler",
    "Score",
    "Sequence",
    "Steering",
    "SteeringTerm",
    "Ticket",
    "Token",
]

# public name -> the module it comes from
_HOMES = {
    "CacheVector": "pyemo.vectors.cache_vector",
    "Chat": "pyemo.chat",
    "Condition": "pyemo.engine.rules",
    "ControlVector": "pyemo.vectors.control_vector",
    "Engine": "pyemo.engine.engine",
    "Gauge": "pyemo.engine.gauges",
    "GaugeReading": "pyemo.engine.gauges",
    "Grammar": "pyemo.engine.grammar",
    "HalfLife": "pyemo.engine.schedules",
    "Model": "pyemo.engine.model",
    "PyemoError": "pyemo.errors",
    "Ramp": "pyemo.engine.schedules",
    "Reply": "pyemo.engine.replies",
    "ReplyLimits": "pyemo.engine.row",
    "Request": "pyemo.engine.tickets",
    "SamplerParams": "pyemo.engine.sampling",
    "Scheduler": "pyemo.engine.scheduler",
    "Score": "pyemo.measures.perplexity",
    "Sequence": "pyemo.engine.sequence",
    "Steering": "pyemo.engine.steering",
    "SteeringTerm": "pyemo.engine.terms",
    "Ticket": "pyemo.engine.tickets",
    "Token": "pyemo.engine.tokens",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("pyemo")
    elif name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    else:
        raise AttributeError(f"module 'pyemo' has no attribute {name!r}")
    globals()[name] = value  # found at once the next time
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})
