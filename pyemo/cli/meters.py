"""Gauge readings as small bars. Owns their scale; knows nothing of engines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyemo.cli.output import signed_bar
from pyemo.engine.gauges import GaugeReading
from pyemo.engine.tokens import Token

_HALF_WIDTH = 12
_LEAST_SCALE = 0.05  # residual norms that fill half a bar, at least: noise stays small


def gauge_means(tokens: Sequence[Token]) -> dict[str, GaugeReading]:
    """Return each gauge's mean over the tokens."""
    return {name: _mean(tokens, name) for name in (tokens[0].gauges if tokens else ())}


def gauge_lines(tokens: Sequence[Token]) -> list[str]:
    """Return one line for each gauge: its mean over the tokens, without the dose."""
    return reading_lines(gauge_means(tokens))


def reading_lines(readings: Mapping[str, GaugeReading]) -> list[str]:
    """Return one line for each reading. All bars have one scale, so that they can be compared."""
    if not readings:
        return []
    scale = max(_LEAST_SCALE, *(abs(reading.value) for reading in readings.values()))
    width = max(map(len, readings))
    return [
        f"{name:<{width}} {signed_bar(reading.value / scale, _HALF_WIDTH)} "
        f"{reading.value:+.3f}{_dose(reading)}"
        for name, reading in readings.items()
    ]


def _mean(tokens: Sequence[Token], name: str) -> GaugeReading:
    readings = [token.gauges[name] for token in tokens if name in token.gauges]
    n = len(readings)
    return GaugeReading(sum(r.value for r in readings) / n, sum(r.dose for r in readings) / n)


def _dose(reading: GaugeReading) -> str:
    return f"  (and a dose of {reading.dose:+.3f})" if abs(reading.dose) >= 0.0005 else ""
