"""What the routes ask for: replies under moods, changed moods, and what there is to choose from.

Owns the engine, the scheduler, the vectors and the server's default mood. Knows nothing of HTTP;
its methods may block, and any thread may call them.
"""

from __future__ import annotations

import functools
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pyemo
from pyemo.engine.engine import Engine
from pyemo.engine.model import Model
from pyemo.engine.row import ReplyLimits
from pyemo.engine.scheduler import Scheduler
from pyemo.engine.sequence import Sequence as TokenSequence
from pyemo.engine.tickets import MakeReply, Request, Ticket, plain_reply
from pyemo.engine.tokens import Token
from pyemo.errors import ClosedError, InputError, PyemoError
from pyemo.guard import Guard, GuardedReply, GuardEvent
from pyemo.server import logit_bias
from pyemo.server.bodies import Asked
from pyemo.server.config import Preset, ServerConfig
from pyemo.server.moods import Applied, MoodDesk
from pyemo.server.refusals import Refusal, names_in, refusal_of
from pyemo.server.steering_field import TermSpec, Wanted, parsed, wanted
from pyemo.server.vectors import Shelf

MOST_SEED = 2**53
"""Seeds that are chosen are below it, so that every JSON reader keeps them whole."""


@dataclass
class Live:
    """One reply that was asked for, until its client has it.

    Attributes:
        id: of the completion.
        created: seconds of the epoch.
        asked: the request.
        model: the name it gave the model, or the model's own.
        source: where its mood was said; see :class:`Wanted`.
        moods: the one it began with, and those that followed.
        seeds: of each choice.
        tickets: the scheduler's, one for each choice.
        guarded: of each choice its reply, once it runs, if it is guarded.
    """

    id: str
    created: int
    asked: Asked
    model: str
    source: str
    moods: list[Applied]
    seeds: Sequence[int]
    is_guarded: bool
    n_tokens: int
    tickets: list[Ticket] = field(default_factory=list)
    guarded: dict[int, GuardedReply] = field(default_factory=dict)

    @property
    def applied(self) -> Applied:
        """The mood it has now."""
        return self.moods[-1]


class Service:
    """One model behind one scheduler.

    Args:
        config: what it is told.
    Attributes:
        is_broken: whether the scheduler takes no more requests.
    """

    def __init__(self, config: ServerConfig) -> None:
        """Open the model and the vectors.

        Raises:
            PyemoError: the model, a vector of a preset or of the default mood cannot be used.
        """
        self.config = config
        self.model = Model.load(config.model)
        folder = None if config.vectors is None else config.vectors.expanduser()
        others = config.allow_other_weights
        self.shelf = Shelf(self.model, folder, allow_other_weights=others)
        self.desk = MoodDesk(self.model, self.shelf, allow_other_weights=others)
        self.started = int(time.time())
        self.fingerprint = f"pyemo-{pyemo.__version__}-{self.model.file_sha256[:12]}"
        self.is_broken = False
        self._default = Wanted()
        self._presets: dict[str, tuple[Preset, Wanted]] = {}
        self._read_moods()
        n_ctx = config.n_ctx
        self.engine = Engine(
            self.model,
            n_ctx=n_ctx,
            n_seq_max=config.n_seq_max,
            n_threads=config.threads,
            n_batch=min(512, n_ctx),
            n_outputs_max=config.n_seq_max,
            kv_type=config.kv_type,
        )
        self.scheduler = Scheduler(
            self.engine,
            row_budget=config.row_budget,
            max_queue=config.max_queue,
            prompt_cache=config.prompt_cache,
        )
        self._lock = threading.Lock()
        self._live: dict[str, Live] = {}

    def close(self, *, drain_seconds: float = 0.0) -> None:
        """End the replies that have not ended within that time, and free the model."""
        self.scheduler.close(drain_seconds=drain_seconds)
        self.engine.close()

    # --- replies ---

    def begin(
        self,
        asked: Asked,
        header: str | None,
        prefix: str,
        *,
        on_token: Callable[[int, Token], None] | None,
        on_end: Callable[[int, Ticket], None],
        on_guard: Callable[[int, GuardEvent], None] | None = None,
    ) -> Live:
        """Put a request's replies into the scheduler's queue.

        Args:
            header: the value of ``X-Pyemo-Steering``; None without.
            prefix: of its id.
            on_token, on_end: see :meth:`Scheduler.submit_twins`.
            on_guard: called with each step of a guard, likewise.
        Raises:
            Refusal: what cannot be done, with the field that asks for it.
        """
        if not 1 <= asked.n <= self.engine.n_seq_max:
            raise Refusal(
                f"n = {asked.n}; this server writes 1 to {self.engine.n_seq_max} choices a request",
                code="invalid_value",
                param="n",
            )
        name, preset, suffix = self._model_named(asked.model)
        tokens = self._prompt_tokens(asked)
        room = max(1, self.engine.n_ctx_seq - len(tokens))
        n_tokens = asked.max_tokens or room
        found = wanted(asked.body, header, suffix)
        if found is None and preset is not None:
            found = self._presets[preset][1]._replace(source="model")
        if found is None:
            found = self._default
        applied = self._mood(found.terms, n_tokens, found.source)
        guard = next(
            (value for value in (asked.guard, found.guard) if value is not None), self.config.guard
        )
        stops_circles = asked.repetition_stop
        if stops_circles is None:
            stops_circles = self.config.repetition_stop
        sampler = replace(asked.sampler, logit_bias=logit_bias.by_id(asked.bias, self.model))
        if not asked.has_seed:
            sampler = replace(sampler, seed=secrets.randbelow(MOST_SEED))
        live = Live(
            id=prefix + uuid.uuid4().hex,
            created=int(time.time()),
            asked=asked,
            model=name,
            source=found.source,
            moods=[applied],
            seeds=[(sampler.seed + i) % 2**64 for i in range(asked.n)],
            is_guarded=guard,
            n_tokens=n_tokens,
        )
        try:
            gauges = self._gauges(asked)
            requests = [
                Request(
                    tokens,
                    ReplyLimits(n_tokens, asked.stop, asked.n_top, stops_circles, asked.ignore_eos),
                    steering=applied.steering,
                    sampler=replace(sampler, seed=seed),
                    gauges=gauges,
                    uses_cache=asked.uses_cache,
                    make_reply=_guarding(live, i, on_guard) if guard else plain_reply,
                )
                for i, seed in enumerate(live.seeds)
            ]
            live.tickets = self.scheduler.submit_twins(requests, on_token=on_token, on_end=on_end)
        except ClosedError as error:
            self.is_broken = True  # or it is about to end, which comes to the same
            raise refusal_of(error) from None
        except PyemoError as error:
            param = "messages" if asked.messages is not None else "prompt"
            raise refusal_of(error, param) from None
        with self._lock:
            self._live[live.id] = live
        return live

    def forget(self, live: Live) -> None:
        """Cancel its replies that run, and forget it."""
        with self._lock:
            self._live.pop(live.id, None)
        for ticket in live.tickets:
            if ticket.stop_reason is None:
                ticket.cancel()

    def steer(self, completion: str, value: Any) -> tuple[Live, int]:
        """Change the mood of a running reply; return it and the first token that the mood decides.

        Of several choices it is that of all that run.

        Raises:
            Refusal: no such reply, or it has ended; a mood that cannot be read or is not offered.
        """
        with self._lock:
            live = self._live.get(completion)
        if live is None:
            raise Refusal(
                f"no reply {completion[:80]!r} runs", status=404, code="unknown_completion"
            )
        specs = self._default.terms if value is None else parsed(value, "steering").terms
        applied = self._mood(specs, live.n_tokens, "body")
        live.moods.append(applied)  # before it acts, so that what acts is known
        steered = []
        for ticket in live.tickets:
            try:
                ticket.steer(applied.steering)
                steered.append(ticket)
            except ClosedError:
                continue
            except PyemoError as error:
                raise refusal_of(error, "steering") from None
        if not steered:
            raise Refusal(f"the reply {completion!r} has ended", status=409, code="ended")
        return live, len(steered[0].tokens)

    # --- the server's own mood ---

    @property
    def default(self) -> Applied:
        """The mood of requests that name none.

        Raises:
            Refusal: its vectors have gone.
        """
        return self._mood(self._default.terms, 1, "default")

    def set_default(self, terms: Sequence[TermSpec]) -> Applied:
        """Take that mood for requests that name none, from now on.

        Raises:
            Refusal: a term that is not offered or does not fit.
        """
        applied = self._mood(terms, 1, "body")
        self._default = Wanted(tuple(terms))
        return applied

    def reload(self) -> list[str]:
        """Look at the folder of vectors again; return the names that are offered."""
        return self.shelf.reload()

    # --- what there is ---

    def model_names(self) -> list[str]:
        """Return what requests may call the model: its names, then one for each preset."""
        names = [self.model.name, *self.config.alias]
        return [*names, *(f"{names[0]}:{preset}" for preset in self._presets)]

    def describe_vectors(self) -> list[dict[str, Any]]:
        """Return every vector that is offered, for JSON."""
        return [self.desk.describe(offer) for offer in self.shelf.offers()]

    # --- inside ---

    def _read_moods(self) -> None:
        """Read the default mood and the presets, so that a fault is said before the start."""
        try:
            if self.config.steering is not None:
                self._default = parsed(self.config.steering, "steering")._replace(source="default")
            self._mood(self._default.terms, 1, "default")
            for name, preset in self.config.presets.items():
                found = parsed(preset.steering, f"presets.{name}.steering")
                if preset.guard is not None:
                    found = found._replace(guard=preset.guard)
                self._mood(found.terms, 1, "model")
                self._presets[name] = (preset, found)
        except Refusal as refusal:
            raise InputError(refusal.message) from None

    def _model_named(self, name: str) -> tuple[str, str | None, str | None]:
        """Return the name to answer with, the preset, and the mood behind the model's name."""
        own = [self.model.name, *self.config.alias]
        if not name or name in own:
            return name or own[0], None, None
        for begin in sorted(own, key=len, reverse=True):
            if name.startswith(f"{begin}:"):
                rest = name[len(begin) + 1 :]
                return (name, rest, None) if rest in self._presets else (name, None, rest)
        raise Refusal(
            f"no model {name[:80]!r} here; there are: {names_in(self.model_names())}. A mood may "
            f"follow: {own[0]}:anger=0.02",
            status=404,
            code="model_not_found",
            param="model",
        )

    def _mood(self, terms: Sequence[TermSpec], n_tokens: int, source: str) -> Applied:
        param = {"header": "X-Pyemo-Steering", "metadata": "metadata", "model": "model"}
        try:
            return self.desk.mood(terms, n_tokens)
        except PyemoError as error:
            if source == "default":
                why = refusal_of(error).message
                raise Refusal(
                    f"the server's default mood cannot be used: {why}",
                    status=500,
                    code="default_mood",
                ) from None
            raise refusal_of(error, param.get(source, "steering")) from None

    def _gauges(self, asked: Asked) -> Any:
        try:
            return self.desk.gauges(asked.gauges)
        except PyemoError as error:
            raise refusal_of(error, "pyemo") from None

    def _prompt_tokens(self, asked: Asked) -> Sequence[int]:
        model = self.model
        try:
            if asked.messages is not None:
                switches = {} if asked.think is None else model.think_kwargs(asked.think)
                arguments = {**switches, **asked.template_kwargs}
                return model.prompt_tokens(asked.messages, chat_template_kwargs=arguments)
            if isinstance(asked.prompt, str):
                return model.prompt_tokens(asked.prompt, raw=True)
            assert asked.prompt is not None
            return asked.prompt
        except PyemoError as error:
            param = "prompt" if asked.messages is None else "messages"
            raise refusal_of(error, param) from None


def _guarding(
    live: Live, index: int, on_guard: Callable[[int, GuardEvent], None] | None
) -> MakeReply:
    on_event = None if on_guard is None else functools.partial(on_guard, index)

    def begin(sequence: TokenSequence, limits: ReplyLimits) -> GuardedReply:
        live.guarded[index] = Guard().begin(sequence, limits, on_event=on_event)
        return live.guarded[index]

    return begin
