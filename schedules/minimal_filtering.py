"""Convolution by minimal filtering F(m, r) in any of its dimensions (Winograd, Cook-Toom), any rank.

    V = B^T x B  of tiles of m + r - 1 inputs a dimension       M[point] = V[point] U[point], U = G w G^T when packed
    Y = A^T M A  of tiles of m outputs                          `filtering_points` has the matrices

    parallel task = block of tiles [, pass]                         order: tiles; of groups each pass is a task
        for tile, part, ic: V[point, tile, part, ic] = transform    in L2, one dimension after the other
        for pass: channel blocks                                    M of a pass in L2
            for point, oc_outer, tile_outer:
                acc[tile_inner, oc_vector, lane] = 0                in registers
                for part of the taps:
                    if its U is not 0: for ic:
                        acc[...] += V[point, tile, part, ic] * U[pass, point, oc_outer, part, ic, oc_vector, lane]
                M[point, tile, oc] = acc
            for tile, oc_vector: y[...] = activation(transform of M + bias + residual)

With `order` channels V of all tiles is made first, in a parallel region of its own, and a task is a pass of a block:
each task then reads its part of U once, which counts where there are few tiles and many channels. With `order` fetched
products besides fetch U ahead, from memory into the second cache (`filtering_ahead`); with `order` beside those of the
order tiles fetch y, and x for the next block (`filtering_beside`). With tiles_past and beside_past, of an output that
no cache can hold, y is stored past the caches (`past_caches`): its lines are read by neither products nor stores.

`filtering_axis` says what parts are: the taps of a direct dimension, whose tile is 1; those of each residue of the
stride; pieces of a long kernel. A dilated convolution is dilation^rank interleaved dense ones, and a transposed one has
stride^rank phases, each with its filters of the same inputs. With `order` apart_tiles and so on each begins its tiles
at its first output, where these are fewer: V has several windows of the inputs then.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_axis import tiled_axes
from convtune.schedules.filtering_beside import Beside, with_fetches
from convtune.schedules.filtering_estimate import (
    MOST_AMPLIFICATION,
    amplification,
    estimated_cycles,
    expected_error,
    worth_fetching,
)
from convtune.schedules.filtering_input import InputTransform
from convtune.schedules.filtering_near import NearInputs, NearOutputs
from convtune.schedules.filtering_output import OutputTransform
from convtune.schedules.filtering_parts import moved_bytes, moving_cycles, reads_near, stores_near
from convtune.schedules.filtering_places import each_vector, of_vector
from convtune.schedules.filtering_plan import (
    APART,
    BESIDE,
    ORDERS,
    TILE_KNOBS,
    Plan,
    fetches_beside,
    filters,
    fitted_rows,
    in_small_blocks,
    order_of,
    pass_sizes,
    plan_of,
    register_tiles,
    stores_past,
    tile_sizes,
)
from convtune.schedules.filtering_products import products
from convtune.schedules.filtering_tensors import Tensors, with_tensors
from convtune.schedules.filtering_weights import packed
from convtune.schedules.past_caches import read_first_cycles, tasks_past, with_past
from convtune.schedules.statements import allocated, loop, sequence
from convtune.schedules.tiling import ceil_div, spaced
from convtune.schedules.written import written

from convtune.accuracy import LOOSE
from convtune.space import Estimating, Knobs, KnobValue, PackStep, all_knobs
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

UNUSED = {1: (), 2: (5, 8), 3: (3, 7, 8)}  # tiles, by how many dimensions can be filtered: domains stay small
LARGEST_TILE = 6  # of those that can be used in all dimensions at once
MOST_UNEVEN = 2.5  # the largest tile size over the least
VARIANTS = ("conv", "dilated", "grouped", "transposed")
MOST_UNEVEN_APART = 1.5  # the same with phases apart
MOST_POINTS = 256
FEW_TILES = 64  # of the whole output
MOST_TILES = 64  # of a block: the weights are read often enough then
MOST_MOVED_TILES = 128  # of a block that moves its parts of planes, which are longer then
MOST_TASK_BYTES = 4  # times the second cache: V and M of a task
ROW_BLOCKS = (1, 2, 4, 8)
MOST_FETCHING_BLOCKS = 2  # register tiles of a block, with few tiles in all: with more, products take longer than U
MOST_WINDOWS_BLOCKS = 4  # register tiles of a block whose V has several windows of the inputs
MOST_ROW_BLOCKS = 16  # channels first, where one dimension is filtered


class MinimalFiltering(Estimating[CpuTarget]):
    name = "minimal_filtering"
    summary = "fewer multiplications: F(m, r) tiles in any dimensions (Winograd, Cook-Toom), transforms fused per block"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant not in VARIANTS:
            return False
        divided = spec.groups > 1 or spec.variant == "transposed"
        if divided and spec.out_channels // spec.groups < target.lanes:
            return False
        if spec.variant == "transposed" and any(d > 1 for d in spec.dilation):
            return False
        return any(max(values) > 1 for values in _tile_values(spec).values())

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        rows, vectors = zip(*register_tiles(spec, target))
        rows = (*rows, *_fitting_rows(spec, target))
        passes = {part for v in vectors for part in pass_sizes(spec, target, v)}
        tiles = {name: tuple(sorted({m for way in _ways(spec) for m in way[name]})) for name in _tile_values(spec)}
        larger = not spec.channels_last and sum(len(values) > 1 for values in tiles.values()) == 1
        return {
            **tiles,
            "tile_rows": tuple(sorted(set(rows))),
            "oc_vectors": tuple(sorted(set(vectors))),
            "row_blocks": (*ROW_BLOCKS, MOST_ROW_BLOCKS) if larger else ROW_BLOCKS,
            "pass_blocks": spaced(passes, 3),
            **({"order": _orders(spec, target)} if spec.groups == 1 else {}),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        rows, vectors = int(knobs["tile_rows"]), int(knobs["oc_vectors"])
        tiles = [m for name in TILE_KNOBS if (m := int(knobs.get(name, 1))) > 1]
        if not tiles or max(tiles) > MOST_UNEVEN * min(tiles):
            return False
        block, most = rows * int(knobs["row_blocks"]), (MOST_TILES if spec.channels_last else MOST_MOVED_TILES)
        if knobs["pass_blocks"] not in pass_sizes(spec, target, vectors) or (block > most and block > rows):
            return False
        plan = plan_of(spec, target, knobs)
        if not _chosen(spec, plan, knobs):
            return False
        if (rows, vectors) not in register_tiles(spec, target) and (
            rows != fitted_rows(plan.tiles, target, vectors) or plan.tiles > FEW_TILES
        ):
            return False
        if plan.points > MOST_POINTS or plan.block - plan.rows >= plan.tiles:
            return False
        if plan.weights_ahead and not _fetches(plan, target):
            return False
        if order_of(knobs) == BESIDE and not fetches_beside(plan):
            return False
        if plan.past and not in_small_blocks(plan):
            return False
        if max(tiles) > LARGEST_TILE and amplification(plan) > MOST_AMPLIFICATION:
            return False
        if expected_error(spec, plan) > LOOSE[spec.dtype]:
            return False
        task_bytes = 4 * (prod(plan.m_shape) + (0 if plan.shared else prod(plan.v_shape)))
        if block > MOST_TILES and block > rows and task_bytes > target.l2_bytes / 2:
            return False
        return task_bytes <= MOST_TASK_BYTES * target.l2_bytes or (plan.per_pass == 1 and knobs["row_blocks"] == 1)

    def default(self, spec: ConvSpec, target: CpuTarget) -> Knobs:
        found = self.default_within(spec, target, LOOSE[spec.dtype])
        return next(all_knobs(self, spec, target)) if found is None else found

    def default_within(self, spec: ConvSpec, target: CpuTarget, max_error: float) -> Knobs | None:
        found = _fastest(self, spec, target, max_error)
        return None if found is None else dict(found)

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        return expected_error(spec, plan_of(spec, target, knobs))

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        plan = plan_of(spec, target, knobs)
        if spec.channels_last:
            first = read_first_cycles(spec, target, plan.past) if stores_past(spec, target) else 0.0
            return estimated_cycles(plan, target) + first
        return estimated_cycles(plan, target, moved_bytes(plan)) + moving_cycles(plan, target)

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return (packed(spec, plan_of(spec, target, knobs)),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        plan = plan_of(spec, target, knobs)
        made = functools.partial(filtered, spec, plan)
        return written(
            spec, plan.u_shape, lambda buffers, y: with_tensors(spec, plan.lanes, buffers, y, made, near(spec, plan))
        )


def near(spec: ConvSpec, plan: Plan) -> tuple[bool, bool]:
    """Whether tasks move parts of x, and of y, between channels first and last themselves."""
    return (not spec.channels_last and reads_near(plan), not spec.channels_last and stores_near(plan))


def filtered(spec: ConvSpec, plan: Plan, tensors: Tensors) -> Any:
    """The statement of a whole convolution, from x to y of the tensors."""
    if plan.shared:
        return allocated((plan.tasks, *plan.v_shape), "v", "global", lambda v: _by_channels(spec, plan, tensors, v))
    if plan.groups == 1:

        def of_block(task: Any) -> Any:
            made = lambda beside: _by_tiles(spec, plan, tensors, plan.block_of(task), beside=beside)  # noqa: E731
            return with_fetches(spec, plan, tensors, task, made)

        return tasks_past(plan.tasks, of_block, plan.lanes, plan.past, "block")

    def of_pass(task: Any) -> Any:
        return _by_tiles(spec, plan, tensors, plan.block_of(task // plan.passes), task % plan.passes)

    return loop(plan.tasks * plan.passes, of_pass, "PARALLEL", "block")


def _by_tiles(
    spec: ConvSpec, plan: Plan, tensors: Tensors, block: Any, number: Any = None, beside: Beside | None = None
) -> Any:
    """A block of tiles with all its channels; or with those of a pass, whose groups read no others."""
    base = 0 if number is None else number * plan.v_channels

    def with_v(v: Any) -> Any:
        locate = lambda point, row, element: (v, (point, row * plan.v_row + element))  # noqa: E731

        def passed(m: Any, number: Any) -> Any:
            return _pass(spec, plan, tensors, m, locate, block, number, beside)

        def with_m(m: Any) -> Any:
            return loop(plan.passes, lambda i: passed(m, i), name="pass") if number is None else passed(m, number)

        made = _transformed(spec, plan, tensors, locate, block, base)
        return sequence([made, allocated(plan.m_shape, "m", "global", with_m)])

    return allocated(plan.v_shape, "v", "global", with_v)


def _by_channels(spec: ConvSpec, plan: Plan, tensors: Tensors, v: Any) -> Any:
    """V of all tiles, then the passes of all blocks."""

    def transposed(task: Any) -> Any:
        vectors = ceil_div(plan.v_channels, plan.lanes)
        block, vector = task // vectors, task % vectors
        locate = lambda point, row, element: (v, (block, point, row * plan.v_row + element))  # noqa: E731
        inputs = NearInputs(spec, plan, tensors.planes.source, locate)
        return of_vector(plan, vector, lambda c, w: inputs.made(block, c, w))

    def made(task: Any) -> Any:
        block, row = task // plan.block, task % plan.block
        transform = InputTransform(
            spec, plan, tensors.read, lambda point, r, element: (v, (block, point, r * plan.v_row + element))
        )
        return each_vector(plan.v_channels, plan.lanes, lambda c, w: transform.tile(task, row, c, w))

    def task(index: Any) -> Any:
        block, number = plan.block_of(index // plan.passes), index % plan.passes
        locate = lambda point, row, element: (v, (block, point, row * plan.v_row + element))  # noqa: E731
        return allocated(plan.m_shape, "m", "global", lambda m: _pass(spec, plan, tensors, m, locate, block, number))

    return sequence(
        [
            loop(plan.tasks * ceil_div(plan.v_channels, plan.lanes), transposed, "PARALLEL", "vector")
            if tensors.source is None
            else loop(plan.tasks * plan.block, made, "PARALLEL", "tile"),
            loop(plan.tasks * plan.passes, task, "PARALLEL", "task"),
        ]
    )


def _transformed(spec: ConvSpec, plan: Plan, tensors: Tensors, locate: Any, block: Any, base: Any) -> Any:
    """V of a block of tiles."""
    if tensors.source is None:
        inputs = NearInputs(spec, plan, tensors.planes.source, locate)
        return each_vector(plan.v_channels, plan.lanes, lambda c, w: inputs.made(block, c, w, base))
    transform = InputTransform(spec, plan, tensors.read, locate)
    return loop(
        plan.block,
        lambda row: each_vector(
            plan.v_channels, plan.lanes, lambda c, w: transform.tile(block * plan.block + row, row, c, w, base)
        ),
    )


def _pass(
    spec: ConvSpec, plan: Plan, tensors: Tensors, m: Any, v: Any, block: Any, number: Any, beside: Beside | None = None
) -> Any:
    if tensors.y is None:
        stored = NearOutputs(spec, plan, tensors.planes, m).stored(block, number)
        return sequence([products(plan, v, tensors.weight, m, block, number), stored])
    transform = OutputTransform(spec, plan, tensors.store, m, tensors.store_past)
    stored = loop(plan.block, lambda row: transform.tile(block * plan.block + row, row, number), name="row")
    return sequence([products(plan, v, tensors.weight, m, block, number, beside), stored])


def _ways(spec: ConvSpec) -> list[Mapping[str, tuple[int, ...]]]:
    """The sizes of tiles with phases together; and apart, where there is that choice, with no dimension direct."""
    apart = spec.groups == 1 and any(axis.phases > 1 and axis.cut for axis in tiled_axes(spec, (1, 1, 1)))
    together = _tile_values(spec)
    if not apart:
        return [together]
    return [together, {name: values[1:] or values for name, values in _tile_values(spec, True).items()}]


def _chosen(spec: ConvSpec, plan: Plan, knobs: Knobs) -> bool:
    """Whether tiles have sizes for their way to count phases, which differs from the other one."""
    apart = str(knobs.get("order")).startswith(APART)
    values = _ways(spec)[apart]
    if apart and (plan.windows == 1 or plan.block > MOST_WINDOWS_BLOCKS * plan.rows):
        return False
    tiles = [int(knobs[name]) for name in values if int(knobs[name]) > 1]
    if apart and max(tiles) > MOST_UNEVEN_APART * min(tiles):
        return False
    return all(knobs[name] in values[name] for name in values)


@functools.lru_cache(maxsize=1 << 10)
def _tile_values(spec: ConvSpec, apart: bool = False) -> Mapping[str, tuple[int, ...]]:
    """For each dimension the sizes of a tile, 1 for a direct one: each needs fewer products than smaller ones do."""
    found = {}
    names, axes = TILE_KNOBS[3 - spec.rank :], tiled_axes(spec, (1, 1, 1))[3 - spec.rank :]
    filtered = sum(map(filters, axes))
    unused = UNUSED[max(1, filtered)]
    for name, direct in zip(names, axes):
        values = tile_sizes(direct, unused, apart)
        filtered_anyway = filtered == 3 and name != names[0] and len(values) > 1
        found[name] = tuple(values[1:] if filtered_anyway else values)
    return found


@functools.lru_cache(maxsize=1 << 10)
def _orders(spec: ConvSpec, target: CpuTarget) -> tuple[str, ...]:
    """With the one that fetches U where that may be worth it with any combination of tiles."""
    ways, found = _ways(spec), list[str]()
    past = with_past(spec, target, (ORDERS[0], BESIDE)) if stores_past(spec, target) else ()
    far = spec.channels_last and 4 * max(count(spec.in_shape), count(spec.out_shape)) > target.l2_bytes
    for way, prefix in zip(ways, ("", APART)):
        values = [way.get(name, (1,)) for name in TILE_KNOBS]
        combined = itertools.product(*values)
        most = max(prod(axis.alpha * axis.parts for axis in tiled_axes(spec, sizes)) for sizes in combined)
        phases = prod(axis.phases for axis in tiled_axes(spec, (1, 1, 1)))
        fetched = worth_fetching(4 * most * phases * spec.in_channels * spec.out_channels, target)
        orders = past or (*ORDERS[: 2 + fetched], *[BESIDE] * far)  # of outputs past the caches V never fits as a whole
        found += [prefix + order for order in orders]
    return tuple(found)


def _fetches(plan: Plan, target: CpuTarget) -> bool:
    """Whether products may wait for U, so that fetching it is a choice."""
    few = plan.tiles <= FEW_TILES and plan.block <= MOST_FETCHING_BLOCKS * plan.rows
    return few and worth_fetching(4 * prod(plan.u_shape), target)


@functools.lru_cache(maxsize=1 << 10)
def _fitting_rows(spec: ConvSpec, target: CpuTarget) -> tuple[int, ...]:
    """What `fitted_rows` gives, of all tile sizes with few tiles."""
    counts = set()
    for apart, way in enumerate(_ways(spec)):
        for sizes in itertools.product(*(way.get(name, (1,)) for name in TILE_KNOBS)):
            axes = tiled_axes(spec, sizes, bool(apart))
            counts.add(spec.batch * prod(axis.residues * axis.tiles for axis in axes))
    vectors = {v for _, v in register_tiles(spec, target)}
    return tuple({fitted_rows(n, target, v) for n in counts if n <= FEW_TILES for v in vectors})


@functools.lru_cache(maxsize=1 << 10)
def _fastest(space: MinimalFiltering, spec: ConvSpec, target: CpuTarget, max_error: float) -> Knobs | None:
    """Of each combination of tiles the other knobs that are estimated to be the fastest, a few at a time."""
    domain = space.knobs(spec, target)
    tiles = [name for name in TILE_KNOBS if name in domain]
    together = () if spec.channels_last else ("row_blocks",)  # runs of planes, which count there, are of whole blocks
    stages = [
        [name for name in names if name in domain]
        for names in (("tile_rows", "oc_vectors", "order", *together), ("row_blocks", "order", "pass_blocks"))
    ]

    def cycles(knobs: Knobs) -> float:
        return space.estimate(spec, target, knobs)

    found: list[Knobs] = []
    for sizes in itertools.product(*(domain[name] for name in tiles)):
        best: Knobs = {**{name: values[0] for name, values in domain.items()}, **dict(zip(tiles, sizes))}
        if max(sizes) == 1 or space.expected_error(spec, target, best) > max_error:
            continue
        for names in (*stages, *stages):
            parts = itertools.product(*(domain[name] for name in names))
            choices = [{**best, **dict(zip(names, values))} for values in parts]
            best = min((knobs for knobs in choices if space.allows(spec, target, knobs)), key=cycles, default=best)
        found += [best] if space.allows(spec, target, best) else []
    return min(found, key=cycles, default=None)


minimal_filtering = MinimalFiltering()
