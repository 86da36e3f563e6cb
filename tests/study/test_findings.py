"""Findings on synthetic states: what was planted is found, and verdicts say no more than that."""

from __future__ import annotations

import numpy as np
import pytest
from study.synthetic import EMOTIONS, N_LAYER, planted

from pyemo.errors import InputError
from pyemo.measures.regimes import TextRegime
from pyemo.study import (
    anisotropy,
    geometry,
    layers,
    leakage,
    methods,
    regime_map,
    separation,
    steering_check,
)
from pyemo.study.finding import Verdict
from pyemo.study.states import States
from pyemo.study.writing_systems import SCRIPTS, script_of, scripts_of

FEW = 200


# --- separation ---


def test_separation_finds_the_planted_cosine() -> None:
    # own and shared parts are orthogonal up to chance: cosine = shared^2 / (shared^2 + own^2)
    found = separation.separate(planted(1.0, shared=1.0, noise=0.01), n_resamples=FEW)
    assert found.middle.value == pytest.approx(0.5, abs=0.12)


def test_close_emotions_hold_the_papers_floor() -> None:
    close = [separation.separate(planted(0.5, noise=0.05), n_resamples=FEW)]
    assert separation.finding(close).verdict is Verdict.HOLDS


def test_emotions_far_apart_do_not_hold_it() -> None:
    far = [separation.separate(planted(3.0, noise=0.05), n_resamples=FEW)]
    assert separation.finding(far).verdict is Verdict.DOES_NOT


def test_centring_on_the_emotions_hides_how_close_they_are() -> None:
    near, far = (
        separation.separate(planted(spread, noise=0.01), n_resamples=FEW) for spread in (0.3, 3.0)
    )
    assert near.curves["neutral"].mean() > far.curves["neutral"].mean() + 0.5
    assert near.curves["emotions"].mean() == pytest.approx(near.centred_floor, abs=0.02)
    assert far.curves["emotions"].mean() == pytest.approx(far.centred_floor, abs=0.02)


def test_states_without_neutral_texts_are_refused() -> None:
    states = planted()
    kept = {name: rows for name, rows in states.by_class.items() if name != "neutral"}
    with pytest.raises(InputError, match="no neutral texts"):
        States("m", "generation", N_LAYER, kept, {})


# --- methods ---


def test_a_better_method_is_found() -> None:
    results = [
        methods.compare(
            planted(2.0, seed=seed, model=f"m{seed}"),
            planted(0.6, seed=seed + 50, model=f"m{seed}", method="comprehension"),
            n_resamples=FEW,
        )
        for seed in range(3)
    ]
    found = methods.finding(results)
    assert found.verdict is Verdict.HOLDS
    assert "cannot say" in found.reason  # of the group test, with 3 models against 3


def test_a_worse_method_is_found() -> None:
    result = methods.compare(
        planted(0.6), planted(2.0, seed=5, method="comprehension"), n_resamples=FEW
    )
    assert methods.finding([result]).verdict is Verdict.DOES_NOT


def test_methods_without_common_emotions_are_refused() -> None:
    others = planted(emotions=("afraid", "gloomy"), method="comprehension")
    with pytest.raises(InputError, match="in common"):
        methods.compare(planted(), others)


# --- layers ---


def test_a_middle_minimum_is_found_with_certainty() -> None:
    depth = np.arange(N_LAYER - 1)
    spread = 2.5 - np.abs(depth - 6) * 0.35
    found = layers.localize(planted(spread, noise=0.1), n_resamples=100)
    assert found.best in layers.middle_third(N_LAYER)
    assert found.share_in_middle >= layers.SURE
    assert layers.finding([found]).verdict is Verdict.HOLDS


def test_a_late_minimum_is_found_with_certainty() -> None:
    spread = np.linspace(0.4, 3.0, N_LAYER - 1)
    found = layers.localize(planted(spread, noise=0.1), n_resamples=100)
    assert layers.finding([found]).verdict is Verdict.DOES_NOT


def test_a_flat_curve_says_nothing() -> None:
    found = layers.localize(planted(1.0, noise=1.0), n_resamples=100)
    assert layers.finding([found]).verdict is Verdict.CANNOT_SAY


def test_held_out_accuracy_is_high_where_classes_are_apart_and_chance_where_not() -> None:
    spread = np.where(np.arange(N_LAYER - 1) < 6, 0.0, 4.0)
    accuracy = layers.held_out_accuracy(planted(spread, noise=0.3, n_held_out=20))
    assert accuracy is not None
    assert accuracy[6:].min() > 0.95
    assert accuracy[:6].mean() == pytest.approx(1 / len(EMOTIONS), abs=0.08)


def test_without_held_out_texts_there_is_no_accuracy() -> None:
    assert layers.held_out_accuracy(planted(n_held_out=0)) is None


# --- anisotropy ---


def test_anisotropy_is_the_planted_share_of_a_common_offset() -> None:
    rng = np.random.default_rng(0)
    offset = np.zeros((12, 64))
    offset[:, 0] = 8.0  # as long as the noise: cosine 64 / (64 + 64)
    rows = (offset + rng.standard_normal((60, 12, 64))).astype(np.float32)
    found = anisotropy.measure("m", N_LAYER, rows, rows)
    assert found.at_middle.value == pytest.approx(0.5, abs=0.03)
    assert found.at_middle.low < found.at_middle.value < found.at_middle.high


def test_random_groups_have_cosine_one_half() -> None:
    rows = np.random.default_rng(1).standard_normal((64, 12, 64)).astype(np.float32)
    found = anisotropy.measure("m", N_LAYER, rows, rows)
    assert found.grouped.mean() == pytest.approx(0.5, abs=0.05)


def test_real_separation_lies_below_random_groups() -> None:
    rows = np.random.default_rng(2).standard_normal((64, N_LAYER - 1, 48)).astype(np.float32)
    baseline = anisotropy.measure("planted", N_LAYER, rows, rows)
    apart = separation.separate(planted(3.0, shared=0.5), n_resamples=FEW)
    assert anisotropy.finding([baseline], [apart]).verdict is Verdict.HOLDS


# --- geometry ---


def test_models_that_arrange_emotions_alike_are_found_alike() -> None:
    sets = [planted(2.0, seed=i, model=f"m{i}", noise=0.2) for i in range(2)]
    assert geometry.finding(sets).verdict is Verdict.HOLDS


def test_models_that_do_not_are_not() -> None:
    sets = [planted(2.0, seed=i, model=f"m{i}", class_seed=i, noise=0.2) for i in range(2)]
    found = geometry.finding(sets)
    assert found.verdict is Verdict.DOES_NOT


def test_one_model_is_said_to_be_alone() -> None:
    found = geometry.finding([planted()])
    assert found.verdict is Verdict.CANNOT_SAY
    assert found.gaps


def test_a_set_with_few_emotions_takes_none_from_the_others() -> None:
    names = ("happy", "sad", "angry", "calm", "proud", "afraid")
    sets = [planted(2.0, seed=i, model=f"m{i}", noise=0.2, emotions=names) for i in range(2)]
    sets.append(planted(2.0, seed=2, model="m2", noise=0.2, emotions=names[:4]))
    assert [len(pair.a.emotions) for pair in geometry.compare(sets)] == [6, 4, 4]
    assert [len(g.emotions) for g in geometry.measure(sets)] == [6, 6, 4]


def test_too_few_emotions_have_no_geometry() -> None:
    assert geometry.measure([planted(emotions=("happy", "sad", "calm"))]) == []


# --- steering check ---


def case(condition: str, success: bool, *, second: bool | None = None) -> steering_check.Case:
    return steering_check.Case(
        "m",
        condition,  # type: ignore[arg-type]
        "angry",
        "p",
        0.02,
        "plain",
        "text",
        success,
        second,
        True,
        True,
    )


def cases_of(n_vector: int, n_random: int) -> list[steering_check.Case]:
    return [
        *(case("vector", i < n_vector) for i in range(40)),
        *(case("random", i < n_random) for i in range(40)),
        *(case("system", i < 10) for i in range(40)),
    ]


def test_37_of_40_beside_chance_holds() -> None:
    assert steering_check.finding(cases_of(37, 18), None).verdict is Verdict.HOLDS


def test_half_of_40_does_not_hold() -> None:
    assert steering_check.finding(cases_of(20, 18), None).verdict is Verdict.DOES_NOT


def test_success_needs_every_judge() -> None:
    assert not case("vector", True, second=False).success
    assert case("vector", True, second=False).by_minilm
    assert case("vector", True, second=True).success


def test_subject_threshold_lets_one_answer_to_another_prompt_in_ten_pass() -> None:
    rows = np.random.default_rng(0).standard_normal((80, 64))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    answers, prompts = rows[:40], rows[40:]
    cosines = (answers @ prompts.T)[~np.eye(40, dtype=bool)]
    threshold = steering_check.subject_threshold(answers, prompts)
    assert np.mean(cosines >= threshold) == pytest.approx(0.1, abs=0.01)


# --- regimes ---


def point(strength: float, n_coherent: int, emotion: str = "angry") -> regime_map.Point:
    bad = 10 - n_coherent
    regimes = (TextRegime.COHERENT,) * n_coherent + (TextRegime.REPETITIVE_COLLAPSE,) * bad
    holds = tuple(r is TextRegime.COHERENT for r in regimes)
    return regime_map.Point("m", "llama", emotion, strength, strength, regimes, holds, 1.0)


def test_the_cliff_is_the_first_strength_with_too_few_coherent_texts() -> None:
    points = [point(0.05, 2), point(0.01, 10), point(0.02, 9), point(0.03, 8)]
    edge = regime_map.cliff(points)
    assert edge is not None
    assert edge.strength == 0.03


def test_the_strength_chosen_lies_before_the_cliff_even_where_more_effect_is_beyond() -> None:
    points = [point(0.01, 10), point(0.02, 9), point(0.03, 5)]
    assert regime_map.best(points, [0.1, 0.2, 0.9]) == 1


def test_no_strength_is_chosen_where_none_is_coherent() -> None:
    assert regime_map.best([point(0.01, 3)], [1.0]) is None


def test_few_models_cannot_tell_architecture_from_size() -> None:
    found = regime_map.finding([point(0.01, 10), point(0.05, 2)])
    assert found.verdict is Verdict.CANNOT_SAY
    assert "mostly repetitive collapse" in found.ours


# --- leakage ---


def leak(emotion: str, strength: float, mass: float, *, seed: int) -> leakage.Leak:
    rng = np.random.default_rng(seed)
    masses = np.abs(mass + 0.001 * rng.standard_normal(8))
    tokens = (("CJK", "\u627e"),) if mass > 0.05 else ()
    return leakage.Leak("qwen", "qwen2", emotion, strength, masses, masses, tokens, True)


def test_a_leaking_vector_is_found() -> None:
    leaks = [leak("angry", s, 0.1, seed=i) for i, s in enumerate((0.01, 0.02))]
    leaks += [leak("random", s, 0.01, seed=9 + i) for i, s in enumerate((0.01, 0.02))]
    found = leakage.finding(leaks)
    assert found.verdict is Verdict.HOLDS


def test_a_vector_that_leaks_as_a_random_one_is_not() -> None:
    leaks = [leak("angry", s, 0.01, seed=i) for i, s in enumerate((0.01, 0.02))]
    leaks += [leak("random", s, 0.01, seed=9 + i) for i, s in enumerate((0.01, 0.02))]
    assert leakage.finding(leaks).verdict is Verdict.DOES_NOT


def test_measure_counts_only_scripts_that_prompt_and_twin_lack() -> None:
    masses = np.zeros((1, 2, len(SCRIPTS)), np.float32)
    masses[0, 0, SCRIPTS.index("CJK")] = 0.4
    masses[0, 0, SCRIPTS.index("LATIN")] = 0.6
    pieces = [[("LATIN", " hello"), ("CJK", "\u627e"), ("GREEK", "\u03b1"), ("common", "1")]]
    shares, mass, tokens = leakage.measure(["say \u03b1"], ["hello"], pieces, masses)
    assert shares[0] == pytest.approx(0.25)
    assert mass[0] == pytest.approx(0.4)
    assert tokens == (("CJK", "\u627e"),)


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        (b" hello", "LATIN"),
        ("\u627e\u4e86".encode(), "CJK"),
        ("\u627e".encode()[:2], "CJK"),
        ("\u0441\u043e\u044e\u0437".encode(), "CYRILLIC"),
        ("\U0001f600".encode(), "emoji"),
        (b"12, ", "common"),
        (b"\x9e", "common"),
        ("\u10d0".encode(), "other"),
    ],
)
def test_a_tokens_script(piece: bytes, expected: str) -> None:
    assert script_of(piece) == expected


def test_scripts_of_a_text() -> None:
    assert scripts_of("hello \u627e 1") == {"common", "LATIN", "CJK"}


# --- null data ---


@pytest.mark.quality
@pytest.mark.parametrize("seed", [0])
def test_on_null_data_the_tests_reject_in_2_to_9_percent(seed: int) -> None:
    """200 simulated studies in which nothing is planted."""
    from pyemo.study.statistics import compare_groups, mantel, paired_difference

    rng = np.random.default_rng(seed)
    rejected = {"methods": 0, "mantel": 0, "groups": 0, "paired": 0}
    n = 200
    for i in range(n):
        a = planted(1.0, seed=2 * i, class_seed=2 * i, noise=0.5, n_held_out=0)
        b = planted(
            1.0, seed=2 * i + 1, class_seed=2 * i, noise=0.5, n_held_out=0, method="comprehension"
        )
        d = methods.compare(a, b, n_resamples=FEW).difference
        rejected["methods"] += d.low > 0 or d.high < 0
        x, y = (rng.standard_normal((10, 30)) for _ in range(2))
        test = mantel(1 - x @ x.T, 1 - y @ y.T, n_permutations=199, seed=i)
        rejected["mantel"] += test.p < 0.05
        rejected["groups"] += compare_groups(rng.random(8), rng.random(8)).p < 0.05
        rejected["paired"] += paired_difference(rng.random(20), rng.random(20), seed=i).p < 0.05
    shares = {name: count / n for name, count in rejected.items()}
    assert all(0.02 <= share <= 0.09 for share in shares.values()), shares
