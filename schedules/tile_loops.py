"""The loops of a scheduled register tile: those around the store, down to the registers, and the copies they read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.tiling import (
    WAY_BYTES,
    Tile,
    is_interleaved,
    needs_staging,
    stores_vectors,
)

from convtune import variants
from convtune.expression import output

if TYPE_CHECKING:
    from convtune.schedules.row_tiling import RowTile

    from convtune.space import KnobValue
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

COPIED_COLUMNS = 64  # of a row of one dimension, in a task of its own
FEW_CHANNELS = 8  # that are read side by side where they lie apart


@dataclass
class OutputLoops:
    """The loops of the stage `y`, split for a tile; loops that a rank lacks are left out."""

    outer: list[Any]  # what tasks are made of, as n, od, oh_outer, ow_outer
    channels: Any  # channel blocks
    inner: list[Any]  # tiles of a task, as oh_middle, ow_middle
    store: list[Any]  # within a tile, as oh_inner, ow_inner, vector, lane

    def in_tasks(self, sch: Any, oc_order: KnobValue) -> tuple[Any, Any]:
        """Orders them, and makes those of tasks one that is parallel; returns that one and the one around a tile.

        oc_order: where channel blocks are: "parallel" (tasks of their own), "outer" (around tiles) or "inner".
        """
        tiles = [*self.inner, self.channels] if oc_order == "inner" else [self.channels, *self.inner]
        order = [*self.outer, *tiles]
        sch.reorder(*order, *self.store)
        shared = len(self.outer) + (oc_order == "parallel")
        task = sch.fuse(*order[:shared])
        sch.parallel(task)
        return task, (task if shared == len(order) else order[-1])


def split_output(
    sch: Any, spec: ConvSpec, tile: Tile, oh_block: int, ow_block: int, n_block: int = 1, od_block: int = 1
) -> OutputLoops:
    """Splits `y` into tasks of n_block x od_block x oh_block x ow_block tiles, tiles, and what a tile stores."""
    n, *rest = sch.get_loops(sch.get_sblock("y"))
    spatial, channels = (
        (rest[: spec.rank], rest[spec.rank :]) if spec.channels_last else (rest[-spec.rank :], rest[: -spec.rank])
    )
    if is_interleaved(spec, tile):
        channels = channels[::-1]
        sch.reorder(*channels)
    blocks, vector, lane = split_channels(sch, channels, tile)
    ow_tiles, ow_inner = sch.split(spatial[-1], [None, tile.columns])
    split = [(n, n_block)] if n_block > 1 else []
    split += [(spatial[0], od_block)] if od_block > 1 else []
    whole = [loop for loop in (n, *spatial[:-2]) if all(loop is not other for other, _ in split)]
    pairs = [sch.split(loop, [None, block]) for loop, block in split]
    ow_outer, ow_middle = sch.split(ow_tiles, [None, ow_block])
    outer, inner = [*whole, *(pair[0] for pair in pairs)], [pair[1] for pair in pairs]
    if spec.rank == 1:
        return OutputLoops([*outer, ow_outer], blocks, [*inner, ow_middle], [ow_inner, vector, lane])
    oh_tiles, oh_inner = sch.split(spatial[-2], [None, tile.rows])
    oh_outer, oh_middle = sch.split(oh_tiles, [None, oh_block])
    inner += [oh_middle, ow_middle]
    return OutputLoops([*outer, oh_outer, ow_outer], blocks, inner, [oh_inner, ow_inner, vector, lane])


def split_channels(sch: Any, channels: Sequence[Any], tile: Tile) -> tuple[Any, Any, Any]:
    """Splits the loops (group, channel of a run) into channel blocks, vectors of a block, and lanes."""
    *group, run = channels
    if tile.run % tile.lanes == 0:  # then the border's condition is one of whole vectors
        vectors, lane = sch.split(run, [None, tile.lanes])
        block, vector = sch.split(vectors, [None, tile.vectors])
    else:
        block, inner = sch.split(run, [None, tile.block])
        vector, lane = sch.split(inner, [tile.vectors, tile.lanes])
    return (sch.fuse(*group, block) if group else block), vector, lane


def merge_groups(sch: Any, spec: ConvSpec, tile: Tile | RowTile) -> None:
    """Gives `y` the spec's shape, with one dimension of channels, once nothing needs to see two of them any more."""
    if tile.groups == 1:
        return
    inner = tile.groups if variants.primitive(spec.stages[-1]).interleaved else tile.run
    if spec.channels_last:
        sch.transform_layout("y", ("write", 0), lambda *i: [*i[:-2], i[-2] * inner + i[-1]])
    else:
        sch.transform_layout("y", ("write", 0), lambda n, outer, channel, *i: [n, outer * inner + channel, *i])


def unroll(sch: Any, loops: Sequence[Any]) -> None:
    """Unrolls all loops but the last, which becomes vectors."""
    for loop in loops[:-1]:
        sch.unroll(loop)
    sch.vectorize(loops[-1])


def place_store(sch: Any, spec: ConvSpec, tile: Tile, at: Any, store: Sequence[Any], stage: str = "") -> None:
    """Makes the store of a tile vectors, or lets it read the stage `tile`, a copy in memory.

    stage: what follows the names `tile` and `acc`, where several convolutions have them.
    """
    if not needs_staging(spec, tile):
        unroll(sch, store)
        return
    staged = sch.get_sblock(f"tile{stage}")
    sch.compute_at(staged, at, preserve_unit_loops=True)
    unroll(sch, sch.get_loops(staged)[-4:])
    _vectorize_copy(sch, spec, tile, store)


def place_sums(sch: Any, spec: ConvSpec, tile: Tile, at: Any, store: Sequence[Any]) -> Any:
    """Computes `sums` at a loop around tiles, part after part; returns the innermost loop over the tiles of a part."""
    sums = sch.get_sblock("sums")
    sch.compute_at(sums, at, preserve_unit_loops=True)
    *around, part = sch.get_loops(sums)
    tiles, inner = around[-10:-4], around[-4:]
    sch.reorder(part, *tiles, *inner)
    unroll(sch, inner)
    unroll(sch, sch.get_loops(sch.decompose_reduction(sums, part))[-4:])
    _vectorize_copy(sch, spec, tile, store)
    return tiles[-1]


def _vectorize_copy(sch: Any, spec: ConvSpec, tile: Tile, store: Sequence[Any]) -> None:
    """Arranges the store of a tile that lies in memory."""
    if stores_vectors(spec, tile):
        sch.vectorize(store[-1])
    elif not spec.channels_last:  # one channel after the other, for the reason of `copy_channels`
        *_, column, vector, lane = store
        sch.reorder(vector, lane, column)
    elif tile.lanes == tile.width and not is_interleaved(spec, tile):
        vectorize_inside(sch, store[-2], store[-1])


def vectorize_inside(sch: Any, vectors: Any, lane: Any) -> None:
    """Makes vectors of `lane` for all turns of `vectors` but the last, if a border cuts that one short."""
    sch.vectorize(lane)
    sch.annotate(vectors, "pragma_loop_partition_hint", 1)


def place_accumulators(
    sch: Any, at: Any, reductions: int, order: Sequence[int], unrolled: int, scope: str = "local", stage: str = ""
) -> Any:
    """Computes `acc` at a loop, in registers: its reduction loops in `order`, the last `unrolled` of them unrolled.

    Returns the outermost reduction loop.

    scope: TVM 0.27 puts less than 1 KiB of "global" on the stack, where LLVM sees that it is nothing but registers. All
    else lies in workspace, and the sums are stored there too: per tile, or per turn of a loop that LLVM does not see
    through. What is faster depends on how much LLVM then moves around in the unrolled body.
    """
    acc = sch.get_sblock(f"acc{stage}")
    sch.compute_at(acc, at, preserve_unit_loops=True)
    loops = sch.get_loops(acc)
    axes, tile = loops[-reductions:], loops[-reductions - 4 : -reductions]
    axes = [axes[i] for i in order]
    sch.reorder(*axes, *tile)
    unroll(sch, [*axes[len(axes) - unrolled :], *tile])
    unroll(sch, sch.get_loops(sch.decompose_reduction(acc, axes[0]))[-4:])
    sch.set_scope(acc, 0, scope)
    return axes[0]


def tiled_sums(spec: ConvSpec, tile: Tile, outer: Sequence[int], summand: Any, stage: str = "") -> Any:
    """The stages `acc`: (*outer, group, block, row, column, vector, lane), and where needed `tile`, its copy."""
    from tvm import te

    shape = (*outer, tile.groups, tile.blocks, tile.rows, tile.columns, tile.vectors, tile.width)
    acc = te.compute(shape, summand, name=f"acc{stage}")
    return te.compute(shape, lambda *i: acc[i], name=f"tile{stage}") if needs_staging(spec, tile) else acc


def tiled_output(arguments: Any, tile: Tile, outer: Sequence[int], summand: Any) -> Any:
    """The stages `acc`, where needed `tile`, and `y`, in terms of tiles.

    acc: (n, d, h_tile, w_tile, group, block, row, column, vector, lane) sums `summand` of these ten indices; `outer`
    are the first four extents.
    """
    return _tiles_to_output(arguments, tile, tiled_sums(arguments.spec, tile, outer, summand))


def summed_output(arguments: Any, tile: Tile, outer: Sequence[int], parts: int, summand: Any) -> Any:
    """As `tiled_output`, for a reduction in `parts`: `sums` has the shape of its `acc`, and lies in memory.

    acc: (n, d, h_tile, w_tile, part, group, block, row, column, vector, lane), of which `summand` takes the indices.
    """
    from tvm import te

    channels = (tile.groups, tile.blocks, tile.rows, tile.columns, tile.vectors, tile.width)
    acc = te.compute((*outer, parts, *channels), summand, name="acc")
    part = te.reduce_axis((0, parts), "part")
    sums = te.compute(
        (*outer, *channels), lambda *i: te.sum(acc(*i[: len(outer)], part, *i[len(outer) :]), axis=[part]), name="sums"
    )
    return _tiles_to_output(arguments, tile, sums)


def _tiles_to_output(arguments: Any, tile: Tile, result: Any) -> Any:
    def value(n: Any, group: Any, within: Any, position: Any) -> Any:
        d, h, w = position
        block, vector, lane = tile.locate(within)
        rows, columns = tile.rows, tile.columns
        return result(n, d, h // rows, w // columns, group, block, h % rows, w % columns, vector, lane)

    return output(arguments, tile.groups, value)


def place_pad(sch: Any, spec: ConvSpec, target: CpuTarget, task: Any) -> None:
    """Computes the stage `pad` in a task; or, where that is None, once for all in a parallel region of its own."""
    pad = sch.get_sblock("pad")
    if task is not None:
        sch.compute_at(pad, task, preserve_unit_loops=True)
    *_, n, d, h, w, c = sch.get_loops(pad)
    if spec.in_channels % target.lanes == 0 and spec.in_channels * spec.stride[-1] * 4 % WAY_BYTES == 0:
        sch.storage_align(pad, 0, 3, spec.in_channels, target.lanes)  # columns of a tile in sets of their own
    if task is None:
        outer = [n, d, h]
        if spec.rank == 1:
            part, w = sch.split(w, [None, COPIED_COLUMNS])
            outer.append(part)
        sch.parallel(sch.fuse(*outer))
    copy_channels(sch, spec, target, w, c)


def copy_channels(sch: Any, spec: ConvSpec, target: CpuTarget, column: Any, channel: Any) -> None:
    """Arranges the two inner loops of a copy of x that has its channels last.

    Channels that lie apart in x are copied a few at a time: a power of two apart, which is common, more of them fall
    into the same set of the first cache, and each of their lines would be read again for every column.
    """
    if not spec.channels_last:
        channels, few = sch.split(channel, [None, gcd(spec.in_channels, FEW_CHANNELS)])
        sch.reorder(channels, column, few)
        sch.vectorize(few)
    elif spec.in_channels % target.lanes == 0:
        sch.vectorize(sch.split(channel, [None, target.lanes])[1])
    else:
        # a row lies in one piece, so only its ends have to be looked at element by element
        vectorize_inside(sch, *sch.split(sch.fuse(column, channel), [None, target.lanes]))
