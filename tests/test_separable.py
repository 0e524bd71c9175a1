"""Kernels as products of 1-D kernels: exact where they are, as near as can be where not, and cheaper or not at all."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

import convtune
from convtune.errors import SpecError
from convtune.reference import random_operands
from convtune.separable import separable, separate
from convtune.spec import ConvSpec

SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])


def product(factors: tuple[np.ndarray, ...], bare: bool) -> np.ndarray:
    """The kernel that factors stand for, written out."""
    factors = tuple(factor.astype("f8") for factor in factors)
    if bare and all(factor.ndim == 1 for factor in factors):
        return np.einsum("i,j->ij" if len(factors) == 2 else "i,j,k->ijk", *factors)
    formula = {
        (True, 2): "ai,aj->ij",
        (True, 3): "ai,baj,bk->ijk",
        (False, 2): "acix,oaxj->ocij",
        (False, 3): "acixx,baxjx,obxxk->ocijk",
    }[bare, len(factors)]
    return np.einsum(formula.replace("x", ""), *(f if bare else f.reshape(*f.shape[:2], -1) for f in factors))


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    wanted = wanted.astype("f8")
    return float(np.sqrt(((found - wanted) ** 2).sum() / (wanted**2).sum()))


EXACT = {
    "sobel": (SOBEL, [[1, 2, 1], [-1, 0, 1]]),
    "sobel, vertical": (SOBEL.T, [[-1, 0, 1], [1, 2, 1]]),
    "sobel, scaled": (SOBEL / 8, [[1, 2, 1], [-0.125, 0, 0.125]]),
    "scharr": ([[-3, 0, 3], [-10, 0, 10], [-3, 0, 3]], [[3, 10, 3], [-1, 0, 1]]),
    "gauss": (np.outer([1, 4, 6, 4, 1], [1, 4, 6, 4, 1]) / 256, [[1, 4, 6, 4, 1], np.array([1, 4, 6, 4, 1]) / 256]),
    "box of another size": (np.full((2, 5), 0.25), [[1, 1], [0.25] * 5]),
    "sobel, 3-D": (np.einsum("i,jk->ijk", [1, 2, 1], SOBEL), [[1, 2, 1], [1, 2, 1], [-1, 0, 1]]),
    "a row": ([[3, 4]], [[1], [3, 4]]),
    "no multiple of whole numbers": ([[1, 2], [0.7310586, 1.4621172]], [[1, np.float32(0.7310586)], [1, 2]]),
    "zero": (np.zeros((2, 3)), [[1, 0], [0, 0, 0]]),
}


@pytest.mark.parametrize("name", EXACT)
def test_kernels_that_are_products_give_their_factors(name: str) -> None:
    kernel, factors = EXACT[name]
    found = separate(kernel)
    assert [factor.tolist() for factor in found.factors] == [np.asarray(factor).tolist() for factor in factors]
    assert found.error <= (3e-8 if name.startswith("no multiple") else 0)
    assert not any(np.signbit(factor[factor == 0]).any() for factor in found.factors)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(-16, 16), min_size=1, max_size=6).filter(any), min_size=2, max_size=3),
    st.sampled_from([1.0, 0.5, -2.0]),
)
def test_products_of_whole_numbers_are_exact(vectors: list[list[int]], scale: float) -> None:
    outer = "i,j->ij" if len(vectors) == 2 else "i,j,k->ijk"
    kernel = np.einsum(outer, *(np.array(v, "f8") for v in vectors)) * scale
    found = separate(kernel)
    np.testing.assert_array_equal(np.einsum(outer, *(f.astype("f8") for f in found.factors)), kernel)
    assert found.error == 0
    for factor in found.factors[:-1]:
        assert (factor == np.rint(factor)).all() and np.gcd.reduce(factor.astype(int)) == 1


@pytest.mark.parametrize("shape", [(5, 4), (3, 7), (6, 5, 3, 5), (2, 7, 4, 1), (1, 1, 3, 3)])
def test_in_two_dimensions_no_factors_are_nearer(shape: tuple[int, ...]) -> None:
    """Eckart and Young: the smallest error of any matrix of that rank is the root of the squares cut off."""
    weight = np.random.default_rng(1).standard_normal(shape).astype("f")
    oc, ic, kh, kw = weight.reshape(-1, *shape[-3:]).shape if len(shape) == 4 else (1, 1, *shape)
    matrix = np.array([weight.reshape(oc, ic, kh, kw)[:, c, i].ravel() for c in range(ic) for i in range(kh)], "f8")
    values = scipy.linalg.svd(matrix, compute_uv=False)
    for rank in range(1, len(values) + 1):
        found = separate(weight, rank)
        smallest = np.sqrt((values[rank:] ** 2).sum() / (values**2).sum())
        assert found.error == pytest.approx(smallest, rel=1e-5, abs=2e-7)
        assert found.error == pytest.approx(relative(product(found.factors, len(shape) == 2), weight), abs=1e-12)
    with pytest.raises(SpecError, match=f"rank {len(values) + 1} is out of range; it must be between 1 and"):
        separate(weight, len(values) + 1)


@pytest.mark.parametrize("shape", [(4, 3, 5), (3, 4, 3, 3, 5)])
def test_in_three_dimensions_errors_are_within_the_bounds_of_tensor_trains(shape: tuple[int, ...]) -> None:
    weight = np.random.default_rng(2).standard_normal(shape).astype("f")
    full = weight.astype("f8").reshape(-1, *shape[1:]) if len(shape) == 5 else weight[None, None].astype("f8")
    _, ic, kd, kh, _ = full.shape
    unfolded = np.moveaxis(full, 0, -1)
    values = [scipy.linalg.svd(unfolded.reshape(rows, -1), compute_uv=False) for rows in (ic * kd, ic * kd * kh)]
    for ranks in itertools.product((1, 3, 4), (1, 3)):
        found = separate(weight, ranks)
        cut = [(v[r:] ** 2).sum() / (v**2).sum() for v, r in zip(values, ranks)]
        assert np.sqrt(max(cut)) - 1e-6 <= found.error <= np.sqrt(sum(cut)) + 1e-6
        assert found.error == pytest.approx(relative(product(found.factors, len(shape) == 3), weight), abs=1e-12)


def test_shapes_are_those_of_the_stages() -> None:
    spec = ConvSpec("spatially_separable", 5, 7, (9, 9, 9), (3, 2, 5), mid_channels=(4, 6))
    weight = np.random.default_rng(3).standard_normal((7, 5, 3, 2, 5))
    assert tuple(f.shape for f in separate(weight, (4, 6)).factors) == spec.weight_shapes
    assert tuple(f.shape for f in separate(weight[..., 0, :], 4).factors) == ((4, 5, 3, 1), (7, 4, 1, 5))
    assert [f.shape for f in separate(weight[0, 0], (2, 3)).factors] == [(2, 3), (3, 2, 2), (3, 5)]
    assert [f.shape for f in separate(weight[0, 0, 0], 2).factors] == [(2, 2), (2, 5)]
    assert all(f.dtype == np.float32 and f.flags.c_contiguous for f in separate(weight, 3).factors)


def test_factors_of_higher_rank_have_equal_norms() -> None:
    weight = np.random.default_rng(4).standard_normal((7, 5, 3, 2, 5)) * 1e-20
    norms = [np.linalg.norm(f.astype("f8")) for f in separate(weight, 4).factors]
    np.testing.assert_allclose(norms, norms[0], rtol=1e-6)


def test_rounding_to_whole_numbers_never_costs_exactness() -> None:
    """Near whole numbers, yet not so near: the factors must stay with the kernel."""
    rng = np.random.default_rng(5)
    for noise in (1e-7, 1e-6, 1e-4, 1e-2):
        kernel = SOBEL + noise * rng.standard_normal((3, 3))
        values = scipy.linalg.svd(kernel, compute_uv=False)
        assert separate(kernel).error <= np.sqrt((values[1:] ** 2).sum() / (values**2).sum()) + 1e-7


@pytest.mark.parametrize(
    ("weight", "rank", "message"),
    [
        ([1.0, 2.0], 1, r"weight has shape \(2,\); it must be a kernel \(kh, kw\)"),
        (np.zeros((1, 0)), 1, r"weight has shape \(1, 0\)"),
        (np.zeros((1,) * 6), 1, r"weight has shape \(1, 1, 1, 1, 1, 1\)"),
        ([[1, 2], [3]], 1, "weight is no array"),
        ([["a", "b"]], 1, "weight has dtype <U1; it must be floats or integers"),
        ([[np.nan, 1]], 1, "weight has an entry of magnitude nan; all must be finite float32 numbers"),
        ([[np.inf, 1]], 1, "weight has an entry of magnitude inf"),
        ([[1e39, 1]], 1, r"weight has an entry of magnitude 1e\+39"),
        (SOBEL, 0, "rank 0 is out of range; it must be between 1 and 3"),
        (SOBEL, 1.0, "rank is 1.0; for a kernel of 2 dimensions it must be an integer$"),
        (SOBEL, True, "rank is True"),
        (SOBEL, (1, 1), r"rank is \(1, 1\)"),
        (np.ones((3, 3, 3)), (1, 4), "rank 4 between factors 1 and 2 is out of range; it must be between 1 and 3"),
        (np.ones((3, 3, 3)), "12", "rank is '12'; for a kernel of 3 dimensions it must be an integer or 2 of them"),
    ],
)
def test_bad_arguments_are_one_line(weight: Any, rank: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        separate(weight, rank)
    assert "\n" not in str(raised.value)


def low_rank(seed: int, oc: int, ic: int, kh: int, kw: int, rank: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    weight = np.einsum("mci,omj->ocij", rng.standard_normal((rank, ic, kh)), rng.standard_normal((oc, rank, kw)))
    return weight.astype("f")


DENSE = [
    "conv,ic=1,oc=1,in=9x11,k=3x3,p=1",
    "conv,ic=8,oc=8,in=13x11,k=5x3,p=1x0:1,s=2x3,layout=NHWC,bias,residual,act=relu,n=2",
    "conv,ic=5,oc=7,in=9x12,k=3x4,p=3:-1x2,s=4x1",
    "dilated,ic=6,oc=4,in=15x10,k=3x3,d=2x3,p=2x3,s=1x2",
]


@pytest.mark.parametrize("text", DENSE)
def test_the_separable_spec_computes_what_the_dense_one_does(text: str) -> None:
    spec, rank = ConvSpec.parse(text), 1 if "ic=1," in text else 3
    weight = low_rank(6, *spec.weight_shapes[0], rank)
    found = separable(spec, weight, 1e-6)
    assert found is not None
    factored, separated = found
    assert factored.mid_channels == (rank,) and factored.macs < spec.macs and separated.error <= 1e-6
    assert (factored.out_shape, factored.activation) == (spec.out_shape, spec.activation)
    operands = random_operands(spec, 7)
    rest = {"bias": operands.bias, "residual": operands.residual}
    dense = convtune.reference(spec, operands.x, weight, **rest)
    y = convtune.reference(factored, operands.x, separated.factors, **rest)
    np.testing.assert_allclose(y, dense, atol=1e-5 * np.abs(dense).max())


def test_in_three_dimensions_too() -> None:
    spec = ConvSpec.parse("conv,ic=4,oc=5,in=7x9x8,k=3x3x3,p=1x0:2x1,s=2x1x3,layout=NDHWC")
    rng = np.random.default_rng(8)
    cores = rng.standard_normal((2, 4, 3)), rng.standard_normal((3, 2, 3)), rng.standard_normal((5, 3, 3))
    weight = np.einsum("aci,baj,obk->ocijk", *cores).astype("f")
    found = separable(spec, weight, 1e-6)
    assert found is not None and found[0].mid_channels == (2, 3)
    x = rng.standard_normal(spec.in_shape)
    dense = convtune.reference(spec, x, weight)
    y = convtune.reference(found[0], x, found[1].factors)
    np.testing.assert_allclose(y, dense, atol=1e-5 * np.abs(dense).max())


def test_a_rank_is_at_most_what_the_one_before_it_can_bring() -> None:
    """Across the kernel's 1 no rank can grow, however much noise the second place alone would have to keep."""
    spec = ConvSpec.parse("conv,ic=4,oc=5,in=7x9x8,k=3x1x3,p=1x0x1")
    rng = np.random.default_rng(12)
    weight = np.einsum("ci,oj->ocij", rng.standard_normal((4, 3)), rng.standard_normal((5, 3)))[:, :, :, None]
    noise = rng.standard_normal(weight.shape)
    weight += 0.1 * noise * np.linalg.norm(weight) / np.linalg.norm(noise)
    found = separable(spec, weight.astype("f"), 0.12)
    assert found is not None and found[0].mid_channels == (1, 1) and found[1].error <= 0.12


def test_the_smallest_rank_within_the_tolerance_is_taken() -> None:
    spec = ConvSpec.parse("conv,ic=8,oc=8,in=10x10,k=5x5,p=2")
    rng = np.random.default_rng(9)
    weight = (low_rank(9, 8, 8, 5, 5, 4) + 0.1 * rng.standard_normal((8, 8, 5, 5))).astype("f")
    errors = [separate(weight, rank).error for rank in range(1, 15)]
    for tolerance in (0.3, 0.1, 0.05, errors[3], np.nextafter(errors[3], 0)):
        found = separable(spec, weight, tolerance)
        wanted = next((rank for rank, error in enumerate(errors, 1) if error <= tolerance), None)
        assert (found and found[0].mid_channels) == (wanted and (wanted,)), tolerance


def test_ranks_that_save_nothing_are_not_taken() -> None:
    """3x3 on 8 channels has 9 * 8 * 8 products a pixel, the two stages 2 * 3 * 8 * mid: mid must be below 12."""
    spec = ConvSpec.parse("conv,ic=8,oc=8,in=10x10,k=3x3,p=1")
    found = separable(spec, low_rank(10, 8, 8, 3, 3, 11), 1e-6)
    assert found is not None and found[0].mid_channels == (11,)
    assert separable(spec, low_rank(10, 8, 8, 3, 3, 12), 1e-6) is None
    assert separable(spec, np.random.default_rng(10).standard_normal((8, 8, 3, 3)).astype("f"), 1e-3) is None


@pytest.mark.parametrize(
    "text", ["grouped,ic=4,oc=4,in=9x9,k=3x3,g=2", "conv,ic=4,oc=4,in=9x9,k=3x1", "conv,ic=4,oc=4,in=9,k=3"]
)
def test_other_convolutions_have_no_separable_form(text: str) -> None:
    spec = ConvSpec.parse(text)
    assert separable(spec, np.ones(spec.weight_shapes[0], "f"), 0.5) is None
