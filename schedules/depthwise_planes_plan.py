"""What the vectors of a channels-first depthwise or grouped tile hold: pieces of rows, or several short rows."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

from convtune.schedules.axes import Axis, View, view_of
from convtune.schedules.tiling import FEWEST_LANES, LARGEST_CODE, SMALLEST_TILE, ceil_div, power_of_two

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

ZERO = -1
"""A lane that reads outside of the input."""
ANY = -2
"""A lane whose output is not stored."""

FLAT = ("planes", "padded")
"""Shapes whose code is that of a whole plane."""

Source = tuple[int, ...]  # for each lane a position, ZERO or ANY
Use = tuple[int, int, int]  # (vector of the tile, kh, kw)
AnyUse = TypeVar("AnyUse", tuple[int, int], Use)


@dataclass(frozen=True)
class PlanesPlan:
    """What a candidate makes of a view.

    flat: whether a vector holds as many whole rows as fit, be it one, and the code is that of a whole plane; else
    vectors are pieces of a row. rows: of a tile; where flat, in vectors. vectors: pieces of a row in a tile,
    overlapping where they do not divide it. parts, row_blocks: parts that tasks make of the channels and of the rows.
    outputs: channels that a tile has at a time, of which `channels` counts as one; 1 but where several read the same
    inputs.
    """

    view: View
    channels: int
    lanes: int
    flat: bool
    rows: int
    vectors: int
    parts: int
    row_blocks: int
    registers: int
    outputs: int = 1

    def held(self, vectors: int) -> list[list[int]]:
        """The columns of the kernel, in parts whose weights stay in registers beside the sums of so many vectors, where
        that can be.

        Columns that are whole vectors of a row apart are in one part: what one reads for a vector of outputs the other
        reads for the next.
        """
        axis, outputs = self.view.columns, self.outputs
        most = max(1, (self.registers - vectors * outputs - 3) // (self.view.rows.taps * outputs))
        if self.flat and self.side_by_side == 1 and axis.stride == 1:
            most = 1  # no two read the same load, and so a column is added to all sums, none of which waits for itself
        step = self.lanes * axis.stride
        columns = sorted(range(axis.taps), key=lambda tap: (0 if self.flat else tap * axis.dilation % step, tap))
        return [columns[first : first + most] for first in range(0, axis.taps, most)]

    # pieces of rows

    @property
    def width(self) -> int:
        """Columns of a tile."""
        return min(self.vectors * self.lanes, self.view.columns.out)

    @property
    def tiles(self) -> int:
        """Of a row, the last one ending with it."""
        return ceil_div(self.view.columns.out, self.width)

    def start(self, tile: int) -> int:
        return min(tile * self.width, self.view.columns.out - self.width)

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where the vectors of a tile begin in it."""
        return tuple(min(i * self.lanes, self.width - self.lanes) for i in range(ceil_div(self.width, self.lanes)))

    @property
    def inner(self) -> range:
        """The tiles that share one code, as they read no border; the others have a code each."""
        axis = self.view.columns
        ends = ((self.start(tile), self.start(tile) + self.width - 1) for tile in range(self.tiles))
        found = [t for t, pair in enumerate(ends) if all(len(axis.valid(column)) == axis.taps for column in pair)]
        return range(found[0], found[-1] + 1) if found else range(self.tiles, self.tiles)

    def row_sources(self, tile: int) -> dict[Source, list[tuple[int, int]]]:
        """For each vector of input columns, as the tile with that number reads them, the (vector, tap) it serves."""
        axis, found = self.view.columns, dict[Source, list[tuple[int, int]]]()
        for vector, offset in enumerate(self.offsets):
            first = axis.first(self.start(tile) + offset)
            for tap in range(axis.taps):
                columns = [first + lane * axis.stride + tap * axis.dilation for lane in range(self.lanes)]
                source = tuple(c if 0 <= c < axis.size else ZERO for c in columns)
                found.setdefault(source, []).append((vector, tap))
        return by_place(found)

    def row_reads(self) -> dict[int, list[tuple[int, int]]]:
        """For each input row of a tile, from that of its first output's tap 0: the (row, tap) pairs that it serves."""
        axis, found = self.view.rows, dict[int, list[tuple[int, int]]]()
        for row in range(self.rows):
            for tap in range(axis.taps):
                found.setdefault(row * axis.stride + tap * axis.dilation, []).append((row, tap))
        return dict(sorted(found.items()))

    # several rows in a vector

    @property
    def side_by_side(self) -> int:
        """Rows of a vector."""
        return max(1, self.lanes // self.view.columns.out)

    @property
    def in_plane(self) -> int:
        """Vectors of a plane."""
        return ceil_div(self.view.rows.out, self.side_by_side)

    def stored(self, vector: int) -> int:
        """Lanes of a plane's vector that are outputs of its own."""
        rows = min(self.side_by_side, self.view.rows.out - vector * self.side_by_side)
        return rows * self.view.columns.out

    def plane_tiles(self) -> list[range]:
        """The vectors of each tile; the last tile has two, if the plane has, so that the end of one fills the other."""
        count = ceil_div(self.in_plane, self.rows)
        bounds = [self.in_plane * i // count for i in range(count + 1)]
        tiles = [range(*pair) for pair in itertools.pairwise(bounds)]
        if len(tiles) > 1 and len(tiles[-1]) == 1:
            tiles[-2:] = [range(tiles[-2].start, tiles[-1].stop)]
        return tiles

    def plane_sources(self, tile: range) -> dict[Source, list[Use]]:
        """For each vector of the input plane's positions what it serves, vectors counted from the tile's first."""
        found = dict[Source, list[Use]]()
        for vector in tile:
            for kh in range(self.view.rows.taps):
                for kw in range(self.view.columns.taps):
                    source = self._plane_source(vector, kh, kw)
                    if max(source) >= 0:
                        found.setdefault(source, []).append((vector - tile.start, kh, kw))
        return by_place(found)

    def _plane_source(self, vector: int, kh: int, kw: int) -> Source:
        rows, columns, found = self.view.rows, self.view.columns, []
        for lane in range(self.lanes):
            row, column = divmod(lane, columns.out)
            h = rows.first(vector * self.side_by_side + row) + kh * rows.dilation
            w = columns.first(column) + kw * columns.dilation
            inside = 0 <= h < rows.size and 0 <= w < columns.size
            found.append(h * columns.size + w if inside else ZERO)
        return tuple(p if lane < self.stored(vector) else ANY for lane, p in enumerate(found))


def by_place(found: Mapping[Source, list[AnyUse]]) -> dict[Source, list[AnyUse]]:
    """In the order of their first positions, so that neighbours share loads; without those that read zeros alone."""
    read = [source for source in found if max(source) >= 0]
    return {source: found[source] for source in sorted(read, key=lambda s: min(p for p in s if p >= 0))}


def windows(source: Source, low: int, high: int, have: Sequence[int]) -> tuple[int, ...]:
    """Where loads of as many positions as there are lanes begin, within [low, high], that a source is made of.

    have: the last loads, which are taken again where they do.
    """
    lanes, read = len(source), sorted({p for p in source if p >= 0})
    shifts = {p - lane for lane, p in enumerate(source) if p >= 0}
    if len(shifts) == 1:
        return (min(max(low, *shifts), high),)
    for end in range(len(have), 1, -1):
        if all(any(start <= p < start + lanes for start in have[end - 2 : end]) for p in read):
            return tuple(have[end - 2 : end])
    found: list[int] = []
    for position in read:
        if not found or position >= found[-1] + lanes:
            found.append(min(max(low, position), high))
    return tuple(found)


@lru_cache(maxsize=1 << 12)
def row_loads(axis: Axis, lanes: int, vectors: int) -> tuple[int, int, int, int]:
    """Of a row in tiles of so many vectors: FMAs of a kernel row, loads, permutes, and taps of tiles with own code."""
    plan = PlanesPlan(View(1, axis, axis, axis), 1, lanes, False, 1, vectors, 1, 1, 32)
    fmas = loads = permutes = code = 0
    for tile in range(plan.tiles):
        sources = plan.row_sources(tile)
        made, moved = reading(sources, axis.size - lanes)
        taps = sum(len(uses) for uses in sources.values())
        fmas, loads, permutes = fmas + taps, loads + made, permutes + moved
        code += taps if tile not in plan.inner or tile == plan.inner.start else 0
    return fmas, loads, permutes, code


def reading(sources: Iterable[Source], high: int) -> tuple[int, int]:
    """Loads and permutes that make these sources."""
    have: list[int] = []
    loads = permutes = 0
    for source in sources:
        starts = windows(source, 0, high, have)
        loads += sum(start not in have for start in starts)
        have += [start for start in starts if start not in have]
        straight = all(p == starts[0] + lane or p < 0 for lane, p in enumerate(source))
        permutes += len(starts) - (len(starts) == 1 and straight)
    return loads, permutes


def plane_loads(plan: PlanesPlan) -> list[tuple[int, int, int, int]]:
    """For each tile of a plane, of an input and an output channel: multiply-adds, loads, permutes, vectors of sums."""
    high = plan.view.rows.size * plan.view.columns.size - plan.lanes
    found = []
    for tile in plan.plane_tiles():
        sources = plan.plane_sources(tile)
        found.append((sum(map(len, sources.values())), *reading(sources, high), len(tile)))
    return found


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> PlanesPlan:
    view = view_of(spec)
    return PlanesPlan(
        view=view,
        channels=spec.out_channels,
        lanes=_lanes(view, target, str(knobs["shape"])),
        flat=knobs["shape"] in FLAT,
        rows=int(knobs["rows"]),
        vectors=int(knobs["vectors"]),
        parts=int(knobs["parts"]),
        row_blocks=int(knobs["row_blocks"]),
        registers=target.vector_registers,
    )


def _lanes(view: View, target: CpuTarget, shape: str) -> int:
    return _padded_lanes(view) if shape == "padded" else lanes_of(view, target, shape == "planes")


def _padded_lanes(view: View) -> int:
    """The fewest, in powers of two, that hold a row of outputs."""
    return 1 << (view.columns.out - 1).bit_length()


def lanes_of(view: View, target: CpuTarget, flat: bool) -> int:
    """As many as fit in a row, or in a plane where a vector holds several rows, in powers of two."""
    rows, columns = view.rows, view.columns
    most = min(columns.size, columns.out)
    if flat:
        most = min(rows.size * columns.size, rows.out * columns.out)
    return min(target.lanes, power_of_two(most))


def shapes_of(spec: ConvSpec, target: CpuTarget) -> tuple[str, ...]:
    """What vectors may hold: pieces of rows, several short rows, or one each where that takes a narrower vector."""
    view, found = view_of(spec), []
    if lanes_of(view, target, flat=False) >= FEWEST_LANES:
        found.append("rows")
    wide = view.columns.out > lanes_of(view, target, flat=True)
    short = lanes_of(view, target, flat=False) < target.lanes
    if short and not wide and lanes_of(view, target, flat=True) >= FEWEST_LANES:
        found.append("planes")
        narrower = FEWEST_LANES <= _padded_lanes(view) < lanes_of(view, target, flat=True)
        if narrower and view.columns.stride == 1:  # else rows are permuted apart all the same
            found.append("padded")
    return tuple(found)


def suits(plan: PlanesPlan, least_vectors: int, most_sums: int, most_outputs: int = 1) -> bool:
    """Whether a plan's tile is neither too small nor too much code, and its sums fit.

    least_vectors: of the domain, the only ones where vectors hold several rows. most_outputs: of the domain's plans.
    """
    rows, columns = plan.view.rows, plan.view.columns
    if plan.flat:
        if plan.row_blocks > 1 or plan.vectors != least_vectors or plan.rows > plan.in_plane:
            return False
        sums = max(map(len, plan.plane_tiles())) * plan.outputs
        return sums <= most_sums and plan.in_plane * rows.taps * columns.taps * plan.outputs <= LARGEST_CODE
    sums = plan.rows * len(plan.offsets) * plan.outputs
    if sums > most_sums or plan.rows > rows.out // plan.row_blocks:
        return False
    if sums < min(SMALLEST_TILE, ceil_div(columns.out, plan.lanes) * rows.out * most_outputs):
        return False
    return plan.rows * rows.taps * row_loads(columns, plan.lanes, plan.vectors)[3] * plan.outputs <= LARGEST_CODE
