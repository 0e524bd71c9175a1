"""What the channels-first schedules share: register tiles whose lanes are columns of an output row."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    FMA_LATENCY,
    L2_BYTES_PER_CYCLE,
    TILE_CYCLES,
    fma_cycles,
    load_cycles,
    overlapped,
    stream_cycles,
)
from convtune.schedules.tile_loops import OutputLoops, unroll
from convtune.schedules.tiling import LINE_BYTES, LONG_ACTIVATIONS, ceil_div

from convtune import variants
from convtune.expression import cube
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import KnobValue, PackStep
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

# FMAs in an unrolled body: in longer ones LLVM moves loads so far ahead that registers spill
LARGEST_BODY: Mapping[KnobValue, int] = {"kh": 160, "kw_kh": 80}
UNROLLED: Mapping[KnobValue, int] = {"none": 0, "kh": 1, "kw_kh": 2}  # loops
LOOP_CYCLES = 2.0  # a turn of a reduction's innermost loop: its counter and its branch
ROW_CYCLES = 2.0  # to begin copying a row
STRIDED_COPY = 2.5  # times as long as a copy of neighbours: LLVM permutes them apart
OVERLAPPING = 32  # steps of a reduction so short that the next tile's begins meanwhile


@dataclass(frozen=True)
class RowTile:
    """A register tile of output: channels x rows x vectors of columns. Channels come in `groups` runs of `run`."""

    channels: int
    rows: int
    vectors: int
    lanes: int
    groups: int
    run: int

    @property
    def columns(self) -> int:
        return self.vectors * self.lanes

    @property
    def blocks(self) -> int:
        """Channel blocks of a run."""
        return ceil_div(self.run, self.channels)

    @property
    def sums(self) -> int:
        """Accumulators, in vectors."""
        return self.channels * self.rows * self.vectors


def copy_cycles(size_bytes: float, stride: int) -> float:
    """Copying rows to `pad`, whose columns lie by their residue modulo the stride."""
    return size_bytes / L2_BYTES_PER_CYCLE * (1 if stride == 1 else STRIDED_COPY)


def most_sums(tile: RowTile, target: CpuTarget) -> int:
    """Accumulators that leave registers for the operands of a step."""
    if tile.channels == 1:  # each input is used for kernel rows alone, and LLVM loads several of them ahead
        return target.vector_registers // 2
    return target.tile_registers - tile.rows * tile.vectors - 1


def lanes_along(spec: ConvSpec, target: CpuTarget) -> int:
    """Lanes of a vector: fewer than the target's where a row fits in fewer."""
    row = 1 << (spec.out_size[-1] - 1).bit_length()
    return min(target.lanes, max(4, row))


def is_staged(spec: ConvSpec, tile: RowTile) -> bool:
    """Whether the store of `y` goes through a copy of the tile in memory."""
    # accumulators stay in registers only while every access to them is unrolled: see tiling.needs_staging
    return spec.activation in LONG_ACTIVATIONS or spec.out_size[-1] % tile.lanes != 0


def pack_channels(spec: ConvSpec, tile: RowTile) -> tuple[PackStep, ...]:
    """PyTorch's (oc, ic, taps) to (group, block, ic, kd, kw, kh, channel in block), zeros where a run ends."""
    rank, depth = spec.rank, spec.in_channels // spec.groups
    full = tile.blocks * tile.channels
    return (
        {"op": "reshape", "shape": [tile.groups, tile.run, depth, *spec.kernel]},
        {"op": "pad", "widths": [[0, 0], [0, full - tile.run], *([0, 0] for _ in range(rank + 1))]},
        {"op": "reshape", "shape": [tile.groups, tile.blocks, tile.channels, depth, *cube(spec.kernel)]},
        {"op": "transpose", "axes": [0, 1, 3, 4, 6, 5, 2]},
    )


def packed_shape(spec: ConvSpec, tile: RowTile) -> tuple[int, ...]:
    """The shape that `pack_channels` makes of a weight."""
    kd, kh, kw = cube(spec.kernel)
    return (tile.groups, tile.blocks, spec.in_channels // spec.groups, kd, kw, kh, tile.channels)


def tile_cycles(
    spec: ConvSpec, target: CpuTarget, tile: RowTile, unrolled: int, weights_resident: int, inputs_resident: int
) -> float:
    """Cycles of a tile's reduction: the kernel loops unrolled, and the bytes that its weights and inputs are read from.

    weights_resident: how many blocks of channels the weights stay in cache for.
    inputs_resident: in bytes.
    """
    kernel, stride, depth = cube(spec.kernel), cube(spec.stride), spec.in_channels // spec.groups
    rows = tile.rows * kernel[1]  # that one kw reads
    if unrolled and cube(spec.dilation)[1] == 1:
        rows = min(rows, (tile.rows - 1) * stride[1] + kernel[1])
    # an unaligned load of a whole line always reads two
    crossing = 1 + tile.lanes * 4 / LINE_BYTES if kernel[2] > 1 else 1
    loads = rows * tile.vectors * crossing + tile.channels * kernel[1]
    fmas = kernel[1] * _fma_cycles(target, tile.sums, depth * count(spec.kernel))
    body = max(fmas, load_cycles(target, loads)) + (0 if unrolled == UNROLLED["kw_kh"] else LOOP_CYCLES)
    weights_bytes = depth * count(spec.kernel) * tile.channels * 4
    window_bytes = depth * kernel[0] * rows * tile.columns * stride[2] * 4
    stream = stream_cycles(target, weights_bytes, weights_bytes * weights_resident)
    stream += stream_cycles(target, window_bytes, inputs_resident)
    return overlapped(depth * kernel[0] * kernel[2] * body, stream) + TILE_CYCLES


def _fma_cycles(target: CpuTarget, sums: int, steps: int) -> float:
    """One step's FMAs, of which the next depends on, unless the processor has other tiles to go on with."""
    return max(fma_cycles(target, sums), 0.0 if steps <= OVERLAPPING else FMA_LATENCY)


def row_values(spec: ConvSpec, tile: RowTile, acc: Any, width: int) -> Any:
    """What `y` reads: `acc`, or the stage `tile`: (n, d, h_tile, group, block, channel, row, column)."""
    from tvm import te

    def sums(n: Any, d: Any, h: Any, g: Any, b: Any, channel: Any, row: Any, w: Any) -> Any:
        lane = w % tile.columns
        return acc(n, d, h, w // tile.columns, g, b, channel, row, lane // tile.lanes, lane % tile.lanes)

    read = sums
    if is_staged(spec, tile):
        n, d, h, _, g, b, channels, rows, _, _ = acc.shape
        read = te.compute((n, d, h, g, b, channels, rows, width), sums, name="tile")

    def value(n: Any, group: Any, within: Any, position: Any) -> Any:
        d, h, w = position
        block, channel = within // tile.channels, within % tile.channels
        return read(n, d, h // tile.rows, group, block, channel, h % tile.rows, w)

    return value


def split_rows(sch: Any, spec: ConvSpec, tile: RowTile, high: int, wide: int, group_block: int = 1) -> OutputLoops:
    """Splits `y` into tasks of high x wide tiles, tiles, and what a tile stores; with all its columns if staged.

    Tasks are made of n, group_outer, oh_outer and ow_outer, and have group_inner, od, oh_middle, and ow_middle where
    nothing is staged.
    """
    n, *rest = sch.get_loops(sch.get_sblock("y"))
    *group, channel = rest[: -spec.rank]
    if group and variants.primitive(spec).interleaved:
        group, channel = [channel], group[0]
    *depth, width = rest[-spec.rank :]
    block, oc_inner = sch.split(channel, [None, tile.channels])
    outer, inner, store = [n], [], [oc_inner]
    if group:
        group_outer, group_inner = sch.split(group[0], [None, group_block])
        outer, inner = [n, group_outer], [group_inner]
    if depth:
        *depth, height = depth
        tiles, oh_inner = sch.split(height, [None, tile.rows])
        oh_outer, oh_middle = sch.split(tiles, [None, high])
        outer, inner, store = [*outer, oh_outer], [*inner, *depth, oh_middle], [oc_inner, oh_inner]
    ow_outer, width = sch.split(width, [None, min(wide * tile.columns, spec.out_size[-1])])
    if spec.out_size[-1] % tile.lanes == 0:  # then the border's condition is one of whole vectors
        vectors, lane = sch.split(width, [None, tile.lanes])
        ow_middle, vector = sch.split(vectors, [None, tile.vectors])
        inner_columns = [ow_middle, vector, lane]
    else:
        inner_columns = [width]
    if not is_staged(spec, tile):
        inner.append(inner_columns.pop(0))
    return OutputLoops([*outer, ow_outer], block, inner, [*store, *inner_columns])


def place_rows(sch: Any, spec: ConvSpec, tile: RowTile, at: Any, store: list[Any]) -> Any:
    """Makes the store one of vectors, or lets it read `tile`; returns the loop that the accumulators belong to."""
    if not is_staged(spec, tile):
        unroll(sch, store)
        return at
    if spec.out_size[-1] % tile.lanes == 0:
        sch.vectorize(store[-1])
    staged = sch.get_sblock("tile")
    sch.compute_at(staged, at, preserve_unit_loops=True)
    *_, channel, row, width = sch.get_loops(staged)
    ow_middle, vector, lane = sch.split(width, [None, tile.vectors, tile.lanes])
    sch.reorder(ow_middle, channel, row, vector, lane)
    unroll(sch, [channel, row, vector, lane])
    return ow_middle


def place_padded_rows(sch: Any, at: Any) -> None:
    """Copies rows of the input, `pad`: (..., residue of the column, column // stride), and zeros around it."""
    pad = sch.get_sblock("pad")
    sch.compute_at(pad, at, preserve_unit_loops=True)
    *_, residue, column = sch.get_loops(pad)
    sch.reorder(column, residue)
    sch.unroll(residue)
    # zeros and input apart, in loops with no condition: LLVM makes copies of one, and of strided reads shuffles
    sch.annotate(column, "pragma_loop_partition_hint", 1)
