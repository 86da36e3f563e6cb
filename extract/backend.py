"""What computes hidden states: one small interface.

Its implementations are in engine_backend and transformers_backend.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pyemo.engine.sampling import SamplerParams
from pyemo.vectors.identity import ModelIdentity


@dataclass(frozen=True)
class Passage:
    """A text whose hidden states are averaged over positions [begin, end) of its tokens."""

    tokens: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Written:
    """What a model wrote.

    Attributes:
        tokens: without the end-of-generation token.
        text: what they stand for.
        ended: whether the model ended by itself.
        states: mean hidden states from token ``skip`` on, (n_layers, n_embd), if they were asked
            for.
    """

    tokens: tuple[int, ...]
    text: str
    ended: bool
    states: npt.NDArray[np.float32] | None = None


class Backend(Protocol):
    """Texts in, pooled hidden states out.

    Hidden states are the residual stream after each block, before the final norm, layer 0 first.
    """

    name: str
    source: ModelIdentity

    def prompt_tokens(self, prompt: str) -> list[int]:
        """Return the tokens a reply to ``prompt`` starts from, in the model's chat template."""
        ...

    def text_tokens(self, text: str) -> list[int]:
        """Return the tokens of a text as it is, with BOS where the model expects one."""
        ...

    def write(
        self,
        prompts: Sequence[Sequence[int]],
        samplers: Sequence[SamplerParams],
        max_tokens: int,
        on_written: Callable[[int, Written], None],
        skip: int | None = None,
        layers: Sequence[int] = (),
    ) -> None:
        """Write a reply to each prompt.

        With ``skip``, hidden states of ``layers`` may be pooled while it is written, from the
        reply's token ``skip`` on.
        """
        ...

    def read(self, passages: Sequence[Passage], layers: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the mean hidden states of each passage, float32 (n_passages, n_layers, n_embd)."""
        ...

    def read_tokens(
        self, passages: Sequence[Passage], layers: Sequence[int]
    ) -> list[npt.NDArray[np.float32]]:
        """Return every hidden state of each passage, float32 (end - begin, n_layers, n_embd)."""
        ...
