"""Stride-1 convolution by minimal filtering F(m, r) in any of its dimensions (Winograd, Cook-Toom), any rank.

    V = B^T x B  of tiles of m + r - 1 inputs a dimension       M[point] = V[point] U[point], U = G w G^T when packed
    Y = A^T M A  of tiles of m outputs                          `filtering_points` has the matrices

    parallel task = block of tiles                              order: tiles
        for tile, ic: V[point, tile, ic] = transform            in L2, one dimension after the other
        for pass: channel blocks                                M of a pass in L2
            for point, oc_outer, tile_outer:
                acc[tile_inner, oc_vector, lane] = 0            in registers
                for tap of direct dimensions, ic:
                    acc[...] += V[point, tile, tap, ic] * U[pass, point, oc_outer, tap, ic, oc_vector, lane]
                M[point, tile, oc] = acc
            for tile, oc_vector: y[...] = activation(transform of M + bias + residual)

With `order` channels V of all tiles is made first, in a parallel region of its own, and a task is a pass of a block:
each task then reads its part of U once, which counts where there are few tiles and many channels.

A tile of 1 in a dimension leaves that one direct. A dilated convolution is dilation^rank interleaved dense ones.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_estimate import estimated_cycles, expected_error
from convtune.schedules.filtering_input import InputTransform
from convtune.schedules.filtering_output import OutputTransform
from convtune.schedules.filtering_plan import TILE_KNOBS, Plan, axes_of, plan_of
from convtune.schedules.filtering_products import products
from convtune.schedules.filtering_statements import allocated, loop, sequence
from convtune.schedules.tiling import ceil_div, spaced

from convtune.accuracy import LOOSE
from convtune.expression import Arguments
from convtune.space import Estimating, Knobs, KnobValue, PackStep, all_knobs
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_ALPHA = 8
TILES = (1, 2, 3, 4, 6)
MOST_POINTS = 256
MOST_TASK_BYTES = 4  # times the second cache: V and M of a task
ROW_BLOCKS = (1, 2, 3, 4, 6, 8)


class MinimalFiltering(Estimating[CpuTarget]):
    name = "minimal_filtering"
    summary = "fewer multiplications: F(m, r) tiles in any dimensions (Winograd, Cook-Toom), transforms fused per block"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant not in ("conv", "dilated", "grouped"):
            return False
        if not spec.channels_last or (spec.groups > 1 and spec.out_channels // spec.groups < target.lanes):
            return False
        return any(len(values) > 1 for values in _tile_values(spec).values())

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        run = spec.out_channels // spec.groups
        vectors = tuple(range(1, min(4, ceil_div(run, target.lanes)) + 1))
        most = [(target.vector_registers - 1) // v - 1 for v in vectors]
        rows = {ceil_div(n * part, 4) for n in most for part in (2, 3, 4)}
        blocks = [spec.groups * ceil_div(run, v * target.lanes) for v in vectors]
        passes = {part for n in blocks for part in range(1, n + 1) if n % part == 0}
        return {
            **_tile_values(spec),
            "tile_rows": tuple(sorted(rows)),
            "oc_vectors": vectors,
            "row_blocks": ROW_BLOCKS,
            "pass_blocks": spaced(passes, 4),
            "order": ("tiles", "channels"),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        rows, vectors = int(knobs["tile_rows"]), int(knobs["oc_vectors"])
        registers = target.vector_registers
        if not registers // 3 <= rows * vectors <= registers - vectors - 1:
            return False
        if all(knobs.get(name, 1) == 1 for name in TILE_KNOBS):
            return False
        if spec.groups * ceil_div(spec.out_channels // spec.groups, vectors * target.lanes) % int(knobs["pass_blocks"]):
            return False
        plan = plan_of(spec, target, knobs)
        if plan.points > MOST_POINTS or plan.block - plan.rows >= plan.tiles:
            return False
        if expected_error(plan) > LOOSE[spec.dtype]:
            return False
        task_bytes = 4 * (prod(plan.m_shape) + (0 if plan.shared else prod(plan.v_shape)))
        return task_bytes <= MOST_TASK_BYTES * target.l2_bytes or (plan.per_pass == 1 and knobs["row_blocks"] == 1)

    def default(self, spec: ConvSpec, target: CpuTarget) -> Knobs:
        return dict(_default(self, spec, target))

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        return estimated_cycles(plan_of(spec, target, knobs), target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (pass, point, block, tap, ic, channel in block), zeros where a run ends."""
        plan = plan_of(spec, target, knobs)
        axes = plan.axes[3 - spec.rank :]
        steps: list[PackStep] = [
            {"op": "matmul", "axis": 2 + i, "matrix": [list(map(float, row)) for row in axis.filter.g]}
            for i, axis in enumerate(axes)
            if axis.filter
        ]
        sizes = [axis.alpha * axis.direct for axis in axes]  # of a dimension one of both is 1
        full, rest = plan.blocks * plan.width, [[0, 0]] * (1 + spec.rank)
        blocks = [plan.passes, plan.per_pass, plan.width, plan.depth, *sizes]
        places = range(4, 4 + spec.rank)
        points = [place for place, axis in zip(places, axes) if axis.filter]
        direct = [place for place, axis in zip(places, axes) if not axis.filter]
        steps += [
            {"op": "reshape", "shape": [plan.groups, plan.run, plan.depth, *sizes]},
            {"op": "pad", "widths": [[0, 0], [0, full - plan.run], *rest]},
            {"op": "reshape", "shape": blocks},
            {"op": "transpose", "axes": [0, *points, 1, *direct, 3, 2]},
            {"op": "reshape", "shape": list(plan.u_shape)},
        ]
        return (tuple(steps),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm import ir, te

        plan = plan_of(spec, target, knobs)
        arguments = Arguments(spec, [plan.u_shape])
        inputs = [arguments.x, arguments.weights[0], arguments.bias, arguments.residual]
        inputs = [tensor for tensor in inputs if tensor is not None]

        def body(sources: list[Any], results: list[Any]) -> Any:
            given = iter(sources)
            held = _Held(
                spec,
                [
                    None if t is None else next(given)
                    for t in (arguments.x, arguments.weights[0], arguments.bias, arguments.residual)
                ],
            )
            return _statement(spec, plan, held, results[0])

        y = te.extern([spec.out_shape], inputs, body, name="y", dtype=[spec.dtype])
        return ir.IRModule({"main": arguments.primfunc(y)})


class _Held(Arguments):
    """The arguments of a kernel as buffers, read as the tensors of an expression are."""

    def __init__(self, spec: ConvSpec, buffers: list[Any]) -> None:
        self.spec = spec
        x, self.weight, bias, residual = buffers
        self.x, self.bias, self.residual = map(_reader, (x, bias, residual))
        self.biases, self.inputs = [self.bias], {}


def _reader(buffer: Any) -> Any:
    from tvm import tirx

    return None if buffer is None else lambda *index: tirx.BufferLoad(buffer, list(index))


def _statement(spec: ConvSpec, plan: Plan, arguments: _Held, y: Any) -> Any:
    if plan.shared:
        return allocated(
            (plan.tasks, *plan.v_shape), "v", "global", lambda v: _by_channels(spec, plan, arguments, y, v)
        )
    return loop(plan.tasks, lambda block: _by_tiles(spec, plan, arguments, y, block), "PARALLEL", "block")


def _by_tiles(spec: ConvSpec, plan: Plan, arguments: _Held, y: Any, block: Any) -> Any:
    """A block of tiles with all its channels."""

    def with_v(v: Any) -> Any:
        locate = lambda point, row, element: (v, (point, row * plan.v_row + element))  # noqa: E731
        transform = InputTransform(spec, plan, arguments.read_x, locate)

        def with_m(m: Any) -> Any:
            return loop(
                plan.passes, lambda number: _pass(spec, plan, arguments, y, m, locate, block, number), name="pass"
            )

        made = loop(
            plan.block,
            lambda row: _each_channel(plan, lambda c, w: transform.tile(block * plan.block + row, row, c, w)),
        )
        return sequence([made, allocated(plan.m_shape, "m", "global", with_m)])

    return allocated(plan.v_shape, "v", "global", with_v)


def _by_channels(spec: ConvSpec, plan: Plan, arguments: _Held, y: Any, v: Any) -> Any:
    """V of all tiles, then the passes of all blocks."""

    def made(task: Any) -> Any:
        block, row = task // plan.block, task % plan.block
        transform = InputTransform(
            spec, plan, arguments.read_x, lambda point, r, element: (v, (block, point, r * plan.v_row + element))
        )
        return _each_channel(plan, lambda c, w: transform.tile(task, row, c, w))

    def task(index: Any) -> Any:
        block, number = index // plan.passes, index % plan.passes
        locate = lambda point, row, element: (v, (block, point, row * plan.v_row + element))  # noqa: E731
        return allocated(
            plan.m_shape, "m", "global", lambda m: _pass(spec, plan, arguments, y, m, locate, block, number)
        )

    return sequence(
        [
            loop(plan.tasks * plan.block, made, "PARALLEL", "tile"),
            loop(plan.tasks * plan.passes, task, "PARALLEL", "task"),
        ]
    )


def _each_channel(plan: Plan, body: Any) -> Any:
    """body(first channel, how many) for whole vectors of the input's channels, and for what is left."""
    whole, rest = divmod(plan.channels, plan.lanes)
    parts = [loop(whole, lambda i: body(i * plan.lanes, plan.lanes), name="vector")] if whole else []
    return sequence([*parts, body(whole * plan.lanes, rest)] if rest else parts)


def _pass(spec: ConvSpec, plan: Plan, arguments: _Held, y: Any, m: Any, v: Any, block: Any, number: Any) -> Any:
    transform = OutputTransform(spec, plan, arguments, y, m)
    stored = loop(plan.block, lambda row: transform.tile(block * plan.block + row, row, number), name="row")
    return sequence([products(plan, v, arguments.weight, m, number), stored])


def _tile_values(spec: ConvSpec) -> Mapping[str, tuple[int, ...]]:
    """For each dimension the sizes of a tile, 1 for a direct one."""
    found = {}
    for axis, name in zip(axes_of(spec, (1, 1, 1))[3 - spec.rank :], TILE_KNOBS[3 - spec.rank :]):
        filtered = axis.stride == 1 and axis.taps > 1
        outputs = ceil_div(axis.out, min(axis.dilation, axis.out))
        most = min(MOST_ALPHA + 1 - axis.taps, outputs + 1) if filtered else 1
        found[name] = tuple(m for m in TILES if m <= max(1, most))
    return found


@functools.lru_cache(maxsize=1 << 10)
def _default(space: MinimalFiltering, spec: ConvSpec, target: CpuTarget) -> Mapping[str, KnobValue]:
    """Of each combination of tiles the other knobs that are estimated to be the fastest, a few at a time."""
    domain = space.knobs(spec, target)
    tiles = [name for name in TILE_KNOBS if name in domain]
    stages = [("tile_rows", "oc_vectors"), ("row_blocks", "order"), ("pass_blocks",)]
    found: list[Mapping[str, KnobValue]] = []
    for sizes in itertools.product(*(domain[name] for name in tiles)):
        best: Mapping[str, KnobValue] = {
            **{name: values[0] for name, values in domain.items()},
            **dict(zip(tiles, sizes)),
        }
        for names in (*stages, *stages):
            choices = [
                {**best, **dict(zip(names, values))} for values in itertools.product(*(domain[n] for n in names))
            ]
            allowed = [knobs for knobs in choices if space.allows(spec, target, knobs)]
            best = min(allowed, key=lambda knobs: space.estimate(spec, target, knobs), default=best)
        found += [best] if space.allows(spec, target, best) else []
    return min(found or all_knobs(space, spec, target), key=lambda knobs: space.estimate(spec, target, knobs))


minimal_filtering = MinimalFiltering()
