"""Transposed convolution with few channels by minimal filtering: the phases are output channels of a dense convolution.

    sums = minimal_filtering of the dense convolution           channel = (phase of d, of h, of w, oc)
    parallel task = (n, od, oh):                                only where sums do not lie in y as y has them
        for uw: y[n, od, oh, uw * stride + phase - cut, oc] = activation(sums[n, ud, uh, uw, channel] + bias + residual)

Counted from the first output without padding, output u * stride + a reads input u - j by tap a + j * stride: a dense
convolution of ceil(kernel / stride) taps with stride * oc channels, whose filters are turned around. In y the phases of
a row lie side by side, channels last: where only rows have a stride, and no output is taken away, y is what the dense
convolution stores. Else its sums go to y in a parallel region of their own, by runs of the phases of a row.

`minimal_filtering` makes vectors of the channels of a phase: this is for few of these, which leave most lanes idle.
Taps that a phase lacks are zeros here.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from convtune.schedules.estimate import BARRIER_CYCLES
from convtune.schedules.filtering_plan import Plan, plan_of
from convtune.schedules.filtering_tensors import Tensors
from convtune.schedules.filtering_weights import packed
from convtune.schedules.minimal_filtering import filtered, minimal_filtering
from convtune.schedules.ranges import part, ranged
from convtune.schedules.statements import Expr, Stmt, allocated, loop, sequence, unflat, when
from convtune.schedules.tiling import FEWEST_TASKS, ceil_div
from convtune.schedules.written import Buffers, Held, viewed, written

from convtune.expression import cube, epilogue
from convtune.space import Estimating, Knobs, KnobValue, PackStep
from convtune.spec import ConvSpec, count
from convtune.targets import CpuTarget

if TYPE_CHECKING:
    from convtune.targets import Target

RUN_CYCLES = 3.0  # of a vector of a run: loaded, stored across two lines, and its sums are another thread's at times


class FoldedFiltering(Estimating[CpuTarget]):
    name = "folded_filtering"
    summary = "minimal filtering with the phases of a transposed convolution as channels, where it has few of its own"

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        if not isinstance(target, CpuTarget) or spec.variant != "transposed" or not spec.channels_last:
            return False
        if spec.groups > 1 or any(d > 1 for d in spec.dilation) or spec.out_channels % target.lanes == 0:
            return False
        return all(first >= 0 for first in _before(spec)) and minimal_filtering.accepts(dense_spec(spec), target)

    def knobs(self, spec: ConvSpec, target: CpuTarget) -> Mapping[str, tuple[KnobValue, ...]]:
        return minimal_filtering.knobs(dense_spec(spec), target)

    def allows(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> bool:
        return minimal_filtering.allows(dense_spec(spec), target, knobs)

    def default(self, spec: ConvSpec, target: CpuTarget) -> Knobs:
        return minimal_filtering.default(dense_spec(spec), target)

    def default_within(self, spec: ConvSpec, target: CpuTarget, max_error: float) -> Knobs | None:
        return minimal_filtering.default_within(dense_spec(spec), target, max_error)

    def expected_error(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        return minimal_filtering.expected_error(dense_spec(spec), target, knobs)

    def estimate(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> float:
        cycles = minimal_filtering.estimate(dense_spec(spec), target, knobs)
        if _is_row(spec):
            return cycles
        runs = count(spec.out_shape) / _run(spec) * ceil_div(_run(spec), target.lanes)
        return cycles + runs * RUN_CYCLES / target.threads + BARRIER_CYCLES

    def pack(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        dense = dense_spec(spec)
        return ((*_folded(spec, dense), *packed(dense, plan_of(dense, target, knobs))),)

    def schedule(self, spec: ConvSpec, target: CpuTarget, knobs: Knobs) -> Any:
        dense = dense_spec(spec)
        plan = plan_of(dense, target, knobs)
        return written(spec, plan.u_shape, functools.partial(_statement, spec, dense, plan))


@functools.lru_cache(maxsize=1 << 10)
def dense_spec(spec: ConvSpec) -> ConvSpec:
    """The convolution of all phases, whose outputs are whole strides of the transposed one's."""
    taps = [ceil_div(k, s) for k, s in zip(spec.kernel, spec.stride)]
    cuts, before = _cuts(spec), _before(spec)
    units = [ceil_div(out + cut, s) for out, cut, s in zip(spec.out_size, cuts, spec.stride)]
    after = [u + t - 1 - size - first for u, t, size, first in zip(units, taps, spec.in_size, before)]
    return ConvSpec(
        "conv",
        in_channels=spec.in_channels,
        out_channels=spec.out_channels * count(spec.stride),
        in_size=spec.in_size,
        kernel=tuple(taps),
        batch=spec.batch,
        padding=tuple(zip(before, after)),
        layout=spec.layout,
        dtype=spec.dtype,
        activation=spec.activation if _is_row(spec) else None,
        residual=spec.residual and _is_row(spec),
    )


def _before(spec: ConvSpec) -> list[int]:
    """Zeros before the first input that the first output reads; negative where padding takes away so many."""
    return [ceil_div(k, s) - 1 - first // s for k, s, (first, _) in zip(spec.kernel, spec.stride, spec.padding)]


def _cuts(spec: ConvSpec) -> list[int]:
    """Outputs of the first stride that the padding takes away."""
    return [first % s for s, (first, _) in zip(spec.stride, spec.padding)]


def _run(spec: ConvSpec) -> int:
    """Elements side by side of a stride: the phases of a row and their channels."""
    return spec.stride[-1] * spec.out_channels


def _row_shape(spec: ConvSpec) -> tuple[int, ...]:
    """y with its rows' channels side by side, as (n, d, h, element)."""
    depth, height, width = cube(spec.out_size)
    return (spec.batch, depth, height, width * spec.out_channels)


def _is_row(spec: ConvSpec) -> bool:
    """Whether y is, as it lies in memory, the output of the dense convolution."""
    whole = not any(_cuts(spec)) and spec.out_size[-1] % spec.stride[-1] == 0
    return whole and count(spec.stride) == spec.stride[-1]


def _folded(spec: ConvSpec, dense: ConvSpec) -> list[PackStep]:
    """PyTorch's (ic, oc, taps) to the dense convolution's (phase and oc, ic, taps), the last tap first."""
    rank, taps = spec.rank, dense.kernel
    sizes = [size for pair in zip(taps, spec.stride) for size in pair]
    of_taps, of_phases = [2 + 2 * axis for axis in range(rank)], [3 + 2 * axis for axis in range(rank)]
    turned = [
        {"op": "matmul", "axis": 2 + axis, "matrix": [[int(j + k == t - 1) for k in range(t)] for j in range(t)]}
        for axis, t in enumerate(taps)
        if t > 1
    ]
    missing = [[0, t * s - k] for t, s, k in zip(taps, spec.stride, spec.kernel)]
    return [
        {"op": "pad", "widths": [[0, 0], [0, 0], *missing]},
        {"op": "reshape", "shape": [spec.in_channels, spec.out_channels, *sizes]},
        {"op": "transpose", "axes": [*of_phases, 1, 0, *of_taps]},
        {"op": "reshape", "shape": [dense.out_channels, spec.in_channels, *taps]},
        *turned,
    ]


def _statement(spec: ConvSpec, dense: ConvSpec, plan: Plan, buffers: Buffers, y: Any) -> Stmt:
    x, weight, bias, residual = buffers
    if _is_row(spec):
        views = [y] if residual is None else [y, residual]

        def stored(flat: list[Any]) -> Stmt:
            tensors = Tensors(dense, [x, weight, bias, *(flat[1:] or [None])], flat[0])
            if tensors.bias is not None:
                per_phase = tensors.bias
                tensors.biases = [lambda channel: per_phase(channel % spec.out_channels)]
            return filtered(dense, plan, tensors)

        return viewed(views, dense.out_shape, stored)

    def summed(sums: Any) -> Stmt:
        tensors = Tensors(dataclasses.replace(dense, dtype="float32"), [x, weight, None, None], sums)
        stored = lambda flat: _Rows(spec, plan.lanes, buffers, sums, *flat).statement()  # noqa: E731
        return sequence(
            [filtered(dense, plan, tensors), viewed([y, y if residual is None else residual], _row_shape(spec), stored)]
        )

    return allocated(dense.out_shape, "sums", "global", summed)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """The store of y's rows from the sums of the dense convolution: (n, d, h) is a row, with `flat` its elements."""

    spec: ConvSpec
    lanes: int
    buffers: Buffers
    sums: Any
    flat: Any  # y
    flat_residual: Any

    def statement(self) -> Stmt:
        """All rows in parallel, and parts of them where there are few."""
        depth, height, _ = cube(self.spec.out_size)
        rows = self.spec.batch * depth * height
        parts = ceil_div(FEWEST_TASKS, rows)

        def task(index: Expr) -> Stmt:
            n, d, h, number = unflat(index, (self.spec.batch, depth, height, parts))
            return self._part((n, d, h), number, parts)

        return loop(rows * parts, task, "PARALLEL", "row")

    def _part(self, row: tuple[Expr, Expr, Expr], number: Expr, parts: int) -> Stmt:
        """Whole strides, and in the first and last part what is left of those at the ends."""
        step, cut, run = self.spec.stride[-1], _cuts(self.spec)[-1], _run(self.spec)
        inside = range(int(cut > 0), (self.spec.out_size[-1] + cut) // step)
        begin, stop = part(max(0, len(inside)), parts, number)
        found = [ranged(begin + inside.start, stop + inside.start, lambda u: self._stride(row, u, 0, run))]
        left = (self.spec.out_size[-1] + cut) % step * self.spec.out_channels
        if cut:
            end = run if inside.stop > 0 else left
            found.append(when([number == 0] * (parts > 1), self._stride(row, 0, cut * self.spec.out_channels, end)))
        if left and (inside.stop > 0 or not cut):
            last = self._stride(row, inside.stop, 0, left)
            found.append(when([number == parts - 1] * (parts > 1), last))
        return sequence(found if len(inside) else found[1:])

    def _stride(self, row: tuple[Expr, Expr, Expr], u: Expr, begin: int, end: int) -> Stmt:
        """The phases of a row of one stride: from `begin` to `end` of its elements, in vectors."""
        whole, rest = divmod(end - begin, self.lanes)

        def vector(first: Expr, width: int) -> Stmt:
            return loop(width, lambda lane: self._element(row, u, first + lane), "VECTORIZED", "lane")

        parts = [loop(whole, lambda i: vector(begin + i * self.lanes, self.lanes))] if whole else []
        return sequence([*parts, *([vector(end - rest, rest)] if rest else [])])

    def _element(self, row: tuple[Expr, Expr, Expr], u: Expr, element: Expr) -> Stmt:
        from tvm import tirx

        spec, (n, *place), run = self.spec, row, _run(self.spec)
        strides, cuts = cube(spec.stride), cube(_cuts(spec), 0)
        first = [p + cut for p, cut in zip(place, cuts)]
        at = [f // s for f, s in zip(first, strides)]
        phase = first[0] % strides[0] * strides[1] + first[1] % strides[1]
        value = tirx.BufferLoad(self.sums, [n, *[*at, u][3 - spec.rank :], phase * run + element])
        flat = [n, *place, u * run - cuts[2] * spec.out_channels + element]
        tensors = Held(spec, self.buffers)
        if spec.residual:
            tensors.residual = lambda *_: tirx.BufferLoad(self.flat_residual, flat)
        return tirx.BufferStore(self.flat, epilogue(tensors, value, n, element % spec.out_channels, []), flat)


folded_filtering = FoldedFiltering()
