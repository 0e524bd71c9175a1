"""Grouped 1 x 1 convolution, channels last: what is left of a group beside whole vectors shares one by input channels.

    parallel task = part of the positions:
        for block of positions:
            for group, tile of positions:
                acc[position, vector, lane] = rest[position, lane] = 0                           in registers
                for inputs: (as many as the rest fits into a vector)
                    for ic of inputs:
                        acc[...] += x[position, ic] * weight[group, ic, vector, lane]
                    rest[position, (oc, ic)] += x[position, ic] * weight[group, (oc, ic)]
                result[position, channel] = acc, and rest summed over ic                         in the second cache
            y[position, shuffled channel] = activation(result + bias + residual)                 by permutes of vectors

20 output channels a group are a vector of 16 and four more, of which a vector has four times four: those of four
inputs, which one load of 16 bytes that is repeated multiplies. So no lane is empty and no vector has channels of two
groups, whose inputs would have to be blended. The sums of as many positions are added up across lanes side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    overlapped,
    stream_cycles,
    waiting_factor,
)
from convtune.schedules.grouped_pointwise import STORE_CYCLES, multiplies_rows, parts_of
from convtune.schedules.grouped_pointwise_loops import BlockSums
from convtune.schedules.grouped_pointwise_plan import Blocks
from convtune.schedules.pointwise_gemm import positions_of
from convtune.schedules.ranges import ranged
from convtune.schedules.statements import Binder, Expr, Stmt, as_row, cleared, sequence, spread_over, vector_sums
from convtune.schedules.tiling import LARGEST_BODY, ceil_div
from convtune.schedules.written import Held, written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

LARGEST_STEP = 256  # weights of a register tile's step, whose order is a matrix of as many rows and columns
ADDED_FMAS = 3.0  # of two vectors whose lanes are added side by side: two permutes and a sum


@dataclass(frozen=True)
class Plan(Blocks):
    """A group's output channels: whole vectors, and the rest."""

    @property
    def whole(self) -> int:
        """Vectors that a group fills."""
        return self.run // self.lanes

    @property
    def rest(self) -> int:
        """Output channels of a group beside them."""
        return self.run % self.lanes

    @property
    def inputs(self) -> int:
        """Whose products with the rest fill a vector, the sums of as many positions when they are added up."""
        return self.lanes // self.rest

    @property
    def sums(self) -> int:
        """Vectors of sums of a register tile."""
        return self.columns * (self.whole + 1)

    @property
    def step(self) -> int:
        """Vectors of weights of these inputs."""
        return self.inputs * self.whole + 1

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        return self.groups, self.depth // self.inputs, self.step, self.lanes

    @property
    def order(self) -> list[list[float]]:
        """The weights of a step from those of (input, output channel): a matrix that puts each in its place."""
        full = self.whole * self.lanes
        places = [(ic, oc) for ic in range(self.inputs) for oc in range(full)]
        places += [(ic, full + oc) for oc in range(self.rest) for ic in range(self.inputs)]
        size = self.inputs * self.run
        return [[float(ic * self.run + oc == column) for column in range(size)] for ic, oc in places]

    def sums_of(self, group: int, channel: int) -> int:
        """The rests are behind all whole vectors."""
        full = self.whole * self.lanes
        if channel < full:
            return group * full + channel
        return self.groups * full + group * self.rest + channel - full


class GroupedRemainder(Estimating[CpuTarget]):
    name = "grouped_remainder"
    summary = "grouped 1 x 1, shuffled too, channels last: channels beside whole vectors share one by input channels"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or not multiplies_rows(spec):
            return False
        run, depth, lanes = spec.out_channels // spec.groups, spec.in_channels // spec.groups, target.lanes
        rest = run % lanes
        if run < lanes or rest < 2 or lanes % rest:
            return False
        inputs = lanes // rest
        return depth % inputs == 0 and inputs * run <= LARGEST_STEP and inputs <= positions_of(spec)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        positions, inputs = positions_of(spec), target.lanes // (spec.out_channels // spec.groups % target.lanes)
        return {
            "columns": tuple(size for size in range(inputs, 17, inputs) if size <= positions),
            "tiles": tuple(size for size in (1, 2, 3, 4, 6, 8) if size <= positions),
            "parts": parts_of(positions, target),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = _plan(spec, target, knobs)
        if plan.sums + plan.whole + 3 > target.tile_registers:
            return False
        return plan.columns * plan.step <= LARGEST_BODY and plan.fits(positions_of(spec), target.l2_bytes)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan, positions = _plan(spec, target, knobs), ceil_div(positions_of(spec), int(knobs["parts"]))
        tiles = ceil_div(positions, plan.block) * plan.tiles
        products = plan.columns * plan.step * waiting_factor(target, plan.sums)
        # an input that one vector is multiplied by is an operand in memory, and takes a load beside no permute
        loads = plan.columns * (plan.inputs + 1) + plan.step
        step = max(fma_cycles(target, products), load_cycles(target, loads))
        added = fma_cycles(target, ADDED_FMAS * (plan.inputs - 1) + 1) * plan.columns / plan.inputs
        compute = plan.depth // plan.inputs * step + 2 * plan.sums + added + plan.columns + TILE_CYCLES
        size = 4 * plan.depth * plan.run
        cycles = plan.groups * tiles * overlapped(compute, stream_cycles(target, size, size))
        return Tasks(plan.parts, cycles + positions * len(plan.all) * STORE_CYCLES).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, …) to (group, step, vector, lane)."""
        plan = _plan(spec, target, knobs)
        groups, steps, *_ = plan.weight_shape
        return (
            (
                {"op": "reshape", "shape": [groups, plan.run, steps, plan.inputs]},
                {"op": "transpose", "axes": [0, 2, 3, 1]},
                {"op": "reshape", "shape": [groups, steps, plan.inputs * plan.run]},
                {"op": "matmul", "axis": 2, "matrix": plan.order},
                {"op": "reshape", "shape": list(plan.weight_shape)},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = _plan(spec, target, knobs)
        return written(spec, plan.weight_shape, lambda buffers, y: Sums(spec, plan, Held(spec, buffers), y).kernel())


class Sums(BlockSums[Plan]):
    """The statements of a plan: `kernel` is all of them."""

    def _turns(self) -> int:
        return self.plan.groups

    def _tile(self, result: Any, first: Expr, at: Expr, turn: int) -> Stmt:
        """The results of a group, of a register tile."""
        from tvm import tirx

        plan, group = self.plan, turn
        whole = tirx.Ramp(0, 1, plan.lanes)

        def body(acc: list[Any]) -> Stmt:
            steps = ranged(0, plan.depth // plan.inputs, lambda step: self._step(acc, first + at, group, step))
            bind, sums = Binder(f"float32x{plan.lanes}"), [tirx.BufferLoad(each, [whole]) for each in acc]
            for c in range(plan.columns):
                for i in range(plan.whole):
                    start = plan.sums_of(group, i * plan.lanes)
                    bind.store(result, [at + c, tirx.Ramp(start, 1, plan.lanes)], sums[c * (plan.whole + 1) + i])
            rests = [bind(each) for each in sums[plan.whole :: plan.whole + 1]]
            for c in range(0, plan.columns, plan.inputs):
                self._rests(result, at + c, group, rests[c : c + plan.inputs], bind)
            return sequence([*cleared(acc, plan.lanes), steps, *bind.statements])

        return vector_sums(plan.sums, plan.lanes, body)

    def _step(self, acc: list[Any], position: Expr, group: int, step: Expr) -> Stmt:
        """All products of as many inputs as the rest shares a vector by."""
        from tvm import tirx

        plan = self.plan
        lanes, whole = plan.lanes, tirx.Ramp(0, 1, plan.lanes)
        bind = Binder(f"float32x{lanes}")

        def weights(vector: int) -> Expr:
            return bind(tirx.BufferLoad(self.arguments.weight, [group, step, vector, whole]))

        def load(c: int, ic: int, size: int) -> Expr:
            first = group * plan.depth + step * plan.inputs + ic
            channels = tirx.Ramp(first, 1, size) if size > 1 else first
            return tirx.BufferLoad(self.arguments.source, as_row(self.spec.rank, position + c, channels))

        for ic in range(plan.inputs):
            of_input = [weights(ic * plan.whole + i) for i in range(plan.whole)]
            for c in range(plan.columns):
                value = bind(spread_over(lanes, load(c, ic, 1)))
                for i, weight in enumerate(of_input):
                    bind.add(acc[c * (plan.whole + 1) + i], [whole], value * weight)
        of_rest = weights(plan.step - 1)
        for c in range(plan.columns):
            repeated = tirx.Shuffle(
                [load(c, 0, plan.inputs)] * plan.rest, [lane % plan.inputs for lane in range(lanes)]
            )
            bind.add(acc[c * (plan.whole + 1) + plan.whole], [whole], bind(repeated) * of_rest)
        return sequence(bind.statements)

    def _rests(self, result: Any, at: Expr, group: int, vectors: list[Expr], bind: Binder) -> None:
        """Stores what is left of a group: of as many positions as these vectors have sums of inputs side by side."""
        from tvm import tirx

        plan = self.plan
        lanes, half = plan.lanes, plan.inputs // 2
        while half:  # from half of a block of lanes on: two vectors of sums become one
            even, odd = (_parts(lanes, plan.inputs, half, number) for number in (0, 1))
            pairs = zip(vectors[::2], vectors[1::2])
            vectors = [bind(tirx.Shuffle([a, b], even) + tirx.Shuffle([a, b], odd)) for a, b in pairs]
            half //= 2
        order = [lane % plan.rest * plan.inputs + lane // plan.rest for lane in range(lanes)]
        by_position = bind(tirx.Shuffle([vectors[0]], order))
        start = plan.sums_of(group, plan.whole * lanes)
        for p in range(plan.inputs):
            value = tirx.Shuffle([by_position], [p * plan.rest + lane for lane in range(plan.rest)])
            bind.store(result, [at + p, tirx.Ramp(start, 1, plan.rest)], value)


def _parts(lanes: int, block: int, half: int, number: int) -> list[int]:
    """Of each block of lanes those in every other run of `half`, of two vectors side by side.

    Lanes of the second vector follow those of the first: 2 3, 18 19 of 0 1 2 3 and 16 17 18 19 are the last halves.
    """
    order = []
    for start in range(0, lanes, block):
        wanted = [lane for lane in range(start, start + block) if lane // half % 2 == number]
        order += [*wanted, *(lanes + lane for lane in wanted)]
    return order


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    return Plan(
        channels=spec.out_channels,
        groups=spec.groups,
        depth=spec.in_channels // spec.groups,
        lanes=target.lanes,
        columns=int(knobs["columns"]),
        tiles=int(knobs["tiles"]),
        parts=int(knobs["parts"]),
        shuffled=spec.variant == "shuffled_grouped",
    )


grouped_remainder = GroupedRemainder()
