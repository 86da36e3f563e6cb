"""What a vector does to facts on a model, at its recommended strength; also as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyemo.cli import output
from pyemo.cli.inspect_voice import signed
from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.strengths.facts import N_CTX, N_RANDOM, N_SEQUENCES, FactReading, FactYardstick
from pyemo.vectors.control_vector import ControlVector, Recommended


@dataclass(frozen=True)
class MeasuredFacts:
    """A reading, and the strength it was taken at."""

    model: str
    recommended: Recommended
    reading: FactReading

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values."""
        source = self.recommended.source
        return {"model": self.model, "strength_source": source, **self.reading.as_json()}

    def lines(self) -> list[str]:
        """Return it for people: a table, and what it says."""
        reading = self.reading
        rows = {
            "facts known": reading.facts,
            "false claims agreed with": reading.false_claims,
            "true claims agreed with": reading.true_claims,
        }
        lines = [f"{'facts':<12} {'':<25} {'unsteered':>9}  {'steered':>7}  change beyond random"]
        for name, answers in rows.items():
            lines.append(
                f"{'':<12} {name:<25} {answers.unsteered:>5}/{answers.n:<3}  "
                f"{answers.steered:>4}/{answers.n:<2}  {signed(answers.beyond_random)}"
            )
        return [
            *lines,
            f"{'':<12} at strength {reading.strength:.4g} ({self.recommended.source}) the vector "
            + "; ".join(reading.sentences),
            f"{'':<12} change: nats of log-odds, less that of {N_RANDOM} random directions; 95% "
            "interval over questions",
        ]


def measure(vector: ControlVector, model: Model) -> MeasuredFacts:
    """Return what a vector does to facts at its recommended strength.

    Raises:
        InputError: a raw vector without a calibration: it has no strength to take.
        SteeringUnsupportedError: the model cannot be steered.
    """
    recommended = vector.recommended(model)
    with (
        Engine(model, n_ctx=N_CTX, n_seq_max=N_SEQUENCES) as engine,
        output.progress(1, "asking for facts") as advance,
    ):
        reading = FactYardstick(engine).measure(vector, recommended.strength)
        advance(1)
    return MeasuredFacts(model.name, recommended, reading)
