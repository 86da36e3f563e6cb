"""Whether a vector belongs to a model."""

from dataclasses import dataclass

import pytest

from pyemo.errors import VectorModelMismatchError
from pyemo.vectors.control_vector import ControlVector, FitKind, VectorMetadata


@dataclass
class Model:
    """The attributes of a Model that the comparison asks for."""

    name: str = "tiny"
    architecture: str = "llama"
    n_layer: int = 4
    n_embd: int = 3
    file_sha256: str = "a" * 64
    weights_fingerprint: str = "b" * 64
    chat_template_sha256: str | None = "c" * 64


class UnhashedModel(Model):
    """A model whose file must not be read."""

    @property
    def file_sha256(self):
        raise AssertionError("the file was hashed")

    @file_sha256.setter
    def file_sha256(self, _):
        pass

    weights_fingerprint = file_sha256


def vector(**changes):
    known = {
        "unit": "residual",
        "architecture": "llama",
        "source_model": "tiny-q8",
        "source_sha256": "a" * 64,
        "weights_fingerprint": "b" * 64,
        "chat_template_sha256": "c" * 64,
        "residual_norms": (1.0, 2.0, 3.0, 4.0),
    }
    return ControlVector({1: [1, 2, 3]}, name="angry", metadata=VectorMetadata(**known | changes))


def raw(**known):
    return ControlVector({1: [1, 2, 3]}, name="angry", metadata=VectorMetadata(**known))


def test_the_file_it_was_made_on_is_the_same_file():
    assert vector().check(Model()).kind is FitKind.SAME_FILE


def test_another_file_of_the_same_weights_is_said():
    fit = vector().check(Model(file_sha256="d" * 64))
    assert fit.kind is FitKind.SAME_WEIGHTS
    assert fit.sentence == (
        "'angry' was made on 'tiny-q8', another file of the weights of 'tiny', such as another "
        "quantization."
    )


def test_another_chat_template_is_said():
    fit = vector().check(Model(file_sha256="d" * 64, chat_template_sha256=None))
    assert fit.sentence.endswith("The chat template is another one too.")


def test_other_weights_of_the_same_shape_are_refused_naming_both():
    with pytest.raises(VectorModelMismatchError, match=r"'tiny-q8'.* not those of 'tiny'"):
        vector().check(Model(file_sha256="d" * 64, weights_fingerprint="d" * 64))


def test_other_weights_can_be_allowed():
    stranger = Model(file_sha256="d" * 64, weights_fingerprint="d" * 64)
    fit = vector().check(stranger, allow_other_weights=True)
    assert fit.kind is FitKind.OTHER_WEIGHTS
    assert "may mean nothing there" in fit.sentence


def test_a_vector_that_names_no_weights_has_an_unknown_source():
    fit = raw(architecture="llama").check(Model())
    assert fit.kind is FitKind.UNKNOWN_SOURCE
    assert "does not say which weights" in fit.sentence


def test_a_model_is_not_hashed_for_a_vector_without_hashes():
    assert raw().check(UnhashedModel()).kind is FitKind.UNKNOWN_SOURCE


def test_the_fingerprint_alone_makes_the_same_weights():
    fit = vector(source_sha256="").check(Model())
    assert fit.kind is FitKind.SAME_WEIGHTS


def test_the_file_alone_makes_the_same_file():
    assert vector(weights_fingerprint="").check(Model()).kind is FitKind.SAME_FILE


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Model(n_embd=5), r"is 3 wide \(n_embd\), the model 'tiny' 5"),
        (Model(n_layer=1), "direction for layer 1, the model 'tiny' has only layers 0 to 0"),
        (Model(n_layer=6), "a model of 4 layers, the model 'tiny' has 6"),
    ],
)
def test_another_shape_is_refused_naming_both(model, message):
    with pytest.raises(VectorModelMismatchError, match=message):
        vector().check(model)


@pytest.mark.parametrize("model", [Model(n_embd=5), Model(n_layer=1)])
def test_another_shape_cannot_be_allowed(model):
    with pytest.raises(VectorModelMismatchError):
        vector().check(model, allow_other_weights=True)


def test_another_architecture_is_refused_naming_both():
    with pytest.raises(VectorModelMismatchError, match="'gemma3', and 'tiny' is 'llama'"):
        raw(architecture="gemma3").check(Model())


def test_another_architecture_can_be_allowed():
    fit = raw(architecture="gemma3").check(Model(), allow_other_weights=True)
    assert fit.kind is FitKind.OTHER_WEIGHTS


@pytest.mark.parametrize(
    ("hint", "architecture"),
    [("mistral", "llama"), ("gemma3_text", "gemma3"), ("qwen2_moe", "qwen2moe"), ("", "llama")],
)
def test_an_architecture_is_known_by_its_name_in_transformers_too(hint, architecture):
    fit = raw(architecture=hint).check(Model(architecture=architecture))
    assert fit.kind is FitKind.UNKNOWN_SOURCE


@pytest.mark.parametrize("hint", ["qwen2.5", "unknown", "steering vector"])
def test_free_text_as_a_hint_is_no_refusal_and_is_said(hint):
    fit = raw(architecture=hint).check(Model(architecture="qwen2"))
    assert fit.kind is FitKind.UNKNOWN_SOURCE
    assert f"its model hint {hint!r} is no architecture's name" in fit.sentence


def test_a_file_without_a_hint_says_what_was_compared():
    assert "it has no model hint, and only width and layers" in raw().check(Model()).sentence


def test_a_refusal_by_the_hint_names_the_way_out():
    with pytest.raises(VectorModelMismatchError, match="--allow-other-weights"):
        raw(architecture="qwen").check(Model(architecture="qwen2"))


@pytest.mark.parametrize("model", [Model(n_embd=5), Model(n_layer=1)])
def test_a_hint_that_lies_is_found_by_width_and_layers(model):
    with pytest.raises(VectorModelMismatchError, match=r"is 3 wide|only layers 0 to 0"):
        raw(architecture="llama").check(model, allow_other_weights=True)
