"""Composite variants as a user has them: one compiled convolution, a tuple of weights, the stages on their own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convtune
from convtune import ConvSpec
from convtune.errors import ConvtuneError, SpecError
from convtune.reference import random_operands

SEPARABLE = ConvSpec.parse("depthwise_separable,ic=5,oc=7,in=9x11,k=3x3,s=2,p=1,m=2,sbias=1,sact=relu6,bias,residual")
FLATTENED = ConvSpec.parse("flattened,ic=6,oc=19,in=8x7,k=3x5,p=1x2,sact=relu/none,layout=NHWC,act=hardswish")


@pytest.mark.parametrize("spec", [SEPARABLE, FLATTENED], ids=str)
def test_a_composite_compiles_saves_and_loads(spec: ConvSpec, tmp_path: Path) -> None:
    operands = random_operands(spec, seed=1)
    conv = convtune.compile(spec)
    assert conv.manifest.candidate["space"] in ("chained_rows", "chained_stages", "rolling_rows", "stages_in_turn")
    given: dict[str, Any] = {"bias": operands.bias, "residual": operands.residual}
    want = operands.reference(spec)
    y = conv(operands.x, operands.weights, **given)
    np.testing.assert_allclose(y, want, atol=2e-5 * np.abs(want).max())
    conv.save(tmp_path / "kernel")
    loaded = convtune.load(tmp_path / "kernel")
    packed = loaded.pack(operands.weights, operands.bias)
    np.testing.assert_array_equal(loaded.run(operands.x, packed, residual=operands.residual), y)


def test_the_stages_one_after_the_other_give_the_same() -> None:
    operands = random_operands(FLATTENED, seed=2)
    y: Any = operands.x
    for stage, weight in zip(FLATTENED.stages, operands.weights):
        y = convtune.compile(stage)(y, weight)
    want = operands.reference(FLATTENED)
    np.testing.assert_allclose(y, want, atol=2e-5 * np.abs(want).max())


@pytest.mark.parametrize(
    ("weights", "biases", "message"),
    [
        (slice(0, 1), slice(None), "1 arrays; this kernel takes a tuple of 2"),
        (slice(None), slice(0, 1), "1 arrays; this kernel takes a tuple of 2"),
        (
            slice(None, None, -1),
            slice(None),
            r"weight\[0\] has shape \(7, 10, 1, 1\); this kernel takes \(10, 1, 3, 3\)",
        ),
    ],
)
def test_what_does_not_fit_the_stages_is_said(weights: slice, biases: slice, message: str) -> None:
    o, conv = random_operands(SEPARABLE, seed=1), convtune.compile(SEPARABLE)
    with pytest.raises(ConvtuneError, match=message):
        conv(o.x, o.weights[weights], o.biases[biases], residual=o.residual)


ONE_STAGE = "1-D spatially_separable has one stage; leave it out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("flattened,ic=4,oc=6,in=2x9,k=3x3", "stage 2, depthwise: output dimension 0 would be 0"),
        ("depthwise_separable,ic=4,oc=8,in=9,k=3,g=4", "groups=4: the channels of depthwise_separable mix"),
        ("flattened,ic=4,oc=6,in=9x9,k=3,sact=relu/relu/relu", "has 3 entries; it must have 2, or be one value"),
        ("spatially_separable,ic=4,oc=6,in=9x9,k=3,mid=3x4", "has 2 entries; it must have 1, or be one value for all"),
        ("spatially_separable,ic=4,oc=6,in=9x9,k=3,mid=0", "mid_channels=0 is out of range"),
        ("flattened,ic=4,oc=6,in=9x9,k=3,sact=swish", "stage_activations='swish' is not allowed"),
        ("spatially_separable,ic=4,oc=6,in=9,k=3,mid=7", f"mid_channels=7: {ONE_STAGE}"),
        ("spatially_separable,ic=4,oc=6,in=9,k=3,mid=7x8", f"mid_channels=(7, 8): {ONE_STAGE}"),
        ("spatially_separable,ic=4,oc=6,in=9,k=3,sbias=0", f"stage_bias=False: {ONE_STAGE}"),
        ("spatially_separable,ic=4,oc=6,in=9,k=3,sact=relu", f"stage_activations='relu': {ONE_STAGE}"),
        ("depthwise_separable,ic=4,oc=6,in=9x9,k=3,sbias=2", "must be 0 or 1, or several joined by x"),
        ("conv,ic=4,oc=6,in=9x9,k=3,m=2", "conv has no channel_multiplier"),
    ],
)
def test_what_is_no_composite_is_refused(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=re.escape(message)):
        ConvSpec.parse(text)


@pytest.mark.parametrize("value", [{"relu": 1, "tanh": 2}, {"relu", "tanh"}, {"relu": 1}.keys()])
def test_values_of_stages_in_no_sequence_are_refused(value: Any) -> None:
    with pytest.raises(SpecError, match=r"stage_activations=.* must be one value for all, or a list or tuple of them"):
        ConvSpec("flattened", 4, 6, (9, 9), 3, stage_activations=value)


def test_a_chain_of_one_has_no_values_between_its_stages() -> None:
    spec = ConvSpec("spatially_separable", 4, 6, 9, 3, mid_channels=(), stage_bias=[], stage_activations=None)
    assert (spec.mid_channels, spec.stage_bias, spec.stage_activations) == ((), (), ())
    assert ConvSpec.parse(str(spec)) == spec == ConvSpec("spatially_separable", 4, 6, 9, 3)
    assert spec.replace(kernel=5).mid_channels == ()


def test_a_chain_of_one_takes_its_weight_alone_or_in_a_tuple() -> None:
    spec = ConvSpec.parse("spatially_separable,ic=3,oc=5,in=11,k=3,bias")
    o, conv = random_operands(spec, seed=1), convtune.compile(spec)
    (weight,), (bias,) = o.weights, o.biases
    want = conv(o.x, weight, bias)
    np.testing.assert_array_equal(conv(o.x, (weight,), (bias,)), want)
    np.testing.assert_array_equal(convtune.compile(spec, weight=(weight,), bias=(bias,))(o.x), want)
    np.testing.assert_allclose(want, o.reference(spec), atol=2e-5 * np.abs(want).max())
