"""Transposed convolution by sub-pixel phases: outputs `stride` apart are one small dense convolution each.

    parallel task = (n, ud_outer, uh_outer, uw_outer [, oc_outer]):   oc_order: parallel
        pad: the task's input rows, channels last, zeros around       pad_at: task, root (once for all), none
        for [oc_outer,] phases of d, h, w:                            oc_order: outer
            for uh, uw tiles:
                acc[uw_inner, oc_vector, lane] = 0                    in registers
                for jd, jh, jw:
                    if the kernel has the tap, and the row is not of zeros: for ic:
                        acc[...] += pad[..., uw_inner - jw, ic] * weight[oc_outer, phase, j, ic, oc_vector, lane]
                y[..., uw * stride + phase, ...] = activation(acc + bias + residual)

Nothing is multiplied by an inserted zero or by a row of padding, and no tap that the kernel lacks is visited: phases
differ in their number of taps where the stride does not divide the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import (
    L2_BYTES_PER_CYCLE,
    TILE_CYCLES,
    Tasks,
    burst_cycles,
    overlapped,
    padding_cycles,
    stream_cycles,
    tile_step_cycles,
)
from convtune.schedules.tile_loops import (
    OutputLoops,
    place_accumulators,
    place_pad,
    place_store,
    split_channels,
    tiled_sums,
)
from convtune.schedules.tiling import (
    LINE_BYTES,
    WAY_BYTES,
    Tile,
    ceil_div,
    column_tile,
    even_blocks,
    round_up,
    spaced,
    suits_registers,
    width_blocks,
)

from convtune.expression import Arguments, Geometry, cube, epilogue, padded_input
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Phases:
    """One dimension's phases: output u * stride + a reads the taps k with k * dilation = a + before (mod stride).

    With g = gcd(stride, dilation) these are k = first + j * step, step = stride / g, where g divides a + before, and
    none elsewhere. Tap j meets the input at u + shift(a) - j * dilation / g.
    """

    stride: int
    dilation: int
    before: int
    kernel: int

    @property
    def gcd(self) -> int:
        return math.gcd(self.stride, self.dilation)

    @property
    def step(self) -> int:
        return self.stride // self.gcd

    @property
    def taps(self) -> int:
        """Most taps of a phase."""
        return ceil_div(self.kernel, self.step)

    def first(self, a: Any) -> Any:
        """The first tap of a phase, if it has any."""
        inverse = pow(self.dilation // self.gcd, -1, self.step) if self.step > 1 else 0
        return (a + self.before) // self.gcd * inverse % self.step

    def shift(self, a: Any) -> Any:
        return (a + self.before - self.first(a) * self.dilation) // self.stride

    def conditions(self, a: Any, j: Any) -> list[Any]:
        """What must hold for phase a to have a tap j; only what can fail."""
        divides = [(a + self.before) % self.gcd == 0] if self.gcd > 1 else []
        return divides + ([self.first(a) + j * self.step < self.kernel] if self.kernel % self.step else [])


def phases_of(spec: ConvSpec) -> tuple[Phases, ...]:
    """The phases of the three dimensions."""
    dims = zip(spec.stride, spec.dilation, spec.padding, spec.kernel)
    return cube([Phases(s, d, before, k) for s, d, (before, _), k in dims], Phases(1, 1, 0, 1))


def phase_geometry(spec: ConvSpec, columns: int = 1) -> Geometry:
    """A phase as a dense convolution; its outputs are those of the largest phase, in whole tiles of columns."""
    phases = phases_of(spec)
    out = [ceil_div(size, phase.stride) for size, phase in zip(cube(spec.out_size), phases)]
    out[2] = round_up(out[2], columns)
    shifts = [[phase.shift(a) for a in range(phase.stride)] for phase in phases]
    reach = [(phase.taps - 1) * (phase.dilation // phase.gcd) for phase in phases]
    before = tuple(max(0, r - min(shift)) for shift, r in zip(shifts, reach))
    return Geometry(
        out=tuple(out),
        kernel=tuple(phase.taps for phase in phases),
        stride=(1, 1, 1),
        dilation=tuple(phase.dilation // phase.gcd for phase in phases),
        before=before,
        padded=tuple(b + size + max(shift) for b, size, shift in zip(before, out, shifts)),
    )


def far_rows(spec: ConvSpec, target: CpuTarget, columns: int) -> float:
    """How much slower a reduction is for reading so many columns, whose channels lie a power of two or about it apart.

    A line of a column serves several channels, if it stays in the first cache. Measured with 12 ways: 1.5 to 1.7 where
    8 lines or more fall into a set, next to nothing with 7.
    """
    sets = [(LINE_BYTES // 2 + column * spec.in_channels * 4) % WAY_BYTES // LINE_BYTES for column in range(columns)]
    ways = target.l1d_bytes // WAY_BYTES
    return 1.5 if max(sets.count(of) for of in set(sets)) > 0.6 * ways else 1.0


class TransposedPhases(Estimating[CpuTarget]):
    name = "transposed_phases"
    summary = "one register-tiled dense convolution per residue of the stride, stored with the stride"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return isinstance(target, CpuTarget) and spec.variant == "transposed"

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        geometry = phase_geometry(spec)
        out, run = geometry.out, spec.out_channels // spec.groups
        columns = even_blocks(out[2], target.vector_registers - 2)
        return {
            "ow_tile": columns,  # outputs of one phase
            "oc_vectors": tuple(range(1, min(4, ceil_div(run, target.lanes)) + 1)),
            "oh_block": spaced(even_blocks(out[1], 32), 5),
            "ow_block": width_blocks(spec, out[2], columns),
            "oc_order": ("parallel", "outer"),
            "pad_at": ("none", "root", "task") if geometry.inside(spec) else ("root", "task"),
        }

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        columns, vectors, pad_at = int(knobs["ow_tile"]), int(knobs["oc_vectors"]), knobs["pad_at"]
        geometry = phase_geometry(spec)
        if not suits_registers(target, columns, vectors, geometry.out[2]):
            return False
        if geometry.inside(spec) and (pad_at == "none") != phase_geometry(spec, columns).inside(spec):
            return False
        return not (knobs["oc_order"] == "parallel" and pad_at == "task")

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        """Cycles of one call, coarsely."""
        tile, phases, geometry = self._tile(spec, target, knobs), phases_of(spec), phase_geometry(spec)
        out, order, pad_at = geometry.out, knobs["oc_order"], knobs["pad_at"]
        oh_block, tiles_wide = int(knobs["oh_block"]), ceil_div(out[2], tile.columns)
        ow_block = min(int(knobs["ow_block"]), tiles_wide)
        strides = count([phase.stride for phase in phases])
        depth = spec.in_channels // spec.groups * count(spec.kernel) / strides  # of a phase, on average
        block_bytes = depth * tile.block * 4
        compute = depth * tile_step_cycles(target, tile.columns, tile.vectors)
        compute *= far_rows(spec, target, tile.columns)
        stored = 1 if spec.channels_last and tile.run % tile.lanes == 0 else tile.lanes
        compute += (1 + stored) * tile.columns * tile.vectors + TILE_CYCLES
        compute += burst_cycles(target, tile.columns * tile.vectors, 4 * count(spec.out_shape))
        per_tile = overlapped(compute, stream_cycles(target, block_bytes, block_bytes))
        task_bytes = block_bytes * strides * (1 if order == "parallel" else tile.groups * tile.blocks)
        first_tile = overlapped(compute, stream_cycles(target, block_bytes, task_bytes))
        rows = (oh_block + geometry.padded[1] - out[1]) * (1 + geometry.padded[0] - out[0])
        rows_bytes = rows * (ow_block * tile.columns + geometry.padded[2] - out[2]) * spec.in_channels * 4
        blocks = tile.groups * tile.blocks
        shared = order == "parallel"
        passes = strides * (1 if shared else blocks)
        per_pass = first_tile + (oh_block * ow_block - 1) * per_tile + stream_cycles(target, rows_bytes, rows_bytes) / 2
        cycles = passes * per_pass
        if pad_at == "task":
            cycles += 2 * rows_bytes / L2_BYTES_PER_CYCLE
        tasks = spec.batch * out[0] * ceil_div(out[1], oh_block) * ceil_div(tiles_wide, ow_block)
        total = Tasks(tasks * (blocks if shared else 1), cycles).on(target)
        if pad_at == "root":
            total += padding_cycles(spec, target)
        return total

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """(ic, oc in a group, taps) to (group, block, first taps, j, ic, oc in block), zeros for taps there are not."""
        tile, phases, rank = self._tile(spec, target, knobs), phases_of(spec)[3 - spec.rank :], spec.rank
        depth, full = spec.in_channels // spec.groups, tile.blocks * tile.block
        missing = [[0, phase.taps * phase.step - phase.kernel] for phase in phases]
        taps = [size for phase in phases for size in (phase.taps, phase.step)]
        j, first = [4 + 2 * axis for axis in range(rank)], [5 + 2 * axis for axis in range(rank)]
        return (
            (
                {"op": "reshape", "shape": [tile.groups, depth, tile.run, *spec.kernel]},
                {"op": "pad", "widths": [[0, 0], [0, 0], [0, full - tile.run], *missing]},
                {"op": "reshape", "shape": [tile.groups, depth, tile.blocks, tile.block, *taps]},
                {"op": "transpose", "axes": [0, 2, *first, *j, 1, 3]},
                {"op": "reshape", "shape": list(self._packed(spec, tile))},
            ),
        )

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        from tvm.s_tir import Schedule

        tile = self._tile(spec, target, knobs)
        sch = Schedule(self._expression(spec, tile, knobs["pad_at"]))
        loops = _split(sch, spec, tile, int(knobs["oh_block"]), int(knobs["ow_block"]))
        task, at = loops.in_tasks(sch, knobs["oc_order"])
        place_store(sch, spec, tile, at, loops.store)
        place_accumulators(sch, at, reductions=4, order=(0, 1, 2, 3), unrolled=0)
        if knobs["pad_at"] != "none":
            place_pad(sch, spec, target, task if knobs["pad_at"] == "task" else None)
        _merge(sch, spec, tile)
        return _completed(sch, spec)

    def _tile(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Tile:
        return column_tile(spec, target, int(knobs["ow_tile"]), int(knobs["oc_vectors"]))

    def _packed(self, spec: ConvSpec, tile: Tile) -> Dims:
        phases = phases_of(spec)
        steps, taps = [phase.step for phase in phases], [phase.taps for phase in phases]
        return (tile.groups, tile.blocks, *steps, *taps, spec.in_channels // spec.groups, tile.block)

    def _expression(self, spec: ConvSpec, tile: Tile, pad_at: KnobValue) -> Any:
        from tvm import te

        geometry, phases = phase_geometry(spec, tile.columns), phases_of(spec)
        depth = spec.in_channels // spec.groups
        arguments = Arguments(spec, [self._packed(spec, tile)])
        read = arguments.read_x
        if pad_at != "none":
            pad = padded_input(arguments, geometry)
            read = lambda n, ic, position: pad(n, *position, ic)  # noqa: E731
        kernel = [te.reduce_axis((0, extent), name) for name, extent in zip(("jd", "jh", "jw"), geometry.kernel)]
        ic = te.reduce_axis((0, depth), "ic")

        def summand(n: Any, *index: Any) -> Any:
            (ud, uh, uw_tile), a, (g, co, _row, column, cv, lane) = index[:3], index[3:6], index[6:]
            u = (ud, uh, uw_tile * tile.columns + column)
            position = [
                where + phase.shift(of) - j * distance + before
                for where, phase, of, j, distance, before in zip(
                    u, phases, a, kernel, geometry.dilation, geometry.before
                )
            ]
            first = [phase.first(of) for phase, of in zip(phases, a)]
            weight = arguments.weights[0](g, co, *first, *kernel, ic, cv * tile.lanes + lane)
            return te.sum(read(n, g * depth + ic, position) * weight, axis=[*kernel, ic])

        strides = [phase.stride for phase in phases]
        outer = (spec.batch, *geometry.out[:2], geometry.out[2] // tile.columns, *strides)
        return arguments.primfunc(_output(arguments, tile, tiled_sums(spec, tile, outer, summand)))


def _output(arguments: Arguments, tile: Tile, sums: Any) -> Any:
    """The stage `y`, each spatial dimension cut into (u, phase), and channels as `expression.output` has them."""
    from tvm import te

    spec, geometry = arguments.spec, phase_geometry(arguments.spec)
    phases, missing = phases_of(spec), 3 - spec.rank
    channels = (tile.run,) if tile.groups == 1 else (tile.groups, tile.run)
    sizes = [size for u, phase in zip(geometry.out[missing:], phases[missing:]) for size in (u, phase.stride)]
    shape = (*sizes, *channels) if spec.channels_last else (*channels, *sizes)

    def at(n: Any, *index: Any) -> Any:
        cut = len(sizes) if spec.channels_last else len(channels)
        channel, place = (index[cut:], index[:cut]) if spec.channels_last else (index[:cut], index[cut:])
        group, within = cube(channel, 0)[1:]
        (ud, uh, uw), a = cube(place[::2], 0), cube(place[1::2], 0)
        block, vector, lane = tile.locate(within)
        value = sums(n, ud, uh, uw // tile.columns, *a, group, block, 0, uw % tile.columns, vector, lane)
        position = [u * s + r for u, r, s in zip(place[::2], place[1::2], spec.stride)]
        return epilogue(arguments, value, n, group * tile.run + within, position)

    return te.compute((spec.batch, *shape), at, name="y")


def _split(sch: Any, spec: ConvSpec, tile: Tile, oh_block: int, ow_block: int) -> OutputLoops:
    """Splits `y` into tasks, channel blocks, what a task does for a block (phases, then tiles), and a tile's store."""
    n, *rest = sch.get_loops(sch.get_sblock("y"))
    cut = 2 * spec.rank
    spatial, channels = (rest[:cut], rest[cut:]) if spec.channels_last else (rest[-cut:], rest[:-cut])
    block, vector, lane = split_channels(sch, channels, tile)
    *outer_u, last_u = spatial[::2]
    w_tiles, column = sch.split(last_u, [None, tile.columns])
    outer, tiles = [n], []
    for loop, part in zip((*outer_u, w_tiles), (1, oh_block, ow_block)[3 - spec.rank :]):
        task, inner = sch.split(loop, [None, min(part, int(sch.get(loop).extent))])
        outer.append(task)
        tiles.append(inner)
    return OutputLoops(outer, block, [*spatial[1::2], *tiles], [column, vector, lane])


def _merge(sch: Any, spec: ConvSpec, tile: Tile) -> None:
    """Gives `y` one dimension for each pair of its stage, once nothing needs to see two of them any more."""

    def merged(n: Any, *index: Any) -> list[Any]:
        cut = 2 * spec.rank
        place, channel = (index[:cut], index[cut:]) if spec.channels_last else (index[-cut:], index[:-cut])
        position = [u * s + a for u, a, s in zip(place[::2], place[1::2], spec.stride)]
        oc = channel[0] if len(channel) == 1 else channel[0] * tile.run + channel[1]
        return [n, *position, oc] if spec.channels_last else [n, oc, *position]

    sch.transform_layout("y", ("write", 0), merged)


def _completed(sch: Any, spec: ConvSpec) -> Any:
    """The schedule's module with what no primitive of TVM 0.27 does: a loop with a condition, an output cut to size."""
    from tvm.ir import IRModule

    main = sch.mod["main"]
    if conditions := _tap_conditions(sch, spec):
        main = _guarded(main, sch.get(_reduction(sch)[-1]).loop_var, conditions)
    if tuple(map(int, main.params[-1].shape)) != spec.out_shape:
        main = _cropped(main, spec)
    return IRModule({"main": main})


def _reduction(sch: Any) -> list[Any]:
    """The loops jd, jh, jw, ic, outside the four of the tile."""
    return list(sch.get_loops(sch.get_sblock("acc_update"))[-8:-4])


def _tap_conditions(sch: Any, spec: ConvSpec) -> list[Any]:
    """What must hold in the loop over ic for the phase to have the tap, and for its row not to be zeros."""
    taps = [sch.get(loop).loop_var for loop in _reduction(sch)[:3]]
    body = sch.get(sch.get_loops(sch.get_sblock("acc_update"))[-1]).body
    rows, phases = body.iter_values[1:3], body.iter_values[4:7]  # of n, ud, uh, the tile of uw, and phases
    found = [c for phase, a, j in zip(phases_of(spec), phases, taps) for c in phase.conditions(a, j)]
    geometry = phase_geometry(spec)
    dims = zip(phases_of(spec), rows, phases, taps, geometry.before, geometry.padded, cube(spec.in_size))
    for phase, u, a, j, before, padded, size in dims:
        position = u + phase.shift(a) - j * (phase.dilation // phase.gcd)
        found += [position >= 0] if before else []
        found += [position < size] if padded - before > size else []
    return found


def _guarded(main: Any, over: Any, conditions: list[Any]) -> Any:
    """The function with the loop of this variable under the conditions: a phase skips the taps that it lacks."""
    from tvm import tirx
    from tvm_ffi import structural_map

    def guard(loop: Any) -> Any:
        return tirx.IfThenElse(tirx.all(*conditions), loop, None) if loop.loop_var.same_as(over) else loop

    return main.with_body(structural_map(main.body, (tirx.For, guard)))


def _cropped(main: Any, spec: ConvSpec) -> Any:
    """The function with an output of the spec's shape, not of whole strides, and stores only inside of it."""
    from tvm import ir, s_tir, tirx
    from tvm_ffi import structural_map

    whole = main.params[-1]
    exact = tirx.decl_buffer(spec.out_shape, spec.dtype, name="y")
    first = 1 if spec.channels_last else -2 * spec.rank  # of the block's indices, the first u

    def crop(realize: Any) -> Any:
        if realize.block.name_hint != "y":
            return realize
        place = list(realize.iter_values)[first:][: 2 * spec.rank]
        sizes = zip(place[::2], place[1::2], spec.stride, spec.out_size)
        inside = [u * s + a < size for u, a, s, size in sizes if size % s]
        return s_tir.SBlockRealize(realize.iter_values, tirx.all(realize.predicate, *inside), realize.block)

    cropped = structural_map(main, (s_tir.SBlockRealize, crop))
    return structural_map(cropped, (ir.Var, lambda var: exact if var.same_as(whole) else var))


transposed_phases = TransposedPhases()
