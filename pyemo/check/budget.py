"""What a device must reach: limits from a TOML file or from options.

Owns the limits' names, units and directions. Knows nothing of how anything is measured.
"""

from __future__ import annotations

import difflib
import math
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from pyemo.choices import REGIMES
from pyemo.engine.memory import parse_bytes
from pyemo.errors import InputError
from pyemo.files.inputs import read_text

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Budget:
    """Limits of a device check; None is no limit.

    Attributes:
        min_tokens_per_s: of decoding one sequence, steered where a vector is given.
        min_prompt_tokens_per_s: of reading a prompt.
        min_batch_tokens_per_s: of decoding several sequences, all together.
        max_first_token_s: from starting `pyemo run` to its first token, files in the page cache.
        max_load_s: of opening model and engine.
        max_memory: bytes, the peak of `pyemo run`. In a file a number of MB, or text as "250 MB".
        max_slowdown: share of the speed that a longer run loses from its first to its last quarter.
        regime: what steering must do to the text at the strength that is checked.
        same_text: whether the same seed must give the same text.
        min_top1, max_kl: agreement with a reference.
    """

    min_tokens_per_s: float | None = None
    min_prompt_tokens_per_s: float | None = None
    min_batch_tokens_per_s: float | None = None
    max_first_token_s: float | None = None
    max_load_s: float | None = None
    max_memory: int | None = None
    max_slowdown: float | None = None
    regime: str | None = None
    same_text: bool | None = None
    min_top1: float | None = None
    max_kl: float | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Budget:
        """Return the budget of a TOML file.

        Raises:
            InputError: the file cannot be read or parsed, an unknown key, or a value of another
                kind.
        """
        where = os.fspath(path)
        text = read_text(path, "the budget", "give the path of a TOML file")
        try:
            table = tomllib.loads(text)
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"the budget {where!r} is not TOML: {error}; docs/check.md has one"
            ) from error
        return cls().merged(table, f"the budget {where}")

    def merged(self, limits: Mapping[str, Any], where: str) -> Budget:
        """Return this budget with ``limits`` in place of its own; None leaves a limit as it is.

        Raises:
            InputError: an unknown key, or a value of another kind; ``where`` says whose.
        """
        known = [field.name for field in fields(self)]
        for key in limits:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise InputError(
                    f"{where} has the unknown key {key!r}; {hint}There are {', '.join(known)}"
                )
        checked = {key: _value(where, key, v) for key, v in limits.items() if v is not None}
        return replace(self, **checked)

    @property
    def limits(self) -> dict[str, Any]:
        """The limits that are set, by name."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in found.items() if value is not None}


def _value(where: str, key: str, value: Any) -> Any:
    """Return a limit's value in its own unit."""
    if key == "regime":
        word = value.strip().casefold() if isinstance(value, str) else value
        if word not in REGIMES:
            raise InputError(
                f"{where}: regime is {value!r}; it must be one of {', '.join(REGIMES)}"
            )
        return word
    if key == "same_text":
        if type(value) is not bool:
            raise InputError(f"{where}: same_text is {value!r}; it must be true or false")
        return value
    if key == "max_memory":
        return _memory(where, value)
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
        raise InputError(f"{where}: {key} is {value!r}; it must be a number from 0 on")
    if key in ("min_top1", "max_slowdown") and value > 1:
        raise InputError(f"{where}: {key} is {value!r}; it is a share, from 0 to 1")
    return float(value)


def _memory(where: str, value: Any) -> int:
    try:
        if type(value) in (int, float) or isinstance(value, str):
            return parse_bytes(str(value))
    except ValueError:
        pass
    raise InputError(
        f'{where}: max_memory is {value!r}; write a number of MB, or text such as "250 MB"'
    )
