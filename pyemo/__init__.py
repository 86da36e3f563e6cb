"""pyemo: steer quantized small language models with emotion control vectors, on the device that runs them.

Start with :class:`Engine`, :class:`ControlVector` and :class:`Steering`; README.md has the first program.
"""

from importlib.metadata import version as _version

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

__version__ = _version("pyemo")

__all__ = [
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
