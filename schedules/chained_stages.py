"""Composite variants in one pass: each task makes a block of output, and of each stage before it what the block needs.

    parallel task = (n, od_outer, oh_outer, ow_outer):
        pad: the task's part of the input, channels last, zeros around       where it is not all inside
        for each stage but the last:
            for d, h, then oc_outer and tiles of columns:                    oc_order: outer, inner
                acc[column, oc_vector, lane] = 0                             in registers
                for kd, kh, ic, kw:
                    acc[...] += input[..., column * stride + kw, ic] * weight[oc_outer, kd, kh, kw, ic, oc_vector, lane]
                mid[...] = activation(acc + bias), zero where the next stage pads
        the last stage the same way, into y, with the epilogue

`mid` is a block's part of a stage's result, in cache, channels last whatever the layout. Blocks are whole rows, and
overlap where a later stage's kernel is more than one high: the overlap is computed twice. A dense stage reads its input
by broadcast, a depthwise one as vectors of channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from convtune.schedules.chain_plan import Dims, Stage, is_chain, is_inner, ordered, plan
from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    overlapped,
    step_cycles,
    stream_cycles,
    transpose_cycles,
)
from convtune.schedules.tile_loops import (
    copy_channels,
    place_accumulators,
    place_store,
    split_output,
    tiled_output,
    tiled_sums,
)
from convtune.schedules.tiling import (
    LARGEST_BODY,
    MOST_VECTORS,
    Tile,
    ceil_div,
    even_blocks,
    pack_blocks,
    packed_blocks,
    round_up,
    spaced,
    suits_registers,
)

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, epilogue, operands
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

NARROWEST = 24  # columns of a block
Read = Callable[..., Any]  # read(n, block, local position, channel), both of three entries


class ChainedStages(Estimating[CpuTarget]):
    name = "chained_stages"
    summary = "a composite's stages block by block of rows, the results between them in cache"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return is_chain(spec, target)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        out, registers = cube(spec.out_size), target.vector_registers
        kinds = {stage.variant == "depthwise" for stage in spec.stages}
        dense = max((s.out_channels for s in spec.stages if s.variant != "depthwise"), default=1)
        lanewise = max((s.out_channels for s in spec.stages if s.variant == "depthwise"), default=1)
        found: dict[str, tuple[KnobValue, ...]] = {}
        if False in kinds:
            found["ow_tile"] = even_blocks(out[2], registers - 2)
            found["oc_vectors"] = tuple(range(1, min(MOST_VECTORS, ceil_div(dense, target.lanes)) + 1))
        if True in kinds:
            found["dw_tile"] = spaced(even_blocks(out[2], registers // 2), 3)
            found["dw_vectors"] = tuple(range(1, min(2, ceil_div(lanewise, target.lanes)) + 1))
        if spec.rank == 3:
            found["od_block"] = spaced(even_blocks(out[0], 16), 3)
        found["oh_block"] = spaced(even_blocks(out[1], 64), 6)
        found["ow_block"] = spaced(even_blocks(out[2], 4096), 6) if spec.rank == 1 else _widths(out[2])
        found["oc_order"] = ("outer", "inner") if False in kinds else ("outer",)
        return found

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        width, registers = spec.out_size[-1], target.vector_registers
        if "ow_tile" in knobs and not suits_registers(target, int(knobs["ow_tile"]), int(knobs["oc_vectors"]), width):
            return False
        if "dw_tile" in knobs and int(knobs["dw_tile"]) * int(knobs["dw_vectors"]) > registers - 6:
            return False
        heights = ("od_block", "oh_block") if spec.rank > 1 else ("ow_block",)
        domain = self.knobs(spec, target)
        smallest = all(knobs[name] == domain[name][0] for name in heights if name in domain)

        def fits(knobs: Knobs) -> bool:
            return _block_bytes(_plan(spec, target, knobs)) <= target.l2_bytes

        if spec.rank > 1 and knobs["ow_block"] != width and fits({**knobs, "ow_block": width}):
            return False  # narrower for nothing
        return smallest or fits(knobs)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        stages = _plan(spec, target, knobs)
        blocks = count(stages[0].source.blocks)
        resident = _block_bytes(stages)
        cycles = sum(_stage_cycles(stage, target, knobs, resident) for stage in stages)
        moved = stages[0].source.positions * spec.in_channels
        cycles += moved * 4 / L2_BYTES_PER_CYCLE
        cycles += transpose_cycles(spec, moved + count(stages[-1].out) * spec.out_channels)
        return Tasks(spec.batch * blocks, cycles).on(target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return tuple(pack_blocks(stage.spec, stage.tile) for stage in _plan(spec, target, knobs))

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        stages = _plan(spec, target, knobs)
        *between, last = stages
        sch = Schedule(_expression(spec, stages))
        loops = split_output(sch, spec, last.tile, int(knobs["oh_block"]), last.out[2] // last.tile.columns)
        if spec.rank == 3:
            loops.outer[1], planes = sch.split(loops.outer[1], [None, int(knobs["od_block"])])
            loops.inner.insert(0, planes)
        tiles = ordered(last, knobs, loops.channels, loops.inner)
        sch.reorder(*loops.outer, *tiles, *loops.store)
        task = sch.fuse(*loops.outer)
        sch.parallel(task)
        place_store(sch, spec, last.tile, tiles[-1], loops.store)
        _place_sums(sch, last, tiles[-1], "")
        for number in reversed(range(len(between))):
            _place_between(sch, between[number], knobs, task, number)
        if not _reads_x(spec, stages[0]):
            _place_pad(sch, spec, stages[0], target, task)
        return sch.mod


def _plan(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[Stage[Tile], ...]:
    block = (int(knobs.get("od_block", 1)), int(knobs["oh_block"]), int(knobs["ow_block"]))
    return plan(spec, block, lambda stage, size, last: _tile(stage, target, knobs, size, last))


def _widths(size: int) -> tuple[int, ...]:
    """Widths of blocks: narrower ones can be higher in the same cache, so that less is computed twice."""
    return tuple(sorted({ceil_div(size, parts) for parts in (1, 4) if size >= parts * NARROWEST} | {size}))


def _tile(stage: ConvSpec, target: CpuTarget, knobs: Knobs, size: Dims, last: bool) -> Tile:
    """The knobs say what a tile has at most: columns are spread evenly, and vectors divide those of a stage's result.

    The output may end in the middle of a channel block. What lies between two stages has whole blocks only, so that
    neither side needs a condition.
    """
    lanewise = stage.variant == "depthwise"
    names = ("dw_tile", "dw_vectors") if lanewise else ("ow_tile", "oc_vectors")
    columns, vectors = (int(knobs[name]) for name in names)
    columns = ceil_div(size[2], ceil_div(size[2], columns))
    whole = ceil_div(stage.out_channels, target.lanes)
    if not last or lanewise:
        vectors = max(v for v in range(1, vectors + 1) if whole % v == 0)
    return Tile(1, columns, vectors, target.lanes, target.lanes, 1, stage.out_channels)


def _whole(stage: Stage[Tile]) -> Tile:
    """The tile of a result that has whole vectors: what lies between stages, whatever the number of channels."""
    return replace(stage.tile, run=round_up(stage.tile.run, stage.tile.lanes))


def _block_bytes(stages: Sequence[Stage[Tile]]) -> int:
    """What a block keeps in memory between its stages, its part of the input included."""
    return sum(4 * stage.source.positions * stage.spec.in_channels for stage in stages)


def _stage_cycles(stage: Stage[Tile], target: CpuTarget, knobs: Knobs, resident_bytes: int) -> float:
    """Cycles of a stage for one block."""
    tile, taps = stage.tile, count(stage.spec.kernel)
    tiles = stage.out[0] * stage.out[1] * stage.out[2] // tile.columns
    sums = tile.columns * tile.vectors
    if stage.lanewise:
        steps, loads = taps, sums + tile.vectors
    else:
        steps, loads = taps * stage.spec.in_channels, tile.columns + tile.vectors
    compute = steps * step_cycles(target, sums, loads) + 2 * sums + TILE_CYCLES
    weights = steps * tile.block * 4
    inner = is_inner(stage, knobs)
    stream = stream_cycles(target, weights, weights * (tile.blocks if inner else 1))
    row = 4 * stage.spec.in_channels * stage.source.positions / tiles
    stream += stream_cycles(target, row, resident_bytes) * (0.2 if inner else 1.0)
    return tiles * tile.blocks * overlapped(compute, stream)


def _reads_x(spec: ConvSpec, first: Stage[Tile]) -> bool:
    """Whether the first stage reads x itself, without a copy that has zeros around it and vectors of channels."""
    multiplied = first.spec.out_channels != first.spec.in_channels or _whole(first).run != first.spec.in_channels
    return spec.channels_last and first.source.inside and not (first.lanewise and multiplied)


def _expression(spec: ConvSpec, stages: Sequence[Stage[Tile]]) -> Any:
    *between, last = stages
    arguments = Arguments(spec, [packed_blocks(stage.spec, stage.tile) for stage in stages])
    read = _input(arguments, stages[0])
    for number, stage in enumerate(between):
        read = _between(arguments, stage, stages[number + 1], number, read)
    summand = _summand(arguments, last, -1, read)
    size, columns, per_block = cube(spec.out_size), last.tile.columns, last.out[2] // last.tile.columns

    def of_output(n: Any, d: Any, h: Any, w_tile: Any, *rest: Any) -> Any:
        block = [d // last.out[0], h // last.out[1], w_tile // per_block]
        return summand(n, block, (d % last.out[0], h % last.out[1], w_tile % per_block), *rest)

    tiles = (spec.batch, *size[:2], last.source.blocks[2] * last.out[2] // columns)
    return arguments.primfunc(tiled_output(arguments, last.tile, tiles, of_output))


def _summand(arguments: Arguments, stage: Stage[Tile], number: int, read: Read) -> Callable[..., Any]:
    """The sum at (n, block, (d, h, w_tile), group, channel block, row, column, vector, lane) of a stage."""
    from tvm import te

    spec, tile = stage.spec, stage.tile
    axes = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), cube(spec.kernel))]
    ic = te.reduce_axis((0, spec.in_channels // spec.groups), "ic")
    variant, weight, geometry = variants.primitive(spec), arguments.weights[number], Geometry.of(spec)

    def at(n: Any, block: Any, place: Any, g: Any, co: Any, _row: Any, column: Any, cv: Any, lane: Any) -> Any:
        within = cv * tile.lanes + lane
        term = variant.term(
            spec,
            operands(
                geometry,
                lambda n, channel, local: read(
                    n, block, local, co * tile.block + within if stage.lanewise else channel
                ),
                lambda _oc, i, taps: weight(g, co, *taps, i, within),
            ),
        )
        position = (*place[:2], place[2] * tile.columns + column)[3 - spec.rank :]
        return te.sum(term.at(n, 0, position, (ic, *axes[3 - spec.rank :])), axis=[*axes, ic])

    return at


def _input(arguments: Arguments, first: Stage[Tile]) -> Read:
    """Reads a block's part of x, zeros around; the stage `pad` where x itself does not do.

    For a depthwise stage its channels are those of the stage's output, in whole vectors.
    """
    from tvm import te, tirx

    spec, source = arguments.spec, first.source

    def direct(n: Any, block: Any, local: Any, channel: Any) -> Any:
        return arguments.read_x(n, channel, source.position(block, local))

    if _reads_x(spec, first):
        return direct
    channels = _whole(first).run if first.lanewise else spec.in_channels
    times = first.spec.out_channels // spec.in_channels if first.lanewise else 1

    def padded(n: Any, *index: Any) -> Any:
        block, local, channel = index[:3], index[3:6], index[6]
        inside = source.conditions(source.position(block, local))
        if channels > spec.in_channels * times:
            inside.append(channel < spec.in_channels * times)
        value = direct(n, block, local, channel // times if times > 1 else channel)
        return te.if_then_else(tirx.all(*inside), value, tirx.const(0.0, spec.dtype)) if inside else value

    pad = te.compute((spec.batch, *source.blocks, *source.size, channels), padded, name="pad")
    return lambda n, block, local, channel: pad(n, *block, *local, channel)


def _between(arguments: Arguments, stage: Stage[Tile], following: Stage[Tile], number: int, read: Read) -> Read:
    """The stages `acc` and `mid` of a stage that is not the last; reads its result, zeros around."""
    from tvm import te, tirx

    spec, tile, region = arguments.spec, _whole(stage), following.source
    outer = (spec.batch, *region.blocks, *stage.out[:2], stage.out[2] // tile.columns)
    summand = _summand(arguments, stage, number, read)
    sums = tiled_sums(stage.spec, tile, outer, lambda n, *i: summand(n, i[:3], i[3:6], *i[6:]), str(number))
    bias = _whole_vectors(arguments, stage, number)

    def value(n: Any, *index: Any) -> Any:
        block, (d, h, w), channel = index[:3], index[3:6], index[6]
        at, vector, lane = tile.locate(channel)
        found = sums(n, *block, d, h, w // tile.columns, 0, at, 0, w % tile.columns, vector, lane)
        found = epilogue(arguments, found, n, channel, (d, h, w), number, bias)
        inside = region.conditions(region.position(block, (d, h, w)))
        return te.if_then_else(tirx.all(*inside), found, tirx.const(0.0, spec.dtype)) if inside else found

    mid = te.compute((spec.batch, *region.blocks, *region.size, tile.run), value, name=f"mid{number}")
    return lambda n, block, local, channel: mid(n, *block, *local, channel)


def _whole_vectors(arguments: Arguments, stage: Stage[Tile], number: int) -> Any:
    """The stage's bias, as long as its result; None where it has none, or is as long itself."""
    from tvm import te, tirx

    bias, channels = arguments.biases[number], stage.spec.out_channels
    if bias is None or _whole(stage).run == channels:
        return None
    zero = tirx.const(0.0, arguments.spec.dtype)
    whole = lambda c: te.if_then_else(c < channels, bias[c], zero)  # noqa: E731
    return te.compute((_whole(stage).run,), whole, name=f"bias{number}_whole")


def _place_sums(sch: Any, stage: Stage[Tile], at: Any, suffix: str) -> None:
    body = stage.tile.columns * stage.tile.vectors * stage.spec.kernel[-1]
    unrolled = int(stage.lanewise and body <= LARGEST_BODY)  # neighbouring columns then share the loaded inputs
    order = (0, 1, 3, 2) if unrolled else (0, 1, 2, 3)
    place_accumulators(sch, at, 4, order, unrolled, stage=suffix)


def _place_between(sch: Any, stage: Stage[Tile], knobs: Knobs, task: Any, number: int) -> None:
    """Computes a stage's part of a block in the task."""
    mid = sch.get_sblock(f"mid{number}")
    sch.compute_at(mid, task, preserve_unit_loops=True)
    *_, d, h, w, channel = sch.get_loops(mid)
    vectors, lane = sch.split(channel, [None, stage.tile.lanes])
    block, vector = sch.split(vectors, [None, stage.tile.vectors])
    w_tile, column = sch.split(w, [None, stage.tile.columns])
    tiles = ordered(stage, knobs, block, (d, h, w_tile))
    sch.reorder(*tiles, column, vector, lane)
    place_store(sch, stage.spec, _whole(stage), tiles[-1], (column, vector, lane), str(number))
    _place_sums(sch, stage, tiles[-1], str(number))


def _place_pad(sch: Any, spec: ConvSpec, first: Stage[Tile], target: CpuTarget, task: Any) -> None:
    """Copies the task's part of the input, by vectors where it has whole ones."""
    pad = sch.get_sblock("pad")
    sch.compute_at(pad, task, preserve_unit_loops=True)
    column, channel = sch.get_loops(pad)[-2:]
    if first.lanewise and first.spec.out_channels != spec.in_channels:  # each channel goes to several lanes
        return
    copy_channels(sch, spec, target, column, channel)


chained_stages = ChainedStages()
