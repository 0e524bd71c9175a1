"""Direct sums over rows as they lie: which layers, which columns share vectors, and kernels of odd sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conformance_cases import corner, runnable_targets
from convtune.schedules.row_taps import row_taps
from convtune.schedules.row_taps_plan import plan_of
from test_conformance import check

from convtune import ConvSpec, space, targets
from convtune.space import all_knobs

WIDE = targets.resolve("x86-64-v4", threads=2)
STEM = "conv,ic=3,oc=24,in=45x46,k=3x3,s=2,p=1,layout=NHWC"
ODD = [
    "conv,ic=3,oc=27,in=7x23,k=3x3,n=2,s=2,p=1,layout=NHWC,bias,act=gelu,residual",
    "dilated,ic=5,oc=20,in=13x19,k=3x3,p=3,d=3,layout=NHWC,act=relu",
    "conv,ic=1,oc=45,in=5x29,k=5x4,p=2x5,layout=NHWC,bias,act=silu",
    "conv,ic=3,oc=12,in=3x7x9,k=3x3x3,p=1,layout=NDHWC,residual",
    "conv,ic=2,oc=6,in=37,k=7,p=3,layout=NWC,bias",
    "pointwise,ic=19,oc=36,in=2x9x11,k=1x1x1,s=1x2x2,layout=NDHWC,bias",
    "conv,ic=3,oc=32,in=2x11,k=4x5,s=2x3,p=5x4,layout=NHWC",
]


def plan(spec: ConvSpec, **knobs: int):  # type: ignore[no-untyped-def]
    return plan_of(spec, WIDE, {"columns": 6, "vectors": 1, "row_block": 1, **knobs})


@pytest.mark.parametrize(
    ("change", "taken"),
    [
        ({}, True),
        ({"padding": 0}, True),
        ({"out_channels": 16}, True),
        ({"in_channels": 40}, True),
        ({"in_channels": 40, "out_channels": 32}, False),
        ({"in_channels": 40, "out_channels": 28}, False),
        ({"out_channels": 200}, False),
        ({"layout": "NCHW"}, False),
    ],
)
def test_few_channels_or_half_filled_vectors_are_taken(change: dict[str, object], taken: bool) -> None:
    assert row_taps.takes(ConvSpec.parse(STEM).replace(**change), WIDE) is taken


def test_of_pointwise_layers_only_strided_ones_are_taken() -> None:
    spec = ConvSpec("pointwise", 24, 24, (14, 14), 1, layout="NHWC")
    assert not row_taps.takes(spec, WIDE)
    assert row_taps.takes(spec.replace(stride=2), WIDE)


@pytest.mark.parametrize(("channels", "share", "sums"), [(24, 2, 6 + 3), (20, 4, 6 + 2), (28, 1, 6 + 6), (32, 1, 6)])
def test_columns_share_what_is_left_over(channels: int, share: int, sums: int) -> None:
    made = plan(ConvSpec.parse(STEM).replace(out_channels=channels))
    assert made.share == share
    assert made.sums(made.blocks[-1], 6) == sums
    assert sum(len(block) for block in made.blocks) == channels // 16


@pytest.mark.parametrize("text", [STEM, *ODD])
def test_register_tiles_fit(text: str) -> None:
    spec = ConvSpec.parse(text)
    for target in (WIDE, targets.resolve("x86-64-v3", threads=2)):
        candidates = list(all_knobs(row_taps, spec, target))
        assert 0 < len(candidates) <= 2500
        for knobs in candidates:
            made = plan_of(spec, target, knobs)
            columns = min(made.columns, made.view.columns.out)
            assert max(made.sums(block, columns) + len(block) for block in made.blocks) < target.vector_registers


@pytest.mark.parametrize("turn", range(len(ODD)), ids=ODD)
def test_kernels_of_odd_sizes_are_right(turn: int) -> None:
    """With one block of channels and with several, for vectors of each width in turn."""
    spec = ConvSpec.parse(ODD[turn])
    taking = [target for target in runnable_targets() if row_taps.takes(spec, target)]
    target = taking[turn % len(taking)]
    check(row_taps, spec, target, row_taps.default(spec, target))
    rows = row_taps.knobs(spec, target)["row_block"][-1]
    check(row_taps, spec, target, corner(row_taps, spec, target, {"vectors": 1, "row_block": rows}))


@pytest.mark.parametrize("padding", [0, 1])
def test_a_stem_whose_channels_fill_half_a_vector_is_computed_so_by_default(padding: int) -> None:
    spec = ConvSpec.parse(STEM).replace(in_size=(224, 224), padding=padding)
    assert space.default_candidate(spec, replace(WIDE, l2_bytes=1 << 20)).space == row_taps.name
