"""Grouped convolution along rows and planes: its packed weights, and kernels at the domain's corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable
from convtune.schedules.grouped_planes import grouped_planes
from synthetic_spaces import machine
from test_conformance import check

from convtune.runtime import packing
from convtune.space import all_knobs
from convtune.spec import ConvSpec

SPECS = [
    ConvSpec.parse(text)
    for text in (
        "grouped,n=2,ic=12,oc=20,in=7x23,k=3x3,p=1,g=4,bias,act=relu,residual,layout=NCHW",
        "grouped,ic=15,oc=18,in=13x5,k=3x2,s=2x1,p=1:0x2:1,g=3,act=gelu,layout=NCHW",
        "grouped,n=2,ic=8,oc=14,in=3x5x17,k=2x3x3,p=1,d=1x2x1,g=2,residual,layout=NCDHW",
        "grouped,n=3,ic=10,oc=10,in=211,k=19,p=18:0,g=5,bias,layout=NCW",
        "shuffled_grouped,n=2,ic=15,oc=35,in=5x7,k=1x1,g=5,bias,act=silu,layout=NCHW",
        "grouped,n=2,ic=9,oc=12,in=7x5x6,k=5x1x1,p=2x0x0,g=3,layout=NCDHW",
    )
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_each_weight_is_packed_once(spec: ConvSpec) -> None:
    weight = np.arange(1, 1 + np.prod(spec.weight_shapes[0]), dtype=np.float32).reshape(spec.weight_shapes[0])
    for channels in {knobs["channels"]: knobs for knobs in all_knobs(grouped_planes, spec, machine())}.values():
        (steps,) = grouped_planes.pack(spec, machine(), channels)
        packed = packing.apply(steps, weight)
        assert sorted(packed.ravel()) == sorted(weight.ravel())
        assert packed.shape[0] * packed.shape[-1] == spec.out_channels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "wanted"),
    [
        (0, {"vectors": 3, "parts": 4}),
        (0, {"shape": "rows", "rows": 2, "channels": 1, "row_blocks": 2}),
        (1, {"shape": "planes", "channels": 2}),
        (1, {"shape": "rows", "channels": 6}),
        (2, {"shape": "rows", "vectors": 2}),
        (3, {"channels": 2, "parts": 2}),
        (4, {"channels": 7}),
        (5, {"parts": 2}),
    ],
)
def test_corners_are_right(number: int, wanted: dict[str, Any]) -> None:
    spec, target = SPECS[number], runnable("x86-64-v3")
    check(grouped_planes, spec, target, corner(grouped_planes, spec, target, wanted))
