"""A GEMM whose left matrix a block of threads makes as it goes, in shared memory: tiles, loops and a coarse model.

The rows of the GEMM are the output positions of an image, as one row; its columns are the output channels of a group;
its depth comes in chunks, each of which lies in shared memory: `col`, that the space computes, and `weight`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.gpu_tiling import WIDE, axis_split, bind_turns, even_chunk, share, up_to
from convtune.schedules.gpu_work import Work, cycles
from convtune.schedules.tiling import ceil_div

from convtune.expression import Arguments, cube, epilogue, widened
from convtune.spec import DTYPES, count
from convtune.targets.gpu import STATIC_SHARED_BYTES, WARP, GpuTarget

if TYPE_CHECKING:
    from convtune.space import Knobs, KnobValue, PackStep
    from convtune.spec import ConvSpec

SCATTER_PAD = 4  # elements after a row of `col` that is stored across its rows, so that not all fall into one bank
FEWEST_THREADS, MOST_THREADS = WARP, 256  # with 512, ptxas 13.0 rather spills than has more than 40 or 64 registers
CHUNK_INSTRUCTIONS = 20  # of a thread: two barriers and the loops around them


@dataclass(frozen=True)
class GemmTile:
    """What a block and each of its threads compute, and how the depth of the sum is cut into chunks.

    The depth is taps * segments * run: `run` channels are made in the same way, such as with the same offsets, and a
    chunk has `chunk` channels of each of `together` segments.
    """

    positions: int  # of a block
    channels: int  # of a block, of one group
    thread_positions: int
    thread_channels: int
    segments: int
    run: int
    together: int
    chunk: int
    channels_last: bool
    element_bytes: int  # of x and the weights; `col` is float32

    @property
    def threads(self) -> tuple[int, int]:
        """Of a block, along y and x: neighbours along x store to neighbouring memory."""
        across, along = self.positions // self.thread_positions, self.channels // self.thread_channels
        return (across, along) if self.channels_last else (along, across)

    @property
    def position_split(self) -> tuple[int, int, int]:
        """Positions of a block as (part of a thread, thread, vector of a thread)."""
        return axis_split(self.positions, self.thread_positions)

    @property
    def channel_split(self) -> tuple[int, int, int]:
        """Channels of a block as (part of a thread, thread, vector of a thread)."""
        return axis_split(self.channels, self.thread_channels)

    @property
    def vector(self) -> int:
        """Channels of `col` that a thread makes side by side."""
        return gcd(WIDE, gcd(self.run, self.chunk)) if self.channels_last else 1

    @property
    def outer(self) -> tuple[int, int]:
        """Chunks of the segments, and of a segment."""
        return ceil_div(self.segments, self.together), ceil_div(self.run, self.chunk)

    @property
    def depth(self) -> int:
        """Channels of a chunk."""
        return self.together * self.chunk

    @property
    def registers(self) -> int:
        """Of a thread, about: the sums, their operands, what is on its way to shared memory, and addresses."""
        sums = self.thread_positions * self.thread_channels
        return sums + self.thread_positions + self.thread_channels + (72 if self.vector > 1 else 40)


def tile_knobs(spec: ConvSpec) -> Mapping[str, tuple[KnobValue, ...]]:
    """The knobs that `gemm_tile` reads; values too large for the convolution are left out."""
    channels, positions = spec.out_channels // spec.groups, count(spec.out_size)
    blocks = up_to((1, 2, 4, 8, 16, 32, 64, 128, 256), channels)[-4:]
    rows, columns = ((2, 4, 8), (4, 8)) if channels > WIDE else ((1, 2, 4), (blocks[-1],))
    return {
        "positions": up_to((32, 64, 128), positions),
        "channels": tuple(block for block in blocks if block >= columns[0]),
        "thread_tile": tuple(f"{row}x{column}" for row in rows for column in columns),
        "chunk": (8, 16, 32),
    }


def gemm_tile(spec: ConvSpec, segments: int, run: int, knobs: Knobs) -> GemmTile:
    """The tile of these knobs, for a sum over that many segments of `run` channels for each tap."""
    positions, channels = (int(part) for part in str(knobs["thread_tile"]).split("x"))
    chunk = even_chunk(run, int(knobs["chunk"]))
    together = min(segments, max(1, int(knobs["chunk"]) // chunk))
    block = (int(knobs["positions"]), int(knobs["channels"]))
    return GemmTile(*block, positions, channels, segments, run, together, chunk, spec.channels_last, DTYPES[spec.dtype])


def fits(target: GpuTarget, tile: GemmTile, shared_bytes: int) -> bool:
    """Whether a block has threads to fill warps and to hide latency with, and an SM has room for it."""
    threads = count(tile.threads)
    if (
        tile.thread_channels > tile.channels
        or not FEWEST_THREADS <= threads <= MOST_THREADS
        or shared_bytes > STATIC_SHARED_BYTES
    ):
        return False
    return target.resident_blocks(threads, tile.registers, shared_bytes) > 0


def shared_bytes(tile: GemmTile) -> int:
    """Of `col` and the weights."""
    row = tile.positions + (SCATTER_PAD if tile.channels_last else 0)
    return tile.depth * (4 * row + tile.element_bytes * tile.channels)


@dataclass(frozen=True)
class Making:
    """What a thread does for an element of `col`; prepared: for an entry of the tables of a chunk of segments."""

    instructions: float
    wavefronts: float
    prepared: float = 0.0


def gemm_cycles(
    target: GpuTarget, spec: ConvSpec, stage: ConvSpec, tile: GemmTile, shared_bytes: int, making: Making
) -> float:
    """Cycles of one call of a convolution whose GEMM is that of `stage`, coarsely."""
    threads, taps = count(tile.threads), count(stage.kernel)
    segments, chunks = taps * tile.outer[0], taps * count(tile.outer)
    operands = ceil_div(tile.thread_positions, WIDE) + ceil_div(tile.thread_channels, WIDE)
    made = ceil_div(tile.depth * tile.positions, threads)
    copied = ceil_div(tile.depth * tile.channels, WIDE * threads)
    sums = tile.thread_positions * tile.thread_channels
    tables = segments * ceil_div(tile.together * tile.positions, threads)
    per_chunk = tile.depth * (operands + 0.5) + made * making.instructions + 4 * copied + CHUNK_INSTRUCTIONS
    work = Work(
        blocks=spec.batch
        * ceil_div(count(stage.out_size), tile.positions)
        * stage.groups
        * ceil_div(stage.out_channels // stage.groups, tile.channels),
        threads=threads,
        registers=tile.registers,
        shared_bytes=shared_bytes,
        fmas=chunks * tile.depth * sums,
        instructions=chunks * per_chunk + tables * making.prepared + 4 * sums,
        wavefronts=chunks
        * (tile.depth * (tile.thread_positions + tile.thread_channels) + made * making.wavefronts + 2 * copied * WIDE)
        + 2 * sums,
        waits=2 * chunks + (2 * segments if making.prepared else 0),
        l2_bytes=tile.element_bytes * chunks * tile.depth * (tile.positions + tile.channels),
        dram_bytes=spec.bytes,
    )
    return cycles(work, target)


def pack_gemm(spec: ConvSpec, tile: GemmTile) -> tuple[PackStep, ...]:
    """PyTorch's (oc, ic, *taps) to (group, channel block, *taps, *chunks, channel of a chunk, oc), zeros at ends."""
    groups, rank, run = spec.groups, spec.rank, spec.out_channels // spec.groups
    (so, co), blocks = tile.outer, ceil_div(run, tile.channels)
    taps = [*range(7, 7 + rank)]
    return (
        {"op": "reshape", "shape": [groups, run, tile.segments, tile.run, *spec.kernel]},
        {
            "op": "pad",
            "widths": [
                [0, 0],
                [0, blocks * tile.channels - run],
                [0, so * tile.together - tile.segments],
                [0, co * tile.chunk - tile.run],
                *([0, 0] for _ in range(rank)),
            ],
        },
        {"op": "reshape", "shape": [groups, blocks, tile.channels, so, tile.together, co, tile.chunk, *spec.kernel]},
        {"op": "transpose", "axes": [0, 1, *taps, 3, 5, 4, 6, 2]},
        {"op": "reshape", "shape": list(packed_gemm(spec, tile))},
    )


def packed_gemm(spec: ConvSpec, tile: GemmTile) -> tuple[int, ...]:
    """The shape that `pack_gemm` makes of a weight: one dimension of all taps."""
    blocks = ceil_div(spec.out_channels // spec.groups, tile.channels)
    return (spec.groups, blocks, count(spec.kernel), *tile.outer, tile.depth, tile.channels)


def gathered_gemm(arguments: Arguments, tile: GemmTile, sample: Callable[..., Any]) -> Any:
    """The function of `col`, `acc` and `y` over the last of the arguments' weights.

    col: of the shape `col_shape`, is `sample` of its indices; there are positions beyond the last output.
    """
    from tvm import te

    stage, weight = arguments.spec.stages[-1], arguments.weights[-1]
    shape = col_shape(stage, tile)
    blocks, taps, inner = shape[2], shape[3], shape[6:9]
    col = te.compute(shape, sample, name="col")
    extents = (("tap", taps), *zip(("so", "co"), tile.outer), *zip(("segment", "vector", "lane"), inner))
    tap, so, co, s, v, lane = axes = [te.reduce_axis((0, extent), name) for name, extent in extents]
    (pj, px, pi), (cj, cx, ci) = tile.position_split, tile.channel_split

    def summand(n: Any, block: Any, p0: Any, p1: Any, p2: Any, g: Any, cb: Any, c0: Any, c1: Any, c2: Any) -> Any:
        position, channel = (p0 * px + p1) * pi + p2, (c0 * cx + c1) * ci + c2
        k = s * tile.chunk + v * tile.vector + lane
        filters = widened(weight(g, cb, tap, so, co, k, channel))
        return te.sum(col(n, g, block, tap, so, co, s, v, lane, position) * filters, axis=axes)

    sums = (stage.batch, blocks, pj, px, pi, stage.groups, weight.shape[1], cj, cx, ci)
    return arguments.primfunc(_output(arguments, tile, te.compute(sums, summand, name="acc")))


def col_shape(spec: ConvSpec, tile: GemmTile) -> tuple[int, ...]:
    """(n, group, block of positions, tap, *chunks, segment, vector, lane, position of a block)."""
    blocks, inner = ceil_div(count(spec.out_size), tile.positions), (tile.chunk // tile.vector, tile.vector)
    outer = (spec.batch, spec.groups, blocks, count(spec.kernel), *tile.outer)
    return (*outer, tile.together, *inner, tile.positions)


def _output(arguments: Arguments, tile: GemmTile, sums: Any) -> Any:
    """The stage `y`, all outputs of an image in one dimension, channels as `expression.output` has them."""
    from tvm import te

    spec, groups = arguments.spec, arguments.spec.stages[-1].groups
    outputs, run = count(spec.out_size), spec.out_channels // groups
    channels = (run,) if groups == 1 else (groups, run)
    shape = (outputs, *channels) if spec.channels_last else (*channels, outputs)
    (_, px, pi), (_, cx, ci) = tile.position_split, tile.channel_split

    def at(n: Any, *index: Any) -> Any:
        output, channel = (index[0], index[1:]) if spec.channels_last else (index[-1], index[:-1])
        group, within = cube(channel, 0)[1:]
        position, place = output % tile.positions, within % tile.channels
        row = (output // tile.positions, position // (px * pi), position // pi % px, position % pi)
        column = (within // tile.channels, place // (cx * ci), place // ci % cx, place % ci)
        return epilogue(arguments, sums(n, *row, group, *column), n, group * run + within, unflattened(spec, output))

    return te.compute((spec.batch, *shape), at, name="y")


def unflattened(spec: ConvSpec, output: Any) -> tuple[Any, ...]:
    """The position, of the spec's rank, of an output of an image."""
    place: list[Any] = []
    for size in reversed(spec.out_size[1:]):
        place.insert(0, output % size)
        output = output // size
    return (output, *place)


@dataclass(frozen=True)
class GemmLoops:
    """The loops of a block of threads in which other stages may be computed."""

    thread: Any
    taps: Any
    segments: Any  # chunks of segments
    chunk: Any
    element: Any  # in which a thread makes a vector of `col`


def place_gemm(sch: Any, spec: ConvSpec, tile: GemmTile) -> GemmLoops:
    """Binds the loops to blocks and threads, keeps the sums in registers, `col` and the weights in shared memory."""
    acc = sch.get_sblock("acc")
    result = sch.cache_write(acc, 0, "local")
    n, block, pj, px, pi, g, cb, cj, cx, ci, *axes = sch.get_loops(acc)
    (y, x), sums = ((px, cx), (pj, cj, pi, ci)) if spec.channels_last else ((cx, px), (cj, pj, ci, pi))
    sch.reorder(n, g, cb, block, y, x, *axes, *sums)
    sch.bind(n, "blockIdx.z")
    sch.bind(sch.fuse(g, cb), "blockIdx.y")
    sch.bind(block, "blockIdx.x")
    sch.bind(y, "threadIdx.y")
    sch.bind(x, "threadIdx.x")
    sch.reverse_compute_at(result, x, preserve_unit_loops=True)
    for loop in (*sums, *sch.get_loops(result)[-10:]):
        sch.unroll(loop)
    sch.reverse_compute_inline(sch.get_sblock("y"))  # last: TVM 0.27's reverse_compute_at drops its condition
    taps, segments, chunk = axes[:3]
    share(sch, sch.cache_read(acc, 1, "shared"), chunk, 2, tile.threads, WIDE)
    element = _place_col(sch, spec, tile, chunk)
    sch.decompose_reduction(acc, taps)
    return GemmLoops(x, taps, segments, chunk, element)


def _place_col(sch: Any, spec: ConvSpec, tile: GemmTile, chunk: Any) -> Any:
    col = sch.get_sblock("col")
    sch.set_scope(col, 0, "shared")
    sch.compute_at(col, chunk, preserve_unit_loops=True)
    *_, s, v, lane, p = sch.get_loops(col)
    if not spec.channels_last:
        alone = tile.positions % count(tile.threads) == 0  # TVM 0.27 could not see through the quotients of the others
        return bind_turns(sch, [p] if alone else [s, v, lane, p], tile.threads)
    sch.reorder(s, p, v, lane)
    sch.storage_align(col, 0, -2, WARP, SCATTER_PAD)
    return bind_turns(sch, [s, p, v], tile.threads)


def merge_output(sch: Any, spec: ConvSpec) -> None:
    """Gives `y` the spec's shape, once nothing needs to see its outputs in one dimension any more."""
    run = spec.out_channels // spec.stages[-1].groups

    def merged(n: Any, *index: Any) -> list[Any]:
        output, channel = (index[0], index[1:]) if spec.channels_last else (index[-1], index[:-1])
        oc = channel[0] if len(channel) == 1 else channel[0] * run + channel[1]
        position = unflattened(spec, output)
        return [n, *position, oc] if spec.channels_last else [n, oc, *position]

    sch.transform_layout("acc_local", ("write", 0), merged)
