"""ConvSpec: sizes against hand-computed ones, everything invalid with its message."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from strategies import specs

import convtune
from convtune import ConvSpec
from convtune.errors import SpecError, UnknownNameError
from convtune.spec import LARGEST_DIMENSION

GOOD: dict[str, Any] = {
    "variant": "conv",
    "in_channels": 4,
    "out_channels": 6,
    "in_size": (8, 9),
    "kernel": (3, 3),
}


def make(**changes: Any) -> ConvSpec:
    return ConvSpec(**(GOOD | changes))


def test_the_contracts_example() -> None:
    spec = convtune.ConvSpec(
        "grouped",
        in_channels=128,
        out_channels=128,
        in_size=(56, 56),
        kernel=(3, 3),
        batch=1,
        stride=1,
        padding=1,
        dilation=1,
        groups=32,
        layout="NCHW",
        dtype="float32",
        bias=False,
        activation=None,
    )
    assert (spec.stride, spec.padding, spec.dilation) == ((1, 1), ((1, 1), (1, 1)), (1, 1))
    assert spec.in_shape == spec.out_shape == (1, 128, 56, 56)
    assert spec.weight_shapes == ((128, 4, 3, 3),)


def test_defaults() -> None:
    spec = make()
    assert (spec.batch, spec.groups, spec.layout, spec.dtype) == (1, 1, "NCHW", "float32")
    assert (spec.bias, spec.activation, spec.residual) == (False, None, False)
    assert (spec.output_padding, spec.offset_groups, spec.modulated) == (None, None, None)
    assert make(variant="depthwise", out_channels=8).groups == 4
    assert make(in_size=7, kernel=2).layout == "NCW"
    assert make(in_size=(7, 7, 7), kernel=2).layout == "NCDHW"


@pytest.mark.parametrize(
    ("changes", "out_size"),
    [
        ({}, (6, 7)),
        ({"padding": 1}, (8, 9)),
        ({"padding": 1, "stride": 2}, (4, 5)),
        ({"padding": (1, (0, 2)), "stride": (3, 1)}, (3, 9)),  # floor((8 + 2 - 3) / 3) + 1, (9 + 2 - 3) + 1
        ({"padding": ((0, -1), 0)}, (5, 7)),
        ({"variant": "dilated", "dilation": (3, 1), "padding": 3}, (8, 13)),  # span 7: 8 + 6 - 7 + 1
        ({"padding": "valid"}, (6, 7)),
        ({"padding": "same"}, (8, 9)),
        ({"padding": "same", "stride": 3}, (3, 3)),
        ({"kernel": (8, 9)}, (1, 1)),
        ({"stride": 100}, (1, 1)),
    ],
)
def test_output_size(changes: dict[str, Any], out_size: tuple[int, ...]) -> None:
    assert make(**changes).out_size == out_size


@pytest.mark.parametrize(
    ("changes", "padding"),
    [
        # TensorFlow's SAME and ONNX's SAME_UPPER: total = max((ceil(in / s) - 1) s + span - in, 0), the odd one after
        ({"in_size": (8, 9)}, ((1, 1), (1, 1))),
        ({"in_size": (8, 9), "stride": 2}, ((0, 1), (1, 1))),
        ({"in_size": (8, 9), "kernel": (4, 1)}, ((1, 2), (0, 0))),
        ({"in_size": (8, 9), "kernel": (2, 2), "stride": 5}, ((0, 0), (0, 0))),
        ({"variant": "dilated", "in_size": (8, 9), "dilation": 2}, ((2, 2), (2, 2))),
    ],
)
def test_same_padding(changes: dict[str, Any], padding: Any) -> None:
    assert make(padding="same", **changes).padding == padding


def test_shapes_follow_the_layout() -> None:
    spec = make(batch=3, layout="NHWC")
    assert (spec.in_shape, spec.out_shape) == ((3, 8, 9, 4), (3, 6, 7, 6))
    assert make(batch=3).in_shape == (3, 4, 8, 9)
    assert make(in_size=5, kernel=2, layout="NWC").out_shape == (1, 4, 6)
    assert make(in_size=(5, 6, 7), kernel=2, layout="NDHWC").out_shape == (1, 4, 5, 6, 6)
    assert [make(layout=layout).channels_last for layout in ("NCHW", "NHWC")] == [False, True]


def test_costs() -> None:
    # 64 to 64 3x3 at 56: 231.2 MFLOP, as in every table of ResNet-50's layers
    spec = ConvSpec("conv", 64, 64, (56, 56), 3, padding=1)
    assert spec.macs == 56 * 56 * 64 * 64 * 9
    assert spec.flops == 231_211_008
    assert spec.parameters == 64 * 64 * 9
    assert spec.bytes == 4 * (2 * 64 * 56 * 56 + 64 * 64 * 9)
    rich = spec.replace(bias=True, residual=True)
    assert rich.parameters == spec.parameters + 64
    assert rich.bytes == spec.bytes + 4 * (64 + 64 * 56 * 56)
    assert ConvSpec("depthwise", 8, 16, 10, 3).macs == 8 * 16 * 3
    assert ConvSpec("grouped", 8, 16, 10, 3, groups=4).macs == 8 * 16 * 2 * 3


@given(specs())
def test_costs_agree_with_the_shapes(spec: ConvSpec) -> None:
    (weight,) = spec.weight_shapes
    outputs = int(np.prod(spec.out_shape))
    assert spec.macs == outputs * int(np.prod(weight[1:]))
    assert weight[0] == spec.out_channels
    assert sorted(spec.out_shape) == sorted((spec.batch, spec.out_channels, *spec.out_size))


@given(specs())
def test_a_spec_is_a_value(spec: ConvSpec) -> None:
    for copy in (pickle.loads(pickle.dumps(spec)), spec.replace(), ConvSpec(**vars(spec))):
        assert copy == spec
        assert hash(copy) == hash(spec)
        assert str(copy) == str(spec)


def test_frozen() -> None:
    with pytest.raises(AttributeError):
        make().batch = 2  # type: ignore[misc]


def test_however_written_equal_specs_are_equal() -> None:
    spellings = [
        make(padding=1, stride=2),
        make(padding=(1, 1), stride=[2, 2]),
        make(padding=[[1, 1], [1, 1]], stride=np.array([2, 2]), in_channels=np.int64(4)),
        make(padding=((1, 1), 1), stride=(2, np.int32(2))),
    ]
    assert len(set(spellings)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 0}, "in_channels=0 is out of range; it must be between 1 and"),
        ({"in_channels": 2**31}, f"in_channels={2**31} is out of range; it must be between 1 and {LARGEST_DIMENSION}"),
        ({"out_channels": -1}, "out_channels=-1 is out of range"),
        ({"batch": 1.0}, "batch=1.0 is not an integer; it must be an integer of at least 1"),
        ({"batch": True}, "batch=True is not an integer"),
        ({"batch": "2"}, "batch='2' is not an integer"),
        ({"batch": None}, "batch=None is not an integer"),
        ({"in_size": ()}, r"in_size=\(\) has 0 dimensions; 1 to 3 are allowed"),
        ({"in_size": (2, 2, 2, 2)}, "has 4 dimensions; 1 to 3 are allowed"),
        ({"variant": "deformable", "in_size": 7}, "in_size 7 has 1 dimension; deformable takes 2"),
        ({"in_size": (8, 0)}, "in_size=0 is out of range"),
        ({"in_size": "8x9"}, "in_size='8x9' is not an integer"),
        ({"kernel": (3,)}, r"kernel=\(3,\) has 1 entries; in_size has 2 dimensions: give 2, or one int"),
        ({"kernel": 0}, "kernel=0 is out of range"),
        ({"stride": 0}, "stride=0 is out of range"),
        ({"stride": (1, 1, 1)}, r"stride=\(1, 1, 1\) has 3 entries"),
        ({"kernel": {3: 1, 5: 1}}, "kernel={3: 1, 5: 1} is a dict; it must be one value for all, or a list"),
        ({"padding": {1, 2}}, "padding={1, 2} is a set; it must be one value for all, or a list or tuple of them"),
        ({"padding": (1, {0, 2})}, "padding={0, 2} is a set; it must be"),
        ({"dilation": (1, -1)}, "dilation=-1 is out of range"),
        ({"padding": -1}, "padding=-1 is out of range; it must be between 0"),
        ({"padding": ((-1, 0), 0)}, "padding=-1 is out of range; it must be between 0"),
        ({"padding": (1, 1, 1)}, r"padding=\(1, 1, 1\) has 3 entries; in_size has 2 dimensions: give 2, or one int"),
        (
            {"padding": ((1, 2, 3), 0)},
            r"padding entry \(1, 2, 3\) is not a pair; it must be an int or \(before, after\)",
        ),
        ({"padding": "full"}, "padding='full' is not known; it must be an int, one entry per dimension, 'same'"),
        ({"padding": 0.5}, "padding=0.5 is not an integer"),
        ({"layout": "NCW"}, "layout='NCW' is not allowed; it must be one of NCHW, NHWC"),
        ({"layout": 3}, "layout=3 is not allowed"),
        ({"dtype": "int8"}, "dtype='int8' is not allowed; it must be one of float32, float16"),
        ({"activation": "swish"}, r"activation='swish' is not allowed; it must be one of None \(in text: none\), relu"),
        ({"bias": 1}, "bias=1 is not allowed; it must be one of False, True"),
        ({"residual": None}, "residual=None is not allowed"),
        ({"output_padding": 1}, "output_padding=1: conv has no output_padding; leave it out"),
        ({"offset_groups": 1}, "offset_groups=1: conv has no offset_groups"),
        ({"modulated": False}, "modulated=False: conv has no modulated"),
        ({"groups": 2}, "conv takes groups=1, not groups=2; use variant grouped or depthwise"),
        ({"dilation": 2}, "conv takes dilation 1, not 2x2; use variant dilated"),
        ({"dilation": (2, 3)}, "conv takes dilation 1, not 2x3; use variant dilated"),
        ({"variant": "dilated"}, "dilated takes a dilation above 1 in some dimension, not 1 in all; use variant conv"),
        (
            {"variant": "dilated", "dilation": 2, "groups": 2},
            "dilated takes groups=1, not groups=2; use variant",
        ),
        ({"variant": "pointwise"}, "pointwise takes kernel 1, not 3x3; use variant conv"),
        ({"variant": "grouped"}, "grouped takes groups above 1, not groups=1; use variant conv"),
        ({"variant": "grouped", "groups": 3}, "groups=3 does not divide in_channels=4"),
        ({"variant": "grouped", "groups": 4}, "groups=4 does not divide out_channels=6"),
        ({"variant": "depthwise"}, "groups=4 does not divide out_channels=6"),
        (
            {"variant": "depthwise", "groups": 2},
            "depthwise takes groups=in_channels=4, not groups=2",
        ),
        (
            {"kernel": (3, 12), "padding": 1},
            "output dimension 1 would be 0: kernel 12 with dilation 1 spans 12, the padded input is 11; "
            "the span may be at most the padded input",
        ),
        ({"padding": ((0, -8), 0)}, "output dimension 0 would be -2: .* the padded input is 0"),
        ({"in_size": (65536, 32768)}, f"a tensor of conv has more than {LARGEST_DIMENSION} elements"),
    ],
)
def test_what_is_invalid_is_named_with_its_value_and_what_is_allowed(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        make(**changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["cnv", "", None, 3, ["conv"]])
def test_unknown_variants_list_the_known(name: Any) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown variant .*conv"):
        make(variant=name)


def test_a_spec_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="batch=0"):
        make(batch=0)
