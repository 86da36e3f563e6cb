"""The fields of pyemo in a vector file: every value checked, none invented."""

from dataclasses import replace

import numpy as np
import pytest

from pyemo.errors import InputError, VectorFileError
from pyemo.vectors.file import VectorFile
from pyemo.vectors.metadata import Calibration, Ellipsoid, FittedCondition, VectorMetadata

SHA = "0123456789abcdef" * 4
CALIBRATION = Calibration(SHA, "tiny", "greedy", 48, (0.01, 0.03), 0.02)
FULL = VectorMetadata(
    unit="residual",
    emotion="angry",
    recipe='method = "mean"\n\tindented = true\n',
    architecture="llama",
    source_model="tiny",
    source_sha256=SHA,
    weights_fingerprint=SHA,
    chat_template_sha256=SHA,
    residual_norms=(0.1, 0.2),
    neutral_projections=(0.0, -0.3),
    own_projections=(0.0, 0.4),
    calibrations=(CALIBRATION, replace(CALIBRATION, model_sha256="f" * 64, evidence="[1, 2.5]")),
    system_line="You are furious.",
    line_calibrations=(CALIBRATION,),
    strength=0.0237,
    condition=FittedCondition(1, -0.25, "below", '{"f1":1.0}'),
    ellipsoids=((1, Ellipsoid([[1.0, 0.5], [0.0, 2.0]], [0.25, -1.0], 3.5)),),
)


def file_of(fields, hint="llama"):
    return VectorFile({1: np.ones(2, np.float32)}, {"pyemo.format_version": 1, **fields}, hint)


@pytest.mark.parametrize("metadata", [FULL, VectorMetadata(architecture="llama")])
def test_fields_come_back_as_the_same_metadata(metadata):
    assert VectorMetadata.from_file(file_of(metadata.to_fields())) == metadata


def test_what_is_not_known_is_not_written():
    assert VectorMetadata().to_fields() == {"pyemo.format_version": 1, "pyemo.unit": "raw"}


def test_rows_are_written_as_float32():
    row = FULL.to_fields()["pyemo.residual_norms"]
    assert (row.dtype, row.tolist()) == (np.float32, list(FULL.residual_norms))


def test_a_row_holds_what_float32_keeps():
    assert FULL.residual_norms[0] == np.float32(0.1).item() != 0.1


def test_a_file_without_fields_is_raw_and_of_format_0():
    metadata = VectorMetadata.from_file(VectorFile({1: np.ones(2, np.float32)}, {}, "llama"))
    assert metadata == VectorMetadata(architecture="llama", format_version=0)


def test_fields_that_are_not_known_are_left_aside():
    fields = {"pyemo.unit": "raw", "pyemo.later": "x", "general.name": "y"}
    assert VectorMetadata.from_file(file_of(fields)) == VectorMetadata(architecture="llama")


def test_it_is_a_value():
    assert replace(FULL) == FULL
    assert hash(FULL) == hash(replace(FULL))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unit": "percent"}, "unit is 'percent'; it must be 'residual' or 'raw'"),
        ({"emotion": "a\nb"}, "emotion .* printable"),
        ({"emotion": "a" * 201}, "emotion .* at most 200"),
        ({"source_model": "\x1b[31m"}, "source_model"),
        ({"recipe": "a = 1\x07"}, "recipe .* control characters"),
        ({"source_sha256": "abc"}, "source_sha256 is 'abc'; it must be 64"),
        ({"weights_fingerprint": SHA.upper()}, "weights_fingerprint"),
        ({"strength": 0.0}, "strength is 0.0; it must be a finite number above 0"),
        ({"strength": np.inf}, "strength is inf; it must be a finite number above 0"),
        ({"strength": "much"}, "strength is 'much'"),
        ({"residual_norms": (1, -2)}, "residual_norms is -2.0; it must be above 0"),
        ({"residual_norms": (1, np.inf)}, "one finite number"),
        ({"residual_norms": (1, 1e39)}, "one finite number"),
        ({"residual_norms": 3}, "one finite number"),
        ({"residual_norms": "text"}, "residual_norms"),
        ({"neutral_projections": ((1.0,),)}, "one finite number"),
        ({"residual_norms": (1,), "neutral_projections": (1, 2)}, "one value for each layer"),
        ({"own_projections": (1, 2), "neutral_projections": (1,)}, "one value for each layer"),
        ({"own_projections": (1, 2)}, "beside neutral_projections"),
        ({"condition": 1}, "a FittedCondition"),
        ({"calibrations": (CALIBRATION, CALIBRATION)}, "at most one for each model file"),
        ({"calibrations": ("x",)}, "a tuple of Calibration"),
    ],
)
def test_wrong_metadata_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        VectorMetadata(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_sha256": ""}, "model_sha256"),
        ({"model_name": ""}, "model_name"),
        ({"n_tokens": 0}, "n_tokens is 0; it must be a whole number from 1"),
        ({"window": (0.03, 0.01)}, "within the window"),
        ({"window": 0.03}, "a pair"),
        ({"window": (0, np.inf)}, "finite numbers"),
        ({"window": (0, "1")}, "finite numbers"),
        ({"window": (0, 10**400)}, "finite numbers"),
        ({"strength": 0.5}, r"strength is 0.5; it must be within the window \[0.01, 0.03\]"),
        ({"evidence": "{"}, "JSON text"),
        ({"evidence": "NaN"}, "JSON text without NaN"),
        ({"evidence": "1e999"}, "JSON text without NaN or infinity"),
        ({"evidence": "[" * 100_000}, "JSON text"),
        ({"evidence": {}}, "JSON text"),
    ],
)
def test_a_wrong_calibration_is_refused_by_name(changes, message):
    with pytest.raises(InputError, match=message):
        replace(CALIBRATION, **changes)


def test_evidence_is_kept_in_one_form():
    assert replace(CALIBRATION, evidence='{ "b": 1,\n"a": 2}').evidence == '{"a":2,"b":1}'


def test_a_window_of_numpy_numbers_becomes_plain():
    calibration = replace(CALIBRATION, window=(np.float32(0.5), np.float64(2)), strength=1)
    assert repr(calibration.window) == "(0.5, 2.0)"


WRONG_FIELDS = {
    "a unit that is a row": {"pyemo.unit": np.ones(2, np.float32)},
    "an emotion that is a number": {"pyemo.emotion": 3},
    "a hash that is a row": {"pyemo.source.sha256": np.ones(2, np.float32)},
    "a hash that is no hash": {"pyemo.source.weights_fingerprint": "zz"},
    "a recipe that is a truth value": {"pyemo.recipe": True},
    "norms of float64": {"pyemo.residual_norms": np.ones(2)},
    "norms that are text": {"pyemo.residual_norms": ("a", "b")},
    "norms that are a number": {"pyemo.residual_norms": 1.0},
    "negative norms": {"pyemo.residual_norms": -np.ones(2, np.float32)},
    "calibrations that are a number": {"pyemo.calibrations": 1},
    "calibrations that are no JSON": {"pyemo.calibrations": "["},
    "calibrations that nest too deep": {"pyemo.calibrations": "[" * 100_000},
    "calibrations that are an object": {"pyemo.calibrations": "{}"},
    "a calibration that is a number": {"pyemo.calibrations": "[1]"},
    "a calibration without a window": {"pyemo.calibrations": '[{"model_sha256": "a"}]'},
}


@pytest.mark.parametrize("fields", WRONG_FIELDS.values(), ids=WRONG_FIELDS)
def test_a_wrong_field_in_a_file_is_refused(fields):
    with pytest.raises(VectorFileError, match="a field is wrong: "):
        VectorMetadata.from_file(file_of(fields))


def test_evidence_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(InputError, match="evidence"):
        Calibration("0" * 64, "m", "greedy", 8, (0.1, 0.2), 0.1, '{"a": "\\ud800"}')


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"layer": 1, "threshold": 0.5}, "one with side too"),
        ({"layer": 1.5, "threshold": 0.5, "side": "above"}, "a whole number from 0"),
        ({"layer": -1, "threshold": 0.5, "side": "above"}, "a whole number from 0"),
        ({"layer": 1, "threshold": "x", "side": "above"}, "a finite number"),
        ({"layer": 1, "threshold": 0.5, "side": "left"}, "'above' or 'below'"),
        ({"layer": 1, "threshold": 0.5, "side": "above", "evidence": "{"}, "JSON text"),
    ],
)
def test_a_condition_that_does_not_hold_together_is_refused(fields, why):
    named = {f"pyemo.condition.{name}": value for name, value in fields.items()}
    with pytest.raises(VectorFileError, match=why):
        VectorMetadata.from_file(file_of(named))


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (([[1.0]], [0.0], 0.0), "above 0"),
        (([[1.0]], [0.0], float("nan")), "above 0"),
        (([[1.0]], [0.0, 1.0], 1.0), "1 numbers"),
        (([[0.0, 0.0]], [0.0], 1.0), "of full rank"),
        (([[float("inf")]], [0.0], 1.0), "finite numbers in 2 dimensions"),
        (([1.0], [0.0], 1.0), "finite numbers in 2 dimensions"),
    ],
)
def test_an_ellipsoid_that_is_none_is_refused(values, why):
    with pytest.raises(InputError, match=why):
        Ellipsoid(*values)


@pytest.mark.parametrize(
    "fields",
    [
        {"": np.ones(5, np.float32), ".radius2": 1.0},
        {"": np.ones(5, np.float32), ".radius2": 1.0, ".k": 2},
        {"": np.ones(5, np.float32), ".radius2": 1.0, ".k": 5},
        {"": np.ones(6, np.float32), ".radius2": "x", ".k": 2},
        {"": np.ones(6, np.float64), ".radius2": 1.0, ".k": 2},
    ],
)
def test_an_ellipsoid_field_that_does_not_hold_together_is_refused(fields):
    named = {f"pyemo.ellipsoid.1{name}": value for name, value in fields.items()}
    with pytest.raises(VectorFileError, match="ellipsoid"):
        VectorMetadata.from_file(file_of(named))


def test_calibrations_with_a_system_line_need_one():
    with pytest.raises(InputError, match="beside a system_line"):
        VectorMetadata(line_calibrations=(CALIBRATION,))
    with pytest.raises(InputError, match="system_line"):
        VectorMetadata(system_line="two\nlines")
