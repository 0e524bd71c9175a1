"""What products of minimal filtering fetch of x and y."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from convtune.schedules.filtering_axis import tiled_axes
from convtune.schedules.filtering_plan import plan_of
from filtering_kernels import Case, check_odd
from test_minimal_filtering import FILTERING, TARGET

from convtune.spec import ConvSpec

BESIDE: tuple[Case, ...] = (
    ("transposed,n=2,ic=19,oc=21,in=67x131,k=3x3,s=2,p=1,op=1,bias,layout=NHWC", {"h_tile": 4, "w_tile": 3}),
    ("conv,n=2,ic=33,oc=17,in=131x137,k=3x3,s=2,p=1,act=relu,layout=NHWC", {"w_tile": 3}),
    ("conv,n=3,ic=18,oc=35,in=7x83x41,k=3x3x3,p=1x0x1,residual,layout=NDHWC", {"d_tile": 2, "row_blocks": 2}),
    ("dilated,n=2,ic=17,oc=67,in=9001,k=3,p=5,d=3,layout=NWC", {"w_tile": 4, "pass_blocks": 1}),
    ("transposed,n=2,ic=17,oc=36,in=64x128,k=4x4,s=2,p=1,layout=NHWC", {"h_tile": 4, "order": "apart_beside"}),
)  # fmt: skip


@pytest.mark.parametrize(("turn", "case"), list(enumerate(BESIDE)), ids=[text for text, _ in BESIDE])
def test_kernels_that_fetch_beside_products(tmp_path: Path, turn: int, case: Case) -> None:
    text, wanted = case
    check_odd(FILTERING, tmp_path, turn, (text, {"order": "beside", **wanted}))


def test_what_lies_far_is_fetched_beside_products() -> None:
    """y of a pass, and x of the next block, where they leave most of the second cache to V, M and U."""
    far = ConvSpec.parse("conv,ic=64,oc=64,in=112x112,k=3x3,p=1,layout=NHWC")
    assert not any(
        "beside" in FILTERING.knobs(dataclasses.replace(far, **other), TARGET)["order"]
        for other in ({"in_size": (28, 28)}, {"layout": "NCHW"})
    )
    knobs = FILTERING.default(far, TARGET)
    plan = plan_of(far, TARGET, knobs)
    assert knobs["order"] == "beside" and plan.inputs_beside and plan.outputs_beside
    scripts = [FILTERING.schedule(far, TARGET, {**knobs, "order": order}).script() for order in ("beside", "tiles")]
    assert [script.count("chunk") > 0 for script in scripts] == [True, False]
    assert scripts[0].count("prefetch") > scripts[1].count("prefetch")
    many = dataclasses.replace(far, in_channels=1024, out_channels=1024)
    assert not FILTERING.allows(many, TARGET, {**knobs, "pass_blocks": 32, "row_blocks": 4})


@pytest.mark.parametrize("m", [1, 2, 4])
@pytest.mark.parametrize(
    "text",
    [
        "conv,ic=16,oc=16,in=83,k=3,p=1,layout=NWC",
        "conv,ic=16,oc=16,in=83,k=5,s=2,p=1,layout=NWC",
        "conv,ic=16,oc=16,in=83,k=11,p=5,layout=NWC",
        "dilated,ic=16,oc=16,in=83,k=3,p=2,d=2,layout=NWC",
        "transposed,ic=16,oc=16,in=83,k=4,s=2,p=1,layout=NWC",
    ],
)
def test_fresh_inputs_are_those_that_no_tile_before_reads(text: str, m: int) -> None:
    axis = tiled_axes(ConvSpec.parse(text), (1, 1, m))[2]
    before = set[int]()
    for tile in range(5):
        parts = [axis.input(0, tile, part) for part in range(axis.parts)]
        read = {start + i * axis.pitch for start in parts for i in range(axis.inputs)}
        first, count, apart = axis.fresh
        assert tile < 2 or {axis.input(0, tile, 0) + first + i * apart for i in range(count)} == read - before
        before |= read
