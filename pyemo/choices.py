"""The closed word lists, their defaults, and the names that the commands and the library share.

Imports nothing of pyemo and nothing heavy, so that a command's help can read it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

DEFAULT_MODEL = "smollm2-135m-instruct"
DEFAULT_TOKENS = 128
"""Of a reply of `pyemo run`, at most."""

Operator: TypeAlias = Literal[
    "add", "project_out", "clamp", "add_keep_norm", "raise", "cap", "add_within"
]
"""How a direction changes a row h of the residual stream; u is the unit direction, v the direction,
s the strength, m the mean of h.u over neutral texts (0 where the vector does not say it) and o that
over the vector's own texts.

- ``add``: h + s v
- ``project_out``: h - s (h.u) u; s = 1 removes the direction
- ``clamp``: sets h.u to m + s |v|, and |v| is the residual norm for a vector in residual units
- ``add_keep_norm``: add, then scale the row back to its length
- ``raise``: lifts h.u to m + s (o - m) where it is below; s = 1 is as emotional as real text
- ``cap``: lowers h.u to m + s (o - m) where it is above
- ``add_within``: h + x v with the largest x up to s that keeps it where real rows lie

Strength 0 is off, but for ``clamp``, ``raise`` and ``cap``, for which it is neutral text's level.
``raise`` and ``cap`` leave layers alone at which o is not above m.
"""

OPERATORS: dict[Operator, float] = {
    "add": 0.02,
    "project_out": 1.0,
    "clamp": 0.02,
    "add_keep_norm": 0.02,
    "raise": 1.0,
    "cap": 1.0,
    "add_within": 0.02,
}
"""Operator -> strength where none is given: a share of the residual norm, of the projection, or of
the way from neutral text to the vector's own."""

OF_OWN_TEXTS: tuple[Operator, ...] = ("raise", "cap")
"""Operators that need to know where the vector's own texts lie."""

OF_REAL_ROWS: tuple[Operator, ...] = ("add_within",)
"""Operators that need to know where real rows lie."""

OF_UNIT_DIRECTION: tuple[Operator, ...] = ("project_out", *OF_OWN_TEXTS)
"""Operators whose strength does not depend on a direction's length."""

Scope: TypeAlias = str
"""Which rows are steered. A row reads one token and decides the next; a word or a word with N:

- ``both``: all rows
- ``reply``: those that decide the reply's tokens: the row of the prompt's last token, and those of
  the reply's own
- ``prompt``: the others
- ``thinking``, ``answer``: those of ``reply`` that decide its thoughts, or what it says
- ``first:N``, ``after:N``: those that decide the reply's first N tokens, or its later ones
- ``last:N``: those of the prompt's last N tokens
"""

SCOPES: tuple[Scope, ...] = ("prompt", "reply", "both", "thinking", "answer")

POSITIONS = ("first", "last", "after")
"""Scopes that take a number of tokens."""

SCOPE_FORMS = f"{', '.join(SCOPES)}, {' or '.join(f'{word}:N' for word in POSITIONS)}"
"""What may be typed for a scope, in words."""

VectorUse: TypeAlias = Literal["writing", "reading"]
"""What a bundled vector is good for: steering texts, or gauges and geometry. What writes an emotion
is not what reads it best."""

CONSTANT = "constant"
"""The name of no schedule."""

SCHEDULES = ("ramp", "half-life")
"""Names of the schedules; each takes a number of tokens."""

SCHEDULE_FORMS = f"{CONSTANT}, {' or '.join(f'{name}:N' for name in SCHEDULES)}"
"""What may be typed for a schedule, in words."""

KVType: TypeAlias = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
"""Number type of the KV cache."""

KV_TYPES: dict[KVType, float] = {
    "f32": 4.0,
    "f16": 2.0,
    "bf16": 2.0,
    "q8_0": 34 / 32,
    "q4_0": 18 / 32,
}
"""Number type -> bytes of one value in the cache; q8_0 and q4_0 have 2 more for every 32 values."""

DEFAULT_KV_TYPE: KVType = "f16"

DType: TypeAlias = Literal["auto", "float32", "bfloat16", "float16"]
"""Number type of a transformers model; auto is float32, bfloat16 on a CUDA device that has it."""

DTYPES: tuple[DType, ...] = ("auto", "float32", "bfloat16", "float16")

REGIMES = ("inert", "surgical", "repetitive collapse", "explosive")
"""What a strength does to text, from too little to too much; see :mod:`pyemo.measures.regimes`."""

GREEDY_NAME = "greedy"
"""The name of the sampler that takes the most likely token always."""

GUARD_WINDOW = 16
"""Tokens by which guarded text is shown late, and so how far a step back goes."""

LANGUAGES = ("en", "de", "es", "zh")
"""Languages that there are parallel texts in, for ``pyemo extract --language``."""
