"""``pyemo run --server``: the same command, answered by a running server.

Owns what the options are called in a request's body; the model, its vectors and the threads are the
server's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from pyemo import client
from pyemo.choices import CONSTANT
from pyemo.cli import output
from pyemo.cli.template_options import TemplateOptions
from pyemo.engine.sampling import SamplerParams
from pyemo.moods.grammar import parse_layers, parse_vector_spec
from pyemo.moods.options import MoodOptions

KEY = "PYEMO_API_KEY"
"""Name of the environment's variable with the server's key."""

_SERVER_S = {
    "threads": "--threads",
    "n_ctx": "--n-ctx",
    "kv_type": "--kv-type",
    "allow_other_weights": "--allow-other-weights",
    "guard_exact": "--guard-exact",
}
"""Options that are the server's to choose."""


_SAMPLER = ["temperature", "top_k", "top_p", "min_p", "repeat_penalty", "dry_multiplier", "seed",
            "stay_in_script", "scripts"]  # fmt: skip


@dataclass(frozen=True)
class RemoteRequest:
    """What to ask a server for, as it was typed.

    Attributes:
        model: None where none was typed: the server's own.
    """

    server: str
    prompt: str
    system: str | None
    raw: bool
    model: str | None
    max_tokens: int
    stop: tuple[str, ...]
    gauges: tuple[str, ...]
    sampler: SamplerParams
    mood: MoodOptions
    guard: bool
    template: TemplateOptions
    stop_repetition: bool = True

    def body(self, *, steered: bool = True) -> dict[str, Any]:
        """Return the request's body, without ``stream``."""
        body: dict[str, Any] = {
            "max_tokens": self.max_tokens,
            "stop": list(self.stop),
            "steering": {"terms": _terms(self.mood) if steered else []},
            "pyemo": {
                "gauges": list(self.gauges),
                "guard": self.guard,
                "repetition_stop": self.stop_repetition,
            },
            **{name: getattr(self.sampler, name) for name in _SAMPLER},
        }
        if self.sampler.grammar is not None:
            body["grammar"] = self.sampler.grammar.text
        if self.model is not None:
            body["model"] = self.model
        if self.raw:
            return {**body, "prompt": output.valid_text(self.prompt)}
        messages = [{"role": "user", "content": output.valid_text(self.prompt)}]
        if self.system is not None:
            messages.insert(0, {"role": "system", "content": self.system})
        arguments = dict(self.template.arguments)
        if self.template.think is not None:
            arguments.setdefault("enable_thinking", self.template.think)
        return {**body, "messages": messages, "chat_template_kwargs": arguments}

    def ask(self, *, steered: bool = True) -> RemoteReply:
        """Return the reply; nothing is asked before it is iterated."""
        path = client.TEXT if self.raw else client.CHAT
        body = self.body(steered=steered)
        return RemoteReply(client.stream(self.server, path, body, key=os.environ.get(KEY)))


class RemoteReply:
    """A reply that a server writes: an iterator of texts, and what it says at the end.

    Attributes:
        text: so far, thoughts included.
        said: what the last part says of the mood, the seed and why the reply ended.
    """

    def __init__(self, parts: Iterator[dict[str, Any]]) -> None:
        self._parts = parts
        self.text = ""
        self.said: dict[str, Any] = {}

    def __iter__(self) -> Iterator[str]:
        for part in self._parts:
            for choice in part["choices"]:
                delta = choice.get("delta", choice)
                text = (delta.get("reasoning_content") or "") + (
                    delta.get("content") or delta.get("text") or ""
                )
                self.text += text
                if choice["finish_reason"] is not None:
                    self.said = choice.get("pyemo", {})
                if text:
                    yield text

    def describe(self) -> dict[str, Any]:
        """Return it for JSON, read to its end."""
        for _ in self:
            pass
        return {"text": self.text, **self.said}


def refuse_what_is_the_server_s(context: click.Context, mood: MoodOptions) -> None:
    """Refuse options that do nothing here.

    Raises:
        click.UsageError: one of them was typed.
    """
    for name, option in _SERVER_S.items():
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(
                f"{option} is the server's to choose; leave it out with --server"
            )
    if mood.auto:
        raise click.UsageError("--strength auto looks into a model; it is not for --server")


def print_reply(request: RemoteRequest, as_json: bool) -> None:
    """Print the reply as it comes, or as one JSON object."""
    if as_json:
        output.print_json({**_head(request), **request.ask().describe()})
        return
    _stream(request.ask(), request.max_tokens)


def print_comparison(request: RemoteRequest, as_json: bool) -> None:
    """Print the unsteered and the steered reply, one after the other."""
    replies = {"unsteered": request.ask(steered=False), "steered": request.ask()}
    if as_json:
        told = {name: reply.describe() for name, reply in replies.items()}
        output.print_json({**_head(request), **told})
        return
    for name, reply in replies.items():
        click.secho(f"--- {name} ---", bold=True)
        _stream(reply, request.max_tokens)


def _head(request: RemoteRequest) -> dict[str, Any]:
    return {
        "prompt": output.valid_text(request.prompt),
        "system": request.system,
        "server": client.address(request.server),
    }


def _stream(reply: RemoteReply, max_tokens: int) -> None:
    output.stream(reply)
    if reply.said.get("stop_reason") == "length":
        output.note(output.cut_off(max_tokens))
    for note in reply.said.get("notes", ()):
        output.note(note)
    for name, value in reply.said.get("gauges", {}).items():
        output.note(f"{name} {value:+.3f}")
    if (guard := reply.said.get("guard", {})).get("steps_back"):
        steps, factor = guard["steps_back"], guard["factor"]
        output.note(f"guard: {steps} steps back; the strength is {factor:.0%} of what was given")


def _terms(mood: MoodOptions) -> list[dict[str, Any]]:
    """Return the mood's terms as a server reads them."""
    terms = []
    for text in mood.vectors:
        spec = parse_vector_spec(text, may_be_file=False)
        layers = spec.layers
        if layers is None and mood.layers is not None:
            layers = parse_layers(mood.layers)
        term: dict[str, Any] = {
            "name": spec.source,
            "strength": mood.strength if spec.strength is None else spec.strength,
            "layers": None if layers is None else [layers.start, layers.stop],
            "operator": spec.operator or mood.operator,
            "scope": mood.scope,
            "schedule": None if mood.schedule == CONSTANT else mood.schedule,
            "when": spec.when or None,
            "when_prompt": spec.when_prompt or None,
        }
        terms.append({key: value for key, value in term.items() if value is not None})
    return terms
