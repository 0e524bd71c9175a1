"""Pointwise convolution, channels first: lanes are positions, whatever row they are in, and nothing is transposed.

    parallel task = (n, group, part of the blocks of output channels, block of positions):
        for block of output channels:
            for tile of the block of positions:
                fetch x of the next block of positions, some channels           where it is not in the second caches
                acc[channel, vector, lane] = 0                                  in registers
                for ic:
                    s[vector, lane] = x[ic, position]                           panel: none, or first block of channels
                    fetch x of channels ahead                                   the same, where planes displace others
                    panel[tile, ic, vector, lane] = s                           panel: copied, first block of channels
                    s[vector, lane] = panel[tile, ic, vector, lane]             panel: copied, other blocks of channels
                    acc[channel, vector, :] += s[vector, :] * weight[block, ic, channel]
                y[channel, position] = activation(acc + bias + residual)

A block of some hundred positions is long enough that each plane of the output is written line after line, since lines
of planes that lie a multiple of the caches' ways apart are few at a time. Planes of the input that do so displace each
other, so that other blocks of channels read what the first one left side by side. The last tile has as many vectors as
are left and ends where the positions do: what it shares with the one before is computed twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    L3_BYTES_PER_CYCLE,
    RUN_CYCLES,
    TILE_CYCLES,
    Tasks,
    overlapped,
    stays_cached,
    step_cycles,
    stream_cycles,
    write_cycles,
)
from convtune.schedules.one_row import reads_own_place
from convtune.schedules.ranges import least, loop, named, part
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, fetched, sequence, vector_sums, when
from convtune.schedules.tiling import (
    LINE_BYTES,
    LONG_ACTIVATIONS,
    MOST_VECTORS,
    ceil_div,
    even_blocks,
    planes_collide,
    round_up,
    spaced,
)
from convtune.schedules.written import Buffers, Held, written

from convtune import variants
from convtune.expression import epilogue, widened
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_CHANNELS = 14  # of a register tile: with 2 vectors of inputs, all 32 registers but the operands
FEWEST_CHANNELS = 4  # that as many vectors of inputs as MOST_VECTORS are multiplied with
MOST_WASTE = 1.1  # times as many channels are computed as there are
LARGEST_BLOCK = 64  # vectors
# That could have been written while a thread turned to another plane: a C program wrote 54 planes in runs of 4 KiB in
# 203 us and of 256 bytes in 564, which is 2.8 times; by this it is 2.9.
RUN_BYTES = 600
LINES_AT_ONCE = 3  # which are written while others are computed
CHANNELS_AHEAD = 8  # as many lines as surely share a set of the first cache


class PointwisePlanes(Estimating[CpuTarget]):
    name = "pointwise_planes"
    summary = "pointwise, channels first: lanes are positions; blocks of them long enough for each plane"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.channels_last:
            return False
        plain = spec.variant in ("conv", "pointwise", "grouped", "shuffled_grouped")
        return plain and reads_own_place(spec) and count(spec.out_size) >= target.lanes

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        positions, run = count(spec.out_size), spec.out_channels // spec.groups
        return {
            "channels": _channels(run),
            "vectors": tuple(range(1, min(MOST_VECTORS, positions // target.lanes) + 1)),
            "block": spaced(even_blocks(ceil_div(positions, target.lanes), LARGEST_BLOCK), 5),  # vectors
            "parts": (1, target.threads) if target.threads > 1 and run > 1 else (1,),
            "panel": ("none", "copied") if run > 1 else ("none",),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = _plan(spec, target, knobs)
        if plan.parts > plan.blocks or plan.vectors > int(knobs["block"]):
            return False
        if knobs["panel"] == "copied" and (plan.blocks <= plan.parts or plan.panel_bytes > target.l2_bytes // 2):
            return False
        sums, most = plan.outputs * plan.vectors, target.tile_registers - plan.vectors - 1
        domain = self.knobs(spec, target)
        ends = plan.outputs == domain["channels"][-1] and plan.vectors == domain["vectors"][-1]
        return sums <= most and (sums >= most // 2 or ends)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = _plan(spec, target, knobs)
        blocks = ceil_div(plan.blocks, plan.parts)
        cycles = sum(
            (self._tile(spec, target, plan, vectors, False, blocks) * (blocks - 1)) * tiles
            + self._tile(spec, target, plan, vectors, True, blocks) * tiles
            for vectors, tiles in ((plan.vectors, plan.whole_tiles), (plan.last_vectors, 1))
            if vectors
        )
        tasks = spec.batch * spec.groups * plan.parts
        return Tasks(tasks * plan.position_blocks, cycles / plan.tiles * plan.tile_block).on(target)

    def _tile(self, spec: ConvSpec, target: CpuTarget, plan: _Plan, vectors: int, first: bool, blocks: int) -> float:
        """Cycles of a tile of so many vectors: of the first block of channels, or another of so many."""
        sums, whole = plan.outputs * vectors, 4 * count(spec.out_shape)
        direct = first or not plan.copied
        crossing = 1 + target.vector_bytes / LINE_BYTES if direct and 4 * plan.positions % LINE_BYTES else 1
        window = 4 * plan.depth * vectors * plan.lanes
        weights = 4 * plan.depth * plan.outputs
        stream = stream_cycles(target, weights, weights * (blocks if plan.tile_block == 1 else 1))
        if first:
            moved = 4 * (count(spec.in_shape) + count(spec.out_shape)) // target.threads
            stream += stream_cycles(target, window, moved) / 2  # fetched ahead
        elif direct and planes_collide(spec):
            stream += window / L3_BYTES_PER_CYCLE
        else:
            stream += stream_cycles(target, window, plan.panel_bytes)
        step = step_cycles(target, sums, plan.outputs + int(vectors * crossing))
        compute = plan.depth * step + 2 * sums + TILE_CYCLES
        if first and plan.copied:
            compute += plan.depth * vectors  # stores to the panel
        if first and planes_collide(spec):
            compute += plan.depth * RUN_CYCLES
        run_bytes = 4 * plan.block_positions
        writing = write_cycles(target, 4 * sums * plan.lanes, run_bytes, whole) * (1 + RUN_BYTES / run_bytes)
        return overlapped(compute, stream + writing / LINES_AT_ONCE)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (group, block, ic, channel in block), zeros where a group ends."""
        plan = _plan(spec, target, knobs)
        full = plan.blocks * plan.outputs
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [spec.groups, plan.run, plan.depth]},
            {"op": "pad", "widths": [[0, 0], [0, full - plan.run], [0, 0]]},
            {"op": "reshape", "shape": [spec.groups, plan.blocks, plan.outputs, plan.depth]},
            {"op": "transpose", "axes": [0, 1, 3, 2]},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        moved = 4 * (count(spec.in_shape) + count(spec.out_shape))
        ahead = not stays_cached(target, moved)
        shape = (spec.groups, plan.blocks, plan.depth, plan.outputs)
        return written(spec, shape, lambda buffers, y: _Kernel(spec, plan, ahead, buffers, y).statement())


@dataclass(frozen=True)
class _Plan:
    """Sizes: positions x depth times depth x run of a group, in register tiles of outputs x vectors."""

    positions: int
    depth: int
    run: int
    outputs: int
    vectors: int
    lanes: int
    block: int  # vectors
    parts: int
    copied: bool

    @property
    def blocks(self) -> int:
        """Of output channels."""
        return ceil_div(self.run, self.outputs)

    @property
    def width(self) -> int:
        """Positions of a tile."""
        return self.vectors * self.lanes

    @property
    def whole_tiles(self) -> int:
        return ceil_div(self.positions, self.lanes) // self.vectors

    @property
    def last_vectors(self) -> int:
        """Of one more tile; 0: there is none."""
        return ceil_div(self.positions, self.lanes) % self.vectors

    @property
    def tiles(self) -> int:
        return self.whole_tiles + (self.last_vectors > 0)

    @property
    def tile_block(self) -> int:
        """Tiles of a block of positions."""
        return min(self.tiles, ceil_div(self.block, self.vectors))

    @property
    def position_blocks(self) -> int:
        return ceil_div(self.tiles, self.tile_block)

    @property
    def block_positions(self) -> int:
        return self.tile_block * self.width

    @property
    def panel_bytes(self) -> int:
        """Of the inputs of a block of positions."""
        return 4 * self.depth * self.block_positions


def _channels(run: int) -> tuple[int, ...]:
    """Heights of tiles worth trying, in channels: those that leave little of the last block empty."""
    sizes = [size for size in even_blocks(run, MOST_CHANNELS) if round_up(run, size) <= MOST_WASTE * run]
    return tuple(size for size in sizes if size >= min(FEWEST_CHANNELS, sizes[-1]))


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> _Plan:
    sizes = count(spec.out_size), spec.in_channels // spec.groups, spec.out_channels // spec.groups
    outputs, vectors, block, parts = (int(knobs[name]) for name in ("channels", "vectors", "block", "parts"))
    return _Plan(*sizes, outputs, vectors, target.lanes, block, parts, knobs["panel"] == "copied")


@dataclass(frozen=True)
class _Place:
    """Where a tile is: image, group, block of channels, tile of its block of positions, first position, vectors."""

    n: Expr
    group: Expr
    block: Expr
    tile: Expr
    start: Expr
    vectors: int


class _Kernel:
    """Writes the loops over tiles, and one tile."""

    def __init__(self, spec: ConvSpec, plan: _Plan, ahead: bool, buffers: Buffers, y: Any) -> None:
        self.spec, self.plan, self.ahead, self.arguments, self.y = spec, plan, ahead, Held(spec, buffers), y

    def statement(self) -> Stmt:
        plan, spec = self.plan, self.spec

        def task(number: Expr) -> Stmt:
            positions, rest = number % plan.position_blocks, number // plan.position_blocks
            channels, rest = part(plan.blocks, plan.parts, rest % plan.parts), rest // plan.parts
            return self._task(rest // spec.groups, rest % spec.groups, channels, positions * plan.tile_block)

        tasks = spec.batch * spec.groups * plan.parts * plan.position_blocks
        return loop(0, tasks, task, "PARALLEL", "task")

    def _task(self, n: Expr, group: Expr, channels: tuple[Expr, Expr], first_tile: Expr) -> Stmt:
        plan, (low, high) = self.plan, channels
        tiles = least(plan.tile_block, plan.tiles - first_tile) if plan.tiles % plan.tile_block else plan.tile_block

        def of_block(block: Expr, panel: Any, fills: bool) -> Stmt:
            return loop(0, tiles, lambda i: self._placed(n, group, block, i, first_tile, panel, fills), name="tile")

        if not plan.copied:
            return loop(low, high, lambda block: of_block(block, None, True), name="block")

        def through(panel: Any) -> Stmt:
            others = loop(low + 1, high, lambda block: of_block(block, panel, False), name="block")
            return sequence([named(low, "first_block", lambda block: of_block(block, panel, True)), others])

        return allocated((plan.tile_block, plan.depth, plan.width), "panel", "global", through)

    def _placed(self, n: Expr, group: Expr, block: Expr, i: Expr, first_tile: Expr, panel: Any, fills: bool) -> Stmt:
        """A tile, or the last one, which may have fewer vectors."""
        plan = self.plan

        def tile(start: Expr, vectors: int) -> Stmt:
            place = _Place(n, group, block, i, start, vectors)
            sums = plan.outputs * vectors
            return vector_sums(sums, plan.lanes, lambda acc: self._sums(acc, place, panel, fills))

        number, last = first_tile + i, plan.last_vectors
        start = number * plan.width
        if plan.positions % plan.width and not last:  # the last of the whole ones is to end with the positions
            start = least(start, plan.positions - plan.width)
        whole = named(start, "start", lambda start: tile(start, plan.vectors))
        if not last:
            return whole
        return when([number < plan.whole_tiles], whole, tile(plan.positions - last * plan.lanes, last))

    def _sums(self, acc: Sequence[Any], place: _Place, panel: Any, fills: bool) -> Stmt:
        from tvm import tirx

        plan = self.plan

        def clear(lane: Expr) -> Stmt:
            return sequence([tirx.BufferStore(each, tirx.const(0.0, "float32"), [lane]) for each in acc])

        def step(ic: Expr) -> Stmt:
            def body(lane: Expr) -> Stmt:
                bind = Binder()
                inputs = []
                for v in range(place.vectors):
                    kept = [place.tile, ic, v * plan.lanes + lane]
                    value = self._input(place, ic, v, lane) if fills else tirx.BufferLoad(panel, kept)
                    inputs.append(bind(value))
                    if fills and panel is not None:
                        bind.store(panel, kept, inputs[-1])
                for i in range(plan.outputs):
                    index = [place.group, place.block, ic, i]
                    filters = widened(tirx.BufferLoad(self.arguments.weight, index))
                    for each, value in zip(acc[i * place.vectors :], inputs):
                        bind.store(each, [lane], tirx.BufferLoad(each, [lane]) + value * filters)
                return sequence(bind.statements)

            vectors = loop(0, plan.lanes, body, "VECTORIZED", "lane")
            far = fills and self.ahead and planes_collide(self.spec)
            return sequence([*self._fetches(place, ic + CHANNELS_AHEAD, place.start), vectors]) if far else vectors

        cleared = loop(0, plan.lanes, clear, "VECTORIZED", "lane")
        return sequence(
            [*self._following(place), cleared, loop(0, plan.depth, step, name="ic"), *self._stores(acc, place)]
        )

    def _input(self, place: _Place, ic: Expr, vector: int, lane: Expr) -> Expr:
        channel = place.group * self.plan.depth + ic
        return widened(
            self.arguments.x(place.n, channel, *self._position(place.start + vector * self.plan.lanes + lane))
        )

    def _following(self, place: _Place) -> list[Stmt]:
        """Fetches of the next block of positions: each block of channels has its share of the input channels."""
        plan = self.plan
        if not self.ahead or planes_collide(self.spec):
            return []
        blocks = ceil_div(plan.blocks, plan.parts)
        channels = part(plan.depth, blocks, place.block % blocks)
        start = place.start + plan.block_positions
        return [loop(*channels, lambda ic: sequence(self._fetches(place, ic, start)), name="ic_ahead")]

    def _fetches(self, place: _Place, ic: Expr, start: Expr) -> list[Stmt]:
        """Of a tile's lines; beyond x they do no harm."""
        line = max(1, LINE_BYTES // 4 // self.plan.lanes)
        at = _Place(place.n, place.group, place.block, place.tile, start, place.vectors)
        return [fetched(self._line(at, ic, v)) for v in range(0, place.vectors, line)]

    def _line(self, place: _Place, ic: Expr, vector: int) -> Expr:
        channel = place.group * self.plan.depth + ic
        return self.arguments.x(place.n, channel, *self._position(place.start + vector * self.plan.lanes))

    def _stores(self, acc: Sequence[Any], place: _Place) -> list[Stmt]:
        from tvm import tirx

        plan = self.plan

        def stored(i: Expr, read: Callable[[int, Expr], Expr]) -> Stmt:
            within = place.block * plan.outputs + i
            channel = variants.primitive(self.spec).channel(self.spec, place.group, within)

            def element(lane: Expr, v: int) -> Stmt:
                where = self._position(place.start + v * plan.lanes + lane)
                value = epilogue(self.arguments, read(v, lane), place.n, channel, where)
                return tirx.BufferStore(self.y, value, [place.n, channel, *where])

            def vector(v: int) -> Stmt:
                return loop(0, plan.lanes, lambda lane: element(lane, v), "VECTORIZED", "lane")

            exists = [within < plan.run] if plan.run % plan.outputs else []
            return when(exists, sequence([vector(v) for v in range(place.vectors)]))

        def held(i: int) -> Stmt:
            return stored(i, lambda v, lane: tirx.BufferLoad(acc[i * place.vectors + v], [lane]))

        if self.spec.activation not in LONG_ACTIVATIONS:
            return [held(i) for i in range(plan.outputs)]

        def through(tile: Any) -> Stmt:  # a long activation is once in the code, not for each channel
            def keep(lane: Expr) -> Stmt:
                places = itertools.product(range(plan.outputs), range(place.vectors))
                loads = [tirx.BufferLoad(each, [lane]) for each in acc]
                return sequence([tirx.BufferStore(tile, load, [*at, lane]) for at, load in zip(places, loads)])

            def channel(i: Expr) -> Stmt:
                return stored(i, lambda v, lane: tirx.BufferLoad(tile, [i, v, lane]))

            kept = loop(0, plan.lanes, keep, "VECTORIZED", "lane")
            return sequence([kept, loop(0, plan.outputs, channel, name="channel")])

        return [allocated((plan.outputs, place.vectors, plan.lanes), "tile", "global", through)]

    def _position(self, position: Expr) -> list[Expr]:
        """The index of a position: rows are as one, which they are in memory."""
        return [*(0 for _ in range(self.spec.rank - 1)), position]


pointwise_planes = PointwisePlanes()
