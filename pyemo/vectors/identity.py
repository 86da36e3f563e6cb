"""Which model something is about: what tells one model, and one file of it, from another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Identified(Protocol):
    """What can be told of a model: a loaded :class:`pyemo.Model`, or a :class:`ModelIdentity`.

    A loaded model computes its hashes when they are asked for.
    """

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        ...

    @property
    def n_layer(self) -> int:
        """Number of blocks."""
        ...

    @property
    def n_embd(self) -> int:
        """Width of the residual stream."""
        ...

    @property
    def file_sha256(self) -> str:
        """SHA-256 of the file."""
        ...

    @property
    def weights_fingerprint(self) -> str:
        """SHA-256 of float32 norm tensors and vocabulary: the same in every quantization."""
        ...

    @property
    def chat_template_sha256(self) -> str | None:
        """SHA-256 of the chat template, or None without one."""
        ...


@dataclass(frozen=True)
class ModelIdentity:
    """A model's identity as a value, as a vector's file keeps it; empty where it is not known.

    A model without a chat template has no hash of one.
    """

    name: str
    architecture: str
    n_layer: int
    n_embd: int
    file_sha256: str = ""
    weights_fingerprint: str = ""
    chat_template_sha256: str = ""
