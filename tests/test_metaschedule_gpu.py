"""MetaSchedule's space for GPUs: its kernels fit the GPU, and are right where they are emulated."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from convtune import accuracy, targets
from convtune.cuda.emulation import emulator
from convtune.cuda.program import lower
from convtune.measure.builder import scheduled
from convtune.measure.device import Cases
from convtune.measure.verify import largest_error
from convtune.record import traced
from convtune.search.metaschedule_worker import Propose, Proposer
from convtune.spec import ConvSpec
from convtune.targets import GpuTarget

SPECS = [
    "conv,ic=5,oc=7,in=11x6,k=3x2,s=2x1,p=1:2x0:1,n=2,layout=NHWC,act=silu,bias,residual",
    "depthwise,ic=4,oc=8,in=5x6x7,k=3x3x3,g=4,p=1,layout=NDHWC",
    "transposed,ic=6,oc=9,in=7,k=4,s=2,p=1",
    "grouped,ic=6,oc=9,in=13,k=3,p=2:-1,g=3",
]


@functools.cache
def gpu(arch: str) -> GpuTarget:
    target = targets.resolve(arch)
    assert isinstance(target, GpuTarget)
    return target


@pytest.mark.slow
@pytest.mark.parametrize(("text", "arch"), list(zip(SPECS, ("sm_75", "sm_80") * 2)))
def test_what_it_proposes_for_a_gpu_is_right(text: str, arch: str, tmp_path: Path) -> None:
    spec, target = ConvSpec.parse(text), gpu(arch)
    found = Proposer(target)(Propose(spec, (), (), 2, seed=3))
    assert found, "many of its samples do not fit a GPU, but not all"
    for data in found:
        module, pack = scheduled(spec, target, traced(data))
        program = lower(module, target).program
        emulation = emulator.Emulation(emulator.build(program, tmp_path, checked=True), program)
        case = Cases(tmp_path, seed=0).of(spec)
        y = np.full(spec.out_shape, np.nan, np.float32)
        assert emulation.run([*case.inputs(pack).values(), y]).problem == ""
        assert largest_error(y, case.reference) <= accuracy.limit(spec, "standard")
