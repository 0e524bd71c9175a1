"""Rows whose lanes are positions, with a stride: for which layers the default takes them, and kernels of odd sizes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from conformance_cases import corner, runnable_targets
from convtune.schedules.strided_rows_plan import plan_of
from test_conformance import check

from convtune import accuracy, space, targets
from convtune.space import KnobValue
from convtune.spec import ConvSpec

ROWS = space.get("strided_rows")
TARGET = targets.resolve("x86-64-v4", threads=2)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("conv,ic=3,oc=32,in=299x299,k=3x3,s=2,layout=NCHW", True),  # rows of 149
        ("conv,ic=3,oc=96,in=224x224,k=4x4,s=4,layout=NCHW", False),  # of 56: an eighth of the lanes would be empty
        ("conv,ic=3,oc=32,in=224x224,k=3x3,s=2,p=1,layout=NCHW", False),  # of 7 vectors
    ],
)
def test_where_the_default_takes_them(text: str, taken: bool) -> None:
    spec = ConvSpec.parse(text)
    default = space.default_candidate(spec, TARGET, accuracy.limit(spec, "standard"))
    assert (default.space == ROWS.name) == taken


@pytest.mark.parametrize(
    "text",
    [
        "conv,ic=3,oc=32,in=299x299,k=3x3,s=2,layout=NHWC",
        "conv,ic=3,oc=32,in=224x224,k=3x3,s=2,p=1,layout=NCHW",  # rows of whole vectors
        "conv,ic=16,oc=32,in=35x35,k=3x3,layout=NCHW",  # whole vectors of channels
        "conv,ic=3,oc=32,in=13x13,k=3x3,layout=NCHW",  # rows of less than a vector
        "conv,ic=3,oc=32,in=299x299,k=5x5,s=5,layout=NCHW",
        "conv,ic=3,oc=32,in=4097,k=3,layout=NCW",
        "conv,ic=3,oc=32,in=99x99,k=1x31,layout=NCHW",  # too long a body
        "grouped,ic=6,oc=64,in=28x28,k=3x3,g=2,layout=NCHW",
    ],
)
def test_what_it_leaves(text: str) -> None:
    assert not ROWS.takes(ConvSpec.parse(text), TARGET)


def test_rows_that_read_no_zeros_are_read_as_they_lie() -> None:
    """75 columns of each residue where the last one of 149 inputs has none: vectors begin one element earlier."""
    spec = ConvSpec.parse("conv,ic=3,oc=32,in=149x149,k=3x3,s=2,layout=NCHW")
    plan = plan_of(spec, TARGET, ROWS.default(spec, TARGET))
    assert (plan.inside, plan.beyond, plan.pitch) == (True, 1, 80)
    padded = spec.replace(padding=1)
    assert not plan_of(padded, TARGET, ROWS.default(padded, TARGET)).inside


ODD: tuple[tuple[str, Mapping[str, KnobValue]], ...] = (
    ("conv,n=2,ic=3,oc=19,in=13x71,k=3x5,p=1x6,s=2x3,bias,act=relu,layout=NCHW", {}),
    ("conv,n=2,ic=1,oc=40,in=14x39,k=3x3,p=4:0x2:-5,layout=NCHW", {"rows": 1}),
    ("conv,n=2,ic=3,oc=37,in=35x75,k=2x2,s=5x3,residual,layout=NCHW", {}),
    ("conv,ic=3,oc=12,in=23x139,k=4x4,s=4,layout=NCHW", {"rows": 2}),  # no input is left at the end of a row
    ("conv,ic=2,oc=12,in=23x37,k=1x1,s=2,layout=NCHW", {}),
    ("dilated,n=2,ic=2,oc=17,in=39x43,k=3x3,p=3,d=2x3,s=2,act=gelu,layout=NCHW", {}),
    ("conv,ic=3,oc=50,in=5x9x41,k=3x3x3,s=2x1x2,p=1x0x2,layout=NCDHW", {}),
    ("conv,ic=3,oc=5,in=7x17,k=3x1,p=5x0,layout=NCHW", {}),
)


@pytest.mark.parametrize(("text", "wanted"), ODD, ids=[text for text, _ in ODD])
def test_kernels_of_odd_sizes(text: str, wanted: Mapping[str, KnobValue]) -> None:
    spec = ConvSpec.parse(text)
    for target in runnable_targets():
        if ROWS.takes(spec, target):
            check(ROWS, spec, target, corner(ROWS, spec, target, wanted))
