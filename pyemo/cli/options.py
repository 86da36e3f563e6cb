"""Options that several commands share, gathered into one value each.

A decorator such as :func:`sampler_options` adds its options to a command and hands the command one
argument in their place. The words and defaults are those of the library; a test compares them.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pyemo.choices import (
    CONSTANT,
    DEFAULT_KV_TYPE,
    DEFAULT_MODEL,
    GUARD_WINDOW,
    KV_TYPES,
    OPERATORS,
    SCHEDULE_FORMS,
    SCOPE_FORMS,
    KVType,
    Operator,
    Scope,
)
from pyemo.cli import DEBUG
from pyemo.engine.sampling import STANDARD, SamplerParams
from pyemo.engine.scopes import check_scope
from pyemo.errors import InputError
from pyemo.moods.options import AUTO, MoodOptions

if TYPE_CHECKING:
    from pyemo.engine.engine import Engine
    from pyemo.engine.model import Model
    from pyemo.engine.threads import Threads

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True)
class EngineOptions:
    """Which model to open, and how."""

    model: str
    threads: Threads
    n_ctx: int | None
    kv_type: KVType

    def load_model(self) -> Model:
        """Return the model; see :meth:`pyemo.Model.load`."""
        from pyemo.engine.model import Model

        return Model.load(self.model)

    def open(self, model: Model, n_needed: int, *, n_batch: int = 256) -> Engine:
        """Return an engine for one sequence of ``n_needed`` tokens, or as ``--n-ctx`` says.

        It has logits for one row at a time: enough to generate, and a small buffer.
        """
        from pyemo.engine.engine import Engine

        n_ctx = self.n_ctx
        if n_ctx is None:
            # In steps, so that texts of about the same length get the same context.
            n_ctx = min(-(-n_needed // 256) * 256, model.n_ctx_train)
        return Engine(
            model,
            n_ctx=n_ctx,
            n_threads=self.threads,
            n_batch=min(n_batch, n_ctx) if n_ctx > 0 else n_batch,
            n_outputs_max=1,
            kv_type=self.kv_type,
        )


class ThreadsType(click.ParamType):  # type: ignore[type-arg]  # generic in newer ones only
    """A number of threads, or a word that says when to choose one."""

    name = "threads"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Threads:
        word = str(value).strip().casefold()
        if word in ("auto", "live"):
            return word  # type: ignore[return-value]
        try:
            return int(word)  # the engine checks its range
        except ValueError:
            self.fail(f"{value!r} is not a number, auto or live", param, ctx)


class OnOff(click.ParamType):  # type: ignore[type-arg]  # generic in newer ones only
    """``on`` or ``off``."""

    name = "on|off"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        if value not in ("on", "off"):
            self.fail(f"{value!r} is neither on nor off", param, ctx)
        return bool(value == "on")


class StrengthType(click.ParamType):  # type: ignore[type-arg]  # generic in newer ones only
    """A number, or the word that asks for one to be found."""

    name = "strength"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float | str:
        if str(value).strip().casefold() == AUTO:
            return AUTO
        try:
            return float(value)  # the mood checks its range
        except ValueError:
            self.fail(f"{value!r} is not a number or {AUTO}", param, ctx)


def _stack(command: Command, options: list[Callable[[Command], Command]]) -> Command:
    """Add options so that the help lists them in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def debug_option(command: Command) -> Command:
    """Add ``--debug``."""
    return click.option(
        "--debug",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_debug,
        help="Show the traceback of an error, and llama.cpp's log.",
    )(command)


def _set_debug(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    ctx.meta[DEBUG] = value
    if value:
        logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")


def json_option(command: Command) -> Command:
    """Add ``--json``, handed over as ``as_json``."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print the result as one JSON object."
    )(command)


def model_option(command: Command) -> Command:
    """Add ``--model``."""
    return click.option(
        "--model",
        "-m",
        metavar="NAME",
        default=DEFAULT_MODEL,
        show_default=True,
        help="Catalog name, path or Hugging Face repository; see `pyemo models`.",
    )(command)


def threads_option(command: Command) -> Command:
    """Add ``--threads``."""
    return click.option(
        "--threads",
        type=ThreadsType(),
        metavar="N|auto|live",
        help="Threads of a decode; auto follows the machine's load between replies, live within "
        "them too.  [default: the cores that are free at the start]",
    )(command)


def engine_options(command: Command) -> Callable[..., Any]:
    """Add the options of :class:`EngineOptions`, handed over as ``engine``."""

    @functools.wraps(command)
    def gathered(
        *args: Any, model: str, threads: Threads, n_ctx: int | None, kv_type: KVType, **rest: Any
    ) -> Any:
        return command(*args, engine=EngineOptions(model, threads, n_ctx, kv_type), **rest)

    return _stack(
        gathered,
        [
            model_option,
            threads_option,
            click.option(
                "--n-ctx",
                type=int,
                metavar="N",
                help="Tokens the context holds.  [default: to fit]",
            ),
            click.option(
                "--kv-type",
                type=click.Choice(list(KV_TYPES)),
                default=DEFAULT_KV_TYPE,
                show_default=True,
                help="Number type of the KV cache.",
            ),
        ],
    )


_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\"}


def stop_option(command: Command) -> Command:
    """Add ``--stop``, handed over as ``stop``."""
    return click.option(
        "--stop",
        multiple=True,
        metavar="TEXT",
        callback=lambda _context, _option, texts: tuple(map(_unescaped, texts)),
        help="Stop before this text, in which \\n is a new line, \\t a tab and \\\\ a backslash. "
        "May be given several times.",
    )(command)


def system_line_option(command: Command) -> Command:
    """Add ``--system-line``, handed over as ``has_line``."""
    return click.option(
        "--system-line",
        "has_line",
        type=OnOff(),
        default="off",
        show_default=True,
        metavar="on|off",
        help="Let a vector bring the system message that was calibrated with it; not beside "
        "--system.",
    )(command)


def repetition_option(command: Command) -> Command:
    """Add ``--repetition-stop/--no-repetition-stop``, handed over as ``stop_repetition``."""
    return click.option(
        "--repetition-stop/--no-repetition-stop",
        "stop_repetition",
        default=True,
        show_default=True,
        help="Stop a reply that goes in circles: the same tokens four times and more, or hardly "
        "any different ones.",
    )(command)


def _unescaped(text: str) -> str:
    return re.sub(r"\\([nrt\\])", lambda found: _ESCAPES[found[1]], text)


def guard_options(command: Command) -> Callable[..., Any]:
    """Add ``--guard`` and ``--guard-exact``, handed over as ``guard``: a mode, or None."""

    @functools.wraps(command)
    def gathered(*args: Any, guard: bool, guard_exact: bool, **rest: Any) -> Any:
        mode = "exact" if guard_exact else "fast" if guard else None
        return command(*args, guard=mode, **rest)

    return _stack(
        gathered,
        [
            click.option(
                "--guard",
                is_flag=True,
                help="Keep the text coherent: where it goes wrong, go back and lower the strength. "
                f"Text is shown {GUARD_WINDOW} tokens late, so that nothing shown is taken back.",
            ),
            click.option(
                "--guard-exact",
                is_flag=True,
                help="As --guard, and let the unsteered model score the text too: surer, slower.",
            ),
        ],
    )


def mood_options(command: Command) -> Callable[..., Any]:
    """Add the options of :class:`MoodOptions`, handed over as ``mood``."""

    @functools.wraps(command)
    def gathered(
        *args: Any,
        cvec: tuple[str, ...],
        strength: float | str | None,
        operator: Operator,
        schedule: str,
        scope: Scope,
        layers: str | None,
        allow_other_weights: bool,
        **rest: Any,
    ) -> Any:
        number = None if isinstance(strength, str) else strength
        mood = MoodOptions(
            cvec,
            number,
            operator,
            schedule,
            scope,
            layers,
            allow_other_weights,
            auto=strength == AUTO,
        )
        return command(*args, mood=mood, **rest)

    return _stack(
        gathered,
        [
            click.option(
                "--cvec",
                "-c",
                multiple=True,
                metavar="VECTOR",
                help="Control vector NAME_OR_FILE[=STRENGTH][@OPERATOR][@LAYERS][@when:RULE]"
                "[@when-prompt:RULE], such as anger, my.gguf=-0.01@8:20 or "
                "calm@when-prompt:anger>0.04. May be given several times.",
            ),
            click.option(
                "--strength",
                type=StrengthType(),
                metavar="X|auto",
                help="Strength of vectors that are named without one; 0.02 is 2% of the residual "
                "norm. auto, in `pyemo run` alone, finds one where none is known: a minute or "
                "two.  "
                "[default: as calibrated for the model file, else as trained, else 0.02]",
            ),
            click.option(
                "--operator",
                type=click.Choice(list(OPERATORS)),
                default="add",
                show_default=True,
                help="How a vector changes the residual stream; docs/methods.md has each, and the "
                "rules.",
            ),
            click.option(
                "--schedule",
                default=CONSTANT,
                show_default=True,
                metavar="FORM",
                help=f"Strength over the reply's tokens: {SCHEDULE_FORMS}.",
            ),
            click.option(
                "--scope",
                default="both",
                show_default=True,
                metavar="FORM",
                callback=checked_scope,
                help=f"Which tokens are steered: {SCOPE_FORMS}.",
            ),
            click.option(
                "--layers",
                metavar="A:B",
                help="Layers to steer, B not included.  [default: all the vector has]",
            ),
            click.option(
                "--allow-other-weights",
                is_flag=True,
                help="Use a vector that was made on other weights of the same shape.",
            ),
        ],
    )


def checked_scope(_context: click.Context, _option: click.Parameter, scope: str) -> str:
    """Return the scope as it was typed; a wrong one is wrong usage."""
    try:
        check_scope(scope)
    except InputError as error:
        raise click.BadParameter(str(error)) from None
    return scope


def sampler_options(command: Command) -> Callable[..., Any]:
    """Add the sampler's values, handed over as ``sampler``, a :class:`pyemo.SamplerParams`."""

    @functools.wraps(command)
    def gathered(
        *args: Any,
        temperature: float,
        top_k: int,
        top_p: float,
        min_p: float,
        repeat_penalty: float,
        dry_multiplier: float,
        seed: int,
        stay_in_script: bool,
        scripts: tuple[str, ...],
        **rest: Any,
    ) -> Any:
        if scripts and not stay_in_script:
            raise click.UsageError("--script is an exception of --stay-in-script; give that too")
        sampler = SamplerParams(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repeat_penalty=repeat_penalty,
            dry_multiplier=dry_multiplier,
            seed=seed,
            stay_in_script=stay_in_script,
            scripts=scripts,
        )
        return command(*args, sampler=sampler, **rest)

    return _stack(
        gathered,
        [
            _number("--temperature", "0 takes the most likely token always."),
            _number("--top-k", "Keep the N most likely tokens; 0 keeps all."),
            _number("--top-p", "Keep the most likely tokens up to this share; 1 keeps all."),
            _number("--min-p", "Drop tokens below this share of the likeliest one's; 0 keeps all."),
            _number("--repeat-penalty", "Make the last 64 tokens less likely; 1 is off."),
            _number("--dry-multiplier", "Make going on with a repeat less likely (DRY); 0 is off."),
            _number("--seed", "The same seed, file, machine and threads give the same text."),
            click.option(
                "--stay-in-script",
                is_flag=True,
                help="Draw no letter of a script (Latin, Cyrillic, CJK ...) that the prompt has "
                "none of; emoji, digits and punctuation may come.",
            ),
            click.option(
                "--script",
                "scripts",
                multiple=True,
                metavar="NAME",
                help="With --stay-in-script: a script that may come all the same, such as cyrillic "
                "or cjk. May be given several times.",
            ),
        ],
    )


def _number(name: str, text: str) -> Callable[[Any], Any]:
    default = getattr(STANDARD, name.removeprefix("--").replace("-", "_"))
    whole = isinstance(default, int)
    return click.option(
        name,
        type=int if whole else float,
        default=default,
        show_default=True,
        metavar="N" if whole else "X",
        help=text,
    )
