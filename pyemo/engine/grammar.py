"""What a reply may be: a grammar that every token has to follow.

Owns the value that samplers carry. How a text is parsed and followed is the core's
(``csrc/grammar.cpp``, ``csrc/grammar_matcher.cpp``); how a JSON schema becomes a grammar is
``json_schema``'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from pyemo import _core
from pyemo.engine import json_schema
from pyemo.engine.tokens import token_ids
from pyemo.errors import InputError, all_calls_named

if TYPE_CHECKING:
    from pyemo.engine.model import Model

MOST_BYTES = 1 << 20
"""Size of a grammar's or a schema's text at most."""


@all_calls_named
class Grammar:
    """A grammar in GBNF, as llama.cpp has it, checked when it is made.

    ```
    answer = Grammar('root ::= "yes" | "no"')
    person = Grammar.of_json_schema({"type": "object", "properties": {"name": {"type": "string"}}})
    engine.generate("Who are you?", sampler=SamplerParams(grammar=person))
    ```

    A token that the grammar does not allow is drawn again among those that it does; the reply ends
    when it is whole. It holds for the model's answer, not for its thoughts. docs/python.md.

    Attributes:
        text: its rules.
        root: the rule with which it begins.
    Raises:
        InputError: a fault of the text, with its line; a rule that begins with itself; a grammar
            that is too large, or can be read in too many ways.
    """

    def __init__(self, text: str, root: str = "root") -> None:
        for name, value in (("text", text), ("root", root)):
            if not isinstance(value, str):
                raise InputError(f"the grammar's {name} = {value!r}; it must be a text")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise InputError(f"the grammar's {name} has half of a surrogate pair") from None
        self.text = text
        self.root = root
        self._native = _core.Grammar(text, root)

    @classmethod
    def of_json_schema(cls, schema: Mapping[str, Any] | bool) -> Grammar:
        """Return the grammar of the JSON texts that a schema describes.

        Properties come in the order of the schema. What the grammar cannot hold to is refused.

        Raises:
            InputError: no schema, or a keyword that is not understood, by name.
        """
        return cls(json_schema.to_gbnf(schema))

    @classmethod
    def of_json(cls) -> Grammar:
        """Return the grammar of any JSON object."""
        return cls(json_schema.to_gbnf({"type": "object"}))

    @classmethod
    def load(cls, path: str | Path) -> Grammar:
        """Read a grammar from a file.

        Raises:
            InputError: no such file, no UTF-8, or as :class:`Grammar`.
        """
        return cls(_read(path))

    @classmethod
    def load_json_schema(cls, path: str | Path) -> Grammar:
        """Read a JSON schema from a file.

        Raises:
            InputError: no such file, no JSON, or as :meth:`of_json_schema`.
        """
        return cls.of_json_schema(json_schema.parsed(_read(path), str(path)))

    @property
    def native(self) -> _core.Grammar:
        """What the core follows."""
        return self._native

    def allowed(self, model: Model, tokens: list[int]) -> npt.NDArray[np.bool_]:
        """Return which tokens may come behind those of a reply; bool (n_vocab,).

        Raises:
            InputError: the tokens do not follow the grammar.
        """
        return self._native.allowed(model.native, token_ids(tokens))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Grammar):
            return NotImplemented
        return (self.text, self.root) == (other.text, other.root)

    def __hash__(self) -> int:
        return hash((self.text, self.root))

    def __reduce__(self) -> tuple[type[Grammar], tuple[str, str]]:
        return Grammar, (self.text, self.root)

    def __deepcopy__(self, memo: object) -> Grammar:
        return self  # it never changes

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= 60 else f"{self.text[:57]}..."
        return f"Grammar({shown!r})"


def _read(path: str | Path) -> str:
    file = Path(path).expanduser()
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{path} has {len(data)} bytes; {MOST_BYTES} are the most")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}") from None
