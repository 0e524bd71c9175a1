"""Channels-first depthwise with short rows: a vector holds a row of several planes, a column of one beside the others'.

    for group of as many channels as a vector holds rows, od:
        acc[row, lane] = 0                                  lane: column, then channel; all rows in registers
        for kd, columns of the kernel whose weights fit:
            for input row:
                for phase of the stride: s[lane] = x[channel, row, column], permuted together of a load each
                for kw: t = s shifted by whole columns; zero outside
                    for row of outputs and kh that meet there: acc[row, :] += t * weight[kd, kh, kw, channel]
        y[...] = activation(acc + bias + residual), plane after plane, permuted apart

So no lane belongs to a row outside of the input, and rows that are half as wide as a vector fill it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.axes import View, view_of
from convtune.schedules.depthwise_planes_loops import plane_index
from convtune.schedules.estimate import fma_cycles, load_cycles
from convtune.schedules.ranges import least, named, part, ranged, valid_taps
from convtune.schedules.statements import Binder, Expr, Stmt, cleared, sequence, vector_sums, zeros
from convtune.schedules.tiling import FEWEST_LANES, LARGEST_CODE, ceil_div, power_of_two
from convtune.schedules.written import Held

from convtune.expression import epilogue_at

if TYPE_CHECKING:
    from convtune.space import PackStep
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

Lane = tuple[int, int]  # of which vector which lane
ZERO = (-1, 0)


@dataclass(frozen=True)
class WovenPlan:
    """What is made of a view: `planes` of them to a vector of so many lanes, and parts of the channels."""

    view: View
    channels: int
    lanes: int
    planes: int
    parts: int
    registers: int

    @property
    def groups(self) -> int:
        """Of channels; the last one begins earlier where they do not divide."""
        return ceil_div(self.channels, self.planes)

    @property
    def whole(self) -> bool:
        return self.channels % self.planes == 0

    @property
    def weight_shape(self) -> tuple[int, ...]:
        taps = self.view.depth.taps * self.view.rows.taps * self.view.columns.taps
        return (self.groups, taps, self.planes) if self.whole else (taps, self.channels)

    @property
    def read_lanes(self) -> int:
        """Of a load, which holds a row."""
        return min(self.lanes, power_of_two(self.view.rows.size * self.view.columns.size))

    @property
    def held(self) -> list[list[int]]:
        """The columns of the kernel in parts whose weights stay in registers beside the sums."""
        taps, free = self.taps, self.registers - self.view.rows.out - 6
        if len(taps) * self.view.rows.taps > free:  # another part reads the rows again, or has kept them
            free -= self.view.rows.read
        most = max(1, free // self.view.rows.taps)
        return [taps[first : first + most] for first in range(0, len(taps), most)]

    def reads(self, row: int) -> list[tuple[int, int]]:
        """(row of outputs, tap) that an input row serves."""
        axis = self.view.rows
        return [
            (h, tap) for h in range(axis.out) for tap in axis.valid(h) if axis.first(h) + tap * axis.dilation == row
        ]

    def phase(self, tap: int) -> tuple[int, int]:
        """Of a column tap: the first column of those a stride apart that it reads, and columns it shifts them by."""
        axis = self.view.columns
        shift, phase = divmod(tap * axis.dilation - axis.before, axis.stride)
        return phase, shift

    @property
    def taps(self) -> list[int]:
        """The columns of the kernel that read inputs."""
        axis = self.view.columns
        return sorted({tap for out in range(axis.out) for tap in axis.valid(out)})

    def base(self, phase: int, start: int) -> list[Lane]:
        """The lanes of a row's columns of a phase: which lane of the load of which plane, where a row begins there."""
        axis, found = self.view.columns, list[Lane]()
        for lane in range(self.lanes):
            column = min(lane // self.planes * axis.stride + phase, axis.size - 1)
            found.append((lane % self.planes, start + column))
        return found

    def shifted(self, tap: int) -> list[Lane]:
        """The lanes of a column tap: those of its phase moved by whole columns, or zeros.

        Lanes of no output take the first one: LLVM 22 makes a slow expansion of zeros before lanes in order.
        """
        axis, found = self.view.columns, list[Lane]()
        phase, shift = self.phase(tap)
        for lane in range(self.lanes):
            column = (lane // self.planes + shift) * axis.stride + phase
            if lane // self.planes >= axis.out:
                found.append((0, lane if shift == 0 else 0))
            else:
                found.append((0, lane + shift * self.planes) if 0 <= column < axis.size else ZERO)
        return found

    def stores(self, plane: int) -> list[tuple[int, list[Lane]]]:
        """(where it begins, which lanes of which rows) for the vectors of a plane of outputs.

        What one writes beyond whole rows the next one overwrites; the last one ends with the plane.
        """
        rows, width = self.view.rows.out, self.view.columns.out
        total = rows * width
        most = min(self.lanes, power_of_two(total))
        step, found = most // width * width or most, list[tuple[int, list[Lane]]]()
        for start in range(0, total, step):
            left = total - start
            lanes = most if left > step else min(most, max(FEWEST_LANES, power_of_two(2 * left - 1)))
            first, end = min(start, total - lanes), min(start + step, total)
            places = [min(first + lane, end - 1) for lane in range(lanes)]
            found.append((first, [(p // width, p % width * self.planes + plane) for p in places]))
        return found


def group_cycles(plan: WovenPlan, target: CpuTarget) -> float:
    """Of a plane of outputs of a group, without what it waits for memory: permutes share the ports of multiply-adds.

    The next plane begins beside it, as no condition is between.
    """
    view = plan.view
    rows, depth = view.rows, view.depth.all_valid / view.depth.out
    read = sum(bool(plan.reads(row)) for row in range(rows.size))
    phases = {plan.phase(tap)[0] for tap in plan.taps}
    shifts = sum(len(phases & {plan.phase(tap)[0] for tap in held}) * (plan.planes - 1) for held in plan.held)
    shifts += sum(plan.phase(tap)[1] != 0 for tap in plan.taps)
    stores = plan.planes * sum(len({vector for vector, _ in lanes}) for _, lanes in plan.stores(0))
    fmas = depth * rows.all_valid * len(plan.taps)
    loads = depth * (2 * plan.planes * read * len(plan.held) + rows.taps * len(plan.taps))
    permutes = depth * read * shifts + stores
    return max(fma_cycles(target, fmas), load_cycles(target, loads)) + fma_cycles(target, 2 * permutes)


def planes_of(view: View, channels: int, lanes: int) -> int:
    """How many planes a vector holds."""
    columns = view.columns
    widest = max(columns.out, ceil_div(columns.size, columns.stride))
    return power_of_two(min(lanes // widest, channels)) if min(lanes // widest, channels) else 0


def weaves(spec: ConvSpec, target: CpuTarget) -> bool:
    """Whether rows are short enough for more than one in a vector, and a plane's sums fit."""
    view = view_of(spec)
    rows, columns = view.rows, view.columns
    plan = woven_plan(spec, target, 1)
    return (
        plan.planes > 1
        and max(columns.size, FEWEST_LANES) <= plan.read_lanes
        and rows.out * columns.out >= FEWEST_LANES
        and rows.out <= target.vector_registers * 3 // 4
        and rows.all_valid * columns.taps <= LARGEST_CODE
    )


def woven_plan(spec: ConvSpec, target: CpuTarget, parts: int) -> WovenPlan:
    view = view_of(spec)
    planes = planes_of(view, spec.out_channels, target.lanes)
    return WovenPlan(view, spec.out_channels, target.lanes, planes, parts, target.vector_registers)


def woven_pack(plan: WovenPlan) -> tuple[PackStep, ...]:
    """PyTorch's (oc, 1, taps) to (group, tap, plane), or (tap, oc) where groups overlap."""
    *groups, taps, width = plan.weight_shape
    return (
        {"op": "reshape", "shape": [*groups, width, taps]},
        {"op": "transpose", "axes": [*range(len(groups)), len(groups) + 1, len(groups)]},
    )


class Woven:
    """The statements of a plan: `kernel` is all of them."""

    def __init__(self, spec: ConvSpec, plan: WovenPlan, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y
        self.weight, self.x = arguments.weight, arguments.source

    def kernel(self) -> Stmt:
        plan, view = self.plan, self.plan.view

        def group(n: Expr, number: Expr) -> Stmt:
            first = number * plan.planes
            first = first if plan.whole else least(first, plan.channels - plan.planes)
            tile = lambda c: ranged(0, view.depth.out, lambda d: self._plane(n, number, c, d), name="od")  # noqa: E731
            return named(first, "channel", tile)

        def task(number: Expr) -> Stmt:
            groups = part(plan.groups, plan.parts, number % plan.parts)
            return ranged(*groups, lambda g: group(number // plan.parts, g), name="group")

        return ranged(0, view.batch * plan.parts, task, "PARALLEL", "task")

    def _plane(self, n: Expr, group: Expr, channel: Expr, d: Expr) -> Stmt:
        """A plane of outputs of each channel of a group."""
        from tvm import tirx

        depth, lanes = self.plan.view.depth, self.plan.lanes

        def body(acc: Sequence[Any]) -> Stmt:

            def taps(kd: Expr) -> Stmt:
                at = (n, channel, depth.first(d) + kd * depth.dilation)
                parts = [self._products(acc, at, (group, channel, kd), held) for held in self.plan.held]
                return sequence(parts) if parts else tirx.Evaluate(0)

            planes = ranged(*valid_taps(depth, depth.first(d)), taps, name="kd")
            return sequence([*cleared(acc, lanes), planes, self._store(acc, n, channel, d)])

        return vector_sums(self.plan.view.rows.out, lanes, body)

    def _products(
        self, acc: Sequence[Any], at: tuple[Expr, ...], filters_at: tuple[Expr, Expr, Expr], held: Sequence[int]
    ) -> Stmt:
        """acc += an input plane, (image, channel, depth), times these columns of the kernel.

        filters_at: (group, channel, tap of the depth).
        """
        from tvm import tirx

        plan, whole = self.plan, [tirx.Ramp(0, 1, self.plan.lanes)]
        rows, bind = plan.view.rows, Binder(f"float32x{plan.lanes}")
        filters = {(kh, kw): bind(self._filter(*filters_at, kh, kw)) for kh in range(rows.taps) for kw in held}
        for row in range(rows.size):
            uses, bases = plan.reads(row), dict[int, Expr]()
            if not uses:
                continue
            start, loads = self._loads(at, row, bind.statements)
            for kw in held:
                phase, _ = plan.phase(kw)
                if phase not in bases:
                    bases[phase] = picked(plan.base(phase, start), loads, plan.read_lanes, bind)
                value = picked(plan.shifted(kw), [bases[phase]], plan.lanes, bind)
                for h, kh in uses:
                    bind.add(acc[h], whole, value * filters[kh, kw])
        return sequence(bind.statements)

    def _filter(self, group: Expr, channel: Expr, kd: Expr, kh: int, kw: int) -> Expr:
        """A tap's weights of the planes, over and over."""
        from tvm import tirx

        plan, taps = self.plan, [axis.taps for axis in self.plan.view.axes]
        tap = (kd * taps[1] + kh) * taps[2] + kw
        place = [group, tap, 0] if plan.whole else [tap, channel]
        place[-1] = tirx.Ramp(place[-1], 1, plan.planes)
        load = tirx.BufferLoad(self.weight, place)
        return tirx.Shuffle([load] * (plan.lanes // plan.planes), list(range(plan.lanes)))

    def _loads(self, at: tuple[Expr, ...], row: int, statements: list[Stmt]) -> tuple[int, list[Expr]]:
        """Where an input row begins in vectors of all planes, and these vectors."""
        from tvm import tirx

        plan, columns = self.plan, self.plan.view.columns.size
        n, channel, d = at
        start = min(row * columns, plan.view.rows.size * columns - plan.read_lanes)
        ramp, bind = tirx.Ramp(start, 1, plan.read_lanes), Binder(f"float32x{plan.read_lanes}")
        found = []
        for plane in range(plan.planes):
            load = tirx.BufferLoad(self.x, plane_index(self.spec, n, channel + plane, d, ramp))
            found.append(bind(load))
        statements += bind.statements
        return row * columns - start, found

    def _store(self, acc: Sequence[Any], n: Expr, channel: Expr, d: Expr) -> Stmt:
        """The epilogue, plane after plane."""
        from tvm import tirx

        found, whole = [], [tirx.Ramp(0, 1, self.plan.lanes)]
        sums = [tirx.BufferLoad(each, whole) for each in acc]
        for plane in range(self.plan.planes):
            for first, lanes in self.plan.stores(plane):
                bind = Binder(f"float32x{len(lanes)}")
                apart = picked(lanes, sums, self.plan.lanes, bind)
                found += bind.statements
                found.append(self._output(apart, len(lanes), n, channel + plane, d, first))
        return sequence(found)

    def _output(self, vector: Expr, lanes: int, n: Expr, channel: Expr, d: Expr, first: int) -> Stmt:
        from tvm import tirx

        def stored(copy: Sequence[Any]) -> Stmt:
            def element(lane: Expr) -> Stmt:
                where = plane_index(self.spec, n, channel, d, first + lane)
                value = tirx.BufferLoad(copy[0], [lane])
                return tirx.BufferStore(self.y, epilogue_at(self.arguments, value, where), where)

            kept = tirx.BufferStore(copy[0], vector, [tirx.Ramp(0, 1, lanes)])
            return sequence([kept, ranged(0, lanes, element, "VECTORIZED", "lane")])

        return vector_sums(1, lanes, stored)


def picked(lanes: Sequence[Lane], vectors: Sequence[Expr], width: int, bind: Binder) -> Expr:
    """A vector of lanes of others, which have `width` each."""
    from tvm import tirx

    used = sorted({vector for vector, _ in lanes if vector >= 0})
    if list(lanes) == [(used[0], lane) for lane in range(width)]:
        return vectors[used[0]]
    sources = [vectors[number] for number in used]
    if ZERO in lanes:
        sources.append(zeros(width))
    order = [len(used) * width if vector < 0 else used.index(vector) * width + lane for vector, lane in lanes]
    sources *= ceil_div(len(lanes), width * len(sources))  # TVM 0.27 takes no more lanes than there are
    return bind(tirx.Shuffle(sources, order))
