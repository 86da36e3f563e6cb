"""The sweep: what each strength of each vector does to the text, on the same prompts.

Owns the result and its JSON; how texts are made and measured is ``trials``'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from pyemo.choices import Scope
from pyemo.engine.engine import Engine
from pyemo.engine.sampling import GREEDY, SamplerParams
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.measures.bootstrap import Interval
from pyemo.strengths.trials import N_ROWS, Trial, Trials, emotion_of, judged_emotion, voice_of
from pyemo.strengths.voice import VoiceReading, VoiceYardstick
from pyemo.vectors.control_vector import ControlVector

if TYPE_CHECKING:
    from pyemo.judges import Judge


@dataclass(frozen=True)
class SweepResult:
    """What strengths of vectors did on one model file. The same call gives the same result.

    Attributes:
        trials: for each vector, in the order given, its strengths in ascending order.
        judge: the judge's name, "" where nothing was judged; then no strength is called inert.
        batch_rows, threads: on which the last bits of the texts depend.
        chunk, kv_type: on which those of the perplexities depend too (:class:`pyemo.Score`).
    """

    model: str
    model_sha256: str
    prompts: tuple[str, ...]
    sampler: SamplerParams
    max_tokens: int
    scope: Scope
    layers: range | None
    judge: str
    batch_rows: int
    threads: int
    chunk: int
    kv_type: str
    trials: tuple[Trial, ...]

    @property
    def vectors(self) -> tuple[str, ...]:
        """The vectors' names, in the order given."""
        return tuple(dict.fromkeys(trial.vector for trial in self.trials))

    def of(self, vector: str) -> list[Trial]:
        """Return the trials of a vector, by ascending strength."""
        return [trial for trial in self.trials if trial.vector == vector]

    def as_json(self) -> dict[str, Any]:
        """Return it as plain values; what is not a number is None."""
        layers = None if self.layers is None else [self.layers.start, self.layers.stop]
        return {
            "model": {"name": self.model, "sha256": self.model_sha256},
            "sampler": asdict(self.sampler),
            "max_tokens": self.max_tokens,
            "scope": self.scope,
            "layers": layers,
            "judge": self.judge or None,
            "engine": {
                "batch_rows": self.batch_rows,
                "threads": self.threads,
                "chunk": self.chunk,
                "kv_type": self.kv_type,
            },
            "prompts": list(self.prompts),
            "strengths": [describe_trial(trial) for trial in self.trials],
        }


def sweep(
    engine: Engine,
    vectors: Sequence[ControlVector],
    strengths: Sequence[float],
    prompts: Sequence[str],
    *,
    sampler: SamplerParams = GREEDY,
    max_tokens: int = 48,
    judge: Judge | None = None,
    layers: range | None = None,
    scope: Scope = "both",
    n_rows: int = N_ROWS,
    raw: bool = False,
    yardstick: VoiceYardstick | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> SweepResult:
    """Return what each strength of each vector does to the texts of all prompts.

    Texts are made in batches of fixed shape and scored by the unsteered model. With a judge, the
    same number of texts is made for each strength under random directions of equal norm.

    Args:
        engine: with ``n_rows`` free sequences and room for them
            (:func:`pyemo.engine.batches.n_ctx_for`).
        strengths: finite, in any order; each is tried once.
        judge: None to judge nothing.
        yardstick: measures each strength but 0 on replies, for vectors of the 20 emotions; on the
            same engine.
        on_progress: called with the number of texts written since the last call;
            :func:`n_texts_of_sweep` says how many there will be.
    Raises:
        InputError: no vector or strength, a vector that names no emotion to judge, two vectors of
            one name, or see :class:`pyemo.strengths.trials.Trials`.
    """
    check_sweep(vectors, strengths, judge is not None)
    emotions = [emotion for emotion in map(emotion_of, vectors) if emotion]
    trials = Trials(
        engine,
        prompts,
        samplers=(sampler,),
        max_tokens=max_tokens,
        judge=judge,
        scope=scope,
        layers=layers,
        n_rows=n_rows,
        raw=raw,
        emotions=emotions,
    )
    pairs = [(vector, strength) for vector in vectors for strength in sorted(set(strengths))]
    found = [trial for (trial,) in trials.run(pairs, on_progress=on_progress)]
    if yardstick is not None:
        found = [
            replace(trial, voice=_voice(yardstick, *pair, layers, scope))
            for trial, pair in zip(found, pairs, strict=True)
        ]
    return SweepResult(
        model=engine.model.name,
        model_sha256=engine.model.file_sha256,
        prompts=tuple(prompts),
        sampler=sampler,
        max_tokens=max_tokens,
        scope=scope,
        layers=layers,
        judge=judge.name if judge is not None else "",
        batch_rows=n_rows,
        threads=engine.n_threads,
        chunk=engine.n_outputs_max,
        kv_type=engine.kv_type,
        trials=tuple(found),
    )


def _voice(
    yardstick: VoiceYardstick,
    vector: ControlVector,
    strength: float,
    layers: range | None,
    scope: Scope,
) -> VoiceReading | None:
    emotion = voice_of(vector)
    if emotion is None or not strength:
        return None
    return yardstick.measure(Steering({vector: strength}, layers=layers, scope=scope), emotion)


def check_sweep(
    vectors: Sequence[ControlVector], strengths: Sequence[float], is_judged: bool
) -> None:
    """Raise what :func:`sweep` would raise of its vectors and strengths.

    Raises:
        InputError: see :func:`sweep`.
    """
    if not vectors or not strengths:
        raise InputError("a sweep needs at least one vector and one strength")
    if not all(math.isfinite(strength) for strength in strengths):
        raise InputError(f"strengths {list(strengths)!r} are not all finite numbers")
    names = [vector.name for vector in vectors]
    if len(set(names)) < len(names):
        raise InputError(f"two vectors are named alike ({', '.join(names)}); rename one's file")
    if is_judged:
        check_judged(vectors)


def check_judged(vectors: Sequence[ControlVector]) -> None:
    """Raise if a judge cannot tell whether one of the vectors acts; needs no model.

    Raises:
        InputError: one does not say its emotion, such as a voice made of one's own replies.
    """
    for vector in vectors:
        judged_emotion(vector, "--judge none measures at which strengths texts stay coherent")


def n_texts_of_sweep(
    vectors: Sequence[ControlVector], strengths: Sequence[float], n_prompts: int, is_judged: bool
) -> int:
    """Return how many texts a sweep writes at most: steered, unsteered and random ones."""
    n_strengths = len({strength for strength in strengths if strength})
    n_sets = len(vectors) * n_strengths * (2 if is_judged else 1) + 1
    return n_sets * n_prompts


def parse_strengths(text: str) -> list[float]:
    """Return the strengths that ``0:0.06:13`` (first, last, how many) or ``0.01,0.02`` name.

    Raises:
        InputError: anything else.
    """
    try:
        if ":" in text:
            first, last, count = text.split(":")
            low, high, n = float(first), float(last), int(count)
            if n < 1 or (n == 1 and low != high):
                raise ValueError
            step = (high - low) / (n - 1) if n > 1 else 0.0
            # As a person would write them: 0.035, not 0.034999999999999996.
            values = [float(f"{low + step * i:.9g}") for i in range(n)]
        else:
            values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"strengths {text!r} are not FIRST:LAST:COUNT, such as 0:0.06:13, nor numbers with "
            "commas between"
        ) from None
    if not all(math.isfinite(value) for value in values):
        raise InputError(f"strengths {text!r} are not all finite numbers")
    return values


def describe_trial(trial: Trial) -> dict[str, Any]:
    """Return a trial as plain values for JSON; what is not a number is None."""
    report = trial.report
    return {
        "vector": trial.vector,
        "strength": trial.strength,
        "n_tokens": trial.n_tokens,
        "dose": trial.dose,
        "regime": report.regime.value,
        "failure": report.failure.value if report.failure else None,
        "n_texts": report.n_texts,
        "coherent_share": report.coherent_share,
        "shares": {regime.value: share for regime, share in report.shares.items()},
        "ratio": _interval(report.ratio),
        "distinct_tokens": trial.distinct_tokens,
        "effect": trial.effect,
        "random_effect": trial.noise,
        "effect_over_random": _interval(report.effect),
        "voice": None if trial.voice is None else trial.voice.as_json(),
        "texts": [
            {
                **asdict(text),
                "regime": text.regime.value,
                "perplexity_ratio": _number(text.perplexity_ratio),
            }
            for text in trial.texts
        ],
    }


def _interval(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    return {name: _number(value) for name, value in interval._asdict().items()}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
