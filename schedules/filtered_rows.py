"""Minimal filtering across rows: F(m, r) in all dimensions but the last, for few input channels, any rank but one.

    parallel task = (image, tile of depths, tile of rows):
        for element of a row (column, ic):                              lanes: elements side by side
            v[point, part, element] = B^T x B                           of the tile's rows, zeros around
        for oc_outer, column_outer:
            for point:
                acc[column_inner, oc_vector, lane] = 0                  in registers
                for part, kw, ic:                                       of planes: part, ic, kw
                    acc[...] += v[point, part, (column * stride + kw * dilation) * channels + ic]
                                * U[oc_outer, point, part, kw, ic, oc_vector, lane]
                m[point, column_inner, oc_vector, lane] = acc           in the first cache
            for column_inner, oc_vector: y[...] = activation(transform of m + bias + residual)

`minimal_filtering` makes vectors of input channels, of which the first layer of a network has one to four: most lanes
of its transform would be idle. Here a row is transformed as it lies in memory, and the taps along it are summed in the
products, which read each transformed element kw times. Channels first, rows of each plane are: V holds a plane after
the other there, and products sum over one after the other. Parts are those of `filtering_axis`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    overlapped,
    store_cycles,
    stream_cycles,
    tile_step_cycles,
    write_cycles,
)
from convtune.schedules.filtered_rows_input import Row, transformed
from convtune.schedules.filtering_axis import tiled_axes
from convtune.schedules.filtering_estimate import (
    MOST_AMPLIFICATION,
    amplification,
    expected_error,
    output_cycles,
)
from convtune.schedules.filtering_near import stored_columns
from convtune.schedules.filtering_output import OutputTransform
from convtune.schedules.filtering_plan import TILE_KNOBS, Place, Plan, plan_of, register_tiles, tile_sizes
from convtune.schedules.filtering_products import nonzero
from convtune.schedules.filtering_tensors import Tensors, with_tensors
from convtune.schedules.filtering_weights import packed
from convtune.schedules.statements import (
    Binder,
    allocated,
    flat,
    loop,
    nest,
    sequence,
    unflat,
    vector_sums,
    vectorized,
    when,
)
from convtune.schedules.tiling import ceil_div
from convtune.schedules.written import viewed, written

from convtune.accuracy import LOOSE
from convtune.expression import cube, widened
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_POINTS = 64
SUM_CYCLES = 3.0  # a vector of sums is cleared and stored, twice, which short sums do not hide
NEAR_BYTES = 1 << 19  # of the outputs that are stored to planes together: some of a second cache
COPIED_PER_CYCLE = 2.0  # elements that are transposed in squares, of a thread


class FilteredRows(Estimating[CpuTarget]):
    name = "filtered_rows"
    summary = "minimal filtering across rows, which stay as they are: for few input channels"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant not in ("conv", "dilated") or spec.rank == 1:
            return False
        return spec.in_channels < target.lanes and any(len(values) > 1 for values in _tile_values(spec).values())

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        rows, vectors = zip(*register_tiles(spec, target))
        return {
            **_tile_values(spec),
            "columns": tuple(sorted(set(rows))),
            "oc_vectors": tuple(sorted(set(vectors))),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        if (int(knobs["columns"]), int(knobs["oc_vectors"])) not in register_tiles(spec, target):
            return False
        if all(int(knobs.get(name, 1)) == 1 for name in TILE_KNOBS[:2]):
            return False
        plan = _plan(spec, target, knobs)
        if plan.points > MOST_POINTS or amplification(plan) > MOST_AMPLIFICATION:
            return False
        return expected_error(spec, plan) <= LOOSE[spec.dtype]

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        return expected_error(spec, _plan(spec, target, knobs))

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = _plan(spec, target, knobs)
        row, filters = Row.of(spec, plan), [axis.filter for axis in plan.axes if axis.filter]
        operations = sum(plan.points / f.alpha * f.operations[0] for f in filters)
        vectors = row.planes * ceil_div(row.inside * row.channels, plan.lanes) + row.parts
        of_vector = store_cycles(target, plan.points * len(filters)) + fma_cycles(target, operations)
        made = row.parts * vectors * of_vector
        steps = plan.depth * plan.taps * plan.density
        panel = plan.points * steps * plan.width * 4
        product = plan.points * (steps * tile_step_cycles(target, plan.rows, plan.vectors) + TILE_CYCLES)
        product = overlapped(product, stream_cycles(target, panel, panel))
        m_bytes = 4 * prod(plan.m_shape)
        stored = plan.rows * plan.vectors * (plan.points * SUM_CYCLES + output_cycles(plan, target, m_bytes))
        tiles = plan.passes * ceil_div(row.columns, plan.rows)
        tasks = plan.tiles // row.columns
        run_bytes = 4 * min(plan.width, plan.run) * (plan.rows if plan.passes == 1 else 1)
        written = write_cycles(target, plan.y_bytes, run_bytes, plan.y_bytes) / tasks
        cycles = Tasks(tasks, overlapped(made + tiles * (product + stored), written)).on(target)
        copied = 0 if spec.channels_last else count(spec.out_shape)
        return cycles + copied / COPIED_PER_CYCLE / target.threads

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (packed(spec, _plan(spec, target, knobs)),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        row = Row.of(spec, plan)

        def made(tensors: Tensors) -> Any:
            depth, height, width = cube(spec.in_size)
            shape = (spec.batch, row.planes, depth, height, width * row.channels)
            source = tensors.planes.source
            return viewed([source], shape, lambda views: _tasks(spec, plan, row, tensors, views[0]))

        return written(
            spec,
            plan.u_shape,
            lambda buffers, y: with_tensors(spec, plan.lanes, buffers, y, made, (not spec.channels_last,) * 2),
        )


def _tile_values(spec: ConvSpec) -> Mapping[str, tuple[int, ...]]:
    axes = tiled_axes(spec, (1, 1, 1))
    return {name: tuple(tile_sizes(axes[i])) for i, name in enumerate(TILE_KNOBS[:2]) if i >= 3 - spec.rank}


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    return plan_of(spec, target, {**knobs, "tile_rows": knobs["columns"], "row_blocks": 1, "pass_blocks": 1})


def _tasks(spec: ConvSpec, plan: Plan, row: Row, tensors: Tensors, x: Any) -> Any:
    def task(index: Any) -> Any:
        def with_v(v: Any) -> Any:
            made = transformed(spec, plan, row, v, x, index)
            return sequence([made, _outputs(spec, plan, row, tensors, v, index)])

        return allocated((plan.points, row.parts * row.planes * row.length), "v", "global", with_v)

    return loop(plan.tiles // row.columns, task, "PARALLEL", "task")


def _outputs(spec: ConvSpec, plan: Plan, row: Row, tensors: Tensors, v: Any, index: Any) -> Any:
    """All columns of the tile's rows."""
    axes = plan.axes
    extents = [*(axis.residues for axis in axes[:2]), *(axis.tiles for axis in axes[:2])]
    n, *found = unflat(index, [plan.batch, *extents])

    def stored(transform: OutputTransform, column: Any, i: Any, number: Any) -> Any:
        place = Place(n, (*found[:2], 0), (*found[2:], column + i))
        ragged = [column + i < row.columns] if row.columns % plan.rows else []
        return when(ragged, transform.at(place, i, number))

    def with_m(m: Any) -> Any:
        if tensors.y is None:
            return _through_chunks(spec, plan, row, tensors, (v, m), (n, *found))
        transform = OutputTransform(spec, plan, tensors.store, m)

        def tile(at: Sequence[Any]) -> Any:
            number, outer = at
            column = outer * plan.rows
            product = loop(plan.points, lambda p: _product(plan, row, (v, tensors.weight, m), p, number, column))
            return sequence([product, loop(plan.rows, lambda i: stored(transform, column, i, number))])

        return nest([plan.passes, ceil_div(row.columns, plan.rows)], tile)

    return allocated(plan.m_shape, "m", "global", with_m)


def _through_chunks(
    spec: ConvSpec, plan: Plan, row: Row, tensors: Tensors, buffers: tuple[Any, Any], at: tuple[Any, ...]
) -> Any:
    """All columns of the tile's rows, some at a time with channels last in a copy, then stored to planes."""
    from tvm import tirx

    (v, m), (n, *found) = buffers, at
    tiles = ceil_div(row.columns, plan.rows)
    column_bytes = 4 * plan.axes[0].m * plan.axes[1].m * plan.passes * plan.width
    parts = ceil_div(tiles * plan.rows * column_bytes, NEAR_BYTES)
    chunk = ceil_div(tiles, parts)
    begin = [axis.output(axis.unit(r, t), 0) for axis, r, t in zip(plan.axes[:2], found[:2], found[2:])]
    transform = OutputTransform(spec, plan, tensors.store, m)
    shape = (plan.passes, plan.axes[0].m, plan.axes[1].m, chunk * plan.rows, plan.width)

    def with_near(near: Any) -> Any:
        def tile(number: Any, first: Any, outer: Any) -> Any:
            column = (first + outer) * plan.rows
            product = loop(plan.points, lambda p: _product(plan, row, (v, tensors.weight, m), p, number, column))
            return sequence([product, loop(plan.rows, lambda i: kept(number, column, outer * plan.rows, i))])

        def kept(number: Any, column: Any, inside: Any, i: Any) -> Any:
            def of_vector(source: Any, run: Any, channel: Any, width: int) -> Any:
                def keep(n: Any, oc: Any, lane: Any, position: Sequence[Any], value: Any) -> Any:
                    line = [(p - b) // axis.step for p, b, axis in zip(position, begin, plan.axes)]
                    return tirx.BufferStore(near, value, [number, *line, inside + i, source + lane])

                place = Place(n, (*found[:2], 0), (*found[2:], column + i))
                return OutputTransform(spec, plan, keep, m).channels(place, i, source, run, channel, width)

            ragged = [column + i < row.columns] if row.columns % plan.rows else []
            return when(ragged, transform.vectors(number, of_vector))

        def part(index: Any) -> Any:
            first = index * chunk

            def one(number: Any, i: Any) -> Any:
                return when([first + i < tiles] if tiles % chunk else [], tile(number, first, i))

            ends = (first * plan.rows, (first + chunk) * plan.rows)
            made = nest([plan.passes, chunk], lambda at: one(*at))
            # in one loop with the products, LLVM 22 would have their sums and the squares in registers at once
            stored = loop(plan.passes, lambda p: _pass_stored(plan, tensors, transform, near, (n, p), begin, ends))
            return sequence([made, stored])

        return loop(parts, part)

    return allocated(shape, "near", "global", with_near)


def _pass_stored(
    plan: Plan, tensors: Tensors, transform: OutputTransform, near: Any, at: tuple[Any, Any], begin: Any, columns: Any
) -> Any:
    """The outputs of a pass between two columns, to planes. near: of all passes; at: image and pass."""
    from tvm import tirx

    shape = near.shape[1:]
    view = tirx.decl_buffer(shape, name="near_pass", data=near.data, elem_offset=at[1] * prod(map(int, shape)))
    return sequence(
        [
            tirx.DeclBuffer(view, data=near.data),
            stored_columns(plan, tensors.planes, transform, view, at, begin, columns),
        ]
    )


def _product(plan: Plan, row: Row, buffers: tuple[Any, Any, Any], point: Any, number: Any, column: Any) -> Any:
    """A register tile: columns x vectors of channels, of a point."""
    from tvm import tirx

    v, u, m = buffers

    def with_sums(acc: list[Any]) -> Any:
        def clear(bind: Binder, lane: Any) -> None:
            for total in acc:
                bind.store(total, [lane], tirx.const(0.0, "float32"))

        def keep(bind: Binder, lane: Any) -> None:
            for i, total in enumerate(acc):
                r, cv = divmod(i, plan.vectors)
                at = [point, r * plan.m_row + cv * plan.lanes + lane]
                bind.store(m, at, tirx.BufferLoad(total, [lane]))

        summed = _sums(plan, row, (v, u, acc), point, number, column)
        return sequence([vectorized(plan.lanes, clear), summed, vectorized(plan.lanes, keep)])

    return vector_sums(plan.rows * plan.vectors, plan.lanes, with_sums)


def _sums(plan: Plan, row: Row, buffers: tuple[Any, Any, Any], point: Any, number: Any, column: Any) -> Any:
    """Over parts, taps along the row, and channels."""
    from tvm import tirx

    (v, u, acc), axis, channels = buffers, row.axis, row.channels
    outer = [a.parts for a in plan.axes[:2]]
    # steps that read neighbouring elements; planes are one loop, for LLVM 22 unrolls short ones and spills the sums
    together = axis.taps * channels if axis.dilation == 1 else channels
    together = axis.taps * row.planes if row.planes > 1 else together

    def step(part: Any, k: Any) -> Any:
        if row.planes > 1:
            plane, kw = k // axis.taps, k % axis.taps
            ic, offset = plane, kw * axis.dilation
        else:
            plane, kw, ic = 0, k // channels, k % channels
            offset = kw * (axis.dilation - 1) * channels + k
        panel = [number, point, 0, (part * axis.taps + kw) * row.planes * channels + ic]
        first = (part * row.planes + plane) * row.length + row.start + column * axis.stride * channels + offset

        def body(bind: Binder, lane: Any) -> None:
            places = [[*panel, cv * plan.lanes + lane] for cv in range(plan.vectors)]
            filters = [bind(widened(tirx.BufferLoad(u, place))) for place in places]
            for r in range(plan.rows):
                value = tirx.BufferLoad(v, [point, first + r * axis.stride * channels])
                for total, factor in zip(acc[r * plan.vectors :], filters):
                    bind.add(total, [lane], value * factor)

        return vectorized(plan.lanes, body)

    def of_part(parts: Sequence[Any]) -> Any:
        part, runs = flat(parts, outer), axis.taps * channels * row.planes // together
        run = lambda i: loop(together, lambda k: step(part, i * together + k), name="k")  # noqa: E731
        return when(nonzero(plan, point, (*parts, 0), 0), loop(runs, run, name="kw"))

    return nest(outer, of_part)


filtered_rows = FilteredRows()
