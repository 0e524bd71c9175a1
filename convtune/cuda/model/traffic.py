"""Bytes that pass between the caches and to memory, from the footprints of blocks and waves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convtune.lowered import Buffer

from .accesses import SECTOR_BYTES, WIDEST_BYTES
from .counting import Counted
from .regions import GlobalUse
from .samples import Sampler

LARGEST_SET = 1 << 15
"""Addresses of one footprint that are looked at one by one; of a larger one the next loop is taken as disjoint."""
BLOCKS_SEEN = 1 << 14

Sizes = Mapping[int, int]


@dataclass(frozen=True)
class Traffic:
    """Of a whole launch, in bytes. l2: between the L1 caches and L2. dram: between L2 and memory."""

    l2_loaded: float
    l2_stored: float
    dram: float


def estimate(counted: Counted, blocks: int, wave: int, l1_bytes: float, l2_bytes: float, sizes: Sizes) -> Traffic:
    """The traffic of a launch.

    blocks: of the grid. wave: of them at a time. l1_bytes: cache for one block. sizes: bytes of each buffer, by key.
    """
    footprints = _Footprints(counted)
    loads = _together([use for use in counted.uses if use.group.kind != "store"])
    stores = [use for use in counted.uses if use.group.kind == "store"]
    warps = counted.sampler.warps
    loaded = sum(footprints.missed(use, loads, l1_bytes) for use in loads) * SECTOR_BYTES * blocks
    stored = sum(use.executions * use.sectors for use in stores) * warps * SECTOR_BYTES * blocks
    return Traffic(loaded, stored, _dram(footprints, loads + stores, blocks, wave, l2_bytes, sizes))


def _together(uses: Iterable[GlobalUse]) -> list[GlobalUse]:
    """Accesses from one address in one loop as one, whatever their conditions: they touch the same memory."""
    alike: dict[tuple[object, ...], list[GlobalUse]] = defaultdict(list)
    for use in uses:
        alike[use.group.buffer, use.group.node, use.group.kind, use.frames].append(use)
    joined = []
    for group in alike.values():
        executions = max(use.executions for use in group)
        requested = sum(use.executions * use.sectors for use in group)
        offsets = sorted({offset for use in group for offset in use.offsets})
        sectors = requested / executions if executions else 0.0
        joined.append(group[0]._replace(offsets=tuple(offsets), executions=executions, sectors=sectors))
    return joined


class _Footprints:
    """Distinct sectors that a block touches, in a loop's whole run or over its life."""

    def __init__(self, counted: Counted) -> None:
        self.counted = counted
        self.values = counted.values
        self.threads = self._thread_leaves(counted.sampler)
        self.known: dict[tuple[GlobalUse, int, int | None], float] = {}

    def _thread_leaves(self, sampler: Sampler) -> dict[int, NDArray[Any]]:
        linear = np.arange(sampler.threads)
        leaves = {}
        for position, axis in enumerate("xyz"):
            variable = self.counted.variables.get(f"threadIdx.{axis}")
            if variable is not None:
                leaves[variable.node] = sampler.split(linear, sampler.block, position)
        return leaves

    def of(self, use: GlobalUse, level: int, steps: int | None = None) -> float:
        """Sectors of a block while the loops inside of `level` run, the outermost of them for so many steps."""
        key = (use, level, steps)
        if key not in self.known:
            self.known[key] = self._distinct(use, level, steps)
        return self.known[key]

    def _distinct(self, use: GlobalUse, level: int, steps: int | None) -> float:
        size, node = use.group.buffer.bytes, use.group.node
        middle = self._middle()
        still = {leaf: array[:1] for leaf, array in self.threads.items()}
        origin = self._at(node, {**still, **middle}).reshape(-1)[0]
        starts = self._at(node, {**self.threads, **middle}).reshape(-1)
        starts = np.unique(starts[:, None] + np.asarray(use.offsets))
        times = 1.0
        for frame in reversed(use.frames[level:]):
            extent = frame.extent if steps is None or frame is not use.frames[level] else steps
            walked = {**still, **middle, frame.variable.node: np.arange(extent)}
            shifts = np.unique(self._at(node, walked).reshape(-1) - origin)
            if len(shifts) * len(starts) > LARGEST_SET:
                times *= len(shifts)
            else:
                starts = np.unique(starts[:, None] + shifts)
        addresses = starts * size
        last = addresses + use.elements * size - 1
        return times * len(np.unique(np.concatenate([addresses // SECTOR_BYTES, last // SECTOR_BYTES])))

    def _middle(self) -> dict[int, NDArray[Any]]:
        """A block away from the borders, at whose side conditions cut."""
        sampler = self.counted.sampler
        found = {}
        for position, axis in enumerate("xyz"):
            variable = self.counted.variables.get(f"blockIdx.{axis}")
            if variable is not None:
                found[variable.node] = np.asarray([sampler.grid[position] // 2])
        return found

    def _at(self, node: int, leaves: dict[int, NDArray[Any]]) -> NDArray[Any]:
        known: dict[int, NDArray[Any]] = {0: np.zeros(1, np.int64), **leaves}
        return np.asarray(self.values.evaluate(node, known))

    def missed(self, use: GlobalUse, loads: Iterable[GlobalUse], l1_bytes: float) -> float:
        """Sectors that a block asks L2 for: each once while all that the block reads meanwhile stays in L1."""
        requested = use.executions * use.sectors * self.counted.sampler.warps
        if use.group.kind == "copy" and use.elements * use.group.buffer.bytes == WIDEST_BYTES:
            return requested  # cp.async goes past L1 then
        for level in range(len(use.frames) + 1):
            around = use.frames[:level]
            meanwhile = [other for other in loads if other.frames[:level] == around]
            held = sum(self.of(other, level) for other in meanwhile) * SECTOR_BYTES
            if held <= l1_bytes:
                return min(requested, self._in_steps(use, level, int(l1_bytes / max(held, 1.0))))
        return requested

    def _in_steps(self, use: GlobalUse, level: int, steps: int) -> float:
        """Sectors asked for where so many iterations of the loop at `level`, though not all, stay in L1."""
        if level == 0:
            return self.of(use, 0)
        loop = use.frames[level - 1]
        steps = max(1, min(steps, loop.extent))
        return loop.executions / steps * self.of(use, level - 1, steps)

    def tiles(self, use: GlobalUse, blocks: int, wave: int) -> tuple[float, float]:
        """How many blocks' footprints differ, in the whole grid and in its first wave."""
        grid = self.counted.sampler.grid
        linear = np.arange(min(blocks, BLOCKS_SEEN))
        leaves = {}
        for position, axis in enumerate("xyz"):
            variable = self.counted.variables.get(f"blockIdx.{axis}")
            if variable is not None:
                leaves[variable.node] = Sampler.split(linear, grid, position)
        starts = np.broadcast_to(self._at(use.group.node, leaves).reshape(-1), linear.shape)
        all_of_them = len(np.unique(starts)) * blocks / len(linear)
        return all_of_them, len(np.unique(starts[:wave])) * max(1.0, min(wave, blocks) / len(linear))


def _dram(
    footprints: _Footprints, uses: list[GlobalUse], blocks: int, wave: int, l2_bytes: float, sizes: Sizes
) -> float:
    """Each byte once where the launch fits in L2; otherwise what each wave of blocks touches, once."""
    by_buffer: dict[Buffer, list[GlobalUse]] = defaultdict(list)
    for use in uses:
        by_buffer[use.group.buffer].append(use)
    once, waves = {}, {}
    for buffer, group in by_buffer.items():
        size = sizes.get(buffer.key, np.inf)
        tile = min(sum(footprints.of(use, 0) * min(1.0, use.executions) for use in group) * SECTOR_BYTES, size)
        tiles, in_wave = footprints.tiles(group[0], blocks, wave)
        once[buffer] = min(tile * tiles, size)
        own = once[buffer] / tiles
        waves[buffer] = max(once[buffer], min(own * in_wave, size) * max(1.0, blocks / wave))
    if sum(once.values()) <= l2_bytes:
        return float(sum(once.values()))
    # A buffer that leaves half of L2 to the others stays there from wave to wave.
    return float(sum(once[b] if once[b] <= l2_bytes / 2 else waves[b] for b in by_buffer))
