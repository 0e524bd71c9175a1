"""What threads cost in the estimates: a launch, and the caches' lines that go from one to another."""

from __future__ import annotations

import pytest
from convtune.schedules.estimate import Tasks
from convtune.schedules.filtering_estimate import handed_lines
from convtune.schedules.filtering_plan import plan_of

from convtune import space, targets
from convtune.spec import ConvSpec

TARGET = targets.resolve("x86-64-v4", threads=2)


@pytest.mark.parametrize(("cycles", "shared"), [(100.0, False), (100_000.0, True)])
def test_short_work_is_not_worth_a_launch(cycles: float, shared: bool) -> None:
    assert (Tasks(2, cycles).on(TARGET) < Tasks(1, 2 * cycles).on(TARGET)) == shared


def test_one_thread_needs_no_launch() -> None:
    alone = targets.resolve("x86-64-v4", threads=1)
    assert Tasks(2, 1000.0).on(alone) == 2 * Tasks(1, 1000.0).on(alone)


def test_a_layer_of_less_than_a_microsecond_is_one_task_by_default() -> None:
    spec = ConvSpec.parse("pointwise,ic=24,oc=96,in=1x1,k=1x1,layout=NHWC")
    knobs = space.get("pointwise_gemm").default(spec, TARGET)
    assert knobs["order"] != "parallel"
    larger = ConvSpec.parse("pointwise,ic=1280,oc=960,in=1x1,k=1x1,layout=NHWC")
    assert space.get("pointwise_gemm").default(larger, TARGET)["order"] == "parallel"


@pytest.mark.parametrize(
    ("text", "knobs", "handed"),
    [
        # 4 tiles of 36 points in a block: each of the two threads makes 2 and reads all 4
        ("conv,ic=64,oc=128,in=8x8,k=3x3,p=1,layout=NHWC", {"tile_rows": 4, "oc_vectors": 2}, 2 * 36 * 64 / 16),
        # two such blocks: each thread reads what it made
        ("conv,n=2,ic=64,oc=128,in=8x8,k=3x3,p=1,layout=NHWC", {"tile_rows": 4, "oc_vectors": 2}, 0),
        # three: of the one in the middle each makes a half and reads all
        ("conv,n=3,ic=64,oc=128,in=8x8,k=3x3,p=1,layout=NHWC", {"tile_rows": 4, "oc_vectors": 2}, 2 * 36 * 64 / 16),
    ],
)
def test_what_filtering_hands_from_thread_to_thread(text: str, knobs: dict[str, int], handed: float) -> None:
    spec = ConvSpec.parse(text)
    rest: dict[str, int | str] = {"h_tile": 4, "w_tile": 4, "row_blocks": 1, "pass_blocks": 1, "order": "channels"}
    assert handed_lines(plan_of(spec, TARGET, {**rest, **knobs}), threads=2) == handed
