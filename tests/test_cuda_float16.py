"""Kernels of float16 for GPUs: emulated, each access checked, and compared with the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conformance_cases import corners
from tolerance import allowed_error

from convtune import space, targets
from convtune.cuda import toolkit
from convtune.cuda.emulation import emulator
from convtune.cuda.program import Program, lower
from convtune.errors import TargetError
from convtune.measure.builder import scheduled
from convtune.measure.device import Cases
from convtune.measure.verify import verify
from convtune.reference import random_operands
from convtune.runtime.kernel import ALIGNMENT
from convtune.space import Candidate, Knobs
from convtune.spec import ConvSpec
from convtune.targets import GpuTarget


def target(arch: str) -> GpuTarget:
    named = targets.resolve(arch)
    assert isinstance(named, GpuTarget)
    return named


def candidates(name: str, spec: ConvSpec, gpu: GpuTarget, count: int) -> list[Knobs]:
    """The default and corners of the domain."""
    owner = space.get(name)
    return [dict(owner.default(spec, gpu)), *corners(owner, spec, gpu, seed=1)][:count]


def check(spec: ConvSpec, gpu: GpuTarget, candidate: Candidate, directory: Path) -> Program:
    """The kernel gives the same bits in every order of its threads, within what rounding explains."""
    module, pack = scheduled(spec, gpu, candidate)
    program = lower(module, gpu).program
    emulation = emulator.Emulation(emulator.build(program, directory, checked=True), program)
    case = Cases(directory, seed=1).of(spec)
    limit = allowed_error(spec, random_operands(spec, seed=1))
    verdict = verify(emulation, case.inputs(pack), case.reference, limit, ALIGNMENT)
    assert verdict.problem == "", f"{candidate}: {verdict.problem}"
    return program


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("gpu_threads", "conv,ic=3,oc=5,in=7x11,k=3x3,p=1,n=2,bias,act=gelu"),
        ("gpu_threads", "depthwise_separable,ic=6,oc=5,in=7x5,k=3x3,m=2,layout=NHWC,sbias=1,sact=relu,residual"),
        ("gpu_threads", "flattened,ic=3,oc=4,in=5x6x7,k=3,act=tanh"),
        ("gpu_tiles", "conv,ic=20,oc=18,in=9x7,k=3x3,p=1,n=2,bias,act=relu"),
        ("gpu_tiles", "grouped,ic=48,oc=24,in=9x7,k=3x3,s=2,p=1,g=4,residual,layout=NHWC"),
        ("gpu_depthwise", "depthwise,ic=12,oc=12,in=19x7,k=3x3,p=1,bias,act=relu6"),
        ("gpu_depthwise", "depthwise,ic=24,oc=24,in=9x7,k=3x3,p=1,layout=NHWC,residual"),
        ("gpu_phases", "transposed,ic=12,oc=10,in=5x4,k=4x4,s=2,p=1,bias,act=relu"),
        ("gpu_phases", "transposed,ic=16,oc=8,in=9,k=3,s=2,layout=NWC,residual"),
        ("gpu_deformable", "deformable,ic=12,oc=10,in=9x7,k=3x3,p=1,modulated,bias"),
        ("gpu_deformable", "deformable,ic=16,oc=10,in=7x9,k=3x3,p=1,og=2,n=2,layout=NHWC,residual,act=silu"),
    ],
)
def test_sums_are_float32(name: str, text: str, tmp_path: Path) -> None:
    spec, gpu = ConvSpec.parse(text).replace(dtype="float16"), target("sm_80")
    for knobs in candidates(name, spec, gpu, count=2):
        check(spec, gpu, Candidate(name, knobs), tmp_path)


@pytest.mark.parametrize("text", ["conv,ic=16,oc=18,in=9x7,k=3x3,layout=NHWC", "depthwise,ic=12,oc=12,in=9x7,k=3x3"])
def test_nvcc_compiles_it(text: str, tmp_path: Path) -> None:
    try:
        nvcc = toolkit.find()
    except TargetError as error:
        pytest.skip(str(error))
    spec = ConvSpec.parse(text).replace(dtype="float16")
    for arch in ("sm_75", "sm_90"):
        gpu = target(arch)
        module, _ = scheduled(spec, gpu, space.default_candidate(spec, gpu))
        program: Any = lower(module, gpu).program
        for resources in nvcc.compile(program.source, arch, tmp_path).resources.values():
            assert resources.spill_stores_bytes == 0
