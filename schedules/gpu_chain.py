"""Separable and flattened convolutions on a GPU in one kernel: a block makes its part of each stage in shared memory.

block = (n, od_block, oh_block, ow_block[, channels, where all stages but the first are depthwise]):
    for each stage but the last:
        for passes of channels:
            acc[oc, position] = 0                                     in registers, a tile a thread
            for chunks of ic:
                pad: the block's part of x, zeros around              in shared memory, for the first stage only
                filters[ic, taps, oc]                                 in shared memory
                for ic, kd, kh, kw: acc[...] += input[ic, position * stride + tap] * filters[ic, tap, oc]
            mid[oc, position] = activation(acc + bias), zero where the next stage pads      in shared memory
    the last stage the same way, into y, with the epilogue

Where later stages are wider than one element, blocks overlap in what they need of the stages before, and compute the
overlap twice. A depthwise stage has no chunks, and passes are blocks of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.chain_plan import Stage
from convtune.schedules.gpu_chain_plan import Block, block_of, block_work, pack_stage
from convtune.schedules.gpu_tiling import WIDE, bind_turns, share, up_to
from convtune.schedules.gpu_work import cycles
from convtune.schedules.tiling import Tile

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, epilogue, operands, output
from convtune.space import Estimating, Knobs, KnobValue, PackStep, all_knobs
from convtune.spec import count
from convtune.targets.gpu import WARP, GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

KINDS = {"conv", "pointwise", "dilated", "depthwise"}
MOST_SUMS = 64  # of a thread; with 96 ptxas 13.0 needs up to 250 registers, and spills
MOST_THREADS = 256  # with 512, ptxas 13.0 rather spills than has more than 64 registers
LARGEST_BODY = 512  # multiply-adds that are unrolled

Read = Callable[..., Any]  # read(n, block, channel block, channel, local position)


class GpuChain(Estimating[GpuTarget]):
    name = "gpu_chain"
    summary = "a separable or flattened convolution in one kernel, the results between its stages in shared memory"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, GpuTarget) or spec.dtype != "float32":
            return False
        if not isinstance(variants.get(spec.variant), variants.Composite):
            return False
        first, *later = (stage.variant for stage in spec.stages)
        lanewise = {variant == "depthwise" for variant in later}
        known = {first, *later} <= KINDS and first != "depthwise" and len(lanewise) < 2
        return known and next(all_knobs(self, spec, target), None) is not None

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        out, channels = cube(spec.out_size), up_to((4, 8, 16, 32, 64, 128), max(s.out_channels for s in spec.stages))
        found: dict[str, tuple[KnobValue, ...]] = {}
        if spec.rank == 3:
            found["od_block"] = up_to((1, 2, 4), out[0])
        if spec.rank > 1:
            found["oh_block"] = up_to((1, 2, 4, 8, 16), out[1])
        widths = up_to((4, 8, 16, 32) if spec.rank > 1 else (16, 32, 64, 128, 256), out[2])
        found["ow_block"] = widths[-3:]
        found["channels"] = channels[-3:]
        found["thread_channels"] = (4, 8) if channels[-1] > WIDE else (4,)
        found["columns"] = up_to((1, 2, 4), out[2])[-2:]
        found["rounds"] = (1, 2)
        found["chunk"] = (8, 16)
        return found

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        block = block_of(spec, knobs)
        columns, tile = int(knobs["ow_block"]), block.stages[-1].tile
        if columns % (tile.columns * block.rounds) or block.thread_channels > block.channels:
            return False
        threads = count(block.threads)
        if not WARP <= threads <= MOST_THREADS or max(map(block.sums, block.stages)) > MOST_SUMS:
            return False
        fits = target.resident_blocks(threads, block.registers, block.shared_bytes) > 0
        return fits and block.leaves_none_idle()

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        return cycles(block_work(spec, block_of(spec, knobs)), target)

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        block = block_of(spec, knobs)
        return tuple(pack_stage(block, stage) for stage in block.stages)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        block = block_of(spec, knobs)
        sch = Schedule(_expression(spec, block))
        acc = sch.get_sblock("acc")
        result = sch.cache_write(acc, 0, "local")
        n, *blocks, cb, cp, cj, cx, ci, pr, d, h, w, column = sch.get_loops(acc)[:14]
        sch.reorder(n, cb, *blocks, cp, cj, cx, ci, pr, d, h, w)
        task, across = sch.fuse(*blocks), sch.fuse(d, h, w)
        for loop, axis in ((n, "blockIdx.z"), (cb, "blockIdx.y"), (task, "blockIdx.x")):
            sch.bind(loop, axis)
        x = _bind(sch, block, cp, cx, across, (cj, ci, pr, column))
        sch.reverse_compute_at(result, x, preserve_unit_loops=True)
        for loop in sch.get_loops(result)[-14:]:
            sch.unroll(loop)
        sch.reverse_compute_inline(sch.get_sblock("y"))  # last: TVM 0.27's reverse_compute_at drops its condition
        _place_sums(sch, block, block.stages[-1], acc, 4)
        for number in reversed(range(len(block.stages) - 1)):
            mid, acc = sch.get_sblock(f"mid{number}"), sch.get_sblock(f"acc{number}")
            sch.compute_at(mid, task, preserve_unit_loops=True)
            sch.set_scope(mid, 0, block.scope)
            cp, cj, cx, ci, pr, across, column = sch.get_loops(mid)[-7:]
            sums = (cj, ci, pr, column)
            x = _bind(sch, block, cp, cx, across, sums)
            sch.compute_at(acc, x, preserve_unit_loops=True)
            sch.set_scope(acc, 0, "local")
            _place_sums(sch, block, block.stages[number], acc, 12)
        return sch.mod


def _expression(spec: ConvSpec, block: Block) -> Any:
    from tvm import te

    *between, last = block.stages
    arguments = Arguments(spec, [block.weight_shape(stage) for stage in block.stages])
    read = _input(arguments, block)
    for number, stage in enumerate(between):
        read = _between(arguments, block, stage, number, read)
    summand, (bd, bh, bw), columns = _summand(arguments, block, last, -1, read), last.out, last.tile.columns
    wide = bw // (columns * block.rounds)

    def of_output(n: Any, b0: Any, b1: Any, b2: Any, cb: Any, cp: Any, *rest: Any) -> Any:
        *channel, pr, d, h, w, column = rest
        return summand(n, (b0, b1, b2), cb, cp, channel, (d, h, (pr * wide + w) * columns + column))

    shape = (spec.batch, *block.outer(last), *block.channel_split, block.rounds, bd, bh, wide, columns)
    acc = te.compute(shape, of_output, name="acc")

    def value(n: Any, _group: Any, oc: Any, position: Sequence[Any]) -> Any:
        d, h, w = position
        at = (d % bd, h % bh, w % bw // columns % wide, w % columns)
        blocks = (d // bd, h // bh, w // bw)
        return acc(n, *blocks, *_passes(block, oc), *_within(block, oc), w % bw // columns // wide, *at)

    return arguments.primfunc(output(arguments, 1, value))


def _passes(block: Block, channel: Any) -> tuple[Any, Any]:
    """The channel block and the pass of a channel."""
    return (channel // block.channels, 0) if block.lanewise else (0, channel // block.channels)


def _within(block: Block, channel: Any) -> tuple[Any, Any, Any]:
    """Where a channel is in its pass."""
    _, cx, ci = block.channel_split
    within = channel % block.channels
    return within // (cx * ci), within // ci % cx, within % ci


def _summand(arguments: Arguments, block: Block, stage: Stage[Tile], number: int, read: Read) -> Callable[..., Any]:
    """The sum at (n, block, channel block, pass, channel of the pass, local position) of a stage."""
    from tvm import te

    spec, kernel = stage.spec, cube(stage.spec.kernel)
    chunks, chunk = (1, 1) if stage.lanewise else block.chunks(stage)
    extents = zip(("chunk", "ic", "kd", "kh", "kw"), (chunks, chunk, *kernel))
    axes = [te.reduce_axis((0, extent), name) for name, extent in extents]
    variant, weight, geometry = variants.primitive(spec), arguments.weights[number], Geometry.of(spec)
    _, cx, ci = block.channel_split

    def at(n: Any, blocks: Any, cb: Any, cp: Any, channel: Sequence[Any], local: Sequence[Any]) -> Any:
        within = (channel[0] * cx + channel[1]) * ci + channel[2]

        def inputs(_n: Any, ic: Any, place: Any) -> Any:
            return read(n, blocks, (cb + cp) * block.channels + within if stage.lanewise else ic, place)

        def filters(_oc: Any, _ic: Any, taps: Sequence[Any]) -> Any:
            tap = (taps[0] * kernel[1] + taps[1]) * kernel[2] + taps[2]
            return weight(cb + cp, *([] if stage.lanewise else axes[:2]), tap, within)

        term = variant.term(spec, operands(geometry, inputs, filters))
        ic = axes[0] * chunk + axes[1]
        return te.sum(term.at(n, 0, local[3 - spec.rank :], (ic, *axes[5 - spec.rank :])), axis=axes)

    return at


def _input(arguments: Arguments, block: Block) -> Read:
    """The stage `pad`: (n, *blocks, chunk, channel of the chunk, *position), a block's part of x with zeros around."""
    from tvm import te, tirx

    spec, source = arguments.spec, block.stages[0].source
    chunks, chunk = block.chunks(block.stages[0])

    def padded(n: Any, b0: Any, b1: Any, b2: Any, at: Any, ic: Any, *local: Any) -> Any:
        place, channel = source.position((b0, b1, b2), local), at * chunk + ic
        inside, value = source.conditions(place), arguments.read_x(n, channel, place)
        if spec.in_channels % chunk:
            inside.append(channel < spec.in_channels)
        return te.if_then_else(tirx.all(*inside), value, tirx.const(0.0, spec.dtype)) if inside else value

    pad = te.compute((spec.batch, *source.blocks, chunks, chunk, *source.size), padded, name="pad")
    return lambda n, blocks, channel, local: pad(n, *blocks, channel // chunk, channel % chunk, *local)


def _between(arguments: Arguments, block: Block, stage: Stage[Tile], number: int, read: Read) -> Read:
    """The stages `acc` and `mid` of a stage that is not the last; reads its result, zeros around.

    mid: (n, *blocks, channel block, pass, *channels of the pass, round, thread, column), so that in memory, channel
        after channel, its positions are in the order of the stage's columns.
    """
    from tvm import te, tirx

    region, channels, columns = block.stages[number + 1].source, stage.spec.out_channels, stage.tile.columns
    (_, high, wide), (_, cx, ci) = stage.out, block.channel_split
    across, last = block.across, block.tiles(stage) - 1
    shape = (*block.outer(stage), *block.channel_split, block.rounds_of(stage), across, columns)
    shape = (arguments.spec.batch, *shape)
    summand = _summand(arguments, block, stage, number, read)

    def local(pr: Any, thread: Any, column: Any) -> tuple[Any, Any, Any]:
        tile = pr * across + thread
        if shape[-3] * across > last + 1:
            tile = tirx.min(tile, last)
        line, at = tile // (wide // columns), tile % (wide // columns)
        return line // high, line % high, at * columns + column

    def total(n: Any, b0: Any, b1: Any, b2: Any, cb: Any, cp: Any, *rest: Any) -> Any:
        return summand(n, (b0, b1, b2), cb, cp, rest[:3], local(*rest[3:]))

    sums = te.compute(shape, total, name=f"acc{number}")

    def value(*index: Any) -> Any:
        n, *blocks = index[:4]
        channel = (index[4] + index[5]) * block.channels + (index[6] * cx + index[7]) * ci + index[8]
        inside = region.conditions(region.position(blocks, local(*index[9:])))
        if channels % block.channels:
            inside.append(channel < channels)
        found = epilogue(arguments, sums(*index), n, channel, (), number)
        return te.if_then_else(tirx.all(*inside), found, tirx.const(0.0, arguments.spec.dtype)) if inside else found

    mid = te.compute(shape, value, name=f"mid{number}")

    def result(n: Any, blocks: Any, channel: Any, place: Sequence[Any]) -> Any:
        d, h, w = place
        tile = (d * high + h) * (wide // columns) + w // columns
        at = (tile // across, tile % across, w % columns)
        return mid(n, *blocks, *_passes(block, channel), *_within(block, channel), *at)

    return result


def _bind(sch: Any, block: Block, turn: Any, along: Any, across: Any, sums: Sequence[Any]) -> Any:
    """Binds the loops of a pass to threads; returns that of x."""
    y, x = (across, along) if block.channels_last else (along, across)
    assert tuple(int(sch.get(loop).extent) for loop in (y, x)) == block.threads, (
        "every stage has all threads of a block"
    )
    sch.reorder(turn, y, x, *sums)
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")
    for loop in sums:
        sch.unroll(loop)
    return x


def _place_sums(sch: Any, block: Block, stage: Stage[Tile], acc: Any, dimensions: int) -> None:
    """Keeps a stage's sums in registers, its filters and the input of the first stage in shared memory, in chunks.

    dimensions: loops over the sums of a thread.
    """
    *sums, chunk, ic, kd, kh, kw = sch.get_loops(acc)[-5 - dimensions :]
    sch.reorder(chunk, ic, kd, kh, kw, *sums)
    body = block.sums(stage)
    for tap in (kw, kh, kd):
        body *= int(sch.get(tap).extent)
        if body <= LARGEST_BODY:
            sch.unroll(tap)
    for loop in sums:
        sch.unroll(loop)
    filters = sch.cache_read(acc, 1, block.scope)
    share(sch, filters, chunk, 2 if stage.lanewise else 3, block.threads, WIDE)
    if stage is block.stages[0]:
        pad = sch.get_sblock("pad")
        sch.set_scope(pad, 0, block.scope)
        sch.compute_at(pad, chunk, preserve_unit_loops=True)
        ic, *place = sch.get_loops(pad)[-4:]
        if block.channels_last:
            sch.reorder(*place, ic)
        bind_turns(sch, sch.get_loops(pad)[-4:], block.threads)
    for loop in sch.get_loops(sch.decompose_reduction(acc, chunk))[-dimensions:]:
        sch.unroll(loop)


gpu_chain = GpuChain()
