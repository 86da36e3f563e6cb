"""A request's ``logit_bias``: tokens that come sooner or later than the model has it, or never.

Owns its shapes, OpenAI's ``{"id": bias}`` and llama-server's, and its limits.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from pyemo.engine.model import Model
from pyemo.errors import PyemoError
from pyemo.server.refusals import Refusal, refusal_of

MOST = 300
"""Tokens that may have one, as OpenAI's."""

Entry: TypeAlias = tuple[int | str, float]
"""A token's id, or a text whose tokens are all meant; and the bias."""

_ID = re.compile(r"-?[0-9]{1,18}")


def entries(given: Mapping[str, Any] | Sequence[Any] | None) -> tuple[Entry, ...]:
    """Return what a body's ``logit_bias`` says.

    Args:
        given: ``{"id or text": bias}``, or pairs ``[id or text, bias]``. A bias is a number from
            -100 to 100, or false for never.
    Raises:
        Refusal: another shape, or a bias outside its range.
    """
    if isinstance(given, Mapping):
        named: Iterable[Any] = (
            (int(name) if _ID.fullmatch(name) else name, bias) for name, bias in given.items()
        )
    else:
        named = given or ()
    return tuple(_entry(one) for one in named)


def by_id(found: Sequence[Entry], model: Model) -> tuple[tuple[int, float], ...]:
    """Return the bias of each token, texts as their tokens.

    Raises:
        Refusal: a token that the model does not have, or more than ``MOST``.
    """
    out: list[tuple[int, float]] = []
    for token, bias in found:
        if len(out) >= MOST:
            raise _refusal(f"has more than {MOST} tokens")
        if isinstance(token, str):
            try:
                out += [(one, bias) for one in model.tokenize(token, add_special=False)]
            except PyemoError as error:
                raise refusal_of(error, "logit_bias") from None
        elif 0 <= token < model.n_vocab:
            out.append((token, bias))
        else:
            raise _refusal(
                f"has the token {token}; this model's are 0 to {model.n_vocab - 1}, and other "
                "models' mean other texts"
            )
    if len(out) > MOST:
        raise _refusal(f"has more than {MOST} tokens, those of its texts counted")
    return tuple(out)


def _entry(given: Any) -> Entry:
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != 2:
        raise _refusal('must be {"id": bias}, or pairs of an id, or a text, and a bias')
    token, bias = given
    if type(token) is not int and not isinstance(token, str):
        raise _refusal(f"has the token {str(token)[:60]}; a token is an id, or a text")
    if bias is False:
        return token, -math.inf
    if type(bias) not in (int, float) or not -100 <= bias <= 100:
        raise _refusal(
            f"of {str(token)[:60]!r} is {str(bias)[:60]}; it must be -100 to 100, or false for "
            "never"
        )
    return token, float(bias)


def _refusal(why: str) -> Refusal:
    return Refusal(f"logit_bias {why}", code="invalid_value", param="logit_bias")
