"""What the estimate of depthwise tiles, channels last, knows of caches: sets, lines waited for, planes read again."""

from __future__ import annotations

import pytest
from convtune.schedules.depthwise_cost import LINES_AT_ONCE, displaced, lines_read
from convtune.schedules.depthwise_plan import Plan, plan_of

from convtune import space, targets
from convtune.spec import ConvSpec

TARGET = targets.resolve("x86-64-v4", threads=2)


def plan(text: str, rows: int, columns: int, vectors: int = 1) -> Plan:
    rest = {"lanes": 16, "depth_blocks": 1, "row_blocks": 1, "column_blocks": 1, "chunk": 1 << 20, "oc_order": "outer"}
    return plan_of(ConvSpec.parse(text), TARGET, {**rest, "rows": rows, "columns": columns, "vectors": vectors})


@pytest.mark.parametrize(
    ("channels", "rows", "columns", "lines"),
    [
        # rows of 28 KiB share their sets, positions 1 KiB apart four of them. 3 x 6 read and 4 written: 7, 7, 4, 4
        (256, 1, 4, 0),
        # 3 x 9 read and 7 written: 11, 8, 8, 7 in the sets of 8 ways
        (256, 1, 7, 3),
        (256, 2, 7, 8 + 4 + 4 + 2),  # 4 x 9 and 2 x 7: 16, 12, 12, 10
        (240, 2, 7, 0),  # positions of 15 lines: sets of their own
    ],
)
def test_lines_a_power_of_two_apart_displace_each_other(channels: int, rows: int, columns: int, lines: int) -> None:
    text = f"depthwise,ic={channels},oc={channels},in=28x28,k=3x3,p=1,layout=NHWC"
    assert displaced(plan(text, rows, columns), TARGET) == lines


@pytest.mark.parametrize(
    ("text", "rows", "columns", "lines"),
    [
        ("depthwise,ic=96,oc=96,in=112x112,k=3x3,s=2,p=1,layout=NHWC", 2, 2, 25),
        ("depthwise,ic=96,oc=96,in=112x112,k=3x3,s=2,p=1,layout=NHWC", 1, 14, 87),
        ("depthwise,ic=32,oc=32,in=112x112,k=3x3,p=1,layout=NHWC", 2, 8, 4),  # rows that are read on end
        ("depthwise,ic=96,oc=96,in=56x56,k=7x7,p=3,layout=NHWC", 1, 14, 1),  # a loop over rows
    ],
)
def test_lines_that_a_tile_waits_for(text: str, rows: int, columns: int, lines: int) -> None:
    assert lines_read(plan(text, rows, columns)) == lines


@pytest.mark.parametrize("size", ["112x112", "113x109"])
def test_what_streams_has_small_tiles_by_default(size: str) -> None:
    spec = ConvSpec.parse(f"depthwise,ic=144,oc=144,in={size},k=3x3,p=1,layout=NHWC")
    chosen = plan_of(spec, TARGET, space.get("depthwise_rows").default(spec, TARGET))
    assert lines_read(chosen) <= 1.25 * LINES_AT_ONCE


def test_planes_are_not_read_again_from_memory_by_default() -> None:
    spec = ConvSpec.parse("depthwise,ic=64,oc=64,in=15x75x315,k=3x3x3,p=1,layout=NDHWC")
    chosen = plan_of(spec, TARGET, space.get("depthwise_rows").default(spec, TARGET))
    held = 3 * 75 / chosen.row_blocks * 315 / chosen.column_blocks * 64 * 4
    assert held <= TARGET.l2_bytes or held * TARGET.threads <= TARGET.l3_bytes / 2
