"""The NumPy reference against a loop over scalars, and what it says of operands that are wrong."""

from __future__ import annotations

import itertools
import math
import sys
import tracemalloc
from collections.abc import Sequence
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from strategies import specs

import convtune
from convtune import ConvSpec, activations, variants
from convtune.errors import SpecError
from convtune.reference import OperandArrays, random_operands, reference
from convtune.variants.conv import BLOCK_BYTES, Convolution

SPECS = {
    "plain 1-D": ConvSpec("conv", 3, 5, 11, 3),
    "asymmetric, after negative": ConvSpec("conv", 2, 3, (7, 6), (3, 2), padding=((2, -2), (0, 3)), stride=(2, 1)),
    "stride beyond the kernel": ConvSpec("conv", 2, 3, (11, 13), (2, 3), stride=(5, 4)),
    "padding beyond the kernel": ConvSpec("conv", 2, 3, (3, 4), (2, 2), padding=(4, 3)),
    "one wide": ConvSpec("conv", 1, 1, (1, 5), (1, 3), padding=(0, 1)),
    "a window in the padding alone": ConvSpec("conv", 1, 2, (1,), (2,), padding=((5, 0),)),
    "batch 3, 3-D": ConvSpec("conv", 2, 3, (3, 4, 5), (2, 3, 1), batch=3, padding=((0, 1), (2, 0), (1, 1))),
    "same": ConvSpec("conv", 2, 2, (8, 7), (4, 3), stride=(3, 2), padding="same"),
    "pointwise, stride 2, padding": ConvSpec("pointwise", 5, 7, (5, 7), 1, stride=2, padding=1, batch=2),
    "dilated in one dimension": ConvSpec("dilated", 3, 2, (9, 7), (3, 2), dilation=(3, 1), padding=(3, 0)),
    "dilated 1-D, causal": ConvSpec("dilated", 2, 3, 17, 3, dilation=4, padding=((8, 0),)),
    "dilated 3-D": ConvSpec("dilated", 2, 2, (5, 6, 4), (2, 2, 2), dilation=(2, 3, 1), stride=(1, 2, 3)),
    "grouped, fewer channels out": ConvSpec("grouped", 9, 6, (5, 4), (3, 2), groups=3, padding=1),
    "grouped 1-D, dilated": ConvSpec("grouped", 4, 6, 11, 3, groups=2, dilation=3, padding=((1, 4),)),
    "grouped 3-D": ConvSpec("grouped", 4, 4, (3, 3, 4), (3, 1, 2), groups=2, batch=2),
    "depthwise 1-D": ConvSpec("depthwise", 5, 5, 13, 4, padding=((3, 0),)),
    "depthwise, multiplier 3": ConvSpec("depthwise", 4, 12, (6, 7), (3, 5), stride=(2, 3), padding=(1, 2), batch=3),
    "depthwise 3-D, dilated": ConvSpec("depthwise", 3, 6, (5, 4, 5), (3, 2, 2), dilation=(2, 1, 3), padding=1),
    "depthwise of one channel": ConvSpec("depthwise", 1, 2, (4, 4), (3, 3)),
    "everything at the end": ConvSpec(
        "grouped", 4, 6, (5, 4), (3, 2), groups=2, bias=True, activation="gelu", residual=True
    ),
}


def loop(spec: ConvSpec, operands: OperandArrays) -> np.ndarray:
    """The convolution and its epilogue, one multiplication at a time."""
    x, (weight,) = operands.x.astype(np.float64), operands.weights
    group_in, group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    y = np.empty(spec.out_shape)
    for n, oc, *out in np.ndindex(spec.batch, spec.out_channels, *spec.out_size):
        total = float(operands.bias[oc]) if operands.bias is not None else 0.0
        for i, *tap in np.ndindex(group_in, *spec.kernel):
            at = [o * s + k * d - p[0] for o, s, k, d, p in zip(out, spec.stride, tap, spec.dilation, spec.padding)]
            if all(0 <= a < size for a, size in zip(at, spec.in_size)):
                ic = oc // group_out * group_in + i
                total += float(x[place(spec, n, ic, at)]) * float(weight[(oc, i, *tap)])
        if operands.residual is not None:
            total += float(operands.residual[place(spec, n, oc, out)])
        y[place(spec, n, oc, out)] = total
    return y if spec.activation is None else activations.get(spec.activation).numpy(y)


def place(spec: ConvSpec, n: int, channel: int, position: Sequence[int]) -> tuple[int, ...]:
    return (n, *position, channel) if spec.layout[-1] == "C" else (n, channel, *position)


def channels_last(spec: ConvSpec) -> ConvSpec:
    return spec.replace(layout={1: "NWC", 2: "NHWC", 3: "NDHWC"}[spec.rank])


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_equals_a_loop_over_scalars(spec: ConvSpec, layout: str) -> None:
    spec = channels_last(spec) if layout == "channels last" else spec
    operands = random_operands(spec, seed=1)
    y = operands.reference(spec)
    assert y.dtype == np.float64
    assert y.shape == spec.out_shape
    assert y.flags.c_contiguous
    assert_close(y, loop(spec, operands))


@given(specs(largest_channels=3, largest_size=3))
@hypothesis.settings(max_examples=60, deadline=None)
def test_equals_a_loop_over_scalars_on_any_spec(spec: ConvSpec) -> None:
    operands = random_operands(spec, seed=2)
    assert_close(operands.reference(spec), loop(spec, operands))


def test_float32_rounding_is_not_in_the_sum() -> None:
    spec = ConvSpec("pointwise", 3, 1, 1, 1)
    x = np.float32([2**30, 1, -(2**30)]).reshape(1, 3, 1)
    assert reference(spec, x, np.ones((1, 3, 1), np.float32)).item() == 1.0


def test_the_public_name_is_callable_whatever_was_imported_before() -> None:
    spec = ConvSpec("pointwise", 1, 1, 1, 1)
    assert convtune.reference(spec, np.ones((1, 1, 1)), np.ones((1, 1, 1))).item() == 1.0


SPEC = ConvSpec("conv", 2, 3, (4, 5), (3, 3), bias=True, residual=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": np.zeros((1, 4, 5, 2))}, r"x has shape \(1, 4, 5, 2\); it must be \(1, 2, 4, 5\): conv,ic=2"),
        ({"x": np.zeros((1, 2, 4, 5), complex)}, "x has dtype complex128; it must be floats or integers"),
        ({"weight": np.zeros((3, 2, 3))}, r"weight has shape \(3, 2, 3\); it must be \(3, 2, 3, 3\)"),
        ({"weight": (np.zeros(1), np.zeros(1))}, "2 weights are given; conv takes 1"),
        ({"bias": None}, r"bias is missing; the spec has one, of shape \(3,\)"),
        ({"bias": np.zeros(2)}, r"bias has shape \(2,\); it must be \(3,\)"),
        ({"residual": None}, r"residual is missing; the spec has one, of shape \(1, 3, 2, 3\)"),
        ({"offset": np.zeros(1)}, "offset is given, but conv takes none"),
        ({"mask": np.zeros(1)}, "mask is given, but conv takes none"),
    ],
)
def test_wrong_operands_are_named(changes: dict[str, Any], message: str) -> None:
    o = random_operands(SPEC, seed=0)
    operands = {"x": o.x, "weight": o.weights, "bias": o.bias, "residual": o.residual} | changes
    with pytest.raises(SpecError, match=message):
        reference(SPEC, **operands)


def test_an_operand_too_many() -> None:
    plain = SPEC.replace(bias=False, residual=False)
    o = random_operands(SPEC, seed=0)
    with pytest.raises(SpecError, match="bias is given, but the spec has none; make the spec with bias=True"):
        reference(plain, o.x, o.weights, bias=o.bias)


def test_random_operands_depend_on_the_seed_alone() -> None:
    first, again, other = (random_operands(SPEC, seed) for seed in (7, 7, 8))
    for a, b, c in zip(arrays(first), arrays(again), arrays(other)):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def arrays(operands: OperandArrays) -> list[np.ndarray]:
    assert operands.bias is not None and operands.residual is not None
    return [operands.x, *operands.weights, operands.bias, operands.residual]


@pytest.mark.parametrize(
    "spec",
    [ConvSpec("conv", 64, 64, (20, 20), (3, 3)), ConvSpec("depthwise", 64, 64, (40, 40), 7)],
    ids=lambda spec: spec.variant,
)
def test_random_operands_give_results_of_about_one(spec: ConvSpec) -> None:
    o = random_operands(spec, seed=9)
    assert all(a.dtype == np.float32 and a.flags.c_contiguous for a in (o.x, *o.weights))
    assert o.bias is None and o.residual is None
    y = o.reference(spec)
    assert abs(y.mean()) < 0.2
    assert 0.8 < y.std() < 1.2
    assert math.isclose(o.x.std(), 1.0, rel_tol=0.05)


def test_naive_loop_covers_every_plain_variant_and_rank() -> None:
    covered = {(spec.variant, spec.rank) for spec in SPECS.values()}
    expected = set(itertools.product(("conv", "dilated", "grouped", "depthwise"), (1, 2, 3))) | {("pointwise", 2)}
    assert expected <= covered


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_a_group_at_a_time_gives_the_same_bits(spec: ConvSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    operands = random_operands(spec, seed=3)
    whole = operands.reference(spec)
    monkeypatch.setattr(sys.modules[Convolution.__module__], "BLOCK_BYTES", 1)
    np.testing.assert_array_equal(operands.reference(spec), whole)


@pytest.mark.parametrize(
    "text", ["depthwise,ic=640,oc=640,in=4096,k=4,p=3:0,layout=NWC", "grouped,n=2,ic=96,oc=192,in=96x96,k=3x3,g=32"]
)
def test_many_groups_take_little_more_memory_than_their_operands_and_result(text: str) -> None:
    spec = ConvSpec.parse(text)
    x, weight = np.zeros((spec.batch, spec.in_channels, *spec.in_size)), np.zeros(spec.weight_shapes[0])
    tracemalloc.start()
    y = variants.primitive(spec).reference(spec, x, [weight])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert y.nbytes > 4 * BLOCK_BYTES
    assert peak < y.nbytes + 4 * BLOCK_BYTES


def test_a_text_is_no_spec() -> None:
    x = np.zeros((1, 4, 5, 5), "float32")
    with pytest.raises(SpecError, match=r"spec is 'conv,.*it must be a ConvSpec"):
        reference("conv,ic=4,oc=4,in=5x5,k=3x3", x, x)  # type: ignore[arg-type]
