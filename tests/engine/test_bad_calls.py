"""Bad calls: whatever is passed, the answer is a PyemoError, and the engine goes on."""

from __future__ import annotations

import decimal
import fractions
import traceback
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from engines import random_vector

from pyemo import (
    Chat,
    ControlVector,
    Engine,
    Gauge,
    HalfLife,
    Model,
    PyemoError,
    Ramp,
    SamplerParams,
    Steering,
)
from pyemo.engine.batches import Job, continue_many
from pyemo.engine.terms import SteeringTerm
from pyemo.errors import InputError
from pyemo.guard import Guard
from pyemo.moods.grammar import parse_layers, parse_schedule

PROMPT = [5, 6, 7]
HUGE = 10**400
WRONG: tuple[Any, ...] = (None, 5, 1.5, 1j, "x", b"x", [], [None], {}, object(), HUGE, slice(1), ())
"""Values of all kinds; each call below is bad with those that it names."""


def wrong(*right: Any) -> list[Any]:
    """Return the values of no use where ``right`` are of use."""
    return [value for value in WRONG if not any(value is one for one in right)]


NONE, WHOLE, REAL, COMPLEX, TEXT, BYTES, LIST, NONES, DICT, THING, BIG, SLICE, EMPTY = WRONG
NOTHING = (LIST, DICT, EMPTY)

CALLS: dict[str, tuple[Callable[[Engine, ControlVector, Any], Any], list[Any]]] = {
    "strength": (lambda e, v, x: Steering({v: x}), wrong(WHOLE, REAL)),
    "steering": (lambda e, v, x: Steering(x), wrong(NONE, *NOTHING, BIG)),
    "operator": (lambda e, v, x: Steering({v: 0.1}, operator=x), wrong()),
    "scope": (lambda e, v, x: Steering({v: 0.1}, scope=x), wrong()),
    "steered layers": (lambda e, v, x: Steering({v: 0.1}, layers=x), wrong(NONE)),
    "schedule": (lambda e, v, x: Steering({v: 0.1}, schedule=x), wrong(NONE)),
    "from_terms": (lambda e, v, x: Steering.from_terms(x), wrong()),
    "term": (lambda e, v, x: SteeringTerm(x, 0.1), wrong()),
    "ramp": (lambda e, v, x: Ramp(x), wrong(WHOLE, REAL)),
    "half-life": (lambda e, v, x: HalfLife(x), wrong(WHOLE, REAL)),
    "parse_layers": (lambda e, v, x: parse_layers(x), wrong()),
    "parse_schedule": (lambda e, v, x: parse_schedule(x), wrong()),
    "gauge": (lambda e, v, x: Gauge(x), wrong()),
    "gauge layer": (lambda e, v, x: Gauge(v, layer=x), wrong()),
    "temperature": (lambda e, v, x: SamplerParams(temperature=x), wrong(WHOLE, REAL)),
    "top_k": (lambda e, v, x: SamplerParams(top_k=x), wrong(WHOLE)),
    "seed of a sampler": (lambda e, v, x: SamplerParams(seed=x), wrong(WHOLE)),
    "prompt": (lambda e, v, x: e.generate(x), wrong(TEXT, LIST, EMPTY)),
    "steering of a reply": (lambda e, v, x: e.generate(PROMPT, steering=x), wrong()),
    "max_tokens": (lambda e, v, x: e.generate(PROMPT, max_tokens=x), wrong(WHOLE)),
    "seed": (lambda e, v, x: e.generate(PROMPT, seed=x), wrong(NONE, WHOLE)),
    "stop": (lambda e, v, x: e.generate(PROMPT, stop=x), wrong(*NOTHING)),
    "gauges": (lambda e, v, x: e.generate(PROMPT, gauges=x), wrong(*NOTHING)),
    "n_top": (lambda e, v, x: next(e.generate(PROMPT, n_top=x)), wrong(WHOLE)),
    "system": (lambda e, v, x: e.generate("a", system=x), wrong(NONE, TEXT, LIST, EMPTY)),
    "prompts": (lambda e, v, x: e.generate_many(x), wrong(*NOTHING)),
    "max_tokens of many": (lambda e, v, x: e.generate_many([PROMPT], max_tokens=x), wrong(WHOLE)),
    "stop of many": (lambda e, v, x: e.generate_many([PROMPT], stop=x), wrong(*NOTHING)),
    "sampler of many": (lambda e, v, x: e.generate_many([PROMPT], sampler=[x]), wrong()),
    "score": (lambda e, v, x: e.score(x), wrong(TEXT)),
    "given": (lambda e, v, x: e.score("ab", given=x), wrong(NONE, TEXT, LIST, EMPTY)),
    "pairs": (lambda e, v, x: e.score_many([x]), wrong()),
    "texts to score": (lambda e, v, x: e.score_many(x), wrong(*NOTHING)),
    "read": (lambda e, v, x: e.read(x), wrong(TEXT)),
    "read layers": (lambda e, v, x: e.read(PROMPT, layers=x), wrong(NONE)),
    "read layer": (lambda e, v, x: e.read(PROMPT, layers=[x]), wrong()),
    "read tokens": (lambda e, v, x: e.read(PROMPT, tokens=x), wrong(SLICE)),
    "pooling": (lambda e, v, x: e.read(PROMPT, pooling=x), wrong()),
    "append": (lambda e, v, x: e.sequence(PROMPT).append(x), wrong(LIST, EMPTY)),
    "rollback": (lambda e, v, x: e.sequence(PROMPT).rollback(x), wrong()),
    "reading layers": (lambda e, v, x: e.sequence(PROMPT).start_reading(x), wrong()),
    "reading begin": (
        lambda e, v, x: e.sequence(PROMPT).start_reading([1], begin=x),
        wrong(NONE, WHOLE),
    ),
    "reading end": (
        lambda e, v, x: e.sequence(PROMPT).start_reading([1], end=x),
        wrong(NONE, WHOLE),
    ),
    "sampler of a fork": (lambda e, v, x: e.sequence(PROMPT).fork(sampler=x), wrong(NONE)),
    "assigned mood": (lambda e, v, x: setattr(e.sequence(PROMPT), "steering", x), wrong()),
    "assigned gauges": (lambda e, v, x: setattr(e.sequence(PROMPT), "gauges", x), wrong(*NOTHING)),
    "n_threads": (lambda e, v, x: setattr(e, "n_threads", x), wrong(NONE, WHOLE)),
    "model": (lambda e, v, x: Engine(x), wrong()),
    "n_ctx": (lambda e, v, x: Engine(e.model, n_ctx=x), wrong()),
    "kv_type": (lambda e, v, x: Engine(e.model, kv_type=x), wrong()),
    "kv_unified": (lambda e, v, x: Engine(e.model, kv_unified=x), wrong()),
    "loaded model": (lambda e, v, x: Model.load(x), wrong()),
    "use_mmap": (lambda e, v, x: Model.load(e.model.path, use_mmap=x), wrong()),
    "tokenize": (lambda e, v, x: e.model.tokenize(x), wrong(TEXT, BYTES)),
    "detokenize": (lambda e, v, x: e.model.detokenize(x), wrong(LIST, EMPTY)),
    "messages": (lambda e, v, x: e.model.prompt_text(x), wrong(TEXT, *NOTHING)),
    "vector file": (lambda e, v, x: ControlVector.load(x), wrong()),
    "model of a vector": (lambda e, v, x: ControlVector.load("angry", model=x), wrong()),
    "directions": (lambda e, v, x: ControlVector(x), wrong()),
    "direction": (lambda e, v, x: ControlVector({1: x}), wrong()),
    "name": (lambda e, v, x: ControlVector({1: [1.0]}, name=x), wrong(TEXT)),
    "only_layers": (lambda e, v, x: v.only_layers(x), wrong()),
    "shifted": (lambda e, v, x: v.shifted(x), wrong(WHOLE)),
    "dose of a vector": (lambda e, v, x: v.dose(x), wrong()),
    "saved to": (lambda e, v, x: v.save(x), wrong()),
    "engine of a chat": (lambda e, v, x: Chat(x), wrong()),
    "system of a chat": (lambda e, v, x: Chat(e, system=x), wrong(NONE, TEXT)),
    "guard of a chat": (lambda e, v, x: Chat(e, guard=x).say("a"), wrong(NONE)),
    "said": (lambda e, v, x: Chat(e).say(x), wrong(TEXT)),
    "window": (lambda e, v, x: Guard(window=x), wrong()),
    "guard mode": (lambda e, v, x: Guard(mode=x), wrong()),
    "guarded many": (
        lambda e, v, x: Guard().generate_many(e, [PROMPT], max_tokens=x),
        wrong(WHOLE),
    ),
    "continued": (
        lambda e, v, x: continue_many(e, [Job((5, 6))], max_tokens=x, n_rows=1),
        wrong(WHOLE),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_is_a_named_error(new_engine: Callable[..., Engine], name: str) -> None:
    call, values = CALLS[name]
    engine = new_engine(n_ctx=128, n_seq_max=2)
    vector = random_vector(engine.model)
    for value in values:
        with pytest.raises(PyemoError) as refused:
            call(engine, vector, value)
        assert "\n" not in str(refused.value)
        traceback.clear_frames(refused.tb)
        del refused
    assert engine.generate(PROMPT, max_tokens=2).sequence.n_tokens == 3


@pytest.mark.parametrize(
    "strength", [decimal.Decimal("0.1"), fractions.Fraction(HUGE), np.array([0.1]), float("nan")]
)
def test_a_strength_that_is_no_number_is_refused(engine: Engine, strength: Any) -> None:
    with pytest.raises(InputError):
        Steering({random_vector(engine.model): strength})


@pytest.mark.parametrize("schedule", [lambda t: "x", lambda t: HUGE, lambda t: 1e300, lambda: 1])
def test_a_schedule_that_gives_no_number_is_named(engine: Engine, schedule: Any) -> None:
    mood = Steering({random_vector(engine.model): 0.1}, schedule=schedule)
    with pytest.raises(PyemoError):
        list(engine.generate(PROMPT, steering=mood, max_tokens=2))


def test_what_a_callers_own_code_raises_comes_through(engine: Engine) -> None:
    def on_reply(_index: int, _reply: object) -> None:
        int("not a number")

    with pytest.raises(ValueError, match="invalid literal") as raised:
        engine.generate_many([PROMPT], max_tokens=1, on_reply=on_reply)
    assert not isinstance(raised.value, PyemoError)


def test_a_missing_argument_is_named_with_its_function(engine: Engine) -> None:
    with pytest.raises(InputError, match=r"Engine\.generate .*'prompt'"):
        engine.generate()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda e, v: ControlVector.load("anger", model="tiny"),
            "model is 'tiny', a name or path.* pass engine.model, or Model.load",
        ),
        (lambda e, v: ControlVector.load("anger", model=e), "no loaded model; pass engine.model"),
        (lambda e, v: Gauge("angry"), r"'angry'; .*ControlVector\.load\('angry', model=engine\."),
        (lambda e, v: Steering({"angry": 0.1}), r"ControlVector\.load\('angry', model=engine\."),
        (lambda e, v: Steering({v: "0.02"}), "'0.02' is text, and a number is wanted"),
        (
            lambda e, v: e.generate("hi", temperature=1, top_k=3),
            r"no parameter 'temperature'; pass sampler=SamplerParams\(temperature=1, top_k=3\)",
        ),
        (
            lambda e, v: Chat(e, min_p=HUGE),
            r"Chat has no parameter 'min_p'; pass sampler=SamplerParams\(min_p=\.\.\.\)",
        ),
    ],
)
def test_a_likely_slip_is_told_the_next_step(
    engine: Engine, call: Callable[[Engine, ControlVector], object], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        call(engine, random_vector(engine.model))
