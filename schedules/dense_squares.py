"""Channels-first convolution of few input channels: lanes are output channels, stored by transposed squares.

    parallel task = (n, od, block of rows):
        pad[ic, kd, row, column] = x, zeros around                      rows as they lie in memory; only where padded
        for oc_outer, row, ow_outer:
            acc[column, oc_vector, lane] = 0                            in registers
            for kd, kh, ic, kw:
                acc[...] += pad[ic, kd, row * stride + kh, column * stride + kw]
                            * weight[oc_outer, kd, kh, kw, ic, oc_vector, lane]
            near[row, column, oc_outer, oc_vector, lane] = acc          in the first caches
        for vector of channels, square of positions: y[...] = activation(near + bias + residual)    in registers

Inputs are read one at a time, so that a stride costs nothing, and rows that do not fill vectors waste no lanes, as both
do where lanes are columns. The last tile of a row begins so early that it ends with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    overlapped,
    stream_cycles,
    tile_step_cycles,
    write_cycles,
)
from convtune.schedules.filtering_near import stored_line
from convtune.schedules.filtering_tensors import Tensors
from convtune.schedules.ranges import least, named, ranged
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, nest, sequence, unflat, vectorized, when
from convtune.schedules.tiling import (
    MOST_VECTORS,
    Tile,
    ceil_div,
    even_blocks,
    pack_blocks,
    packed_blocks,
    spaced,
    suits_registers,
)
from convtune.schedules.written import Buffers, viewed, written

from convtune.expression import Geometry, cube, widened
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_ROWS = 16  # of a task
SQUARE_CYCLES = 6.0  # a vector is stored, transposed and stored again, at places that are not multiples of a line


class DenseSquares(Estimating[CpuTarget]):
    name = "dense_squares"
    summary = "few input channels, channels first: lanes are output channels, stored by transposed squares"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.channels_last or spec.rank == 1:
            return False
        return spec.variant in ("conv", "dilated") and spec.in_channels < target.lanes

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        out = cube(spec.out_size)
        return {
            "ow_tile": even_blocks(out[2], target.vector_registers - 2),
            "oc_vectors": tuple(range(1, min(MOST_VECTORS, ceil_div(spec.out_channels, target.lanes)) + 1)),
            "oh_block": spaced(even_blocks(out[1], MOST_ROWS), 5),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        return suits_registers(target, int(knobs["ow_tile"]), int(knobs["oc_vectors"]), spec.out_size[-1])

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = _Plan.of(spec, target, knobs)
        tile, out, rows = plan.tile, plan.geometry.out, plan.rows
        steps = spec.in_channels * count(spec.kernel)
        sums = tile.columns * tile.vectors
        panel = steps * tile.block * 4
        compute = steps * tile_step_cycles(target, tile.columns, tile.vectors) + 2 * sums + TILE_CYCLES
        compute = overlapped(compute, stream_cycles(target, panel, panel * tile.blocks))
        tiles = rows * ceil_div(out[2], tile.columns)
        near = rows * out[2] * tile.block * tile.blocks * 4  # it holds all channels of a task
        vectors = rows * out[2] * tile.vectors
        stored = overlapped(vectors * SQUARE_CYCLES, stream_cycles(target, 2 * near, near) / tile.blocks)
        written = write_cycles(target, near, rows * out[2] * 4, 4 * count(spec.out_shape))
        cycles = overlapped(tile.blocks * (tiles * compute + stored), written)
        if plan.padded:
            cycles += 4 * count(plan.pad_shape) / L2_BYTES_PER_CYCLE + count(plan.pad_shape[:3]) * 4
        return Tasks(count(plan.tasks), cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (pack_blocks(spec, _Plan.of(spec, target, knobs).tile),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _Plan.of(spec, target, knobs)

        def body(buffers: Buffers, y: Any) -> Stmt:
            x, weight, bias, residual = buffers
            flat = (spec.batch, spec.out_channels, count(spec.out_size))

            def with_planes(of_x: Any, planes: list[Any]) -> Stmt:
                flat_y, flat_residual = planes[0], planes[1] if residual is not None else None
                tensors = Tensors(spec, [of_x, weight, bias, flat_residual], flat_y)
                return ranged(0, count(plan.tasks), lambda task: _task(plan, tensors, task), "PARALLEL", "task")

            given = [y, *([residual] if residual is not None else [])]
            whole = (spec.batch, spec.in_channels, *cube(spec.in_size))
            return viewed([x], whole, lambda xs: viewed(given, flat, lambda ys: with_planes(xs[0], ys)))

        return written(spec, packed_blocks(spec, plan.tile), body)


@dataclass(frozen=True)
class _Plan:
    spec: ConvSpec
    geometry: Geometry
    tile: Tile
    rows: int  # of a task
    padded: bool  # whether outputs read zeros, so that tasks copy their inputs

    @classmethod
    def of(cls, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> _Plan:
        geometry, lanes = Geometry.of(spec), target.lanes
        tile = Tile(1, int(knobs["ow_tile"]), int(knobs["oc_vectors"]), lanes, lanes, 1, spec.out_channels)
        return cls(spec, geometry, tile, int(knobs["oh_block"]), not geometry.inside(spec))

    @property
    def tasks(self) -> tuple[int, int, int]:
        return self.spec.batch, self.geometry.out[0], ceil_div(self.geometry.out[1], self.rows)

    @property
    def pad_shape(self) -> tuple[int, int, int, int]:
        """Of what a task reads: (ic, kd, row, column)."""
        g = self.geometry
        high = (self.rows - 1) * g.stride[1] + (g.kernel[1] - 1) * g.dilation[1] + 1
        return self.spec.in_channels, g.kernel[0], high, g.padded[2]


def _task(plan: _Plan, tensors: Tensors, task: Expr) -> Stmt:
    n, d, block = unflat(task, plan.tasks)
    high, out = block * plan.rows, plan.geometry.out

    def of_rows(rows: Expr) -> Stmt:
        at = n, d, high, rows
        shape = plan.rows * out[2], plan.tile.blocks * plan.tile.block

        def summed(pad: Any) -> Stmt:
            return allocated(shape, "near", "global", lambda near: _blocks(plan, tensors, pad, near, at))

        def with_pad(pad: Any) -> Stmt:
            return sequence([*_padded(plan, tensors.source, pad, at), summed(pad)])

        return allocated(plan.pad_shape, "pad", "global", with_pad) if plan.padded else summed(None)

    ragged = out[1] % plan.rows
    return named(least(plan.rows, out[1] - high), "rows", of_rows) if ragged else of_rows(plan.rows)


def _padded(plan: _Plan, x: Any, pad: Any, at: tuple[Expr, ...]) -> list[Stmt]:
    """A task's rows of x, with zeros around."""
    from tvm import tirx

    (n, d, high, _), g = at, plan.geometry
    depth, height, width = cube(plan.spec.in_size)
    channels, kernel, rows, columns = plan.pad_shape
    first = min(g.before[2], columns)
    last = max(first, min(columns, g.before[2] + width))

    def zeros(place: tuple[Expr, ...], begin: int, end: int) -> list[Stmt]:
        zero = lambda column: tirx.BufferStore(pad, tirx.const(0.0, "float32"), [*place, column])  # noqa: E731
        return [ranged(begin, end, zero, name="column")] if end > begin else []

    def row(index: tuple[Expr, ...]) -> Stmt:
        ic, kd, i = index
        z = d * g.stride[0] + kd * g.dilation[0] - g.before[0]
        h = high * g.stride[1] + i - g.before[1]

        def copied(column: Expr) -> Stmt:
            return tirx.BufferStore(
                pad, widened(tirx.BufferLoad(x, [n, ic, z, h, column - g.before[2]])), [*index, column]
            )

        inside = [h >= 0, h < height, *([z >= 0, z < depth] if plan.spec.rank == 3 else [])]
        copy = [ranged(first, last, copied, name="column")] if last > first else []
        return when(
            inside,
            sequence([*zeros(index, 0, first), *copy, *zeros(index, last, columns)]),
            sequence(zeros(index, 0, columns)),
        )

    return [nest((channels, kernel, rows), row)]


def _blocks(plan: _Plan, tensors: Tensors, pad: Any, near: Any, at: tuple[Expr, ...]) -> Stmt:
    """All output channels of a task, block by block.

    They are stored afterwards, so that what is stored of a plane is long: each 16 KiB of a block's sums stored at once
    took 1.11 (32 channels of 149x149) to 1.30 times as long (96 of 56x56) on Zen 4, whose caches wait for the lines.
    """
    (_, _, _, rows), tile, out = at, plan.tile, plan.geometry.out
    rest = out[2] % tile.columns

    def summed(block: Expr, row: Expr, number: Expr) -> Stmt:
        start = least(number * tile.columns, out[2] - tile.columns) if rest else number * tile.columns
        return named(start, "column", lambda column: _tile(plan, tensors, pad, near, at, (block, row, column)))

    def of_row(block: Expr, row: Expr) -> Stmt:
        return ranged(0, ceil_div(out[2], tile.columns), lambda i: summed(block, row, i), name="tile")

    def of_block(block: Expr) -> Stmt:
        return ranged(0, rows, lambda row: of_row(block, row), name="row")

    return sequence([ranged(0, tile.blocks, of_block, name="block"), _stored(plan, tensors, near, at)])


def _stored(plan: _Plan, tensors: Tensors, near: Any, at: tuple[Expr, ...]) -> Stmt:
    """What a task has summed up, to planes."""
    from tvm import tirx

    (n, d, high, rows), tile, out = at, plan.tile, plan.geometry.out

    def of_vector(first: Expr, vector: Expr, lanes: int) -> Stmt:
        channel = vector * tile.lanes
        read = lambda c, p: tirx.BufferLoad(near, [p - first, c])  # noqa: E731
        return stored_line(tensors, tile.lanes, read, (n, channel, lanes), first, first + rows * out[2], channel)

    def of_first(first: Expr) -> Stmt:
        whole, rest = divmod(tile.run, tile.lanes)
        parts = [ranged(0, whole, lambda v: of_vector(first, v, tile.lanes), name="vector")] if whole else []
        return sequence([*parts, *([of_vector(first, whole, rest)] if rest else [])])

    return named((d * out[1] + high) * out[2], "first", of_first)


def _tile(plan: _Plan, tensors: Tensors, pad: Any, near: Any, at: tuple[Expr, ...], place: tuple[Expr, ...]) -> Stmt:
    """A register tile: columns x vectors of channels of a row."""
    from tvm import tirx

    (block, row, column), tile, out = place, plan.tile, plan.geometry.out
    places = [(i, v) for i in range(tile.columns) for v in range(tile.vectors)]

    def with_sums(acc: Any) -> Stmt:
        def clear(bind: Binder, lane: Expr) -> None:
            for i, v in places:
                bind.store(acc, [i, v, lane], tirx.const(0.0, "float32"))

        def keep(bind: Binder, lane: Expr) -> None:
            for i, v in places:
                channel = block * tile.block + v * tile.lanes + lane
                bind.store(near, [row * out[2] + column + i, channel], tirx.BufferLoad(acc, [i, v, lane]))

        summed = _sums(plan, tensors, pad, acc, at, place)
        return sequence([vectorized(tile.lanes, clear), summed, vectorized(tile.lanes, keep)])

    return allocated((tile.columns, tile.vectors, tile.lanes), "acc", "local", with_sums)


def _sums(plan: _Plan, tensors: Tensors, pad: Any, acc: Any, at: tuple[Expr, ...], place: tuple[Expr, ...]) -> Stmt:
    from tvm import tirx

    (n, d, high, _), (block, row, column), g, tile = at, place, plan.geometry, plan.tile
    kd, kh, kw = g.kernel

    def step(index: tuple[Expr, ...]) -> Stmt:
        z, h, ic, w = index

        def body(bind: Binder, lane: Expr) -> None:
            panel = [0, block, z, h, w, ic]
            filters = [
                bind(widened(tirx.BufferLoad(tensors.weight, [*panel, v * tile.lanes + lane])))
                for v in range(tile.vectors)
            ]
            for i in range(tile.columns):
                y, x = row * g.stride[1] + h * g.dilation[1], (column + i) * g.stride[2] + w * g.dilation[2]
                if pad is None:
                    value = [n, ic, d * g.stride[0] + z * g.dilation[0], high * g.stride[1] + y, x]
                    value = widened(tirx.BufferLoad(tensors.source, value))
                else:
                    value = tirx.BufferLoad(pad, [ic, z, y, x])
                for v in range(tile.vectors):
                    bind.add(acc, [i, v, lane], value * filters[v])

        return vectorized(tile.lanes, body)

    return nest((kd, kh, plan.spec.in_channels, kw), step)


dense_squares = DenseSquares()
