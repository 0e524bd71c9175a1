"""What minimal filtering fetches beside its products: lines of y that their outputs go to, and of x for the next block.

Products have V and M near, and of U a stream, so that memory and the third cache have time; the transforms before and
after them wait for x, and for y, whose lines a store reads first. A few lines at a time: with all of a register tile at
once `erfnet/up64_16` was 1.03 times as fast as with none, with 2 or 3 each 8 steps 1.10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_places import place_of
from convtune.schedules.filtering_plan import Plan
from convtune.schedules.filtering_tensors import Tensors
from convtune.schedules.statements import Expr, Stmt, allocated, as_row, fetched, flat, loop, sequence, unflat, when
from convtune.schedules.tiling import LINE, ceil_div

from convtune.expression import cube

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

STEPS = 8  # of a sum, about, between fetches; with 16, or one at each step, less was gained
LEAST_STEPS, MOST_STEPS = 4, 16


class Beside:
    """The fetches of a task, in equal shares beside the steps of its products."""

    def __init__(self, spec: ConvSpec, plan: Plan, tensors: Tensors, begins: Sequence[Any]) -> None:
        """begins: buffers of the positions in y where tiles of the block begin, and in x where those of the next do.

        Either is None where its tensor is not fetched.
        """
        self.spec, self.plan, self.x, self.y = spec, plan, tensors.source, tensors.y
        self.in_y, self.in_x = begins

    def summed(self, at: Sequence[Expr], part: Expr, step: Callable[[Expr], Stmt]) -> Stmt:
        """The loop of step(ic) over a part's sum, with its share of the fetches.

        at: pass, point, channel block, register tile of the block.
        """
        plan = self.plan
        near = [n for n in range(LEAST_STEPS, MOST_STEPS + 1) if plan.steps % n == 0]
        steps = min(near, key=lambda n: abs(n - STEPS), default=plan.steps)
        chunks = plan.steps // steps

        def chunk(c: Expr) -> Stmt:
            index, sizes = [*at, part, c], self._sizes(chunks)
            return sequence([*self._fetches(index, sizes), loop(steps, lambda i: step(c * steps + i), name="ic")])

        return loop(chunks, chunk, name="chunk")

    def _sizes(self, chunks: int) -> list[int]:
        """The extents of all loops around a chunk."""
        plan = self.plan
        return [plan.passes, plan.points, plan.per_pass, plan.block_rows // plan.rows, prod(plan.parts_apart), chunks]

    def _fetches(self, index: Sequence[Expr], sizes: Sequence[int]) -> list[Stmt]:
        plan, made = self.plan, list[Stmt]()
        if self.in_y is not None:  # of the pass
            lines = plan.block * prod(axis.m for axis in plan.axes) * plan.per_pass * ceil_div(plan.width, LINE)
            made.append(_share(index[1:], sizes[1:], lines, lambda line: self._output(index[0], line)))
        if self.in_x is not None:
            lines = plan.block * prod(axis.fresh[1] for axis in plan.axes) * ceil_div(plan.channels, LINE)
            made.append(_share(index, sizes, lines, self._input))
        return made

    def _output(self, number: Expr, index: Expr) -> Stmt:
        """A line that a pass writes."""
        from tvm import tirx

        plan, axes = self.plan, self.plan.axes
        lines = [plan.per_pass, ceil_div(plan.width, LINE)]
        tile, *places, block, line = unflat(index, [plan.block + 1, *(axis.m for axis in axes), *lines])
        linear = number * plan.per_pass + block
        run, within = (linear // plan.blocks, linear % plan.blocks) if plan.runs > 1 else (0, linear)
        phases = unflat(run, [axis.phases for axis in axes])
        place = [axis.output(i * axis.step, phase) for axis, i, phase in zip(axes, places, phases)]
        position = tirx.BufferLoad(self.in_y, [tile]) + flat(place, cube(self.spec.out_size))
        channel = within * plan.width + line * LINE
        return fetched(tirx.BufferLoad(self.y, as_row(self.spec.rank, position, channel)), to_write=True)

    def _input(self, index: Expr) -> Stmt:
        """A line that the next block reads."""
        from tvm import tirx

        plan, fresh = self.plan, [axis.fresh for axis in self.plan.axes]
        lines = ceil_div(plan.channels, LINE)
        tile, *places, line = unflat(index, [plan.block + 1, *(count for _, count, _ in fresh), lines])
        place = [first + i * pitch for i, (first, _, pitch) in zip(places, fresh)]
        position = tirx.BufferLoad(self.in_x, [tile]) + flat(place, cube(self.spec.in_size))
        return fetched(tirx.BufferLoad(self.x, as_row(self.spec.rank, position, line * LINE)), first_cache=False)


def with_fetches(
    spec: ConvSpec, plan: Plan, tensors: Tensors, task: Expr, body: Callable[[Beside | None], Stmt]
) -> Stmt:
    """body(fetches) of a task, which is a block of tiles; body(None) of a plan without."""
    from tvm import tirx

    axes = plan.axes

    def tiles(block: Expr, position: Callable[[Any], Expr]) -> Callable[[Any], Stmt]:
        def of_buffer(to: Any) -> Stmt:
            def one(row: Expr) -> Stmt:
                return tirx.BufferStore(to, position(place_of(plan, block * plan.block + row)), [row])

            return loop(plan.block + 1, one)

        return of_buffer

    def output(place: Any) -> Expr:
        at = [a.output(a.unit(r, t), 0) + a.cut for a, r, t in zip(axes, place.residues, place.tiles)]
        return flat([place.n, *at], [plan.batch + 1, *cube(spec.out_size)])

    def source(place: Any) -> Expr:
        at = [a.input(r, t, 0) for a, r, t in zip(axes, place.residues, place.tiles)]
        return flat([place.n, *at], [plan.batch + 1, *cube(spec.in_size)])

    filled = [
        tiles(plan.block_of(task), output) if plan.outputs_beside else None,
        tiles(plan.block_of(task + 1), source) if plan.inputs_beside else None,
    ]

    def begun(begins: list[Any]) -> Stmt:
        if len(begins) < len(filled):
            fill = filled[len(begins)]
            if fill is None:
                return begun([*begins, None])
            return allocated(
                (plan.block + 1,), "begins", "global", lambda b: sequence([fill(b), begun([*begins, b])]), "int32"
            )
        return body(Beside(spec, plan, tensors, begins) if any(filled) else None)

    return begun([])


def _share(index: Sequence[Expr], sizes: Sequence[int], lines: int, fetch: Callable[[Expr], Stmt]) -> Stmt:
    """fetch(line) for those of so many lines that the chunk at an index of the loops around it has.

    The last chunks may have none. Equal shares took a division each, or lines were fetched twice: 0.98 for 1.11.
    """
    share = ceil_div(lines, prod(sizes))
    first = flat(index, sizes) * share
    return when([first < lines], sequence([fetch(first + i) for i in range(share)]))
