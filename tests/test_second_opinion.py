"""Every variant's reference against ONNX's reference evaluator and, where installed, PyTorch and torchvision."""

from __future__ import annotations

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

    @hypothesis.settings(max_examples=100, deadline=None)
    @given(specs(variants=(variant,), largest_channels=3, largest_size=3))
    def on_any_spec(spec: ConvSpec) -> None:
        # its Erf, of which gelu is made, rounds to float32
        agree(second_opinions.OnnxEvaluator(), spec, tolerance=1e-6)

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
