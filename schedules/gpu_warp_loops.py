"""The loops of a convolution on Tensor Cores: which threads compute what, and the instruction in place of a product.

Rows of shared memory are 16 bytes longer than they are full, so that the 32 words a warp reads lie in different banks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convtune.schedules.cropping import cropped
from convtune.schedules.gpu_tiling import thread_each
from convtune.schedules.gpu_warp_tiles import LANES, WIDE, WarpTiles, inside, located

from convtune.cuda import tensor_cores
from convtune.cuda.tensor_cores import DEPTH
from convtune.spec import count
from convtune.targets.gpu import GpuTarget


def place_sums(sch: Any, tile: WarpTiles, scope: str) -> list[Any]:
    """Binds blocks and warps, and places the sums in registers, the operands in shared memory.

    Returns the loops over chunks.
    """
    stored, acc = sch.get_sblock("y" if tile.slices == 1 else "part"), sch.get_sblock("acc")
    *blocks, across, along, rows, columns, half, row, pair, column = sch.get_loops(stored)
    sch.reorder(*blocks, across, along, row, pair, rows, columns, half, column)
    sch.compute_at(acc, pair, preserve_unit_loops=True)
    sch.set_scope(acc, 0, "local")
    *outer, product, lane = sch.get_loops(acc)[-6:]
    sums = sch.get_loops(acc)[-17:-6]
    sch.reorder(*outer, product, *sums, lane)
    sch.bind(sch.fuse(*blocks), "blockIdx.x")
    for loop, axis in ((sch.fuse(across, along), "z"), (row, "y"), (pair, "x")):
        sch.bind(loop, f"threadIdx.{axis}")
    _share(sch, tile, sch.cache_read(acc, 1, scope), outer[-1], WIDE)
    _place_tile(sch, tile, acc, outer[-1], scope)
    for loop in (rows, columns, half, product, *sums[5:7]):
        sch.unroll(loop)
    if tile.pairs:
        sch.vectorize(column)
    else:
        sch.unroll(column)
    for loop in sch.get_loops(sch.decompose_reduction(acc, outer[0]))[-11:]:
        sch.unroll(loop)
    sch.blockize(sums[7])
    return list(outer)


def _place_tile(sch: Any, tile: WarpTiles, acc: Any, chunk: Any, scope: str) -> None:
    """Computes `tile` at a chunk, along what is side by side in x."""
    x, across = sch.get_sblock("tile"), not tile.spec.channels_last
    if not across or tile.gathered == 1:
        sch.set_scope(x, 0, scope)
        _share(sch, tile, x, chunk, tile.gathered, across)
        return
    # A thread's channels, far apart in x, go through its registers. TVM 0.27 would copy them as if side by side.
    thread = _share(sch, tile, sch.cache_read(acc, 0, scope), chunk, tile.gathered, across)
    sch.set_scope(x, 0, "local")
    sch.compute_at(x, thread, preserve_unit_loops=True)
    sch.unroll(sch.get_loops(x)[-1])


def _share(sch: Any, tile: WarpTiles, copy: Any, chunk: Any, vector: int, across: bool = False) -> Any:
    """Computes an operand at a chunk, shared out to the threads: neighbours along the channels, or across them.

    Returns the innermost loop of threads.
    """
    sch.compute_at(copy, chunk, preserve_unit_loops=True)
    row, k = sch.get_loops(copy)[-2:]
    part, lane = sch.split(k, [None, vector])
    if across:
        sch.reorder(part, row)
    loops = (part, row) if across else (row, part)
    _, z, y, x = sch.split(sch.fuse(*loops), [None, count(tile.warps), *LANES])
    for loop, axis in ((z, "z"), (y, "y"), (x, "x")):
        sch.bind(loop, f"threadIdx.{axis}")
    if vector > 1:
        sch.vectorize(lane)
    sch.storage_align(copy, 0, -2, 2 * WIDE, WIDE)
    return x


def finished(sch: Any, tile: WarpTiles, target: GpuTarget) -> Any:
    """The module of a schedule, with Tensor Cores and with `y` as the spec has it."""
    from tvm import ir

    if tile.slices > 1:
        thread_each(sch, target, "y", "total", count(tile.spec.out_shape))
        return ir.IRModule({"main": _with_tensor_cores(sch.mod["main"])})
    main = _with_tensor_cores(sch.mod["main"])
    return cropped(main, tile.spec, lambda *i: located(tile, i), lambda *i: inside(tile, i))


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
