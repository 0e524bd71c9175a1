"""Grouped 1 x 1 convolution, channels last: vectors of output channels across the ends of groups, shuffled when stored.

    parallel task = part of the positions:
        for block of positions:
            for block of vectors:
                for tile of positions:
                    acc[position, vector, lane] = 0                                     in registers
                    for ic:
                        acc[...] += s * weight[block, ic, vector, lane]
                    result[position, channel] = acc                                     in the second cache
            y[position, shuffled channel] = activation(result + bias + residual)        by permutes of vectors

s is the ic-th input of the lane's group: a broadcast, or where a vector has channels of two groups or more a permute of
their broadcasts. So a group that ends within a vector leaves no lane empty. A last vector that is at most half full is
shared by two positions. A register tile is stored from the registers where its channels are not shuffled, or it has all
of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.depthwise_planes_plan import windows
from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    overlapped,
    stream_cycles,
    waiting_factor,
)
from convtune.schedules.grouped_pointwise_loops import BlockSums
from convtune.schedules.grouped_pointwise_plan import Plan
from convtune.schedules.one_row import reads_own_place
from convtune.schedules.pointwise_gemm import positions_of
from convtune.schedules.ranges import ranged
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    as_row,
    cleared,
    joined,
    sequence,
    spread_over,
    vector_sums,
)
from convtune.schedules.tiling import (
    FEWEST_LANES,
    LARGEST_CODE,
    LONG_ACTIVATIONS,
    ceil_div,
    power_of_two,
    spaced,
    task_parts,
)
from convtune.schedules.written import Held, written

from convtune.expression import epilogue_at
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

BLEND_FMAS = 0.5  # of two inputs: some ports blend that do not multiply
STORE_CYCLES = 6.0  # of a vector of outputs: its sums are stored, read again, permuted or not, and stored
AT_ONCE_CYCLES = 3.0  # of one whose sums are permuted or not, and stored from registers


class GroupedPointwise(Estimating[CpuTarget]):
    name = "grouped_pointwise"
    summary = "grouped 1 x 1, shuffled too, channels last: vectors across groups, shuffled in registers when stored"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget) and multiplies_rows(spec) and _lanes(spec, target) >= FEWEST_LANES

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        positions, vectors = positions_of(spec), ceil_div(spec.out_channels, _lanes(spec, target))
        return {
            "columns": tuple(size for size in (1, 2, 3, 4, 5, 6, 8, 10, 12, 14) if size <= positions),
            "vectors": tuple(size for size in (1, 2, 3, 4, 5, 6) if size <= vectors),
            "tiles": tuple(size for size in (1, 2, 4, 8, 16) if size <= positions),
            "parts": parts_of(positions, target),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = _plan(spec, target, knobs)
        sums, read = plan.columns * plan.vectors, max(len(plan.groups_of(block)) for block in plan.blocks)
        mixed = 2 if any(len(plan.groups_of([vector])) > 1 for vector in plan.all) else 0
        # LLVM has the weights of a step in registers, and spills sums where these do not suffice
        if sums + read + plan.vectors + mixed + 2 > target.tile_registers:
            return False
        if sums < min(6, positions_of(spec)) or plan.columns * sum(map(len, plan.blocks)) > LARGEST_CODE:
            return False
        return plan.fits(positions_of(spec), target.l2_bytes)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan, positions = _plan(spec, target, knobs), ceil_div(positions_of(spec), int(knobs["parts"]))
        tiles, cycles = ceil_div(positions, plan.block) * plan.tiles, 0.0
        for block in plan.blocks:
            groups = plan.groups_of(block)
            sums = plan.sums(block)
            permutes = plan.columns * (len(block) + sum(len(plan.groups_of([vector])) - 1 for vector in block)) - sums
            loads = plan.columns * len(groups) + len(block)
            ports = sums * waiting_factor(target, sums) + BLEND_FMAS * permutes
            step = max(fma_cycles(target, ports), load_cycles(target, loads))
            size = 4 * plan.depth * len(block) * plan.lanes
            cycles += tiles * overlapped(plan.depth * step + 2 * sums + TILE_CYCLES, stream_cycles(target, size, size))
        stores = positions * len(plan.all) * (AT_ONCE_CYCLES if plan.at_once or plan.in_place else STORE_CYCLES)
        return Tasks(plan.parts, cycles + stores).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, …) to (block, ic, vector, lane), padded to whole blocks."""
        plan = _plan(spec, target, knobs)
        blocks, depth, vectors, lanes = plan.weight_shape
        return (
            (
                {"op": "reshape", "shape": [spec.out_channels, depth]},
                {"op": "pad", "widths": [[0, blocks * vectors * lanes - spec.out_channels], [0, 0]]},
                {"op": "reshape", "shape": [blocks, vectors, lanes, depth]},
                {"op": "transpose", "axes": [0, 3, 1, 2]},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        return written(spec, plan.weight_shape, lambda buffers, y: Tiles(spec, plan, Held(spec, buffers), y).kernel())


class Tiles(BlockSums[Plan]):
    """The statements of a plan: `kernel` is all of them."""

    def _turns(self) -> int:
        return len(self.plan.blocks)

    def _in_result(self) -> bool:
        return not (self.plan.at_once or self.plan.in_place)

    def _starts(self, source: tuple[int, ...]) -> tuple[int, ...]:
        """Vectors of sums that lie in memory may begin at any of them."""
        return windows(source, 0, self.plan.padded - self.plan.lanes, [])

    def _tile(self, result: Any, first: Expr, at: Expr, turn: int) -> Stmt:
        from tvm import tirx

        plan, vectors = self.plan, self.plan.blocks[turn]
        lanes, size = plan.lanes, len(vectors)
        whole = tirx.Ramp(0, 1, lanes)

        def stored(acc: list[Any], c: int) -> Stmt:
            load = lambda start: tirx.BufferLoad(acc[c * size + start // lanes], [whole])  # noqa: E731
            return self._stored(first + at + c, load, plan.whole_vectors)

        def body(acc: list[Any]) -> Stmt:
            clear = cleared(acc, lanes)
            products = ranged(0, plan.depth, lambda ic: self._step(acc, first + at, turn, vectors, ic))
            if plan.in_place:
                return sequence(
                    [*clear, products, *(self._placed(acc, first + at, *each) for each in plan.kept(vectors))]
                )
            if result is None:
                return sequence([*clear, products, *(stored(acc, c) for c in range(plan.columns))])
            kept = [
                tirx.BufferStore(
                    result, tirx.BufferLoad(acc[n], [tirx.Ramp(lane, 1, width)]), [at + c, tirx.Ramp(start, 1, width)]
                )
                for c, n, lane, start, width in plan.kept(vectors)
            ]
            return sequence([*clear, products, *kept])

        return vector_sums(plan.sums(vectors), lanes, body)

    def _step(self, acc: list[Any], position: Expr, number: int, vectors: range, ic: Expr) -> Stmt:
        from tvm import tirx

        plan = self.plan
        lanes, whole = plan.lanes, tirx.Ramp(0, 1, plan.lanes)
        bind, last = Binder(f"float32x{lanes}"), len(vectors) - 1 if plan.shares(vectors) else None
        weights = [self._weights(number, ic, i, i == last, bind) for i in range(len(vectors))]
        mixed, before = plan.mixed(vectors), None
        for c in range(plan.columns):
            spread: dict[tuple[int, ...], Expr] = {}
            for group in plan.groups_of(vectors):
                where = as_row(self.spec.rank, position + c, group * plan.depth + ic)
                value = tirx.BufferLoad(self.arguments.source, where)
                spread[(group,) * lanes] = bind(spread_over(lanes, value, group in mixed))
            for i, vector in enumerate(vectors):
                value, (sums, lane) = self._spread(vector, spread, bind), plan.place(vectors, c, i)
                if i == last and lane > 0:
                    value = bind(joined(lanes, before, value, plan.half))
                elif i == last and c + 1 < plan.columns:
                    before = value
                    continue
                bind.add(acc[sums], [whole], value * weights[i])
        return sequence(bind.statements)

    def _weights(self, number: int, ic: Expr, i: int, shared: bool, bind: Binder) -> Expr:
        """Those of a vector, twice where two positions share it."""
        from tvm import tirx

        width = self.plan.half if shared else self.plan.lanes
        load = tirx.BufferLoad(self.arguments.weight, [number, ic, i, tirx.Ramp(0, 1, width)])
        return bind(tirx.Shuffle([load] * 2, list(range(self.plan.lanes))) if shared else load)

    def _spread(self, vector: int, spread: dict[tuple[int, ...], Expr], bind: Binder) -> Expr:
        """The inputs of a vector's lanes, of the broadcasts of their groups' inputs."""
        from tvm import tirx

        plan = self.plan
        wanted = plan.owners(vector)
        if wanted not in spread:
            first, *others = sorted(set(wanted))
            value = spread[(first,) * plan.lanes]
            for group in others:
                other = spread[(group,) * plan.lanes]
                if list(wanted) == sorted(wanted):  # to the end, of which the next group takes its own
                    value = bind(joined(plan.lanes, value, other, wanted.index(group)))
                else:  # a vector that two positions share
                    order = [plan.lanes + lane if owner == group else lane for lane, owner in enumerate(wanted)]
                    value = bind(tirx.Shuffle([value, other], order))
            spread[wanted] = value
        return spread[wanted]

    def _placed(self, acc: list[Any], first: Expr, column: int, number: int, lane: int, start: int, width: int) -> Stmt:
        """The outputs of a vector that are where its sums are."""
        from tvm import tirx

        def output(i: Expr) -> Stmt:
            where = as_row(self.spec.rank, first + column, start + i)
            value = tirx.BufferLoad(acc[number], [lane + i])
            return tirx.BufferStore(self.y, epilogue_at(self.arguments, value, where), where)

        return ranged(0, min(width, self.plan.channels - start), output, "VECTORIZED", "lane")


def multiplies_rows(spec: ConvSpec) -> bool:
    """Whether it is grouped and each output is of the channels of one position, channels last."""
    return spec.variant in ("grouped", "shuffled_grouped") and spec.channels_last and reads_own_place(spec)


def parts_of(positions: int, target: CpuTarget) -> tuple[int, ...]:
    """Values of a knob `parts`: into how many tasks positions may be cut; of few positions a part a thread."""
    found = {*spaced(task_parts(target, positions, halvings=5), 4)}
    return tuple(sorted({*found, target.threads} if target.threads <= positions else found))


def _lanes(spec: ConvSpec, target: CpuTarget) -> int:
    """Of a vector: as many as there are output channels at most, in powers of two."""
    return min(target.lanes, power_of_two(spec.out_channels))


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    return Plan(
        channels=spec.out_channels,
        groups=spec.groups,
        depth=spec.in_channels // spec.groups,
        lanes=_lanes(spec, target),
        columns=int(knobs["columns"]),
        vectors=int(knobs["vectors"]),
        tiles=int(knobs["tiles"]),
        parts=int(knobs["parts"]),
        shuffled=spec.variant == "shuffled_grouped",
        long=spec.activation in LONG_ACTIVATIONS,
    )


grouped_pointwise = GroupedPointwise()
