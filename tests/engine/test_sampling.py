"""How a token is drawn, against NumPy: which tokens remain, which one it is, and its numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from engines import Array, log_softmax, open_engine
from llama_oracle import biased_logits, penalized_logits
from scipy import stats

from pyemo import Engine, Grammar, Model, SamplerParams, Sequence
from pyemo.engine.sampling import STANDARD
from pyemo.errors import InputError
from pyemo.extract import numpy_sampler

TOKENS = [30, 41, 52, 63, 74, 85, 96, 107, 41, 129, 140, 30]
PLAIN = SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0)
GREEDY = SamplerParams(temperature=0)

# Each filter alone, all of them, and none.
SAMPLERS = {
    "plain": PLAIN,
    "cold": SamplerParams(temperature=0.3, top_k=0, top_p=1, min_p=0),
    "hot": SamplerParams(temperature=5.0, top_k=0, top_p=1, min_p=0),
    "top_k": SamplerParams(temperature=1, top_k=5, top_p=1, min_p=0),
    "top_k_of_one": SamplerParams(temperature=1, top_k=1, top_p=1, min_p=0),
    "top_p": SamplerParams(temperature=1, top_k=0, top_p=0.7, min_p=0),
    "min_p": SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0.1),
    "repeat_penalty": SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0, repeat_penalty=3),
    "repeat_bonus": SamplerParams(temperature=1, top_k=0, top_p=1, min_p=0, repeat_penalty=0.5),
    "frequency": SamplerParams(1, 0, 1, 0, frequency_penalty=1.5),
    "presence": SamplerParams(1, 0, 1, 0, presence_penalty=2.0),
    "bonus_by_count": SamplerParams(1, 5, 1, 0, frequency_penalty=-1.0, presence_penalty=-0.5),
    "default": SamplerParams(),
    "all": SamplerParams(0.7, 30, 0.8, 0.02, repeat_penalty=1.3, repeat_last_n=5),
}
every_sampler = pytest.mark.parametrize("params", SAMPLERS.values(), ids=SAMPLERS)


def penalized(logits: Array, params: SamplerParams, tokens: list[int]) -> Array:
    logits = logits.astype(np.float64)
    recent = tokens[len(tokens) - min(len(tokens), params.repeat_last_n) :]
    for token in set(recent):
        is_negative = logits[token] <= 0
        logits[token] *= params.repeat_penalty if is_negative else 1 / params.repeat_penalty
        logits[token] -= recent.count(token) * params.frequency_penalty + params.presence_penalty
    return logits


def candidates(logits: Array, params: SamplerParams, tokens: list[int]) -> list[int]:
    """Return the tokens that remain, in the order they are drawn from."""
    logits = penalized(logits, params, tokens)
    ids = list(range(len(logits)))
    if params.top_k or params.top_p < 1:
        ids.sort(key=lambda i: -logits[i])
    if params.top_k:
        ids = ids[: params.top_k]
    if params.top_p < 1:
        share = np.exp(log_softmax(logits[ids])).cumsum()
        ids = ids[: int(np.searchsorted(share, params.top_p)) + 1]
    if params.min_p:
        least = logits[ids].max() + np.log(params.min_p)
        ids = [i for i in ids if logits[i] >= least]
    return ids


def uniform(seed: int, position: int) -> float:
    """SplitMix64 as a function of seed and position, in [0, 1)."""
    mask = 2**64 - 1
    z = (seed * 0xD1342543DE82EF95 + (position + 1) * 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return ((z ^ (z >> 31)) >> 11) * 2.0**-53


def draw(logits: Array, params: SamplerParams, tokens: list[int]) -> int:
    ids = candidates(logits, params, tokens)
    chosen = penalized(logits, params, tokens)[ids] / params.temperature
    share = np.exp(log_softmax(chosen)).cumsum()
    at = np.searchsorted(share, uniform(params.seed, len(tokens)) * share[-1], side="right")
    return ids[int(at)]


def drawn(sequence: Sequence, params: SamplerParams, seed: int) -> int:
    """Return the next token for this seed; the sequence stays as it was."""
    sequence.sampler = SamplerParams(
        params.temperature,
        params.top_k,
        params.top_p,
        params.min_p,
        params.repeat_penalty,
        params.repeat_last_n,
        seed,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
    )
    token = sequence.step().id
    sequence.rollback(1)
    return token


@pytest.fixture
def sequence(engine: Engine) -> Sequence:
    return engine.sequence(TOKENS)


# --- which token ---


@every_sampler
def test_drawn_token_is_that_of_numpy(sequence: Sequence, params: SamplerParams) -> None:
    logits = sequence.logits()
    seeds = [0, 1, 2**63, 2**64 - 1, *range(100, 160)]
    expected = [
        draw(logits, SamplerParams(**{**vars(params), "seed": seed}), TOKENS) for seed in seeds
    ]
    assert [drawn(sequence, params, seed) for seed in seeds] == expected


@pytest.fixture(scope="module")
def real_engine() -> Iterator[Engine]:
    """A vocabulary of 49,152 tokens: the first k are found without listing all of them."""
    with Engine("smollm2-135m-instruct", n_ctx=256, n_threads=1) as engine:
        yield engine


@pytest.mark.parametrize("top_k", [1, 40, 700, 768, 769, 5000])
@pytest.mark.parametrize("repeat_penalty", [1.0, 1.3, 0.8])
def test_the_first_k_of_a_large_vocabulary_are_those_of_numpy(
    real_engine: Engine, top_k: int, repeat_penalty: float
) -> None:
    params = SamplerParams(3.0, top_k, 1.0, 0.0, repeat_penalty=repeat_penalty)
    with real_engine.sequence(TOKENS) as sequence:
        logits = sequence.logits()
        seeds = range(12)
        expected = [
            draw(logits, SamplerParams(**{**vars(params), "seed": seed}), TOKENS) for seed in seeds
        ]
        assert [drawn(sequence, params, seed) for seed in seeds] == expected


@every_sampler
def test_only_tokens_that_pass_the_filters_are_drawn(
    sequence: Sequence, params: SamplerParams
) -> None:
    allowed = candidates(sequence.logits(), params, TOKENS)
    assert {drawn(sequence, params, seed) for seed in range(300)} <= set(allowed)


@pytest.mark.parametrize("name", ["top_k", "min_p", "default"])
def test_every_token_that_passes_the_filters_is_drawn_by_some_seed(
    sequence: Sequence, name: str
) -> None:
    params = SamplerParams(**{**vars(SAMPLERS[name]), "temperature": 5.0, "top_k": 5})
    allowed = candidates(sequence.logits(), params, TOKENS)
    assert {drawn(sequence, params, seed) for seed in range(300)} == set(allowed)


def test_seeds_draw_tokens_as_often_as_the_softmax_says(sequence: Sequence) -> None:
    params = SamplerParams(temperature=2, top_k=8, top_p=1, min_p=0)
    logits = sequence.logits()
    ids = candidates(logits, params, TOKENS)
    share = np.exp(log_softmax(logits[ids] / 2))
    tokens = [drawn(sequence, params, seed) for seed in range(2000)]
    found = [tokens.count(token) for token in ids]
    assert stats.chisquare(found, 2000 * share).pvalue > 1e-3


def test_random_numbers_of_positions_are_uniform() -> None:
    # The generator is native; drawing as NumPy does with this one proves that they are the same.
    for seed in range(5):
        numbers = [uniform(seed, position) for position in range(2000)]
        assert stats.kstest(numbers, "uniform").pvalue > 1e-3


def test_random_numbers_of_neighbouring_seeds_are_uncorrelated() -> None:
    rows = [[uniform(seed, position) for position in range(2000)] for seed in range(6)]
    off_diagonal = np.corrcoef(rows)[~np.eye(6, dtype=bool)]
    assert np.abs(off_diagonal).max() < 4 / 2000**0.5


def test_greedy_is_the_most_likely_token(sequence: Sequence) -> None:
    expected = int(sequence.logits().argmax())
    sequence.sampler = GREEDY
    assert sequence.step().id == expected


def test_greedy_draws_the_same_for_every_seed(sequence: Sequence) -> None:
    assert len({drawn(sequence, GREEDY, seed) for seed in range(20)}) == 1


@pytest.mark.parametrize(("penalty", "last_n"), [(5.0, 64), (5.0, 3), (0.2, 64), (5.0, 0)])
def test_greedy_with_a_repeat_penalty_is_the_most_likely_of_the_penalized(
    sequence: Sequence, penalty: float, last_n: int
) -> None:
    params = SamplerParams(temperature=0, repeat_penalty=penalty, repeat_last_n=last_n)
    expected = int(penalized(sequence.logits(), params, TOKENS).argmax())
    assert drawn(sequence, params, 0) == expected


def test_repeat_penalty_counts_a_token_once_however_often_it_came(engine: Engine) -> None:
    tokens = [30, 41, *[52] * 20]
    params = SamplerParams(temperature=1, top_k=3, top_p=1, min_p=0, repeat_penalty=1.5)
    with engine.sequence(tokens) as sequence:
        allowed = candidates(sequence.logits(), params, tokens)
        found = {drawn(sequence, params, seed) for seed in range(100)}
    assert found <= set(allowed)


# --- the same again ---


def texts(engine: Engine, sampler: SamplerParams, n: int = 2) -> list[str]:
    replies = [engine.generate(TOKENS, sampler=sampler, max_tokens=20) for _ in range(n)]
    return ["".join(token.text for token in reply) for reply in replies]


def test_same_seed_gives_the_same_text(engine: Engine) -> None:
    one, two = texts(engine, SamplerParams(seed=7))
    assert one == two


def test_same_seed_gives_the_same_text_in_another_engine(
    engine: Engine, new_engine: Callable[..., Engine]
) -> None:
    assert texts(engine, SamplerParams(seed=7)) == texts(new_engine(), SamplerParams(seed=7))


def test_another_seed_gives_another_text(engine: Engine) -> None:
    assert texts(engine, SamplerParams(seed=7), 1) != texts(engine, SamplerParams(seed=8), 1)


def test_seed_of_generate_is_that_of_the_sampler(engine: Engine) -> None:
    reply = engine.generate(TOKENS, seed=7, max_tokens=20)
    assert ["".join(token.text for token in reply)] == texts(engine, replace(STANDARD, seed=7), 1)


def test_same_seed_gives_other_random_numbers_at_every_position(engine: Engine) -> None:
    flat = SamplerParams(temperature=100, top_k=0, top_p=1, min_p=0, seed=7)
    reply = engine.generate(TOKENS, sampler=flat, max_tokens=40)
    assert len({token.id for token in reply}) > 20


def test_tokens_taken_back_are_drawn_again(sequence: Sequence) -> None:
    first = [sequence.step().id for _ in range(10)]
    sequence.rollback(10)
    assert [sequence.step().id for _ in range(10)] == first


def test_fork_draws_the_tokens_its_parent_draws(sequence: Sequence) -> None:
    sequence.step()
    twin = sequence.fork()
    assert [twin.step().id for _ in range(10)] == [sequence.step().id for _ in range(10)]


def test_fork_with_another_seed_draws_other_tokens(sequence: Sequence) -> None:
    sequence.step()
    twin = sequence.fork(sampler=SamplerParams(seed=8))
    assert [twin.step().id for _ in range(10)] != [sequence.step().id for _ in range(10)]


def test_sampler_changes_between_any_two_tokens(sequence: Sequence) -> None:
    sequence.step()
    expected = int(sequence.logits().argmax())
    sequence.sampler = GREEDY
    assert sequence.step().id == expected


# --- its numbers ---


@every_sampler
def test_logprob_is_that_of_the_unfiltered_logits(
    sequence: Sequence, params: SamplerParams
) -> None:
    expected = log_softmax(sequence.logits())
    sequence.sampler = params
    token = sequence.step()
    assert token.logprob == pytest.approx(expected[token.id], rel=1e-6, abs=1e-6)


def test_entropy_is_that_of_the_unfiltered_logits(sequence: Sequence) -> None:
    expected = log_softmax(sequence.logits())
    token = sequence.step()
    assert token.entropy == pytest.approx(-(np.exp(expected) * expected).sum(), rel=1e-5)


def test_top_tokens_are_the_most_likely_in_order(sequence: Sequence) -> None:
    logits = sequence.logits()
    token = sequence.step(n_top=7)
    assert [one.id for one in token.top] == np.argsort(-logits)[:7].tolist()


def test_top_tokens_have_their_logprobs(sequence: Sequence) -> None:
    expected = log_softmax(sequence.logits())
    token = sequence.step(n_top=7)
    found = [one.logprob for one in token.top]
    assert found == pytest.approx([expected[one.id] for one in token.top], rel=1e-5, abs=1e-6)


def test_all_tokens_can_be_asked_for(sequence: Sequence) -> None:
    n_vocab = sequence.engine.model.n_vocab
    top = sequence.step(n_top=n_vocab).top
    assert sorted(one.id for one in top) == list(range(n_vocab))


def test_more_top_tokens_than_the_vocabulary_has_are_refused(sequence: Sequence) -> None:
    n_vocab = sequence.engine.model.n_vocab
    with pytest.raises(InputError, match=f"n_top = {n_vocab + 1} is outside 0 to {n_vocab}"):
        sequence.step(n_top=n_vocab + 1)


def test_no_top_tokens_come_unasked(sequence: Sequence) -> None:
    assert sequence.step().top == ()


@pytest.fixture
def wide(gemma: object) -> Engine:
    return open_engine(Model.load(str(gemma)), n_ctx=64, n_seq_max=1, kv_type="f16")


def test_numbers_hold_over_a_vocabulary_of_262144(wide: Engine) -> None:
    with wide, wide.sequence("Once upon a time", sampler=PLAIN) as sequence:
        expected = log_softmax(sequence.logits())
        token = sequence.step()
    entropy = -(np.exp(expected) * expected).sum()
    found = token.logprob, token.entropy
    assert found == pytest.approx((expected[token.id], entropy), abs=1e-4)


# --- DRY: don't repeat yourself ---

DRY = SamplerParams(temperature=0, dry_multiplier=0.8)


def test_dry_takes_from_the_token_that_would_go_on_with_a_repeat() -> None:
    # "7 8 9" stood before; after "7 8" the 9 goes on with a repeat of two tokens
    assert numpy_sampler.dry_penalties([7, 8, 9, 1, 7, 8], DRY) == {9: pytest.approx(0.8)}
    # of three tokens: one power of the base more; the longer repeat counts
    assert numpy_sampler.dry_penalties([5, 7, 8, 9, 1, 5, 7, 8], DRY) == {
        9: pytest.approx(0.8 * 1.75)
    }
    assert numpy_sampler.dry_penalties([7, 8, 9, 1, 8], DRY) == {}
    assert numpy_sampler.dry_penalties([7, 8, 9, 1, 7, 8], replace(DRY, dry_last_n=4)) == {}
    assert numpy_sampler.dry_penalties([], DRY) == {}


@pytest.mark.parametrize(
    "params",
    [
        DRY,
        replace(DRY, repeat_penalty=1.2),
        SamplerParams(temperature=1.0, dry_multiplier=3.0, dry_allowed_length=1),
        SamplerParams(temperature=1.0, top_k=0, top_p=1, min_p=0, dry_multiplier=0.8, dry_base=3),
    ],
    ids=["greedy", "with_penalty", "sampled", "unfiltered"],
)
def test_a_token_under_dry_is_the_one_that_numpy_draws(
    engine: Engine, params: SamplerParams
) -> None:
    loop = [30, 41, 52, 63] * 6 + [30, 41]
    for seed in range(20):
        sampler = replace(params, seed=seed)
        with engine.sequence(loop, sampler=sampler) as sequence:
            logits = sequence.logits()
            left = numpy_sampler.penalized(logits, loop, sampler)
            ids, values = numpy_sampler.most_likely(left, sampler)
            expected = numpy_sampler.draw(ids, values, sampler, len(loop))
            assert sequence.step().id == expected


def test_dry_breaks_a_loop(engine: Engine) -> None:
    def distinct(sampler: SamplerParams) -> int:
        with engine.sequence([30, 41, 52, 63] * 4, sampler=sampler) as sequence:
            return len({sequence.step().id for _ in range(40)})

    assert distinct(replace(DRY, dry_multiplier=100.0)) > distinct(GREEDY)


def test_penalties_by_count_are_llama_cpps(engine: Engine) -> None:
    tokens = [30, 41, 52, 41, 63, 41, 52, 30]
    params = SamplerParams(0, repeat_last_n=6, frequency_penalty=0.7, presence_penalty=1.1)
    params = replace(params, repeat_penalty=1.2)
    with engine.sequence(tokens, sampler=params) as sequence:
        logits = sequence.logits()
        expected = int(numpy_sampler.penalized(logits, tokens, params).argmax())
        assert sequence.step().id == expected
    theirs = penalized_logits(logits, tokens, last_n=6, repeat=1.2, frequency=0.7, presence=1.1)
    assert np.allclose(theirs, numpy_sampler.penalized(logits, tokens, params), atol=1e-5)


BIASES = {
    "one": ((40, 2.5),),
    "never": ((40, -math.inf), (41, -100.0)),
    "both of one": ((30, 1.5), (52, -3.0), (30, 2.0)),
    "many": tuple((token, token % 7 - 3.0) for token in range(300)),
}
every_bias = pytest.mark.parametrize("bias", BIASES.values(), ids=BIASES)


@every_bias
def test_biased_logits_are_llama_cpps(engine: Engine, bias: tuple[tuple[int, float], ...]) -> None:
    with engine.sequence(TOKENS) as sequence:
        logits = sequence.logits()
    mine = numpy_sampler.penalized(logits, TOKENS, SamplerParams(logit_bias=bias))
    np.testing.assert_array_equal(mine, biased_logits(logits, bias))


@every_bias
@pytest.mark.parametrize("name", ["greedy", "plain", "default", "all", "bonus_by_count"])
def test_a_token_under_a_bias_is_the_one_that_numpy_draws(
    engine: Engine, name: str, bias: tuple[tuple[int, float], ...]
) -> None:
    """The bias comes first: penalties and filters see logits that have it."""
    params = replace(SAMPLERS.get(name, GREEDY), logit_bias=bias)
    with engine.sequence(TOKENS, sampler=params) as sequence:
        logits = sequence.logits()
        likeliest = int(logits.argmax())
        for biases in (bias, ((likeliest, -50.0), *bias)):
            biased = biased_logits(logits, biases)
            for seed in range(10):
                sequence.sampler = replace(params, seed=seed, logit_bias=biases)
                if params.temperature:
                    expected = draw(biased, replace(params, seed=seed), TOKENS)
                else:
                    expected = int(biased.argmax())
                assert sequence.step().id == expected
                sequence.rollback(1)


def test_a_bias_of_100_is_drawn_alone_and_its_log_probability_is_the_models(
    engine: Engine,
) -> None:
    with engine.sequence(TOKENS, sampler=SamplerParams(logit_bias=((77, 100.0),))) as sequence:
        expected = log_softmax(sequence.logits())[77]
        token = sequence.step()
        assert token.id == 77
        assert token.logprob == pytest.approx(expected, abs=1e-4)


def said(engine: Engine, params: SamplerParams) -> str:
    return "".join(token.text for token in engine.generate("the happy story", sampler=params))


def test_a_grammar_is_followed_where_the_bias_leaves_nothing_of_it(engine: Engine) -> None:
    model = engine.model
    begins = Grammar('root ::= "you" | "me"').allowed(model, []).nonzero()[0].tolist()
    never = tuple((token, -math.inf) for token in begins)
    params = SamplerParams(grammar=Grammar('root ::= "you" | "me"'), logit_bias=never)
    assert said(engine, params) in ("you", "me")
    without_y = tuple(pair for pair in never if model.native.piece(pair[0])[:1] == b"y")
    for seed in range(20):
        params = replace(params, logit_bias=without_y, seed=seed)
        assert said(engine, params) == "me"


def test_a_token_in_no_script_of_the_text_does_not_come_by_a_bias(real_engine: Engine) -> None:
    """Letters of other scripts are masked behind the bias."""
    model = real_engine.model
    tokens = model.tokenize("Привет", add_special=False)
    cyrillic = [one for one in tokens if len(model.native.piece(one)) > 1]  # whole letters
    params = SamplerParams(
        temperature=0, stay_in_script=True, logit_bias=tuple((one, 100.0) for one in cyrillic)
    )
    with real_engine.sequence(model.tokenize("A letter in English:"), sampler=params) as sequence:
        assert sequence.step().id not in cyrillic
        sequence.rollback(1)
        sequence.sampler = replace(params, stay_in_script=False)
        assert sequence.step().id in cyrillic


def test_a_bias_is_a_value_of_pairs() -> None:
    params = SamplerParams(logit_bias=[[5, 1], (np.int32(6), np.float32(-2))])  # type: ignore[arg-type,list-item]
    assert params.logit_bias == ((5, 1.0), (6, -2.0))
    assert params == SamplerParams(logit_bias=((5, 1.0), (6, -2.0)))
    assert len({params, SamplerParams(logit_bias=((5, 1.0), (6, -2.0)))}) == 1


@pytest.mark.parametrize(
    "bias",
    [5, "5", {5: 1.0}, ((5,),), (("5", 1.0),), ((5, "1"),), ((5.0, 1.0),), ((5, 101.0),),
     ((5, math.inf),), ((5, math.nan),), ((-1, 1.0),), ((2**31, 1.0),), ((5, 10**400),)],
)  # fmt: skip
def test_a_bias_that_is_none_is_refused_by_name(bias: Any) -> None:
    with pytest.raises(InputError, match="logit_bias"):
        SamplerParams(logit_bias=bias)


@pytest.mark.parametrize("bias", ["beyond", "nothing left"])
def test_a_bias_that_does_not_fit_the_model_is_refused_by_name(engine: Engine, bias: str) -> None:
    n_vocab = engine.model.n_vocab
    biases = {
        "beyond": ((n_vocab, 1.0),),
        "nothing left": tuple((token, -math.inf) for token in range(n_vocab)),
    }
    with pytest.raises(InputError, match="logit_bias"):
        engine.sequence(TOKENS, sampler=SamplerParams(logit_bias=biases[bias]))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("frequency_penalty", 101.0),
        ("presence_penalty", float("nan")),
        ("dry_multiplier", -1.0),
        ("dry_multiplier", float("nan")),
        ("dry_base", 0.5),
        ("dry_allowed_length", 0),
        ("dry_last_n", -1),
        ("dry_last_n", 2.5),
    ],
)
def test_a_dry_value_out_of_range_is_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(InputError, match=name):
        SamplerParams(**{name: value})
