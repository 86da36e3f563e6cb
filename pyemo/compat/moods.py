"""A mood as a caller writes it becomes a ``Steering``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import TypeAlias

from pyemo.engine.model import Model
from pyemo.engine.mood import OFF
from pyemo.engine.steering import Steering
from pyemo.errors import InputError
from pyemo.moods.builder import MoodBuilder, steering_of
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
        texts = re.split(r"\s+\+\s+|\s*,\s*", written.strip())
    elif isinstance(written, Mapping):
        texts = [
            os.fspath(name) if strength is None else f"{os.fspath(name)}={strength!r}"
            for name, strength in written.items()
        ]
    else:
        raise InputError(
            f"steering = {written!r}; write 'anger=0.02 + calm=-0.01', {{'anger': 0.02}} or a "
            "pyemo.Steering"
        )
    builder = MoodBuilder(MoodOptions(tuple(texts)), n_tokens)
    return steering_of(builder.terms(model, builder.specs))
