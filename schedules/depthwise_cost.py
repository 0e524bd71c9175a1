"""A coarse model of the time of a depthwise plan: FMAs and loads of its tiles, and what it streams from which cache."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from convtune.schedules.axes import Axis
from convtune.schedules.depthwise_plan import Plan
from convtune.schedules.estimate import (
    FEWEST_SUMS,
    FMAS_PER_CYCLE,
    L2_BYTES_PER_CYCLE,
    LOADS_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    overlapped,
    stays_cached,
)
from convtune.schedules.tiling import LARGEST_CODE, SMALLEST_TILE, ceil_div

if TYPE_CHECKING:
    from convtune.targets import CpuTarget

# Of none a measurement of its own is recorded. Defaults by them and those of channel_lanes were measured in turn on two
# cores of a Zen 5: 128 channels 3x3 at 56x56 34 us for 59, 1152 at 7x7 4.8 for 17.7, 1024 13x13 at 7x7 26 for 57.
STREAM_BYTES_PER_CYCLE = 14.0  # from the third cache, and to it, by a core while all cores do
SHORT_RUN_BYTES = 64.0  # that are read on end: shorter runs are read ahead badly
MISPREDICTED = 15.0  # cycles: a loop over rows that ends earlier or later than that of the tile before
ROW_CYCLES = 6.0  # the loop over rows of the kernel, or the condition of an input row


def suits(plan: Plan, registers: int, most_sums: int) -> bool:
    """Whether a plan's tile is neither too small nor too much code, and its sums fit where its weights do not.

    most_sums: where the sums and the weights do not fit in the registers together.
    """
    view, sums = plan.view, plan.rows * plan.columns * plan.vectors
    if sums < min(SMALLEST_TILE, view.columns.out * view.rows.out) or (plan.rows > 1 and not plan.whole):
        return False
    held = view.columns.taps * plan.vectors * (view.rows.taps if plan.whole else 1)
    fits = sums + held + 2 * view.columns.taps <= registers
    if not fits and (sums > most_sums or (plan.whole and plan.vectors > 1)):
        return False
    rows = plan.rows * view.rows.taps if plan.whole else 1
    return rows * plan.vectors * code_of(view.columns, plan.columns) <= LARGEST_CODE


@lru_cache(maxsize=1 << 14)
def columns_of(axis: Axis, columns: int) -> tuple[int, int, int]:
    """Of a row in tiles of so many columns: how many tiles, the taps that read inputs, and the inputs loaded."""
    tiles = ceil_div(axis.out, columns)
    taps = loads = 0
    for tile in range(tiles):
        start = min(tile * columns, axis.out - columns)
        found = set[int]()
        for column in range(start, start + columns):
            valid = axis.valid(column)
            taps += len(valid)
            found.update(axis.first(column) + tap * axis.dilation for tap in valid)
        loads += len(found)
    return tiles, taps, loads


@lru_cache(maxsize=1 << 12)
def code_of(axis: Axis, columns: int) -> int:
    """The taps of the tiles of a row that have a code of their own, one of those inside included."""
    tiles = ceil_div(axis.out, columns)
    total, inside = 0, False
    for tile in range(tiles):
        start = min(tile * columns, axis.out - columns)
        taps = sum(len(axis.valid(column)) for column in range(start, start + columns))
        whole = taps == columns * axis.taps
        total += 0 if whole and inside else taps
        inside = inside or whole
    return total


def cycles(plan: Plan, target: CpuTarget) -> float:
    """Of one call, coarsely."""
    view = plan.view
    depth_most, rows_most = ceil_div(view.depth.out, plan.depth_blocks), ceil_div(view.rows.out, plan.row_blocks)
    row_tiles = ceil_div(rows_most, plan.rows)
    share = ceil_div(plan.tiles, plan.column_blocks) / plan.tiles
    per_row = _row_tile(plan, target) * share
    resident = _resident(plan, rows_most, share)
    blocks = plan.chunk if plan.split else plan.blocks
    task = per_row * row_tiles * depth_most * blocks
    stream = _streamed(plan, target, rows_most, depth_most, share, resident) * min(
        1.0, blocks * plan.width / plan.channels
    )
    count = view.batch * plan.depth_blocks * plan.row_blocks * plan.column_blocks * (plan.chunks if plan.split else 1)
    return Tasks(count, overlapped(task, stream)).on(target)


def _row_tile(plan: Plan, target: CpuTarget) -> float:
    """A row of tiles and one block of channels, all the kernel."""
    view, vectors = plan.view, plan.vectors
    tiles, taps, loads = columns_of(view.columns, plan.columns)
    depth = view.depth.all_valid / view.depth.out
    tile_rows = len(plan.row_reads()) if plan.whole else view.rows.all_valid / view.rows.out
    kernel_rows = view.rows.all_valid / view.rows.out
    sums = plan.rows * plan.columns * vectors
    fmas = depth * kernel_rows * plan.rows * taps * vectors * max(1.0, FEWEST_SUMS / sums)
    held = view.columns.taps * vectors * (min(plan.rows, view.rows.taps) if plan.whole else 1)
    spare = target.vector_registers - sums - 2
    inputs = depth * tile_rows * loads * vectors
    filters = depth * view.columns.taps * vectors * (view.rows.taps if plan.whole else kernel_rows) * tiles
    operands = fmas * (1 - max(0, spare) / held) if held > spare else 0.0  # weights read by each FMA
    crossing = 2.0 if plan.channels % plan.lanes else 1.0
    stores = plan.rows * plan.columns * tiles * vectors
    compute = max(fmas / FMAS_PER_CYCLE, (inputs * crossing + filters + operands) / LOADS_PER_CYCLE)
    compute += stores * crossing + tiles * (TILE_CYCLES + depth * tile_rows * ROW_CYCLES)
    if not plan.whole and view.rows.taps > 1:
        compute += tiles * MISPREDICTED
    return compute + _from_l2(plan, target, inputs, tile_rows, filters)


def _from_l2(plan: Plan, target: CpuTarget, inputs: float, tile_rows: float, filters: float) -> float:
    """Reading the inputs of a row of tiles that are not left in the first cache by the row of tiles above, and weights
    that do not stay there."""
    view = plan.view
    run = plan.chunk * plan.width * 4
    rows = tile_rows * min(view.depth.taps, view.depth.size)
    fresh = min(1.0, plan.rows * view.rows.stride / max(tile_rows, 1))
    kept = rows * view.columns.size * run <= target.l1d_bytes * 0.75
    lines = inputs * (fresh if kept else 1.0)
    if run * prod(axis.taps for axis in view.axes) > target.l1d_bytes / 2:
        lines += filters
    return lines * plan.lanes * 4 / L2_BYTES_PER_CYCLE * 0.5 * (1 + SHORT_RUN_BYTES / run)


def _resident(plan: Plan, rows_most: int, share: float) -> float:
    """Bytes of x that planes of a row block keep in use."""
    view = plan.view
    rows = min(view.rows.size, rows_most * view.rows.stride + view.rows.taps - 1)
    planes = min(view.depth.taps, view.depth.size)
    return planes * rows * view.columns.size * share * plan.channels * 4


def _streamed(plan: Plan, target: CpuTarget, rows_most: int, depth_most: int, share: float, resident: float) -> float:
    """Cycles to bring a task's x and y to the second cache."""
    view = plan.view
    total = 4 * plan.channels * view.batch * sum(prod(sizes) for sizes in _sizes(plan))
    if stays_cached(target, total):
        return 0.0
    planes = min(view.depth.size, depth_most * view.depth.stride + view.depth.taps - 1)
    window = min(view.depth.taps, view.depth.size)
    reread = 1.0 if resident <= target.l2_bytes * 0.6 else depth_most * window / planes
    x_bytes = resident / window * planes * reread
    y_bytes = depth_most * rows_most * view.columns.out * share * plan.channels * 4
    run = plan.chunk * plan.width * 4
    return (x_bytes + y_bytes) / STREAM_BYTES_PER_CYCLE * (1 + SHORT_RUN_BYTES / run)


def _sizes(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    axes = plan.view.axes
    return tuple(axis.size for axis in axes), tuple(axis.out for axis in axes)
