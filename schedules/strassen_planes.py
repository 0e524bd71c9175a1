"""Pointwise convolution, channels first, by Strassen's algorithm: seven multiplications for eight.

    parallel task = (n, part of the blocks of channels, block of tiles):          a tile: 2 x vectors of positions
        for channel k of a half of the input channels:
            for tile: V[k, vector, lane] = sums of x in halves of positions and channels   in the second cache
        for block of a half of the output channels:
            for tile:
                for step of 7:
                    acc[channel, vector, lane] = 0, or a kept value, or what it is         in registers
                    for k: acc += V or x[step, k, vector, lane] * U[block, step, k, channel]
                    keep acc, or y[a quarter] = activation(acc + bias + residual)          in the first cache

The lanes are positions, as in `pointwise_planes`; U are sums of weights, made when they are packed. The steps are those
of `strassen`, whose products are transposed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    RUN_CYCLES,
    TASK_CYCLES,
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    overlapped,
    stays_cached,
    step_cycles,
    store_cycles,
    stream_cycles,
    write_cycles,
)
from convtune.schedules.one_row import reads_own_place
from convtune.schedules.pointwise_planes import LINES_AT_ONCE, RUN_BYTES
from convtune.schedules.pointwise_planes_plan import fills_registers, tile_heights
from convtune.schedules.strassen import ADDITIONS, FEWEST_DEPTH, TILE_BLOCKS, rounding
from convtune.schedules.strassen_plan import KEPT, PRODUCTS, W_SUMS
from convtune.schedules.strassen_planes_loops import Kernel
from convtune.schedules.strassen_planes_plan import Plan, plan_of
from convtune.schedules.tiling import LINE_BYTES, MOST_VECTORS, ceil_div, planes_collide
from convtune.schedules.written import Held, written

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

FEWEST_RUN = 16  # output channels: with fewer, the sums take longer than a product


class StrassenPlanes(Estimating[CpuTarget]):
    name = "strassen_planes"
    summary = "pointwise, channels first, by Strassen's algorithm: seven products for eight; lanes are positions"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.channels_last or spec.groups > 1:
            return False
        if spec.variant not in ("conv", "pointwise") or not reads_own_place(spec):
            return False
        deep = spec.in_channels >= FEWEST_DEPTH and spec.out_channels >= FEWEST_RUN
        return deep and count(spec.out_size) >= 2 * target.lanes

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        pairs = count(spec.out_size) // (2 * target.lanes)
        return {
            "channels": tile_heights(ceil_div(spec.out_channels, 2)),
            "vectors": tuple(range(1, min(MOST_VECTORS, pairs) + 1)),
            "tile_block": tuple(n for n in TILE_BLOCKS if n <= pairs + 1),
            "parts": (1, target.threads) if target.threads > 1 else (1,),
            "left": ("sums", "copies") if spec.in_channels % 2 == 0 and not planes_collide(spec) else ("copies",),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = plan_of(spec, target, knobs)
        if plan.blocks < plan.parts or plan.tile_block > plan.tiles:
            return False
        if plan.tile_block > 1 and 4 * prod(plan.v_shape) > target.l2_bytes:
            return False
        return fills_registers(target, knobs, self.knobs(spec, target))

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        return rounding(spec, spec.in_channels)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        blocks = ceil_div(plan.blocks, plan.parts)

        def tile(vectors: int) -> float:
            return self._made(spec, target, plan, vectors) + blocks * self._block(spec, target, plan, vectors)

        whole = tile(plan.vectors)
        image = whole * plan.whole_tiles + (tile(plan.last_vectors) if plan.last_vectors else 0.0)
        tasks = spec.batch * plan.parts * plan.tile_blocks
        mine = ceil_div(tasks, target.threads)  # of the thread that has the most
        images, rest = divmod(mine, plan.tile_blocks)
        cycles = images * image + min(image, rest * plan.tile_block * whole)
        cycles += mine * (plan.depth * RUN_CYCLES * (1 + planes_collide(spec)) + TASK_CYCLES) - TASK_CYCLES
        return Tasks(min(tasks, target.threads), cycles).on(target)

    def _made(self, spec: ConvSpec, target: CpuTarget, plan: Plan, vectors: int) -> float:
        """Cycles of V of a tile of so many vectors."""
        written_bytes = plan.half * len(plan.stored) * vectors * target.vector_bytes
        crossing = 1 + target.vector_bytes / LINE_BYTES if 4 * plan.positions % LINE_BYTES else 1
        step = load_cycles(target, 4 * vectors * crossing) + fma_cycles(target, ADDITIONS * vectors)
        step += store_cycles(target, len(plan.stored) * vectors)
        moved = 4 * (count(spec.in_shape) + count(spec.out_shape))
        arriving = stream_cycles(target, 8 * plan.depth * vectors * plan.lanes, moved // target.threads) / 2
        return plan.half * step + stream_cycles(target, written_bytes, 4 * prod(plan.v_shape)) + arriving

    def _block(self, spec: ConvSpec, target: CpuTarget, plan: Plan, vectors: int) -> float:
        """Cycles of the products of a block of channels and a tile of so many vectors."""
        sums, read = plan.outputs * vectors, plan.half * vectors * target.vector_bytes
        compute = PRODUCTS * (plan.half * step_cycles(target, sums, plan.outputs + vectors) + TILE_CYCLES)
        compute += PRODUCTS * sums + sums * store_cycles(target, len(KEPT) + 4 * (1 + spec.residual))
        panel, v_bytes = 4 * PRODUCTS * plan.half * plan.outputs, 4 * prod(plan.v_shape)
        stream = stream_cycles(target, PRODUCTS * read, v_bytes + panel)
        whole = panel * ceil_div(plan.blocks, plan.parts)
        first = stream_cycles(target, panel, whole + v_bytes)
        again = stream_cycles(target, panel, panel)
        stream += (first + (plan.tile_block - 1) * again) / plan.tile_block
        run_bytes, y_bytes = 8 * plan.tile_block * plan.width, 4 * count(spec.out_shape)
        writing = write_cycles(target, 16 * sums * plan.lanes, run_bytes, y_bytes) * (1 + RUN_BYTES / run_bytes)
        return overlapped(compute, stream + writing / LINES_AT_ONCE)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, taps) to (block, step, ic of a half, channel of the block), zeros where a half ends."""
        plan = plan_of(spec, target, knobs)
        channels, odd = plan.channels[0], plan.run % 2
        steps: tuple[PackStep, ...] = (
            {"op": "reshape", "shape": [plan.run, plan.depth]},
            {"op": "pad", "widths": [[0, odd], [0, plan.depth % 2]]},
            {"op": "reshape", "shape": [2, channels, 2, plan.half]},
            {"op": "pad", "widths": [[0, 0], [0, plan.blocks * plan.outputs - channels], [0, 0], [0, 0]]},
            {"op": "reshape", "shape": [2, plan.blocks, plan.outputs, 2, plan.half]},
            {"op": "transpose", "axes": [1, 3, 0, 4, 2]},
            {"op": "reshape", "shape": [plan.blocks, 4, plan.half, plan.outputs]},
            {"op": "matmul", "axis": 1, "matrix": [list(map(float, row)) for row in W_SUMS]},
        )
        return (steps,)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        ahead = not stays_cached(target, 4 * (count(spec.in_shape) + count(spec.out_shape)))
        return written(spec, plan.u_shape, lambda b, y: Kernel(spec, plan, ahead, Held(spec, b), y).statement())


strassen_planes = StrassenPlanes()
