"""Pointwise convolution of channels-last layouts as a matrix product over all positions of the batch.

    parallel task = (block of position tiles [, oc_outer]):                              order: parallel
        for [oc_outer,] tile [, oc_outer]:                                               order: outer, inner[_past]
            acc[column, oc_vector, lane] = 0                                             in registers
            for ic:
                acc[...] += x[tile * columns + column, ic] * weight[oc_outer, ic, oc_vector, lane]
            y[tile * columns + column, ...] = activation(acc + bias + residual)

Tiles run across the ends of rows and images. The last one begins so early that it ends where the positions do, and
computes what it shares with the one before again. The last block of channels has as many vectors as it needs, and
stores of the last of them what there is: so shallow reductions, whose time is that of their stores, store vectors
whatever the number of channels. An output that no cache can hold is stored past them (order: …_past), without reading
its lines first.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from convtune.schedules.channel_blocks import ChannelBlocks
from convtune.schedules.estimate import (
    EXPOSED_SHARE,
    L2_BYTES_PER_CYCLE,
    STREAMS,
    TILE_CYCLES,
    Tasks,
    moved_bytes,
    overlapped,
    stream_cycles,
    tile_step_cycles,
)
from convtune.schedules.one_row import reads_own_place
from convtune.schedules.past_caches import is_past, passed, read_first_cycles, tasks_past, with_past, without_past
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, as_row, loop, sequence, vector_sums, vectorized
from convtune.schedules.tiling import (
    LINE,
    LINE_BYTES,
    LONG_ACTIVATIONS,
    MOST_HALVINGS,
    MOST_VECTORS,
    MOST_WASTE,
    ceil_div,
    columns_collide,
    least_waste,
    most_columns,
    round_up,
)
from convtune.schedules.written import Buffers, Held, written

from convtune.expression import epilogue_at, widened
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

UNFOLLOWED_SHARE = 0.3  # of the time in which more than STREAMS positions arrive that the products do not hide


class PointwiseGemm(Estimating[CpuTarget]):
    name = "pointwise_gemm"
    summary = "a matrix product over all positions; tiles cross the ends of rows"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget) and is_product(spec)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        positions, vectors = positions_of(spec), ceil_div(spec.out_channels, target.lanes)
        most = range(1, min(MOST_VECTORS, vectors) + 1)
        columns = {c for v in most for c in _columns(positions, target, v)}
        parts = {1, *(target.threads << i for i in range(MOST_HALVINGS + 1))}
        return {
            "columns": tuple(sorted(columns)),
            "oc_vectors": tuple(most),
            "task_positions": tuple(sorted({ceil_div(positions, min(n, positions)) for n in parts})),  # in whole tiles
            "order": (
                *(("parallel",) if vectors > 1 else ()),
                *with_past(spec, target, ("outer", "inner") if vectors > 1 else ("outer",)),
            ),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = _plan(spec, target, knobs)
        if plan.columns not in _columns(plan.positions, target, plan.vectors):
            return False
        if plan.past and plan.block % LINE:  # a line is stored by one tile, or written in parts
            return False
        return plan.blocks > 1 or plan.order == "outer"

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = _plan(spec, target, knobs)
        order = plan.order
        block_bytes = plan.depth * plan.block * 4
        all_bytes = block_bytes * plan.blocks
        first = self._block_cycles(spec, target, plan, all_bytes)
        cycles = first + (plan.tile_block - 1) * self._block_cycles(
            spec, target, plan, all_bytes if order == "inner" else block_bytes
        )
        rows_bytes = plan.tile_block * plan.columns * plan.depth * 4
        # where the layer before left the input, and from there again for each block of channels, unless it stays
        moved = moved_bytes(spec)
        arriving = stream_cycles(target, rows_bytes, moved // target.threads)
        cycles += arriving * exposed_share(plan.columns)
        if order != "inner":
            again = arriving if order == "parallel" else stream_cycles(target, rows_bytes, rows_bytes)
            cycles += EXPOSED_SHARE * again * (plan.blocks - 1)
        tasks = ceil_div(plan.tiles, plan.tile_block)
        each = Tasks(tasks * plan.blocks, cycles / plan.blocks) if order == "parallel" else Tasks(tasks, cycles)
        return each.on(target) + read_first_cycles(spec, target, plan.past)

    def _block_cycles(self, spec: ConvSpec, target: CpuTarget, plan: _Plan, resident: int) -> float:
        """Of a tile of positions and all channels. resident: bytes of the weights that stay in cache meanwhile."""
        last = self._tile_cycles(spec, target, plan, plan.last_vectors, resident)
        return (plan.blocks - 1) * self._tile_cycles(spec, target, plan, plan.vectors, resident) + last

    def _tile_cycles(self, spec: ConvSpec, target: CpuTarget, plan: _Plan, vectors: int, resident: int) -> float:
        weights_bytes = plan.depth * vectors * target.vector_bytes
        sums = plan.columns * vectors
        compute = plan.depth * tile_step_cycles(target, plan.columns, vectors)
        compute += (1 + spec.residual) * sums + TILE_CYCLES
        stream = stream_cycles(target, weights_bytes, resident)
        if columns_collide(plan.depth, plan.columns):
            evicted = plan.depth * plan.columns * LINE_BYTES  # while their other elements are still to be read
            stream += evicted / L2_BYTES_PER_CYCLE / 4
        return overlapped(compute, stream)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        plan = _plan(spec, target, knobs)
        blocks, _, block = plan.weight_shape
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [spec.out_channels, plan.depth]},
            {"op": "pad", "widths": [[0, blocks * block - spec.out_channels], [0, 0]]},
            {"op": "reshape", "shape": [blocks, block, plan.depth]},
            {"op": "transpose", "axes": [0, 2, 1]},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        return written(spec, plan.weight_shape, lambda buffers, y: _Kernel(spec, plan, buffers, y).statement())


@dataclass(frozen=True)
class _Plan(ChannelBlocks):
    """Sizes: positions x depth times depth x channels, in register tiles of columns x vectors.

    past: whether outputs are stored past the caches.
    """

    positions: int
    depth: int
    channels: int
    columns: int
    vectors: int
    lanes: int
    tile_block: int
    order: str
    past: bool

    @property
    def tiles(self) -> int:
        return ceil_div(self.positions, self.columns)

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        """(block, ic, channel in block)."""
        return self.blocks, self.depth, self.block


def exposed_share(columns: int) -> float:
    """Of the time in which the inputs of tiles of so many positions arrive, what the products do not hide."""
    return UNFOLLOWED_SHARE if columns > STREAMS else EXPOSED_SHARE


def is_product(spec: ConvSpec) -> bool:
    """Whether it is one matrix product, of all positions and the channels, as they lie in memory."""
    dense = spec.variant in ("conv", "pointwise") and spec.groups == 1
    return dense and spec.channels_last and reads_own_place(spec)


def positions_of(spec: ConvSpec) -> int:
    """Outputs of all images."""
    return spec.batch * count(spec.out_size)


def _columns(positions: int, target: CpuTarget, vectors: int) -> tuple[int, ...]:
    """Tile widths worth trying: what the registers hold, less where that leaves less to compute twice, and what the
    prefetchers follow: 64 to 2 channels at 388x388 took 1.6 ms in tiles of 8 positions, and 2.7 in those of 30."""
    most = min(positions, most_columns(target, vectors))
    held = {c: round_up(positions, c) for c in range(max(1, most // 2), most + 1)}
    allowed = MOST_WASTE * min(held.values())
    followed = {c for c in (*held, min(STREAMS, most)) if c <= STREAMS and round_up(positions, c) <= allowed}
    return tuple(sorted({*least_waste(held), *followed}))


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> _Plan:
    columns, vectors, part = (int(knobs[name]) for name in ("columns", "oc_vectors", "task_positions"))
    sizes = positions_of(spec), spec.in_channels, spec.out_channels
    order = str(knobs["order"])
    return _Plan(*sizes, columns, vectors, target.lanes, ceil_div(part, columns), without_past(order), is_past(order))


class _Kernel:
    """Writes the loops over tiles, and one tile."""

    def __init__(self, spec: ConvSpec, plan: _Plan, buffers: Buffers, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, Held(spec, buffers), y

    def statement(self) -> Stmt:
        plan = self.plan
        tasks = ceil_div(plan.tiles, plan.tile_block)
        if plan.order == "parallel":
            blocks = plan.blocks
            return loop(
                tasks * blocks, lambda t: self._tiles(t // blocks, lambda at: self._one(t % blocks, at)), "PARALLEL"
            )
        body = self._by_blocks if plan.order == "outer" else lambda task: self._tiles(task, self._all)
        return tasks_past(tasks, body, plan.lanes, plan.past)

    def _by_blocks(self, task: Expr) -> Stmt:
        return self._whole_and_last(lambda block, vectors: self._tiles(task, lambda at: self._tile(block, vectors, at)))

    def _all(self, at: Expr) -> Stmt:
        return self._whole_and_last(lambda block, vectors: self._tile(block, vectors, at))

    def _whole_and_last(self, body: Any) -> Stmt:
        """body(block, its vectors) for all blocks of channels."""
        plan = self.plan
        if plan.blocks * plan.block == plan.channels:
            return loop(plan.blocks, lambda block: body(block, plan.vectors))
        last = body(plan.blocks - 1, plan.last_vectors)
        return sequence([loop(plan.blocks - 1, lambda b: body(b, plan.vectors)), last]) if plan.blocks > 1 else last

    def _one(self, block: Expr, at: Expr) -> Stmt:
        from tvm import tirx

        plan = self.plan
        whole = self._tile(block, plan.vectors, at)
        if plan.blocks * plan.block == plan.channels:
            return whole
        last = self._tile(plan.blocks - 1, plan.last_vectors, at)
        return tirx.IfThenElse(block < plan.blocks - 1, whole, last)

    def _tiles(self, task: Expr, body: Any) -> Stmt:
        """body(first position) for the tiles of a task."""
        from tvm import tirx

        plan = self.plan

        def tile(i: Expr) -> Stmt:
            number = task * plan.tile_block + i
            if plan.positions % plan.columns == 0:
                return body(number * plan.columns)
            first = tirx.Var("first", "int32")
            start = tirx.min(number * plan.columns, plan.positions - plan.columns)
            return tirx.SeqStmt([tirx.Bind(first, start), body(first)])

        def existing(i: Expr) -> Stmt:
            if plan.tiles % plan.tile_block == 0:
                return tile(i)
            return tirx.IfThenElse(task * plan.tile_block + i < plan.tiles, tile(i), None)

        return loop(plan.tile_block, existing)

    def _tile(self, block: Expr, vectors: int, at: Expr) -> Stmt:
        sums = self.plan.columns * vectors
        return vector_sums(sums, self.plan.lanes, lambda acc: self._sums(acc, block, vectors, at))

    def _sums(self, acc: list[Any], block: Expr, vectors: int, at: Expr) -> Stmt:
        from tvm import tirx

        plan = self.plan

        def clear(bind: Binder, lane: Expr) -> None:
            for total in acc:
                bind.store(total, [lane], tirx.const(0.0, "float32"))

        def step(ic: Expr) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                filters = [
                    bind(widened(tirx.BufferLoad(self.arguments.weight, [block, ic, cv * plan.lanes + lane])))
                    for cv in range(vectors)
                ]
                for column in range(plan.columns):
                    value = widened(self.arguments.x(*as_row(self.spec.rank, at + column, ic)))
                    for total, weight in zip(acc[column * vectors :], filters):
                        bind.add(total, [lane], value * weight)

            return vectorized(plan.lanes, body)

        return sequence([vectorized(plan.lanes, clear), loop(plan.depth, step), self._stores(acc, block, vectors, at)])

    def _stores(self, acc: list[Any], block: Expr, vectors: int, at: Expr) -> Stmt:
        plan = self.plan
        rest = plan.channels % plan.lanes
        ends = isinstance(block, int) and block == plan.blocks - 1 and rest > 0

        def stored(column: Expr, cv: int, source: Callable[[Expr], Expr]) -> Stmt:
            def element(lane: Expr) -> tuple[list[Expr], Expr]:
                where = as_row(self.spec.rank, at + column, block * plan.block + cv * plan.lanes + lane)
                return where, epilogue_at(self.arguments, source(lane), where)

            if plan.past:
                return passed(self.y, element, plan.lanes)
            lanes = rest if ends and cv == vectors - 1 else plan.lanes
            return vectorized(lanes, lambda bind, lane: bind.store(self.y, *element(lane)))

        if self.spec.activation not in LONG_ACTIVATIONS:
            places = itertools.product(range(plan.columns), range(vectors))
            return sequence([stored(*place, partial(_load, total)) for place, total in zip(places, acc)])

        def through(tile: Any) -> Stmt:  # a long activation is once in the code, not for each vector
            def keep(bind: Binder, lane: Expr) -> None:
                for (column, cv), total in zip(itertools.product(range(plan.columns), range(vectors)), acc):
                    bind.store(tile, [column, cv, lane], _load(total, lane))

            def row(column: Expr) -> Stmt:
                return sequence([stored(column, cv, partial(_load, tile, column, cv)) for cv in range(vectors)])

            return sequence([vectorized(plan.lanes, keep), loop(plan.columns, row)])

        return allocated((plan.columns, vectors, plan.lanes), "tile", "global", through)


def _load(buffer: Any, *index: Expr) -> Expr:
    from tvm import tirx

    return tirx.BufferLoad(buffer, list(index))


pointwise_gemm = PointwiseGemm()
