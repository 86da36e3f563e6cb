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
    from pyemo.control_vector import ControlVector
    from pyemo.engine import Engine
    from pyemo.errors import PyemoError
    from pyemo.gauges import Gauge, GaugeReading
    from pyemo.model import Model
    from pyemo.perplexity import Score
    from pyemo.replies import Reply
    from pyemo.sampling import SamplerParams
    from pyemo.sequence import Sequence
    from pyemo.steering import HalfLife, Ramp, Steering, SteeringTerm
    from pyemo.tokens import Token

    __version__: str

__all__ = [
    "Chat",
    "ControlVector",
    "Engine",
    "Gauge",
    "GaugeReading",
    "HalfLife",
    "Model",
    "PyemoError",
    "Ramp",
    "Reply",
    "SamplerParams",
    "Score",
    "Sequence",
    "Steering",
    "SteeringTerm",
    "Token",
]

# public name -> the module it comes from
_HOMES = {
    "Chat": "pyemo.chat",
    "ControlVector": "pyemo.control_vector",
    "Engine": "pyemo.engine",
    "Gauge": "pyemo.gauges",
    "GaugeReading": "pyemo.gauges",
    "HalfLife": "pyemo.steering",
    "Model": "pyemo.model",
    "PyemoError": "pyemo.errors",
    "Ramp": "pyemo.steering",
    "Reply": "pyemo.replies",
    "SamplerParams": "pyemo.sampling",
    "Score": "pyemo.perplexity",
    "Sequence": "pyemo.sequence",
    "Steering": "pyemo.steering",
    "SteeringTerm": "pyemo.steering",
    "Token": "pyemo.tokens",
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
