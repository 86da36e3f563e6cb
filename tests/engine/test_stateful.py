"""Any calls in any order leave an engine that a plain list of tokens and moods describes.

Hypothesis makes the calls up: opened, extended, forked, taken back, refreshed, steered, drawn from,
closed, refused. The list says which tokens a sequence has and under which mood each was decoded;
a fresh sequence in another engine, which only goes forward, says what comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar

import pytest
from engines import error, open_engine, random_vector, tolerance
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)

from pyemo import Engine, Model, SamplerParams, Steering
from pyemo.engine.sequence import Sequence
from pyemo.errors import ClosedError, ContextFullError, InputError, SequenceLimitError

N_CTX, N_SEQ_MAX = 96, 3
GREEDY = SamplerParams(temperature=0)
MANY = 10**9

some_tokens = st.lists(st.integers(3, 200), min_size=1, max_size=20)
some_mood = st.integers(0, 2)


@dataclass
class Twin:
    """A sequence beside what must be true of it.

    Attributes:
        tokens: its tokens.
        moods: of each token that is decoded, the mood it was decoded under; the rest is pending.
        mood: of what is decoded next.
    """

    sequence: Sequence
    mood: int
    tokens: list[int] = field(default_factory=list)
    moods: list[int] = field(default_factory=list)
    is_closed: bool = False

    def decode(self) -> None:
        """Note that all that was pending is decoded."""
        self.moods += [self.mood] * (len(self.tokens) - len(self.moods))


class Calls(RuleBasedStateMachine):
    """The calls, each with what must come of it."""

    model: ClassVar[Model]
    settings_of_engine: ClassVar[dict[str, Any]]
    steerings: ClassVar[list[Steering]]
    reference: ClassVar[Engine]

    twins = Bundle("twins")

    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Twin] = []
        self.engine = self.new_engine()

    def new_engine(self) -> Engine:
        return open_engine(self.model, n_ctx=N_CTX, n_seq_max=N_SEQ_MAX, **self.settings_of_engine)

    def teardown(self) -> None:
        self.engine.close()

    # --- what must come next ---

    def expected(self, twin: Twin) -> Any:
        """Return the logits of a fresh sequence that has these tokens under these moods."""
        with self.reference.sequence() as fresh:
            at = 0
            for mood, group in groupby(twin.moods):
                n = len(list(group))
                fresh.steering = self.steerings[mood]
                fresh.append(twin.tokens[at : at + n])
                logits = fresh.logits()
                at += n
            return logits

    def has_room(self, n_more: int) -> bool:
        """Whether there surely is room for so many tokens, whatever is shared."""
        n = sum(len(twin.tokens) for twin in self.opened) + n_more
        most = max((len(twin.tokens) for twin in self.opened), default=0) + n_more
        return n <= N_CTX and most <= self.engine.n_ctx_seq

    # --- calls ---

    @rule(target=twins, tokens=some_tokens, mood=some_mood)
    def open(self, tokens: list[int], mood: int) -> Any:
        try:
            sequence = self.engine.sequence(tokens, steering=self.steerings[mood], sampler=GREEDY)
        except SequenceLimitError:
            assert len(self.opened) == N_SEQ_MAX
            return multiple()
        except ContextFullError:
            assert not self.has_room(len(tokens))
            return multiple()
        self.opened.append(Twin(sequence, mood, list(tokens)))
        return self.opened[-1]

    @rule(target=twins, twin=twins)
    def fork(self, twin: Twin) -> Any:
        if twin.is_closed:
            with pytest.raises(ClosedError):
                twin.sequence.fork()
            return multiple()
        try:
            sequence = twin.sequence.fork()
        except SequenceLimitError:
            assert len(self.opened) == N_SEQ_MAX
            return multiple()
        except ContextFullError:
            assert not self.has_room(len(twin.tokens))
            return multiple()
        self.opened.append(Twin(sequence, twin.mood, list(twin.tokens), list(twin.moods)))
        return self.opened[-1]

    @rule(twin=twins, tokens=some_tokens, is_reply=st.booleans())
    def append(self, twin: Twin, tokens: list[int], is_reply: bool) -> None:
        if twin.is_closed:
            with pytest.raises(ClosedError):
                twin.sequence.append(tokens)
            return
        try:
            twin.sequence.append(tokens, is_reply=is_reply)
        except ContextFullError:
            assert not self.has_room(len(tokens))
        else:
            twin.tokens += tokens

    @rule(twin=twins)
    def read_logits(self, twin: Twin) -> None:
        if twin.is_closed or not twin.tokens:
            with pytest.raises(ClosedError if twin.is_closed else InputError):
                twin.sequence.logits()
            return
        try:
            found = twin.sequence.logits()
        except ContextFullError:
            assert not self.has_room(0)
            return
        twin.decode()
        assert error(found, self.expected(twin)) < tolerance(self.model.architecture)

    @rule(twin=twins, n=st.integers(1, 4))
    def draw(self, twin: Twin, n: int) -> None:
        if twin.is_closed or not twin.tokens:
            with pytest.raises(ClosedError if twin.is_closed else InputError):
                next(twin.sequence.generate(max_tokens=n))
            return
        reply = twin.sequence.generate(max_tokens=n)
        try:
            for token in reply:
                twin.decode()
                twin.tokens.append(token.id)
        except ContextFullError:
            assert not self.has_room(n)
        assert reply.stop_reason != "context" or not self.has_room(1)

    @rule(twin=twins, tokens=some_tokens)
    def score_next(self, twin: Twin, tokens: list[int]) -> None:
        if twin.is_closed:
            with pytest.raises(ClosedError):
                twin.sequence.score_next(tokens)
            return
        try:
            found = twin.sequence.score_next(tokens)
        except ContextFullError:
            assert not self.has_room(len(tokens))
            return
        assert len(found) == len(tokens) - (not twin.tokens)
        twin.tokens += tokens[:-1]
        twin.decode()
        twin.tokens.append(tokens[-1])

    @rule(twin=twins, mood=some_mood)
    def steer(self, twin: Twin, mood: int) -> None:
        if twin.is_closed:
            with pytest.raises(ClosedError):
                twin.sequence.steering = self.steerings[mood]
            return
        twin.sequence.steering = self.steerings[mood]
        twin.mood = mood

    @rule(twin=twins, share=st.floats(0, 1))
    def take_back(self, twin: Twin, share: float) -> None:
        n = round(share * len(twin.tokens))
        if twin.is_closed:
            with pytest.raises(ClosedError):
                twin.sequence.rollback(n)
            return
        twin.sequence.rollback(n)
        del twin.tokens[len(twin.tokens) - n :]
        del twin.moods[len(twin.tokens) :]

    @rule(twin=twins)
    def refresh(self, twin: Twin) -> None:
        if twin.is_closed:
            with pytest.raises(ClosedError):
                twin.sequence.refresh()
            return
        twin.sequence.refresh()
        twin.moods.clear()

    @rule(twin=twins)
    def close(self, twin: Twin) -> None:
        twin.sequence.close()
        if not twin.is_closed:
            twin.is_closed = True
            self.opened.remove(twin)

    @rule(tokens=some_tokens, mood=some_mood)
    def score(self, tokens: list[int], mood: int) -> None:
        texts, steering = [(tokens, [7, 8])], self.steerings[mood]
        try:
            [found] = self.engine.score_many(texts, steering=steering)
        except (ContextFullError, SequenceLimitError):
            assert len(self.opened) == N_SEQ_MAX or not self.has_room(len(tokens) + 2)
            return
        [alone] = self.reference.score_many(texts, steering=steering)
        assert found.logprobs == pytest.approx(alone.logprobs, abs=1e-3)

    @rule(twin=twins)
    def ask_for_what_cannot_be(self, twin: Twin) -> None:
        if twin.is_closed:
            return
        sequence = twin.sequence
        wrong: list[tuple[type[Exception], Callable[[], object]]] = [
            (InputError, lambda: sequence.rollback(len(twin.tokens) + 1)),
            (InputError, lambda: sequence.append([MANY])),
            (InputError, lambda: sequence.append([5, MANY])),
            (ContextFullError, lambda: sequence.append([5] * (N_CTX + 1))),
            (InputError, lambda: sequence.score_next([5, MANY])),
            (InputError, lambda: sequence.generate(max_tokens=0)),
            (InputError, lambda: setattr(sequence, "steering", "angry")),
        ]
        for kind, call in wrong:
            with pytest.raises(kind):
                call()

    @rule(gate=st.integers(0, 9))
    def close_the_engine(self, gate: int) -> None:
        if gate:
            return
        self.engine.close()
        for twin in self.opened:
            with pytest.raises(ClosedError):
                twin.sequence.logits()
            twin.is_closed = True
        self.opened.clear()
        self.engine = self.new_engine()

    # --- what always holds ---

    @invariant()
    def every_sequence_has_its_tokens(self) -> None:
        for twin in self.opened:
            assert twin.sequence.tokens == twin.tokens

    @invariant()
    def what_is_free_is_what_is_not_held(self) -> None:
        assert self.engine.n_free_sequences == N_SEQ_MAX - len(self.opened)


@pytest.fixture(scope="module")
def calls(load: Callable[[str], Model]) -> Iterator[Callable[..., type[Calls]]]:
    """``calls(architecture, **settings)``: the machine over that tiny model in such engines."""
    with ExitStack() as opened:

        def calls(architecture: str, **engine_settings: Any) -> type[Calls]:
            model = load(architecture)

            class Chosen(Calls):
                settings_of_engine = engine_settings
                reference = opened.enter_context(open_engine(model, n_ctx=N_CTX, n_seq_max=1))
                steerings: ClassVar[list[Steering]] = [
                    Steering(),
                    Steering({random_vector(model, seed=1): 0.5}),
                    Steering({random_vector(model, seed=2, layers=[0]): -0.7}),
                ]

            Chosen.model = model
            return Chosen

        yield calls


@pytest.mark.parametrize(
    ("architecture", "kv_unified"),
    [("llama", True), ("llama", False), ("gemma3", True)],  # the last one has a sliding window
)
@pytest.mark.parametrize(
    ("n_examples", "n_steps"), [(30, 40), pytest.param(400, 80, marks=pytest.mark.quality)]
)
def test_any_calls_in_any_order_leave_what_a_plain_list_says(
    calls: Callable[..., type[Calls]],
    architecture: str,
    kv_unified: bool,
    n_examples: int,
    n_steps: int,
) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        calls(architecture, kv_unified=kv_unified),
        settings=settings(
            max_examples=n_examples,
            stateful_step_count=n_steps,
            deadline=None,
            derandomize=n_examples < 100,
            suppress_health_check=list(HealthCheck),
        ),
    )
