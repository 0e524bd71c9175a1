"""How a convolution is cut into minimal-filtering tiles, points, blocks and passes: sizes only, no TVM."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_axis import TiledAxis, tiled_axes
from convtune.schedules.past_caches import can_pass, is_past, without_past
from convtune.schedules.statements import flat, unflat
from convtune.schedules.tiling import LINE, ceil_div, round_up, spread

from convtune.spec import count

if TYPE_CHECKING:
    from convtune.space import Knobs
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

Dims = tuple[int, ...]
ALIASED = 512  # elements
TILES = (2, 3, 4, 5, 6, 7, 8)
TILE_KNOBS = ("d_tile", "h_tile", "w_tile")
ORDERS = ("tiles", "channels", "fetched")
BESIDE = "beside"  # the order `tiles`, and products fetch x and y
BESIDE_SHARE = 0.25  # of the second cache, which V, M and U need too, that may be fetched at a time of x, and of y
MOST_BESIDE_BLOCKS = 2  # register tiles of a block whose products fetch x or y, or whose outputs pass the caches
MOST_UNEVEN_BESIDE = 1.4  # the largest tile size over the least of such a block
APART = "apart_"  # before an order: phases of a transposed convolution have windows of their own


@dataclass(frozen=True)
class Plan:
    """All sizes of a schedule."""

    axes: tuple[TiledAxis, TiledAxis, TiledAxis]
    batch: int
    channels: int  # of the input
    groups: int  # of input channels
    depth: int  # input channels of a group
    run: int  # output channels of a group and phase
    lanes: int
    vectors: int
    rows: int  # tiles of a register tile
    block: int  # tiles of a task
    per_pass: int  # channel blocks of a pass
    shared: bool  # V is made for all tiles first, and tasks are passes
    registers: int = 0  # vectors that the transform of a tile of the input may hold
    ahead: bool = False  # x lies far away: what a tile reads is fetched while the one before it is transformed
    weights_ahead: bool = False  # products fetch U, which lies in memory
    inputs_beside: bool = False  # products fetch what the next block reads of x
    outputs_beside: bool = False  # products fetch the lines of y that they are for
    past: bool = False  # outputs are stored past the caches

    @functools.cached_property
    def points(self) -> int:
        return prod(axis.alpha for axis in self.axes)

    @functools.cached_property
    def taps(self) -> int:
        """Parts of the taps that are summed one by one."""
        return prod(axis.parts for axis in self.axes)

    @functools.cached_property
    def together(self) -> int:
        """Parts, of the last dimensions, that products sum as one: all of them are needed, and they lie side by side.

        Of loops around the sum LLVM unrolls those of three steps, and with six sums in a row it kept the accumulators
        in memory.
        """
        return self.taps // prod(self.parts_apart)

    @functools.cached_property
    def parts_apart(self) -> list[int]:
        """How many parts of each dimension, or runs of them, products sum one by one."""
        found = [axis.parts for axis in self.axes]
        for i in reversed(range(3)):
            if self.axes[i].lacking or self.groups > 1:
                break
            found[i] = 1
        return found

    @functools.cached_property
    def steps(self) -> int:
        """Of a sum: input channels of a group, of all parts that are summed together."""
        return self.together * self.depth

    @functools.cached_property
    def phases(self) -> int:
        return prod(axis.phases for axis in self.axes)

    @functools.cached_property
    def windows(self) -> int:
        """Of inputs, each with a V of its own, that a tile has for its phases."""
        return prod(axis.windows for axis in self.axes)

    def window(self, phase: Any) -> Any:
        """The one that a phase reads."""
        places = zip(self.axes, unflat(phase, [axis.phases for axis in self.axes]))
        return flat([axis.window(at) for axis, at in places], [axis.windows for axis in self.axes])

    @functools.cached_property
    def runs(self) -> int:
        """Of output channels: each group has one a phase."""
        return self.groups * self.phases

    @functools.cached_property
    def density(self) -> float:
        """The share of U that is not zero for a missing tap."""
        return prod(axis.nonzero / (axis.alpha * axis.parts * axis.phases) for axis in self.axes)

    @functools.cached_property
    def needed(self) -> float:
        """The share of the products with U that register tiles do not leave out."""
        return prod(
            axis.products / (axis.residues * axis.tiles * axis.nonzero) if i in self.leaving_out else 1.0
            for i, axis in enumerate(self.axes)
        )

    @functools.cached_property
    def leaving_out(self) -> list[int]:
        """Dimensions with residues that need fewer points, of which register tiles have nothing else."""
        shares = [(axis.full, axis.residues) for axis in self.axes]
        found = []
        for i, (whole, residues) in enumerate(shares):
            within = prod(axis.tiles for axis in self.axes)
            if i < 2:
                last, of_last = shares[2]
                within *= min(last, of_last - last) if last < of_last else of_last
                within *= shares[1][1] if i == 0 else 1
            else:
                within *= shares[0][1] * shares[1][1]
            found += [i] if whole < residues and within * whole >= self.rows else []
        return found

    @functools.cached_property
    def tiles(self) -> int:
        return self.batch * prod(axis.residues * axis.tiles for axis in self.axes)

    @functools.cached_property
    def x_bytes(self) -> int:
        return 4 * self.batch * self.channels * prod(axis.size for axis in self.axes)

    @functools.cached_property
    def y_bytes(self) -> int:
        return 4 * self.batch * self.groups * self.run * prod(axis.out for axis in self.axes)

    @functools.cached_property
    def tasks(self) -> int:
        """Blocks of tiles."""
        return ceil_div(self.tiles, self.block)

    def block_of(self, task: Any) -> Any:
        """The block of the task with that number: where some blocks take less time, neighbours are far apart.

        Threads have one run of the tasks each.
        """
        if not self.leaving_out:
            return task
        apart = next(n for n in range(max(1, self.tasks * 3 // 8), self.tasks + 2) if gcd(n, self.tasks) == 1)
        return task * apart % self.tasks

    @functools.cached_property
    def block_rows(self) -> int:
        """Tiles of a block, in whole register tiles."""
        return round_up(self.block, self.rows)

    @functools.cached_property
    def width(self) -> int:
        """Output channels of a channel block."""
        return self.vectors * self.lanes

    @functools.cached_property
    def blocks(self) -> int:
        """Channel blocks of a run."""
        return ceil_div(self.run, self.width)

    @functools.cached_property
    def passes(self) -> int:
        return self.runs * self.blocks // self.per_pass

    @functools.cached_property
    def overlaps(self) -> bool:
        """Whether the vector that ends a run can start before the one before it ends, which is of the same pass."""
        block, vector = divmod(self.run // self.lanes, self.vectors)
        if vector > 0:
            return True
        return block > 0 and (block % self.per_pass > 0 if self.runs == 1 else self.per_pass % self.blocks == 0)

    @functools.cached_property
    def v_channels(self) -> int:
        """Input channels that a task reads: with groups those of its pass, which has whole groups."""
        return self.channels if self.groups == 1 else self.per_pass // (self.blocks * self.phases) * self.depth

    @functools.cached_property
    def v_row(self) -> int:
        """Elements from tile to tile of V."""
        return _unaliased(self.windows * self.taps * self.v_channels, self.lanes)

    @functools.cached_property
    def v_shape(self) -> Dims:
        """(point, tile of a block with its windows, parts and channels)."""
        return (self.points, spread(self.block_rows * self.v_row))

    @functools.cached_property
    def m_row(self) -> int:
        return _unaliased(self.per_pass * self.width, self.lanes)

    @functools.cached_property
    def m_shape(self) -> Dims:
        """(point, tile of a block with its output channels of a pass)."""
        return (self.points, spread(self.block_rows * self.m_row))

    @functools.cached_property
    def u_shape(self) -> Dims:
        """(pass, point, channel block of it, part and input channel of a group, output channel of a block)."""
        return (self.passes, self.points, self.per_pass, self.taps * self.depth, self.width)


def _unaliased(elements: int, lanes: int) -> int:
    """The length of rows that are read side by side: 2 KiB apart, many would share a set of the first cache."""
    return elements + lanes * (elements % ALIASED == 0)


def order_of(knobs: Knobs) -> str:
    """The order of a candidate, whether phases are apart and outputs stored past the caches or not."""
    return without_past(knobs.get("order", ORDERS[0])).removeprefix(APART)


def stores_past(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether outputs can be stored past the caches: in whole lines, one vector each, as a tile's channels go by."""
    return spec.groups == 1 and target.lanes == LINE and can_pass(spec, target)


def fetches_beside(plan: Plan) -> bool:
    """Whether products may fetch x or y: in small blocks of tiles that are not long, so that domains stay small."""
    tiles = [axis.m for axis in plan.axes if filters(axis)]
    even = max(tiles) <= MOST_UNEVEN_BESIDE * min(tiles)
    return even and in_small_blocks(plan) and (plan.inputs_beside or plan.outputs_beside)


def in_small_blocks(plan: Plan) -> bool:
    """Whether a block has few register tiles: larger ones gain nothing by fetches or by stores past the caches."""
    return plan.block <= MOST_BESIDE_BLOCKS * plan.rows


def pass_sizes(spec: ConvSpec, target: CpuTarget, vectors: int) -> list[int]:
    """How many channel blocks a pass may have: equal parts, of whole groups."""
    phases = prod(axis.phases for axis in tiled_axes(spec, (1, 1, 1)))
    of_group = phases * ceil_div(spec.out_channels // spec.groups, vectors * target.lanes)
    least = of_group if spec.groups > 1 else 1
    parts = spec.groups * of_group // least
    return [least * part for part in range(1, parts + 1) if parts % part == 0]


def filters(axis: TiledAxis) -> bool:
    """Whether parts of the dimension's taps can be filtered."""
    return axis.taps > axis.stride and (axis.stride == 1 or axis.dilation == 1)


def tile_sizes(direct: TiledAxis, unused: Sequence[int] = (), apart: bool = False) -> list[int]:
    """Tiles of a dimension, 1 for a direct one first: each needs fewer products than smaller ones do.

    apart: phases have windows of their own where that saves tiles.
    """
    values, least = [1], direct.products
    for m in TILES if filters(direct) else ():
        axis = direct.cut_into(m, apart)
        if axis.alpha <= axis.most_alpha and axis.products < least and m not in unused:
            values, least = [*values, m], axis.products
    return values


def most_rows(target: CpuTarget, vectors: int) -> int:
    return (target.vector_registers - 1) // vectors - 1


def fitted_rows(tiles: int, target: CpuTarget, vectors: int) -> int:
    """The tiles of a register tile where there are few in all: so that none is computed for nothing."""
    return ceil_div(tiles, ceil_div(tiles, most_rows(target, vectors)))


@functools.lru_cache(maxsize=1 << 10)
def register_tiles(spec: ConvSpec, target: CpuTarget) -> tuple[tuple[int, int], ...]:
    """Tiles x vectors of a register tile: as many as the registers hold, or three quarters, with few idle lanes."""
    needed = ceil_div(spec.out_channels // spec.groups, target.lanes)
    most = min(4, needed, target.vector_registers // 4)
    idle = {v: ceil_div(needed, v) * v - needed for v in range(min(2, most), most + 1)}
    found = []
    for vectors in (v for v in idle if idle[v] * 8 <= needed or idle[v] == min(idle.values())):
        rows = most_rows(target, vectors)
        found += [(ceil_div(rows * 3, 4), vectors), (rows, vectors)]
    return tuple(dict.fromkeys(found))


def plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    """The plan of a candidate."""
    plan = _plan_of(spec, target, knobs)
    if order_of(knobs) != BESIDE or not spec.channels_last or spec.groups > 1:
        return plan
    read = plan.block * prod(axis.fresh[1] for axis in plan.axes) * plan.channels
    written = plan.block * prod(axis.m for axis in plan.axes) * plan.per_pass * plan.width
    return dataclasses.replace(
        plan,
        inputs_beside=plan.x_bytes > target.l2_bytes and 4 * read <= BESIDE_SHARE * target.l2_bytes,
        outputs_beside=not plan.past
        and plan.y_bytes > target.l2_bytes
        and 4 * written <= BESIDE_SHARE * target.l2_bytes,
    )


def _plan_of(spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Plan:
    groups, order, named = spec.groups, order_of(knobs), str(knobs.get("order"))
    return Plan(
        axes=tiled_axes(spec, tuple(int(knobs.get(name, 1)) for name in TILE_KNOBS), named.startswith(APART)),
        batch=spec.batch,
        channels=spec.in_channels,
        groups=groups,
        depth=spec.in_channels // groups,
        run=spec.out_channels // groups,
        lanes=target.lanes,
        vectors=int(knobs["oc_vectors"]),
        rows=int(knobs["tile_rows"]),
        block=int(knobs["tile_rows"]) * int(knobs["row_blocks"]),
        per_pass=int(knobs["pass_blocks"]),
        shared=order in ORDERS[1:],
        weights_ahead=order == ORDERS[2],
        registers=target.vector_registers,
        ahead=spec.channels_last and spec.in_channels >= target.lanes and 4 * count(spec.in_shape) > target.l2_bytes,
        past=is_past(named),
    )


@dataclass(frozen=True)
class Place:
    """Where a tile is: image, and per dimension its residue and number."""

    n: Any
    residues: tuple[Any, ...]
    tiles: tuple[Any, ...]


def exists(plan: Plan, q: Any) -> list[Any]:
    """That there is a q-th tile: the last block may have fewer."""
    return [q < plan.tiles] if plan.tiles % plan.block else []
