"""Packs weights for Strassen's algorithm: the sums of their blocks that each product takes, in one level or in two."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np
from convtune.schedules.strassen_plan import W_SUMS

if TYPE_CHECKING:
    from convtune.schedules.strassen_plan import Plan

    from convtune.space import PackStep


def packed_sums(plan: Plan, cuts: int = 1) -> list[PackStep]:
    """(oc, ic, taps) to (part of the taps and block, step, tap and ic of a half, channel of the block), taps in `cuts`
    parts of `plan.taps`."""
    padded, levels = plan.blocks * plan.block - plan.channels, plan.levels
    halves = [2 for _ in range(levels)]
    # of each level the half of the input channels, and that of the output channels
    blocks = [axis for level in range(levels) for axis in (levels + 2 + level, level)]
    lacking = plan.split * plan.half - plan.depth
    return [
        {"op": "reshape", "shape": [plan.out_channels, plan.depth, cuts, plan.taps]},
        {"op": "pad", "widths": [[0, plan.missing], [0, lacking], [0, 0], [0, 0]]},
        {"op": "reshape", "shape": [plan.split, plan.channels, plan.split, plan.half, cuts, plan.taps]},
        {"op": "pad", "widths": [[0, 0], [0, padded], *([0, 0] for _ in range(4))]},
        {"op": "reshape", "shape": [*halves, plan.blocks, plan.block, *halves, plan.half, cuts, plan.taps]},
        {"op": "transpose", "axes": [2 * levels + 3, levels, *blocks, 2 * levels + 4, 2 * levels + 2, levels + 1]},
        {"op": "reshape", "shape": [cuts * plan.blocks, 4**levels, plan.steps, plan.block]},
        {"op": "matmul", "axis": 1, "matrix": reduce(np.kron, [np.array(W_SUMS, float)] * levels).tolist()},
    ]
