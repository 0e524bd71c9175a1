"""Dense and grouped convolution of float16 on Tensor Cores, as a matrix product of tiles, any rank and layout.

block = (positions of all images, groups, output channels):
    acc[position, channel] = 0                                            float32, in registers, a tile a warp
    for chunks of (ic, kd, kh, kw):                                       pipeline: the next ones are on their way
        tile[position, ic] = x (zero outside)                             in shared memory, as float16
        filters[channel, ic] = weight                                     in shared memory
        for 16 of ic, for 16 positions and 8 channels of a warp's tile:
            acc[...] += tile[...] * filters[...]                          one instruction of the warp
    y[...] = activation(acc + bias + residual)

A warp is 8 rows of 4 threads: of each product a thread has the sums of two rows and of two columns beside each other.
Rows of shared memory are 16 bytes longer than they are full, so that the 32 words a warp reads lie in different banks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_crop import cropped
from convtune.schedules.gpu_implicit_gemm import unflattened
from convtune.schedules.gpu_tiling import shared_scope
from convtune.schedules.gpu_work import Work, cycles
from convtune.schedules.tiling import ceil_div

from convtune import variants
from convtune.cuda import tensor_cores
from convtune.cuda.tensor_cores import COLUMNS, DEPTH, ROWS
from convtune.expression import Arguments, Geometry, cube, epilogue, operands, or_zero, widened, zero_padded
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import DTYPES, count
from convtune.targets.gpu import WARP, GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

VARIANTS = ("conv", "pointwise", "dilated", "grouped", "shuffled_grouped")
FEWEST_CHANNELS = 16  # of a group, in and out: with fewer, most of what Tensor Cores multiply would be zeros
WARP_TILES = ("32x32", "64x32", "32x64", "64x64")  # positions x channels
LANES = (8, 4)  # of a warp, along threadIdx.y and threadIdx.x
WIDE = 8  # float16 in the widest load of a thread
MOST_WARPS = 8
STAGES = {"none": 1, "async2": 2, "async3": 3}
"""Of each pipeline, how many chunks are in shared memory at a time."""
ADDRESSES = 48  # registers for indices, predicates, operands and loops


@dataclass(frozen=True)
class WarpTiles:
    """What a block and each of its warps compute. depth: input channels of a chunk, which has one tap."""

    spec: ConvSpec
    positions: int
    channels: int
    warp_positions: int
    warp_channels: int
    depth: int

    @property
    def outputs(self) -> int:
        """Rows of the matrix product."""
        return self.spec.batch * count(self.spec.out_size)

    @property
    def run(self) -> int:
        """Output channels of a group."""
        return self.spec.out_channels // self.spec.groups

    @property
    def run_in(self) -> int:
        """Input channels of a group."""
        return self.spec.in_channels // self.spec.groups

    @property
    def warps(self) -> tuple[int, int]:
        """Of a block, across positions and channels."""
        return self.positions // self.warp_positions, self.channels // self.warp_channels

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks across positions, groups, and channels of a group."""
        return ceil_div(self.outputs, self.positions), self.spec.groups, ceil_div(self.run, self.channels)

    @property
    def chunks(self) -> tuple[int, ...]:
        """Of input channels, and of taps per dimension."""
        return (ceil_div(self.run_in, self.depth), *cube(self.spec.kernel))

    @property
    def gathered(self) -> int:
        """Elements of x that a thread copies at once."""
        vector = gcd(WIDE, self.run_in) if self.spec.channels_last else 1
        return vector if vector > 2 else 1  # TVM 0.27 retypes an array that is only ever accessed by pairs

    @property
    def pairs(self) -> bool:
        """Whether two channels of y are stored at once."""
        apart = self.spec.groups > 1 and variants.primitive(self.spec).interleaved
        return self.spec.channels_last and self.run % 2 == 0 and not apart

    def stages(self, pipeline: str) -> int:
        """Bytes of shared memory."""
        return STAGES[pipeline] * (self.positions + self.channels) * (self.depth + WIDE) * DTYPES["float16"]


class GpuTensorCores(Estimating[GpuTarget]):
    name = "gpu_tensor_cores"
    dtypes = ("float16",)
    summary = "float16 on Tensor Cores, a block's operands in shared memory, a tile of sums in each warp's registers"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, GpuTarget) or spec.variant not in VARIANTS:
            return False
        enough = min(spec.in_channels, spec.out_channels) // spec.groups >= FEWEST_CHANNELS
        return enough and target.compute >= tensor_cores.LEAST_COMPUTE and target.fp16_tensor_lanes > 0

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        outputs = spec.batch * count(spec.out_size)
        return {
            "positions": _up_to((32, 64, 128, 256), outputs),
            "channels": _up_to((32, 64, 128), spec.out_channels // spec.groups),
            "warp_tile": WARP_TILES,
            "depth": _up_to((16, 32, 64), spec.in_channels // spec.groups),
            "pipeline": ("none", "async2", "async3") if target.has_async_copy else ("none",),
        }

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        tile, pipeline = _tile(spec, knobs), str(knobs["pipeline"])
        if tile.positions % tile.warp_positions or tile.channels % tile.warp_channels:
            return False
        if count(tile.warps) > MOST_WARPS or count(tile.chunks) < STAGES[pipeline]:
            return False
        return target.resident_blocks(_threads(tile), _registers(tile), tile.stages(pipeline)) > 0

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        return cycles(_work(target, _tile(spec, knobs), str(knobs["pipeline"])), target)

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (_pack(_tile(spec, knobs)),)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile, pipeline = _tile(spec, knobs), str(knobs["pipeline"])
        sch = Schedule(_expression(tile))
        chunk = _place_sums(sch, tile, shared_scope(tile.stages(pipeline)))
        if STAGES[pipeline] > 1:
            sch.annotate(chunk, "software_pipeline_stage", [0, 0, STAGES[pipeline] - 1])
            sch.annotate(chunk, "software_pipeline_order", [0, 1, 2])
            sch.annotate(chunk, "software_pipeline_async_stages", [0])
        main = _with_tensor_cores(sch.mod["main"])
        return cropped(main, spec, lambda *i: _located(tile, i), lambda *i: _inside(tile, i))


def _up_to(sizes: Sequence[int], size: int) -> tuple[int, ...]:
    """The sizes up to the first that holds all."""
    return tuple(s for i, s in enumerate(sizes) if i == 0 or sizes[i - 1] < size)


def _tile(spec: ConvSpec, knobs: Knobs) -> WarpTiles:
    warp_positions, warp_channels = (int(part) for part in str(knobs["warp_tile"]).split("x"))
    positions, channels, depth = (int(knobs[name]) for name in ("positions", "channels", "depth"))
    return WarpTiles(spec, positions, channels, warp_positions, warp_channels, depth)


def _threads(tile: WarpTiles) -> int:
    return WARP * count(tile.warps)


def _registers(tile: WarpTiles) -> int:
    """Of a thread, about: the sums, and the operands of 16 of the depth."""
    sums = tile.warp_positions * tile.warp_channels
    return (sums + (tile.warp_positions + tile.warp_channels) * DEPTH // 2) // WARP + ADDRESSES


def _work(target: GpuTarget, tile: WarpTiles, pipeline: str) -> Work:
    threads, chunks = _threads(tile), count(tile.chunks)
    sums = tile.warp_positions * tile.warp_channels
    products = chunks * tile.depth // DEPTH * sums // (ROWS * COLUMNS)
    words = chunks * tile.depth // DEPTH * (tile.warp_positions // ROWS * 4 + tile.warp_channels // COLUMNS * 2)
    of_x = chunks * tile.positions * tile.depth // threads
    of_weight = chunks * tile.channels * tile.depth // threads
    copies = 8 * of_x / tile.gathered + 4 * of_weight / WIDE
    hidden = {"none": 0.0, "async2": 0.5, "async3": 0.8}[pipeline]
    return Work(
        blocks=count(tile.grid),
        threads=threads,
        registers=_registers(tile),
        shared_bytes=tile.stages(pipeline),
        fmas=products * ROWS * COLUMNS * DEPTH / WARP * target.fp32_lanes / target.fp16_tensor_lanes,
        instructions=words + copies + 20 * chunks,
        # a copy that goes across rows meets the same bank four times
        wavefronts=words + (of_x / 2 if tile.spec.channels_last else 4 * of_x) + of_weight / 2,
        waits=2 + chunks * (1 - hidden),
        l2_bytes=DTYPES["float16"] * threads * (of_x + of_weight),
        dram_bytes=tile.spec.bytes,
    )


def _packed(tile: WarpTiles) -> tuple[int, ...]:
    return (*tile.grid[1:], *tile.chunks, tile.channels, tile.depth)


def _pack(tile: WarpTiles) -> tuple[PackStep, ...]:
    """PyTorch's (oc, ic, taps) to whole chunks, as a block reads them; zeros where channels end."""
    (_, groups, blocks), (chunks, *taps) = tile.grid, tile.chunks
    missing_out, missing_in = blocks * tile.channels - tile.run, chunks * tile.depth - tile.run_in
    return (
        {"op": "reshape", "shape": [groups, tile.run, tile.run_in, *taps]},
        {"op": "pad", "widths": [[0, 0], [0, missing_out], [0, missing_in], *[[0, 0]] * 3]},
        {"op": "reshape", "shape": [groups, blocks, tile.channels, chunks, tile.depth, *taps]},
        {"op": "transpose", "axes": [0, 1, 3, 5, 6, 7, 2, 4]},
    )


def _expression(tile: WarpTiles) -> Any:
    """The function with the stages `tile`, `acc` and `y`, which has the shape of `acc`:

    (block, group, block of channels, warp, warp, product, product, half of rows, row, pair of columns, column),
    the first of two alike of the positions.
    """
    from tvm import te

    arguments = Arguments(tile.spec, [_packed(tile)])
    weight, gathered = arguments.weights[0], _gathered(tile, arguments)
    names = ("ic_outer", "kd", "kh", "kw", "ic_product", "ic")
    extents = (*tile.chunks, tile.depth // DEPTH, DEPTH)
    *chunk, product, lane = axes = [te.reduce_axis((0, extent), name) for extent, name in zip(extents, names)]

    def summand(*index: Any) -> Any:
        (block, group, columns), (row, column) = index[:3], _of_block(tile, index)
        k = product * DEPTH + lane
        x, filters = gathered(block, group, *chunk, row, k), weight(group, columns, *chunk, column, k)
        return te.sum(widened(x) * widened(filters), axis=axes)

    products = (tile.warp_positions // ROWS, tile.warp_channels // COLUMNS)
    acc = te.compute((*tile.grid, *tile.warps, *products, 2, *LANES, 2), summand, name="acc")

    def at(*index: Any) -> Any:
        n, oc, *position = _located(tile, index)
        return epilogue(arguments, acc(*index), n, oc, position)

    return arguments.primfunc(te.compute(acc.shape, at, name="y"))


def _gathered(tile: WarpTiles, arguments: Arguments) -> Any:
    """The stage `tile`: (block, group, chunk, kd, kh, kw, position of a block, input channel of a chunk)."""
    from tvm import te, tirx

    spec = tile.spec
    variant, geometry, one = variants.primitive(spec), Geometry.of(spec), tirx.const(1.0, spec.dtype)

    def read(n: Any, ic: Any, position: Sequence[Any]) -> Any:
        return zero_padded(spec, geometry, arguments.read_x, n, ic, position)

    term = variant.term(spec, operands(geometry, read, lambda *_: one, widen=lambda value: value))

    def at(block: Any, group: Any, chunk: Any, kd: Any, kh: Any, kw: Any, row: Any, k: Any) -> Any:
        output = block * tile.positions + row
        n, position = unflattened(spec, output)
        oc = variant.channel(spec, group, 0)  # any channel of the group reads the same input
        value = term.at(n, oc, position, (chunk * tile.depth + k, *(kd, kh, kw)[3 - spec.rank :]))
        inside = [output < tile.outputs] if tile.outputs % tile.positions else []
        if tile.run_in % tile.depth:  # in whole vectors, so that the condition is one for all of a vector
            vector = (chunk * tile.depth + k) // tile.gathered
            inside.append(vector < tile.run_in // tile.gathered)
        return or_zero(inside, value)

    shape = (*tile.grid[:2], *tile.chunks, tile.positions, tile.depth)
    return te.compute(shape, at, name="tile")


def _of_block(tile: WarpTiles, index: Sequence[Any]) -> tuple[Any, Any]:
    """The position and channel of a block that an index of `acc` is for."""
    across, along, rows, columns, half, row, pair, column = index[3:]
    position = across * tile.warp_positions + rows * ROWS + half * LANES[0] + row
    return position, along * tile.warp_channels + columns * COLUMNS + pair * 2 + column


def _of_output(tile: WarpTiles, index: Sequence[Any]) -> tuple[Any, Any]:
    """The row of the matrix product, and the channel of the group."""
    position, channel = _of_block(tile, index)
    return index[0] * tile.positions + position, index[2] * tile.channels + channel


def _located(tile: WarpTiles, index: Sequence[Any]) -> tuple[Any, ...]:
    """(n, oc, *position) of an index of `acc`."""
    output, within = _of_output(tile, index)
    n, position = unflattened(tile.spec, output)
    return n, variants.primitive(tile.spec).channel(tile.spec, index[1], within), *position


def _inside(tile: WarpTiles, index: Sequence[Any]) -> list[Any]:
    """What must hold for the element to exist; only what can fail."""
    # the first of a pair where this is stored at once, so that the condition is one for both
    output, within = _of_output(tile, [*index[:-1], 0] if tile.pairs else index)
    rows = [output < tile.outputs] if tile.outputs % tile.positions else []
    return rows + ([within < tile.run] if tile.run % tile.channels else [])


def _place_sums(sch: Any, tile: WarpTiles, scope: str) -> Any:
    """Binds blocks and warps, and places the sums and operands; returns the loop over chunks."""
    y, acc = sch.get_sblock("y"), sch.get_sblock("acc")
    *blocks, across, along, rows, columns, half, row, pair, column = sch.get_loops(y)
    sch.reorder(*blocks, across, along, row, pair, rows, columns, half, column)
    sch.compute_at(acc, pair, preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    *outer, product, lane = sch.get_loops(acc)[-6:]
    sums = sch.get_loops(acc)[-17:-6]
    sch.reorder(*outer, product, *sums, lane)
    chunk = sch.fuse(*outer)
    sch.bind(sch.fuse(*blocks), "blockIdx.x")
    for loop, axis in ((sch.fuse(across, along), "z"), (row, "y"), (pair, "x")):
        sch.bind(loop, f"threadIdx.{axis}")
    filters, x = sch.cache_read(acc, 1, scope), sch.get_sblock("tile")
    sch.set_scope(x, 0, scope)
    for copy, vector in ((filters, WIDE), (x, tile.gathered)):
        _share(sch, tile, copy, chunk, vector)
        sch.storage_align(copy, 0, 6, 2 * WIDE, WIDE)
    for loop in (rows, columns, half, product, *sums[5:7]):
        sch.unroll(loop)
    if tile.pairs:
        sch.vectorize(column)
    else:
        sch.unroll(column)
    for loop in sch.get_loops(sch.decompose_reduction(acc, chunk))[-11:]:
        sch.unroll(loop)
    sch.blockize(sums[7])
    return chunk


def _share(sch: Any, tile: WarpTiles, copy: Any, chunk: Any, vector: int) -> None:
    """Computes a copy at a chunk, shared out to the threads: side by side along what is side by side in memory."""
    sch.compute_at(copy, chunk, preserve_unit_loops=True)
    row, k = sch.get_loops(copy)[-2:]
    part, lane = sch.split(k, [None, vector])
    if vector == 1:
        sch.reorder(part, row)
    loops = (part, row) if vector == 1 else (row, part)
    _, z, y, x = sch.split(sch.fuse(*loops), [None, count(tile.warps), *LANES])
    for loop, axis in ((z, "z"), (y, "y"), (x, "x")):
        sch.bind(loop, f"threadIdx.{axis}")
    if vector > 1:
        sch.vectorize(lane)


def _with_tensor_cores(main: Any) -> Any:
    """The function with an instruction in place of each product of 16 x 16 and 16 x 8 that a warp adds to `acc`."""
    from tvm import s_tir
    from tvm_ffi import structural_map

    def replaced(block: Any) -> Any:
        if block.name_hint != "acc_update_o":
            return block
        return s_tir.SBlock(
            iter_vars=block.iter_vars,
            reads=block.reads,
            writes=block.writes,
            name_hint=block.name_hint,
            body=_product(block),
            annotations=block.annotations,
        )

    return structural_map(main, (s_tir.SBlock, replaced))


def _product(block: Any) -> Any:
    """What replaces the loops over a thread's part of a product: its operands, and the instruction."""
    from tvm import sym, tirx

    def starts(region: Any) -> list[Any]:
        return [r.min for r in region.region]

    (sums,) = block.writes
    x, filters = (region for region in block.reads if not region.source.same_as(sums.source))
    row, pair = starts(sums)[-3:-1]
    *of_rows, first_row, k = starts(x)
    *of_columns, first_column, _ = starts(filters)

    def words(region: Any, outer: Sequence[Any], line: Any, half: int) -> Any:
        index = [*outer, line, tirx.Ramp(k + half * DEPTH // 2 + pair * 2, 1, 2)]
        return tirx.BufferLoad(region.source, index)

    left = [words(x, of_rows, first_row + LANES[0] * low, half) for half in (0, 1) for low in (0, 1)]
    # of the columns, the thread brings another than the two that its sums are of
    column = sym.Analyzer().simplify(first_column - pair * 2 + row)
    right = [words(filters, of_columns, column, half) for half in (0, 1)]
    pointer = tirx.call_intrin("handle", "tirx.address_of", tirx.BufferLoad(sums.source, starts(sums)))
    return tensor_cores.multiply(pointer, left, right)


gpu_tensor_cores = GpuTensorCores()
