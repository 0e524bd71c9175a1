"""Dense and grouped convolution on a GPU as a matrix product of tiles, any rank and layout.

block = (positions of all images, groups, output channels [, slice of the input channels]):
    acc[position, channel] = 0                                            in registers, a tile a thread
    for chunks of (ic, kd, kh, kw):                                       pipeline: the next ones are on their way
        tile[ic, kd, kh, kw, position] = x (zero outside)                 in shared memory, its channels last as in x
        filters[kd, kh, kw, ic, channel] = weight                         in shared memory
        for kd, kh, kw, ic of the chunk:
            acc[...] += tile[...] * filters[...]                          operands of a thread in registers
    y[...] = activation(acc + bias + residual)

With several slices a block stores its sums in global memory, and a second kernel adds them up: for outputs too small to
keep a GPU busy. Groups of few channels come several to a block, each with threads of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.cropping import cropped
from convtune.schedules.gpu_implicit_gemm import (
    STAGES,
    VARIANTS,
    BlockTile,
    chunk_taps,
    exists,
    expression,
    located,
    pack,
)
from convtune.schedules.gpu_tiling import WIDE, even_chunk, share, shared_scope, thread_each, unroll, up_to
from convtune.schedules.gpu_work import DEPENDENT_CYCLES, LATENCY_CYCLES, LAUNCH_CYCLES, Work, cycles

from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import DTYPES, count
from convtune.targets.gpu import GpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

POSITIONS = (32, 64, 128)
THREAD_TILES = ("4x4", "8x4", "4x8", "8x8")  # positions x channels
FEW_CHANNELS = 8  # of a group: one thread has them all
FEWEST_THREADS, MOST_THREADS = 32, 256
WAITS_OF_CHUNK = 1.5  # for global memory, then at two barriers
SECTOR = 32  # bytes that global memory gives at least
ADDRESSES = 36  # registers for indices, predicates and loops


class GpuTiles(Estimating[GpuTarget]):
    name = "gpu_tiles"
    dtypes = ("float32", "float16")
    summary = "a block's operands in shared memory, a tile of sums in each thread's registers"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, GpuTarget) and spec.variant in VARIANTS

    def knobs(self, spec: ConvSpec, target: GpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        few = spec.groups > 1 and spec.out_channels // spec.groups <= FEW_CHANNELS
        channels = spec.out_channels // (1 if few else spec.groups)
        return {
            "positions": up_to(POSITIONS, spec.batch * count(spec.out_size)),
            "channels": up_to((8, 16, 32, 64, 128), channels)[-3:],
            "thread_tile": THREAD_TILES,
            "depth": _depths(spec),
            "slices": (1, 2, 4, 8, 16),
            "pipeline": ("none", "async2", "async3") if target.has_async_copy else ("none",),
        }

    def allows(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> bool:
        tile, pipeline = _tile(spec, knobs), str(knobs["pipeline"])
        if spec.groups > 1 and tile.run <= FEW_CHANNELS and tile.channels != _few(tile.run):
            return False
        if tile.positions % tile.thread_positions or tile.channels % tile.thread_channels:
            return False
        if count(tile.threads) > MOST_THREADS or _resident(target, tile, pipeline) < 1:
            return False
        if count(tile.threads) < FEWEST_THREADS and not _smallest(tile):
            return False
        return _slices_pay(target, tile) and count(tile.chunks) >= STAGES[pipeline]

    def estimate(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile = _tile(spec, knobs)
        total = cycles(_work(tile, str(knobs["pipeline"])), target)
        if tile.slices == 1:
            return total
        added = 4.0 * (tile.slices + 1) * count(spec.out_shape)
        return total + LAUNCH_CYCLES + 2 * added * target.clock_mhz / (1e3 * target.dram_gbs)

    def pack(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (pack(_tile(spec, knobs)),)

    def schedule(self, spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile, pipeline = _tile(spec, knobs), str(knobs["pipeline"])
        sch = Schedule(expression(tile))
        chunk = _place_sums(sch, tile, _bind_blocks(sch, tile), pipeline)
        _fill_ahead(sch, chunk, pipeline)
        if tile.slices == 1:
            locate, inside = (functools.partial(of, tile) for of in (located, exists))
            return cropped(sch.mod["main"], spec, locate, inside)
        thread_each(sch, target, "y", "total", count(spec.out_shape))
        return sch.mod


def _depths(spec: ConvSpec) -> tuple[int, ...]:
    """Depths that make different chunks."""
    chunks = {(depth, chunk_taps(spec, depth, most)): most for most, depth in _chunk_sizes(spec)}
    return tuple(sorted(chunks.values()))


def _chunk_sizes(spec: ConvSpec) -> list[tuple[int, int]]:
    run_in = spec.in_channels // spec.groups
    return [(most, _chunk_depth(spec, most)) for most in (32, 16, 8) if most > 8 or run_in < 16]


def _chunk_depth(spec: ConvSpec, most: int) -> int:
    depth = even_chunk(spec.in_channels // spec.groups, most)
    # what is one product deep, one row of threads writes for all rows, each thread at the index where it reads: TVM
    # 0.27 takes that for the same thread, and puts no barrier in between
    return depth if count(spec.kernel) > 1 else max(depth, 2)


def _few(run: int) -> int:
    """Channels of a thread that has all of a group."""
    return WIDE if run <= WIDE else FEW_CHANNELS


@functools.lru_cache(maxsize=1 << 14)  # asked for several times for each of thousands of candidates
def _block_tile(spec: ConvSpec, positions: int, channels: int, thread_tile: str, depth: int, slices: int) -> BlockTile:
    run = spec.out_channels // spec.groups
    thread_positions, thread_channels = (int(part) for part in thread_tile.split("x"))
    groups = 1
    if spec.groups > 1 and run <= FEW_CHANNELS:
        most = max(channels // thread_channels, 1)
        groups = max(n for n in range(1, most + 1) if spec.groups % n == 0)
        channels = thread_channels
    ic = _chunk_depth(spec, depth)
    taps = chunk_taps(spec, ic, depth)
    return BlockTile(spec, positions, channels, groups, thread_positions, thread_channels, ic, taps, slices)


def _tile(spec: ConvSpec, knobs: Knobs) -> BlockTile:
    positions, channels, depth, slices = (int(knobs[name]) for name in ("positions", "channels", "depth", "slices"))
    return _block_tile(spec, positions, channels, str(knobs["thread_tile"]), depth, slices)


def _smallest(tile: BlockTile) -> bool:
    """Whether more threads would have nothing to do, or less than the smallest tile."""
    few = tile.spec.groups > 1 and tile.run <= FEW_CHANNELS
    small = tile.thread_positions == WIDE and (few or tile.thread_channels == WIDE)
    return small and (tile.positions >= tile.outputs or tile.positions == POSITIONS[-1])


def _slices_pay(target: GpuTarget, tile: BlockTile) -> bool:
    """Whether the slices have enough to do each, and find SMs that would have no block."""
    blocks = tile.blocks // tile.slices
    return tile.slices == 1 or (
        tile.chunks[0] * tile.depth >= 32 and blocks * tile.slices <= 4 * target.sms > 2 * blocks
    )


def _shared_bytes(tile: BlockTile, pipeline: str) -> int:
    return DTYPES[tile.spec.dtype] * STAGES[pipeline] * (tile.tile_elements + tile.weight_elements)


def _registers(tile: BlockTile) -> int:
    """Of a thread, about."""
    rows = tile.thread_positions * (tile.gathered if tile.spec.channels_last else 1)
    return tile.thread_positions * tile.thread_channels + rows + tile.thread_channels + ADDRESSES


def _resident(target: GpuTarget, tile: BlockTile, pipeline: str) -> int:
    return target.resident_blocks(count(tile.threads), _registers(tile), _shared_bytes(tile, pipeline))


def _work(tile: BlockTile, pipeline: str) -> Work:
    spec, threads, chunks = tile.spec, count(tile.threads), count(tile.chunks)
    size = DTYPES[spec.dtype]
    sector = SECTOR // size
    rows, columns, depth = tile.thread_positions, tile.thread_channels, chunks * tile.chunk
    loads = rows / (tile.gathered if spec.channels_last else tile.position_split[2]) + columns / tile.channel_split[2]
    of_x, of_weight = (chunks * n / threads for n in (tile.tile_elements, tile.weight_elements))
    together = tile.depth * tile.groups * (tile.taps[-1] if spec.in_channels == tile.depth * tile.groups else 1)
    contiguous = together if spec.channels_last else sector / spec.stride[-1]
    fmas = rows * columns * depth
    hidden = min(1.0, (STAGES[pipeline] - 1) * fmas / chunks * DEPENDENT_CYCLES / LATENCY_CYCLES)
    return Work(
        blocks=tile.blocks,
        threads=threads,
        registers=_registers(tile),
        shared_bytes=_shared_bytes(tile, pipeline),
        fmas=fmas,
        instructions=loads * depth + 10 * of_x / tile.gathered + of_weight + 20 * chunks,
        wavefronts=depth * (rows + columns) + of_x + of_weight,
        waits=2 + WAITS_OF_CHUNK * chunks * (1 - hidden),
        l2_bytes=size * threads * (of_x * max(1.0, sector / contiguous) + of_weight),
        dram_bytes=spec.bytes,
    )


def _bind_blocks(sch: Any, tile: BlockTile) -> Any:
    """Binds what the sums are stored in to blocks and threads; returns the threads' loop."""
    loops = sch.get_loops(sch.get_sblock("y" if tile.slices == 1 else "part"))
    slices, index = loops[:-10], loops[-10:]
    last = tile.spec.channels_last
    (b, pj, px, pi), (g, gi, cb, cj, cx, ci) = (index[:4], index[4:]) if last else (index[6:], index[:6])
    store = (pj, cj, pi, ci) if last else (cj, pj, ci, pi)
    y, x = ([px], [gi, cx]) if last else ([gi, cx], [px])
    sch.reorder(*slices, b, g, cb, *y, *x, *store)
    sch.bind(sch.fuse(*slices, b, g, cb), "blockIdx.x")
    sch.bind(sch.fuse(*y), "threadIdx.y")  # not one loop with x: TVM 0.27 would give a thread the sums of all
    thread = sch.fuse(*x)
    sch.bind(thread, "threadIdx.x")
    unroll(sch, store)
    return thread


def _place_sums(sch: Any, tile: BlockTile, thread: Any, pipeline: str) -> Any:
    """Computes the sums in a thread's registers, from operands in shared memory; returns the loop over chunks."""
    acc, vector = sch.get_sblock("acc"), tile.gathered if tile.spec.channels_last else 1
    sch.compute_at(acc, thread, preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    loops = sch.get_loops(acc)
    sums, outer, inner = loops[-18:-8], loops[-8:-4], loops[-4:]
    sch.reorder(*outer, *inner, *sums)
    chunk = sch.fuse(*outer)
    ic, lane = sch.split(inner[-1], [None, vector])
    _place_shared(sch, tile, acc, chunk, pipeline)
    for operand, at in ((0, ic), (1, lane)):
        copy = sch.cache_read(acc, operand, "local")
        sch.compute_at(copy, at, preserve_unit_loops=True)
        *rest, last = sch.get_loops(copy)[-8:]
        # TVM 0.27 retypes a buffer that is only ever accessed by fours, and makes no asynchronous copy to it; nvcc
        # joins two loads of two
        pairs = STAGES[pipeline] > 1 and int(sch.get(last).extent) == WIDE
        unroll(sch, [*rest, *(sch.split(last, [None, 2]) if pairs else [last])])
    for loop in (lane, *sums):
        sch.unroll(loop)
    for loop in sch.get_loops(sch.decompose_reduction(acc, chunk))[-10:]:
        sch.unroll(loop)
    return chunk


def _place_shared(sch: Any, tile: BlockTile, acc: Any, chunk: Any, pipeline: str) -> None:
    """Copies a chunk of both operands to shared memory."""
    scope = shared_scope(_shared_bytes(tile, pipeline))
    x, filters = sch.get_sblock("tile"), sch.cache_read(acc, 1, scope)
    sch.set_scope(x, 0, scope)
    share(sch, filters, chunk, 8, tile.threads, WIDE, vectors_of=3)
    share(sch, x, chunk, 8, tile.threads, tile.gathered)
    if tile.spec.channels_last:
        sch.storage_align(x, 0, ROW_AXIS, 2 * tile.gathered, tile.gathered)


ROW_AXIS = 9  # of `tile`: the positions side by side in a thread, the last ones before taps and channels


def _fill_ahead(sch: Any, chunk: Any, pipeline: str) -> None:
    """Makes the loop over chunks a pipeline."""
    if STAGES[pipeline] > 1:
        sch.annotate(chunk, "software_pipeline_stage", [0, 0, STAGES[pipeline] - 1])
        sch.annotate(chunk, "software_pipeline_order", [0, 1, 2])
        sch.annotate(chunk, "software_pipeline_async_stages", [0])


gpu_tiles = GpuTiles()
