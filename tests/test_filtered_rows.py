"""Filtering across rows: what it accepts, what a row holds, and kernels of odd sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from filtering_kernels import Case, check_odd, dimensions_filtered

from convtune import space, targets
from convtune.spec import ConvSpec

ROWS = space.get("filtered_rows")
TARGET = targets.resolve("x86-64-v4", threads=2)


@pytest.mark.parametrize(
    ("text", "filtered"),
    [
        ("conv,ic=3,oc=64,in=16x112x112,k=3x3x3,p=1,layout=NDHWC", {"d_tile", "h_tile"}),
        ("conv,ic=3,oc=64,in=16x112x112,k=1x7x7,s=1x2x2,p=0x3x3,layout=NDHWC", {"h_tile"}),
        ("conv,ic=3,oc=32,in=224x224,k=3x3,s=2,p=1", {"h_tile"}),
        ("conv,ic=16,oc=32,in=224x224,k=3x3,p=1", None),  # whole vectors of channels
        ("conv,ic=3,oc=32,in=224x224,k=1x3,p=0x1", None),  # nothing to filter but the row itself
        ("conv,ic=3,oc=96,in=224x224,k=4x4,s=4", None),
        ("conv,ic=1,oc=32,in=4096,k=7,p=3", None),
        ("grouped,ic=8,oc=64,in=28x28,k=3x3,p=1,g=2", None),
    ],
)
def test_what_it_filters(text: str, filtered: set[str] | None) -> None:
    assert dimensions_filtered(ROWS, ConvSpec.parse(text), TARGET) == filtered


ODD: tuple[Case, ...] = (
    ("conv,n=2,ic=3,oc=19,in=13x11,k=3x5,p=1x6,bias,act=relu,layout=NHWC", {"h_tile": 4}),
    # rows that no output reads as a whole, and rows of padding alone
    ("conv,n=2,ic=1,oc=40,in=14x20,k=3x3,p=4:0x2:-5,layout=NHWC", {"h_tile": 3}),
    ("conv,n=2,ic=3,oc=40,in=17x23,k=7x7,s=2,p=3,layout=NHWC", {"h_tile": 5}),
    ("conv,n=2,ic=2,oc=33,in=16x23,k=5x4,s=2x3,p=6x1,layout=NHWC", {"h_tile": 2}),
    ("dilated,n=2,ic=2,oc=17,in=19x23,k=3x3,p=3,d=2x3,layout=NHWC", {"h_tile": 2}),
    ("conv,n=2,ic=3,oc=33,in=5x9x10,k=3x3x3,p=1,residual,layout=NDHWC", {"d_tile": 2, "h_tile": 5}),
    ("conv,ic=3,oc=16,in=6x9x7,k=3x3x3,s=1x1x2,p=1,layout=NDHWC", {"d_tile": 1, "h_tile": 3}),
    ("conv,ic=3,oc=21,in=7x5x1,k=3x3x3,p=1,act=silu,bias", {"d_tile": 4, "h_tile": 1}),
    ("conv,n=3,ic=1,oc=20,in=12x9,k=5x2,p=7x0,act=gelu", {"h_tile": 2}),
    # planes: strides and dilation along them, rows of whole vectors and some that no output reads as a whole
    ("conv,n=2,ic=3,oc=40,in=17x37,k=7x7,s=2,p=3", {"h_tile": 5}),
    ("dilated,n=2,ic=2,oc=17,in=19x23,k=3x3,p=3,d=2x3", {"h_tile": 2}),
    ("conv,n=2,ic=3,oc=40,in=14x20,k=3x3,p=4:0x2:-5,residual", {"h_tile": 3}),
    ("conv,ic=7,oc=33,in=4x9x40,k=3x3x3,s=1x1x3,p=1", {"d_tile": 2, "h_tile": 2}),
)  # fmt: skip


@pytest.mark.parametrize(("turn", "case"), list(enumerate(ODD)), ids=[text for text, _ in ODD])
def test_kernels_of_odd_sizes(tmp_path: Path, turn: int, case: Case) -> None:
    check_odd(ROWS, tmp_path, turn, case)
