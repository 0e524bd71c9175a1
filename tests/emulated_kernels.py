"""What the tests of one GPU space share: a candidate built for the CPU, each access checked, beside the reference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tolerance import allowed_error

from convtune import targets
from convtune.cuda.emulation import emulator
from convtune.cuda.program import Program, lower
from convtune.reference import random_operands
from convtune.runtime import packing
from convtune.space import Knobs, Space, contains
from convtune.spec import ConvSpec
from convtune.targets import GpuTarget


def gpu(arch: str) -> GpuTarget:
    """The GPU of that arch."""
    named = targets.resolve(arch)
    assert isinstance(named, GpuTarget)
    return named


def program_of(owner: Space[Any], spec: ConvSpec, target: GpuTarget, knobs: Knobs) -> Program:
    """The candidate's CUDA C; the knobs must be in the domain."""
    assert contains(owner, spec, target, knobs), f"{dict(knobs)} is outside the domain"
    return lower(owner.schedule(spec, target, knobs), target).program


@dataclass(frozen=True)
class Emulated:
    """A run: its error, what rounding allows, what the emulator found, and what it counted by kernel, per block."""

    error: float
    allowed: float
    problem: str
    counts: Mapping[str, emulator.Counts]


def emulated(
    owner: Space[Any], spec: ConvSpec, target: GpuTarget, knobs: Knobs, directory: Path, order: str = "shuffled"
) -> Emulated:
    """Runs the candidate on random operands, in an order of emulator.ORDERS."""
    program = program_of(owner, spec, target, knobs)
    operands = random_operands(spec, seed=1)
    weights = [packing.apply(s, w) for s, w in zip(owner.pack(spec, target, knobs), operands.weights)]
    inputs = [operands.x, *weights, *operands.biases, *operands.inputs.values()]
    y, expected = np.full(spec.out_shape, np.nan, np.float32), operands.reference(spec)
    arrays = [*inputs, *([] if operands.residual is None else [operands.residual]), y]
    report = emulator.Emulation(emulator.build(program, directory, checked=True), program).run(arrays, order)
    error = float(np.abs(y - expected).max() / np.abs(expected).max())
    return Emulated(error, allowed_error(spec, operands), report.problem, report.counts)
