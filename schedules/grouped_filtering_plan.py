"""How a grouped convolution is cut for filtering along its rows: sizes only, no TVM."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_points import Filtering, filtering
from convtune.schedules.tiling import ceil_div, round_up, spread

from convtune.expression import cube

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


@dataclass(frozen=True)
class Columns:
    """The columns in tiles of m outputs, each a sum over parts of the taps: those of each residue of the stride,
    filtered; with m = 1 each tap is a part, and columns are read as they are.

    Where filtered parts have two taps, those of one are not filtered: their products are the outputs' own, with the
    same weights for all, and follow those of the points (`products_of`). So a row has no more products than with points
    for all, and fewer weights.
    """

    m: int
    taps: int
    stride: int
    dilation: int
    before: int
    size: int
    out: int

    @property
    def parts(self) -> int:
        return self.taps if self.m == 1 else self.stride

    @property
    def r(self) -> int:
        """Taps of a part."""
        return ceil_div(self.taps, self.parts)

    @functools.cached_property
    def filter(self) -> Filtering | None:
        return filtering(self.m, self.r) if self.m > 1 else None

    @property
    def alpha(self) -> int:
        """Points, and inputs of a tile and part."""
        return self.m + self.r - 1

    @property
    def whole(self) -> int:
        """Parts that have all taps; the others lack the last one, and with it the last point."""
        return self.parts if self.m == 1 else self.taps - (self.r - 1) * self.parts

    @property
    def plain(self) -> range:
        """The parts that are not filtered, of one tap each."""
        return range(self.whole, self.parts) if self.m > 1 and self.r == 2 else range(0)

    @property
    def places(self) -> int:
        """Of which V and M have an entry: points, then outputs of a tile where there are plain parts."""
        return self.alpha + (self.m if self.plain else 0)

    @property
    def filters(self) -> int:
        """Of which U has an entry: points, then one for all outputs."""
        return self.alpha + (1 if self.plain else 0)

    @property
    def products_of(self) -> list[tuple[range, range]]:
        """Places and the parts whose products they have."""
        if self.plain:
            return [(range(self.alpha), range(self.whole)), (range(self.alpha, self.places), self.plain)]
        if self.whole == self.parts:
            return [(range(self.alpha), range(self.parts))]
        last = self.alpha - 1
        return [(range(last), range(self.parts)), (range(last, self.alpha), range(self.whole))]

    @property
    def tiles(self) -> int:
        return ceil_div(self.out, self.m)

    @property
    def products(self) -> int:
        """Of a row of an input channel and an output channel."""
        return self.tiles * sum(len(places) * len(parts) for places, parts in self.products_of)

    @property
    def side_by_side(self) -> int:
        """Parts that have values of their own in a row of V."""
        return max(self.whole, len(self.plain)) if self.plain else self.parts

    @property
    def step(self) -> int:
        """How far apart in a row of V are the first values of neighbouring tiles."""
        return self.side_by_side if self.m > 1 else self.stride

    def within(self, part: int) -> int:
        """The number of a part among those of its places."""
        return part - self.whole if part in self.plain else part

    def offset(self, part: int) -> int:
        """How far behind that its values of a part are."""
        return self.within(part) if self.m > 1 else part * self.dilation

    @property
    def length(self) -> int:
        """Values of a row of V, of a place and channel."""
        reach = self.side_by_side - 1 if self.m > 1 else self.offset(self.parts - 1)
        return (self.tiles - 1) * self.step + reach + 1

    @property
    def groups(self) -> int:
        """How often values of a row of V are made side by side: for each tile those of its parts."""
        return self.tiles if self.m > 1 else self.length

    @property
    def group(self) -> int:
        """Parts of which values are made side by side."""
        return self.parts if self.m > 1 else 1

    def input(self, group: Any, part: int) -> Any:
        """The first column of x that a group's values of a part are made of; the others are a stride apart each."""
        return group * (self.m * self.stride if self.m > 1 else 1) + part - self.before

    def inputs(self, part: int) -> int:
        """Columns that a group's values of a part are made of."""
        return self.m if part in self.plain else self.alpha

    @functools.cached_property
    def inner(self) -> range:
        """Groups, one after the other, of which all is made of columns that lie in x."""
        reach = max(part + (self.inputs(part) - 1) * self.stride for part in range(self.group))
        found = [i for i in range(self.groups) if self.input(i, 0) >= 0 and self.input(i, 0) + reach < self.size]
        return range(found[0], found[-1] + 1) if found else range(0)

    @functools.cached_property
    def weights(self) -> list[list[float]]:
        """What makes the filters of a row of them: (filter, part), from taps."""
        assert self.filter is not None
        rows = []
        for place in range(self.filters):
            parts = self.plain if place == self.alpha else range(self.whole if self.plain else self.parts)
            for part in [*parts, *[-1] * (self.side_by_side - len(parts))]:
                row = [0.0] * self.taps
                for j, tap in enumerate(range(part, self.taps, self.parts) if part >= 0 else ()):
                    row[tap] = 1.0 if place == self.alpha else float(self.filter.g[place][j])
                rows.append(row)
        return rows


@dataclass(frozen=True)
class Rows:
    """The rows, whose taps are summed one by one."""

    taps: int
    stride: int
    dilation: int
    before: int
    size: int
    out: int

    def inside(self, row: int) -> bool:
        """Whether a row, counted from the first one that is read, lies in x."""
        return 0 <= row - self.before < self.size

    def met(self, rows: int) -> list[int]:
        """For each tap of so many output rows its input row."""
        return [row * self.stride + tap * self.dilation for row in range(rows) for tap in range(self.taps)]

    def reached(self, rows: int) -> int:
        """Input rows of so many output rows."""
        return (rows - 1) * self.stride + (self.taps - 1) * self.dilation + 1


@dataclass(frozen=True)
class Plan:
    """A unit is as many groups as fill a vector, or one. high x wide x vectors: a register tile, of rows, tiles of
    columns and vectors of output channels. blocks: of the rows; span: units of a task, which is a block of them.
    planes: channels first, where rows are columns of x and the other way round."""

    rows: Rows
    columns: Columns
    batch: int
    groups: int
    depth: int
    run: int
    lanes: int
    high: int
    wide: int
    vectors: int
    blocks: int
    span: int
    planes: bool = False

    @property
    def shared(self) -> int:
        """Groups of a unit: its lanes are the first channels of all its groups, then the second ones."""
        return max(1, self.lanes // self.run)

    @property
    def units(self) -> int:
        return self.groups // self.shared

    @property
    def spans(self) -> int:
        """Tasks side by side for all units."""
        return self.units // self.span

    @property
    def inputs(self) -> int:
        """Input channels of a unit."""
        return self.shared * self.depth

    @property
    def outputs(self) -> int:
        """Output channels of a unit, in whole vectors."""
        return self.shared * self.run

    @property
    def passes(self) -> int:
        """Register tiles side by side for all output channels of a unit."""
        return self.outputs // (self.vectors * self.lanes)

    @property
    def block(self) -> int:
        """The most rows of a task."""
        return ceil_div(self.rows.out, self.blocks)

    @property
    def still(self) -> bool:
        """Whether a register tile has all rows: then it is known which taps lie on padding."""
        return self.blocks == 1 and self.high == self.rows.out

    @property
    def v_row(self) -> int:
        """Elements from row to row of V."""
        return self.columns.length * self.inputs

    @property
    def v_point(self) -> int:
        """Elements from place to place of V: (row, value of it, channel), of a plane (value, channel, row, group)."""
        return spread(self.columns.length * self.v_value if self.planes else self.rows.reached(self.block) * self.v_row)

    @property
    def skipped(self) -> int:
        """Rows of padding before x that a plane's V lacks."""
        return self.rows.before if self.still else 0

    @property
    def pitch(self) -> int:
        """Rows of V of a channel of a plane, so many that vectors are whole or hold whole channels."""
        rows = min(self.rows.size, self.rows.reached(self.rows.out) - self.rows.before)
        need = self.shared * (rows if self.still else self.rows.reached(self.rows.out))
        return (round_up(need, self.lanes) if need > self.lanes else 1 << (need - 1).bit_length()) // self.shared

    @property
    def unrolled(self) -> int:
        """Vectors of rows that the values of a plane's channels are made of, all in the code."""
        columns = self.columns
        values = sum(columns.inputs(part) for part in range(columns.group))
        return self.vectors_of_channel * columns.groups * values

    @property
    def vectors_of_channel(self) -> int:
        """Of a plane's values of a channel of each group."""
        return max(1, self.pitch * self.shared // self.lanes)

    @property
    def channels_together(self) -> int:
        """Of a plane's vector."""
        return max(1, self.lanes // (self.pitch * self.shared))

    @property
    def v_value(self) -> int:
        """Elements from value to value of V of a plane."""
        return round_up(max(self.depth, self.channels_together) * self.pitch * self.shared, self.lanes)

    @property
    def m_point(self) -> int:
        """Elements from place to place of M: (place, row of a register tile, tile, output channel of a unit)."""
        return spread(self.high * self.columns.tiles * self.outputs)

    @property
    def u_shape(self) -> tuple[int, ...]:
        """(unit, filter, pass, input channel of a group, row and part of the taps, output channel of a pass)"""
        taps = self.rows.taps * self.columns.side_by_side
        return self.units, self.columns.filters, self.passes, self.depth, taps, self.vectors * self.lanes

    @property
    def together(self) -> list[int]:
        """The input channel of a unit that each of V is: x has group after group, V the same of each side by side."""
        return [s * self.depth + ic for ic in range(self.depth) for s in range(self.shared)]

    @property
    def apart(self) -> list[int]:
        """The lane of the sums that each lane of y is."""
        return [oc * self.shared + s for s in range(self.shared) for oc in range(self.run)]


def axes_of(spec: ConvSpec, m: int) -> tuple[Rows, Columns]:
    """The dimensions of a layer of one or two, its columns in tiles of m; channels first its rows are the columns."""
    pads = cube([before for before, _ in spec.padding], 0)
    fields = zip(*map(cube, (spec.kernel, spec.stride, spec.dilation)), pads, cube(spec.in_size), cube(spec.out_size))
    _, rows, columns = fields
    if not spec.channels_last:
        rows, columns = columns, rows
    return Rows(*rows), Columns(m, *columns)


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    """The plan of a candidate."""
    rows, columns = axes_of(spec, int(knobs["w_tile"]))
    return Plan(
        rows=rows,
        columns=columns,
        batch=spec.batch,
        groups=spec.groups,
        depth=spec.in_channels // spec.groups,
        run=spec.out_channels // spec.groups,
        lanes=target.lanes,
        high=int(knobs["rows"]),
        wide=int(knobs["tiles"]),
        vectors=int(knobs["vectors"]),
        blocks=int(knobs["row_blocks"]),
        span=int(knobs["units"]),
        planes=not spec.channels_last,
    )
