"""Depthwise convolution, channels first, with channels as lanes: blocks of channels are transposed there and back.

    parallel task = (n, part of the channel blocks):
        for channel block:
            source[position, channel] = x, by squares of vectors transposed in registers      in the second cache
            for od, oh_tile, ow_tile:                                                       as depthwise_rows
                acc[row, column, vector, lane] = sum of source * weight                     in registers
                result[position, channel] = acc
            y = activation(result + bias + residual), by squares

It pays where an output has many taps: moving an element costs about as much as eight FMAs of a vector's lane.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import View, view_of
from convtune.schedules.depthwise_cost import cycles, suits
from convtune.schedules.depthwise_loops import Sums, Tiles
from convtune.schedules.depthwise_plan import NUMBERS, Plan, has_one_filter_each
from convtune.schedules.depthwise_plan import plan_of as plan_of_rows
from convtune.schedules.depthwise_planes_loops import plane_index
from convtune.schedules.estimate import L2_BYTES_PER_CYCLE, moved_bytes, stays_cached
from convtune.schedules.ranges import part, ranged
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, sequence
from convtune.schedules.tiling import FEWEST_LANES, ceil_div, even_blocks, power_of_two, spaced, task_parts
from convtune.schedules.transposing import transposed
from convtune.schedules.written import Held, written

from convtune.expression import epilogue_at
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


MOVED_CYCLES = 5.0  # a vector of a square: its load and store, and its permutes
CROSSING_MOVED_CYCLES = 8.0  # where planes are not whole vectors, so that most loads or stores of them cross lines


class DepthwiseSquares(Estimating[CpuTarget]):
    name = "depthwise_squares"
    summary = "depthwise, channels first: blocks of channels transposed in registers, channels as lanes in between"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return (
            isinstance(target, CpuTarget)
            and has_one_filter_each(spec)
            and not spec.channels_last
            and _lanes(spec, target) >= FEWEST_LANES
            and _block_bytes(view_of(spec), _lanes(spec, target)) <= target.l2_bytes / 2
        )

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        view, blocks = view_of(spec), spec.out_channels // _lanes(spec, target)
        return {
            "rows": tuple(size for size in (1, 2, 3, 4) if size <= view.rows.out),
            "columns": spaced(even_blocks(view.columns.out, target.vector_registers * 3 // 4), 10),
            "vectors": tuple(size for size in (1, 2) if size <= blocks),
            "parts": spaced(task_parts(target, blocks, halvings=5), 5),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan, registers = _plan(spec, target, knobs), target.vector_registers
        if not suits(plan, registers, registers * 3 // 4):
            return False
        if int(knobs["parts"]) > spec.out_channels // plan.width:
            return False
        return _block_bytes(plan.view, plan.width) <= target.l2_bytes / 2 or plan.vectors == 1

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan, parts = _plan(spec, target, knobs), int(knobs["parts"])
        view, blocks = plan.view, ceil_div(plan.channels, plan.width)
        shared = ceil_div(view.batch * parts, target.threads) * ceil_div(blocks, parts)  # blocks, one after the other
        one = replace(plan, view=replace(view, batch=1), channels=plan.width, split=False)
        alone = cycles(one, replace(target, threads=1))
        moved = _block_bytes(view, plan.width)
        sizes = (prod(axis.size for axis in view.axes), prod(axis.out for axis in view.axes))
        squares = plan.width * sum(_moved_cycles(positions, plan.lanes) for positions in sizes)
        whole = moved_bytes(spec)
        reading = moved / L2_BYTES_PER_CYCLE * (1 if stays_cached(target, whole) else 3)
        return shared * (alone + squares + reading)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, 1, taps) to (tap, oc), of a tile's channels side by side where tiles divide them."""
        shape = _plan(spec, target, knobs).weight_shape
        *blocks, taps, width = shape
        return (
            (
                {"op": "reshape", "shape": [*blocks, width, taps]},
                {"op": "transpose", "axes": [*range(len(blocks)), len(blocks) + 1, len(blocks)]},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        return written(
            spec,
            plan.weight_shape,
            lambda buffers, y: Squares(spec, plan, int(knobs["parts"]), Held(spec, buffers), y).kernel(),
        )


class Squares(Tiles):
    """The statements of a plan: tiles between two buffers with the channels last."""

    def __init__(self, spec: ConvSpec, plan: Plan, parts: int, arguments: Held, y: Any) -> None:
        super().__init__(spec, plan, arguments, y)
        self.parts = parts
        self.sizes, self.outs = (tuple(getattr(axis, name) for axis in plan.view.axes) for name in ("size", "out"))

    def kernel(self) -> Stmt:
        plan, view = self.plan, self.plan.view
        whole, rest = divmod(plan.channels, plan.width)

        def task(number: Expr) -> Stmt:
            from tvm import tirx

            n, number = number // self.parts, number % self.parts
            first, last = part(whole, self.parts, number)
            if rest:  # the task that has the last whole block takes what is left too, and some channels again
                last = last + tirx.Select(number == self.parts - 1, 1, 0)
            return ranged(first, last, lambda block: self._block(n, block), name="channels")

        return ranged(0, view.batch * self.parts, task, "PARALLEL", "task")

    def _block(self, n: Expr, block: Expr) -> Stmt:
        from tvm import tirx

        plan = self.plan
        view, first = plan.view, block * plan.width
        if plan.channels % plan.width:
            first = tirx.min(first, plan.channels - plan.width)

        def between(source: Any, result: Any) -> Stmt:
            self.source, self.result = source, result
            ranges = ((0, view.depth.out), (0, view.rows.out), (0, plan.tiles))
            return sequence([self._fetch(n, first), self._chunk(n, *ranges, block), self._return(n, first)])

        shapes = [(prod(sizes), plan.width) for sizes in (self.sizes, self.outs)]
        return allocated(
            shapes[0], "source", "global", lambda x: allocated(shapes[1], "result", "global", lambda y: between(x, y))
        )

    def _read(self, n: Expr, position: Sequence[Expr], oc: Expr, channel: Expr) -> Expr:
        from tvm import tirx

        return tirx.BufferLoad(self.source, [_flat(position, self.sizes), channel - oc])

    def _store(self, acc: Sums, n: Expr, at: tuple[Expr, ...], oc: Expr) -> Stmt:
        from tvm import tirx

        def stored(lane: Expr) -> list[Stmt]:
            found = []
            for (row, column, vector), sums in acc.items():
                where = _flat((at[0], at[1] + row, at[2] + column), self.outs)
                value = tirx.BufferLoad(sums, [lane])
                found.append(tirx.BufferStore(self.result, value, [where, vector * self.plan.lanes + lane]))
            return found

        return self._lanes(stored)

    def _fetch(self, n: Expr, first: Expr) -> Stmt:
        """source = x."""
        from tvm import tirx

        lanes = self.plan.lanes

        def square(position: Expr, within: Expr) -> Stmt:
            bind = Binder(f"float32x{lanes}")

            def read(row: int, column: int, width: int) -> Expr:
                place = plane_index(self.spec, n, first + within + row, 0, tirx.Ramp(position + column, 1, width))
                return tirx.BufferLoad(self.x, place)

            for i, column in enumerate(transposed((lanes, lanes), read, bind)):
                bind.store(self.source, [position + i, tirx.Ramp(within, 1, lanes)], column)
            return sequence(bind.statements)

        return self._squares(prod(self.sizes), square)

    def _return(self, n: Expr, first: Expr) -> Stmt:
        """y = activation(result + bias + residual)."""
        from tvm import tirx

        lanes = self.plan.lanes

        def square(position: Expr, within: Expr) -> Stmt:
            bind, whole = Binder(f"float32x{lanes}"), tirx.Ramp(0, 1, lanes)

            def read(row: int, column: int, width: int) -> Expr:
                return tirx.BufferLoad(self.result, [position + row, tirx.Ramp(within + column, 1, width)])

            def stored(copy: Any) -> Stmt:
                for i, column in enumerate(transposed((lanes, lanes), read, bind)):
                    bind.store(copy, [i, whole], column)

                def output(i: Expr) -> Stmt:
                    return ranged(
                        0, lanes, lambda lane: self._element(copy, n, first + within, position, i, lane), "VECTORIZED"
                    )

                return sequence([*bind.statements, *self._outputs(output)])

            return allocated((lanes, lanes), "square", "local", stored)

        return self._squares(prod(self.outs), square)

    def _outputs(self, output: Any) -> list[Stmt]:
        return [ranged(0, self.plan.lanes, output)]

    def _element(self, copy: Any, n: Expr, channel: Expr, position: Expr, i: Expr, lane: Expr) -> Stmt:
        from tvm import tirx

        where = plane_index(self.spec, n, channel + i, 0, position + lane)
        return tirx.BufferStore(self.y, epilogue_at(self.arguments, tirx.BufferLoad(copy, [i, lane]), where), where)

    def _squares(self, positions: int, square: Any) -> Stmt:
        """square(position, channel of the block) for all; the last ones begin earlier where they do not divide."""
        from tvm import tirx

        lanes = self.plan.lanes

        def at(number: Expr) -> Stmt:
            position = number * lanes
            if positions % lanes:
                position = tirx.min(position, positions - lanes)
            return sequence([square(position, vector * lanes) for vector in range(self.plan.vectors)])

        return ranged(0, ceil_div(positions, lanes), at, name="square")


def _flat(position: Sequence[Expr], sizes: Sequence[int]) -> Expr:
    d, h, w = position
    return (d * sizes[1] + h) * sizes[2] + w


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    tile = {name: knobs.get(name, 1) for name in NUMBERS}
    return plan_of_rows(spec, target, {**tile, "lanes": _lanes(spec, target), "chunk": 1, "oc_order": "parallel"})


def _lanes(spec: ConvSpec, target: CpuTarget) -> int:
    """Of a vector: as many as there are channels and positions at most, in powers of two."""
    view = view_of(spec)
    most = min(spec.out_channels, prod(a.size for a in view.axes), prod(a.out for a in view.axes))
    return min(target.lanes, power_of_two(most))


def _moved_cycles(positions: int, lanes: int) -> float:
    """Of a plane, which squares move in whole vectors, some elements twice."""
    return ceil_div(positions, lanes) * (CROSSING_MOVED_CYCLES if positions % lanes else MOVED_CYCLES)


def _block_bytes(view: View, width: int) -> int:
    """Of a block of channels, inputs and outputs."""
    return 4 * width * (prod(axis.size for axis in view.axes) + prod(axis.out for axis in view.axes))


depthwise_squares = DepthwiseSquares()
