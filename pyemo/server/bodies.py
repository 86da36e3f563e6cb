"""The body of a request becomes checked values: what OpenAI's clients send, defaults and all.

Owns which fields are understood, which values of them are neutral, and which fields are named as
ignored. Knows nothing of models and vectors.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pyemo.engine.grammar import Grammar
from pyemo.engine.sampling import STANDARD, SamplerParams
from pyemo.engine.scripts import script_numbers
from pyemo.errors import InputError
from pyemo.server import logit_bias
from pyemo.server.refusals import Refusal, names_in
from pyemo.server.steering_field import FIELDS, near_miss

MOST_TOP = 20
"""Alternatives that may be asked for with each token, as OpenAI's."""


class Body(BaseModel):
    """Fields that both routes have. None, and leaving a field out, mean the server's default."""

    model_config = ConfigDict(extra="allow", protected_namespaces=(), hide_input_in_errors=True)

    model: str | None = None
    stream: bool | None = None
    stream_options: dict[str, Any] | None = None
    max_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_last_n: int | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    stay_in_script: bool | None = None
    scripts: list[str] | None = None
    metadata: dict[str, Any] | None = None
    cache_prompt: bool | None = None
    pyemo: dict[str, Any] | None = None
    n: int | None = None
    response_format: dict[str, Any] | None = None
    grammar: str | None = None
    json_schema: dict[str, Any] | bool | None = None
    ignore_eos: bool | None = None
    logit_bias: dict[str, Any] | list[Any] | None = None


class ChatBody(Body):
    """The body of ``/v1/chat/completions``."""

    messages: list[dict[str, Any]] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    continue_final_message: bool | None = None
    add_generation_prompt: bool | None = None
    reasoning_effort: str | None = None
    think: bool | None = None


class TextBody(Body):
    """The body of ``/v1/completions``."""

    prompt: str | list[Any] | None = None
    logprobs: bool | int | None = None


@dataclass(frozen=True)
class Asked:
    """What a request asks for, checked as far as that goes without a model.

    Attributes:
        body: the fields as they came.
        model: as it was named; "" where it was not.
        messages: of a chat; None for a text to be continued.
        prompt: the text, or its tokens; None for a chat.
        max_tokens: None for as many as the context holds.
        has_seed: whether the sampler's seed was asked for.
        has_logprobs, n_top: whether to tell each token's log-probability, and of how many others.
        uses_cache: whether the prompt may go on from what others have read.
        gauges: names of what to read at every token.
        think: whether the model is to think before it answers; None as its template has it.
        guard, repetition_stop: None where the body does not say.
        is_live: whether each part of a stream carries readings.
        ignored: fields that are not understood.
        n: choices.
        ignore_eos: whether the model's end token ends nothing.
        grammar_field: the field that says what the reply may be; None where it may be anything.
        bias: of tokens, by id or by text; the sampler has none before a model is known.
    """

    body: Mapping[str, Any]
    model: str
    messages: list[dict[str, Any]] | None
    prompt: str | list[int] | None
    stream: bool
    include_usage: bool
    max_tokens: int | None
    stop: tuple[str, ...]
    sampler: SamplerParams
    has_seed: bool
    has_logprobs: bool
    n_top: int
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    think: bool | None = None
    uses_cache: bool = True
    gauges: tuple[str, ...] = ()
    guard: bool | None = None
    repetition_stop: bool | None = None
    is_live: bool = False
    ignored: tuple[str, ...] = ()
    n: int = 1
    ignore_eos: bool = False
    grammar_field: str | None = None
    bias: tuple[logit_bias.Entry, ...] = ()


def read_object(data: bytes) -> dict[str, Any]:
    """Return the object that a body is.

    Raises:
        Refusal: no object; as :func:`read_json`.
    """
    value = read_json(data)
    if not isinstance(value, dict):
        raise Refusal("the body is JSON, but no object")
    return value


def read_json(data: bytes) -> Any:
    """Return what a body is.

    Raises:
        Refusal: no UTF-8, no JSON, or half a character in a text.
    """
    try:
        value = json.loads(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Refusal(f"the body is not UTF-8 at byte {error.start}") from None
    except (ValueError, RecursionError) as error:
        raise Refusal(f"the body is not JSON: {error}", code="invalid_json") from None
    if b"\\u" in data and (place := _half_character(value)) is not None:
        raise Refusal(
            f"{place or 'the body'} has half of a surrogate pair, which is no character",
            param=place.partition(".")[0] or None,
        )
    return value


def chat_asked(body: Mapping[str, Any]) -> Asked:
    """Return what a body of ``/v1/chat/completions`` asks for.

    Raises:
        Refusal: a field that is not understood as it is, by name.
    """
    found = _validated(ChatBody, body)
    if not found.messages:
        raise Refusal("messages is missing or empty; send at least one message", param="messages")
    is_begun = found.messages[-1].get("role") == "assistant"
    if found.continue_final_message and not is_begun:
        raise Refusal(
            "continue_final_message is for a last message of the assistant, and the last one is "
            "another's",
            param="continue_final_message",
        )
    if is_begun and (found.continue_final_message is False or found.add_generation_prompt):
        raise Refusal(
            "a last message of the assistant is always continued; end with a user's message, or "
            "leave continue_final_message and add_generation_prompt out",
            param="continue_final_message",
        )
    n_top = _n_top(found.top_logprobs, "top_logprobs")
    has_logprobs = bool(found.logprobs)
    if isinstance(found.logprobs, int) and not isinstance(found.logprobs, bool):
        n_top = max(n_top, _n_top(found.logprobs, "logprobs"))  # as /v1/completions has it
    if n_top and not has_logprobs:
        raise Refusal("top_logprobs needs logprobs: true", param="top_logprobs")
    most = found.max_tokens if found.max_completion_tokens is None else found.max_completion_tokens
    return _asked(
        body,
        found,
        messages=found.messages,
        max_tokens=_max_tokens(most),
        has_logprobs=has_logprobs,
        n_top=n_top,
        template_kwargs=found.chat_template_kwargs or {},
        think=False if found.reasoning_effort == "none" else found.think,
    )


def text_asked(body: Mapping[str, Any]) -> Asked:
    """Return what a body of ``/v1/completions`` asks for.

    Raises:
        Refusal: a field that is not understood as it is, by name.
    """
    found = _validated(TextBody, body)
    has_logprobs = found.logprobs is not None and found.logprobs is not False
    count = int(found.logprobs) if has_logprobs and found.logprobs is not True else 0
    return _asked(
        body,
        found,
        prompt=_prompt(found.prompt),
        max_tokens=_max_tokens(found.max_tokens),
        has_logprobs=has_logprobs,
        n_top=_n_top(count, "logprobs"),
    )


# --- fields ---


def _is_one(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and value == 1


def _is_empty(value: Any) -> bool:
    return isinstance(value, str | list | dict) and not value


def _is_no_tool(value: Any) -> bool:
    return value in ("none", "auto")


def _is_false(value: Any) -> bool:
    return value is False


# field -> (whether a value means nothing, what the others would need)
_NEUTRAL: dict[str, tuple[Callable[[Any], bool], str]] = {
    "best_of": (_is_one, "one choice a request"),
    "tools": (_is_empty, "calls of tools are not built"),
    "functions": (_is_empty, "calls of functions are not built"),
    "tool_choice": (_is_no_tool, "calls of tools are not built"),
    "function_call": (_is_no_tool, "calls of functions are not built"),
    "modalities": (lambda value: value in ([], ["text"]), "text is all there is"),
    "audio": (_is_empty, "text is all there is"),
    "prediction": (_is_empty, "it is not built"),
    "web_search_options": (lambda value: False, "nothing is searched"),
    "suffix": (_is_empty, "text is continued at its end only"),
    "echo": (_is_false, "the prompt is not given back"),
}

_HARMLESS = (
    "user",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "prompt_cache_retention",
    "parallel_tool_calls",
    "extra_body",
)
"""Fields whose meaning is kept by doing nothing."""

_OURS = ("gauges", "guard", "live", "repetition_stop")


def _validated(kind: type[Any], body: Mapping[str, Any]) -> Any:
    for name, (is_neutral, need) in _NEUTRAL.items():
        value = body.get(name)
        if value is not None and not is_neutral(value):
            raise Refusal(
                f"{name} = {_shown(value)} cannot be met: {need}",
                code="unsupported_value",
                param=name,
            )
    for name in body:
        if name not in FIELDS and name not in kind.model_fields and near_miss(name):
            raise Refusal(
                f"{name[:80]!r} is no field; the mood's is called steering",
                code="unknown_field",
                param=name[:80],
            )
    try:
        return kind.model_validate(dict(body))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        param = str(first["loc"][0])
        where = ".".join(map(str, first["loc"][:3]))
        raise Refusal(
            f"{where} = {_shown(body.get(param))}: {first['msg']}",
            code="invalid_value",
            param=param,
        ) from None


def _asked(
    body: Mapping[str, Any],
    found: Body,
    *,
    max_tokens: int | None,
    has_logprobs: bool,
    n_top: int,
    messages: list[dict[str, Any]] | None = None,
    prompt: str | list[int] | None = None,
    template_kwargs: dict[str, Any] | None = None,
    think: bool | None = None,
) -> Asked:
    ours = _ours(found.pyemo)
    has_seed = found.seed is not None and found.seed != -1
    known = {*type(found).model_fields, *_NEUTRAL, *_HARMLESS, *FIELDS}
    grammar_field, grammar = _grammar(found)
    return Asked(
        body=body,
        model=found.model or "",
        messages=messages,
        prompt=prompt,
        stream=bool(found.stream),
        include_usage=bool((found.stream_options or {}).get("include_usage")),
        max_tokens=max_tokens,
        stop=_stop(found.stop),
        sampler=_sampler(found, grammar),
        has_seed=has_seed,
        has_logprobs=has_logprobs,
        n_top=n_top,
        template_kwargs=template_kwargs or {},
        think=think,
        uses_cache=not has_seed if found.cache_prompt is None else found.cache_prompt,
        gauges=tuple(ours.get("gauges") or ()),
        guard=ours.get("guard"),
        repetition_stop=ours.get("repetition_stop"),
        is_live=bool(ours.get("gauges")) if ours.get("live") is None else bool(ours["live"]),
        ignored=tuple(name for name in body if name not in known),
        n=1 if found.n is None else found.n,
        ignore_eos=bool(found.ignore_eos),
        grammar_field=grammar_field,
        bias=logit_bias.entries(found.logit_bias),
    )


def _sampler(found: Body, grammar: Grammar | None) -> SamplerParams:
    """Return how tokens are drawn; what the body does not say is as in ``pyemo run``."""
    penalty = found.repeat_penalty
    penalty = found.repetition_penalty if penalty is None else penalty
    top_k, top_p = found.top_k, found.top_p
    if top_p == 0:  # the most likely token and no other
        top_k, top_p = 1, 1.0
    values: dict[str, Any] = {
        "temperature": found.temperature,
        "top_k": None if top_k is None else max(0, top_k) if top_k >= -1 else top_k,
        "top_p": top_p,
        "min_p": found.min_p,
        "frequency_penalty": found.frequency_penalty,
        "presence_penalty": found.presence_penalty,
        "repeat_penalty": 1.0 if penalty == 0 else penalty,
        "repeat_last_n": 2**31 - 1 if found.repeat_last_n == -1 else found.repeat_last_n,
        "dry_multiplier": found.dry_multiplier,
        "dry_base": found.dry_base,
        "dry_allowed_length": found.dry_allowed_length,
        "dry_last_n": 2**31 - 1 if found.dry_penalty_last_n == -1 else found.dry_penalty_last_n,
        "seed": None if found.seed == -1 else found.seed,
        "stay_in_script": found.stay_in_script,
        "scripts": found.scripts or None,
    }
    given = {name: value for name, value in values.items() if value is not None}
    for name, value in given.items():  # each alone, so that the message names the field
        try:
            if name == "scripts":
                script_numbers(value)
            else:
                SamplerParams(**{name: value})
        except InputError as error:
            param = {"dry_last_n": "dry_penalty_last_n"}.get(name, name)
            if name == "repeat_penalty" and found.repeat_penalty is None:
                param = "repetition_penalty"
            text = str(error).replace(name, param)
            text = text if param in text else f"{param}: {text}"
            raise Refusal(text, code="invalid_value", param=param) from None
    defaults = {name: getattr(STANDARD, name) for name in SamplerParams.__dataclass_fields__}
    if found.scripts and not found.stay_in_script:
        raise Refusal("scripts are exceptions of stay_in_script, which is off", param="scripts")
    return SamplerParams(**{**defaults, **given, "grammar": grammar})


def _grammar(found: Body) -> tuple[str | None, Grammar | None]:
    """Return the field that says what the reply may be, and that; None for anything.

    Raises:
        Refusal: no grammar, or two of them.
    """
    asked = _grammars(found)
    if len(asked) > 1:
        raise Refusal(
            f"{names_in(asked)} each say what the reply may be; send one of them",
            code="invalid_value",
            param=list(asked)[1],
        )
    for name, make in asked.items():
        try:
            return name, make()
        except InputError as error:
            raise Refusal(f"{name}: {error}", code="invalid_value", param=name) from None
    return None, None


def _grammars(found: Body) -> dict[str, Callable[[], Grammar]]:
    """Return the fields that say what the reply may be, and what makes a grammar of each."""
    asked: dict[str, Callable[[], Grammar]] = {}
    if found.grammar:
        asked["grammar"] = functools.partial(Grammar, found.grammar)
    if found.json_schema is not None and found.json_schema != {}:
        asked["json_schema"] = functools.partial(Grammar.of_json_schema, found.json_schema)
    schema = _format_schema(found.response_format or {"type": "text"})
    if schema is not None:
        asked["response_format"] = functools.partial(Grammar.of_json_schema, schema)
    return asked


def _format_schema(given: Mapping[str, Any]) -> Any:
    """Return the JSON schema that a ``response_format`` asks for; None where it is text."""
    kind = given.get("type")
    if kind == "text":
        return None
    if kind == "json_object":  # llama-server has a schema here
        return {"type": "object"} if given.get("schema") is None else given["schema"]
    if kind == "json_schema":
        inner = given.get("json_schema")
        if isinstance(inner, Mapping) and inner.get("schema") is not None:
            return inner["schema"]
        raise Refusal(
            "response_format.json_schema.schema is missing; it is the schema that a reply meets",
            code="invalid_value",
            param="response_format",
        )
    raise Refusal(
        f"response_format.type = {_shown(kind)}; it is text, json_object or json_schema",
        code="invalid_value",
        param="response_format",
    )


def _max_tokens(value: int | None) -> int | None:
    if value is None or value in (0, -1):
        return None
    if value < 0 or value >= 2**31:
        raise Refusal(
            f"max_tokens = {_shown(value)}; it must be 1 or more, or -1 for what the context holds",
            code="invalid_value",
            param="max_tokens",
        )
    return value


def _stop(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    texts = [stop] if isinstance(stop, str) else stop or []
    if len(texts) > 64:
        raise Refusal(f"stop has {len(texts)} texts; 64 are the most", param="stop")
    return tuple(text for text in texts if text)


def _n_top(value: int | None, name: str) -> int:
    if value is None or value == -1:
        return 0
    if not 0 <= value <= MOST_TOP:
        raise Refusal(
            f"{name} = {_shown(value)}; it must be 0 to {MOST_TOP}",
            code="invalid_value",
            param=name,
        )
    return value


def _prompt(prompt: str | list[Any] | None) -> str | list[int]:
    if prompt is None:
        return ""
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, str):
        return prompt
    if prompt and all(type(token) is int for token in prompt):
        return prompt
    raise Refusal(
        "prompt must be one text, or the ids of one text's tokens; send several requests for "
        "several prompts, they run side by side",
        code="invalid_value",
        param="prompt",
    )


def _ours(given: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Return the body's fields under ``pyemo``, checked."""
    given = given or {}
    if unknown := [key for key in given if key not in _OURS]:
        raise Refusal(
            f"pyemo has no field {unknown[0][:80]!r}; its fields are {names_in(_OURS)}",
            code="unknown_field",
            param="pyemo",
        )
    gauges = given.get("gauges") or []
    if not isinstance(gauges, list) or not all(isinstance(name, str) for name in gauges):
        raise Refusal("pyemo.gauges must be a list of vectors' names", param="pyemo")
    if len(gauges) > 64:
        raise Refusal("pyemo.gauges has more than 64 names", param="pyemo")
    for name in ("guard", "live", "repetition_stop"):
        if not isinstance(given.get(name), bool | None):
            raise Refusal(
                f"pyemo.{name} = {_shown(given[name])}; it is true or false", param="pyemo"
            )
    return given


def _half_character(value: Any, place: str = "") -> str | None:
    """Return where a text has a lone surrogate; None if none has."""
    stack = [(value, place)]
    while stack:
        item, where = stack.pop()
        if isinstance(item, str):
            try:
                item.encode()
            except UnicodeEncodeError:
                return where
        elif isinstance(item, dict):
            stack += [(key, where) for key in item]
            stack += [(inner, f"{where}.{key}".lstrip(".")) for key, inner in item.items()]
        elif isinstance(item, list):
            stack += [(inner, f"{where}.{i}".lstrip(".")) for i, inner in enumerate(item)]
    return None


def _shown(value: Any) -> str:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    text = json.dumps(value, default=str)
    return text if len(text) <= 120 else text[:100] + "..."
