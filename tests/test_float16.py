"""Convolutions of float16: what they mean, how large their errors may be, and who takes them."""

from __future__ import annotations

import numpy as np
import pytest

from convtune import ConvSpec, accuracy, space, targets
from convtune.errors import TargetError
from convtune.reference import random_operands, reference

SPEC = ConvSpec.parse("deformable,ic=4,oc=6,in=9x7,k=3x3,p=1,modulated,bias,residual,dtype=float16")
FLOAT32 = SPEC.replace(dtype="float32")


def test_the_canonical_string() -> None:
    assert "dtype=float16" in str(SPEC)
    assert ConvSpec.parse(str(SPEC)) == SPEC
    assert "dtype" not in str(FLOAT32)


def test_bytes_are_half_as_many() -> None:
    assert 2 * SPEC.bytes == FLOAT32.bytes


def test_operands_are_those_of_float32_rounded() -> None:
    half, single = random_operands(SPEC, 3), random_operands(FLOAT32, 3)
    of_half = [half.x, *half.weights, *half.biases, *half.inputs.values(), half.residual]
    of_single = [single.x, *single.weights, *single.biases, *single.inputs.values(), single.residual]
    assert len(of_half) == 6
    for rounded, exact in zip(of_half, of_single):
        assert rounded is not None and rounded.dtype == np.float16
        np.testing.assert_array_equal(rounded, np.float16(exact))


def test_the_reference_rounds_nothing() -> None:
    spec = ConvSpec("pointwise", 1, 1, 1, 1, dtype="float16")
    x, weight = np.array([[[1 + 2**-10]]], np.float16), np.array([[[1 + 2**-9]]], np.float16)
    np.testing.assert_array_equal(reference(spec, x, weight), [[[(1 + 2**-10) * (1 + 2**-9)]]])


def test_the_output_may_be_rounded_and_no_more_than_that_under_strict() -> None:
    exact = np.random.default_rng(0).uniform(1, 2, 10**5)
    exact[0] = 1 + 2**-11  # in the middle of two float16: no rounding is further off, relatively
    rounding = np.abs(exact.astype(np.float16) - exact) / np.abs(exact)
    strict, standard, loose = (accuracy.limit(SPEC, name) for name in accuracy.NAMES)
    assert 0.99 * strict < rounding.max() < strict < standard < loose
    assert strict - rounding.max() < 2 * accuracy.limit(FLOAT32, "strict")


@pytest.mark.parametrize("name", accuracy.NAMES)
def test_a_sum_in_float16_is_allowed_by_loose_alone(name: str) -> None:
    spec = ConvSpec("pointwise", 512, 1, 64, 1, dtype="float16")
    operands = random_operands(spec, 0)
    products = operands.x[0] * operands.weights[0].reshape(-1, 1)
    exact = operands.reference(spec).reshape(-1)
    total = np.zeros(64, np.float16)
    for row in products:
        total += row
    error = np.abs(total - exact).max() / np.abs(exact).max()
    assert (error <= accuracy.limit(spec, name)) == (name == "loose")


@pytest.mark.parametrize("text", ["conv,ic=4,oc=4,in=9,k=3", str(SPEC), "depthwise_separable,ic=4,oc=4,in=9x9,k=3x3"])
def test_no_cpu_takes_it(text: str) -> None:
    spec = ConvSpec.parse(text).replace(dtype="float16")
    with pytest.raises(
        TargetError, match="'znver3': no schedule space of this version accepts float16; allowed: float32"
    ):
        space.accepting(spec, targets.resolve("znver3"))
