"""Pointwise convolution, channels last: channels that whole vectors leave over share a vector with other positions'.

    parallel task = part of the positions:
        for block of vectors: (of channels; the last also has what is left over)
            for tile of positions:
                acc[position, vector, lane] = 0                                     in registers
                rest[positions // share, lane] = 0                                  lanes: share x left-over channels
                for ic:
                    acc[...] += x[position, ic] * weight[ic, vector, lane]
                    rest[...] += blend(x[share positions, ic]) * weight[ic, left over]
                y[position, channel] = activation(... + bias + residual)

24 channels are one vector of 16 and 8 lanes of another: by positions alone a quarter of the products is lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    EXPOSED_SHARE,
    FEWEST_SUMS,
    FMA_LATENCY,
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    moved_bytes,
    stream_cycles,
)
from convtune.schedules.pointwise_gemm import is_product, positions_of
from convtune.schedules.ranges import part, pieces, ranged
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
from convtune.schedules.tiling import FEWEST_LANES, MOST_HALVINGS, MOST_VECTORS, ceil_div, spaced
from convtune.schedules.written import Held, written

from convtune.expression import epilogue_at
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_WHOLE = 8  # vectors of channels; of more, what is left over is a small part


class PointwiseShared(Estimating[CpuTarget]):
    name = "pointwise_shared"
    summary = "pointwise, channels last: channels that are no whole vector share one with other positions'"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or not is_product(spec):
            return False
        whole, rest = divmod(spec.out_channels, target.lanes)
        return 0 < whole <= MOST_WHOLE and rest > 0 and share_of(rest, target.lanes) > 1

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        positions = positions_of(spec)
        share = share_of(spec.out_channels % target.lanes, target.lanes)
        parts = {1, *(target.threads << i for i in range(MOST_HALVINGS + 1))}
        return {
            "columns": tuple(size for size in range(share, target.tile_registers, share) if size <= positions),
            "vectors": tuple(range(1, min(MOST_VECTORS, spec.out_channels // target.lanes) + 1)),
            "parts": spaced({size for size in parts if size <= positions}, 4),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = _plan(spec, target, knobs)
        held, positions = max(map(plan.sums, plan.blocks)), positions_of(spec)
        fits = held + plan.vectors + 1 + plan.share <= target.tile_registers
        return fits and (held >= FEWEST_SUMS or plan.columns == plan.share) and plan.columns <= positions // plan.parts

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan, positions = _plan(spec, target, knobs), ceil_div(positions_of(spec), int(knobs["parts"]))
        tiles, cycles = ceil_div(positions, plan.columns), 0.0
        moved = moved_bytes(spec)
        rows = 4 * plan.columns * plan.depth
        for block in plan.blocks:
            last, sums = plan.ends(block), plan.sums(block)
            blends = plan.columns - plan.columns // plan.share if last else 0
            blended = fma_cycles(target, blends * (0.5 + plan.share / 8))  # those of four positions are a chain
            compute = max(fma_cycles(target, sums), FMA_LATENCY) + blended
            step = max(compute, load_cycles(target, plan.columns + len(block) + last))
            stores = (1 + spec.residual) * (sums + blends) + TILE_CYCLES
            size = 4 * plan.depth * len(block) * plan.lanes
            cycles += plan.depth * step + stores + stream_cycles(target, size, size)
        cycles += EXPOSED_SHARE * stream_cycles(target, rows, moved // target.threads)
        return Tasks(plan.parts, tiles * cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, …) to (ic, vector, lane)."""
        depth, vectors, lanes = _plan(spec, target, knobs).weight_shape
        return (
            (
                {"op": "reshape", "shape": [spec.out_channels, depth]},
                {"op": "pad", "widths": [[0, vectors * lanes - spec.out_channels], [0, 0]]},
                {"op": "reshape", "shape": [vectors, lanes, depth]},
                {"op": "transpose", "axes": [2, 0, 1]},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        return written(spec, plan.weight_shape, lambda buffers, y: Tiles(spec, plan, Held(spec, buffers), y).kernel())


class SharedVectors:
    """Of a plan whose register tiles are columns x `vectors` whole vectors of channels, and vectors that the left-over
    channels of `share` columns fill together."""

    channels: int
    lanes: int
    share: int
    columns: int
    vectors: int

    @property
    def whole(self) -> int:
        """Whole vectors of channels."""
        return self.channels // self.lanes

    @property
    def left(self) -> int:
        """Channels beside them."""
        return self.channels % self.lanes

    @property
    def width(self) -> int:
        """Lanes of a column in a shared vector."""
        return self.lanes // self.share

    @property
    def blocks(self) -> list[range]:
        """The whole vectors that a register tile has at a time."""
        starts = range(0, max(self.whole, 1), self.vectors)
        return [range(start, min(start + self.vectors, self.whole)) for start in starts]

    def ends(self, block: range) -> bool:
        """Whether a block has the left-over channels."""
        return self.left > 0 and block.stop == self.whole

    def sums(self, block: range, columns: int | None = None) -> int:
        """Vectors of sums of a tile of so many columns, else of a whole one."""
        columns = self.columns if columns is None else columns
        return columns * len(block) + (ceil_div(columns, self.share) if self.ends(block) else 0)


@dataclass(frozen=True)
class Plan(SharedVectors):
    """columns x vectors: positions and whole vectors of a register tile. share: positions whose left-over channels are
    one vector. parts: of the positions, a task each."""

    channels: int
    depth: int
    lanes: int
    share: int
    columns: int
    vectors: int
    parts: int

    @property
    def weight_shape(self) -> tuple[int, int, int]:
        return self.depth, self.whole + 1, self.lanes


class Tiles:
    """The statements of a plan: `kernel` is all of them."""

    def __init__(self, spec: ConvSpec, plan: Plan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y

    def kernel(self) -> Stmt:
        plan, positions = self.plan, positions_of(self.spec)

        def task(number: Expr) -> Stmt:
            mine = part(positions, plan.parts, number)

            def tiles(block: range) -> Stmt:
                return pieces(mine, plan.columns, lambda at: self._tile(at, block), "first", "tile")

            return sequence([tiles(block) for block in plan.blocks])

        return ranged(0, plan.parts, task, "PARALLEL", "task")

    def _tile(self, first: Expr, block: range) -> Stmt:
        """The outputs of a register tile."""
        plan, size, last = self.plan, len(block), self.plan.ends(block)

        def body(acc: list[Any]) -> Stmt:
            products = ranged(0, plan.depth, lambda ic: self._step(acc, first, block, ic), name="ic")
            stores = [
                self._store(acc[c * size + i], 0, first + c, vector * plan.lanes, plan.lanes)
                for c in range(plan.columns)
                for i, vector in enumerate(block)
            ]
            if last:
                rest, start = acc[plan.columns * size :], plan.whole * plan.lanes
                stores += [
                    self._store(rest[c // plan.share], c % plan.share * plan.width, first + c, start, plan.left)
                    for c in range(plan.columns)
                ]
            return sequence([*cleared(acc, plan.lanes), products, *stores])

        return vector_sums(plan.sums(block), plan.lanes, body)

    def _step(self, acc: list[Any], first: Expr, block: range, ic: Expr) -> Stmt:
        from tvm import tirx

        plan, size, last = self.plan, len(block), self.plan.ends(block)
        whole, bind = tirx.Ramp(0, 1, plan.lanes), Binder(f"float32x{plan.lanes}")

        weights = [bind(tirx.BufferLoad(self.arguments.weight, [ic, vector, whole])) for vector in block]
        if last:
            narrow = tirx.BufferLoad(self.arguments.weight, [ic, plan.whole, tirx.Ramp(0, 1, plan.width)])
            shared = bind(tirx.Shuffle([narrow] * plan.share, list(range(plan.lanes))))
        for start in range(0, plan.columns, plan.share):
            columns = range(start, min(start + plan.share, plan.columns))
            loads = [tirx.BufferLoad(self.arguments.source, as_row(self.spec.rank, first + c, ic)) for c in columns]
            values = [bind(spread_over(plan.lanes, load, blended=last)) for load in loads]
            for c, value in zip(columns, values):
                for i, weight in enumerate(weights):
                    bind.add(acc[c * size + i], [whole], value * weight)
            if last:
                value = blended(values, plan.lanes, plan.width, bind)
                bind.add(acc[plan.columns * size + start // plan.share], [whole], value * shared)
        return sequence(bind.statements)

    def _store(self, acc: Any, lane: int, position: Expr, channel: int, size: int) -> Stmt:
        """The outputs of so many channels of a position, of the sums from that lane on."""
        from tvm import tirx

        def output(i: Expr) -> Stmt:
            where = as_row(self.spec.rank, position, channel + i)
            return tirx.BufferStore(self.y, epilogue_at(self.arguments, tirx.BufferLoad(acc, [lane + i]), where), where)

        return ranged(0, size, output, "VECTORIZED", "lane")


def blended(values: list[Expr], lanes: int, width: int, bind: Binder) -> Expr:
    """Each position's input in its `width` lanes of a shared vector. values: in all lanes."""
    joint = values[0]
    for owner, value in enumerate(values[1:], 1):  # each in all lanes to the end, of which the next takes its own
        joint = bind(joined(lanes, joint, value, owner * width))
    return joint


def share_of(rest: int, lanes: int) -> int:
    """Of how many positions so many channels share a vector, each in lanes enough to be worth a permute."""
    share = 1
    while 2 * share * max(rest, FEWEST_LANES) <= lanes:
        share *= 2
    return share


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    columns, vectors, parts = (int(knobs[name]) for name in ("columns", "vectors", "parts"))
    share = share_of(spec.out_channels % target.lanes, target.lanes)
    return Plan(spec.out_channels, spec.in_channels, target.lanes, share, columns, vectors, parts)


pointwise_shared = PointwiseShared()
