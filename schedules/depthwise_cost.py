"""A coarse model of the time of a depthwise plan: FMAs and loads of its tiles, and what it streams from which cache."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from math import gcd, prod
from typing import TYPE_CHECKING

from convtune.schedules.axes import Axis
from convtune.schedules.depthwise_plan import Plan
from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    MEMORY_BYTES_PER_CYCLE,
    Tasks,
    fma_cycles,
    load_cycles,
    overlapped,
    stays_cached,
    store_cycles,
    waiting_factor,
)
from convtune.schedules.past_caches import exceeds_caches
from convtune.schedules.tiling import LARGEST_CODE, LINE_BYTES, SMALLEST_TILE, WAY_BYTES, ceil_div

if TYPE_CHECKING:
    from convtune.targets import CpuTarget

# Of none a measurement of its own is recorded. Defaults by them and those of channel_lanes were measured in turn on two
# cores of a Zen 5: 128 channels 3x3 at 56x56 34 us for 59, 1152 at 7x7 4.8 for 17.7, 1024 13x13 at 7x7 26 for 57.
STREAM_BYTES_PER_CYCLE = 14.0  # from the third cache, and to it, by a core while all cores do
# That are read, or stored to memory, on end: shorter runs are read ahead badly. On two cores of a Zen 4 128 channels of
# 0.6 GB took 13.4 ms a position at a time, 13.8 in tiles of two positions x 256 bytes, 16.3 and 18.0 in ones of two and
# four x 128, stored past the caches; 27.3, 29.7 and 32.4 in ones of two x 256, four x 128 and eight x 64 that were not.
SHORT_RUN_BYTES = 64.0
TILE_CYCLES = 10.0  # loop and address arithmetic, of which some is done beside the tile before
MISPREDICTED = 15.0  # cycles: a loop over rows that ends earlier or later than that of the tile before
ROW_CYCLES = 3.0  # the loop over rows of the kernel, or the condition of an input row
# Lines that a core waits for at a time: of what a tile reads beyond, the caches' time does not hide behind products. On
# a Zen 4 96 channels at 112x112 with stride 2 took 36 to 39 us in tiles that read 25 to 45 lines, 45 to 54 with more;
# what stays in the second caches shows nothing of it.
LINES_AT_ONCE = 24
PAGE_BYTES = 4096  # in which lines that follow each other are fetched ahead
FEWEST_PAST = 4  # sums of a tile that is stored past the caches, and waits for memory longer than for them


def suits(plan: Plan, registers: int, most_sums: int) -> bool:
    """Whether a plan's tile is neither too small nor too much code, and its sums fit where its weights do not.

    most_sums: where the sums and the weights do not fit in the registers together.
    """
    view, sums = plan.view, plan.rows * plan.columns * plan.vectors
    fewest = FEWEST_PAST if plan.past else SMALLEST_TILE
    if sums < min(fewest, view.columns.out * view.rows.out) or (plan.rows > 1 and not plan.whole):
        return False
    held = view.columns.taps * plan.vectors * (view.rows.taps if plan.whole else 1)
    fits = sums + held + 2 * view.columns.taps <= registers
    once = plan.past and plan.rows * plan.columns == 1  # multiply-adds take their weights from memory
    if not fits and (sums > most_sums or (plan.whole and plan.vectors > 1 and not once)):
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
    resident = _resident(plan, rows_most, share)
    blocks = plan.chunk if plan.split else plan.blocks
    task = _row_tile(plan, target) * share * row_tiles * depth_most * blocks
    stream = _streamed(plan, target, rows_most, depth_most, share, resident) * min(
        1.0, blocks * plan.width / plan.channels
    )
    count = view.batch * plan.depth_blocks * plan.row_blocks * plan.column_blocks * (plan.chunks if plan.split else 1)
    hidden = min(1.0, LINES_AT_ONCE / lines_read(plan))
    return Tasks(count, hidden * overlapped(task, stream) + (1 - hidden) * (task + stream)).on(target)


def _row_tile(plan: Plan, target: CpuTarget) -> float:
    """A row of tiles and one block of channels, all the kernel."""
    view, vectors = plan.view, plan.vectors
    tiles, taps, loads = columns_of(view.columns, plan.columns)
    depth = view.depth.all_valid / view.depth.out
    tile_rows = len(plan.row_reads()) if plan.whole else view.rows.all_valid / view.rows.out
    kernel_rows = view.rows.all_valid / view.rows.out
    sums = plan.rows * plan.columns * vectors
    fmas = depth * kernel_rows * plan.rows * taps * vectors * waiting_factor(target, sums)
    held = view.columns.taps * vectors * (min(plan.rows, view.rows.taps) if plan.whole else 1)
    spare = target.vector_registers - sums - 2
    inputs = depth * tile_rows * loads * vectors
    filters = depth * view.columns.taps * vectors * (view.rows.taps if plan.whole else kernel_rows) * tiles
    operands = fmas * (1 - max(0, spare) / held) if held > spare else 0.0  # weights read by each FMA
    crossing = 2.0 if plan.channels % plan.lanes else 1.0
    stores = plan.rows * plan.columns * tiles * vectors
    compute = max(fma_cycles(target, fmas), load_cycles(target, inputs * crossing + filters + operands))
    compute += store_cycles(target, stores * crossing) + tiles * (TILE_CYCLES + depth * tile_rows * ROW_CYCLES)
    if not plan.whole and view.rows.taps > 1:
        compute += tiles * MISPREDICTED
    compute += tiles * depth * displaced(plan, target) * LINE_BYTES / L2_BYTES_PER_CYCLE
    return compute + _from_l2(plan, target, inputs, tile_rows, filters)


def _read(axis: Axis, outputs: int, taps: int) -> list[int]:
    """The inputs, from the first, that so many outputs read with so many taps, no more than there are."""
    read = {out * axis.stride + tap * axis.dilation for out in range(outputs) for tap in range(taps)}
    return sorted(read)[: axis.size]


def lines_read(plan: Plan) -> int:
    """Lines of a vector of channels that a tile reads at a time.

    Positions of few channels lie side by side, and are read on end: a row of them counts once. In a loop over rows the
    products of each are many more than its lines.
    """
    if not plan.whole:
        return 1
    view = plan.view
    columns = _read(view.columns, plan.columns, view.columns.taps) if plan.channels * 4 > 2 * LINE_BYTES else [0]
    return len(columns) * len(_read(view.rows, plan.rows, view.rows.taps))


def displaced(plan: Plan, target: CpuTarget) -> int:
    """Lines of a vector of channels, of those that a tile reads at a time and writes, that find their set of the first
    cache full, as it is where positions lie a power of two of bytes apart.

    On a Zen 4 256 channels at 28x28, whose lines of all rows share 4 sets, took 20 to 22 us in tiles with none of them
    and 28 to 48 in ones with 1 to 1.8 an output.
    """
    if not plan.whole:
        return 0
    taps = plan.view.rows.taps
    ways = target.l1d_bytes // WAY_BYTES
    return _displaced(plan.view.rows, plan.view.columns, plan.rows, plan.columns, taps, plan.channels * 4, ways)


@lru_cache(maxsize=1 << 14)
def _displaced(rows: Axis, columns: Axis, high: int, wide: int, taps: int, distance: int, ways: int) -> int:
    """Of a tile of high x wide outputs, the positions of a row being so many bytes apart."""
    read = [
        (row, column, columns.size) for row in _read(rows, high, taps) for column in _read(columns, wide, columns.taps)
    ]
    written = [(row, column, columns.out) for row in range(high) for column in range(wide)]
    places = [(row * size + column) * distance for row, column, size in [*read, *written]]
    sets = Counter(place % WAY_BYTES // LINE_BYTES for place in places)
    return sum(max(0, lines - ways) for lines in sets.values())


def _from_l2(plan: Plan, target: CpuTarget, inputs: float, tile_rows: float, filters: float) -> float:
    """Reading the inputs of a row of tiles that are not left in the first cache by the row of tiles above, and weights
    that do not stay there."""
    view = plan.view
    run = plan.chunk * plan.width * 4
    rows = tile_rows * min(view.depth.taps, view.depth.size)
    fresh = min(1.0, plan.rows * view.rows.stride / max(tile_rows, 1))
    sets = max(run, LINE_BYTES) / gcd(plan.channels * 4, WAY_BYTES)  # into which the run of a chunk falls, of all
    kept = rows * view.columns.size * run <= target.l1d_bytes * 0.75 * min(1.0, sets)
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
    """Cycles to bring a task's x and y to the second cache, planes of x that it does not hold again for each tap."""
    view = plan.view
    total = 4 * plan.channels * view.batch * sum(prod(sizes) for sizes in _sizes(plan))
    if stays_cached(target, total):
        return 0.0
    planes = min(view.depth.size, depth_most * view.depth.stride + view.depth.taps - 1)
    window = min(view.depth.taps, view.depth.size)
    x_bytes = resident / window * planes
    y_bytes = depth_most * rows_most * view.columns.out * share * plan.channels * 4
    run = plan.chunk * plan.width * 4
    if exceeds_caches(target, 4 * plan.channels * view.batch * prod(_sizes(plan)[1])):
        # a line that is stored through the caches is read first
        cycles = (x_bytes + y_bytes * (1 if plan.past else 2)) / MEMORY_BYTES_PER_CYCLE
        cycles += _read_beside(plan, target) * y_bytes / STREAM_BYTES_PER_CYCLE
        run = run if plan.rows * plan.columns == 1 or run >= PAGE_BYTES else plan.width * 4
    else:
        cycles = (x_bytes + y_bytes) / STREAM_BYTES_PER_CYCLE
    if resident > target.l2_bytes * 0.6:
        again = x_bytes * (depth_most * window / planes - 1)
        held = resident * target.threads <= target.l3_bytes / 2
        cycles += again / (STREAM_BYTES_PER_CYCLE if held else MEMORY_BYTES_PER_CYCLE)
    return cycles * (1 + SHORT_RUN_BYTES / run)


def _read_beside(plan: Plan, target: CpuTarget) -> float:
    """Lines that tiles of a row read more than once, for each that they store, where the first cache has lost them.

    On two cores of a Zen 4 12288 channels took 55 ms a position at a time, 41 in tiles of two and 35 in ones of eight.
    """
    columns = plan.view.columns
    if columns.span * plan.chunk * plan.width * 4 <= target.l1d_bytes / 2:
        return 0.0
    return columns_of(columns, plan.columns)[2] / columns.out - min(1.0, columns.read / columns.out)


def _sizes(plan: Plan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    axes = plan.view.axes
    return tuple(axis.size for axis in axes), tuple(axis.out for axis in axes)
