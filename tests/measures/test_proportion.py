"""A proportion's interval is Wilson's."""

import pytest
from scipy.stats import binomtest

from pyemo.errors import InputError
from pyemo.measures.proportion import Proportion


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (37, 40), (0, 48), (48, 48), (5, 140)])
def test_interval_agrees_with_scipys(k: int, n: int) -> None:
    expected = binomtest(k, n).proportion_ci(method="wilson")
    found = Proportion(k, n)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.low <= found.value <= found.high


def test_prints_the_count_the_share_and_the_interval() -> None:
    assert str(Proportion(37, 40)) == "37/40 = 92% [80, 97]"


@pytest.mark.parametrize(("k", "n"), [(1, 0), (-1, 4), (5, 4)])
def test_what_is_no_proportion_is_refused(k: int, n: int) -> None:
    with pytest.raises(InputError, match=f"{k} of {n} is not a proportion"):
        Proportion(k, n)
