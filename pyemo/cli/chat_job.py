"""A chat in a terminal or a pipe: reads lines, obeys those with a slash, prints replies.

Owns the words of the commands and what is printed; :mod:`pyemo.chat` owns the conversation.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from pyemo.chat import Chat
from pyemo.cli import output
from pyemo.cli.guard_text import guard_lines
from pyemo.cli.meters import gauge_lines, gauge_means
from pyemo.cli.options import EngineOptions
from pyemo.cli.run_job import IN_CIRCLES, Answer
from pyemo.cli.script_text import script_lines
from pyemo.cli.template_options import TemplateOptions
from pyemo.engine.gauges import Gauge
from pyemo.engine.model import Model
from pyemo.engine.mood import OFF
from pyemo.engine.sampling import SamplerParams
from pyemo.errors import InputError, PyemoError
from pyemo.guard import Guard
from pyemo.moods.builder import (
    MoodBuilder,
    MoodTerm,
    describe_terms,
    dose_of,
    gauges_of,
    steering_of,
    system_line_of,
    title_of,
)
from pyemo.moods.grammar import parse_vector_spec
from pyemo.moods.options import MoodOptions

N_CTX = 2048
"""Tokens of context where nothing else is asked for."""

KEPT_MOOD = "what was said before keeps its mood; /refresh computes it anew"

HELP = """\
/mood anger=0.02 sad=0.01     steer from here on with these vectors, in place of the mood before
/mood                         show the mood
/mood off                     steer no more
/refresh                      compute the conversation again under the current mood
/reset                        forget the conversation; the mood stays
/gauges                       hide or show the gauges
                              a reading is what the model adds by itself;
                              the dose is what the steering puts in;
                              the largest reading, from 0.05 up, fills its bar
/help                         show these lines
/quit                         end; so does Ctrl-D. Ctrl-C stops a reply"""


@dataclass(frozen=True)
class Request:
    """What was asked for on the command line."""

    system: str | None
    max_tokens: int
    stop: tuple[str, ...]
    gauges: tuple[str, ...]
    sampler: SamplerParams
    engine: EngineOptions
    mood: MoodOptions
    guard: str | None = None
    template: TemplateOptions = field(default_factory=TemplateOptions)
    stop_repetition: bool = True
    has_line: bool = False

    @contextlib.contextmanager
    def open(self, as_json: bool) -> Iterator[ChatSession]:
        """Open the model and the chat; say what was chosen."""
        if self.mood.auto:
            raise InputError("--strength auto is for pyemo run; take the strength that it finds")
        with_lines = self.has_line and self.system is None
        builder = MoodBuilder(self.mood, self.max_tokens, with_lines=with_lines)
        model = self.engine.load_model()
        terms = builder.terms(model, builder.specs)
        gauges = builder.gauges(model, self.gauges)
        with (
            self.engine.open(model, N_CTX) as engine,
            Chat(
                engine,
                system=self.system,
                sampler=self.sampler,
                max_tokens=self.max_tokens,
                stop=self.stop,
                stop_repetition=self.stop_repetition,
                guard=Guard(mode=self.guard) if self.guard else None,  # type: ignore[arg-type]
                chat_template_kwargs=self.template.kwargs(model),
            ) as chat,
        ):
            if model.chat_template is None:
                output.note(
                    f"{model.name} has no chat template: it continues one text, in which each "
                    "message and each reply is a paragraph"
                )
            if self.has_line and not with_lines:
                output.note("--system is the system message; vectors bring none")
            session = ChatSession(chat, model, builder, gauges, as_json, with_lines)
            session.set_mood(terms)
            yield session


class ChatSession:
    """Reads lines until there are no more.

    Attributes:
        n_errors: lines that could not be answered or obeyed.
    """

    def __init__(
        self,
        chat: Chat,
        model: Model,
        builder: MoodBuilder,
        gauges: list[Gauge],
        as_json: bool,
        with_lines: bool,
    ) -> None:
        self.n_errors = 0
        self._with_lines = with_lines
        self._chat = chat
        self._model = model
        self._builder = builder
        self._extra_gauges = gauges
        self._as_json = as_json
        self._terms: list[MoodTerm] = []
        self._has_ended = False
        self._are_gauges_shown = True
        self._is_refresh_told = False
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "/mood": self._mood,
            "/refresh": self._refresh,
            "/reset": self._reset,
            "/gauges": self._gauges,
            "/help": lambda _words: output.message(HELP),
            "/quit": self._quit,
        }

    def run(self) -> None:
        """Answer lines of stdin until they end or ``/quit`` comes."""
        is_typed = sys.stdin.isatty()
        if is_typed:
            output.note(f"{self._model.name}; /help shows the commands, Ctrl-D ends")
        for line in _typed_lines() if is_typed else _piped_lines():
            self.take(line)
            if self._has_ended:
                return

    def take(self, line: str) -> None:
        """Answer or obey one line; an error is said and the chat goes on."""
        try:
            if line.startswith("/"):
                self._obey(line)
            elif line.strip():
                self._answer(line)
        except PyemoError as error:
            self.n_errors += 1
            output.say_error(error)

    def set_mood(self, terms: list[MoodTerm]) -> None:
        """Steer with ``terms`` from the next token on, and read their gauges."""
        gauges = {gauge.name: gauge for gauge in [*gauges_of(terms), *self._extra_gauges]}
        self._chat.steering = steering_of(terms) if terms else OFF
        self._chat.gauges = gauges.values()
        if self._with_lines:
            self._chat.system = system_line_of(terms)
        self._terms = terms
        for line in (line for term in terms for line in term.notes):
            output.note(line)

    # --- replies ---

    def _answer(self, user: str) -> None:
        n_dropped = self._chat.n_dropped_turns
        answer = Answer(self._chat.say(user))
        n_dropped = self._chat.n_dropped_turns - n_dropped
        if n_dropped:
            turns = "turn is" if n_dropped == 1 else f"{n_dropped} turns are"
            output.note(f"the context is full: the oldest {turns} left out, the rest is read again")
        was_interrupted = self._decode(answer)
        if self._as_json:
            described = self._describe(user, answer, n_dropped, was_interrupted)
            output.print_json(described, one_line=True)
        else:
            self._print_end(user, answer, was_interrupted)

    def _decode(self, answer: Answer) -> bool:
        """Decode the reply, shown as it comes unless for JSON; return whether Ctrl-C stopped it."""
        try:
            if self._as_json:
                answer.finish()
            elif self._are_gauges_live:
                from pyemo.cli.live import stream_with_gauges

                stream_with_gauges(answer)
            else:
                output.stream(answer.texts())
        except KeyboardInterrupt:
            return True
        return False

    @property
    def _are_gauges_live(self) -> bool:
        return bool(self._chat.gauges) and self._are_gauges_shown and output.is_terminal()

    def _print_end(self, user: str, answer: Answer, was_interrupted: bool) -> None:
        reply = answer.reply
        if was_interrupted:
            output.say()
            kept = "what came so far stays" if reply.tokens else "your line is taken back"
            output.note(f"stopped; {kept}")
        elif reply.stop_reason == "repetition":
            output.note(f"{IN_CIRCLES}; what repeats is not kept")
        elif reply.stop_reason == "context":
            output.note("stopped: the context is full; the next turn leaves out the oldest ones")
        elif reply.stop_reason == "length":
            output.note(output.cut_off(len(reply.tokens)))
        for line in guard_lines(reply):
            output.note(line)
        if self._terms:
            said = [text for turn in self._chat.turns[:-1] for text in (turn.user, turn.reply)]
            for line in script_lines(reply.text, user, *said):
                output.note(line)
        if self._are_gauges_shown:
            for line in gauge_lines(reply.tokens):
                output.note(line)

    def _describe(
        self, user: str, answer: Answer, n_dropped: int, was_interrupted: bool
    ) -> dict[str, Any]:
        n_layer = self._model.n_layer
        means = gauge_means(answer.reply.tokens)
        return {
            "user": output.valid_text(user),
            **answer.describe(),
            "was_interrupted": was_interrupted,
            "steering": {
                "terms": describe_terms(self._terms, n_layer),
                "dose": dose_of(self._chat.steering, n_layer),
            },
            "gauges": {name: mean._asdict() for name, mean in means.items()},
            "n_context_tokens": self._chat.sequence.n_tokens,
            "n_dropped_turns": n_dropped,
        }

    # --- commands ---

    def _obey(self, line: str) -> None:
        name, *words = line.split()
        if name not in self._commands:
            raise InputError(f"no command {name}; there are {', '.join(self._commands)}")
        if words and name != "/mood":
            raise InputError(f"{name} stands alone; /help shows the commands")
        self._commands[name](words)

    def _mood(self, words: list[str]) -> None:
        system = self._chat.system
        if words == ["off"]:
            self.set_mood([])
        elif words:
            specs = [parse_vector_spec(word) for word in words]
            self.set_mood(self._builder.terms(self._model, specs))
        dose = dose_of(self._chat.steering, self._model.n_layer)
        shown = f"; dose {dose:.1%} of the last layer's norm" if dose else ""
        # with another system message the whole conversation is read again, under the new mood
        keeps = bool(words) and bool(self._chat.turns) and self._chat.system == system
        old = "" if not keeps or self._is_refresh_told else f"; {KEPT_MOOD}"
        self._is_refresh_told = self._is_refresh_told or keeps
        output.note(f"mood: {title_of(self._terms)}{shown}{old}")

    def _refresh(self, _words: list[str]) -> None:
        self._chat.refresh()
        n_tokens = self._chat.sequence.n_tokens
        output.note(f"{n_tokens} tokens are read again under the current mood")

    def _reset(self, _words: list[str]) -> None:
        self._chat.reset()
        output.note("the conversation is forgotten")

    def _gauges(self, _words: list[str]) -> None:
        self._are_gauges_shown = not self._are_gauges_shown
        if self._are_gauges_shown and not self._chat.gauges:
            output.note("gauges are shown, but there are none: name a mood, or --gauge VECTOR")
        else:
            output.note(f"gauges are {'shown' if self._are_gauges_shown else 'hidden'}")

    def _quit(self, _words: list[str]) -> None:
        self._has_ended = True


def _piped_lines() -> Iterator[str]:
    """Yield the lines of stdin; any bytes survive."""
    for line in sys.stdin.buffer:
        yield line.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def _typed_lines() -> Iterator[str]:
    """Yield what is typed, with editing and history where Python has them."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401, input() uses it when it is there
    while True:
        try:
            yield input("> ")
        except KeyboardInterrupt:
            output.message("")
            output.note("Ctrl-D or /quit ends the chat")
        except EOFError:
            output.say()
            return
