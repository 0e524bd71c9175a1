"""What the device worker finds of kernels that it emulates: right ones, wrong ones, and right results by luck."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from convtune import accuracy, space, targets
from convtune.cuda.emulation import emulator
from convtune.cuda.program import Program, lower
from convtune.measure.builder import Pack, scheduled
from convtune.measure.cuda_builder import PROGRAM_NAME
from convtune.measure.device import Measurement, Prepare
from convtune.measure.emulated import Emulate, EmulatedDevice
from convtune.space import Candidate, all_knobs
from convtune.spec import ConvSpec
from convtune.targets import GpuTarget

SPEC = ConvSpec.parse("conv,ic=32,oc=24,in=7x9,k=3,p=1,layout=NHWC,bias,act=relu")
BARRIER = "__syncthreads();"


def gpu() -> GpuTarget:
    target = targets.resolve("sm_80")
    assert isinstance(target, GpuTarget)
    return target


def program(launches: int) -> tuple[Program, Pack]:
    """A tiled kernel; with two launches its reduction is split, and the second adds the parts."""
    owner = space.get("gpu_tiles")
    knobs = next(k for k in all_knobs(owner, SPEC, gpu()) if (k["slices"] == 1) == (launches == 1))
    module, pack = scheduled(SPEC, gpu(), Candidate("gpu_tiles", knobs))
    made = lower(module, gpu()).program
    assert len(made.launches) == launches
    return made, pack


LIMIT = accuracy.limit(SPEC, "standard")


def run(made: Program, pack: Pack, directory: Path, whole: bool, limit: float = LIMIT) -> Measurement:
    (directory / PROGRAM_NAME).write_text(made.to_json())
    library = emulator.build(made, directory, checked=False)
    device = EmulatedDevice(directory, threads=2, seed=0)
    assert device(Prepare(SPEC)) is None
    found = device(Emulate(SPEC, library, pack, limit, whole))
    assert found is not None
    return found


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("launches", [1, 2])
def test_a_right_kernel_is_ok(launches: int, whole: bool, tmp_path: Path) -> None:
    found = run(*program(launches), tmp_path, whole)
    assert (found.status, found.message, found.times_us) == ("ok", "", ())
    assert found.error is not None
    assert found.error < 1e-6


@pytest.mark.parametrize("launches", [1, 2])
def test_a_missing_barrier_is_wrong_whatever_the_result(launches: int, tmp_path: Path) -> None:
    made, pack = program(launches)
    assert BARRIER in made.source
    found = run(replace(made, source=made.source.replace(BARRIER, "", 1)), pack, tmp_path, whole=True)
    assert found.status == "wrong"
    assert found.message


@pytest.mark.parametrize("whole", [False, True])
def test_an_error_above_the_limit_is_told(whole: bool, tmp_path: Path) -> None:
    found = run(*program(1), tmp_path, whole, limit=1e-12)
    assert found.status == "wrong"
    assert found.message.startswith("wrong result: error ")
    assert "allowed 1e-12" in found.message
