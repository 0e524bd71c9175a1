"""Every variant on every space for GPUs: kernels are emulated, each access checked, and compared with the reference."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_cases import cases, corners
from tolerance import allowed_error

from convtune import targets
from convtune.cuda.emulation import emulator
from convtune.cuda.program import lower
from convtune.measure.builder import scheduled
from convtune.measure.device import Cases
from convtune.measure.verify import largest_error
from convtune.reference import random_operands
from convtune.space import Candidate, Knobs, Space
from convtune.spec import ConvSpec
from convtune.targets import GpuTarget

ARCHS = ("sm_80", "sm_75", "sm_90")


@functools.cache
def target(arch: str) -> GpuTarget:
    named = targets.resolve(arch)
    assert isinstance(named, GpuTarget)
    return named


def in_turn(number: int) -> GpuTarget:
    return target(ARCHS[number % len(ARCHS)])


def knobs_of(owner: Space[Any], spec: ConvSpec, gpu: GpuTarget, turn: int) -> Knobs:
    """The default and the corners of the domain, in turn."""
    candidates = [dict(owner.default(spec, gpu)), *corners(owner, spec, gpu, seed=turn)]
    return candidates[turn % len(candidates)]


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "spec", "gpu", "turn"), cases(in_turn))
def test_kernels_are_right_and_touch_nothing_else(
    owner: Space[Any], spec: ConvSpec, gpu: GpuTarget, turn: int, tmp_path: Path
) -> None:
    knobs = knobs_of(owner, spec, gpu, turn)
    module, pack = scheduled(spec, gpu, Candidate(owner.name, knobs))
    program = lower(module, gpu).program
    emulation = emulator.Emulation(emulator.build(program, tmp_path, checked=True), program)
    case = Cases(tmp_path, seed=turn).of(spec)
    y = np.full(spec.out_shape, np.nan, spec.dtype)
    report = emulation.run([*case.inputs(pack).values(), y], order=emulator.ORDERS[turn % 3], seed=turn)
    assert report.problem == "", f"{dict(knobs)}: {report.problem}"
    error, limit = largest_error(y, case.reference), allowed_error(spec, random_operands(spec, seed=turn))
    assert error <= limit, f"{dict(knobs)}: error {error:.3g}, allowed {limit:.3g}"
