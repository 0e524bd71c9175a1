"""Receptive fields against brute force: which inputs change an output of the reference, tried one by one."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import strategies
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from convtune import ConvSpec, reference, variants
from convtune.errors import SpecError
from convtune.receptive import LONGEST_PERIOD, receptive_fields

VARIANTS = ("conv", "dilated", "transposed", "pointwise", "depthwise_separable", "flattened", "shuffled_grouped")
PRIMITIVE = ("conv", "dilated", "depthwise", "transposed")
INPUTS = 240  # elements of a line: enough for an uncut field of every output that differs from its neighbours

Seen = NDArray[np.bool_]


def seen(chain: list[ConvSpec]) -> Seen:
    """(inputs, outputs): whether the input, changed alone, changes the output, where no product cancels another."""
    inputs = math.prod(chain[0].in_size)
    y: Any = np.eye(inputs).reshape(inputs, 1, *chain[0].in_size).repeat(chain[0].in_channels, axis=1)
    for spec in chain:
        alone = spec.replace(batch=inputs)
        y = (reference(alone, y, tuple(np.ones(shape) for shape in alone.weight_shapes)) > 0).astype(float)
    return np.asarray(y[:, 0] > 0)


def extents(dependence: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Of (inputs, outputs) of a line: from the first input of each output to its last, counted; 0 for none."""
    inputs = len(dependence)
    first, last = dependence.argmax(axis=0), inputs - 1 - dependence[::-1].argmax(axis=0)
    return np.where(dependence.any(axis=0), last - first + 1, 0)


@st.composite
def layers(draw: st.DrawFn, in_size: int) -> ConvSpec:
    """A layer of two channels over a line."""
    variant = draw(st.sampled_from(VARIANTS))
    dilated = variant not in ("conv", "pointwise")
    fields: dict[str, Any] = {
        "kernel": 1 if variant == "pointwise" else draw(st.integers(1, 4)),
        "stride": draw(st.integers(1, 3)),
        "dilation": draw(st.integers(2 if variant == "dilated" else 1, 3)) if dilated else 1,
        "padding": ((draw(st.integers(0, 4)), draw(st.integers(-2, 4))),),
    }
    if variant == "shuffled_grouped":
        fields["groups"] = 2
    return ConvSpec(variant, 2, 2, (in_size,), **fields)


@st.composite
def chains(draw: st.DrawFn) -> list[ConvSpec]:
    chain: list[ConvSpec] = []
    size = INPUTS
    for _ in range(draw(st.integers(1, 3))):
        chain.append(draw(layers(size)))
        (size,) = chain[-1].out_size
    return chain


@settings(max_examples=150, deadline=None)
@given(chains())
def test_a_field_is_what_changes_an_output(chain: list[ConvSpec]) -> None:
    fields = receptive_fields(chain)
    assert len(fields) == len(chain)
    for length, field in enumerate(fields, start=1):
        dependence = seen(chain[:length])
        found = extents(dependence)
        (jump,) = field.jump
        assert field.size == (found.max(),)
        # an output that is a whole number of inputs further sees as many further on, unless a border cuts it
        uncut = np.flatnonzero(dependence.any(axis=0) & ~dependence[:30].any(axis=0) & ~dependence[-30:].any(axis=0))
        period = math.prod(layer.stride[0] for layer in chain[:length] if layer.variant == "transposed")
        for out in uncut[np.isin(uncut + period, uncut)]:
            moved = np.roll(dependence[:, out], int(period * jump))
            assert np.array_equal(moved, dependence[:, out + period])


@pytest.mark.parametrize(
    ("texts", "sizes", "jumps"),
    [
        (
            [
                "conv,ic=1,oc=1,in=40x40,k=3x3,p=1",
                "dilated,ic=1,oc=1,in=40x40,k=3x3,p=2,d=2",
                "dilated,ic=1,oc=1,in=40x40,k=3x3,p=4,d=4",
            ],
            [(3, 3), (7, 7), (15, 15)],
            [1, 1, 1],
        ),
        # the stem of ResNet: 7x7 of stride 2, pooling left out
        (
            ["conv,ic=3,oc=9,in=224x224,k=7x7,s=2,p=3", "conv,ic=9,oc=9,in=112x112,k=3x3,p=1"],
            [(7, 7), (11, 11)],
            [2, 2],
        ),
        # a kernel of twice the stride: each output of a transposed convolution meets two inputs
        (["transposed,ic=1,oc=1,in=8,k=4,s=2,p=1", "conv,ic=1,oc=1,in=16,k=3,p=1"], [(2,), (3,)], [0.5, 0.5]),
        # of a kernel below the stride some outputs meet none
        (["transposed,ic=1,oc=1,in=8,k=1,s=2"], [(1,)], [0.5]),
        (["transposed,ic=1,oc=1,in=8,k=1,s=2,p=0:-1", "conv,ic=1,oc=1,in=16,k=1,s=2,p=1"], [(1,), (0,)], [0.5, 1]),
        (["deformable,ic=1,oc=1,in=20x20,k=3x5,s=2"], [(3, 5)], [2]),  # of the grid, without the offsets
        (["flattened,ic=1,oc=1,in=20x20x20,k=3x5x1,d=2x1x1"], [(5, 5, 1)], [1]),
    ],
)
def test_known_fields(texts: list[str], sizes: list[tuple[int, ...]], jumps: list[float]) -> None:
    fields = receptive_fields([ConvSpec.parse(text) for text in texts])
    assert [field.size for field in fields] == sizes
    assert [field.jump for field in fields] == [(Fraction(jump),) * len(size) for jump, size in zip(jumps, sizes)]


def test_dimensions_have_fields_of_their_own() -> None:
    chain = [
        ConvSpec("spatially_separable", 1, 2, (14, 13), (3, 2), dilation=(1, 2), stride=(2, 1), padding=1),
        ConvSpec("transposed", 2, 1, (7, 13), (3, 4), stride=(2, 3)),
        ConvSpec("conv", 1, 1, (15, 40), (2, 1), padding=1, stride=(1, 2)),
    ]
    for length, field in enumerate(receptive_fields(chain), start=1):
        whole = seen(chain[:length]).reshape(*chain[0].in_size, -1)
        rows, columns = extents(whole.any(axis=1)), extents(whole.any(axis=0))
        assert field.size == (rows.max(), columns.max())


def test_padding_decides_which_phase_a_stride_takes() -> None:
    """Of a transposed layer's outputs that meet one input or two, a stride of 2 keeps either the ones or the others."""
    up = ConvSpec("transposed", 1, 1, (8,), 3, stride=2)
    (size,) = up.out_size
    found = []
    for padding in (0, 1):
        down = ConvSpec("conv", 1, 1, (size,), 1, stride=2, padding=padding)
        found.append(receptive_fields([up, down])[1].size)
        assert found[-1] == (extents(seen([up, down])).max(),)
    assert sorted(found) == [(1,), (2,)]


@pytest.mark.parametrize("padding", [0, 1])
def test_windows_over_outputs_that_are_made_of_nothing(padding: int) -> None:
    """Every other output of the transposed layer is: either the first tap or the last one of each window meets none."""
    up = ConvSpec("transposed", 1, 1, (9,), 1, stride=2)
    down = ConvSpec("conv", 1, 1, up.out_size, 4, stride=2, padding=padding)
    assert receptive_fields([up, down])[1].size == (extents(seen([up, down])).max(),) == (2,)


@settings(max_examples=200, deadline=None)
@given(strategies.specs(variants=PRIMITIVE, ranks=(1,), largest_channels=1, largest_size=9))
def test_the_inputs_that_a_variant_says_an_output_reads(spec: ConvSpec) -> None:
    (inputs,), (outputs,) = spec.in_size, spec.out_size
    plain = spec.replace(bias=False, activation=None, residual=False, batch=1, layout=None)
    reads = [variants.primitive(spec).reads(spec, 0, out) for out in range(outputs)]
    found = [[i for i in range(inputs) if i in positions] for positions in reads]
    assert found == [np.flatnonzero(of_output).tolist() for of_output in seen([plain]).T]


def test_a_chain_of_none() -> None:
    assert receptive_fields([]) == ()


@pytest.mark.parametrize(
    ("changes", "takes"),
    [
        ({"in_channels": 9}, "9 channels of 12x12"),
        ({"in_size": (12, 11)}, "8 channels of 12x11"),
        ({"in_size": (12,), "kernel": 3, "padding": 1, "stride": 1, "dilation": 1, "layout": None}, "8 channels of 12"),
        ({"batch": 3}, "8 channels of 12x12 in a batch of 3"),
    ],
)
def test_layers_that_do_not_follow_one_another(changes: dict[str, Any], takes: str) -> None:
    first = ConvSpec("conv", 4, 8, (12, 12), 3, padding=1)
    fields = {f.name: getattr(first, f.name) for f in dataclasses.fields(first)} | {"in_channels": 8} | changes
    with pytest.raises(SpecError) as error:
        receptive_fields([first, ConvSpec(**fields)])
    said = f"layer 2 of the chain takes {takes}, but layer 1 gives 8 channels of 12x12: "
    assert str(error.value).startswith(said)


def test_outputs_that_hardly_repeat() -> None:
    spec = ConvSpec("transposed", 1, 1, (3,), 1, stride=LONGEST_PERIOD + 1)
    with pytest.raises(SpecError, match=f"outputs repeat every {LONGEST_PERIOD + 1}; at most"):
        receptive_fields([spec])
    wide = ConvSpec("conv", 1, 1, (2_000_000_000,), 1_000_000_000, dilation=1)
    assert receptive_fields([wide])[0].size == (1_000_000_000,)
