"""A call that is refused leaves the engine as it was, though somebody keeps the error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pyemo import Engine, PyemoError
from pyemo.guard import Guard

PROMPT = [5, 6, 7]


@pytest.mark.parametrize(
    "call",
    [
        lambda engine: engine.generate(PROMPT, stop=None),
        lambda engine: engine.generate(PROMPT, stop=5),
        lambda engine: engine.generate(PROMPT, max_tokens=0),
        lambda engine: engine.generate_many([PROMPT], max_tokens=0),
        lambda engine: engine.generate_many([PROMPT], stop=4),
        lambda engine: engine.generate_many([PROMPT], stop="x"),
        lambda engine: Guard().generate_many(engine, [PROMPT], max_tokens=0),
        lambda engine: Guard().generate_many(engine, [PROMPT], stop="abc"),
        lambda engine: Guard().generate(engine, PROMPT, stop=5),
    ],
    ids=[
        "generate-none",
        "generate-5",
        "generate-0",
        "many-0",
        "many-4",
        "many-x",
        "guard-many-0",
        "guard-many-abc",
        "guard-5",
    ],
)
def test_refused_reply_leaves_no_sequence(
    call: Callable[[Engine], Any], new_engine: Callable[..., Engine]
) -> None:
    engine = new_engine("llama", n_seq_max=1)
    with pytest.raises(PyemoError) as kept:
        call(engine)
    assert engine.native.n_free_sequences == 1
    assert kept.value.__traceback__ is not None


def test_refused_fork_leaves_no_sequence(new_engine: Callable[..., Engine]) -> None:
    engine = new_engine("llama", n_seq_max=2)
    with engine.sequence(PROMPT) as sequence:
        with pytest.raises(PyemoError) as kept:
            sequence.fork(sampler="x")  # type: ignore[arg-type]
        assert engine.native.n_free_sequences == 1
    assert kept.value.__traceback__ is not None
