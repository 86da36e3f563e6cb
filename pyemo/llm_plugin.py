"""The plug-in for Simon Willison's ``llm``: ``llm -m pyemo/smollm2-135m-instruct -o mood anger``.

Found by ``llm`` through pyemo's entry point, and loaded with each of its commands; what it needs of
the engine it imports when it runs. Knows what ``llm`` asks for; the work is the library's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any, cast

import click
import llm
from pydantic import Field

from pyemo.choices import CONSTANT, DEFAULT_MODEL, SCHEDULE_FORMS, SCOPE_FORMS
from pyemo.engine.sampling import STANDARD, SamplerParams

if TYPE_CHECKING:
    from pyemo.engine.engine import Engine
    from pyemo.engine.model import Model

MAX_TOKENS = 256

_KEPT = ("mood", "guard", "scope", "schedule", "model")
"""Options that a conversation keeps: ``llm -c`` itself forgets all of them."""

_MARK = "pyemo"
"""Where they are kept: in the provider's metadata of a reply, which come back with it."""


@llm.hookimpl
def register_models(register: Callable[..., None]) -> None:
    """Offer the models of the catalog as ``pyemo/NAME``, the default one as ``pyemo`` too."""
    from pyemo.files.catalog import catalog

    for name in catalog():
        register(PyemoModel(name), aliases=("pyemo",) if name == DEFAULT_MODEL else ())


@llm.hookimpl
def register_commands(cli: click.Group) -> None:
    """Add ``llm pyemo``."""
    cli.add_command(pyemo)


class PyemoModel(llm.Model):
    """One of pyemo's models, as ``llm`` calls it."""

    can_stream = True
    supports_schema = True

    class Options(llm.Options):
        """What ``-o NAME VALUE`` may say."""

        mood: str | None = Field(
            default=None,
            description="Vectors with strengths, such as 'anger=0.02' or 'anger + sad=0.01'; "
            "kept by a conversation, '' ends it",
        )
        guard: bool | None = Field(
            default=None, description="Keep the text coherent: go back and lower the strength"
        )
        scope: str | None = Field(default=None, description=f"Steered tokens: {SCOPE_FORMS}")
        schedule: str | None = Field(
            default=None, description=f"Strength over the reply: {SCHEDULE_FORMS}"
        )
        temperature: float | None = Field(
            default=None, description=f"0 is greedy; {STANDARD.temperature} if not given"
        )
        top_p: float | None = Field(
            default=None, description=f"Likeliest tokens up to this share; {STANDARD.top_p}"
        )
        top_k: int | None = Field(
            default=None, description=f"This many of the likeliest tokens; {STANDARD.top_k}"
        )
        min_p: float | None = Field(
            default=None, description=f"Least share of the likeliest one's; {STANDARD.min_p}"
        )
        seed: int | None = Field(
            default=None, description=f"Another seed, another text; {STANDARD.seed}"
        )
        max_tokens: int | None = Field(default=None, description=f"Of the reply; {MAX_TOKENS}")
        stop: str | list[str] | None = Field(
            default=None, description="Text that ends the reply, or a list of them"
        )
        model: str | None = Field(
            default=None,
            description="Another GGUF in this one's place: a path, or org/repo:Q4_K_M; kept too",
        )

    def __init__(self, name: str) -> None:
        self.model_id = f"pyemo/{name}"
        self._name = name
        self._opening = threading.Lock()
        self._model: Model | None = None
        self._loaded = ""  # the model's name, as it was asked for
        self._engine: Engine | None = None  # llm chat asks again in one process

    def execute(
        self,
        prompt: llm.Prompt,
        stream: bool,
        response: llm.Response,
        conversation: llm.Conversation | None = None,
    ) -> Iterator[Any]:
        """Yield the reply as it comes.

        Raises:
            PyemoError: what cannot be done, in words.
        """
        from llm.parts import StreamEvent

        from pyemo.compat.moods import terms_of
        from pyemo.guard import Guard
        from pyemo.moods.builder import steering_of, title_of

        options = cast("PyemoModel.Options", prompt.options)
        kept = _kept_options(prompt)
        mood = {
            name: kept.get(name) if getattr(options, name) is None else getattr(options, name)
            for name in _KEPT
        }
        max_tokens = MAX_TOKENS if options.max_tokens is None else options.max_tokens
        model = self._load(mood["model"] or self._name)
        tokens = _prompt_tokens(model, _messages(prompt))
        terms = terms_of(
            model,
            mood["mood"] or "",
            max_tokens,
            scope=mood["scope"] or "both",
            schedule=mood["schedule"] or CONSTANT,
        )
        settings: dict[str, Any] = {
            "steering": steering_of(terms),
            "max_tokens": max_tokens,
            "sampler": _sampler(options, prompt.schema),
            "stop": [options.stop] if isinstance(options.stop, str) else options.stop or (),
        }
        engine = self._open(model, len(tokens) + max_tokens)
        reply = (
            Guard().generate(engine, tokens, **settings)
            if mood["guard"]
            else engine.generate(tokens, **settings)
        )
        n_shown = 0
        with closing(reply):
            for token in reply:
                if token.text:
                    kind = "reasoning" if token.kind == "thinking" else "text"
                    yield StreamEvent(kind, token.text, provider_metadata={_MARK: mood})
                    n_shown += len(token.text)
        if rest := reply.text[n_shown:]:  # held back until the context was full
            yield StreamEvent("text", rest)
        response.set_usage(input=len(tokens), output=len(reply.tokens))
        response.response_json = {
            "steering": title_of(terms),
            **mood,
            "seed": settings["sampler"].seed,
            "stop_reason": reply.stop_reason,
            "notes": [note for term in terms for note in term.notes],
        }

    def _load(self, name: str) -> Model:
        from pyemo.engine.model import Model

        with self._opening:
            if self._model is None or self._loaded != name:
                self._model = self._engine = None  # one at a time
                self._model, self._loaded = Model.load(name), name
            return self._model

    def _open(self, model: Model, n_needed: int) -> Engine:
        """Return the engine of this process, opened anew where the context is to be larger."""
        from pyemo.cli.options import EngineOptions

        with self._opening:
            if self._engine is None or self._engine.n_ctx < min(n_needed, model.n_ctx_train):
                self._engine = EngineOptions(self._name, None, None, "f16").open(model, n_needed)
            return self._engine


def _sampler(options: llm.Options, schema: Any) -> SamplerParams:
    from dataclasses import replace

    from pyemo.engine.grammar import Grammar

    names = ("temperature", "top_p", "top_k", "min_p", "seed")
    given = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    grammar = None if schema is None else Grammar.of_json_schema(schema)
    return replace(STANDARD, grammar=grammar, **given)


def _messages(prompt: llm.Prompt) -> list[dict[str, str]]:
    """Return the whole conversation, this turn's prompt the last; thoughts are left out."""
    from llm.parts import TextPart

    messages = []
    for message in prompt.messages:
        texts = [part.text for part in message.parts if isinstance(part, TextPart)]
        messages.append({"role": message.role, "content": "\n".join(texts)})
    return messages


def _prompt_tokens(model: Model, messages: list[dict[str, str]]) -> list[int]:
    """Return the tokens that the reply starts from; a base model gets one text of all."""
    is_plain = model.chat_template is None and all(m["role"] != "system" for m in messages)
    if is_plain:
        return model.prompt_tokens("\n".join(message["content"] for message in messages))
    return model.prompt_tokens(messages)


def _kept_options(prompt: llm.Prompt) -> dict[str, Any]:
    """Return the mood that the conversation has from its last reply."""
    for message in reversed(prompt.messages):
        for part in message.parts:
            if found := (getattr(part, "provider_metadata", None) or {}).get(_MARK):
                return dict(found)
    return {}


@click.group()
def pyemo() -> None:
    """Steer small language models with emotion control vectors."""


@pyemo.command()
@click.option("--model", "-m", default=DEFAULT_MODEL, show_default=True, metavar="NAME")
def vectors(model: str) -> None:
    """List the vectors of a model: what -o mood may name, and how strong it should be."""
    from pyemo.engine.model import Model
    from pyemo.errors import PyemoError
    from pyemo.files.catalog import list_vectors
    from pyemo.vectors.control_vector import ControlVector

    try:
        loaded = Model.load(model.removeprefix("pyemo/"))
        for name in list_vectors(loaded.name):
            found = ControlVector.load(name, loaded).recommended(loaded)
            click.echo(f"{name:14} {found.strength:g} ({found.source})")
    except PyemoError as error:
        raise click.ClickException(str(error)) from None
