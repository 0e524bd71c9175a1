"""A product across channels and two 1-D filters, channels last: rows of products roll through a ring in cache.

    parallel task = (n, band of output rows, chunk of channels):
        for each group of input rows that the band reads:
            for channel block of the chunk, tile of positions:                tiles cross the ends of a group's rows
                acc[column, oc_vector, lane] = 0                              in registers
                for ic:
                    acc[...] += x[row, column, ic] * weight0[block, ic, oc_vector, lane]
                ring[vector, row % slots, column, lane] = activation(acc + bias)
            for each output row whose inputs that completes, and each vector of the chunk:
                between[column, lane] = activation(sum over kh of ring[...] * weight1[kh] + bias)
                y[row, column, vector] = activation(sum over kw of between[...] * weight2[kw] + bias + residual)

The ring has about as many rows as the filter down the columns spans, and stays in cache; between has one row of one
vector. A group is one row, or a few where tiles would compute much of a single row twice.
Only the rows at the borders of bands are computed twice, and none where the tasks are chunks of channels alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    TILE_CYCLES,
    Tasks,
    moved_bytes,
    overlapped,
    stream_cycles,
    tile_step_cycles,
    write_cycles,
)
from convtune.schedules.pointwise_gemm import exposed_share
from convtune.schedules.rolling_loops import HeldChain, Rows
from convtune.schedules.rolling_plan import Plan, group_of, plan_of
from convtune.schedules.tiling import MOST_VECTORS, ceil_div, least_waste, most_columns

from convtune.expression import Arguments
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

# Sums that only just cover the latency of a multiply-add wait whenever one is late: with AVX2, kernels of tiles of 4
# columns x 2 vectors ran at 79 % of the FMA peak, of 6 x 2 at 85 to 92 %.
WAITING = 1.0


class RollingRows(Estimating[CpuTarget]):
    name = "rolling_rows"
    summary = "flattened, channels last: rows of products roll through a ring in cache, where the 1-D filters read them"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget) and spec.variant == "flattened" and spec.rank == 2 and spec.channels_last

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        vectors = ceil_div(spec.out_channels, target.lanes)
        most = range(1, min(MOST_VECTORS, vectors) + 1)
        columns = {c for v in most for c in _columns(spec, target, v)}
        parts = [1 << i for i in range(7)]
        return {
            "columns": tuple(sorted(columns)),
            "oc_vectors": tuple(most),
            "chunks": tuple(n for n in parts if n <= min(vectors, 16)),
            "bands": tuple(n for n in parts if n <= min(spec.out_size[0], 8 * target.threads)),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        plan = plan_of(spec, target, knobs)
        return plan.tile in _columns(spec, target, plan.vectors) and plan.blocks % plan.chunks == 0

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        plan = plan_of(spec, target, knobs)
        rows, columns = plan.rows, plan.columns
        made = ceil_div(rows.out, plan.bands)
        filled = min(rows.size, (made - 1) * rows.stride + rows.span)
        vectors = plan.chunk_blocks * plan.vectors
        cycles = filled / plan.group * plan.chunk_blocks * self._group_cycles(target, plan)
        cycles += made * vectors * self._filter_cycles(target, plan)
        rows_bytes = filled * columns.size * plan.depth * 4
        moved = moved_bytes(spec)
        arriving = stream_cycles(target, rows_bytes, moved // target.threads)
        cycles += arriving * exposed_share(plan.tile)
        written = made * columns.out * plan.chunk_blocks * plan.block * 4
        cycles += 0.3 * write_cycles(target, written, plan.chunk_blocks * plan.block * 4, 4 * count(spec.out_shape))
        return Tasks(plan.batch * plan.bands * plan.chunks, cycles).on(target)

    def _group_cycles(self, target: CpuTarget, plan: Plan) -> float:
        """Of the products of a group of rows and a block of channels."""
        weights = plan.depth * plan.block * 4
        sums = plan.tile * plan.vectors
        compute = plan.depth * tile_step_cycles(target, plan.tile, plan.vectors) * (1 + WAITING / sums)
        compute += sums + TILE_CYCLES
        resident = weights * plan.chunk_blocks + plan.ring_bytes
        first = overlapped(compute, stream_cycles(target, weights, resident))
        rest = overlapped(compute, stream_cycles(target, weights, weights))
        return first + (ceil_div(plan.group * plan.columns.size, plan.tile) - 1) * rest

    def _filter_cycles(self, target: CpuTarget, plan: Plan) -> float:
        """Of both filters of a row and a vector of channels."""
        rows, columns = plan.rows, plan.columns
        loads = rows.taps * columns.read * target.vector_bytes
        down = overlapped(columns.read * max(1.0, rows.taps / 2), stream_cycles(target, loads, plan.ring_bytes))
        return down + columns.out * max(1.0, columns.taps / 2)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """PyTorch's (oc, ic, 1, 1) to (block, ic, channel in block), and (oc, 1, taps) to (tap, oc)."""
        plan = plan_of(spec, target, knobs)
        blocks, depth, block = plan.weight_shapes[0]
        missing = [0, blocks * block - spec.out_channels]
        across: list[PackStep] = [
            {"op": "reshape", "shape": [spec.out_channels, depth]},
            {"op": "pad", "widths": [missing, [0, 0]]},
            {"op": "reshape", "shape": [blocks, block, depth]},
            {"op": "transpose", "axes": [0, 2, 1]},
        ]
        filters = [
            (
                {"op": "reshape", "shape": [spec.out_channels, taps]},
                {"op": "pad", "widths": [missing, [0, 0]]},
                {"op": "transpose", "axes": [1, 0]},
            )
            for taps in (plan.rows.taps, plan.columns.taps)
        ]
        return (tuple(across), *filters)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm import ir, te

        plan = plan_of(spec, target, knobs)
        arguments = Arguments(spec, plan.weight_shapes)
        tensors = [arguments.x, *arguments.weights, *arguments.biases, arguments.residual]

        def statement(sources: Sequence[Any], results: Sequence[Any]) -> Any:
            return Rows(plan, HeldChain(spec, arguments, sources), results[0]).kernel()

        given = [tensor for tensor in tensors if tensor is not None]
        y = te.extern([spec.out_shape], given, statement, name="y", dtype=[spec.dtype])
        return ir.IRModule({"main": arguments.primfunc(y)})


def _columns(spec: ConvSpec, target: CpuTarget, vectors: int) -> tuple[int, ...]:
    """Tile widths worth trying: what the registers hold, less where that leaves less to compute twice."""
    rows, width = spec.in_size
    most = min(width, most_columns(target, vectors))
    return tuple(least_waste({c: group_of(width, rows, c)[1] for c in range(max(1, most // 2), most + 1)}))


rolling_rows = RollingRows()
