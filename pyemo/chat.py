"""A conversation over one sequence: what was said goes in, replies come out, the KV cache stays.

Owns which tokens a conversation consists of, and what goes when they no longer fit. Knows nothing
of terminals or files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as SequenceABC
from dataclasses import dataclass
from itertools import takewhile
from types import TracebackType
from typing import Any

from pyemo.engine.chat_template import plain_prompt
from pyemo.engine.contents import MarkedText
from pyemo.engine.engine import Engine
from pyemo.engine.gauges import Gauge
from pyemo.engine.messages import Message
from pyemo.engine.mood import OFF
from pyemo.engine.replies import Reply
from pyemo.engine.sampling import SamplerParams
from pyemo.engine.sequence import Sequence
from pyemo.engine.steering import Steering
from pyemo.errors import ContextFullError, InputError, all_calls_named
from pyemo.guard import Guard


@dataclass(frozen=True)
class Turn:
    """What was said to the model, and what it said.

    Attributes:
        user: the user's words.
        reply: the model's words, as far as they came; of a reply that went in circles, what stands
            before it repeats itself.
        tokens: the model's own tokens, an end-of-generation token included; they are kept as drawn.
        n_prompt_tokens: tokens that the turn's prompt took when it was said.
    """

    user: str
    reply: str
    tokens: tuple[int, ...]
    n_prompt_tokens: int


@dataclass(frozen=True)
class _Layout:
    """A conversation as tokens: prompts and replies in turn, up to where the next reply begins."""

    text: MarkedText
    pieces: tuple[tuple[tuple[int, ...], bool], ...]  # (tokens, is_reply)

    @property
    def n_tokens(self) -> int:
        return sum(len(tokens) for tokens, _ in self.pieces)

    @property
    def tokens(self) -> list[int]:
        return [token for tokens, _ in self.pieces for token in tokens]


@all_calls_named
class Chat:
    """A conversation that keeps its KV cache: only what is new is computed.

    ```
    with Engine() as engine, Chat(engine, steering=mood) as chat:
        for token in chat.say("How was your day?"):
            print(token.text, end="", flush=True)
        chat.steering = mood * 0.5        # from the next token on; chat.refresh() for all
        print("".join(token.text for token in chat.say("And then?")))
    ```

    The reply may be left at any token: what came so far is its turn's reply, and the next words go
    on from there; a turn without a token of reply is taken back. A model without a chat template (a
    base model) continues one text, in which each message and each reply is a paragraph.

    When prompt and reply no longer fit, whole oldest turns are left out, a quarter of the room at
    once, and what stays is computed again under the current mood; the system message always stays.
    ``n_dropped_turns`` counts them.

    Args:
        engine: a place for one sequence has to be free.
        system: a system message in front.
        steering: the mood; may be assigned between any two tokens.
        sampler: how tokens are drawn; None for ``STANDARD``: llama.cpp's defaults, but
            for temperature 0.3 and DRY.
        gauges: what to read at every token; may be assigned between any two tokens.
        max_tokens: of a reply; this much of the context is kept free for one, half of it at most.
        stop: strings that end a reply; they are not part of it.
        stop_repetition: end a reply that goes in circles. What it repeats does not stay in the
            conversation, where it would lead the next reply into the same circles.
        guard: keeps every reply out of collapse and explosion; None for none.
        chat_template_kwargs: variables of the chat template; see :meth:`Model.think_kwargs`.
    Raises:
        SequenceLimitError: no room left for another sequence.
        InputError: a system message for a model without a chat template; max_tokens below 1.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        system: str | None = None,
        steering: Steering = OFF,
        sampler: SamplerParams | None = None,
        gauges: Iterable[Gauge] = (),
        max_tokens: int = 256,
        stop: SequenceABC[str] = (),
        guard: Guard | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        stop_repetition: bool = True,
    ) -> None:
        self._model = engine.model
        self._has_template = self._model.chat_template is not None
        if not isinstance(max_tokens, int) or max_tokens < 1:
            raise InputError(
                f"max_tokens = {max_tokens!r}; it must be a whole number of at least 1"
            )
        self._system = self._checked_system(system)
        self._template_kwargs = chat_template_kwargs
        self._max_tokens = max_tokens
        self._stop = stop
        self._stop_repetition = stop_repetition
        self._guard = guard
        self._turns: list[Turn] = []
        self._layout: _Layout | None = None  # of all turns, without the last one's reply
        self._running: tuple[str, _Layout, Reply] | None = None
        self._n_dropped = 0
        self._sequence = engine.sequence(steering=steering, sampler=sampler, gauges=gauges)

    # --- life ---

    def close(self) -> None:
        """Free its place in the engine. May be called twice."""
        self._sequence.close()

    def __enter__(self) -> Chat:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # --- what it holds ---

    @property
    def sequence(self) -> Sequence:
        """The sequence that holds the conversation."""
        return self._sequence

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The turns that are still in the context, oldest first, the last one as far as it came."""
        running = self._running_turn()
        return (*self._turns, running) if running is not None else tuple(self._turns)

    @property
    def n_dropped_turns(self) -> int:
        """Turns that were left out so far, because the context was full."""
        return self._n_dropped

    @property
    def steering(self) -> Steering:
        """The mood. Assigning acts from the next token on; see :meth:`refresh`."""
        return self._sequence.steering

    @steering.setter
    def steering(self, steering: Steering) -> None:
        self._sequence.steering = steering

    @property
    def system(self) -> str | None:
        """The system message in front, None for none. Assigning acts from the next turn on, for
        which the conversation is read again.

        Raises:
            InputError: the model has no chat template.
        """
        return self._system

    @system.setter
    def system(self, system: str | None) -> None:
        checked = self._checked_system(system)
        if checked != self._system:
            self._settle()
            self._system, self._layout = checked, None

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """What is read at every token."""
        return self._sequence.gauges

    @gauges.setter
    def gauges(self, gauges: Iterable[Gauge]) -> None:
        self._sequence.gauges = tuple(gauges)

    # --- talking ---

    def say(self, user: str) -> Reply:
        """Return the reply to ``user``: an iterator of tokens, each decoded when asked for.

        Raises:
            ContextFullError: these words alone are longer than the context; the chat stays as it
                was.
            InputError: they are not text, or the model's chat template refuses them.
        """
        if not isinstance(user, str):
            raise InputError(f"not a text: {user!r}; say a string")
        self._settle()
        if self._layout is None:
            layout = self._laid_out(self._turns, user)
        else:
            layout = self._extended(self._layout, self._turns, user)
        if layout.n_tokens > self._room:
            layout = self._shortened(user)
        self._decode_from(layout)
        reply = self._begin_reply()
        self._running = (user, layout, reply)
        return reply

    def refresh(self) -> None:
        """Compute the whole conversation again under the current mood, with the next token."""
        self._sequence.refresh()

    def reset(self) -> None:
        """Forget all turns; system message, mood and gauges stay."""
        if self._running is not None:
            self._running[2].close()
        self._running = self._layout = None
        self._turns.clear()
        self._sequence.rollback(self._sequence.n_tokens)

    # --- inside ---

    def _checked_system(self, system: str | None) -> str | None:
        if system is not None and not self._has_template:
            raise InputError(
                f"{self._model.name} has no chat template and cannot take a system message; "
                "say it in the first turn"
            )
        if system is not None and not isinstance(system, str):
            raise InputError(f"system = {system!r}; it must be a text")
        return system

    def _begin_reply(self) -> Reply:
        """Begin the reply to what the sequence holds: the one place where replies are made."""
        limits: dict[str, Any] = {
            "max_tokens": self._max_tokens,
            "stop": self._stop,
            "stop_repetition": self._stop_repetition,
        }
        if self._guard is not None:
            return self._guard.reply(self._sequence, **limits)
        return self._sequence.generate(**limits)

    def _settle(self) -> None:
        """Make a turn of the reply that was begun, however it ended."""
        if self._running is not None:
            self._running[2].close()  # a guard gives back what it held and the mood it lowered
        turn = self._running_turn()
        if turn is not None and self._running is not None:
            self._turns.append(turn)
            self._layout = self._running[1]
        self._running = None

    def _running_turn(self) -> Turn | None:
        """Return the turn of the last reply as far as it came, None if it has no token yet."""
        if self._running is None:
            return None
        user, layout, reply = self._running
        n_kept = reply.n_sound  # a guard holds back what comes after
        tokens = tuple(self._sequence.tokens[layout.n_tokens : layout.n_tokens + n_kept])
        text = "".join(token.text for token in reply.tokens[:n_kept])
        return Turn(user, text, tokens, len(layout.pieces[-1][0])) if tokens else None

    @property
    def _room(self) -> int:
        """Tokens that prompts and past replies may take, so that a reply still fits."""
        return self._limit - min(self._max_tokens, self._limit // 2)

    @property
    def _limit(self) -> int:
        """Tokens that the sequence can have now, beside the engine's others."""
        return self._sequence.n_tokens + self._sequence.n_room

    def _shortened(self, user: str) -> _Layout:
        """Return the layout without the oldest turns, and forget these."""
        limit = self._limit
        goal = self._room * 3 // 4  # so that it is not to be done again at the next turn
        turns = list(self._turns)
        n_excess = self._extended(self._layout, turns, user).n_tokens - goal
        while turns and n_excess > 0:
            n_excess -= turns[0].n_prompt_tokens + len(turns.pop(0).tokens)
        layout = self._laid_out(turns, user)
        while turns and layout.n_tokens > goal:  # what stays of the first turn's prompt
            del turns[0]
            layout = self._laid_out(turns, user)
        if layout.n_tokens >= limit:
            raise ContextFullError(
                f"this message takes {layout.n_tokens} tokens, and there is room for {limit} with "
                "the reply; shorten it, close other sequences, or open the engine with a larger "
                "n_ctx (--n-ctx)"
            )
        self._n_dropped += len(self._turns) - len(turns)
        self._turns = turns
        self._sequence.rollback(self._sequence.n_tokens)
        return layout

    def _decode_from(self, layout: _Layout) -> None:
        """Make the sequence hold ``layout``; what it has of it already is not computed again."""
        wanted = layout.tokens
        held = self._sequence.tokens
        pairs = zip(held, wanted, strict=False)
        n_common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        self._sequence.rollback(len(held) - n_common)
        for tokens, is_reply in layout.pieces:
            self._sequence.append(tokens[n_common:], is_reply=is_reply)
            n_common = max(0, n_common - len(tokens))

    # --- from turns to tokens ---

    def _laid_out(self, turns: list[Turn], user: str) -> _Layout:
        """Return the layout of ``turns`` and ``user``, all made anew."""
        layout = None
        for n, said in enumerate([*(turn.user for turn in turns), user]):
            layout = self._extended(layout, turns[:n], said)
        assert layout is not None
        return layout

    def _extended(self, layout: _Layout | None, turns: list[Turn], user: str) -> _Layout:
        """Return ``layout``, which ends before the last turn's reply, with it and ``user``.

        The reply's tokens stay as they were drawn: written out and read again, the same words may
        be other tokens. Only where the template changes what it wrote before, as those do that
        leave out old thoughts, all is tokenized again.
        """
        text = self._text(turns, user)
        tail = None
        if layout is not None and turns:
            reply = self._marked_reply(turns[-1].reply, text.mark)
            tail = _tail(layout.text, reply, text)
        if layout is None or tail is None:
            return _Layout(text, ((self._tokens(text, is_first=True), False),))
        drawn, prompt = turns[-1].tokens, self._tokens(tail, is_first=False)
        if self._model.is_end(drawn[-1]):
            if prompt[:1] == drawn[-1:]:
                prompt = prompt[1:]  # the template ends a reply as the model did
            else:
                drawn = drawn[:-1]
        return _Layout(text, (*layout.pieces, (drawn, True), (prompt, False)))

    def _text(self, turns: list[Turn], user: str) -> MarkedText:
        if not self._has_template:
            said = (f"{plain_prompt(turn.user)}{turn.reply}\n\n" for turn in turns)
            return MarkedText("".join(said) + plain_prompt(user), "")
        messages: list[Message] = []
        if self._system is not None:
            messages.append({"role": "system", "content": self._system})
        for turn in turns:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.reply})
        messages.append({"role": "user", "content": user})
        return self._model.marked_prompt(messages, self._template_kwargs)

    def _marked_reply(self, reply: str, mark: str) -> str:
        contents = self._model.contents
        return contents.marked_text(reply, mark, is_own=True) if mark else reply

    def _tokens(self, text: MarkedText, *, is_first: bool) -> tuple[int, ...]:
        if self._has_template:  # it writes its own BOS where the model wants one
            return tuple(self._model.contents.tokens(*text))
        return tuple(self._model.tokenize(text.text, add_special=is_first, parse_special=True))

    def __repr__(self) -> str:
        return f"<Chat {len(self.turns)} turns, {self._sequence!r}>"


def _tail(before: MarkedText, reply: str, after: MarkedText) -> MarkedText | None:
    """Return what ``after`` has behind ``before`` and ``reply``; None if it does not begin so."""
    if before.mark != after.mark or not after.text.startswith(before.text):
        return None
    rest = after.text[len(before.text) :]
    # many templates strip what was said
    for words in (reply, reply.strip(), reply.rstrip(), reply.lstrip()):
        if rest.startswith(words):
            return MarkedText(rest[len(words) :], after.mark)
    return None
