"""Every variant's reference against ONNX's reference evaluator and, where installed, PyTorch and torchvision."""

from __future__ import annotations

from dataclasses import replace

import conformance_cases
import hypothesis
import numpy as np
import pytest
import second_opinions
from hypothesis import given
from strategies import specs

from convtune import variants
from convtune.reference import random_operands
from convtune.spec import ConvSpec

EVERY = sorted(variants.known())


def test_every_variant_has_a_second_opinion() -> None:
    assert sorted(second_opinions.STEPS) == EVERY


def agree(opinion: second_opinions.Opinion, spec: ConvSpec, tolerance: float) -> None:
    operands = random_operands(spec, seed=0)
    y = second_opinions.evaluate(opinion, spec, operands)
    np.testing.assert_allclose(operands.reference(spec), y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("variant", EVERY)
def test_equals_the_onnx_reference_evaluator(variant: str) -> None:
    pytest.importorskip("onnx")

    @hypothesis.settings(max_examples=60, deadline=None)
    @given(specs(variants=(variant,), largest_channels=3, largest_size=3))
    def on_any_spec(spec: ConvSpec) -> None:
        # its Erf, of which gelu is made, rounds to float32, and so do the places of its GridSample: here below 16
        agree(second_opinions.OnnxEvaluator(), spec, tolerance=1e-5 if variant == "deformable" else 1e-6)

    on_any_spec()


@pytest.mark.parametrize("variant", EVERY)
def test_equals_pytorch(variant: str) -> None:
    opinion = second_opinions.PyTorch()

    @hypothesis.settings(max_examples=80, deadline=None)
    @given(specs(variants=(variant,)))
    def on_any_spec(spec: ConvSpec) -> None:
        agree(opinion, spec, tolerance=1e-9)

    on_any_spec()


@pytest.mark.parametrize("variant", EVERY)
def test_the_conformance_tests_expect_what_pytorch_says(variant: str) -> None:
    opinion = second_opinions.PyTorch()
    for spec in conformance_cases.specs():
        if spec.variant == variant:
            agree(opinion, spec, tolerance=1e-9)


DEFORMABLE = "deformable,n=2,ic=6,oc=4,in=5x6,k=3x2,s=1x2,p=1,d=2x1,g=2,og=3,modulated"
ONTO_ELEMENTS_AND_BORDERS = np.arange(-8.0, 9.0)
FAR_OUTSIDE = np.array([-np.inf, -1e30, -1e9, 1e9, 1e30, np.inf])


@pytest.mark.parametrize("infinite", [False, True], ids=["finite input", "infinite input"])
def test_offsets_onto_borders_and_to_infinity_do_what_torchvision_does(infinite: bool) -> None:
    """With an infinity in the input, 0 times it is NaN; an element outside adds nothing, not even 0 times anything."""
    spec, rng = ConvSpec.parse(DEFORMABLE), np.random.default_rng(0)
    operands = random_operands(spec, seed=0)
    shape = spec.input_shapes["offset"]
    special = rng.choice(np.concatenate([ONTO_ELEMENTS_AND_BORDERS, FAR_OUTSIDE]), shape).astype(np.float32)
    offset = np.where(rng.random(shape) < 0.5, special, operands.inputs["offset"])
    if infinite:
        operands.x[0, 0, 0, 0] = operands.x[1, -1, -1, -1] = np.inf
    odd = replace(operands, inputs={**operands.inputs, "offset": offset})
    with np.errstate(invalid="ignore"):
        y = second_opinions.evaluate(second_opinions.PyTorch(), spec, odd)
    assert np.isnan(y).any() == infinite
    np.testing.assert_allclose(odd.reference(spec), y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("coordinate", [0, 1])
def test_an_offset_of_nan_gives_nan(coordinate: int) -> None:
    """No second opinion: torchvision's CPU kernel takes it as an index, reads outside of the input and may crash."""
    spec = ConvSpec.parse(DEFORMABLE)
    operands = random_operands(spec, seed=0)
    operands.inputs["offset"][...] = 0.25
    before = operands.reference(spec)
    operands.inputs["offset"][1, 2 * 6 + coordinate, 2, 1] = np.nan  # the second offset group's first tap
    expected = before.copy()
    expected[1, :, 2, 1] = np.nan  # its channels 2 and 3 are read by both groups
    np.testing.assert_array_equal(operands.reference(spec), expected)


def test_an_offset_of_nan_gives_zero_where_the_other_coordinate_is_outside() -> None:
    spec = ConvSpec.parse("deformable,ic=1,oc=1,in=5x5,k=1x1")
    operands = random_operands(spec, seed=0)
    operands.inputs["offset"][:, 0] = np.nan
    operands.inputs["offset"][:, 1] = np.inf
    np.testing.assert_array_equal(operands.reference(spec), np.zeros(spec.out_shape))
