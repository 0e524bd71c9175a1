"""Transposed convolution on a GPU by sub-pixel phases: outputs `stride` apart are a dense convolution, a GEMM each.

    block = (n, group, ud, uh, uw, oc, phases of d, h and w), thread = (uh, uw, phase of w, oc):
        acc[phase, row, column, v] = 0                                           in registers
        for jd, jh_outer, jw_outer, ic_outer:
            tile[...] = x, zeros around; filters[...] = weight                   in shared memory
            for ic: for jh, jw: (unrolled)
                if the phase has the tap:
                    acc[...] += tile[uh - jh, uw - jw, ic] * filters[ic, jh, jw, phase, oc]
        y[u * stride + phase, ...] = activation(acc + bias + residual)

A block computes one phase (phases: apart), or those of a row together, which share its inputs and store side by side.
Nothing is multiplied by an inserted zero, nor by a tap that the kernel lacks: phases differ in their number of taps
where the stride does not divide the kernel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.cropping import cropped
from convtune.schedules.gpu_phases_plan import (
    MOST_THREADS,
    Plan,
    distance,
    geometry_of,
    input_width,
    phase_size,
    plan_of,
    registers_of,
    shared_bytes,
    work_of,
)
from convtune.schedules.gpu_tiling import WIDE, bind_turns, up_to
from convtune.schedules.gpu_work import cycles
from convtune.schedules.transposed_phases import Phases, phases_of

from convtune.expression import Arguments, cube, epilogue, read_padded, widened
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets.gpu import STATIC_SHARED_BYTES, WARP, GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

Dims = tuple[int, ...]

MOST_SUMS = 64  # of a thread; with twice as many nvcc spills some


class GpuPhases(Estimating[GpuTarget]):
    name = "gpu_phases"
    dtypes = ("float32", "float16")
    summary = "one implicit GEMM per residue of the stride, tiles in shared memory; for transposed"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, GpuTarget) and spec.variant == "transposed"

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        run, depth = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        channels = up_to((1, 2, 4, 8, 16, 32, 64, 128), run)[-3:]
        columns = [c for c in (4, 8) if c <= channels[-1]] or [channels[-1]]
        return {
            "positions": up_to((16, 32, 64, 128), count(phase_size(spec)[1:])),
            "channels": tuple(block for block in channels if block >= columns[0]),
            "thread_tile": tuple(f"{rows}x{c}" for rows in (1, 2, 4, 8) for c in columns),
            "chunk": up_to((4, 8, 16), depth),
            "phases": ("apart", "together") if phases_of(spec)[2].stride > 1 else ("apart",),
        }

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        columns = int(str(knobs["thread_tile"]).split("x")[1])
        if columns > int(knobs["channels"]):
            return False
        plan, domain = plan_of(spec, knobs), self.knobs(spec, target)
        most = int(domain["positions"][-1]) * int(domain["channels"][-1]) // columns
        if not min(WARP, most) <= plan.size <= MOST_THREADS or plan.sums > MOST_SUMS:
            return False
        shared = shared_bytes(spec, plan)
        return shared <= STATIC_SHARED_BYTES and target.resident_blocks(plan.size, registers_of(plan), shared) > 0

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        return cycles(work_of(spec, plan_of(spec, knobs)), target)

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """(ic, oc in a group, taps) to `_packed`, zeros for the taps and channels that there are not."""
        plan, phases, rank = plan_of(spec, knobs), phases_of(spec)[3 - spec.rank :], spec.rank
        depth, run = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        blocks, block = plan.blocks(spec)[3], plan.block[3]
        missing = [[0, phase.taps * phase.step - phase.kernel] for phase in phases]
        taps = [size for phase in phases for size in (phase.taps, phase.step)]
        j, first = [4 + 2 * axis for axis in range(rank)], [5 + 2 * axis for axis in range(rank)]
        channels = [[0, plan.depth(spec) - depth], [0, blocks * block - run]]
        return (
            (
                {"op": "reshape", "shape": [spec.groups, depth, run, *spec.kernel]},
                {"op": "pad", "widths": [[0, 0], *channels, *missing]},
                {"op": "reshape", "shape": [spec.groups, plan.depth(spec), blocks, block, *taps]},
                {"op": "transpose", "axes": [0, 2, *first[:-1], *j[:-2], 1, *j[-2:], first[-1], 3]},
                {"op": "reshape", "shape": list(_packed(spec, plan))},
            ),
        )

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        plan = plan_of(spec, knobs)
        sch = Schedule(_expression(spec, plan))
        thread = _bind(sch, spec, plan)
        acc = sch.get_sblock("acc")
        sch.set_scope(acc, 0, "local")
        sch.compute_at(acc, thread, preserve_unit_loops=True)
        reduction = _order_sums(sch, plan)
        for name, dims in (("tile", 4), ("filters", 6)):
            _stage(sch, _axes(spec, plan), sch.get_sblock(name), reduction[3], dims)
        for loop in sch.get_loops(sch.decompose_reduction(acc, reduction[0]))[-4:]:
            sch.unroll(loop)
        main = _skip_missing_taps(sch, spec, plan)
        locate = lambda *index: _locate(spec, plan, index)  # noqa: E731
        return cropped(main, spec, locate, lambda *index: _inside(spec, plan, index))


def _packed(spec: ConvSpec, plan: Plan) -> Dims:
    """(group, block, first taps of d and h, jd, ic, jh, jw, first tap of w, oc in block)."""
    d, h, w = phases_of(spec)
    taps = (d.step, h.step, d.taps, plan.depth(spec), h.taps, w.taps, w.step)
    return (spec.groups, plan.blocks(spec)[3], *taps, plan.block[3])


def _expression(spec: ConvSpec, plan: Plan) -> Any:
    """The stages `tile` and `filters`, and `acc` and `y`, whose index `_locate` explains."""
    from tvm import te

    arguments, phases = Arguments(spec, [_packed(spec, plan)]), phases_of(spec)
    tile, filters = _tile(arguments, plan), _filters(arguments, plan)
    extents = [phases[0].taps, *(p.taps // n for p, n in zip(phases[1:], plan.taps)), plan.depth(spec) // plan.chunk]
    outer = [te.reduce_axis((0, extent), name) for name, extent in zip(("jd", "jho", "jwo", "ico"), extents)]
    inner = [te.reduce_axis((0, extent), name) for name, extent in zip(("ic", "jh", "jw"), (plan.chunk, *plan.taps))]
    across, low = plan.threads[1], plan.shifts(spec)[0]

    def summand(*index: Any) -> Any:
        n, g, ud, ad, ah, hb, wb, ab, cb, ht, wt, at, ct, ar, hr, wr, cr = index
        ic, *taps = inner
        reach = [(n - 1 - j) * distance(phase) for n, j, phase in zip(plan.taps, taps, phases[1:])]
        phase = at * plan.outputs[2] + ar
        shift = _shift(phases[2], ab * plan.block[2] + phase) - low if plan.block[2] > 1 else 0
        row, column = ht * plan.outputs[0] + hr + reach[0], wr * across + wt + reach[1] + shift
        x = tile((n, g, ud, ad, ah, hb, wb, ab, *outer), row, column, ic)
        weight = filters(g, cb, ad, ah, ab, *outer, ic, *taps, phase, ct * plan.outputs[3] + cr)
        return te.sum(widened(x) * widened(weight), axis=[*outer, *inner])

    def result(*index: Any) -> Any:
        n, oc, *position = _locate(spec, plan, index)
        return epilogue(arguments, acc(*index), n, oc, position)

    (hb, wb, ab, cb), (rows, columns, own, channels) = plan.blocks(spec), plan.outputs
    blocks = (spec.batch, spec.groups, phase_size(spec)[0], phases[0].stride, phases[1].stride, hb, wb, ab, cb)
    shape = (*blocks, *plan.threads, own, rows, columns, channels)
    acc = te.compute(shape, summand, name="acc")
    return arguments.primfunc(te.compute(shape, result, name="y"))


def _place(spec: ConvSpec, plan: Plan, index: Sequence[Any]) -> tuple[Any, ...]:
    """ud, uh, uw, the phases, and the channel in its group, of an index of `acc` and `y`."""
    _, _, ud, ad, ah, hb, wb, ab, cb, ht, wt, at, ct, ar, hr, wr, cr = index
    (down, across, phases, lanes), (rows, columns, own, channels) = plan.threads, plan.outputs
    uh, uw = (hb * down + ht) * rows + hr, (wb * columns + wr) * across + wt
    return ud, uh, uw, ad, ah, (ab * phases + at) * own + ar, (cb * lanes + ct) * channels + cr


def _locate(spec: ConvSpec, plan: Plan, index: Sequence[Any]) -> tuple[Any, ...]:
    """(n, oc, *position) of an index of `acc` and `y`."""
    *place, within = _place(spec, plan, index)
    position = [u * phase.stride + a for u, a, phase in zip(place[:3], place[3:], phases_of(spec))]
    return (index[0], index[1] * (spec.out_channels // spec.groups) + within, *position[3 - spec.rank :])


def _inside(spec: ConvSpec, plan: Plan, index: Sequence[Any]) -> list[Any]:
    """The conditions for an index of `acc` and `y` to be in the output; only those that can fail."""
    *place, within = _place(spec, plan, index)
    phases, run, width = phases_of(spec), spec.out_channels // spec.groups, _store_width(spec, plan)
    found = [within // width < run // width] if plan.blocks(spec)[3] * plan.block[3] > run else []
    rounded = geometry_of(spec, plan).out
    for u, a, size, most, phase in zip(place[:3], place[3:], cube(spec.out_size), rounded, phases):
        if size % phase.stride:
            found.append(u * phase.stride + a < size)
        elif most * phase.stride > size:  # one condition for all phases of a thread
            found.append(u < size // phase.stride)
    return found


def _store_width(spec: ConvSpec, plan: Plan) -> int:
    """Channels that are stored at once, of which a group has a whole number."""
    return gcd(gcd(plan.outputs[3], spec.out_channels // spec.groups), WIDE) if spec.channels_last else 1


def _tile(arguments: Arguments, plan: Plan) -> Callable[..., Any]:
    """The stage `tile`: (*block, *taps, chunk, row, column, ic, lane), or (..., ic, row, column, 0) channels first.

    It holds the inputs of the block's first to last output, for taps that come last to first, zero outside of x.
    """
    from tvm import te, tirx

    spec, phases = arguments.spec, phases_of(arguments.spec)
    geometry, depth, width = geometry_of(spec, plan), spec.in_channels // spec.groups, input_width(spec, plan)
    low = plan.shifts(spec)[0]

    def read(block: Sequence[Any], row: Any, column: Any, i: Any) -> Any:
        n, g, ud, ad, ah, hb, wb, ab, jd, jho, jwo, ico = block
        shifts = [_shift(phase, a) for phase, a in zip(phases, (ad, ah, ab))]
        shifts[2] = low if plan.block[2] > 1 else shifts[2]
        last = [jd, *(j * n + n - 1 for j, n in zip((jho, jwo), plan.taps))]
        place = (ud, hb * plan.block[0] + row, wb * plan.block[1] + column)
        position = [
            p + shift - j * distance(phase) + before
            for p, shift, j, phase, before in zip(place, shifts, last, phases, geometry.before)
        ]
        ic = ico * plan.chunk + i
        value = read_padded(arguments, geometry, n, g * depth + ic, position)
        inside = ic // width < depth // width  # in whole vectors, so that it is one condition for all of a vector
        return te.if_then_else(inside, value, tirx.const(0.0, spec.dtype)) if depth % plan.chunk else value

    strides = [phase.stride for phase in phases]
    hb, wb, ab, _ = plan.blocks(spec)
    blocks = (spec.batch, spec.groups, phase_size(spec)[0], *strides[:2], hb, wb, ab)
    chunks = [phases[0].taps, *(p.taps // n for p, n in zip(phases[1:], plan.taps)), plan.depth(spec) // plan.chunk]
    rows, columns = plan.inputs(spec)
    if spec.channels_last:
        shape = (*blocks, *chunks, rows, columns, plan.chunk // width, width)
        tile = te.compute(shape, lambda *i: read(i[:12], i[12], i[13], i[14] * width + i[15]), name="tile")
        return lambda block, row, column, ic: tile(*block, row, column, ic // width, ic % width)
    shape = (*blocks, *chunks, plan.chunk, rows, columns, 1)
    tile = te.compute(shape, lambda *i: read(i[:12], i[13], i[14], i[12]), name="tile")
    return lambda block, row, column, ic: tile(*block, ic, row, column, 0)


def _first(phase: Phases, a: Any) -> Any:
    """The first tap of a phase, if it has any.

    Not `%` but that of C, equal here: TVM 0.27's FlattenBuffer takes (x % 4 // 2 + 1) % 2 and (x % 2 + 1) % 2 of one
    index for parts of x + 2, which is right for the first only.
    """
    from tvm import tirx

    if phase.step == 1:
        return 0
    inverse = pow(phase.dilation // phase.gcd, -1, phase.step)
    return tirx.truncmod((a + phase.before) // phase.gcd * inverse, phase.step)


def _shift(phase: Phases, a: Any) -> Any:
    """How far before its first input an output of a phase is; in a kernel's index, for the reason of `_first`."""
    return (a + phase.before - _first(phase, a) * phase.dilation) // phase.stride


def _filters(arguments: Arguments, plan: Plan) -> Any:
    """The stage `filters`: (group, block, ad, ah, block of aw, *taps, chunk, ic, jh, jw, aw, oc of the block, lane)."""
    from tvm import te

    spec, phases, weight = arguments.spec, phases_of(arguments.spec), arguments.weights[0]
    chunks = [phases[0].taps, *(p.taps // n for p, n in zip(phases[1:], plan.taps)), plan.depth(spec) // plan.chunk]
    _, _, aw_blocks, blocks = plan.blocks(spec)
    strides = (phases[0].stride, phases[1].stride, aw_blocks)
    width = gcd(plan.block[3], WIDE)
    inner = (plan.chunk, *plan.taps, plan.block[2], plan.block[3] // width, width)

    def at(*index: Any) -> Any:
        g, cb, ad, ah, ab, jd, jho, jwo, ico, ic, jh, jw, aw, vector, lane = index
        firsts = [_first(phase, a) for phase, a in zip(phases, (ad, ah, ab * plan.block[2] + aw))]
        taps = (jho * plan.taps[0] + jh, jwo * plan.taps[1] + jw)
        return weight(g, cb, *firsts[:2], jd, ico * plan.chunk + ic, *taps, firsts[2], vector * width + lane)

    filters = te.compute((spec.groups, blocks, *strides, *chunks, *inner), at, name="filters")
    return lambda *i: filters(*i[:-1], i[-1] // width, i[-1] % width)


def _axes(spec: ConvSpec, plan: Plan) -> Dims:
    """Threads along y and x, of which the latter store side by side."""
    down, across, phases, lanes = plan.threads
    return (down * across, phases * lanes) if spec.channels_last else (lanes * down, across * phases)


def _bind(sch: Any, spec: ConvSpec, plan: Plan) -> Any:
    """Binds the loops of `y`; returns the innermost of a block's threads."""
    n, g, ud, ad, ah, hb, wb, ab, cb, *rest = sch.get_loops(sch.get_sblock("y"))
    (ht, wt, at, ct), (ar, hr, wr, cr) = rest[:4], rest[4:]
    blocks = [n, g, cb, ud, hb, wb, ad, ah, ab]
    y, x, store = (
        ([ht, wt], [at, ct], [hr, wr, ar, cr]) if spec.channels_last else ([ct, ht], [wt, at], [cr, hr, wr, ar])
    )
    sch.reorder(*blocks, *y, *x, *store)
    sch.bind(sch.fuse(*blocks), "blockIdx.x")
    sch.bind(sch.fuse(*y), "threadIdx.y")
    thread = sch.fuse(*x)
    sch.bind(thread, "threadIdx.x")
    width, own = _store_width(spec, plan), plan.outputs[2]
    # phases of a thread are side by side in a row of the output
    if not spec.channels_last and own in (2, 4) and spec.out_size[-1] % own == 0:
        width = own
    *store, last = store
    last, vector = sch.split(last, [None, width])
    for loop in (*store, last):
        sch.unroll(loop)
    if width > 1:
        sch.vectorize(vector)
    return thread


def _order_sums(sch: Any, plan: Plan) -> list[Any]:
    """Orders the loops of the sums; returns those of the reduction: jd, jh, jw, ic in chunks, then ic, jh, jw."""
    *_, ar, hr, wr, cr, jd, jho, jwo, ico, ic, jh, jw = sch.get_loops(sch.get_sblock("acc"))
    reduction = [jd, jho, jwo, ico, ic, jh, jw]
    sch.reorder(*reduction, ar, hr, wr, cr)
    for loop in (ar, hr, wr, cr, *(jw, jh)[: plan.unrolled]):
        sch.unroll(loop)
    return reduction


def _stage(sch: Any, threads: Dims, block: Any, at: Any, dims: int) -> None:
    """Computes the last dimensions of a stage in shared memory, all threads of a block (y, x) side by side."""
    sch.set_scope(block, 0, "shared")
    sch.compute_at(block, at, preserve_unit_loops=True)
    *copied, lane = sch.get_loops(block)[-dims:]
    bind_turns(sch, copied, threads)
    sch.vectorize(lane)


def _skip_missing_taps(sch: Any, spec: ConvSpec, plan: Plan) -> Any:
    """The schedule's function with the sums under the conditions for a phase to have the tap.

    TVM 0.27 has no primitive for this, and puts no barrier under a condition: what is copied is copied all the same.
    """
    from tvm import tirx
    from tvm_ffi import structural_map

    loops = [sch.get(loop) for loop in sch.get_loops(sch.get_sblock("acc_update"))[-11:]]
    jd, jho, jwo, _ico, _ic, jh, jw, _ar, row, *_ = (loop.loop_var for loop in loops)
    index = loops[-1].body.iter_values
    places = (index[3], index[4], index[7] * plan.block[2] + index[11] * plan.outputs[2] + index[13])
    taps = (jd, jho * plan.taps[0] + jh, jwo * plan.taps[1] + jw)
    conditions = [c for phase, a, j in zip(phases_of(spec), places, taps) for c in phase.conditions(a, j)]

    def guarded(loop: Any) -> Any:
        return tirx.IfThenElse(tirx.all(*conditions), loop, None) if loop.loop_var.same_as(row) else loop

    main = sch.mod["main"]
    return main.with_body(structural_map(main.body, (tirx.For, guarded))) if conditions else main


gpu_phases = GpuPhases()
