"""Depthwise convolution on a GPU, and grouped with few channels a group: a thread makes a small tile of outputs.

    block = (n, od, oh, ow, oc), thread = (oh, ow, oc):
        acc[row, column, v] = 0                                                  in registers
        for kd:
            pad[...] = x, zeros around, of the block                             staging: shared
            for ic, kh_outer, kw_outer [, column]:
                window[...] = pad, or x with zeros around                        in registers
                for kh, kw: (unrolled: a line of the kernel, or all of it)       unroll
                    acc[row, column, v] += window[row + kh, column + kw, v] * weight[kd, kh, kw, ic, oc]
        y[...] = activation(acc + bias + residual)

Channels last, neighbouring threads have neighbouring channels; the columns of a tile are adjacent and share a window of
their rows. Channels first, neighbouring threads have neighbouring columns; those of a tile lie apart by as many as
there are threads, so that loads and stores coalesce, and its rows share a window of each column. They may be adjacent
there too, which suits kernels that are long in the row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.cropping import cropped
from convtune.schedules.gpu_depthwise_plan import (
    LARGEST_BODY,
    Plan,
    blocks_of,
    channel_block,
    plan_of,
    registers_of,
    shared_bytes,
    work_of,
)
from convtune.schedules.gpu_tiling import bind_turns
from convtune.schedules.gpu_work import cycles
from convtune.schedules.tiling import ceil_div

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, epilogue, operands, read_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets.gpu import STATIC_SHARED_BYTES, WARP, GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

Dims = tuple[int, ...]

MOST_DEPTH = 4  # input channels of a group: more of them are a matrix product
LEAST_WARPS = 8  # of an SM: with fewer, too little is on its way from memory


class GpuDepthwise(Estimating[GpuTarget]):
    name = "gpu_depthwise"
    dtypes = ("float32", "float16")
    summary = "a thread makes a tile of outputs from a window in registers; for depthwise and small groups"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        few = spec.in_channels // spec.groups <= MOST_DEPTH
        return isinstance(target, GpuTarget) and spec.variant in ("depthwise", "grouped") and few

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        out, last = Geometry.of(spec).out, spec.channels_last
        plain = spec.in_channels == spec.groups == spec.out_channels
        return {
            "threads": (64, 128, 256),
            "channels": tuple(sorted({channel_block(spec, most) for most in (8, 32, 128)})) if last else (1,),
            "oh_tile": tuple(rows for rows in ((1, 2, 4) if last else (1, 2, 4, 7)) if rows <= out[1]),
            "ow_tile": tuple(columns for columns in ((1, 2, 4, 7) if last else (1, 2, 4)) if columns <= out[2]),
            "vector": tuple(v for v in (1, 2, 4) if v == 1 or (last and plain and spec.out_channels % v == 0)),
            "columns": ("adjacent",) if last else ("apart", "adjacent"),
            "staging": ("registers", "shared"),
            "unroll": ("line", "window") if spec.rank > 1 else ("line",),
        }

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        if spec.channels_last and int(knobs["channels"]) % int(knobs["vector"]):
            return False
        plan, wanted = plan_of(spec, knobs), int(knobs["threads"])
        if plan.size > 1024 or (plan.size * 2 <= wanted and wanted > 64):
            return False  # as good as with half of the threads
        if plan.adjacent and not spec.channels_last and plan.outputs[1] == 1:
            return False  # the same as apart
        if plan.shared and plan.block[2] % plan.run and plan.run % plan.block[2]:
            return False
        shared = shared_bytes(spec, plan)
        if plan.sums * count(plan.taps) > LARGEST_BODY or shared > STATIC_SHARED_BYTES:
            return False
        warps = ceil_div(plan.size, WARP)
        resident = target.resident_blocks(plan.size, registers_of(spec, plan), shared) * warps
        return resident >= min(LEAST_WARPS, ceil_div(blocks_of(spec, plan), target.sms) * warps)

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        return cycles(work_of(spec, plan_of(spec, knobs)), target)

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """Zeros where a block of channels ends; channels last where the layout has them last."""
        plan, rank = plan_of(spec, knobs), spec.rank
        missing = plan.rounded(spec)[2] - spec.out_channels
        steps: list[PackStep] = [{"op": "pad", "widths": [[0, missing], *([0, 0] for _ in range(rank + 1))]}]
        if spec.channels_last:
            steps.append({"op": "transpose", "axes": [*range(2, 2 + rank), 1, 0]})
        return ((*steps, {"op": "reshape", "shape": list(_packed(spec, plan))}),)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        plan = plan_of(spec, knobs)
        sch = Schedule(_expression(spec, plan))
        block, thread = _bind(sch, spec, plan)
        acc = sch.get_sblock("acc")
        sch.set_scope(acc, 0, "local")
        if plan.shared:
            window = sch.cache_read(acc, "pad", "local")
            sch.set_scope(sch.get_sblock("pad"), 0, "shared")
        else:
            sch.set_scope(sch.get_sblock("pad"), 0, "local")
            window = sch.get_sblock("pad")
        sch.compute_at(acc, thread, preserve_unit_loops=True)
        first = _place_window(sch, plan, window)
        if plan.shared:
            _stage(sch, spec, plan, first if spec.kernel[0] > 1 and spec.rank == 3 else block)
        for loop in sch.get_loops(sch.decompose_reduction(acc, first))[-3:]:
            sch.unroll(loop)
        locate = lambda *index: _locate(spec, plan, index)  # noqa: E731
        return cropped(sch.mod["main"], spec, locate, lambda *index: _inside(spec, plan, index))


def _packed(spec: ConvSpec, plan: Plan) -> Dims:
    channels, kernel = plan.rounded(spec)[2], cube(spec.kernel)
    return (*kernel, plan.depth, channels) if spec.channels_last else (channels, plan.depth, *kernel)


def _expression(spec: ConvSpec, plan: Plan) -> Any:
    """The stages `pad`, and `acc` and `y`: (n, d, block of h, w, c, thread of h, w, c, row, column, v)."""
    from tvm import te

    out = Geometry.of(spec).out
    geometry = Geometry.of(spec, (out[0], *plan.rounded(spec)[:2]))
    arguments = Arguments(spec, [_packed(spec, plan)])
    weight, pad = arguments.weights[0], _padded(arguments, geometry, plan)
    kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), geometry.kernel)]
    ic = te.reduce_axis((0, plan.depth), "ic")

    def read_weight(oc: Any, i: Any, taps: Any) -> Any:
        return weight(*taps, i, oc) if spec.channels_last else weight(oc, i, *taps)

    def summand(*index: Any) -> Any:
        n, oc, *position = _locate(spec, plan, index)
        term = variants.primitive(spec).term(spec, operands(geometry, pad, read_weight))
        return te.sum(term.at(n, oc, position, (ic, *kernel[3 - spec.rank :])), axis=[*kernel, ic])

    def result(*index: Any) -> Any:
        n, oc, *position = _locate(spec, plan, index)
        return epilogue(arguments, acc(*index), n, oc, position)

    shape = (spec.batch, out[0], *plan.blocks(spec), *plan.threads, *plan.outputs)
    acc = te.compute(shape, summand, name="acc")
    return arguments.primfunc(te.compute(shape, result, name="y"))


def _locate(spec: ConvSpec, plan: Plan, index: Sequence[Any]) -> tuple[Any, ...]:
    """(n, oc, *position) of an index of `acc` and `y`."""
    n, d, *rest = index
    h, w, oc = plan.place(rest[:3], rest[3:6], rest[6:])
    return (n, oc, *(d, h, w)[3 - spec.rank :])


def _inside(spec: ConvSpec, plan: Plan, index: Sequence[Any]) -> list[Any]:
    """The conditions for an index of `acc` and `y` to be in the output; only those that can fail."""
    _, oc, *position = _locate(spec, plan, index)
    high, wide, channels = plan.rounded(spec)
    sizes = zip(position[-2:], (high, wide)[-len(position) :], spec.out_size[-2:])
    found = [p < size for p, rounded, size in sizes if rounded > size]
    # in whole vectors, so that the condition is one for all of a vector
    return found + ([oc // plan.vector < spec.out_channels // plan.vector] if channels > spec.out_channels else [])


def _padded(arguments: Arguments, geometry: Geometry, plan: Plan) -> Callable[..., Any]:
    """The stage `pad`: (n, d, h, w, ic, lane), or (n, ic, d, h, w, 0) channels first; zero beyond x on all sides."""
    from tvm import te, tirx

    spec, width = arguments.spec, plan.width(arguments.spec)
    channels = ((plan.rounded(spec)[2] - 1) // plan.run + 1) * plan.depth

    def read(n: Any, ic: Any, position: Sequence[Any]) -> Any:
        value = read_padded(arguments, geometry, n, ic, position)
        if channels <= spec.in_channels:
            return value
        # in whole vectors, so that the condition is one for all of a vector
        return te.if_then_else(ic // width < spec.in_channels // width, value, tirx.const(0.0, spec.dtype))

    if spec.channels_last:
        shape = (spec.batch, *geometry.padded, channels // width, width)
        pad = te.compute(shape, lambda n, d, h, w, v, lane: read(n, v * width + lane, (d, h, w)), name="pad")
        return lambda n, ic, position: pad(n, *position, ic // width, ic % width)
    shape = (spec.batch, channels, *geometry.padded, 1)
    pad = te.compute(shape, lambda n, c, d, h, w, _: read(n, c, (d, h, w)), name="pad")
    return lambda n, ic, position: pad(n, ic, *position, 0)


def _bind(sch: Any, spec: ConvSpec, plan: Plan) -> tuple[Any, Any]:
    """Binds the loops of `y`; returns the loop of the blocks and the innermost of a block's threads."""
    n, d, *loops = sch.get_loops(sch.get_sblock("y"))
    blocks, threads, (row, column, v) = loops[:3], loops[3:6], loops[6:]
    if not spec.channels_last:  # so that those next to each other share inputs
        blocks, threads = [blocks[2], *blocks[:2]], [threads[2], *threads[:2]]
    sch.reorder(n, *([d, *blocks] if spec.channels_last else [blocks[0], d, *blocks[1:]]), *threads)
    block = sch.fuse(*([n, d, *blocks] if spec.channels_last else [n, blocks[0], d, *blocks[1:]]))
    sch.bind(block, "blockIdx.x")
    for loop, axis in zip(threads, "zyx"):
        sch.bind(loop, f"threadIdx.{axis}")
    sch.unroll(row)
    sch.unroll(column)
    if plan.vector > 1:
        sch.vectorize(v)
    return block, threads[-1]


def _place_window(sch: Any, plan: Plan, window: Any) -> Any:
    """Orders the loops of the sums, with their inputs in registers; returns the outermost of the reduction."""
    *_, row, column, v, kd, kh, kw, ic = sch.get_loops(sch.get_sblock("acc"))
    kh, kh_inner = sch.split(kh, [None, plan.taps[0]])
    kw, kw_inner = sch.split(kw, [None, plan.taps[1]])
    # columns that lie apart have a window each
    order = [column, kh_inner, kw_inner, row, v] if not plan.adjacent else [kh_inner, kw_inner, row, column, v]
    sch.reorder(kd, ic, kh, kw, *order)
    for loop in order:
        sch.unroll(loop)
    at = kw if plan.adjacent else column
    weights = sch.cache_read(sch.get_sblock("acc"), "weight", "local") if plan.vector > 1 else None
    for block, dims in ((window, 6), (weights, 5)):
        if block is None:
            continue
        sch.compute_at(block, at, preserve_unit_loops=True)
        *outer, lane = sch.get_loops(block)[-dims:]
        for loop in outer:
            sch.unroll(loop)
        sch.vectorize(lane)
    return kd


def _stage(sch: Any, spec: ConvSpec, plan: Plan, at: Any) -> None:
    """Copies the inputs of a block to shared memory, all its threads side by side."""
    pad = sch.get_sblock("pad")
    sch.compute_at(pad, at, preserve_unit_loops=True)
    *copied, lane = sch.get_loops(pad)[-6:]
    bind_turns(sch, copied, _axes(spec, plan))
    sch.vectorize(lane)


def _axes(spec: ConvSpec, plan: Plan) -> Dims:
    """Threads along z, y and x."""
    h, w, c = plan.threads
    return (h, w, c) if spec.channels_last else (c, h, w)


gpu_depthwise = GpuDepthwise()
