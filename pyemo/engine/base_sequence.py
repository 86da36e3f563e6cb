"""What a sequence holds, and how it goes back and sideways: tokens, cells, mood, sampler, gauges.

Says what acts on rows that are not decoded yet; those that are keep the mood they had. Knows
nothing of who draws its tokens: ``rows``, and ``sequence`` for its users.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from collections.abc import Sequence as SequenceABC
from types import TracebackType
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from pyemo import _core
from pyemo.engine.base_engine import BaseEngine
from pyemo.engine.forks import is_forked
from pyemo.engine.gauges import Gauge
from pyemo.engine.mood import OFF, NativeSpans, native_gauge
from pyemo.engine.prompt_rules import (
    Decision,
    Decisions,
    decide,
    last_prompt,
    layers_of,
    prompt_rules,
)
from pyemo.engine.rules import Rule
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.scopes import OF_REPLY_PARTS, Kind, Segments
from pyemo.engine.scripts import script_numbers
from pyemo.engine.steering import Steering
from pyemo.engine.thoughts import Thoughts
from pyemo.engine.tokens import token_ids, whole
from pyemo.errors import ClosedError, InputError, all_calls_named

if TYPE_CHECKING:
    from typing_extensions import Self

    from pyemo.engine.model import Model

Pooling: TypeAlias = Literal["mean", "last", "all"]


@all_calls_named
class BaseSequence:
    """What :class:`pyemo.Sequence` is without its replies."""

    def __init__(
        self,
        engine: BaseEngine,
        tokens: SequenceABC[int],
        steering: Steering,
        sampler: SamplerParams,
        gauges: tuple[Gauge, ...],
    ) -> None:
        """Use :meth:`Engine.sequence`."""
        self._engine = engine
        self._sampler = sampler
        self._steering = OFF
        self._segments: Segments = []
        self._thoughts: list[tuple[int, Thoughts]] = []  # (tokens, where the reply is after them)
        self._decisions: Decisions = {}
        self._kept = 0  # positions before it keep their mood, though the last may be pending
        self._gauges: tuple[Gauge, ...] = ()
        self._reading: tuple[list[int], Pooling] = ([], "mean")
        self._id: int | None = engine.native.add_sequence(_native_sampler(sampler, engine.model))
        try:
            self.append(tokens)
            self.steering = steering
            self.gauges = gauges
        except BaseException:
            self.close()
            raise

    # --- life ---

    def close(self) -> None:
        """Free its place in the engine. May be called twice, and after the engine was closed."""
        seq, self._id = self._id, None
        if seq is not None and self._engine._core is not None and not is_forked():
            self._engine._core.remove(seq)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_id", None) is not None:
            self.close()

    @property
    def id(self) -> int:
        """Its number in the engine.

        Raises:
            ClosedError: the sequence was closed.
        """
        if self._id is None:
            raise ClosedError("the sequence is closed; make a new one: engine.sequence(...)")
        return self._id

    @property
    def _native(self) -> _core.Engine:
        _ = self.id
        return self._engine.native

    # --- what it holds ---

    @property
    def engine(self) -> BaseEngine:
        """The engine it belongs to."""
        return self._engine

    @property
    def tokens(self) -> list[int]:
        """All token ids, prompts and replies."""
        return self._native.tokens(self.id)

    @property
    def n_tokens(self) -> int:
        """Number of tokens, prompts and replies."""
        return self._native.n_tokens(self.id)

    @property
    def n_pending(self) -> int:
        """Tokens that are not decoded yet."""
        return self._native.n_pending(self.id)

    @property
    def n_room(self) -> int:
        """Tokens that it can still take, beside the engine's other sequences."""
        return self._native.n_room(self.id)

    @property
    def is_full(self) -> bool:
        """Whether it has as many tokens as a sequence of this engine can have."""
        return self.n_tokens >= self._native.n_ctx_seq

    def segment_at(self, position: int) -> tuple[int, Kind]:
        """Return what the token at ``position`` belongs to, and where that begins."""
        return next(s for s in reversed(self._segments) if s[0] <= position)

    @property
    def steering(self) -> Steering:
        """Its mood. Assigning acts from the next token decoded on."""
        return self._steering

    @steering.setter
    def steering(self, steering: Steering) -> None:
        if not isinstance(steering, Steering):
            raise InputError(f"not a Steering: {steering!r}; write Steering({{vector: 0.02}})")
        with self._engine.turns:
            self._set_spans(steering, self.n_tokens)
            self._steering = steering

    @property
    def sampler(self) -> SamplerParams:
        """How its tokens are drawn. May be assigned between any two tokens."""
        return self._sampler

    @sampler.setter
    def sampler(self, sampler: SamplerParams) -> None:
        self._native.set_sampler(self.id, _native_sampler(sampler, self._engine.model))
        self._sampler = sampler

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """What is read at every token. May be assigned between any two tokens."""
        return self._gauges

    @gauges.setter
    def gauges(self, gauges: Iterable[Gauge]) -> None:
        chosen = tuple(gauges)
        if wrong := [gauge for gauge in chosen if not isinstance(gauge, Gauge)]:
            raise InputError(f"not a Gauge: {wrong[0]!r}; write Gauge(vector)")
        self._native.set_gauges(self.id, [native_gauge(gauge) for gauge in chosen])
        self._gauges = chosen

    # --- tokens in ---

    def append(self, tokens: SequenceABC[int], *, is_reply: bool = False) -> None:
        """Add tokens at the end; they are decoded with the next step.

        Args:
            is_reply: count them as the model's own words, for the steering's scope and schedule:
                the row before them decides the first.
        Raises:
            ContextFullError: more tokens than the context holds.
            InputError: a token id outside the vocabulary.
        """
        ids = token_ids(tokens)
        if not ids:
            return
        with self._engine.turns:
            n = self.n_tokens
            try:
                self._native.append(self.id, ids)
                self._begin_segment(n, "answer" if is_reply else "prompt")
                self._apply_mood()  # where prompt and reply begin and end is known now
            except BaseException:
                self.cut_to(n)
                raise

    # --- what comes next ---

    def logits(self) -> npt.NDArray[np.float32]:
        """Decode what is pending; return the last token's logits, float32 (n_vocab,), a copy."""
        self.update_schedule()
        with self._engine.turns:
            settle([self])
            return self._native.logits(self.id)

    def score_next(
        self, tokens: SequenceABC[int], *, is_reply: bool = True
    ) -> npt.NDArray[np.float32]:
        """Append ``tokens`` and return how likely each was, under the current mood.

        Many tokens cost one decode; their chunks are those of ``n_outputs_max`` rows.

        Args:
            is_reply: see :meth:`append`.
        Returns:
            float32 (n_tokens,), natural log-probability of each given all before it; one fewer for
            a sequence that was empty.
        Raises:
            ContextFullError: more tokens than the context holds; none is appended then.
            DecodeAbortedError: logits that are not finite.
        """
        ids = token_ids(tokens)
        with self._engine.turns:
            settle([self])
            n, segments = self.n_tokens, list(self._segments)
            try:
                self._begin_segment(n, "answer" if is_reply else "prompt")
                self._set_spans(self._steering, n + len(ids))
                return self._native.score_next(self.id, ids)
            except BaseException:
                self.cut_to(n)
                self._segments = segments
                raise

    # --- going back and sideways ---

    def __copy__(self) -> Self:
        raise InputError("a sequence is not copied, it is forked: twin = sequence.fork()")

    def __deepcopy__(self, memo: object) -> Self:
        return self.__copy__()

    def __reduce__(self) -> str:
        raise InputError(
            "a sequence lives in its engine and cannot be pickled; send its tokens and make it anew"
        )

    def fork(self, *, sampler: SamplerParams | None = None) -> Self:
        """Return a twin with the same past, mood and gauges; the past is shared, not copied.

        The twin draws the same tokens as long as both are steered alike; give it another
        ``sampler`` for another draw. Readings that were started are not taken over.

        Raises:
            SequenceLimitError: n_seq_max sequences are open.
        """
        twin = object.__new__(type(self))
        twin._id = None
        twin._engine = self._engine
        twin._sampler = self._sampler
        twin._steering = self._steering
        twin._segments = list(self._segments)
        twin._thoughts = list(self._thoughts)
        twin._decisions = dict(self._decisions)
        twin._kept = self._kept
        twin._gauges = self._gauges
        twin._reading = ([], "mean")
        twin._id = self._native.fork(self.id)
        if sampler is not None:
            try:
                twin.sampler = sampler
            except BaseException:
                twin.close()
                raise
        return twin

    def rollback(self, n_tokens: int) -> None:
        """Take the last ``n_tokens`` tokens off, as if they had never been.

        The tokens that stay keep the mood they were decoded under. Where llama.cpp cannot go back
        that far (a sliding window that has moved on, a recurrent model) they are computed again.

        Raises:
            InputError: fewer tokens than that, or a negative number.
        """
        n = self.n_tokens - whole("n_tokens", n_tokens)
        if n_tokens < 0 or n < 0:
            raise InputError(f"cannot take {n_tokens} tokens off a sequence of {n + n_tokens}")
        with self._engine.turns:
            n_decoded = self.n_tokens - self.n_pending
            self._native.rollback(self.id, n)
            self._segments = [segment for segment in self._segments if segment[0] < n]
            self._thoughts = [state for state in self._thoughts if state[0] <= n]
            self._decisions = {at: what for at, what in self._decisions.items() if at[0].end <= n}
            self._kept = min(n, max(self._kept, n_decoded))
            # What comes next may be a prompt where a reply was, or the other way round.
            self._apply_mood()

    def cut_to(self, n_tokens: int) -> None:
        """Take off what an interrupted call has added behind its first ``n_tokens`` tokens.

        For the modules of pyemo: a signal may arrive after the engine's work and before its result
        is taken. Then the call never was. A closed sequence holds nothing.
        """
        with contextlib.suppress(ClosedError):
            n = self.n_tokens
            if n > n_tokens:
                self.rollback(n - n_tokens)

    def refresh(self) -> None:
        """Compute the KV cache again under the current mood; costs one prefill at the next step."""
        with self._engine.turns:
            self._kept = 0
            self._compute_again(0)

    def drop_cells(self) -> None:
        """Give the cells back; the next step computes all tokens again, each under its own mood."""
        with self._engine.turns:
            self._kept = max(self._kept, self.n_tokens - self.n_pending)
            self._native.drop_cells(self.id)

    def restart(
        self,
        tokens: SequenceABC[int],
        steering: Steering,
        sampler: SamplerParams,
        gauges: tuple[Gauge, ...],
    ) -> None:
        """Become what a new sequence with these would be, and keep what was decoded alike.

        Raises:
            as :meth:`Engine.sequence`; it is then to be closed.
        """
        with self._engine.turns:
            n = self.n_common(tokens, steering)
            self._native.rollback(self.id, n, is_followed=n < len(tokens))
            self._native.stop_reading(self.id)
            self._segments = [(0, "prompt")] if n else []
            self._thoughts, self._kept, self._steering = [], 0, OFF
            self._decisions = {}
            self.sampler = sampler
            self.append(tokens[n:])
            self.steering = steering
            self.gauges = gauges

    def n_common(self, tokens: SequenceABC[int], steering: Steering) -> int:
        """Return how many first tokens :meth:`restart` would keep: the same, decoded alike.

        Alike is what acts on a row, number by number, wherever it comes from: a vector that was
        loaded anew from a file that changed is another one.
        """
        segments: Segments = [(0, "prompt")]
        spans = self._engine.moods.spans(steering, segments, 0, len(tokens), decisions={})
        return self._native.n_common(self.id, token_ids(tokens), spans)

    # --- reading while it runs ---

    def start_reading(
        self,
        layers: Iterable[int],
        *,
        pooling: Pooling = "mean",
        begin: int | None = None,
        end: int | None = None,
    ) -> None:
        """Collect hidden states of coming tokens as they are decoded anyway.

        Args:
            layers: which blocks' outputs.
            pooling: see :meth:`Engine.read_many`.
            begin, end: positions in the sequence; begin is not decoded yet. None: from now, to the
                end.
        """
        first = self.n_tokens - self.n_pending if begin is None else whole("begin", begin, 0)
        last = 2**31 - 1 if end is None else whole("end", end, first + 1)
        chosen = [whole("layer", layer) for layer in layers]
        self._native.start_reading(self.id, chosen, native_pooling(pooling), first, last)
        self._reading = (chosen, pooling)

    def reading(self) -> tuple[int, npt.NDArray[np.float32]]:
        """Return (positions read so far, pooled hidden states); see :meth:`Engine.read_many`.

        Raises:
            InputError: reading was not started.
        """
        count, flat = self._native.reading(self.id)
        layers, pooling = self._reading
        shape = (len(layers), self._engine.model.n_embd)
        return count, flat.reshape((-1, *shape) if pooling == "all" else shape)

    def stop_reading(self) -> None:
        """Forget what was read."""
        self._native.stop_reading(self.id)
        self._reading = ([], "mean")

    # --- rules that a prompt decides ---

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """What the last prompt decided for the rules of the mood; empty before it is computed.

        It can still be asked when the sequence is closed.
        """
        prompt = last_prompt(self._segments, 0 if self._is_in_reply() else self.n_tokens)
        keys = [(prompt, rule) for rule in prompt_rules(self._steering) if prompt is not None]
        return tuple(self._decisions[key] for key in keys if key in self._decisions)

    def undecided(self) -> tuple[Rule, ...]:
        """Return the rules that the last prompt is to decide; none once its reply is computed."""
        rules = prompt_rules(self._steering)
        prompt = last_prompt(self._segments, self.n_tokens) if rules else None
        if prompt is None or self.n_tokens - self.n_pending > prompt.end:
            return ()
        return tuple(rule for rule in rules if (prompt, rule) not in self._decisions)

    def start_deciding(self) -> int:
        """Read the last prompt when it is computed; return the first position that will be.

        Raises:
            InputError: the sequence is being read already.
        """
        if self._reading[0]:
            raise InputError(
                "a sequence that is being read cannot decide a rule on its prompt; stop the "
                "reading, or give the mood without the rule"
            )
        prompt = last_prompt(self._segments, self.n_tokens)
        assert prompt is not None
        begin = self.n_tokens - self.n_pending
        if begin > prompt.begin:
            begin = prompt.begin
            self._kept = min(self._kept, begin)
            self._compute_again(begin)
        layers = layers_of(self.undecided())
        pooling = native_pooling("mean")
        self._native.start_reading(self.id, layers, pooling, prompt.read_begin, prompt.end)
        return begin

    def finish_deciding(self, begin: int) -> None:
        """Decide by what was read; where a rule holds, compute again from ``begin`` on under it."""
        prompt = last_prompt(self._segments, self.n_tokens)
        assert prompt is not None
        rules = self.undecided()
        layers = layers_of(rules)
        _, flat = self._native.reading(self.id)
        means = dict(zip(layers, flat.reshape(len(layers), -1), strict=True))
        found = {(prompt, rule): decide(rule, means) for rule in rules}
        self._decisions.update(found)
        if any(decision.holds for decision in found.values()):
            self._compute_again(max(begin, self._kept))

    # --- inside ---

    def _begin_segment(self, n: int, kind: Kind) -> None:
        if not self._segments or self._segments[-1][1] != kind:
            self._segments.append((n, kind))

    def _set_spans(self, steering: Steering, n_tokens: int) -> None:
        """Tell the core what acts on rows that are not decoded yet, up to ``n_tokens`` and on."""
        begin = max(self.n_tokens - self.n_pending, self._kept)
        self._native.set_spans(self.id, self._spans(steering, begin, n_tokens))

    def _spans(self, steering: Steering, begin: int, n_tokens: int) -> NativeSpans:
        next_kind: Kind = "answer"
        if _tells_thoughts(steering) and not self._is_in_reply():
            state = self._engine.model.thoughts_after(self.tokens)
            next_kind = "answer" if state is None else state.kind
        return self._engine.moods.spans(
            steering,
            self._segments,
            begin,
            n_tokens,
            next_kind=next_kind,
            decisions=self._decisions,
        )

    def _compute_again(self, begin: int) -> None:
        """Drop what was computed from position ``begin`` on; it is pending under the mood."""
        spans = self._spans(self._steering, begin, self.n_tokens)
        self._native.refresh(self.id, spans, begin)

    def _is_in_reply(self) -> bool:
        return bool(self._segments) and self._segments[-1][1] != "prompt"

    def note_drawn(self, token: int) -> None:
        """Say what the last token, which was drawn, belongs to, and what the next one will."""
        model, in_reply = self._engine.model, self._is_in_reply()
        if model.thought_tags is None:
            if not in_reply:
                self._begin_segment(self.n_tokens - 1, "answer")
            return
        n = self.n_tokens
        state = self._thoughts[-1][1] if self._thoughts and in_reply else None
        if state is None:
            state = model.thoughts_after(self.tokens[:-1])
            assert state is not None
        text = model.native.piece(token, special=True).decode("utf-8", "replace")
        kind, after = state.after(text, is_special=model.contents.is_guarded(token))
        self._begin_segment(n - 1, kind)
        self._begin_segment(n, after.kind)
        self._thoughts.append((n, after))
        if _tells_thoughts(self._steering):
            self._apply_mood()  # the last token's row decides the next

    def _apply_mood(self) -> None:
        # A schedule is asked before every decode, and only then.
        if not self._steering.is_scheduled:
            self.steering = self._steering

    def update_grammar(self) -> None:
        """Say where the answer begins that the sampler's grammar rules; before every decode."""
        if self._sampler.grammar is not None:
            self._native.set_grammar_begin(self.id, self._answer_begin())

    def _answer_begin(self) -> int:
        """Return where the answer that is being written begins; -1 while the model thinks."""
        n = self.n_tokens
        begin, kind = self._segments[-1] if self._segments else (n, "answer")
        if kind == "prompt":
            state = self._engine.model.thoughts_after(self.tokens)
            begin, kind = n, "answer" if state is None else state.kind
        return begin if kind == "answer" else -1

    def update_schedule(self) -> None:
        if self._steering.is_scheduled:
            self.steering = self._steering

    def __repr__(self) -> str:
        if self._id is None:
            return f"<{type(self).__name__} closed>"
        return f"<{type(self).__name__} {self._id}, {self.n_tokens} tokens, {self._steering!r}>"


def settle(sequences: SequenceABC[BaseSequence]) -> None:
    """Let prompts decide the rules that wait for them, all in one decode of what is pending.

    A rule that does not hold costs nothing: what was computed is what the next step needs. Where
    one holds the prompt is computed once more, under the terms that then act.
    """
    waiting = [sequence for sequence in sequences if sequence.undecided()]
    if not waiting:
        return
    engine = waiting[0].engine
    with engine.turns:
        begins = [sequence.start_deciding() for sequence in waiting]
        try:
            engine.native.forward([sequence.id for sequence in sequences])
            for sequence, begin in zip(waiting, begins, strict=True):
                sequence.finish_deciding(begin)
        finally:
            for sequence in waiting:
                sequence.stop_reading()


def _tells_thoughts(steering: Steering) -> bool:
    return any(term.scope in OF_REPLY_PARTS for term in steering.terms)


def native_pooling(pooling: Pooling) -> _core.Pooling:
    """Return the native value.

    Raises:
        InputError: no such pooling.
    """
    if pooling not in get_args(Pooling):
        raise InputError(f"pooling {pooling!r} is unknown; use {', '.join(get_args(Pooling))}")
    return _core.Pooling[pooling]


def _native_sampler(sampler: SamplerParams, model: Model) -> _core.SamplerParams:
    if not isinstance(sampler, SamplerParams):
        raise InputError(f"not a SamplerParams: {sampler!r}; write SamplerParams(temperature=0)")
    return _core.SamplerParams(
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
        min_p=sampler.min_p,
        repeat_penalty=sampler.repeat_penalty,
        repeat_last_n=sampler.repeat_last_n,
        seed=sampler.seed,
        dry_multiplier=sampler.dry_multiplier,
        dry_base=sampler.dry_base,
        dry_allowed_length=sampler.dry_allowed_length,
        dry_last_n=sampler.dry_last_n,
        frequency_penalty=sampler.frequency_penalty,
        presence_penalty=sampler.presence_penalty,
        scripts=model.scripts if sampler.stay_in_script else None,
        more_scripts=script_numbers(sampler.scripts),
        grammar=None if sampler.grammar is None else sampler.grammar.native,
        logit_bias=sampler.logit_bias,
    )
