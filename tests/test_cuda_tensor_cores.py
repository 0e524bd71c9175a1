"""Tensor Cores: fragments against NumPy's products, emulated kernels against the reference, what nvcc makes of them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from conformance_cases import corners
from tolerance import allowed_error

from convtune import accuracy, space, targets
from convtune.cuda import tensor_cores, toolkit
from convtune.cuda.emulation import emulator
from convtune.cuda.model import estimate
from convtune.cuda.program import Array, Launch, Lowered, Program, lower
from convtune.errors import TargetError
from convtune.measure.builder import scheduled
from convtune.measure.device import Cases
from convtune.measure.verify import verify
from convtune.reference import random_operands
from convtune.runtime.kernel import ALIGNMENT
from convtune.space import Candidate, Knobs
from convtune.spec import ConvSpec
from convtune.targets import GpuTarget

SPACE = "gpu_tensor_cores"
SMALL = {"positions": 32, "channels": 32, "warp_tile": "32x32", "depth": 16, "pipeline": "none", "slices": 1}


def target(arch: str) -> GpuTarget:
    named = targets.resolve(arch)
    assert isinstance(named, GpuTarget)
    return named


# A thread's words, and the elements of the result that it has, as the figures of the PTX ISA have them for
# mma.m16n8k16: groupID = lane / 4, threadID_in_group = lane % 4.
KERNEL = """
extern "C" __global__ void main_kernel(half* a, half* b, float* c) {
  int group = threadIdx.x / 4, member = threadIdx.x % 4;
  float sums[4];
  for (int i = 0; i < 4; i++) sums[i] = c[(group + i / 2 * 8) * 8 + member * 2 + i % 2];
  half left[8], right[4];
  for (int i = 0; i < 8; i++) {
    int row = i < 2 || (i >= 4 && i < 6) ? group : group + 8;
    int column = member * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    left[i] = a[row * 16 + column];
  }
  for (int i = 0; i < 4; i++) right[i] = b[(member * 2 + (i & 1) + (i >= 2 ? 8 : 0)) * 8 + group];
  unsigned int* l = (unsigned int*)left;
  unsigned int* r = (unsigned int*)right;
  CALL(sums, l[0], l[1], l[2], l[3], r[0], r[1]);
  for (int i = 0; i < 4; i++) c[(group + i / 2 * 8) * 8 + member * 2 + i % 2] = sums[i];
}
"""


def product(compute: int, threads: int = 32, kernel: str = KERNEL) -> Program:
    """One product of 16 x 16 and 16 x 8, added to c."""
    source = tensor_cores.with_prelude(kernel.replace("CALL", tensor_cores.NAME), compute)
    parameters = (Array("a", 256, "float16"), Array("b", 128, "float16"), Array("c", 128, "float32"))
    return Program(source, parameters, (), (Launch("main_kernel", ("a", "b", "c"), (1, 1, 1), (threads, 1, 1), 0),))


def run(program: Program, directory: Path) -> tuple[str, bool]:
    """What the emulator finds, and whether the product is right."""
    rng = np.random.default_rng(0)
    a, b = (rng.integers(-8, 8, shape).astype(np.float16) for shape in ((16, 16), (16, 8)))
    c = rng.integers(-8, 8, (16, 8)).astype(np.float32)
    right = c + a.astype(np.float32) @ b.astype(np.float32)
    emulation = emulator.Emulation(emulator.build(program, directory, checked=True), program)
    problem = emulation.run([a.reshape(-1), b.reshape(-1), y := c.reshape(-1).copy()], order="shuffled").problem
    return problem, bool(np.array_equal(y.reshape(16, 8), right))


@pytest.mark.parametrize("compute", [75, 80])
def test_fragments_are_laid_out_as_documented(compute: int, tmp_path: Path) -> None:
    assert run(product(compute), tmp_path) == ("", True)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("l[1], l[2]", "l[2], l[1]"), ("r[0], r[1]", "r[1], r[0]"), ("i % 2] = sums[i]", "i % 2] = sums[i ^ 1]")],
)
def test_another_layout_gives_another_product(right: str, wrong: str, tmp_path: Path) -> None:
    assert right in KERNEL
    assert run(product(80, kernel=KERNEL.replace(right, wrong)), tmp_path) == ("", False)


def test_a_part_of_a_warp_cannot_multiply(tmp_path: Path) -> None:
    problem, _ = run(product(80, threads=16), tmp_path)
    assert "multiplies on Tensor Cores without all threads of a warp" in problem


def check(text: str, gpu: GpuTarget, knobs: Knobs, directory: Path) -> Lowered:
    """The kernel gives the same bits in every order of its threads, within what rounding explains."""
    spec = ConvSpec.parse(text)
    module, pack = scheduled(spec, gpu, Candidate(SPACE, knobs))
    lowered = lower(module, gpu)
    emulation = emulator.Emulation(emulator.build(lowered.program, directory, checked=True), lowered.program)
    case = Cases(directory, seed=1).of(spec)
    limit = allowed_error(spec, random_operands(spec, seed=1))
    verdict = verify(emulation, case.inputs(pack), case.reference, limit, ALIGNMENT)
    assert verdict.problem == "", f"{dict(knobs)}: {verdict.problem}"
    return lowered


@pytest.mark.parametrize(
    ("text", "arch", "changed"),
    [
        ("conv,ic=32,oc=40,in=7x11,k=3x3,p=1,n=2,bias,act=relu,layout=NHWC", "sm_80", {"pipeline": "async2"}),
        ("conv,ic=20,oc=33,in=7x11,k=3x2,s=2,p=1,n=3,bias,act=gelu", "sm_75", {}),
        ("conv,ic=17,oc=31,in=5x3,k=3x3,p=1,residual,layout=NHWC", "sm_90", {"pipeline": "async3"}),
        ("pointwise,ic=40,oc=16,in=29,k=1,act=silu,layout=NWC", "sm_80", {"depth": 32, "pipeline": "async2"}),
        ("dilated,ic=16,oc=24,in=3x5x7,k=2x3x2,d=2x1x3,p=2", "sm_80", {"pipeline": "async3"}),
        ("grouped,ic=54,oc=102,in=9x7,k=3x3,g=3,p=1,layout=NHWC,residual,bias", "sm_86", {"pipeline": "async2"}),
        ("shuffled_grouped,ic=64,oc=48,in=7x5,k=3x3,g=2,p=1,bias", "sm_80", {}),
        ("conv,ic=72,oc=40,in=9x7,k=3x3,p=1,bias,n=2,layout=NHWC", "sm_80", {"slices": 4, "pipeline": "async2"}),
        ("shuffled_grouped,ic=96,oc=66,in=5x7,k=3x3,g=2,p=1,residual", "sm_75", {"slices": 2}),
        ("conv,ic=64,oc=64,in=9x9,k=3x3,p=1,layout=NHWC", "sm_80", {"positions": 64, "warp_tile": "64x32"}),
        ("conv,ic=36,oc=32,in=9x9,k=3x3,p=1,layout=NHWC", "sm_80", {"depth": 32, "pipeline": "async2"}),
    ],
)  # fmt: skip
def test_kernels_are_right_and_touch_nothing_else(text: str, arch: str, changed: Knobs, tmp_path: Path) -> None:
    check(f"{text},dtype=float16", target(arch), {**SMALL, **changed}, tmp_path)


def test_the_default_and_corners_of_the_domain(tmp_path: Path) -> None:
    gpu, owner = target("sm_80"), space.get(SPACE)
    spec = ConvSpec.parse("conv,ic=48,oc=72,in=13x11,k=3x3,p=1,n=2,bias,dtype=float16,layout=NHWC")
    assert space.default_candidate(spec, gpu).space == SPACE
    for knobs in (owner.default(spec, gpu), *list(corners(owner, spec, gpu, seed=2))[:3]):
        check(str(spec), gpu, dict(knobs), tmp_path)


@pytest.mark.parametrize(
    ("text", "arch", "changed"),
    [
        ("deformable,ic=32,oc=40,in=9x11,k=3x3,p=1,bias,act=relu,n=2,layout=NHWC", "sm_80", {}),
        ("deformable,ic=40,oc=33,in=7x5,k=3x3,p=1,modulated", "sm_75", {}),
        ("deformable,ic=64,oc=48,g=2,og=4,in=7x9,k=3x2,s=2,modulated,layout=NHWC,residual", "sm_90", {"positions": 64}),
        ("deformable,ic=36,oc=32,in=7x5,k=3x3,d=2,p=2,layout=NHWC", "sm_80", {"depth": 32}),
    ],
)
def test_deformable_samples_are_rounded_once_more(text: str, arch: str, changed: Knobs, tmp_path: Path) -> None:
    spec, gpu = ConvSpec.parse(f"{text},dtype=float16"), target(arch)
    knobs = {name: value for name, value in {**SMALL, **changed}.items() if name not in ("pipeline", "slices")}
    module, pack = scheduled(spec, gpu, Candidate("gpu_deformable_tensor_cores", knobs))
    program = lower(module, gpu).program
    emulation = emulator.Emulation(emulator.build(program, tmp_path, checked=True), program)
    case = Cases(tmp_path, seed=1).of(spec)
    limit = accuracy.limit(spec, "standard")
    assert verify(emulation, case.inputs(pack), case.reference, limit, ALIGNMENT).problem == ""


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ("conv,ic=64,oc=64,in=9x9,k=3x3,dtype=float16", True),
        ("conv,ic=64,oc=64,in=9x9,k=3x3", False),
        ("conv,ic=3,oc=64,in=9x9,k=3x3,dtype=float16", False),
        ("grouped,ic=64,oc=64,g=8,in=9x9,k=3x3,dtype=float16", False),
        ("grouped,ic=64,oc=64,g=4,in=9x9,k=3x3,dtype=float16", True),
    ],
)
def test_what_is_accepted(text: str, accepted: bool) -> None:
    assert space.get(SPACE).takes(ConvSpec.parse(text), target("sm_80")) == accepted


@pytest.mark.parametrize(("arch", "shape"), [("sm_75", "m16n8k8"), ("sm_80", "m16n8k16")])
def test_nvcc_makes_tensor_core_instructions_and_the_model_counts_them(arch: str, shape: str, tmp_path: Path) -> None:
    try:
        nvcc = toolkit.find()
    except TargetError as error:
        pytest.skip(str(error))
    gpu, spec = target(arch), ConvSpec.parse("conv,ic=32,oc=32,in=9x9,k=3x3,p=1,layout=NHWC,dtype=float16")
    module, _ = scheduled(spec, gpu, Candidate(SPACE, SMALL))
    lowered = lower(module, gpu)
    ptx = nvcc.ptx(lowered.program.source, arch, tmp_path)
    found = re.findall(r"mma\.sync\.aligned\.(m16n8k\d+)\.row\.col\.f32\.f16\.f16\.f32", ptx)
    assert found and set(found) == {shape}
    (resources,) = nvcc.compile(lowered.program.source, arch, tmp_path).resources.values()
    assert resources.spill_stores_bytes == resources.stack_bytes == 0
    (kernel,) = estimate(lowered, {"main_kernel": resources}, gpu).kernels
    # 9 taps and 2 chunks of 16; of a warp's 32 x 32 that is 2 x 4 products
    assert kernel.counts.tensor == 9 * 2 * 8
