"""What a variant costs beside the standard convolution: formulas against counts, counts against loops."""

from __future__ import annotations

import itertools
import math

import conformance_cases
import numpy as np
import pytest
import strategies
from hypothesis import given, settings

from convtune import ConvSpec, reference, variants
from convtune.cost import compare, intermediate_bytes
from convtune.errors import SpecError
from convtune.spec import count


def value(numbers: str) -> float:
    """What is printed of a formula, as Python reads it."""
    return float(eval(numbers.replace("·", "*"), {"__builtins__": {}}))


@pytest.mark.parametrize("variant", variants.known())
def test_the_formula_is_the_ratio(variant: str) -> None:
    specs = [spec for spec in conformance_cases.specs() if spec.variant == variant]
    assert specs
    for spec in specs:
        compared = compare(spec)
        assert compared.ratio == spec.macs / compared.standard.macs
        assert value(compared.numbers) == pytest.approx(compared.ratio, rel=1e-12), f"{spec}: {compared.formula}"


@settings(max_examples=200, deadline=None)
@given(strategies.specs(variants=tuple(variants.known()), largest_size=9))
def test_the_formula_is_the_ratio_of_any_spec(spec: ConvSpec) -> None:
    compared = compare(spec)
    assert value(compared.numbers) == pytest.approx(spec.macs / compared.standard.macs, rel=1e-12), compared.formula


def loops(spec: ConvSpec) -> int:
    """Multiply-accumulates counted one by one: those of a dense convolution in float64 where x and w are all ones."""
    padded = spec.replace(padding=0, in_size=tuple(s + sum(p) for s, p in zip(spec.in_size, spec.padding)))
    ones = [np.ones(shape) for shape in (padded.in_shape, *padded.weight_shapes)]
    plain = padded.replace(bias=False, activation=None, residual=False)
    return round(float(reference(plain, ones[0], ones[1]).sum()))


@settings(max_examples=60, deadline=None)
@given(strategies.specs(variants=tuple(variants.known()), largest_size=4, largest_channels=4))
def test_the_standard_is_the_dense_convolution_of_the_same_output(spec: ConvSpec) -> None:
    standard = compare(spec).standard
    assert (standard.out_shape, standard.in_channels) == (spec.out_shape, spec.in_channels)
    assert standard.variant in ("conv", "dilated", "pointwise")
    assert (standard.groups, standard.kernel, standard.dilation) == (1, spec.kernel, spec.dilation)
    assert (standard.bias, standard.activation, standard.residual) == (spec.bias, spec.activation, spec.residual)
    if spec.variant != "transposed":
        assert (standard.in_shape, standard.stride, standard.padding) == (spec.in_shape, spec.stride, spec.padding)
    assert loops(standard) == standard.macs


@pytest.mark.parametrize("variant", ["conv", "pointwise", "dilated"])
def test_a_dense_convolution_replaces_none(variant: str) -> None:
    for spec in conformance_cases.specs():
        if spec.variant == variant:
            assert compare(spec).standard == spec
            assert compare(spec).formula == "1"


@settings(max_examples=60, deadline=None)
@given(strategies.specs(variants=("transposed",), largest_channels=2, largest_size=4))
def test_zeros_put_between_make_a_convolution_of_a_transposed_one(spec: ConvSpec) -> None:
    """Its value too, where the padding takes away no more than the standard convolution can."""
    if any(before >= span for (before, _), span in zip(spec.padding, spec.span)):
        return
    spec = spec.replace(bias=False, activation=None, residual=False, groups=1, layout=None, batch=1)
    standard = compare(spec).standard
    random = np.random.default_rng(5)
    x, w = random.standard_normal(spec.in_shape), random.standard_normal(spec.weight_shapes[0])
    between = np.zeros(standard.in_shape)
    between[(..., *(slice(None, None, s) for s in spec.stride))] = x
    flipped = np.flip(w.swapaxes(0, 1), axis=tuple(range(2, w.ndim)))
    assert np.allclose(reference(standard, between, flipped), reference(spec, x, w))


@pytest.mark.parametrize(("ic", "oc", "k", "m"), [*itertools.product((3, 16), (8, 64), (1, 3, 5), (1, 4))])
def test_depthwise_separable_is_what_its_papers_say(ic: int, oc: int, k: int, m: int) -> None:
    spec = ConvSpec("depthwise_separable", ic, oc, (14, 14), k, padding=k // 2, channel_multiplier=m)
    compared = compare(spec)
    assert compared.formula == "m/oc + m/k²"
    assert compared.numbers == f"{m}/{oc} + {m}/{k * k}"
    assert compared.ratio == pytest.approx(m / oc + m / k**2)


def test_flattened_and_separable_of_a_kept_size() -> None:
    fields = {"in_channels": 12, "out_channels": 20, "in_size": (9, 9, 9), "kernel": 3, "padding": 1}
    k, ic, oc, mid = 3, 12, 20, (7, 8)
    assert compare(ConvSpec("flattened", **fields)).ratio == pytest.approx(1 / k**3 + 3 / (ic * k**2))
    separable = ConvSpec("spatially_separable", mid_channels=mid, **fields)
    expected = (ic * mid[0] + mid[0] * mid[1] + mid[1] * oc) * k / (ic * oc * k**3)
    assert compare(separable).ratio == pytest.approx(expected)


def test_a_stride_of_two_wastes_three_quarters_of_a_transposed_one() -> None:
    spec = ConvSpec("transposed", 16, 8, (32, 32), 4, stride=2, padding=1)
    assert (compare(spec).formula, compare(spec).ratio) == ("in/(g·out)", 0.25)


def test_a_standard_that_is_too_large_is_an_error() -> None:
    spec = ConvSpec("depthwise", 100_000, 100_000, (2, 2), 1)
    with pytest.raises(SpecError, match="a tensor of pointwise has more than 2147483647 elements"):
        compare(spec)


@settings(max_examples=40, deadline=None)
@given(strategies.specs(variants=tuple(variants.known())))
def test_bytes_between_stages(spec: ConvSpec) -> None:
    separate = sum(stage.bytes for stage in spec.stages)
    assert separate == spec.bytes + 2 * intermediate_bytes(spec), "each is written by one stage and read by the next"
    assert sum(stage.macs for stage in spec.stages) == spec.macs
    assert math.prod(spec.stages[-1].out_size) == count(spec.out_size)
