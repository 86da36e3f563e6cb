"""A mood as a caller writes it becomes vectors with strengths."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TypeAlias

from pyemo.choices import CONSTANT, Scope
from pyemo.engine.model import Model
from pyemo.engine.mood import OFF
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.moods.builder import MoodBuilder, MoodTerm, steering_of
from pyemo.moods.grammar import split_vectors
from pyemo.moods.options import MoodOptions

Written: TypeAlias = "Steering | str | Mapping[str, float | None] | None"
"""A mood, ``--cvec`` texts joined by "+", or names with strengths; None or empty is unsteered."""

N_TOKENS = 128
"""Of a reply whose length is not known, which a recommended strength should suit."""


def mood_of(model: Model, written: Written, n_tokens: int = N_TOKENS) -> Steering:
    """Return the mood; a strength that is not given is the one that the vector recommends.

    Args:
        n_tokens: of the reply to come.
    Raises:
        InputError, VectorError: see :class:`pyemo.moods.builder.MoodBuilder`.
    """
    if isinstance(written, Steering):
        return written
    if not written:
        return OFF
    if isinstance(written, str):
        return steering_of(terms_of(model, written, n_tokens))
    if not isinstance(written, Mapping):
        raise InputError(
            f"steering = {written!r}; write 'anger=0.02 + calm=-0.01', {{'anger': 0.02}} or a "
            "pyemo.Steering"
        )
    texts = [
        os.fspath(name) if strength is None else f"{os.fspath(name)}={strength!r}"
        for name, strength in written.items()
    ]
    return steering_of(_terms(model, MoodOptions(tuple(texts)), n_tokens))


def terms_of(
    model: Model,
    text: str,
    n_tokens: int = N_TOKENS,
    *,
    scope: Scope = "both",
    schedule: str = CONSTANT,
) -> list[MoodTerm]:
    """Return the terms of a mood that is written as a text, with what is to be said of them.

    Args:
        text: such as ``anger=0.02@8:20 + calm``; empty for none.
        n_tokens: of the reply to come.
        scope, schedule: of all terms; see :class:`pyemo.Steering`.
    Raises:
        as :func:`mood_of`.
    """
    options = MoodOptions(tuple(split_vectors(text)), scope=scope, schedule=schedule)
    return _terms(model, options, n_tokens)


def _terms(model: Model, options: MoodOptions, n_tokens: int) -> list[MoodTerm]:
    builder = MoodBuilder(options, n_tokens)
    return builder.terms(model, builder.specs)
