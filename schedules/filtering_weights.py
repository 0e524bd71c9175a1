"""How minimal filtering packs weights: U = G w G^T of each part of the taps, in the order that products read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.schedules.filtering_plan import Plan

from convtune.space import PackStep

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


def packed(spec: ConvSpec, plan: Plan) -> tuple[PackStep, ...]:
    """PyTorch's weights to (pass, point, block, part, ic, channel in block), zeros where taps or a run end."""
    axes, rank = plan.axes[3 - spec.rank :], spec.rank
    steps = _phases(spec, plan) if spec.variant == "transposed" else _met(plan, rank)
    ends = [[0, axis.parts * axis.r - axis.taps] for axis in axes]
    polyphase = [axis.m > 1 and axis.stride > 1 for axis in axes]
    sizes = [n for axis, poly in zip(axes, polyphase) for n in ((axis.r, axis.parts) if poly else (axis.parts, axis.r))]
    taps = [2 + 2 * i + (not poly) for i, poly in enumerate(polyphase)]
    parts = [2 + 2 * i + poly for i, poly in enumerate(polyphase)]
    steps += [
        {"op": "pad", "widths": [[0, 0], [0, 0], *ends]},
        {"op": "reshape", "shape": [plan.runs * plan.run, plan.depth, *sizes]},
    ]
    for place, axis in zip(taps, axes):
        if axis.filter:
            matrix = [list(map(float, row)) for row in axis.filter.g]
            steps.append({"op": "matmul", "axis": place, "matrix": matrix})
            sizes[place - 2] = axis.alpha
    full, rest = plan.blocks * plan.width, [[0, 0]] * (1 + 2 * rank)
    after = [2 + place for place in (*taps, *parts)]
    return (
        *steps,
        {"op": "reshape", "shape": [plan.runs, plan.run, plan.depth, *sizes]},
        {"op": "pad", "widths": [[0, 0], [0, full - plan.run], *rest]},
        {"op": "reshape", "shape": [plan.passes, plan.per_pass, plan.width, plan.depth, *sizes]},
        {"op": "transpose", "axes": [0, *after[:rank], 1, *after[rank:], 3, 2]},
        {"op": "reshape", "shape": list(plan.u_shape)},
    )


def _met(plan: Plan, rank: int) -> list[PackStep]:
    """Leaves out the taps by which no output meets an input."""
    steps: list[PackStep] = []
    for i, axis in enumerate(plan.axes[3 - rank :]):
        before, after = axis.unmet
        if before or after:
            rows = [[int(k == before + j) for k in range(before + axis.taps + after)] for j in range(axis.taps)]
            steps.append({"op": "matmul", "axis": 2 + i, "matrix": rows})
    return steps


def _phases(spec: ConvSpec, plan: Plan) -> list[PackStep]:
    """(ic, oc of a group, taps) to (group and phase and oc, ic of a group, taps of a phase, the last one first)."""
    axes, rank = plan.axes[3 - spec.rank :], spec.rank
    missing = [[axis.short, 0] for axis in axes]
    sizes = [n for axis in axes for n in (axis.taps, axis.phases)]
    taps, phases = [3 + 2 * i for i in range(rank)], [4 + 2 * i for i in range(rank)]
    turned = [
        {
            "op": "matmul",
            "axis": 2 + i,
            "matrix": [[int(j + k == axis.taps - 1) for k in range(axis.taps)] for j in range(axis.taps)],
        }
        for i, axis in enumerate(axes)
        if axis.taps > 1
    ]
    ordered = [
        {
            "op": "matmul",
            "axis": 4 + 2 * i,
            "matrix": [[int(axis.tapped(b) == a) for a in range(axis.phases)] for b in range(axis.phases)],
        }
        for i, axis in enumerate(axes)
        if axis.turn
    ]
    return [
        {"op": "pad", "widths": [[0, 0], [0, 0], *missing]},
        {"op": "reshape", "shape": [plan.groups, plan.depth, plan.run, *sizes]},
        *ordered,
        {"op": "transpose", "axes": [0, *phases, 2, 1, *taps]},
        {"op": "reshape", "shape": [plan.runs * plan.run, plan.depth, *(axis.taps for axis in axes)]},
        *turned,
    ]
