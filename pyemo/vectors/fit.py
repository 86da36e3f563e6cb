"""Whether a control vector belongs to a model: same file, same weights, unknown, or others.

Owns that question and its words. llama.cpp asks only for the width, so a vector of another model
loads there in silence. Knows nothing of files.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pyemo.errors import VectorModelMismatchError
from pyemo.vectors import hints
from pyemo.vectors.identity import Identified
from pyemo.vectors.metadata import VectorMetadata


class Directed(Protocol):
    """What of a control vector is compared with a model."""

    @property
    def name(self) -> str: ...
    @property
    def metadata(self) -> VectorMetadata: ...
    @property
    def layers(self) -> tuple[int, ...]: ...
    @property
    def n_embd(self) -> int: ...
    @property
    def residual_norms(self) -> Mapping[int, float]: ...


class FitKind(enum.Enum):
    """How a control vector relates to a model it can be added to."""

    SAME_FILE = "same file"
    SAME_WEIGHTS = "same weights, other file"
    UNKNOWN_SOURCE = "unknown source"
    OTHER_WEIGHTS = "other weights"


@dataclass(frozen=True)
class Fit:
    """How a control vector relates to a model: the kind, and a sentence that says it."""

    kind: FitKind
    sentence: str


def compare(vector: Directed, model: Identified, *, allow_other_weights: bool = False) -> Fit:
    """Return how ``vector`` relates to ``model``, or raise if it must not be added to it.

    Hashes are compared only where the vector names them, for they cost a reading of the file.

    Raises:
        VectorModelMismatchError: it cannot be added to this model, or was made on other weights.
    """
    _check_shape(vector, model)
    meta = vector.metadata
    source = repr(meta.source_model) if meta.source_model else "a model"
    hint = meta.architecture
    is_known = hints.fits(hint, model.architecture) or bool(hints.architectures(hint))
    if is_known and not hints.fits(hint, model.architecture):
        difference = (
            f"was made for the architecture {meta.architecture!r}, and {model.name!r} is "
            f"{model.architecture!r}"
        )
    elif meta.source_sha256 and meta.source_sha256 == model.file_sha256:
        return Fit(FitKind.SAME_FILE, f"{vector.name!r} was made on this very model file.")
    elif not meta.weights_fingerprint:
        return Fit(
            FitKind.UNKNOWN_SOURCE,
            f"{vector.name!r} does not say which weights it was made on; "
            f"{_compared(hint, is_known)} were compared with {model.name!r}.",
        )
    elif meta.weights_fingerprint == model.weights_fingerprint:
        return Fit(
            FitKind.SAME_WEIGHTS,
            f"{vector.name!r} was made on {source}, another file of the weights of "
            f"{model.name!r}, such as another quantization.{_other_template(vector, model)}",
        )
    else:
        difference = f"was made on {source}, whose weights are not those of {model.name!r}"

    if not allow_other_weights:
        raise VectorModelMismatchError(
            f"the control vector {vector.name!r} {difference}; use a vector made for this model, "
            "or allow other weights (--allow-other-weights, allow_other_weights=True)"
        )
    return Fit(
        FitKind.OTHER_WEIGHTS,
        f"{vector.name!r} {difference}; it is used because other weights were allowed, and may "
        f"mean nothing there.{_other_template(vector, model)}",
    )


def _other_template(vector: Directed, model: Identified) -> str:
    """Return a sentence if the chat template is not the one the vector was made with."""
    wanted = vector.metadata.chat_template_sha256
    same = not wanted or wanted == model.chat_template_sha256
    return "" if same else " The chat template is another one too."


def _check_shape(vector: Directed, model: Identified) -> None:
    n_layer = len(vector.residual_norms)
    if vector.n_embd != model.n_embd:
        problem = f"is {vector.n_embd} wide (n_embd), the model {model.name!r} {model.n_embd}"
    elif vector.layers[-1] >= model.n_layer:
        problem = (
            f"has a direction for layer {vector.layers[-1]}, the model {model.name!r} has only "
            f"layers 0 to {model.n_layer - 1}"
        )
    elif n_layer and n_layer != model.n_layer:
        problem = (
            f"was made on a model of {n_layer} layers, the model {model.name!r} has {model.n_layer}"
        )
    else:
        return
    raise VectorModelMismatchError(
        f"the control vector {vector.name!r} {problem}; use a vector made for this model"
    )


def _compared(hint: str, is_known: bool) -> str:
    """Return what there was to compare, and why the architecture was not."""
    if is_known:
        return "only width, layers and architecture"
    why = f"its model hint {hint!r} is no architecture's name" if hint else "it has no model hint"
    return f"{why}, and only width and layers"
