"""Strengths put to the trial: steered texts beside unsteered twins and random directions.

Owns what a sweep and a calibration share: the prompts, the twins, the controls and the measures.
What they conclude is theirs (``sweeps``, ``calibration``).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pyemo.choices import Scope
from pyemo.emotions import EMOTIONS, resolve
from pyemo.engine.batches import (
    Continuation,
    Job,
    check_room,
    continue_many,
    score_unsteered,
)
from pyemo.engine.engine import Engine
from pyemo.engine.mood import OFF
from pyemo.engine.sampling import GREEDY, SamplerParams
from pyemo.engine.schedules import Schedule
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.measures.perplexity import ratio_of
from pyemo.measures.regimes import StrengthReport, TextRegime, classify_strength, classify_text
from pyemo.measures.text import MIN_TOKENS, TextMeasures, measure_text
from pyemo.strengths.voice import VoiceReading
from pyemo.vectors.control_vector import ControlVector

if TYPE_CHECKING:
    from pyemo.judges import Judge

Floats = npt.NDArray[np.float64]
Progress = Callable[[int], None]

N_ROWS = 16
"""Rows of a batch: about as fast as more, and one strength on 8 prompts with 2 samplers."""


@dataclass(frozen=True, eq=False)
class TrialText:
    """One text: what was written to a prompt, and how likely the unsteered model finds it.

    Attributes:
        prompt: index of the prompt.
        sampler: index of the sampler.
        logprobs: float32 (n_tokens,), under the unsteered model, given the prompt.
    """

    prompt: int
    sampler: int
    continuation: Continuation
    logprobs: npt.NDArray[np.float32]


class TextSet:
    """The texts to all prompts with all samplers under one mood; measured at any length."""

    def __init__(self, texts: Sequence[TrialText], prompts: Sequence[str]) -> None:
        self.texts = tuple(texts)
        self._prompts = tuple(prompts)
        self._scores: dict[tuple[int, tuple[str, ...]], Floats] = {}

    def written(self, n_tokens: int) -> list[str]:
        """Return the texts' first ``n_tokens`` tokens as text."""
        return [text.continuation.first(n_tokens).text for text in self.texts]

    def measures(self, n_tokens: int, twins: TextSet) -> list[TextMeasures | None]:
        """Return the measures of the first ``n_tokens`` tokens, None for too short texts."""
        found: list[TextMeasures | None] = []
        for text, twin in zip(self.texts, twins.written(n_tokens), strict=True):
            cut = text.continuation.first(n_tokens)
            if len(cut.tokens) < MIN_TOKENS:
                found.append(None)
                continue
            measures = measure_text(
                cut.tokens,
                cut.text,
                text.logprobs[: len(cut.tokens)],
                known=(self._prompts[text.prompt], twin),
                entropies=cut.entropies,
            )
            found.append(measures)
        return found

    def scores(self, judge: Judge, emotions: tuple[str, ...], n_tokens: int) -> Floats:
        """Return the judge's scores of the first ``n_tokens``, float64 (n_texts, n_emotions)."""
        key = (n_tokens, emotions)
        if key not in self._scores:
            self._scores[key] = judge.scores(self.written(n_tokens), emotions)
        return self._scores[key]


@dataclass(frozen=True)
class JudgedText:
    """One text of a trial with its verdict, as reports show it.

    Attributes:
        prompt, sampler: indexes of the prompt and the sampler.
        perplexity_ratio: of this text to its twin; nan where one of them is too short.
        effect: judge's score minus the twin's; None where nothing was judged.
    """

    prompt: int
    sampler: int
    text: str
    n_tokens: int
    ended: bool
    regime: TextRegime
    perplexity_ratio: float
    distinct_tokens: float
    effect: float | None


@dataclass(frozen=True)
class Trial:
    """One strength of one vector at one length.

    Attributes:
        report: its regime, and what that rests on.
        effect: mean of the judge's paired difference to the twins; None where nothing was judged.
        noise: the same of random directions of equal norm; one for each prompt.
        distinct_tokens: mean over texts, 0 to 1.
        dose: None where the vector does not say the residual norms.
        voice: what the strength does to replies in the emotion's voice; None if not measured.
    """

    vector: str
    strength: float
    n_tokens: int
    report: StrengthReport
    effect: float | None
    noise: float | None
    distinct_tokens: float
    dose: float | None
    texts: tuple[JudgedText, ...] = field(repr=False)
    voice: VoiceReading | None = None


class Trials:
    """Puts strengths of vectors to the trial on the same prompts.

    Unsteered twins and random controls are computed once, whatever the number of vectors.

    Args:
        engine: with ``n_rows`` free sequences and room for them
            (:func:`pyemo.engine.batches.n_ctx_for`).
        prompts: users' messages in the model's chat template, or texts to continue without one.
        samplers: each prompt is answered once with each; the seed of prompt i is the sampler's + i.
        alternate: answer prompt i with sampler i alone, round and round: fewer texts.
        max_tokens: of a text.
        judge: None to judge nothing; then no strength is called inert, and no control is computed.
        layers: half-open range of layers to steer; None for all a vector has.
        schedule: of the strengths, over a text's tokens; None for constant.
        n_rows: rows of a batch.
        raw: take prompts as they are, without the chat template.
        emotions: those that texts will be judged by; asking the judge for all at once saves time.
        system_line: a system message before the prompts of steered texts, which is tried together
            with each vector; twins and random controls have none.
        apart: let no batch hold texts of two strengths, so that a strength's texts depend on
            nothing else, whatever the number of prompts; slower where they do not fill batches.
    Raises:
        InputError: no prompts, no samplers, or a number outside its range.
        ContextFullError: a prompt that leaves no room for its continuation.
        SteeringUnsupportedError: the model cannot be steered.
    """

    def __init__(
        self,
        engine: Engine,
        prompts: Sequence[str],
        *,
        samplers: Sequence[SamplerParams] = (GREEDY,),
        alternate: bool = False,
        max_tokens: int = 48,
        judge: Judge | None = None,
        scope: Scope = "both",
        layers: range | None = None,
        schedule: Schedule | None = None,
        n_rows: int = N_ROWS,
        raw: bool = False,
        emotions: Sequence[str] = (),
        system_line: str | None = None,
        apart: bool = False,
    ) -> None:
        if isinstance(prompts, str) or not prompts or not samplers:
            raise InputError("a trial needs at least one prompt and one sampler")
        self.engine = engine
        self.prompts = tuple(prompts)
        self.samplers = tuple(samplers)
        n = len(self.samplers)
        places = [(p, s) for s in range(n) for p in range(len(prompts))]
        self._places = [(p, s) for p, s in places if not alternate or s == p % n]
        self.max_tokens = max_tokens
        self.judge = judge
        self.scope: Scope = scope
        self.layers = layers
        self.schedule = schedule
        self.n_rows = n_rows
        self._apart = apart
        self._emotions = tuple(dict.fromkeys(emotions))
        self._prompt_tokens = [tuple(engine.model.answer_tokens(text, raw=raw)) for text in prompts]
        self._steered_tokens = self._prompt_tokens
        if system_line is not None:
            self._steered_tokens = [
                tuple(engine.model.answer_tokens(text, system=system_line, raw=raw))
                for text in prompts
            ]
        self._shared: dict[object, TextSet] = {}  # length -> twins, and the controls
        self._random: dict[tuple[str, int], ControlVector] = {}
        for given in (self._prompt_tokens, self._steered_tokens):
            check_room(engine, given, max_tokens, n_rows)

    @property
    def n_texts(self) -> int:
        """Texts of one strength."""
        return len(self._places)

    def run(
        self,
        pairs: Sequence[tuple[ControlVector, float]],
        *,
        max_tokens: int | None = None,
        lengths: Sequence[int] | None = None,
        on_progress: Progress | None = None,
    ) -> list[list[Trial]]:
        """Return the trials of (vector, strength) pairs, for each a list by length.

        Args:
            max_tokens: None for that of all.
            lengths: of the first tokens to look at; None for ``max_tokens`` alone.
            on_progress: called with the number of texts written since the last call.
        """
        n = self.max_tokens if max_tokens is None else max_tokens
        looked_at = [n] if lengths is None else list(lengths)
        steered = [pair for pair in pairs if pair[1]]
        controls = {
            self._control_key(*pair, n): pair
            for pair in steered
            if self.judge is not None and emotion_of(pair[0]) is not None
        }
        missing: dict[object, tuple[ControlVector, float] | None]
        missing = {key: pair for key, pair in controls.items() if key not in self._shared}
        if n not in self._shared:
            missing[n] = None
        sets = self._write(
            [[self._mood(*pair)] * self.n_texts for pair in steered],
            [self._shared_moods(pair) for pair in missing.values()],
            n,
            on_progress,
        )
        self._shared.update(zip(missing, sets[len(steered) :], strict=True))
        own = iter(sets)
        found = []
        for vector, strength in pairs:
            texts = next(own) if strength else self.twins(n)
            control = self._shared.get(self._control_key(vector, strength, n), self.twins(n))
            trial = functools.partial(self._judged, vector, strength, texts, control)
            found.append([trial(n, length) for length in looked_at])
        return found

    def twins(self, n_tokens: int) -> TextSet:
        """Return the unsteered texts, computed once for each length."""
        if n_tokens not in self._shared:
            self._shared[n_tokens] = self._write([], [self._shared_moods(None)], n_tokens, None)[0]
        return self._shared[n_tokens]

    # --- writing ---

    def _write(
        self,
        steered: Sequence[Sequence[Steering]],
        shared: Sequence[Sequence[Steering]],
        n_tokens: int,
        on_progress: Progress | None,
    ) -> list[TextSet]:
        """Return a set of texts for each list of moods, one mood for each of its texts."""
        if not self._apart:
            return self._write_together(steered, shared, n_tokens, on_progress)
        write = functools.partial(self._write_together, n_tokens=n_tokens, on_progress=on_progress)
        sets = [write([own], [])[0] for own in steered]
        return [*sets, *(write([], [own])[0] for own in shared)]

    def _write_together(
        self,
        steered: Sequence[Sequence[Steering]],
        shared: Sequence[Sequence[Steering]],
        n_tokens: int,
        on_progress: Progress | None,
    ) -> list[TextSet]:
        """Return the sets, in batches that hold texts of several.

        All are scored as answers to the prompts alone.
        """
        places = self._places
        samplers = [replace(self.samplers[s], seed=self.samplers[s].seed + p) for p, s in places]
        kinds = ((self._steered_tokens, steered), (self._prompt_tokens, shared))
        jobs = [
            Job(tokens[p], mood, sampler)
            for tokens, moods in kinds
            for own in moods
            for (p, _), mood, sampler in zip(places, own, samplers, strict=True)
        ]
        asked = [self._prompt_tokens[p] for p, _ in places] * (len(steered) + len(shared))
        written = continue_many(
            self.engine, jobs, max_tokens=n_tokens, n_rows=self.n_rows, on_progress=on_progress
        )
        logprobs = score_unsteered(self.engine, asked, written)
        texts = [
            TrialText(*places[i % len(places)], text, row)
            for i, (text, row) in enumerate(zip(written, logprobs, strict=True))
        ]
        n = len(places)
        return [TextSet(texts[i : i + n], self.prompts) for i in range(0, len(texts), n)]

    def _mood(self, vector: ControlVector, strength: float) -> Steering:
        return Steering(
            {vector: strength}, layers=self.layers, scope=self.scope, schedule=self.schedule
        )

    # --- what vectors share ---

    def _shared_moods(self, pair: tuple[ControlVector, float] | None) -> list[Steering]:
        """Return the moods of the twins, or of a control: random directions of equal norms.

        Each prompt has a direction of its own, so that one odd direction does not decide. Vectors
        of equal norms share them.
        """
        if pair is None:
            return [OFF] * self.n_texts
        vector, strength = pair
        norms = _norms(vector)
        for seed in range(len(self.prompts)):
            if (norms, seed) not in self._random:
                self._random[norms, seed] = random_direction(vector, seed)
        return [self._mood(self._random[norms, p], abs(strength)) for p, _ in self._places]

    def _control_key(self, vector: ControlVector, strength: float, n_tokens: int) -> object:
        return _norms(vector), abs(strength), n_tokens

    # --- judging ---

    def _judged(
        self,
        vector: ControlVector,
        strength: float,
        texts: TextSet,
        control: TextSet,
        max_tokens: int,
        n_tokens: int,
    ) -> Trial:
        twins = self.twins(max_tokens)
        measures = texts.measures(n_tokens, twins)
        of_twins = twins.measures(n_tokens, twins)
        effect, noise = self._effects(vector, texts, twins, control, n_tokens)
        report = classify_strength(measures, of_twins, effect=effect, random_effect=noise)
        rows = tuple(
            JudgedText(
                text.prompt,
                text.sampler,
                cut.text,
                len(cut.tokens),
                cut.ended,
                TextRegime.EXPLOSIVE if measured is None else classify_text(measured),
                _ratio(measured, twin),
                measured.distinct_tokens if measured else 0.0,
                None if effect is None else float(effect[i]),
            )
            for i, (text, measured, twin) in enumerate(
                zip(texts.texts, measures, of_twins, strict=True)
            )
            for cut in [text.continuation.first(n_tokens)]
        )
        return Trial(
            vector=vector.name,
            strength=strength,
            n_tokens=n_tokens,
            report=report,
            effect=None if effect is None else float(effect.mean()),
            noise=None if noise is None else float(noise.mean()),
            distinct_tokens=float(np.mean([row.distinct_tokens for row in rows])),
            dose=vector.dose(strength, self.layers) if vector.residual_norms else None,
            texts=rows,
        )

    def _effects(
        self,
        vector: ControlVector,
        texts: TextSet,
        twins: TextSet,
        control: TextSet,
        n_tokens: int,
    ) -> tuple[Floats | None, Floats | None]:
        """Return the judge's paired differences of texts and control, float64 (n_texts,) each."""
        emotion = emotion_of(vector)
        if self.judge is None or emotion is None:
            return None, None
        score = functools.partial(self._scores, emotion=emotion, n_tokens=n_tokens)
        plain = score(twins, shared=True)
        return score(texts) - plain, score(control, shared=True) - plain

    def _scores(
        self, texts: TextSet, *, emotion: str, n_tokens: int, shared: bool = False
    ) -> Floats:
        assert self.judge is not None
        asked = self._emotions if shared and emotion in self._emotions else (emotion,)
        return texts.scores(self.judge, asked, n_tokens)[:, asked.index(emotion)]


def emotion_of(vector: ControlVector) -> str | None:
    """Return the emotion a judge can look for: what the vector says, else what its name does."""
    if vector.metadata.emotion:
        return vector.metadata.emotion
    try:
        return resolve(vector.name)
    except InputError:
        return None


def judged_emotion(vector: ControlVector, remedy: str) -> str:
    """Return :func:`emotion_of`, for a judge that cannot do without; needs no model.

    Args:
        remedy: what to do with a vector that has none.
    Raises:
        InputError: the vector says none, such as a voice made of one's own replies.
    """
    emotion = emotion_of(vector)
    if emotion is None:
        raise InputError(
            f"the vector {vector.name!r} does not say its emotion, so no judge can tell whether it "
            f"acts; {remedy}"
        )
    return emotion


def voice_of(vector: ControlVector) -> str | None:
    """Return the one of the 20 emotions that a vector is of, which replies are written in."""
    emotion = emotion_of(vector)
    return emotion if emotion in EMOTIONS else None


def random_direction(vector: ControlVector, seed: int) -> ControlVector:
    """Return random directions at the same layers, each as long as the vector's there.

    Lengths are taken to four digits, so that vectors which differ by rounding alone share them.
    What a vector does beyond one of these is the direction's doing, and not the push's.
    """
    rng = np.random.default_rng(seed)
    rows: dict[int, npt.NDArray[np.float64]] = {}
    for layer, row in vector.directions.items():
        random = rng.standard_normal(row.size)
        rows[layer] = random * (_length(row) / float(np.linalg.norm(random)))
    return ControlVector(rows, name=f"random {seed}")


def _norms(vector: ControlVector) -> str:
    """Return the lengths of a vector's directions, so that equal ones are equal."""
    return ",".join(f"{layer}:{_length(row)}" for layer, row in vector.directions.items())


def _length(row: npt.NDArray[np.float32]) -> float:
    return float(f"{np.linalg.norm(row.astype(np.float64)):.4g}")


def _ratio(text: TextMeasures | None, twin: TextMeasures | None) -> float:
    if text is None or twin is None:
        return float("nan")
    return ratio_of([text.surprise - twin.surprise])
