"""A convolution of float16 on Tensor Cores: tiles of a block and its warps, stages and a coarse model.

Rows of the matrix product are the output positions of all images, columns the output channels of a group. `tile` is
what a block gathers for one chunk of the depth, `acc` its sums.

A warp is 8 rows of 4 threads: of each product a thread has the sums of two rows and of two columns beside each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_implicit_gemm import unflattened
from convtune.schedules.gpu_work import LAUNCH_CYCLES, Work, cycles
from convtune.schedules.tiling import ceil_div

from convtune import variants
from convtune.cuda import tensor_cores
from convtune.cuda.tensor_cores import COLUMNS, DEPTH, ROWS
from convtune.expression import Arguments, epilogue, widened
from convtune.spec import DTYPES, count
from convtune.targets.gpu import WARP, GpuTarget

if TYPE_CHECKING:
    from convtune.space import Knobs, KnobValue
    from convtune.spec import ConvSpec, Dims
    from convtune.targets import Target

FEWEST_CHANNELS = 16  # of a group, in and out: with fewer, most of what Tensor Cores multiply would be zeros
WARP_TILES = ("32x32", "64x32", "32x64", "64x64")  # positions x channels
LANES = (8, 4)  # of a warp, along threadIdx.y and threadIdx.x
WIDE = 8  # float16 in the widest load of a thread
MOST_WARPS = 8
ADDRESSES = 48  # registers for indices, predicates, operands and loops


@dataclass(frozen=True)
class WarpTiles:
    """What a block and each of its warps compute, and how the depth is cut into chunks.

    depth: input channels of a chunk, which has one tap. chunks: extents of the loops over them, the outermost first.
    gathered: elements of x that a thread copies at once. slices: blocks that share a sum, each over some of the chunks.
    """

    spec: ConvSpec
    positions: int
    channels: int
    warp_positions: int
    warp_channels: int
    depth: int
    chunks: Dims
    gathered: int
    slices: int = 1

    @property
    def outputs(self) -> int:
        """Rows of the matrix product."""
        return self.spec.batch * count(self.spec.out_size)

    @property
    def run(self) -> int:
        """Output channels of a group."""
        return self.spec.out_channels // self.spec.groups

    @property
    def warps(self) -> tuple[int, int]:
        """Of a block, across positions and channels."""
        return self.positions // self.warp_positions, self.channels // self.warp_channels

    @property
    def threads(self) -> int:
        """Of a block."""
        return WARP * count(self.warps)

    @property
    def registers(self) -> int:
        """Of a thread, about: the sums, and the operands of 16 of the depth."""
        sums = self.warp_positions * self.warp_channels
        return (sums + (self.warp_positions + self.warp_channels) * DEPTH // 2) // WARP + ADDRESSES

    @property
    def shared_bytes(self) -> int:
        """Of a chunk of both operands."""
        return (self.positions + self.channels) * (self.depth + WIDE) * DTYPES["float16"]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Blocks across positions, groups, and channels of a group."""
        return ceil_div(self.outputs, self.positions), self.spec.groups, ceil_div(self.run, self.channels)

    @property
    def outer(self) -> Dims:
        """The slices, where there are several, and the chunks of each."""
        return (self.slices, *self.chunks) if self.slices > 1 else self.chunks

    @property
    def packed(self) -> Dims:
        """The shape of the weight: whole chunks, as a block reads them."""
        return (*self.grid[1:], *self.outer, self.channels, self.depth)

    @property
    def pairs(self) -> bool:
        """Whether two channels are stored at once."""
        if self.slices > 1:
            return True
        apart = self.spec.groups > 1 and variants.primitive(self.spec).interleaved
        return self.spec.channels_last and self.run % 2 == 0 and not apart


def has_tensor_cores(spec: ConvSpec, target: Target) -> bool:
    """Whether the target has them, and the groups have enough channels for them."""
    if not isinstance(target, GpuTarget):
        return False
    enough = min(spec.in_channels, spec.out_channels) // spec.groups >= FEWEST_CHANNELS
    return enough and target.compute >= tensor_cores.LEAST_COMPUTE and target.fp16_tensor_lanes > 0


def tile_knobs(spec: ConvSpec) -> dict[str, tuple[KnobValue, ...]]:
    """The knobs of `sizes`, without those too large for the convolution."""
    return {
        "positions": up_to((32, 64, 128, 256), spec.batch * count(spec.out_size)),
        "channels": up_to((32, 64, 128), spec.out_channels // spec.groups),
        "warp_tile": WARP_TILES,
        "depth": up_to((16, 32, 64), spec.in_channels // spec.groups),
    }


def up_to(sizes: Sequence[int], size: int) -> tuple[int, ...]:
    """The sizes up to the first that holds all."""
    return tuple(s for i, s in enumerate(sizes) if i == 0 or sizes[i - 1] < size)


def sizes(knobs: Knobs) -> tuple[int, int, int, int, int]:
    """The first fields of WarpTiles after the spec."""
    warp_positions, warp_channels = (int(part) for part in str(knobs["warp_tile"]).split("x"))
    positions, channels, depth = (int(knobs[name]) for name in ("positions", "channels", "depth"))
    return positions, channels, warp_positions, warp_channels, depth


def fits(target: GpuTarget, tile: WarpTiles, shared_bytes: int) -> bool:
    """Whether warps share out the block, and an SM has room for it."""
    if tile.positions % tile.warp_positions or tile.channels % tile.warp_channels or count(tile.warps) > MOST_WARPS:
        return False
    return target.resident_blocks(tile.threads, tile.registers, shared_bytes) > 0


@dataclass(frozen=True)
class Making:
    """What an element of `tile` takes.

    instructions: of a thread. wavefronts: of a warp, for one of each thread. reads: of x. waits: of a chunk.
    """

    instructions: float
    wavefronts: float
    reads: float
    waits: float


def estimate(target: GpuTarget, tile: WarpTiles, shared_bytes: int, making: Making) -> float:
    """Cycles of one call, coarsely."""
    total = cycles(_work(target, tile, shared_bytes, making), target)
    if tile.slices == 1:
        return total
    added = 4.0 * (tile.slices + 1) * count(tile.spec.out_shape)
    return total + LAUNCH_CYCLES + 2 * added * target.clock_mhz / (1e3 * target.dram_gbs)


def _work(target: GpuTarget, tile: WarpTiles, shared_bytes: int, making: Making) -> Work:
    chunks, products = count(tile.chunks), tile.warp_positions // ROWS * (tile.warp_channels // COLUMNS)
    steps = chunks * tile.depth // DEPTH
    words = steps * (tile.warp_positions // ROWS * 4 + tile.warp_channels // COLUMNS * 2)
    of_x = chunks * tile.positions * tile.depth // tile.threads
    of_weight = chunks * tile.channels * tile.depth // tile.threads
    scale = target.fp32_lanes / target.fp16_tensor_lanes  # the model knows the others' lanes
    return Work(
        blocks=count(tile.grid) * tile.slices,
        threads=tile.threads,
        registers=tile.registers,
        shared_bytes=shared_bytes,
        fmas=steps * products * ROWS * COLUMNS * DEPTH / WARP * scale,
        instructions=words + making.instructions * of_x + 4 * of_weight / WIDE + 20 * chunks,
        wavefronts=words + making.wavefronts * of_x + of_weight / 2,
        waits=2 + chunks * making.waits,
        l2_bytes=DTYPES["float16"] * tile.threads * (making.reads * of_x + of_weight),
        dram_bytes=tile.spec.bytes,
    )


def expression(tile: WarpTiles, arguments: Arguments, gathered: Callable[..., Any]) -> Any:
    """The function with the stages `acc` and `y`, which has the shape of `acc`:

    (block, group, block of channels, warp, warp, product, product, half of rows, row, pair of columns, column),
    the first of two alike of the positions; before these the slice, where there are several. Then `acc` is stored as
    `part`, which is summed up in `total`, and `y` has the spec's shape.

    gathered: the stage `tile`, (block, group, *outer, position of a block, input channel of a chunk).
    """
    from tvm import te

    weight, extents = arguments.weights[0], (*tile.chunks, tile.depth // DEPTH, DEPTH)
    *chunk, product, lane = axes = [te.reduce_axis((0, extent), f"r{i}") for i, extent in enumerate(extents)]

    def summand(*whole: Any) -> Any:
        outer, index = [*whole[:-11], *chunk], whole[-11:]
        (block, group, columns), (row, column) = index[:3], _of_block(tile, index)
        k = product * DEPTH + lane
        x, filters = gathered(block, group, *outer, row, k), weight(group, columns, *outer, column, k)
        return te.sum(widened(x) * widened(filters), axis=axes)

    products = (tile.warp_positions // ROWS, tile.warp_channels // COLUMNS)
    slices = (tile.slices,) if tile.slices > 1 else ()
    acc = te.compute((*slices, *tile.grid, *tile.warps, *products, 2, *LANES, 2), summand, name="acc")
    if slices:
        return arguments.primfunc(_summed(tile, arguments, te.compute(acc.shape, lambda *i: acc(*i), name="part")))

    def at(*index: Any) -> Any:
        n, oc, *position = located(tile, index)
        return epilogue(arguments, acc(*index), n, oc, position)

    return arguments.primfunc(te.compute(acc.shape, at, name="y"))


def _summed(tile: WarpTiles, arguments: Arguments, part: Any) -> Any:
    """The stages `total` and `y` over the slices of `part`."""
    from tvm import te

    spec, variant = tile.spec, variants.primitive(tile.spec)
    slice_ = te.reduce_axis((0, tile.slices), "slice")

    def place(index: Sequence[Any]) -> tuple[Any, Any, list[Any]]:
        return (index[0], index[-1], list(index[1:-1])) if spec.channels_last else (index[0], index[1], list(index[2:]))

    def total(*index: Any) -> Any:
        n, oc, position = place(index)
        output = n
        for size, p in zip(spec.out_size, position):
            output = output * size + p
        group = variant.group(spec, oc) if spec.groups > 1 else 0
        within = oc if spec.groups == 1 else oc // spec.groups if variant.interleaved else oc % tile.run
        return te.sum(part(slice_, *_index(tile, output, group, within)), axis=slice_)

    sums = te.compute(spec.out_shape, total, name="total")

    def at(*index: Any) -> Any:
        n, oc, position = place(index)
        return epilogue(arguments, sums(*index), n, oc, position)

    return te.compute(spec.out_shape, at, name="y")


def _index(tile: WarpTiles, output: Any, group: Any, within: Any) -> tuple[Any, ...]:
    """The index of `acc`, without the slice, of a row of the matrix product and a channel of a group."""
    row, column = output % tile.positions, within % tile.channels
    of_warp, of_columns = row % tile.warp_positions, column % tile.warp_channels
    blocks = (output // tile.positions, group, within // tile.channels)
    products = (row // tile.warp_positions, column // tile.warp_channels, of_warp // ROWS, of_columns // COLUMNS)
    lanes = (of_warp % ROWS // LANES[0], of_warp % LANES[0], of_columns % COLUMNS // 2, of_columns % 2)
    return (*blocks, *products, *lanes)


def _of_block(tile: WarpTiles, index: Sequence[Any]) -> tuple[Any, Any]:
    """The position and channel of a block that an index of `acc` is for."""
    across, along, rows, columns, half, row, pair, column = index[3:]
    position = across * tile.warp_positions + rows * ROWS + half * LANES[0] + row
    return position, along * tile.warp_channels + columns * COLUMNS + pair * 2 + column


def _of_output(tile: WarpTiles, index: Sequence[Any]) -> tuple[Any, Any]:
    """The row of the matrix product, and the channel of the group."""
    position, channel = _of_block(tile, index)
    return index[0] * tile.positions + position, index[2] * tile.channels + channel


def located(tile: WarpTiles, index: Sequence[Any]) -> tuple[Any, ...]:
    """(n, oc, *position) of an index of `acc`."""
    output, within = _of_output(tile, index)
    n, position = unflattened(tile.spec, output)
    return n, variants.primitive(tile.spec).channel(tile.spec, index[1], within), *position


def inside(tile: WarpTiles, index: Sequence[Any]) -> list[Any]:
    """What must hold for the element to exist; only what can fail."""
    # the first of a pair where this is stored at once, so that the condition is one for both
    output, within = _of_output(tile, [*index[:-1], 0] if tile.pairs else index)
    rows = [output < tile.outputs] if tile.outputs % tile.positions else []
    return rows + ([within < tile.run] if tile.run % tile.channels else [])
