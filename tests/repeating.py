"""Whether a kernel gives the same bits each time: tasks write in any order, so none may write what another one does."""

from __future__ import annotations

import numpy as np

import convtune
from convtune.reference import random_operands
from convtune.space import Candidate, Knobs, Space
from convtune.spec import ConvSpec
from convtune.targets import Target

CALLS = 300


def differing_calls(owner: Space, spec: ConvSpec, target: Target, knobs: Knobs) -> int:
    """How many of some calls of a kernel differ from the first one."""
    conv = convtune.compile(spec, target, candidate=Candidate(owner.name, knobs))
    operands = random_operands(spec, seed=0)
    packed = conv.pack(operands.weights[0])
    first = conv.run(operands.x, packed, **operands.inputs).copy()
    return sum(not np.array_equal(first, conv.run(operands.x, packed, **operands.inputs)) for _ in range(CALLS))
