"""Dense convolution to few output channels, channels last: lanes are input channels, many outputs summed up at a time.

    parallel task = part of the tiles of all rows:
        for tile of outputs: columns x all output channels
            for vector of these outputs, as they lie in memory:
                acc[output, lane] = 0                                       in registers
                for kd, kh: (those whose input row exists)
                    for vector of input channels:
                        for kw:                                             zero outside
                            acc[output, :] += x[position + kw, vector] * weight[kd, kh, vector, kw, channel]
                sums[output] = sum of acc[output, :]                        log2(lanes) stages of shuffles and adds
                y[output] = activation(sums + bias + residual)

Where lanes are output channels, 2 of them fill 2 of 16 lanes. Here a vector of inputs is loaded once for all that it
is multiplied with, and a stage of the sums halves the vectors that are left: 15 adds and 30 shuffles for 16 outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import View, axes_of, view_of
from convtune.schedules.estimate import (
    EXPOSED_SHARE,
    FEWEST_SUMS,
    Tasks,
    fma_cycles,
    load_cycles,
    moved_bytes,
    stream_cycles,
    waiting_factor,
)
from convtune.schedules.ranges import least, named, part, ranged, valid_taps
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, cleared, sequence, vector_sums, when, zeros
from convtune.schedules.tiling import FEWEST_LANES, LARGEST_CODE, ceil_div, spaced, task_parts
from convtune.schedules.written import Held, written

from convtune.expression import epilogue_at
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

ROW_CYCLES = 2.0  # the condition of an input row
SHUFFLES_PER_CYCLE = 2.0  # beside the products of the next outputs
VECTOR_CYCLES = 4.0  # of outputs: addresses and the store


class InputLanes(Estimating[CpuTarget]):
    name = "input_lanes"
    summary = "few output channels, channels last: lanes are input channels, summed up for many outputs at a time"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant not in ("conv", "pointwise", "dilated"):
            return False
        few = spec.groups == 1 and spec.out_channels < target.lanes
        return few and spec.channels_last and _lanes(spec, target) >= FEWEST_LANES

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        view, lanes = view_of(spec), _lanes(spec, target)
        whole = next(n for n in range(1, lanes + 1) if n * spec.out_channels % lanes == 0)  # outputs in whole vectors
        columns = (1, 2, 4, 8, lanes, whole)
        tasks = view.batch * view.depth.out * view.rows.out * view.columns.out
        return {
            "columns": tuple(sorted({size for size in columns if size <= view.columns.out})),
            "parts": spaced(task_parts(target, tasks), 4),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = _plan(spec, target, knobs)
        code = plan.sums * plan.view.columns.taps * plan.unrolled * (2 if plan.bordered else 1)
        return plan.parts <= plan.tiles and code <= LARGEST_CODE

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = _plan(spec, target, knobs)
        view, moved = plan.view, moved_bytes(spec)
        rows = view.depth.all_valid / view.depth.out * view.rows.all_valid / view.rows.out
        cycles = 0.0
        for vector in plan.outputs:
            fmas = len(vector) * view.columns.taps
            loads = len(plan.reads(vector)) + view.columns.taps * len({channel for _, channel in vector})
            chains = len(vector) * plan.copies
            alone = fma_cycles(target, fmas * waiting_factor(target, chains))
            step = max(alone, load_cycles(target, loads))
            cycles += rows * (plan.depth * step + ROW_CYCLES)
            cycles += 2 * plan.lanes / SHUFFLES_PER_CYCLE + VECTOR_CYCLES
        read = 4 * plan.columns * view.columns.stride * spec.in_channels * view.rows.stride * view.depth.stride
        cycles += EXPOSED_SHARE * stream_cycles(target, read, moved // target.threads)
        weights = 4 * spec.in_channels * count(spec.kernel) * spec.out_channels
        cycles += stream_cycles(target, weights, weights)
        return Tasks(plan.parts, ceil_div(plan.tiles, plan.parts) * cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (kd and kh, vector of ic, kw, oc, lane)."""
        plan = _plan(spec, target, knobs)
        rows, depth, taps, channels, lanes = plan.weight_shape
        return (
            (
                {"op": "reshape", "shape": [channels, depth, lanes, rows, taps]},
                {"op": "transpose", "axes": [3, 1, 4, 0, 2]},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        return written(spec, plan.weight_shape, lambda buffers, y: Tiles(spec, plan, Held(spec, buffers), y).kernel())


@dataclass(frozen=True)
class Plan:
    """depth: vectors of input channels. columns: output positions of a tile. parts: of the tiles, a task each."""

    view: View
    depth: int
    lanes: int
    channels: int
    columns: int
    parts: int

    @property
    def sums(self) -> int:
        """Outputs of a tile."""
        return self.columns * self.channels

    @property
    def outputs(self) -> list[list[tuple[int, int]]]:
        """(column, channel) of the outputs of a tile, by vectors, as they lie in memory."""
        found = [divmod(output, self.channels) for output in range(self.sums)]
        return [found[start : start + self.lanes] for start in range(0, self.sums, self.lanes)]

    @property
    def copies(self) -> int:
        """Vectors that an output is summed up in, so that there are enough sums at a time."""
        chains = min(self.sums, self.lanes)
        return min(ceil_div(FEWEST_SUMS, chains), self.depth * self.view.columns.taps)

    @property
    def unrolled(self) -> int:
        """Vectors of input channels that are one step."""
        wanted = ceil_div(self.copies, self.view.columns.taps)
        return next(size for size in range(wanted, self.depth + 1) if self.depth % size == 0)

    @property
    def row_tiles(self) -> int:
        return ceil_div(self.view.columns.out, self.columns)

    @property
    def tiles(self) -> int:
        return self.view.batch * self.view.depth.out * self.view.rows.out * self.row_tiles

    @property
    def bordered(self) -> bool:
        """Whether a tap of some column is outside."""
        columns = self.view.columns
        return columns.all_valid < columns.out * columns.taps

    @property
    def weight_shape(self) -> tuple[int, int, int, int, int]:
        depth, rows, columns = (axis.taps for axis in self.view.axes)
        return depth * rows, self.depth, columns, self.channels, self.lanes

    def reads(self, vector: Sequence[tuple[int, int]]) -> dict[int, list[tuple[int, int]]]:
        """For each input column that these outputs read, from the tile's first: which of them, with what tap."""
        columns, found = self.view.columns, dict[int, list[tuple[int, int]]]()
        for tap in range(columns.taps):
            for output, (column, _) in enumerate(vector):
                found.setdefault(column * columns.stride + tap * columns.dilation, []).append((output, tap))
        return dict(sorted(found.items()))


class Tiles:
    """The statements of a plan: `kernel` is all of them."""

    def __init__(self, spec: ConvSpec, plan: Plan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y

    def kernel(self) -> Stmt:
        plan = self.plan

        def task(number: Expr) -> Stmt:
            return ranged(*part(plan.tiles, plan.parts, number), self._tile, name="tile")

        return ranged(0, plan.parts, task, "PARALLEL", "task")

    def _tile(self, number: Expr) -> Stmt:
        view, plan = self.plan.view, self.plan
        row, tile = number // plan.row_tiles, number % plan.row_tiles
        first = least(tile * plan.columns, view.columns.out - plan.columns)
        n, d, h = row // (view.rows.out * view.depth.out), row // view.rows.out % view.depth.out, row % view.rows.out

        def at(w: Expr) -> Stmt:
            return sequence([self._vector((n, d, h, w), index) for index in range(len(plan.outputs))])

        return named(first, "first", at)

    def _vector(self, at: tuple[Expr, ...], index: int) -> Stmt:
        """The outputs of one vector of a tile, from their inputs to y."""

        plan, (n, d, h, w) = self.plan, at
        depth, rows, _ = plan.view.axes
        vector = plan.outputs[index]

        def body(acc: list[Any]) -> Stmt:
            def row(kd: Expr, kh: Expr) -> Stmt:
                place = n, depth.first(d) + kd * depth.dilation, rows.first(h) + kh * rows.dilation
                return self._row(acc, vector, place, w, kd * rows.taps + kh)

            taps = ranged(
                *valid_taps(depth, depth.first(d)),
                lambda kd: ranged(*valid_taps(rows, rows.first(h)), lambda kh: row(kd, kh), name="kh"),
                name="kd",
            )
            bind = Binder(f"float32x{plan.lanes}")
            sums = [self._sum(acc, output, bind) for output in range(len(vector))]
            return sequence(
                [*cleared(acc, plan.lanes), taps, self._store(at, index, summed(sums, plan.lanes, bind), bind)]
            )

        return vector_sums(len(vector) * plan.copies, plan.lanes, body)

    def _sum(self, acc: list[Any], output: int, bind: Binder) -> Expr:
        from tvm import tirx

        parts = acc[output * self.plan.copies : (output + 1) * self.plan.copies]
        values = [tirx.BufferLoad(each, [tirx.Ramp(0, 1, self.plan.lanes)]) for each in parts]
        while len(values) > 1:
            values = [*(a + b for a, b in zip(values[::2], values[1::2])), *values[len(values) // 2 * 2 :]]
        return bind(values[0])

    def _row(self, acc: list[Any], vector: list[tuple[int, int]], place: tuple[Expr, ...], w: Expr, taps: Expr) -> Stmt:
        """Adds what an input row gives, by vectors of channels; with less code for tiles that are all inside."""
        plan, columns = self.plan, self.plan.view.columns
        first = columns.first(w)
        last = first + (plan.columns - 1) * columns.stride + (columns.taps - 1) * columns.dilation

        def channels(guarded: bool) -> Stmt:
            def step(block: Expr) -> Stmt:
                bind, start = Binder(f"float32x{plan.lanes}"), block * plan.unrolled
                for i in range(plan.unrolled):
                    self._step(acc, vector, (*place, first), (taps, start + i, i), bind, guarded)
                return sequence(bind.statements)

            return ranged(0, plan.depth // plan.unrolled, step, name="ic")

        if not plan.bordered:
            return channels(guarded=False)
        return when([first >= 0, last < columns.size], channels(guarded=False), channels(guarded=True))

    def _step(
        self,
        acc: list[Any],
        vector: list[tuple[int, int]],
        place: tuple[Expr, ...],
        step: tuple[Expr, Expr, int],
        bind: Binder,
        guarded: bool,
    ) -> None:
        """The products of a vector of input channels. step: the tap in depth and height, the vector, its number."""
        from tvm import tirx

        plan, (n, d, h, first), (taps, number, unrolled) = self.plan, place, step
        columns, whole = plan.view.columns, tirx.Ramp(0, 1, plan.lanes)
        zero = zeros(plan.lanes)
        for offset, uses in plan.reads(vector).items():
            channel = tirx.Ramp(number * plan.lanes, 1, plan.lanes)
            value = tirx.BufferLoad(self.arguments.source, self._index((n, d, h, first + offset), channel))
            if guarded:
                inside = tirx.all(first + offset >= 0, first + offset < columns.size)
                value = tirx.if_then_else(inside, value, zero)
            value = bind(value)
            for output, tap in uses:
                weight = tirx.BufferLoad(self.arguments.weight, [taps, number, tap, vector[output][1], whole])
                total = acc[output * plan.copies + (unrolled * columns.taps + tap) % plan.copies]
                bind.add(total, [whole], value * weight)

    def _store(self, at: tuple[Expr, ...], index: int, value: Expr, bind: Binder) -> Stmt:
        from tvm import tirx

        plan, vector = self.plan, self.plan.outputs[index]
        start, channels = index * plan.lanes, plan.channels

        def stored(copy: Any) -> Stmt:
            bind.store(copy, [tirx.Ramp(0, 1, plan.lanes)], value)

            def output(lane: Expr) -> Stmt:
                where = self._index(at, start + lane)  # outputs of all columns of the tile as channels of its first
                read = self.arguments.bias
                bias = None if read is None else lambda at: read(at % channels)
                result = epilogue_at(self.arguments, tirx.BufferLoad(copy, [lane]), where, bias)
                return tirx.BufferStore(self.y, result, where)

            return sequence([*bind.statements, ranged(0, len(vector), output, "VECTORIZED", "lane")])

        return allocated((plan.lanes,), "copy", "global", stored)

    def _index(self, at: tuple[Expr, ...], channel: Expr) -> list[Expr]:
        """Where an element of the view is; a plane that is one row of the view is one in memory too."""
        n, d, h, w = at
        depth, rows, columns = axes_of(self.spec)
        if rows.trivial and columns.trivial:
            d, h = h, 0
        elif depth.trivial and depth.size > 1:
            n, d = n // depth.size, n % depth.size
        return [n, *(d, h, w)[3 - self.spec.rank :], channel]


def summed(vectors: Sequence[Expr], lanes: int, bind: Binder) -> Expr:
    """A vector whose lane i is the sum of the i-th vector's lanes; further lanes have anything."""
    from tvm import tirx

    rows: list[Expr | None] = [*vectors, *[None] * (lanes - len(vectors))]
    half = 1
    while half < lanes:
        low = [k if not k & half else lanes + k - half for k in range(lanes)]
        high = [k + half if not k & half else lanes + k for k in range(lanes)]
        for i in range(0, lanes, 2 * half):
            if rows[i] is not None:
                pair = [rows[i], rows[i + half] if rows[i + half] is not None else rows[i]]
                rows[i] = bind(tirx.Shuffle(pair, low) + tirx.Shuffle(pair, high))
        half *= 2
    return rows[0]


def _lanes(spec: ConvSpec, target: CpuTarget) -> int:
    """Of a vector: the most that divide the input channels."""
    return min(target.lanes, spec.in_channels & -spec.in_channels)


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    lanes = _lanes(spec, target)
    columns, parts = int(knobs["columns"]), int(knobs["parts"])
    return Plan(view_of(spec), spec.in_channels // lanes, lanes, spec.out_channels, columns, parts)


input_lanes = InputLanes()
