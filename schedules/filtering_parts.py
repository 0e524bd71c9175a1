"""What tasks of minimal filtering move of channels-first tensors at once, and what that takes: sizes only, no TVM."""

from __future__ import annotations

from dataclasses import dataclass
from math import lcm, prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import BARRIER_CYCLES, LONG_RUN_BYTES, stream_cycles, write_cycles
from convtune.schedules.filtering_axis import TiledAxis
from convtune.schedules.filtering_plan import Plan
from convtune.schedules.tiling import ceil_div, round_up

if TYPE_CHECKING:
    from convtune.targets import CpuTarget

MOST_MOVED = 3.0  # times the input: beyond it tasks read the same again and again
COPIED_PER_CYCLE = 1.0  # elements that are transposed in squares, of a thread, and go to another thread
READ_CYCLES = 0.2  # of an element that a task transposes, with 16 lanes and a copy that the first cache holds
STORED_CYCLES = 0.3
READ_RUN_CYCLES = 30.0  # of a run of a plane, whose first lines nothing fetches ahead
STORED_RUN_CYCLES = 10.0
NEAR_PASSES = 3  # of a larger copy through the second cache: lines are read to be written, evicted, read again


@dataclass(frozen=True)
class Part:
    """What is moved of a vector of channels at once: `lines` of at most `length` positions."""

    whole: bool  # lines are whole rows, one after the other; else parts of a row
    lines: tuple[int, int]  # depths, and rows of each where these are not one
    length: int


def input_part(plan: Plan) -> Part:
    """Of a block's inputs."""
    height, width = plan.axes[1:]
    depths, rows, columns = map(_span, plan.axes)
    if width.tiles > plan.block:
        return Part(False, (depths, rows), min(width.size, (plan.block - 1) * _advance(width) + columns))
    rows = min(height.size, (_tile_rows(plan) - 1) * _advance(height) + rows)
    return Part(True, (depths, 1), rows * width.size)


def output_part(plan: Plan) -> Part:
    """Of the outputs of a row of tiles."""
    depth, height, width = (axis.m * axis.phases for axis in plan.axes)
    if plan.axes[2].tiles > plan.block:
        return Part(False, (depth, height), min(plan.axes[2].out, plan.block * width))
    return Part(True, (depth, 1), height * plan.axes[2].out)


def _moved(plan: Plan) -> int:
    """Positions of x that all tasks move."""
    part = input_part(plan)
    return plan.tasks * prod(part.lines) * round_up(part.length + plan.lanes - 1, plan.lanes)


def reads_near(plan: Plan) -> bool:
    """Whether tasks read little more of x than there is."""
    return _moved(plan) <= MOST_MOVED * plan.batch * prod(axis.size for axis in plan.axes)


def stores_near(plan: Plan) -> bool:
    """Whether tiles that follow each other have outputs that do, in a pass, and enough of them for vectors."""
    together = plan.phases == 1 or plan.per_pass % (plan.blocks * plan.phases) == 0
    if not together or any(axis.residues > 1 for axis in plan.axes):
        return False
    part, line = output_part(plan), plan.axes[2]
    return part.length >= plan.lanes and (not part.whole or plan.block % line.tiles == 0 or line.out >= plan.lanes)


def moving_cycles(plan: Plan, target: CpuTarget) -> float:
    """What it takes to move x and y between channels first and last, of a call."""
    outputs = plan.batch * prod(axis.out for axis in plan.axes)
    cycles = 0.0
    if reads_near(plan):
        runs = _input_runs(plan) * round_up(plan.channels, plan.lanes)
        cycles += _moved(plan) * plan.channels * READ_CYCLES + runs * READ_RUN_CYCLES
        cycles += _near_cycles(plan, target, input_part(plan), _moved(plan) * plan.channels)
    else:
        cycles += _copying_cycles(plan.x_bytes, target)
    if stores_near(plan):
        lines, channels = _output_runs(plan), plan.groups * plan.run
        cycles += (outputs + lines * plan.lanes / 2) * channels * STORED_CYCLES
        cycles += lines * channels * STORED_RUN_CYCLES
        cycles += _near_cycles(plan, target, output_part(plan), outputs * channels)
    else:
        cycles += _copying_cycles(plan.y_bytes, target)
    return cycles / target.threads


def _near_cycles(plan: Plan, target: CpuTarget, part: Part, elements: int) -> float:
    """Of all threads: what a copy of a part takes that the first cache does not hold, of so many elements in all."""
    held = 4 * plan.lanes * prod(part.lines) * part.length
    return stream_cycles(target, NEAR_PASSES * 4 * elements, held)


def moved_bytes(plan: Plan) -> tuple[int, int]:
    """Of x, and of y, what is moved at once: as parts of planes, and as vectors of channels."""
    sizes = (
        prod(part.lines) * part.length * near
        for part, near in ((input_part(plan), reads_near(plan)), (output_part(plan), stores_near(plan)))
    )
    read, stored = (2 * 4 * plan.lanes * size for size in sizes)
    return read, stored


def _input_runs(plan: Plan) -> int:
    """Runs of a plane that all tasks read."""
    part = input_part(plan)
    return pieces(plan, plan.axes[2].tiles * (plan.axes[1].tiles if part.whole else 1)) * prod(part.lines)


def _output_runs(plan: Plan) -> int:
    """Runs of a plane that all tasks store."""
    return pieces(plan, plan.axes[2].tiles) * prod(output_part(plan).lines)


def pieces(plan: Plan, size: int) -> int:
    """Parts of blocks that lie in one of the runs of so many tiles: these and blocks begin together at times."""
    return plan.tasks + plan.tiles // size - ceil_div(plan.tiles, lcm(plan.block, size))


def _copying_cycles(size_bytes: int, target: CpuTarget) -> float:
    """Of all threads: a parallel region of its own, and a tensor more to write."""
    written = write_cycles(target, size_bytes, LONG_RUN_BYTES, size_bytes)
    return size_bytes / 4 / COPIED_PER_CYCLE + written + BARRIER_CYCLES * target.threads


def _tile_rows(plan: Plan) -> int:
    """In which tiles of a block can lie, of those of a plane."""
    height, width = plan.axes[1].tiles, plan.axes[2].tiles
    return min(height, plan.block // width if plan.block % width == 0 else (plan.block - 2) // width + 2)


def _span(axis: TiledAxis) -> int:
    """Inputs from the first one of a tile to the last one."""
    return int(last_input(axis, 0, 0) - axis.input(0, 0, 0) + 1)


def last_input(axis: TiledAxis, residue: Any, tile: Any) -> Any:
    """Of a tile."""
    return axis.input(residue, tile, axis.parts - 1) + (axis.inputs - 1) * axis.pitch + axis.windows - 1


def _advance(axis: TiledAxis) -> int:
    """Inputs from a tile to the next one."""
    return int(axis.input(0, 1, 0) - axis.input(0, 0, 0))
