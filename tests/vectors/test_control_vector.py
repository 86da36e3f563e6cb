"""The control vector: what it holds, its arithmetic, its files."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pyemo.errors import (
    InputError,
    VectorError,
    VectorFileError,
    VectorModelMismatchError,
    VectorNotFoundError,
    VectorShapeError,
)
from pyemo.files import catalog
from pyemo.vectors import file as vector_file
from pyemo.vectors.control_vector import Calibration, ControlVector, FitKind, VectorMetadata
from pyemo.vectors.file import VectorFile
from pyemo.vectors.identity import ModelIdentity

GOLDEN = Path(__file__).parents[1] / "golden"
SHA = "a" * 64


@dataclass
class Model:
    """The attributes of a Model that a control vector asks for."""

    name: str = "tiny"
    architecture: str = "llama"
    n_layer: int = 4
    n_embd: int = 3
    file_sha256: str = SHA
    weights_fingerprint: str = "b" * 64
    chat_template_sha256: str | None = None


CALIBRATION = Calibration(SHA, "tiny", "greedy", 48, (0.01, 0.03), 0.02, '{"surgical": 37}')
METADATA = VectorMetadata(
    unit="residual",
    emotion="angry",
    recipe='method = "mean"\n',
    architecture="llama",
    source_model="tiny",
    source_sha256=SHA,
    weights_fingerprint="b" * 64,
    chat_template_sha256="c" * 64,
    residual_norms=(1.0, 2.0, 3.0, 4.0),
    neutral_projections=(0.0, 0.5, -0.25, 0.0),
    own_projections=(0.0, 1.5, 0.75, 0.0),
    calibrations=(CALIBRATION,),
)


@pytest.fixture
def angry():
    return ControlVector({2: [0, 0, 3], 1: [0, 2, 0]}, name="angry", metadata=METADATA)


@pytest.fixture
def sad():
    return ControlVector({2: [3, 0, 0], 3: [0, 4, 0]}, name="sad", metadata=METADATA)


def rows(vector):
    return {layer: row.tolist() for layer, row in vector.directions.items()}


# --- what it holds ---------------------------------------------------------------------------


def test_layers_are_sorted(angry):
    assert angry.layers == tuple(angry.directions) == (1, 2)


def test_directions_are_float32_copies():
    row = np.ones(3)
    vector = ControlVector({1: row})
    row[:] = 7
    assert vector.directions[1].dtype == np.float32
    assert vector.directions[1].tolist() == [1, 1, 1]


def test_a_direction_cannot_be_written_to(angry):
    with pytest.raises(ValueError, match="read-only"):
        angry.directions[1][0] = 1


def test_directions_cannot_be_added_or_removed(angry):
    with pytest.raises(TypeError):
        angry.directions[3] = angry.directions[1]


def test_it_has_no_attributes_to_set(angry):
    with pytest.raises(AttributeError):
        angry.name = "sad"


def test_it_is_a_key_equal_only_to_itself(angry):
    twin = ControlVector(angry.directions, metadata=angry.metadata)
    assert {angry: 0.02, twin: 0.5}[angry] == 0.02


def test_nothing_known_means_the_unit_raw():
    vector = ControlVector({1: [1.0]})
    assert (vector.unit, dict(vector.residual_norms)) == ("raw", {})


def test_norms_cover_all_layers_and_projections_those_with_a_direction(angry):
    assert dict(angry.residual_norms) == {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}
    assert dict(angry.neutral_projections) == {1: 0.5, 2: -0.25}


def test_layer_0_can_be_held():
    assert ControlVector({0: [1.0]}).layers == (0,)


def test_its_repr_says_what_it_is(angry):
    assert repr(angry) == (
        "<ControlVector 'angry', emotion='angry', n_embd=3, layers=1:3, unit='residual'>"
    )


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ({}, "holds no direction"),
        ({1: [1.0], 2: [1.0, 2.0]}, "direction 2 of width 2"),
        ({1: [[1.0, 2.0]]}, r"shape \(1, 2\)"),
        ({1: []}, r"shape \(0,\)"),
        ({1: [1.0, np.nan]}, "NaN or infinity in direction 1"),
        ({1: [1e39]}, "NaN or infinity in direction 1"),
        ({1: "text"}, "not a row of numbers"),
        ({1: [[1.0], [1.0, 2.0]]}, "not a row of numbers"),
    ],
)
def test_wrong_directions_are_refused_by_name(directions, message):
    with pytest.raises(VectorShapeError, match=message):
        ControlVector(directions)


@pytest.mark.parametrize("layer", [-1, 1.5, "1", True, None])
def test_a_layer_that_is_no_whole_number_is_refused(layer):
    with pytest.raises(InputError, match="a layer is a whole number from 0"):
        ControlVector({layer: [1.0]})


def test_norms_for_fewer_layers_than_directions_are_refused():
    with pytest.raises(VectorShapeError, match=r"direction for layer 5, but .* 4 layers only"):
        ControlVector({5: [1.0]}, metadata=METADATA)


# --- arithmetic ------------------------------------------------------------------------------


def test_a_sum_adds_shared_layers_and_keeps_the_others(angry, sad):
    assert rows(angry + sad) == {1: [0, 2, 0], 2: [3, 0, 3], 3: [0, 4, 0]}


def test_a_difference_subtracts(angry, sad):
    assert rows(angry - sad) == {1: [0, 2, 0], 2: [-3, 0, 3], 3: [0, -4, 0]}


def test_a_vector_minus_itself_is_zero(angry):
    assert rows(angry - angry) == {1: [0, 0, 0], 2: [0, 0, 0]}


def test_multiplying_scales_every_direction(angry):
    assert rows(angry * 2) == rows(2 * angry) == {1: [0, 4, 0], 2: [0, 0, 6]}


def test_dividing_scales_every_direction(angry):
    assert rows(angry / 2) == {1: [0, 1, 0], 2: [0, 0, 1.5]}


def test_minus_minus_twenty_is_exactly_twenty(angry):
    vector = ControlVector({1: [0.1, 0.7, 1 / 3]})
    assert rows(-(vector * -20)) == rows(20 * vector)


@pytest.mark.parametrize("two", [np.float64(2), np.float32(2), np.int64(2)])
def test_numbers_of_numpy_scale_from_either_side(angry, two):
    assert rows(two * angry) == rows(angry * two) == rows(angry * 2)


def test_arithmetic_leaves_its_operands_alone(angry, sad):
    _ = angry + sad, angry * 3, -angry
    assert rows(angry) == {1: [0, 2, 0], 2: [0, 0, 3]}


def test_units_must_agree(angry):
    with pytest.raises(VectorError, match=r"'angry' \(unit 'residual'\) .* rescale the raw one"):
        angry + ControlVector({1: [1, 2, 3]})


def test_widths_must_agree(angry):
    narrow = ControlVector({1: [1.0]}, metadata=VectorMetadata(unit="residual"))
    with pytest.raises(VectorShapeError, match=r"3 wide.*1 wide"):
        angry - narrow


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400])
def test_a_factor_must_be_finite(angry, number):
    with pytest.raises(InputError, match="finite numbers"):
        angry * number


def test_dividing_by_zero_is_refused(angry):
    with pytest.raises(InputError, match="by 0"):
        angry / 0


@pytest.mark.parametrize("factor", [1e300, 1e-320])
def test_what_overflows_is_refused_by_layer(angry, factor):
    with pytest.raises((VectorShapeError, InputError), match=r"infinity in direction|finite"):
        (angry * 1e30) * factor if factor > 1 else angry / factor


@pytest.mark.parametrize("other", ["x", None, [1.0]])
def test_other_things_cannot_be_combined_with_it(angry, other):
    with pytest.raises(TypeError):
        angry + other
    with pytest.raises(TypeError):
        angry * other


def test_a_sum_keeps_what_both_agree_on_and_is_no_emotions(angry, sad):
    expected = replace(
        METADATA,
        emotion="",
        recipe="",
        calibrations=(),
        neutral_projections=(),
        own_projections=(),
    )
    assert (angry + sad).metadata == expected


def test_a_sum_drops_what_the_parts_disagree_on(angry, sad):
    other = sad.with_metadata(
        replace(METADATA, source_sha256="d" * 64, residual_norms=(1.0, 2.0, 3.0, 5.0))
    )
    metadata = (angry + other).metadata
    assert (metadata.source_sha256, metadata.residual_norms) == ("", ())
    assert metadata.weights_fingerprint == METADATA.weights_fingerprint


def test_a_positive_factor_keeps_neutral_projections(angry):
    assert dict((angry * 3).neutral_projections) == {1: 0.5, 2: -0.25}


def test_a_negative_factor_turns_neutral_projections_round(angry):
    assert dict((-angry).neutral_projections) == {1: -0.5, 2: 0.25}
    assert dict((angry * -3).neutral_projections) == {1: -0.5, 2: 0.25}


def test_own_projections_follow_the_sign_of_a_factor(angry):
    assert dict((angry * 3).own_projections) == {1: 1.5, 2: 0.75}
    assert dict((angry * -3).own_projections) == {1: -1.5, 2: -0.75}


def test_own_projections_are_kept_in_the_file(angry, tmp_path):
    angry.save(tmp_path / "angry.gguf")
    loaded = ControlVector.load(tmp_path / "angry.gguf")
    assert dict(loaded.own_projections) == {1: 1.5, 2: 0.75}


def test_the_factor_zero_leaves_no_neutral_projections(angry):
    assert dict((angry * 0).neutral_projections) == {}


def test_a_scaled_vector_is_no_emotions_and_has_no_calibration(angry):
    metadata = (angry * 2).metadata
    assert (metadata.emotion, metadata.recipe, metadata.calibrations) == ("", "", ())
    assert metadata.residual_norms == METADATA.residual_norms


def test_a_computed_vectors_name_says_how(angry, sad):
    assert ((angry + sad) * -0.5).name == "-0.5 * (angry + sad)"


def test_a_computed_vectors_name_does_not_grow_without_end(angry):
    total = angry
    for _ in range(50):
        total = total + angry
    assert len(total.name) <= 80


# --- other vectors from it -------------------------------------------------------------------


def test_only_layers_keeps_those(angry):
    assert rows(angry.only_layers(range(2, 10))) == {2: [0, 0, 3]}


def test_only_layers_takes_any_layers(angry, sad):
    assert (angry + sad).only_layers([3, 1]).layers == (1, 3)


def test_only_layers_drops_calibrations_and_keeps_the_rest(angry):
    metadata = angry.only_layers([2]).metadata
    assert metadata == replace(
        METADATA,
        neutral_projections=(0, 0, -0.25, 0),
        own_projections=(0, 0, 0.75, 0),
        calibrations=(),
    )


def test_only_layers_with_all_layers_is_the_same_vector(angry):
    assert angry.only_layers(range(10**12)) is angry


def test_only_layers_without_a_direction_is_refused(angry):
    with pytest.raises(InputError, match="no direction in layers 5:10; it has layers 1:3"):
        angry.only_layers(range(5, 10))


def test_a_raw_vector_can_be_shifted():
    assert rows(ControlVector({1: [1.0], 3: [3.0]}).shifted(-1)) == {0: [1.0], 2: [3.0]}


def test_a_shift_below_layer_0_is_refused():
    with pytest.raises(InputError, match="first direction is layer 1"):
        ControlVector({1: [1.0]}).shifted(-2)


def test_a_vector_in_residual_units_cannot_be_shifted(angry):
    with pytest.raises(VectorError, match="only raw vectors"):
        angry.shifted(-1)


def test_rescaled_directions_are_as_long_as_the_norms():
    vector = ControlVector({1: [3, 4, 0], 2: [0, 0, -0.5]}).rescaled((1, 10, 20, 30))
    assert rows(vector) == {1: [6, 8, 0], 2: [0, 0, -20]}
    assert (vector.unit, dict(vector.residual_norms)) == ("residual", {0: 1, 1: 10, 2: 20, 3: 30})


def test_rescaling_is_exact_to_float32():
    generator = np.random.default_rng(0)
    row = generator.standard_normal(500).astype(np.float32)
    vector = ControlVector({1: row}).rescaled((1.0, 7.7))
    assert np.linalg.norm(vector.directions[1].astype(np.float64)) == pytest.approx(7.7, rel=1e-6)


def test_rescaling_takes_neutral_projections():
    vector = ControlVector({1: [1, 0, 0]}).rescaled((1, 2), (0, 0.5))
    assert dict(vector.neutral_projections) == {1: 0.5}


def test_rescaling_records_the_model_as_the_source():
    vector = ControlVector({1: [1, 0, 0]}).rescaled((1, 2, 3, 4), source=Model())
    assert vector.check(Model()).kind is FitKind.SAME_FILE


@pytest.mark.parametrize(
    ("norms", "error", "message"),
    [
        ((1,), VectorShapeError, "layer 1, but 1 residual norms"),
        ((1, 0), InputError, "residual_norms is 0.0; it must be above 0"),
        ((1, float("nan")), InputError, "one finite number for each layer"),
    ],
)
def test_wrong_norms_are_refused(norms, error, message):
    with pytest.raises(error, match=message):
        ControlVector({1: [1, 0, 0]}).rescaled(norms)


def test_a_zero_direction_cannot_be_rescaled():
    with pytest.raises(VectorShapeError, match="zero direction at layer 1"):
        ControlVector({1: [0, 0, 0]}).rescaled((1, 2))


# --- dose ------------------------------------------------------------------------------------


def test_the_dose_is_the_summed_displacement_over_the_last_norm(angry):
    assert angry.dose(0.5) == pytest.approx(0.5 * np.hypot(2, 3) / 4)


def test_the_dose_of_some_layers_counts_those(angry):
    assert angry.dose(0.5, layers=range(2, 3)) == pytest.approx(0.5 * 3 / 4)


def test_the_dose_has_no_sign(angry):
    assert angry.dose(-0.5) == angry.dose(0.5)


def test_directions_that_cancel_have_no_dose(angry):
    vector = ControlVector({1: [1, 0, 0], 2: [-1, 0, 0]}, metadata=METADATA)
    assert vector.dose(1) == 0


def test_the_dose_of_a_raw_vector_is_not_known():
    with pytest.raises(VectorError, match=r"unit 'raw'.* no residual norms.* rescale"):
        ControlVector({1: [1.0]}).dose(0.02)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), "1", None])
def test_the_strength_of_a_dose_must_be_finite(angry, strength):
    with pytest.raises(InputError, match="a strength is a finite number"):
        angry.dose(strength)


# --- calibrations ----------------------------------------------------------------------------


def test_a_calibration_is_found_by_the_model_file(angry):
    assert angry.calibration_for(SHA) == CALIBRATION
    assert angry.calibration_for("f" * 64) is None


def test_a_new_calibration_replaces_that_of_the_same_file(angry):
    newer = replace(CALIBRATION, strength=0.015)
    assert angry.with_calibration(newer).metadata.calibrations == (newer,)


def test_of_several_lengths_the_shortest_that_is_long_enough_is_found(angry):
    short = replace(CALIBRATION, n_tokens=48, strength=0.02)
    long = replace(CALIBRATION, n_tokens=256, strength=0.01)
    other = replace(long, model_sha256="d" * 64)
    bare = angry.with_metadata(replace(METADATA, calibrations=()))
    both = bare.with_calibration(long).with_calibration(short).with_calibration(other)
    found = [both.calibration_for(SHA, n) for n in (1, 48, 49, 256, 1000)]
    assert found == [short, short, long, long, long]
    assert both.calibration_for(SHA) == short


def test_what_is_recommended_is_calibrated_else_trained_else_the_default(angry):
    model = ModelIdentity("m", "llama", 4, 3, SHA)
    trained = angry.with_metadata(replace(METADATA, strength=0.03))
    assert trained.recommended(model).strength == CALIBRATION.strength
    other = replace(model, file_sha256="f" * 64)
    assert (trained.recommended(other).strength, trained.recommended(other).source) == (
        0.03,
        "trained",
    )
    assert angry.recommended(other).source == "default"
    with pytest.raises(InputError, match=r"raw.* no default strength"):
        ControlVector({1: [1.0]}).recommended(other)


def test_a_multiple_or_a_part_has_no_strength_of_training(angry):
    trained = angry.with_metadata(replace(METADATA, strength=0.03))
    for changed in (trained * 2.0, trained.only_layers([1]), trained + trained):
        assert changed.metadata.strength is None
    assert trained.only_layers([1, 2]).metadata.strength == 0.03


def test_strengths_beside_a_system_line_are_kept_apart(angry):
    line = angry.with_system_line("You are furious.")
    assert line.recommended(Model(), with_line=True).strength == pytest.approx(0.0133)
    both = line.with_calibration(replace(CALIBRATION, strength=0.015), with_line=True)
    assert both.recommended(Model(), with_line=True).strength == 0.015
    assert both.recommended(Model()).strength == CALIBRATION.strength
    assert both.with_system_line("You are furious.") is both
    other = both.with_system_line("You are cross.").metadata
    assert (other.system_line, other.line_calibrations) == ("You are cross.", ())
    assert other.calibrations == (CALIBRATION,)
    assert both.without_calibrations(SHA, [48], with_line=True).metadata == line.metadata


def test_a_calibration_of_another_file_is_added(angry):
    other = replace(CALIBRATION, model_sha256="d" * 64)
    assert angry.with_calibration(other).metadata.calibrations == (CALIBRATION, other)


# --- files -----------------------------------------------------------------------------------


def test_a_saved_vector_comes_back_whole(angry, tmp_path):
    angry.save(tmp_path / "file.gguf")
    loaded = ControlVector.load(tmp_path / "file.gguf")
    assert rows(loaded) == rows(angry)
    assert loaded.metadata == angry.metadata
    assert loaded.name == "file"


def test_save_load_save_gives_equal_bytes(angry, tmp_path):
    angry.save(tmp_path / "one.gguf")
    ControlVector.load(tmp_path / "one.gguf").save(tmp_path / "two.gguf")
    assert (tmp_path / "one.gguf").read_bytes() == (tmp_path / "two.gguf").read_bytes()


@pytest.mark.parametrize("name", ["v1-residual", "v1-raw"])
def test_a_golden_file_is_written_today_byte_for_byte(name, tmp_path):
    ControlVector.load(GOLDEN / f"{name}.gguf").save(tmp_path / "again.gguf")
    assert (tmp_path / "again.gguf").read_bytes() == (GOLDEN / f"{name}.gguf").read_bytes()


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.gguf")), ids=lambda path: path.stem)
def test_every_golden_file_loads(path):
    assert ControlVector.load(path).layers


def test_the_golden_file_with_every_field_says_what_it_said():
    vector = ControlVector.load(GOLDEN / "v1-residual.gguf")
    assert rows(vector) == {
        layer: [0.25 * layer * index - 0.5 for index in range(8)] for layer in (1, 2, 4)
    }
    assert vector.metadata == VectorMetadata(
        unit="residual",
        emotion="angry",
        recipe='method = "mean"\nlayers = [1, 2, 4]\n',
        architecture="llama",
        source_model="golden-model",
        source_sha256="a" * 64,
        weights_fingerprint="b" * 64,
        chat_template_sha256="c" * 64,
        residual_norms=(1.5, 2.5, 3.5, 4.5, 5.5),
        neutral_projections=(0, 0.25, -0.5, 0, 0.75),
        calibrations=(
            Calibration(
                model_sha256="a" * 64,
                model_name="golden-model",
                sampler="greedy",
                n_tokens=48,
                window=(0.01, 0.03),
                strength=0.02,
                evidence='{"texts": 40, "surgical": 37, "note": "größer"}',
            ),
        ),
    )


@pytest.mark.parametrize("name", ["repeng", "cvector-generator"])
def test_files_of_other_tools_are_raw(name):
    vector = ControlVector.load(GOLDEN / f"{name}.gguf")
    assert (vector.unit, vector.metadata.format_version) == ("raw", 0)


def test_layer_0_cannot_be_saved(tmp_path):
    vector = ControlVector({0: [1.0]}, metadata=VectorMetadata(architecture="llama"))
    with pytest.raises(VectorFileError, match="layer 0"):
        vector.save(tmp_path / "zero.gguf")


def test_a_vector_of_zeros_alone_is_neither_saved_nor_loaded(angry, tmp_path):
    with pytest.raises(VectorFileError, match="all zeros"):
        (angry - angry).save(tmp_path / "zeros.gguf")
    rows = {layer: np.zeros_like(row) for layer, row in angry.directions.items()}
    vector_file.write(tmp_path / "zeros.gguf", VectorFile(rows, {}, "llama"))
    with pytest.raises(VectorFileError, match=r"zeros\.gguf.*nothing but zeros"):
        ControlVector.load(tmp_path / "zeros.gguf")


def test_a_vector_with_zeros_at_some_layers_is_kept_as_it_is(tmp_path):
    meta = VectorMetadata(architecture="llama")
    ControlVector({1: [0.0, 0.0], 2: [1.0, 0.0]}, metadata=meta).save(tmp_path / "half.gguf")
    assert ControlVector.load(tmp_path / "half.gguf").zero_layers == (1,)


def test_a_vector_of_no_architecture_cannot_be_saved(tmp_path):
    with pytest.raises(VectorFileError, match=r"architecture.*with_metadata"):
        ControlVector({1: [1.0]}).save(tmp_path / "none.gguf")


def test_a_file_that_exists_wins_over_a_bundled_vector(angry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (angry * 2).save("anger")
    assert rows(ControlVector.load("anger", model=Model())) == rows(angry * 2)


def test_a_name_is_looked_up_for_the_model(angry, tmp_path, monkeypatch):
    angry.save(tmp_path / "angry.gguf")
    asked = []

    def vector_path(*names):
        asked.append(names)
        return tmp_path / "angry.gguf"

    monkeypatch.setattr(catalog, "vector_path", vector_path)
    monkeypatch.chdir(tmp_path)
    assert ControlVector.load("anger", model=Model()).name == "angry"
    ControlVector.load("anger", model=Model(), use="reading")
    assert asked == [("anger", "tiny", "writing"), ("anger", "tiny", "reading")]


def test_a_folder_of_an_emotions_name_does_not_hide_the_bundled_vector(
    angry, tmp_path, monkeypatch
):
    angry.save(tmp_path / "angry.gguf")
    monkeypatch.setattr(catalog, "vector_path", lambda *_: tmp_path / "angry.gguf")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "anger").mkdir()
    assert ControlVector.load("anger", model=Model()).name == "angry"


def test_a_name_without_a_model_is_refused_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VectorNotFoundError, match=r"no vector file 'anger'.*model=engine.model"):
        ControlVector.load("anger")


@pytest.mark.parametrize("path", ["nowhere.gguf", "no/where"])
def test_a_path_is_not_taken_for_a_name(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VectorNotFoundError, match="no vector file"):
        ControlVector.load(path, model=Model())


def test_a_loaded_vector_is_checked_against_the_model(angry, tmp_path):
    angry.save(tmp_path / "angry.gguf")
    with pytest.raises(VectorModelMismatchError):
        ControlVector.load(tmp_path / "angry.gguf", model=Model(n_embd=5))


def test_other_weights_can_be_allowed_while_loading(angry, tmp_path):
    angry.save(tmp_path / "angry.gguf")
    stranger = Model(file_sha256="e" * 64, weights_fingerprint="e" * 64)
    with pytest.raises(VectorModelMismatchError):
        ControlVector.load(tmp_path / "angry.gguf", model=stranger)
    ControlVector.load(tmp_path / "angry.gguf", model=stranger, allow_other_weights=True)
