"""The calibration: which strengths of a vector are surgical on a model file, and which is best.

Owns the search and its conclusion. Texts are made and measured by ``trials``, regimes are told by
``regimes``, the value that is kept in the file is ``vector_metadata``'s :class:`Calibration`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pyemo.choices import GREEDY_NAME
from pyemo.emotions import EMOTIONS
from pyemo.engine.engine import Engine
from pyemo.engine.model import LLAMA_CPP_PYTHON, Model
from pyemo.engine.sampling import STANDARD, SamplerParams
from pyemo.engine.steering import Steering
from pyemo.errors import ContextFullError, InputError, VectorError
from pyemo.measures.regimes import MIN_COHERENT_SHARE, Regime
from pyemo.strengths.trials import Trial, Trials, judged_emotion, voice_of
from pyemo.strengths.voice import FEW_OTHERS, VoiceReading, VoiceYardstick, reply_room
from pyemo.vectors.control_vector import ControlVector
from pyemo.vectors.metadata import Calibration

if TYPE_CHECKING:
    from pyemo.judges import Judge

__all__ = [
    "LENGTHS",
    "SAMPLERS",
    "Calibration",
    "CalibrationResult",
    "Calibrator",
    "calibrate",
]

SAMPLERS = (replace(STANDARD, temperature=0), STANDARD)
"""What a window holds for: the likeliest token, and a drawn one; loops are penalized in both."""
LENGTHS = (48, 128, 256)
"""... and texts of these lengths: the first searches, and each has a window of its own."""
STEPS_PER_DOUBLING = 2
"""Strengths that are tried are base * 2 ** (k / 2): a window's ends are known to within 41%."""
BASE = 0.01
"""... where the base is the strength that a vector's training recommends, or this without one."""
START_DOSE = 0.08
"""Dose at which the search begins; of about the right size for every model so far."""
MAX_STRIDE = 8
"""Steps from there that are tried at most: four doublings, up or down."""
OWN_STEP = 0
"""The step of the strength that a vector's training recommends."""
N_TOPS = 4
"""Steps from the strongest coherent one down at which the text must move, or there is no window."""

N_ROWS = 8
"""Rows of a batch: those of one strength, so that it depends on nothing else."""


@dataclass(frozen=True)
class CalibrationResult:
    """What a calibration found.

    Attributes:
        vector: its name.
        calibrations: what a vector file keeps, by ascending length; a length at which no strength
            is surgical has none.
        reason: in words what has none, and why; "" if every length has one.
        trials: all that was tried, by ascending strength and length.
        judge: the judge's name; its scores are ``emotion``'s unit.
        voices: what the recommended strengths do to written replies, for each calibration; empty
            for a vector of none of the 20 emotions, and on an engine without room for a reply.
    """

    vector: str
    calibrations: tuple[Calibration, ...]
    reason: str
    trials: tuple[Trial, ...]
    judge: str = ""
    voices: tuple[VoiceReading, ...] = ()

    @property
    def emotion(self) -> float | None:
        """Judged emotion of the shortest texts at the recommended strength; None without one."""
        best = self.calibrations[0].strength if self.calibrations else None
        return next((trial.effect for trial in self.trials if trial.strength == best), None)


class Calibrator:
    """Calibrates vectors on one engine; what they share is computed once.

    Args:
        engine: with ``n_rows`` free sequences, and room for them.
        judge: says whether the text moved; without it a window would have no lower end.
        prompts: None for pyemo's own, those for selection (:func:`pyemo.texts.sources.prompts`).
        lengths: of texts, ascending; the first searches, and each has a window of its own.
        samplers: prompt i is answered with sampler i, round and round, to search; with each of
            them, to confirm.
        system_line: a system message that is calibrated together with each vector.
        on_trial: called with each trial when it is done.
    Raises:
        see :class:`pyemo.strengths.trials.Trials`.
    """

    def __init__(
        self,
        engine: Engine,
        judge: Judge,
        *,
        prompts: Sequence[str] | None = None,
        lengths: Sequence[int] = LENGTHS,
        samplers: Sequence[SamplerParams] = SAMPLERS,
        n_rows: int = N_ROWS,
        raw: bool = False,
        emotions: Sequence[str] = tuple(EMOTIONS),
        system_line: str | None = None,
        on_trial: Callable[[Trial], None] | None = None,
    ) -> None:
        if prompts is None:
            from pyemo.texts.sources import prompts as bundled_prompts

            prompts = bundled_prompts("selection")
        if not lengths or list(lengths) != sorted(set(lengths)) or lengths[0] < 1:
            raise InputError(f"lengths {list(lengths)!r} are not ascending whole numbers from 1")
        self._trials, self._full = (
            Trials(
                engine,
                prompts,
                samplers=samplers,
                alternate=is_quick,
                max_tokens=lengths[-1],
                judge=judge,
                n_rows=n_rows,
                raw=raw,
                emotions=emotions,
                system_line=system_line,
                apart=True,
            )
            for is_quick in (True, False)
        )
        self._lengths = tuple(lengths)
        self._judge = judge
        self._line = system_line
        self._yardstick: VoiceYardstick | None = None
        self._on_trial = on_trial

    @property
    def engine(self) -> Engine:
        """The engine it calibrates on."""
        return self._trials.engine

    def calibrate(self, vector: ControlVector) -> CalibrationResult:
        """Return the surgical windows of ``vector``, the best strengths, and what they rest on.

        With the shortest texts, one for each prompt, the strongest coherent strength is sought in
        growing steps from where it is expected by dose, and then by bisection; likewise the weakest
        that moves the text more than random directions do. Here one failing text of eight
        is not held against a strength. From the strongest without a failing
        text downwards, strengths are then confirmed with every prompt answered by every sampler,
        until every length has one that is surgical. That is the upper end of the length's window.
        Recommended is the strength in the window with the most judged emotion, of those that were
        tried and are confirmed too; but that of its training, where the vector has one and it is
        confirmed: it was chosen by readers, who hear more than a judge.

        Raises:
            InputError: the vector names no emotion that the judge knows.
            VectorError: a raw vector, whose strengths mean nothing, or one without the model's
                residual norms; rescale it.
        """
        check_vector(vector, self.engine.model, self._judge)
        dose = vector.dose(1.0)
        start = START_DOSE / dose if dose > 0 else BASE
        first = round(STEPS_PER_DOUBLING * math.log2(start / BASE))
        own = vector.metadata.strength if self._line is None else None
        search = _Search(self._trials, self._full, self._lengths, vector, own, self._on_trial)
        first = OWN_STEP if own is not None else first
        found = replace(search.run(self._describe(), first), judge=self._judge.name)
        return self._with_voices(vector, found)

    def _with_voices(self, vector: ControlVector, found: CalibrationResult) -> CalibrationResult:
        """Return it with what the recommended strengths do to replies, in the evidence too."""
        emotion = voice_of(vector)
        engine = self.engine
        if emotion is None or not found.calibrations or not _has_reply_room(engine, self._line):
            return found
        if self._yardstick is None:
            self._yardstick = VoiceYardstick(engine, others=FEW_OTHERS)
        readings = {
            strength: self._yardstick.measure(
                Steering({vector: strength}), emotion, system=self._line
            )
            for strength in dict.fromkeys(one.strength for one in found.calibrations)
        }
        kept = tuple(
            replace(
                one,
                evidence=json.dumps(
                    {**json.loads(one.evidence), "voice": _rounded_voice(readings[one.strength])}
                ),
            )
            for one in found.calibrations
        )
        voices = tuple(readings[one.strength] for one in kept)
        return replace(found, calibrations=kept, voices=voices)

    def has_calibrated(self, vector: ControlVector) -> bool:
        """Return whether the vector keeps what :meth:`calibrate` would find of it again.

        One at which no strength was found keeps nothing.
        """
        how = self._describe()
        model = self.engine.model.file_sha256
        meta = vector.metadata
        kept = meta.calibrations if self._line is None else meta.line_calibrations
        for one in kept:
            evidence = json.loads(one.evidence)
            if one.model_sha256 != model or not isinstance(evidence, dict):
                continue
            if {**evidence, **how} == evidence:
                return True
        return False

    def _describe(self) -> dict[str, Any]:
        """Return what the evidence says of how it was measured."""
        import pyemo

        trials, engine = self._trials, self._trials.engine
        line = {} if self._line is None else {"system_line": self._line}
        return {
            **line,
            "judge": self._judge.name,
            "lengths": list(self._lengths),
            "prompts": list(trials.prompts),
            "samplers": [sampler_words(sampler) for sampler in trials.samplers],
            "engine": {
                "batch_rows": trials.n_rows,
                "threads": engine.n_threads,
                "n_ctx": engine.n_ctx,
                "chunk": engine.n_outputs_max,
                "kv_type": engine.kv_type,
            },
            "versions": {
                "pyemo": pyemo.__version__,
                "llama-cpp-python": LLAMA_CPP_PYTHON,
            },
        }


def check_vector(vector: ControlVector, model: Model, judge: Judge) -> None:
    """Raise what :meth:`Calibrator.calibrate` would raise of a vector, before any work.

    Raises:
        InputError, VectorError: see there.
        VectorModelMismatchError: it does not fit the model.
    """
    vector.check(model, allow_other_weights=True)
    emotion = checked_emotion(vector)
    vector.dose(1.0)  # a vector without the model's residual norms says so now
    judge.scores(["Hello."], [emotion])  # a judge that does not know it says so now


def checked_emotion(vector: ControlVector) -> str:
    """Return the emotion that a calibration is judged by, after checks that need no model.

    Raises:
        VectorError: the vector does not say its unit.
        InputError: the vector does not say one, such as a voice made of one's own replies.
    """
    if vector.unit == "raw":
        raise VectorError(
            f"the control vector {vector.name!r} does not say its unit (raw); rescale it "
            "first: pyemo rescale"
        )
    trained = vector.metadata.strength
    has = "" if trained is None else f"its training recommends the strength {trained:.3g}; "
    return judged_emotion(
        vector,
        f"{has}`pyemo sweep --cvec FILE --judge none` shows which strengths stay coherent",
    )


def calibrate(
    engine: Engine,
    vector: ControlVector,
    judge: Judge,
    *,
    prompts: Sequence[str] | None = None,
    lengths: Sequence[int] = LENGTHS,
) -> CalibrationResult:
    """Return the calibration of one vector; see :class:`Calibrator`, faster for several."""
    return Calibrator(engine, judge, prompts=prompts, lengths=lengths).calibrate(vector)


def strength_at(step: int, base: float = BASE) -> float:
    """Return the strength of a step of the ladder, three significant digits; step 0 is the base."""
    return float(f"{base * 2 ** (step / STEPS_PER_DOUBLING):.3g}") if step else base


def sampler_words(sampler: SamplerParams) -> str:
    """Return a sampler in words: "greedy", or what differs from always drawing freely."""
    dry = f" dry_multiplier={sampler.dry_multiplier:g}" if sampler.dry_multiplier else ""
    if sampler.temperature == 0:
        return GREEDY_NAME + dry
    words = f"temperature={sampler.temperature:g} top_k={sampler.top_k} top_p={sampler.top_p:g}"
    return f"{words} min_p={sampler.min_p:g}{dry}"


def _last_true(
    is_true: Callable[[int], bool], start: int, *, known: int | None = None
) -> int | None:
    """Return the last step at which a claim holds that holds up to some step, None if nowhere.

    In growing strides from ``start``, then by bisection; not further than :data:`MAX_STRIDE`
    beyond it, up or down.

    Args:
        known: a step at which it holds; ``start`` is not below it.
    """
    stride = 1
    if is_true(start):
        good = start
        while is_true(start + stride):
            good = start + stride
            if stride >= MAX_STRIDE:
                return good
            stride *= 2
        bad = start + stride
    elif known is not None:
        bad, good = start, known
    else:
        bad = start
        while not is_true(start - stride):
            bad = start - stride
            if stride >= MAX_STRIDE:
                return None
            stride *= 2
        good = start - stride
    while bad - good > 1:
        middle = (good + bad) // 2
        if is_true(middle):
            good = middle
        else:
            bad = middle
    return good


class _Search:
    """One vector's search over the ladder of strengths; steps are its rungs.

    Args:
        own: the strength that the vector's training recommends, through which the ladder goes then.
    """

    def __init__(
        self,
        trials: Trials,
        full: Trials,
        lengths: tuple[int, ...],
        vector: ControlVector,
        own: float | None,
        on_trial: Callable[[Trial], None] | None,
    ) -> None:
        self._trials = trials
        self._full = full
        self._lengths = lengths
        self._vector = vector
        self._own = own
        self._on_trial = on_trial
        self._short: dict[int, Trial] = {}
        self._long: dict[int, list[Trial]] = {}

    def run(self, how: dict[str, Any], start: int) -> CalibrationResult:
        """Return what the search finds.

        Args:
            start: the step where the upper end is expected; a wrong guess costs trials, no more.
        """
        high = _last_true(self._is_coherent, start)
        if high is None:
            return self._none("even the weakest strength tried breaks the text")
        tried = range(high, high - N_TOPS, -1)
        top = next((step for step in tried if self._moves(step)), None)
        if top is None:
            return self._none(
                f"the text is coherent up to {self._at(high):g}, but neither there nor down to "
                f"{self._at(tried[-1]):g} does it move more than under random directions"
            )
        # Downwards, the last step that still moves the text; steps there are counted from the top.
        n_below = _last_true(lambda below: self._moves(top - below), STEPS_PER_DOUBLING, known=0)
        assert n_below is not None
        low = top - n_below
        share = self._try(top).report.coherent_share
        first = top if share >= MIN_COHERENT_SHARE else max(low, top - 1)
        if self._own is not None and self._moves(OWN_STEP):
            first = max(first, OWN_STEP)
        highs = self._upper_ends(first, low)
        if not highs:
            return self._none(
                f"short texts are surgical from {self._at(low):g} to {self._at(top):g}, but "
                "longer ones, or more of them, are not"
            )
        low = min(low, *highs.values())
        missing = [n_tokens for n_tokens in self._lengths if n_tokens not in highs]
        return CalibrationResult(
            self._vector.name,
            tuple(self._calibration(n, low, highs[n], how) for n in self._lengths if n in highs),
            f"no strength is surgical for {', '.join(map(str, missing))} tokens" if missing else "",
            self._all(),
        )

    # --- trying ---

    def _upper_ends(self, first: int, low: int) -> dict[int, int]:
        """Return length -> the strongest step that is surgical in full, from ``first`` down.

        Where none is down to ``low``, the first of the weaker ones that move the text after all.
        """
        found: dict[int, int] = {}
        for step in range(first, low - 1 - N_TOPS, -1):
            if len(found) == len(self._lengths) or (found and step < low):
                break
            if self._moves(step):
                for n_tokens in self._surgical_lengths(step):
                    found.setdefault(n_tokens, step)
        return found

    def _at(self, step: int) -> float:
        return strength_at(step, BASE if self._own is None else self._own)

    def _try(self, step: int) -> Trial:
        if step not in self._short:
            n = self._lengths[0]
            pair = (self._vector, self._at(step))
            self._short[step] = self._trials.run([pair], max_tokens=n)[0][0]
            self._tell(self._short[step])
        return self._short[step]

    def _is_coherent(self, step: int) -> bool:
        return self._try(step).report.is_coherent

    def _moves(self, step: int) -> bool:
        effect = self._try(step).report.effect
        return self._is_coherent(step) and effect is not None and effect.low > 0

    def _surgical_lengths(self, step: int) -> list[int]:
        """Return the lengths at which the step is surgical, over all samplers."""
        if step not in self._long:
            pair = (self._vector, self._at(step))
            self._long[step] = self._full.run([pair], lengths=self._lengths)[0]
            for trial in self._long[step]:
                self._tell(trial)
        return [t.n_tokens for t in self._long[step] if t.report.regime is Regime.SURGICAL]

    def _tell(self, trial: Trial) -> None:
        if self._on_trial is not None:
            self._on_trial(trial)

    # --- the conclusion ---

    def _all(self) -> tuple[Trial, ...]:
        tried = [*self._short.values(), *(trial for row in self._long.values() for trial in row)]
        return tuple(sorted(tried, key=lambda trial: (trial.strength, trial.n_tokens)))

    def _none(self, reason: str) -> CalibrationResult:
        return CalibrationResult(self._vector.name, (), reason, self._all())

    def _calibration(self, n_tokens: int, low: int, high: int, how: dict[str, Any]) -> Calibration:
        inside = [step for step in self._short if low <= step <= high and self._moves(step)]
        inside.sort(key=lambda step: self._short[step].effect or 0.0, reverse=True)
        if self._own is not None:
            inside.sort(key=lambda step: step != OWN_STEP)
        best = next(step for step in inside if n_tokens in self._surgical_lengths(step))
        model = self._trials.engine.model
        lengths = (self._lengths[0], n_tokens)
        strengths = [_evidence(trial) for trial in self._all() if trial.n_tokens in lengths]
        return Calibration(
            model_sha256=model.file_sha256,
            model_name=model.name,
            sampler=", ".join(how["samplers"]),
            n_tokens=n_tokens,
            window=(self._at(low), self._at(high)),
            strength=self._at(best),
            evidence=json.dumps({**how, "strengths": strengths}),
        )


def _evidence(trial: Trial) -> dict[str, Any]:
    """Return the numbers of a trial that a vector file keeps, without the texts."""
    report = trial.report
    over = report.effect
    return {
        "strength": trial.strength,
        "n_tokens": trial.n_tokens,
        "n_texts": report.n_texts,
        "regime": report.regime.value,
        "failure": report.failure.value if report.failure else None,
        "coherent_share": round(report.coherent_share, 4),
        "ratio": _rounded(report.ratio),
        "distinct_tokens": round(trial.distinct_tokens, 4),
        "effect": None if trial.effect is None else round(trial.effect, 4),
        "random_effect": None if trial.noise is None else round(trial.noise, 4),
        "effect_over_random": None if over is None else _rounded(over),
    }


def _has_reply_room(engine: Engine, line: str | None) -> bool:
    try:
        return reply_room(engine.model, system=line) <= engine.n_ctx
    except ContextFullError:
        return False


def _rounded_voice(reading: VoiceReading) -> dict[str, Any]:
    """Return a reading for a vector's file: intervals as [value, low, high]."""
    intervals = {
        "gain": reading.gain,
        "specificity": reading.specificity,
        "damage": reading.damage,
    }
    return {
        **{name: None if i is None else _rounded(i) for name, i in intervals.items()},
        "others": list(reading.others),
        "n_prompts": reading.n_prompts,
    }


def _rounded(values: Sequence[float]) -> list[float | None]:
    """Return numbers as short as their certainty; JSON has none that are not finite."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values]
