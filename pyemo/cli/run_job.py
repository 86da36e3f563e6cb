"""One prompt answered under one mood or two: opened once, printed as it comes or as JSON."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple, TypeAlias

import click
import numpy as np
import numpy.typing as npt

import pyemo
from pyemo.choices import CONSTANT, DEFAULT_TOKENS
from pyemo.cli import output
from pyemo.cli.guard_text import describe_guard, guard_lines
from pyemo.cli.meters import gauge_lines
from pyemo.cli.options import EngineOptions
from pyemo.cli.script_text import script_lines
from pyemo.cli.template_options import TemplateOptions
from pyemo.engine.cached_sequence import CachedSequence
from pyemo.engine.engine import Engine
from pyemo.engine.gauges import Gauge
from pyemo.engine.model import LLAMA_CPP_PYTHON, Model
from pyemo.engine.mood import OFF
from pyemo.engine.replies import Reply
from pyemo.engine.sampling import GREEDY, SamplerParams
from pyemo.engine.scripts import scripts_in
from pyemo.engine.steering import Steering
from pyemo.engine.tokens import Token
from pyemo.errors import InputError
from pyemo.moods.builder import (
    MoodBuilder,
    MoodTerm,
    describe_terms,
    dose_of,
    steering_of,
    system_line_of,
    title_of,
)
from pyemo.moods.cache import CacheTerm, cache_terms, edit
from pyemo.moods.options import AUTO, MoodOptions

IN_CIRCLES = (
    "stopped: the reply went in circles; less strength or --guard may keep it out of them, "
    "--no-repetition-stop lets it"
)
PLAIN_TOKENS = 16
"""Tokens of an unsteered reply that say in which scripts the answer to a prompt is written."""

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    prompt: str
    system: str | None
    raw: bool
    max_tokens: int
    stop: tuple[str, ...]
    gauges: tuple[str, ...]
    sampler: SamplerParams
    engine: EngineOptions
    mood: MoodOptions
    guard: str | None = None
    template: TemplateOptions = field(default_factory=TemplateOptions)
    stop_repetition: bool = True
    cache: tuple[str, ...] = ()
    has_line: bool = False

    @contextlib.contextmanager
    def open(self) -> Iterator[Job]:
        """Open the model and an engine just large enough for the job; say what was chosen."""
        began = time.perf_counter()
        with_lines = self.has_line and self.system is None and not self.raw
        builder = MoodBuilder(self.mood, self.max_tokens, with_lines=with_lines)
        prompt = output.read_prompt(self.prompt)
        model = self.engine.load_model()
        plain = self._tokens(model, prompt, self.system)
        terms = builder.terms(model, builder.specs)
        line = system_line_of(terms)
        tokens = plain if line is None else self._tokens(model, prompt, line)
        gauges = builder.gauges(model, self.gauges)
        cache = cache_terms(self.cache, model, allow_other_weights=self.mood.allow_other_weights)
        with self.engine.open(
            model, max(len(tokens), len(plain)) + max(self.max_tokens, 1)
        ) as engine:
            measured = _measured(self, engine, tokens, terms)
            terms = measured.terms
            for note in [*self._notes(model, terms), *measured.notes]:
                output.note(note)
            load_s = time.perf_counter() - began
            yield Job(
                self,
                engine,
                prompt,
                tokens,
                plain,
                terms,
                gauges,
                load_s,
                measured.push,
                cache,
                line,
            )

    def _tokens(self, model: Model, prompt: str, system: str | None) -> list[int]:
        return model.prompt_tokens(
            prompt,
            system=system,
            raw=self.raw,
            chat_template_kwargs=self.template.kwargs(model),
        )

    def _notes(self, model: Model, terms: list[MoodTerm]) -> list[str]:
        notes = [line for term in terms for line in term.notes]
        if self.has_line and self.system is not None:
            notes.append("--system is the system message; vectors bring none")
        if model.chat_template is None and not self.raw:
            notes.append(
                f"{model.name} has no chat template: it answers after a blank line; --raw lets it "
                "continue the prompt"
            )
        return notes


@dataclass(frozen=True)
class Job:
    """A request with its engine open.

    Attributes:
        tokens: the prompt's, with the system message that the mood brings.
        plain_tokens: the prompt's without it.
        system_line: what the mood brings; None for nothing.
    """

    request: Request
    engine: Engine
    prompt: str
    tokens: list[int]
    plain_tokens: list[int]
    terms: list[MoodTerm]
    gauges: list[Gauge]
    load_s: float
    push: float | None = None
    cache: list[CacheTerm] = field(default_factory=list)
    system_line: str | None = None

    @property
    def steering(self) -> Steering:
        """The mood that was asked for."""
        return steering_of(self.terms)

    @property
    def title(self) -> str:
        """The mood in words."""
        words = [] if self.cache and not self.terms else [title_of(self.terms)]
        return ", ".join([*words, *map(str, self.cache)])

    @property
    def asked(self) -> str:
        """What the model reads, without its template."""
        return f"{self.request.system or self.system_line or ''}\n{self.prompt}"

    def steered(self) -> Answer:
        """Begin a reply under what was asked for; nothing is decoded yet.

        Raises:
            InputError, VectorError: a cache vector that does not fit the prompt or the cache.
        """
        answer = self.answer(self.steering)
        sequence = answer.reply.sequence
        assert isinstance(sequence, CachedSequence)
        allowed = self.request.mood.allow_other_weights
        edit(sequence, self.cache, allow_other_weights=allowed)
        return answer

    def unsteered(self) -> Answer:
        """Begin a reply without it."""
        return self.answer(OFF)

    def answer(self, steering: Steering) -> Answer:
        """Begin a reply under a mood alone; nothing is decoded yet.

        Unsteered, the mood's system message is left out too.
        """
        request = self.request
        tokens = self.plain_tokens if steering is OFF else self.tokens
        settings: dict[str, Any] = {
            "steering": steering,
            "max_tokens": request.max_tokens,
            "sampler": self._sampler(),
            "stop": request.stop,
            "stop_repetition": request.stop_repetition,
            "gauges": self.gauges,
        }
        if request.guard is None:
            return Answer(self.engine.generate(tokens, **settings))
        from pyemo.guard import Guard

        guard = Guard(mode=request.guard)  # type: ignore[arg-type]
        return Answer(guard.generate(self.engine, tokens, **settings))

    def _sampler(self) -> SamplerParams:
        """Return the sampler; a reply may have the scripts that an unsteered one begins with."""
        sampler = self.request.sampler
        if not sampler.stay_in_script:
            return sampler
        plain = self.engine.generate(self.plain_tokens, sampler=GREEDY, max_tokens=PLAIN_TOKENS)
        text = "".join(token.text for token in plain)
        return replace(sampler, scripts=(*sampler.scripts, *scripts_in(text)))

    def describe(self) -> dict[str, Any]:
        """Return for JSON what all replies of the job share."""
        model = self.engine.model
        return {
            "prompt": output.valid_text(self.prompt),
            "system": self.request.system or self.system_line,
            "n_prompt_tokens": len(self.tokens),
            "load_s": self.load_s,
            "steering": {
                "terms": describe_terms(self.terms, model.n_layer),
                "dose": dose_of(self.steering, model.n_layer),
                "push": self.push,
                "cache": [term.describe() for term in self.cache],
            },
            "model": {
                "name": model.name,
                "architecture": model.architecture,
                "sha256": model.file_sha256,
            },
            "sampler": _describe_sampler(self.request.sampler),
            "engine": {
                "n_ctx": self.engine.n_ctx,
                "n_threads": self.engine.n_threads,
                "kv_type": self.request.engine.kv_type,
            },
            "versions": {
                "pyemo": pyemo.__version__,
                "llama-cpp-python": LLAMA_CPP_PYTHON,
                "python": platform.python_version(),
            },
        }


class _Measured(NamedTuple):
    """A mood held against the prompt: its terms, the largest push, and what to say of it."""

    terms: list[MoodTerm]
    push: float | None
    notes: list[str]


def _measured(
    request: Request, engine: Engine, tokens: list[int], terms: list[MoodTerm]
) -> _Measured:
    """Return the mood with the strengths that were to be found, and how strong its raw vectors are.

    A mood of vectors that say their unit, with strengths, costs nothing.
    """
    is_raw = any(term.term.vector.unit == "raw" for term in terms)
    if not is_raw and not request.mood.auto:
        return _Measured(terms, None, [])
    from pyemo.strengths.push import in_words, prompt_norms, push

    norms = prompt_norms(engine, tokens)
    notes: list[str] = []
    if request.mood.auto:
        terms = [_found(request, engine.model, term, norms, notes) for term in terms]
    for term in terms:
        if term.term.vector.unit == "raw" and term.term.operator == "add":
            share = push(Steering.from_terms(term.term), norms)
            name, strength = term.term.vector.name, term.term.strength
            notes.append(f"{name}: strength {strength:g} is {in_words(share)}")
    return _Measured(terms, push(steering_of(terms), norms), notes)


def _found(
    request: Request, model: Model, mood_term: MoodTerm, norms: Floats, notes: list[str]
) -> MoodTerm:
    """Return the term with a strength that was found for it, if none was given."""
    if mood_term.strength_source != AUTO:
        return mood_term
    from pyemo.strengths.auto import auto_strength
    from pyemo.strengths.push import UNSEEN, push

    def mood(strength: float) -> Steering:
        return Steering.from_terms(replace(mood_term.term, strength=strength))

    name = mood_term.term.vector.name
    unit = push(mood(1.0), norms)
    if not unit:
        raise InputError(f"the control vector {name!r} is zero; no strength of it does anything")
    n_ctx = min(512, model.n_ctx_train)
    with Engine(model, n_ctx=n_ctx, n_batch=n_ctx, n_threads=request.engine.threads) as engine:
        found = auto_strength(engine, mood_term.term.vector, UNSEEN / unit, mood)
    gain = "" if found.gain is None else f", and changes replies in its voice by {found.gain:+.2f}"
    notes.append(
        f"{name}: strength {found.strength:g} was found: it costs the model's own replies "
        f"{found.cost:.2f} nats per token{gain}; a first guess, which pyemo calibrate tests"
    )
    return replace(mood_term, term=replace(mood_term.term, strength=found.strength))


class Answer:
    """A reply with a clock."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply
        self._began = time.perf_counter()
        self._first_token_s = 0.0
        self._total_s = 0.0

    def texts(self) -> Iterator[str]:
        """Decode token by token and yield their texts."""
        for token in self.reply:
            self._total_s = time.perf_counter() - self._began
            self._first_token_s = self._first_token_s or self._total_s
            yield token.text

    def finish(self) -> Answer:
        """Decode all tokens."""
        for _ in self.texts():
            pass
        return self

    def describe(self) -> dict[str, Any]:
        """Return it for JSON."""
        n_later = len(self.reply.tokens) - 1
        later_s = self._total_s - self._first_token_s
        return {
            "text": self.reply.text,
            "answer": self.reply.answer,
            "thoughts": self.reply.thoughts,
            "tokens": [_describe_token(token) for token in self.reply.tokens],
            "stop_reason": self.reply.stop_reason,
            "decisions": [
                {
                    "rule": str(decision.rule),
                    "holds": decision.holds,
                    "readings": {str(what): read for what, read in decision.readings.items()},
                }
                for decision in self.reply.sequence.decisions
            ],
            "timings": {
                "first_token_s": self._first_token_s,
                "total_s": self._total_s,
                "tokens_per_s": n_later / later_s if n_later and later_s else None,
            },
            **describe_guard(self.reply),
        }


def print_reply(job: Job, as_json: bool) -> None:
    """Print the reply as it comes, or as one JSON object."""
    answer = job.steered()
    if as_json:
        output.print_json({**job.describe(), **answer.finish().describe()})
        return
    output.stream(answer.texts())
    is_steered = bool(job.terms or job.cache)
    _print_end(job, answer, known=(job.asked,) if is_steered else ())


def print_comparison(job: Job, as_json: bool) -> None:
    """Print the unsteered and the steered reply, each computed alone, one after the other."""
    if as_json:
        told = [begin().finish().describe() for begin in (job.unsteered, job.steered)]
        output.print_json(
            {**job.describe(), **dict(zip(("unsteered", "steered"), told, strict=True))}
        )
        return
    titles = ("unsteered", job.title)
    begins = (job.unsteered, job.steered)
    if output.is_wide():
        from pyemo.cli.columns import stream_side_by_side

        answers: list[Answer] = []

        def texts(begin: Callable[[], Answer]) -> Iterator[str]:
            answers.append(begin())
            yield from answers[-1].texts()

        stream_side_by_side(titles, [texts(begin) for begin in begins])
    else:
        answers = [_stream_titled(*pair) for pair in zip(titles, begins, strict=True)]
    plain, steered = answers
    _print_end(job, plain, f"{titles[0]}: ")
    _print_end(job, steered, f"{titles[1]}: ", known=(job.asked, plain.reply.text))


def _stream_titled(title: str, begin: Callable[[], Answer]) -> Answer:
    click.secho(f"--- {output.printable(title)} ---", bold=True)
    answer = begin()
    output.stream(answer.texts())
    return answer


def _print_end(job: Job, answer: Answer, title: str = "", known: Sequence[str] = ()) -> None:
    """Print on stderr what the text does not show.

    Args:
        known: texts whose scripts a steered reply should keep to; () to say nothing of scripts.
    """
    for decision in answer.reply.sequence.decisions:
        output.note(f"{title}{decision}")
    if job.gauges:
        for line in gauge_lines(answer.reply.tokens):
            output.note(title + line)
    for line in guard_lines(answer.reply):
        output.note(title + line)
    for line in script_lines(answer.reply.text, *known):
        output.note(title + line)
    if answer.reply.stop_reason == "repetition":
        output.note(title + IN_CIRCLES)
    if job.request.sampler.grammar is not None and answer.reply.stop_reason != "end":
        output.note(f"{title}the reply was cut off before what its grammar asks for was whole")
    elif answer.reply.stop_reason == "length":
        output.note(title + output.cut_off(len(answer.reply.tokens)))
    if _learned_to_end(job, answer):
        output.note(
            f"{title}ended after {len(answer.reply.tokens)} tokens: the vector learned from short "
            "replies; for a longer one let its strength fade: --schedule half-life:64"
        )
    if answer.reply.stop_reason == "context":
        output.note(
            f"{title}stopped: the context of {job.engine.n_ctx} tokens is full; "
            "take a larger --n-ctx"
        )


def _learned_to_end(job: Job, answer: Answer) -> bool:
    """Return whether a trained vector has ended a reply that was asked to be long."""
    asked, is_faded = job.request.max_tokens, job.request.mood.schedule != CONSTANT
    if answer.reply.stop_reason != "end" or is_faded or asked <= DEFAULT_TOKENS:
        return False
    trained = [
        term
        for term in answer.reply.sequence.steering.terms
        if term.vector.metadata.strength is not None and term.strength
    ]
    return bool(trained) and len(answer.reply.tokens) < asked / 2


def _describe_sampler(sampler: SamplerParams) -> dict[str, Any]:
    grammar = sampler.grammar
    return {**asdict(sampler), "grammar": None if grammar is None else grammar.text}


def _describe_token(token: Token) -> dict[str, Any]:
    return {
        "id": token.id,
        "text": token.text,
        "bytes": list(token.bytes),
        "kind": token.kind,
        "logprob": token.logprob,
        "entropy": token.entropy,
        "gauges": {name: reading._asdict() for name, reading in token.gauges.items()},
    }
