"""Minimal filtering's matrices: the identity they must satisfy, exactly, and what they cost and lose."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
from convtune.schedules.filtering_points import MOST_POINTS, Filtering, exchanged, filtering, from_points

SIZES = [(m, r) for m, r in itertools.product(range(2, 9), range(2, 8)) if m + r - 1 <= MOST_POINTS]


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_the_matrices_filter(m: int, r: int) -> None:
    """sum_k A^T[i, k] G[k, j] B^T[k, l] is 1 where input l meets tap j in output i, else 0: for all inputs at once."""
    rule = filtering(m, r)
    for i, j, position in itertools.product(range(m), range(r), range(rule.alpha)):
        total = sum(a[i] * g[j] * b[position] for a, g, b in zip(zip(*rule.at), rule.g, rule.bt))
        assert total == Fraction(position == i + j), (i, j, position)


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_transforms_are_the_matrices(m: int, r: int) -> None:
    """What shares the arithmetic of pairs gives what the matrix says, on integers, where float64 rounds nothing."""
    rule = filtering(m, r)
    given = [Fraction(n) for n in np.random.default_rng(m * 10 + r).integers(-50, 50, rule.alpha)]
    for transform, matrix in ((rule.transform_input, rule.bt), (rule.transform_output, rule.at)):
        made = transform([float(n) for n in given], lambda value: value)
        assert made == pytest.approx([float(sum(c * n for c, n in zip(row, given))) for row in matrix], rel=1e-12)


@pytest.mark.parametrize(("m", "r"), SIZES)
def test_coefficients_of_inputs_and_outputs_are_exact_in_float32(m: int, r: int) -> None:
    rule = filtering(m, r)
    for coefficient in itertools.chain(*rule.at, *rule.bt):
        assert Fraction(float(np.float32(float(coefficient)))) == coefficient


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    ("m", "inputs", "taps", "before"),
    [(2, 2, 3, 1), (3, 1, 3, 1), (4, 3, 5, 2), (2, 4, 7, 3), (3, 3, 3, 1), (4, 2, 3, 4), (1, 2, 5, 9)],
)
def test_inputs_and_taps_change_places(m: int, inputs: int, taps: int, before: int, zero: bool) -> None:
    """As above: 1 where tap j of output i meets input l; there are m + inputs - 1 products.

    With 0 as a point the first product has the last input alone, and the last one is in the last output alone.
    """
    rule = exchanged(m, inputs, taps, before, zero)
    units = [[float(i == j) for j in range(inputs)] for i in range(inputs)]
    columns = [rule.transform_input(unit, lambda value: value) for unit in units]
    outputs = [rule.transform_output([float(i == k) for i in range(rule.alpha)], float) for k in range(rule.alpha)]
    assert len(rule.g) == len(columns[0]) == m + inputs - 1
    for i, j, position in itertools.product(range(m), range(taps), range(inputs)):
        total = sum(outputs[k][i] * float(rule.g[k][j]) * columns[position][k] for k in range(rule.alpha))
        assert total == pytest.approx(float(position + before == i + j), abs=1e-12), (i, j, position)
    if zero:
        assert not any(column[0] for column in columns[:-1]) and not any(outputs[-1][:-1])


def test_pairs_share_arithmetic() -> None:
    """F(4, 3): six rows of up to five products each would be 24 additions."""
    assert filtering(4, 3).operations == (12, 10)
    assert filtering(2, 3).operations == (4, 4)


def test_points_lose_less_than_usual_ones() -> None:
    usual = from_points(4, 3, [Fraction(p) for p in (0, 1, -1, 2, -2)])
    assert filtering(4, 3).amplification < usual.amplification / 2
    assert measured_loss(filtering(4, 3)) < measured_loss(usual)


@pytest.mark.parametrize(("m", "r"), [(2, 3), (4, 3), (6, 3), (2, 7)])
def test_amplification_is_what_float32_loses(m: int, r: int) -> None:
    """Within a factor of three: against a direct sum of the same products."""
    rule = filtering(m, r)
    assert 1 / 3 < measured_loss(rule) / rule.amplification < 3


def measured_loss(rule: Filtering) -> float:
    """The error of float32 filtering against that of the direct sum, over many random rows."""
    rng = np.random.default_rng(0)
    at, g, bt = (np.array(matrix, dtype=np.float64) for matrix in (rule.at, rule.g, rule.bt))
    d, w = rng.standard_normal((2000, 16, rule.alpha)), rng.standard_normal((16, rule.r))
    d, w = d.astype(np.float32), w.astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(d, rule.r, axis=2)
    exact = np.einsum("ncij,cj->ni", windows.astype(np.float64), w.astype(np.float64))
    summed = np.zeros(exact.shape, np.float32)
    products = np.zeros((2000, rule.alpha), np.float32)
    for c in range(16):
        for j in range(rule.r):
            summed += windows[:, c, :, j] * w[c, j]
        products += (d[:, c] @ bt.T.astype(np.float32)) * (g @ w[c]).astype(np.float32)
    filtered = products @ at.T.astype(np.float32)
    return float(np.sqrt(np.mean((filtered - exact) ** 2) / np.mean((summed - exact) ** 2)))


def test_impossible_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="allowed: up to 9"):
        filtering(8, 7)
    with pytest.raises(ValueError, match=r"F\(2, 3\) has 1 finite points; it must have 3"):
        from_points(2, 3, [Fraction(0)])
    with pytest.raises(ValueError, match=r"0 is to be one of 6 finite points; allowed: odd numbers and \[2, 4\]"):
        exchanged(4, 4, 5, 2, zero=True)
