"""Squares of dense kernels: for which layers the default takes them, and kernels of odd sizes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from conformance_cases import corner, runnable_targets
from test_conformance import check

from convtune import accuracy, space, targets
from convtune.space import KnobValue
from convtune.spec import ConvSpec

SQUARES = space.get("dense_squares")
TARGET = targets.resolve("x86-64-v4", threads=2)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("conv,ic=3,oc=32,in=299x299,k=3x3,s=2,layout=NCHW", False),  # rows of 149: strided_rows
        ("conv,ic=3,oc=96,in=224x224,k=4x4,s=4,layout=NCHW", True),  # rows of 56
        ("conv,ic=3,oc=32,in=224x224,k=3x3,s=2,p=1,layout=NCHW", False),  # rows of 7 vectors
        ("conv,ic=3,oc=24,in=224x224,k=3x3,s=2,p=1,layout=NCHW", False),  # and half a vector of channels
    ],
)
def test_where_the_default_takes_them(text: str, taken: bool) -> None:
    spec = ConvSpec.parse(text)
    default = space.default_candidate(spec, TARGET, accuracy.limit(spec, "standard"))
    assert (default.space == SQUARES.name) == taken


def test_the_default_tile_has_all_of_few_channels() -> None:
    """Whatever the tile, all channels of a task's rows wait to be stored, so that narrow ones save no room."""
    spec = ConvSpec.parse("conv,ic=3,oc=32,in=299x299,k=3x3,s=2,layout=NCHW")
    assert SQUARES.default(spec, TARGET)["oc_vectors"] == 2


@pytest.mark.parametrize(
    "text",
    [
        "conv,ic=3,oc=32,in=24x24,k=3x3,layout=NHWC",
        "conv,ic=16,oc=32,in=24x24,k=3x3,layout=NCHW",  # whole vectors of channels
        "conv,ic=3,oc=32,in=4096,k=3,layout=NCW",
        "grouped,ic=8,oc=64,in=28x28,k=3x3,g=2,layout=NCHW",
    ],
)
def test_what_it_leaves(text: str) -> None:
    assert not SQUARES.takes(ConvSpec.parse(text), TARGET)


ODD: tuple[tuple[str, Mapping[str, KnobValue]], ...] = (
    ("conv,n=2,ic=3,oc=19,in=13x11,k=3x5,p=1x6,bias,act=relu,layout=NCHW", {}),
    ("conv,n=2,ic=1,oc=40,in=14x20,k=3x3,p=4:0x2:-5,layout=NCHW", {"oh_block": 1}),
    ("conv,n=2,ic=3,oc=37,in=35x47,k=2x2,s=5x3,residual,layout=NCHW", {"oc_vectors": 1}),
    ("dilated,n=2,ic=2,oc=17,in=19x23,k=3x3,p=3,d=2x3,act=gelu,layout=NCHW", {}),
    ("conv,ic=3,oc=50,in=5x9x10,k=3x3x3,s=2x1x2,p=1x0x2,layout=NCDHW", {}),
    ("conv,ic=3,oc=3,in=7x1,k=3x1,p=5x0,layout=NCHW", {}),
)


@pytest.mark.parametrize(("text", "wanted"), ODD, ids=[text for text, _ in ODD])
def test_kernels_of_odd_sizes(text: str, wanted: Mapping[str, KnobValue]) -> None:
    spec = ConvSpec.parse(text)
    for target in runnable_targets():
        check(SQUARES, spec, target, corner(SQUARES, spec, target, wanted))
