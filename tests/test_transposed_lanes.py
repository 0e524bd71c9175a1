"""Transposed convolution with phases as lanes: which parts of vectors are stored, and kernels that store parts."""

from __future__ import annotations

import pytest
from conformance_cases import corner, runnable_targets
from convtune.schedules.transposed_lanes import stored_lanes, transposed_lanes
from test_conformance import check

from convtune import targets
from convtune.spec import ConvSpec

TARGET = targets.resolve("x86-64-v4", threads=2)


@pytest.mark.parametrize(
    ("text", "vectors", "lanes"),
    [
        ("transposed,ic=4,oc=32,in=9x9,k=3x3,s=2,p=1,layout=NHWC", 2, 16),
        ("transposed,ic=4,oc=8,in=9x9,k=2x2,s=2,layout=NHWC", 1, 16),  # two phases of a row
        ("transposed,ic=4,oc=20,in=9x9,k=2x2,s=2,layout=NHWC", 5, 8),  # 40 side by side, 80 in all
        ("transposed,ic=4,oc=20,in=9x9,k=2x2,s=2,layout=NHWC", 2, 1),  # some channels of the last block do not exist
        ("transposed,ic=4,oc=20,in=9x9,k=2x2,s=2,p=0x1,layout=NHWC", 5, 1),  # half of the first stride is taken away
        ("transposed,ic=4,oc=12,in=9x9,k=4x3,s=4x3,layout=NHWC", 3, 4),
        ("transposed,ic=4,oc=6,in=9x9,k=4x4,s=4x1,layout=NHWC", 1, 1),  # parts of two are no vectors
    ],
)
def test_parts_of_vectors_that_are_stored_at_once(text: str, vectors: int, lanes: int) -> None:
    spec = ConvSpec.parse(text)
    knobs = corner(transposed_lanes, spec, TARGET, {"oc_vectors": vectors})
    assert stored_lanes(spec, transposed_lanes.tile(spec, TARGET, knobs)) == lanes


@pytest.mark.parametrize(
    ("turn", "text"),
    list(
        enumerate(
            (
                "transposed,n=2,ic=3,oc=20,in=5x7,k=2x2,s=2,bias,residual,act=relu,layout=NHWC",
                "transposed,ic=5,oc=12,in=3x4x5,k=3x2x3,s=2x1x1,p=1x0x0,bias,act=gelu,layout=NDHWC",
                "transposed,n=3,ic=2,oc=10,in=3x11,k=5x2,s=2x2,p=1x0,residual,layout=NHWC",
            )
        )
    ),
)
def test_kernels_that_store_parts_are_right(turn: int, text: str) -> None:
    target, spec = runnable_targets()[turn % len(runnable_targets())], ConvSpec.parse(text)
    vectors = max(int(v) for v in transposed_lanes.knobs(spec, target)["oc_vectors"])
    check(transposed_lanes, spec, target, corner(transposed_lanes, spec, target, {"oc_vectors": vectors}))


@pytest.mark.parametrize(
    "text",
    [
        "transposed,n=2,ic=5,oc=19,in=3x7,k=2x3,s=2,p=0x1,bias,act=gelu,layout=NHWC",
        "transposed,ic=3,oc=33,in=5x11,k=2x2,s=2,bias,residual,layout=NHWC",
        "transposed,n=3,ic=7,oc=18,in=13,k=5,s=3,p=1,layout=NWC",
    ],
)
@pytest.mark.parametrize("pad_at", ["root", "task"])
def test_all_channel_blocks_of_a_tile_in_turn(text: str, pad_at: str) -> None:
    target, spec = runnable_targets()[0], ConvSpec.parse(text)
    knobs = corner(transposed_lanes, spec, target, {"oc_order": "inner", "oc_vectors": 1, "pad_at": pad_at})
    assert transposed_lanes.tile(spec, target, knobs).blocks > 1
    check(transposed_lanes, spec, target, knobs)


def test_tiles_store_few_lines_at_once_to_memory() -> None:
    knobs = {"oc_vectors": 2, "oh_block": 2, "ow_block": 196, "oc_order": "outer", "pad_at": "none"}

    def ratio(height: int) -> float:
        spec = ConvSpec.parse(f"transposed,ic=128,oc=64,in={height}x196,k=2x2,s=2,layout=NHWC")
        many, few = ({**knobs, "ow_tile": columns} for columns in (14, 7))
        return transposed_lanes.estimate(spec, TARGET, many) / transposed_lanes.estimate(spec, TARGET, few)

    assert ratio(2) < 1 < ratio(784)
