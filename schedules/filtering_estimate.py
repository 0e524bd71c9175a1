"""A coarse model of minimal filtering's time and error: transforms, products, and the transformed weights' traffic."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from convtune.schedules.estimate import (
    BARRIER_CYCLES,
    L2_BYTES_PER_CYCLE,
    L3_BYTES_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    overlapped,
    rounding_error,
    second_caches_hold,
    store_cycles,
    stream_cycles,
    tile_step_cycles,
    write_cycles,
)
from convtune.schedules.filtering_plan import Plan
from convtune.schedules.tiling import LINE, LINE_BYTES, ceil_div

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

MEMORY_BYTES_PER_CYCLE = 6.0  # of a core, where all read at once
FETCHED_FACTOR = 1.5  # how much more products read of U when they fetch it ahead
APART_CYCLES = 8.0  # of a line, by the passes that a row of the output is written in
MOST_APART_CYCLES = 32.0
L2_SHARE = 0.9  # of the second cache that U, V and M fill together and still stay in
PLACE_CYCLES = 30.0  # where a tile is, and whether it lies inside
HANDED_CYCLES = (
    100.0  # of a line from core to core: several are under way at once; on two dies it takes four times that
)
MOST_AMPLIFICATION = 50.0  # about that of F(6x6, 3x3): with twice as much hardly a layer passes `standard`


def expected_error(spec: ConvSpec, plan: Plan) -> float:
    """max |y - reference| / max |reference| to expect: what was measured is a half to all of this."""
    return rounding_error(spec, amplification(plan), plan.depth * plan.taps)


def amplification(plan: Plan) -> float:
    """How much larger than of direct sums the rounding errors are."""
    return prod(axis.filter.amplification for axis in plan.axes if axis.filter)


def estimated_cycles(plan: Plan, target: CpuTarget, moved: tuple[int, int] = (0, 0)) -> float:
    """Cycles of one call. moved: bytes that tasks have beside V, and beside M, which displace these."""
    v_bytes, m_bytes = 4 * prod(plan.v_shape) + moved[0], 4 * prod(plan.m_shape) + moved[1]
    tiles = plan.block
    beside = v_bytes + m_bytes + 4 * prod(plan.u_shape) if _far_phases(plan, target) else 0
    made = tiles * _input_cycles(plan, target, v_bytes * plan.tasks if plan.shared else max(v_bytes, beside))
    stored = tiles * plan.per_pass * plan.vectors * output_cycles(plan, target, max(m_bytes, beside))
    of_pass = _product_cycles(plan, target, v_bytes + m_bytes) + stored
    written = write_share(plan, target)
    apart = _apart_cycles(plan, target) / plan.tasks
    if plan.shared:
        first = Tasks(plan.tasks * tiles, made / tiles).on(target)
        of_task = overlapped(of_pass, written / plan.passes) + apart / plan.passes
        second = Tasks(plan.tasks * plan.passes, of_task).on(target)
        return first + BARRIER_CYCLES + HANDED_CYCLES * handed_lines(plan, target.threads) + second
    if plan.groups > 1:
        return Tasks(plan.tasks * plan.passes, overlapped(made + of_pass, written / plan.passes)).on(target)
    compute = made + plan.passes * of_pass
    stored = max(compute, written) if plan.outputs_beside else overlapped(compute, written)
    return Tasks(plan.tasks, stored + apart).on(target)


def _far_phases(plan: Plan, target: CpuTarget) -> bool:
    """Whether the phases' outputs pass through the second cache, so that U, V and M only stay there all together."""
    return plan.phases > 1 and not second_caches_hold(target, plan.y_bytes)


def _apart_cycles(plan: Plan, target: CpuTarget) -> float:
    """What writing a transposed convolution's output takes more where a pass has not all phases of it.

    Lines are written apart from each other then, of rows that later passes come back to. Of 8.4 MB, with four passes
    it took 38 cycles a line more than with one, and 17 with two.
    """
    passes = plan.phases * plan.blocks / plan.per_pass
    if passes <= 1 or not _far_phases(plan, target):
        return 0.0
    return plan.y_bytes / LINE_BYTES * min(MOST_APART_CYCLES, APART_CYCLES * passes)


def write_share(plan: Plan, target: CpuTarget) -> float:
    """Cycles in which the outputs of a block are written, whose runs are of a pass."""
    run_bytes = 4 * min(plan.run, plan.per_pass * plan.width)
    return write_cycles(target, plan.y_bytes, run_bytes, plan.y_bytes) / plan.tasks


def handed_lines(plan: Plan, threads: int) -> float:
    """Lines of V that a thread reads and another one made, of the thread that reads the most of them.

    Threads have equal shares of the tiles that are made, and then of the tasks, which are passes of blocks.
    """
    most, tiles, tasks = 0.0, plan.tasks * plan.block, plan.tasks * plan.passes
    for thread in range(threads):
        first, end = thread * tasks // threads, (thread + 1) * tasks // threads
        if first == end:
            continue
        read = range(first // plan.passes * plan.block, ceil_div(end, plan.passes) * plan.block)
        made = range(thread * tiles // threads, (thread + 1) * tiles // threads)
        handed = len(read) - max(0, min(read.stop, made.stop) - max(read.start, made.start))
        most = max(most, handed * _windows_read(plan, first, end))
    return most * plan.points * plan.v_row / LINE


def _windows_read(plan: Plan, first: int, end: int) -> float:
    """The share of V's windows that the phases of these tasks read, which are passes of blocks."""
    if plan.windows == 1:
        return 1.0
    numbers = {task % plan.passes for task in range(first, min(end, first + plan.passes))}
    runs = {(number * plan.per_pass + i) // plan.blocks for number in numbers for i in range(plan.per_pass)}
    return len({plan.window(run % plan.phases) for run in runs}) / plan.windows


def _input_cycles(plan: Plan, target: CpuTarget, v_bytes: int) -> float:
    """Of a tile: each pass loads and stores all it has, the last one to V."""
    filters = [axis.filter for axis in plan.axes if axis.filter]
    operations = sum(plan.points / f.alpha * f.operations[0] for f in filters)
    stores = plan.points * len(filters)
    vectors = ceil_div(plan.v_channels, plan.lanes)
    to_v = (
        stream_cycles(target, plan.points * plan.lanes * 4, v_bytes) * 3
    )  # a line is read, then written, and evicts another
    needed = prod(1 - (axis.parts - axis.whole) / (axis.parts * axis.alpha) for axis in plan.axes)
    of_vector = store_cycles(target, stores) + fma_cycles(target, operations) + to_v
    from_x = stream_cycles(target, plan.x_bytes / plan.tiles, plan.x_bytes) * plan.v_channels / plan.channels
    waiting = 0.0 if plan.inputs_beside else from_x / 2
    return plan.windows * plan.taps * (PLACE_CYCLES + vectors * needed * of_vector) + waiting


def output_cycles(plan: Plan, target: CpuTarget, m_bytes: int) -> float:
    """Of a tile and a vector of channels."""
    size, operations, stores = plan.points, 0.0, 0.0
    for axis in plan.axes:
        if axis.filter:
            operations += size / axis.alpha * axis.filter.operations[1]
            size = size // axis.alpha * axis.m
            stores += size
    from_m = stream_cycles(target, plan.points * plan.lanes * 4, m_bytes) * 4  # three to write it
    return PLACE_CYCLES / 2 + store_cycles(target, stores) + fma_cycles(target, operations) + from_m


def _product_cycles(plan: Plan, target: CpuTarget, task_bytes: int) -> float:
    """Of a pass: all points and channel blocks."""
    depth, row_tiles = plan.depth * plan.taps * plan.density * plan.needed, plan.block_rows // plan.rows
    steps = depth * tile_step_cycles(target, plan.rows, plan.vectors)
    compute = row_tiles * (steps + 2 * plan.rows * plan.vectors + TILE_CYCLES)
    panel = depth * plan.width * 4
    whole = panel / plan.needed  # some register tile of a block needs it
    streamed = whole / _weights_bandwidth(plan, target, task_bytes) + (row_tiles - 1) * stream_cycles(
        target, panel, panel
    )
    rows = plan.block_rows * depth * 4
    held = task_bytes if plan.per_pass == 1 else max(rows, task_bytes / plan.per_pass)
    again = stream_cycles(target, rows, held)
    first = stream_cycles(target, rows, 4 * prod(plan.v_shape) * plan.tasks) if plan.shared else again
    streamed += (first + (plan.per_pass - 1) * again) / plan.per_pass
    return plan.points * plan.per_pass * overlapped(compute, streamed)


def _weights_bandwidth(plan: Plan, target: CpuTarget, task_bytes: int) -> float:
    """Bytes a cycle at which transformed weights come, which a call reads as a whole, beside V and M of a task."""
    size = 4 * prod(plan.u_shape)
    if size + task_bytes <= L2_SHARE * target.l2_bytes:
        return L2_BYTES_PER_CYCLE
    # A third cache still has a part of what it does not hold: on Zen 4, of 32 MiB, two cores read 13 MB at 168 GB/s,
    # 19 at 145, 32 at 74 and 64 at 34.
    far = min(1.0, max(0.0, 2 * size / max(target.l3_bytes, 1) - 1))
    bandwidth = 1 / ((1 - far) / L3_BYTES_PER_CYCLE + far / MEMORY_BYTES_PER_CYCLE)
    return bandwidth * (FETCHED_FACTOR if plan.weights_ahead else 1)


def worth_fetching(size_bytes: float, target: CpuTarget) -> bool:
    """Whether to try to fetch U of that size ahead: from memory, or from a third cache that it fills to a good part."""
    return size_bytes > max(target.l3_bytes / 4, target.l2_bytes)
