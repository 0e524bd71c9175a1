"""Transposed convolution filtered with phases as channels: what it takes, its dense convolution, odd sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from convtune.schedules.folded_filtering import dense_spec
from filtering_kernels import Case, check_odd, dimensions_filtered

from convtune import space, targets
from convtune.spec import ConvSpec

FOLDED = space.get("folded_filtering")
TARGET = targets.resolve("x86-64-v4", threads=2)


@pytest.mark.parametrize(
    ("text", "filtered"),
    [
        ("transposed,ic=1026,oc=1,in=224,k=1024,s=256,layout=NWC", {"w_tile"}),
        ("transposed,ic=64,oc=3,in=32x32,k=4x4,s=2,p=1,layout=NHWC", {"h_tile", "w_tile"}),
        ("transposed,ic=64,oc=3,in=32x32,k=2x4,s=2,layout=NHWC", {"w_tile"}),  # phases of a tap in a column
        ("transposed,ic=64,oc=3,in=32x32,k=4x4,s=2,p=1", None),  # phases do not lie side by side
        ("transposed,ic=64,oc=32,in=32x32,k=4x4,s=2,p=1,layout=NHWC", None),  # whole vectors: minimal_filtering's
        ("transposed,ic=64,oc=3,in=32x32,k=2x2,s=2,layout=NHWC", None),
        ("transposed,ic=64,oc=3,in=32x32,k=4x4,s=2,d=3,layout=NHWC", None),
        ("transposed,ic=64,oc=6,in=32x32,k=4x4,s=2,g=2,layout=NHWC", None),
        ("transposed,ic=4,oc=3,in=32,k=4,s=2,p=4,layout=NWC", None),  # padding takes away what the first tap gives
    ],
)
def test_what_it_filters(text: str, filtered: set[str] | None) -> None:
    assert dimensions_filtered(FOLDED, ConvSpec.parse(text), TARGET) == filtered


def test_the_dense_convolution_makes_whole_strides() -> None:
    dense = dense_spec(ConvSpec.parse("transposed,n=2,ic=5,oc=3,in=7x9,k=4x7,s=2x3,p=1x4:2,op=0x1,layout=NHWC,bias"))
    assert (dense.out_channels, dense.kernel, dense.bias) == (18, (2, 3), False)
    # 14 outputs after one that the padding takes away; 26 after four, of which three are a whole stride
    assert dense.out_size == (8, 9) and dense.padding[0][0] == 1 and dense.padding[1][0] == 1


ODD: tuple[Case, ...] = (
    # y is what the dense convolution stores: each phase has the same bias, residual and y lie alike
    ("transposed,n=2,ic=33,oc=1,in=13,k=64,s=16,layout=NWC,bias,residual,act=relu", {"w_tile": 4}),
    ("transposed,n=2,ic=17,oc=19,in=1x6,k=3x4,s=1x2,layout=NHWC,residual,bias", {"w_tile": 2}),
    # the padding takes away parts of the first and of the last stride
    ("transposed,n=2,ic=18,oc=3,in=7x5,k=4x4,s=2,p=1,layout=NHWC,bias,residual,act=relu", {"h_tile": 2, "w_tile": 2}),
    ("transposed,ic=18,oc=5,in=11,k=7,s=3,p=2,op=1,layout=NWC,bias,act=gelu", {"w_tile": 2, "order": "tiles"}),
    ("transposed,ic=7,oc=3,in=3x4x5,k=3x4x5,s=2x2x3,p=0x1x2,layout=NDHWC,bias", {"w_tile": 2}),
    # one stride alone, of which both ends are taken away
    ("transposed,n=3,ic=5,oc=9,in=5x1,k=4x9,s=2x5,p=1x3:3,layout=NHWC,act=silu", {"h_tile": 2, "order": "channels"}),
    ("transposed,n=2,ic=5,oc=9,in=6x2,k=5x5,s=3x4,p=1x3:2,layout=NHWC", {"h_tile": 2}),
)


@pytest.mark.parametrize(("turn", "case"), list(enumerate(ODD)), ids=[text for text, _ in ODD])
def test_kernels_of_odd_sizes(tmp_path: Path, turn: int, case: Case) -> None:
    check_odd(FOLDED, tmp_path, turn, case)
