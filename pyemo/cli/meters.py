"""Gauge readings as small bars. Owns their scale; knows nothing of engines."""

from __future__ import annotations

from collections.abc import Sequence

from pyemo.cli.output import signed_bar
from pyemo.gauges import GaugeReading
from pyemo.tokens import Token

_HALF_WIDTH = 12
_LEAST_SCALE = 0.05  # residual norms that fill half a bar, at least: noise stays small


def gauge_lines(tokens: Sequence[Token]) -> list[str]:
    """Return one line for each gauge: its mean over the tokens, without the dose.

    All bars have one scale, so that they can be compared.
    """
    means = {name: _mean(tokens, name) for name in (tokens[0].gauges if tokens else ())}
    if not means:
        return []
    scale = max(_LEAST_SCALE, *(abs(mean.value) for mean in means.values()))
    width = max(map(len, means))
    return [
        f"{name:<{width}} {signed_bar(mean.value / scale, _HALF_WIDTH)} {mean.value:+.3f}{_dose(mean)}"
        for name, mean in means.items()
    ]


def _mean(tokens: Sequence[Token], name: str) -> GaugeReading:
    readings = [token.gauges[name] for token in tokens if name in token.gauges]
    n = len(readings)
    return GaugeReading(sum(r.value for r in readings) / n, sum(r.dose for r in readings) / n)


def _dose(mean: GaugeReading) -> str:
    return f"  (and a dose of {mean.dose:+.3f})" if abs(mean.dose) >= 0.0005 else ""
