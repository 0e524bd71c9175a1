"""Grouped convolution with each input spread over the lanes of its group once for all taps of a row that read it.

    parallel task = (n, od, oh_outer, ow_outer [, oc_outer]):         oc_order: parallel
        pad: the task's input rows, channels last, zeros around       pad_at: task, root (once for all), none
        for [oc_outer,] oh_inner, ow_block [, oc_outer]:              oc_order: outer, inner
            acc[ow_inner, oc_vector, lane] = 0                        in registers
            for kd, kh: (those that meet the input)
                for ic: (unrolled where groups share a vector)
                    for column of the input that the tile reads: (unrolled)
                        s[lane] = x[..., column, ic-th input channel of the lane's group]
                        for (ow_inner, kw) that meet there, oc_vector:
                            acc[ow_inner, oc_vector, lane] += s[lane] * weight[oc_outer, taps, ic, oc_vector, lane]
            y[...] = activation(acc + bias + residual)

A vector holds whole groups, or a group whole vectors. In the first case s is a permute in registers of one vector of
inputs, as they lie in a channels-last x; in the second a broadcast. Where nothing is copied, columns and rows outside
of the input are left out instead of read as zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    LONG_RUN_BYTES,
    RUN_CYCLES,
    TILE_CYCLES,
    Tasks,
    fma_cycles,
    load_cycles,
    overlapped,
    padding_cycles,
    stream_cycles,
    transpose_cycles,
    waiting_factor,
)
from convtune.schedules.tile_loops import (
    merge_groups,
    place_accumulators,
    place_pad,
    place_store,
    split_output,
    tiled_output,
)
from convtune.schedules.tiling import (
    Tile,
    ceil_div,
    even_blocks,
    pack_blocks,
    packed_blocks,
    round_up,
    spaced,
    stores_vectors,
    suits_registers,
    width_blocks,
)

from convtune import variants
from convtune.expression import Arguments, Geometry, cube, operands, padded_input, read_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_VECTORS = 6
QUAD = 4  # lanes that a vector unit permutes among each other at half the cost: 128 bits
FAR_BYTES = 1024  # a page has few such
LARGEST_BODY = 768  # FMAs: of a body without loops, LLVM takes about a second


class GroupedLanes(Estimating[CpuTarget]):
    name = "grouped_lanes"
    summary = "inputs permuted or broadcast once for the taps of a row; lanes across groups where these are small"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant not in ("grouped", "shuffled_grouped"):
            return False
        run, depth = spec.out_channels // spec.groups, spec.in_channels // spec.groups
        if run >= target.lanes:
            return True
        shared = target.lanes // run  # groups of a vector
        whole = target.lanes % run == 0 and spec.groups % shared == 0
        return spec.variant == "grouped" and whole and shared * depth <= target.lanes

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        geometry = Geometry.of(spec)
        columns = even_blocks(geometry.out[2], target.vector_registers - 2)
        run = _run(spec, target)
        copies = ("task", "root") if not geometry.inside(spec) or not spec.channels_last else ()
        return {
            "ow_tile": columns,
            "oc_vectors": tuple(range(1, min(MOST_VECTORS, ceil_div(run, target.lanes)) + 1)),
            "oh_block": spaced(even_blocks(geometry.out[1], 64), 5),
            "ow_block": width_blocks(spec, geometry.out[2], columns),
            "oc_order": ("parallel", "outer", "inner"),
            "pad_at": ("none", *copies) if spec.channels_last else copies,
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        columns, vectors = int(knobs["ow_tile"]), int(knobs["oc_vectors"])
        if not suits_registers(target, columns, vectors, Geometry.of(spec).out[2]):
            return False
        # LLVM keeps the weights of a channel's taps in registers, and spills them where these do not suffice
        if (columns + min(spec.kernel[-1], 4)) * vectors + 2 > target.vector_registers and spec.kernel[-1] > 1:
            return False
        shared = _shares_vectors(spec, target)
        if shared and spec.out_channels % (vectors * target.lanes):
            return False  # the last block would read beyond the input's channels
        unrolled = spec.in_channels // spec.groups if shared else 1
        if columns * vectors * spec.kernel[-1] * unrolled > LARGEST_BODY:
            return False
        return not (knobs["oc_order"] == "parallel" and knobs["pad_at"] == "task")

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, geometry, kernel = self._tile(spec, target, knobs), Geometry.of(spec), cube(spec.kernel)
        out, span, stride = geometry.out, cube(spec.span), cube(spec.stride)
        order, pad_at = knobs["oc_order"], knobs["pad_at"]
        oh_block, tiles_wide = int(knobs["oh_block"]), ceil_div(out[2], tile.columns)
        ow_block = min(int(knobs["ow_block"]), tiles_wide)
        depth = spec.in_channels // spec.groups
        blocks = tile.groups * tile.blocks
        block_bytes = depth * count(spec.kernel) * tile.block * 4
        compute = depth * kernel[0] * kernel[1] * self._step(spec, target, tile)
        # the end of a group that ends within a vector is copied side by side, and shuffled channels one by one
        side_by_side = spec.channels_last and spec.variant == "grouped"
        stored = 0.0 if stores_vectors(spec, tile) else (1.0 if side_by_side else tile.lanes)
        compute += (2 + stored) * tile.columns * tile.vectors + TILE_CYCLES
        resident = block_bytes * (blocks if order == "inner" else 1)
        per_tile = overlapped(compute, stream_cycles(target, block_bytes, resident))
        rows = ((oh_block - 1) * stride[1] + span[1]) * span[0]
        rows_bytes = rows * ((ow_block * tile.columns - 1) * stride[2] + span[2]) * spec.in_channels * 4
        cycles = oh_block * ow_block * per_tile * (1 if order == "parallel" else blocks)
        cycles += stream_cycles(target, rows_bytes, rows_bytes) / (2 * blocks if order == "parallel" else 2)
        tasks = spec.batch * out[0] * ceil_div(out[1], oh_block) * ceil_div(tiles_wide, ow_block)
        if pad_at == "task":
            cycles += 2 * rows_bytes / L2_BYTES_PER_CYCLE + transpose_cycles(spec, rows_bytes // 4)
        else:
            reads = rows_bytes / 4 / spec.in_channels * (1 if order == "parallel" else blocks)
            cycles += reads * _waiting(spec)
        total = Tasks(tasks * (blocks if order == "parallel" else 1), cycles).on(target)
        if pad_at == "root":
            total += padding_cycles(spec, target)
            total += transpose_cycles(spec, count(spec.in_shape)) / target.threads
        return total + transpose_cycles(spec, count(spec.out_shape)) / target.threads

    def _step(self, spec: ConvSpec, target: CpuTarget, tile: Tile) -> float:
        """Cycles of all taps of a row for one input channel."""
        taps, stride = spec.kernel[-1], spec.stride[-1]
        sums = tile.columns * tile.vectors
        spreads = len({c * stride + k * spec.dilation[-1] for c in range(tile.columns) for k in range(taps)})
        loads = spreads * (tile.vectors if _shares_vectors(spec, target) else 1)
        loads += tile.vectors * taps if taps <= 4 else sums * taps
        permutes = 0.0  # beside the FMAs, on ports of which one is theirs; two where they cross quads
        if _shares_vectors(spec, target):
            permutes = spreads * tile.vectors * (0.5 if spec.in_channels // spec.groups <= QUAD else 1.5)
            # LLVM reads an input once for all channels, and spills what does not stay in registers beside the sums
            permutes += 2 * max(0, (spreads + taps) * tile.vectors + sums - target.vector_registers)
        products = sums * waiting_factor(target, sums) * taps
        return max(fma_cycles(target, products + permutes), load_cycles(target, loads))

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        tile = self._tile(spec, target, knobs)
        if not _shares_vectors(spec, target):
            return (pack_blocks(spec, tile),)
        # as for one group: a lane's weights are those of its own group, whatever that is
        rank, depth, full = spec.rank, spec.in_channels // spec.groups, tile.blocks * tile.block
        return (
            (
                {"op": "pad", "widths": [[0, full - spec.out_channels], *([0, 0] for _ in range(rank + 1))]},
                {"op": "reshape", "shape": [1, tile.blocks, tile.block, depth, *spec.kernel]},
                {"op": "transpose", "axes": [0, 1, *range(4, 4 + rank), 3, 2]},
                {"op": "reshape", "shape": list(packed_blocks(spec, tile))},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = self._tile(spec, target, knobs)
        sch = Schedule(self._expression(spec, tile, knobs["pad_at"]))
        # TVM 0.27: blockize drops the condition of a loop that is longer than what it counts
        ow_block = min(int(knobs["ow_block"]), ceil_div(Geometry.of(spec).out[2], tile.columns))
        loops = split_output(sch, spec, tile, int(knobs["oh_block"]), ow_block)
        task, at = loops.in_tasks(sch, knobs["oc_order"])
        place_store(sch, spec, tile, at, loops.store)
        sch.blockize(place_accumulators(sch, at, reductions=4, order=(0, 1, 2, 3), unrolled=0))
        if knobs["pad_at"] != "none":
            place_pad(sch, spec, target, task if knobs["pad_at"] == "task" else None)
        merge_groups(sch, spec, tile)
        return _with_spreads(sch.mod, Spreads(spec, target, tile, knobs["pad_at"] != "none"))

    def _tile(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Tile:
        groups = 1 if _shares_vectors(spec, target) else spec.groups
        columns, vectors = int(knobs["ow_tile"]), int(knobs["oc_vectors"])
        return Tile(1, columns, vectors, target.lanes, target.lanes, groups, _run(spec, target))

    def _expression(self, spec: ConvSpec, tile: Tile, pad_at: KnobValue) -> Any:
        from tvm import te

        out = Geometry.of(spec).out
        geometry = Geometry.of(spec, (*out[:2], round_up(out[2], tile.columns)))
        arguments = Arguments(spec, [packed_blocks(spec, tile)])
        read = lambda n, ic, position: read_padded(arguments, geometry, n, ic, position)  # noqa: E731
        if pad_at != "none":
            pad = padded_input(arguments, geometry)
            read = lambda n, ic, position: pad(n, *position, ic)  # noqa: E731
        kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("kd", "kh", "kw"), geometry.kernel)]
        ic = te.reduce_axis((0, spec.in_channels // spec.groups), "ic")
        variant = variants.primitive(spec)

        def summand(n: Any, d: Any, h: Any, wo: Any, g: Any, co: Any, hi: Any, wi: Any, cv: Any, lane: Any) -> Any:
            weight = arguments.weights[0]
            term = variant.term(
                spec, operands(geometry, read, lambda _oc, i, taps: weight(g, co, *taps, i, cv * tile.lanes + lane))
            )
            position = (d, h + hi, wo * tile.columns + wi)[3 - spec.rank :]
            oc = variant.channel(spec, g, 0) if tile.groups > 1 else co * tile.block + cv * tile.lanes + lane
            return te.sum(term.at(n, oc, position, (ic, *kernel[3 - spec.rank :])), axis=[*kernel, ic])

        shape = (spec.batch, *out[:2], geometry.out[2] // tile.columns)
        return arguments.primfunc(tiled_output(arguments, tile, shape, summand))


def _shares_vectors(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether a vector holds more than one group."""
    return spec.out_channels // spec.groups < target.lanes


def _waiting(spec: ConvSpec) -> float:
    """Cycles for a position's channels of a group: those of the next one are on another page, or nearly so."""
    run, apart = (4 * channels for channels in (spec.in_channels // spec.groups, spec.in_channels))
    return RUN_CYCLES / 2 if spec.channels_last and run < LONG_RUN_BYTES and apart >= FAR_BYTES else 0.0


def _run(spec: ConvSpec, target: CpuTarget) -> int:
    """Output channels that lie side by side for the tile: a group's, or all where groups share vectors."""
    return spec.out_channels if _shares_vectors(spec, target) else spec.out_channels // spec.groups


def _with_spreads(module: Any, spreads: Spreads) -> Any:
    """The module with `spreads` in place of the loops over the reduction and the tile."""
    from tvm import ir, s_tir
    from tvm_ffi import structural_map

    def replaced(block: Any) -> Any:
        if block.name_hint != "acc_update_o":
            return block
        body = spreads.of(block)
        fields = {name: getattr(block, name) for name in ("iter_vars", "reads", "writes", "name_hint", "annotations")}
        return s_tir.SBlock(body=body, **fields)

    main = module["main"]
    return ir.IRModule({"main": main.with_body(structural_map(main.body, (s_tir.SBlock, replaced)))})


class Spreads:
    """The sums of a register tile as statements: what TVM 0.27 has no schedule primitive for, vectors that are permuted
    and inputs that are read once for several taps."""

    def __init__(self, spec: ConvSpec, target: CpuTarget, tile: Tile, copied: bool) -> None:
        self.spec, self.tile, self.copied = spec, tile, copied
        self.geometry = Geometry.of(spec)
        self.depth, self.run = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        self.permuted = _shares_vectors(spec, target)

    def of(self, block: Any) -> Any:
        """The statement for a block whose writes and reads are a tile's sums, x or `pad`, and weights."""
        from tvm import tirx

        (sums,) = block.writes
        self.acc = sums.source
        x = "pad" if self.copied else "x"
        found = {region.source.name: region.source for region in block.reads}
        self.x, self.weight = found[x], found["weight"]
        self.outer = [region.min for region in sums.region[:7]]  # n, d, h, w_tile, group, block, row
        kd, kh = (tirx.Var(name, "int32") for name in ("kd", "kh"))
        rows, met = self._rows(kd, kh)
        body = self._row(rows, kd, kh)
        for tap, extent in ((kh, self.geometry.kernel[1]), (kd, self.geometry.kernel[0])):
            if tap is kh and met:
                body = tirx.IfThenElse(tirx.all(*met), body, None)
            body = tirx.For(tap, 0, extent, tirx.ForKind.SERIAL, body)
        return body

    def _rows(self, kd: Any, kh: Any) -> tuple[list[Any], list[Any]]:
        """The input's depth and row for taps, and what must hold for them to lie in it."""
        geometry, place, met = self.geometry, [], []
        for axis, tap in ((0, kd), (1, kh)):
            at = self.outer[1 + axis] * geometry.stride[axis] + tap * geometry.dilation[axis]
            if not self.copied:
                at = at - geometry.before[axis]
                met += self._inside(axis, at)
            place.append(at)
        return place, met

    def _inside(self, axis: int, at: Any) -> list[Any]:
        size, before = cube(self.spec.in_size)[axis], self.geometry.before[axis]
        lower = [at >= 0] if before else []
        return lower + ([at < size] if self.geometry.padded[axis] - before > size else [])

    def _row(self, rows: Sequence[Any], kd: Any, kh: Any) -> Any:
        """All taps of a row: first the columns that may lie outside of the input, then the others in one loop."""
        from tvm import tirx

        columns, taps = range(self.tile.columns), range(self.spec.kernel[-1])
        stride, dilation = self.spec.stride[-1], self.spec.dilation[-1]
        meets: dict[int, list[tuple[int, int]]] = {}
        for column in columns:
            for tap in taps:
                meets.setdefault(column * stride + tap * dilation, []).append((column, tap))
        statements, always = [], []
        for place in sorted(meets):
            at = self.outer[3] * (self.tile.columns * stride) + place
            inside = self._column(at, place)
            if inside is None:
                continue
            at = at if self.copied else at - self.geometry.before[2]
            body = lambda ic, at=at, meet=meets[place]: self._products(rows, kd, kh, at, ic, meet)  # noqa: E731
            if inside:
                statements.append(tirx.IfThenElse(tirx.all(*inside), self._channels([body]), None))
            else:
                always.append(body)
        return tirx.stmt_seq(*statements, self._channels(always)) if always else tirx.stmt_seq(*statements)

    def _column(self, at: Any, place: int) -> list[Any] | None:
        """What must hold for a column of the tile's inputs to be inside of x; None if it never is."""
        if self.copied:
            return []
        before, size = self.geometry.before[2], self.spec.in_size[-1]
        step = self.tile.columns * self.spec.stride[-1]
        last = ceil_div(self.geometry.out[2], self.tile.columns) - 1
        starts = [w * step + place - before for w in range(last + 1)]
        if not any(0 <= start < size for start in starts):
            return None
        lower = [at >= before] if starts[0] < 0 else []
        return lower + ([at < before + size] if starts[-1] >= size else [])

    def _channels(self, bodies: Sequence[Any]) -> Any:
        """The bodies for each input channel of a group, with its number known where a permute depends on it."""
        from tvm import tirx

        if self.permuted:
            return tirx.stmt_seq(*(s for ic in range(self.depth) for body in bodies for s in body(ic)))
        ic = tirx.Var("ic", "int32")
        inner = tirx.stmt_seq(*(s for body in bodies for s in body(ic)))
        return tirx.For(ic, 0, self.depth, tirx.ForKind.SERIAL, inner)

    def _products(
        self, rows: Sequence[Any], kd: Any, kh: Any, column: Any, ic: Any, meet: Sequence[tuple[int, int]]
    ) -> list[Any]:
        from tvm import tirx

        *_, group, block, _row = self.outer
        lanes, done = self.tile.lanes, []
        for vector in range(self.tile.vectors):
            value = self._spread([*rows, column], vector, ic)
            for ow, kw in meet:
                first = tirx.Ramp(vector * lanes, 1, lanes)
                weight = tirx.BufferLoad(self.weight, [group, block, kd, kh, kw, ic, first])
                place = [*self.outer, ow, vector, tirx.Ramp(0, 1, lanes)]
                total = tirx.BufferLoad(self.acc, place) + value * weight
                done.append(tirx.BufferStore(self.acc, total, place))
        return done

    def _spread(self, position: Sequence[Any], vector: int, ic: Any) -> Any:
        """Each lane's input: the ic-th channel of its group."""
        from tvm import tirx

        n, *_, group, block, _row = self.outer
        place = [n, *(position if self.copied else position[3 - self.spec.rank :])]
        if not self.permuted:
            return tirx.Broadcast(tirx.BufferLoad(self.x, [*place, group * self.depth + ic]), self.tile.lanes)
        window = self.tile.lanes // self.run * self.depth
        first = (block * self.tile.vectors + vector) * window
        if window == 1:
            return tirx.Broadcast(tirx.BufferLoad(self.x, [*place, first]), self.tile.lanes)
        inputs = tirx.BufferLoad(self.x, [*place, tirx.Ramp(first, 1, window)])
        wanted = [lane // self.run * self.depth + ic for lane in range(self.tile.lanes)]
        return tirx.Shuffle([inputs] * ceil_div(self.tile.lanes, window), wanted)  # it makes no vector longer


grouped_lanes = GroupedLanes()
