"""Deformable convolution on a GPU, emulated: corners of the domain, offsets that are no numbers or lead far away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_cases import corners
from convtune.schedules.gpu_deformable import gpu_deformable
from test_space_contract import check_domain, check_schedule
from tolerance import allowed_error

from convtune import space, targets
from convtune.cuda.emulation import emulator
from convtune.cuda.program import lower
from convtune.measure.verify import largest_error
from convtune.reference import OperandArrays, random_operands
from convtune.runtime import packing
from convtune.space import Knobs, Space
from convtune.spec import ConvSpec, count
from convtune.targets import GpuTarget

SPECS = tuple(
    ConvSpec.parse("deformable," + text)
    for text in (
        "n=3,ic=6,oc=4,in=4x7,k=3x2,p=1,g=2,og=2,modulated,bias,act=gelu,residual",
        "ic=37,oc=5,in=5x1,k=3x1,p=1x0,og=37,layout=NHWC",
        "ic=24,oc=9,in=7x5,k=2x2,d=2,p=1,og=2,modulated,layout=NHWC,act=silu",
        "ic=13,oc=70,in=9x8,k=3x3,s=2x3,p=2,modulated",
        "ic=1,oc=1,in=3x2,k=5x4,p=1x1:2",
    )
)
LAYERS = tuple(
    ConvSpec.parse("deformable," + text + layout)
    for text in (
        "ic=256,oc=256,in=50x84,k=3x3,p=1,modulated",
        "ic=128,oc=64,in=180x320,k=3x3,p=1,og=16,modulated",
        "ic=256,oc=256,in=7x7,k=3x3,p=2,d=2,g=32,act=gelu",
    )
    for layout in ("", ",layout=NHWC")
)


def gpu(arch: str = "sm_80") -> GpuTarget:
    named = targets.resolve(arch)
    assert isinstance(named, GpuTarget)
    return named


def run(
    owner: Space[Any], spec: ConvSpec, knobs: Knobs, operands: OperandArrays, directory: Path, order: str
) -> tuple[Any, str]:
    """What a kernel makes of the operands, with every access checked, and what the emulator has to say."""
    program = lower(owner.schedule(spec, gpu(), knobs), gpu()).program
    weights = [packing.apply(steps, w) for steps, w in zip(owner.pack(spec, gpu(), knobs), operands.weights)]
    arrays = [operands.x, *weights, *operands.biases, *operands.inputs.values()]
    y = np.full(spec.out_shape, np.nan, np.float32)
    emulation = emulator.Emulation(emulator.build(program, directory, checked=True), program)
    residual = [] if operands.residual is None else [operands.residual]
    return y, emulation.run([*arrays, *residual, y], order).problem


def check(owner: Space[Any], spec: ConvSpec, knobs: Knobs, directory: Path, order: str = "shuffled") -> None:
    y, problem = run(owner, spec, knobs, random_operands(spec, 1), directory, order)
    assert problem == "", f"{dict(knobs)}: {problem}"
    operands = random_operands(spec, 1)
    error, limit = largest_error(y, operands.reference(spec)), allowed_error(spec, operands)
    assert error <= limit, f"{dict(knobs)}: error {error:.3g}, allowed {limit:.3g}"


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_corners_are_right(spec: ConvSpec, tmp_path: Path) -> None:
    found = corners(gpu_deformable, spec, gpu(), seed=0)
    for knobs, order in zip(found[:: max(1, len(found) // 2)], emulator.ORDERS):
        check(gpu_deformable, spec, knobs, tmp_path, order)


@pytest.mark.parametrize("layout", ("NCHW", "NHWC"))
def test_offsets_that_lead_nowhere(layout: str, tmp_path: Path) -> None:
    """Zero outside, NaN where the offset is, and infinities of x seen only where they are sampled."""
    spec = SPECS[2].replace(layout=layout, activation=None)
    operands = random_operands(spec, 2)
    offset, x = operands.inputs["offset"].reshape(-1), operands.x.reshape(-1)
    odd = (np.nan, np.inf, -np.inf, 1e30, -1e30, 3e9, -3e9, 2.0**31, 100.0, -100.0, -1.0, 1.0, 0.0, -0.5)
    places = np.random.default_rng(0).choice(offset.size, 2 * len(odd), replace=False)
    offset[places] = odd * 2
    x[0], x[-1] = np.inf, -np.inf
    y, problem = run(gpu_deformable, spec, gpu_deformable.default(spec, gpu()), operands, tmp_path, "forward")
    assert problem == ""
    expected = operands.reference(spec)
    finite = np.isfinite(expected)
    assert 0 < finite.sum() < finite.size
    np.testing.assert_array_equal(y[~finite], expected[~finite].astype(np.float32))
    np.testing.assert_allclose(y[finite], expected[finite], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spec", LAYERS, ids=str)
def test_domain_of_real_layers(spec: ConvSpec) -> None:
    check_domain(gpu_deformable, spec, gpu())
    candidates = list(space.all_knobs(gpu_deformable, spec, gpu()))
    check_schedule(gpu_deformable, spec, gpu(), candidates[len(candidates) // 2])


def test_what_is_sampled_is_never_in_global_memory() -> None:
    spec = LAYERS[0]
    lowered = lower(gpu_deformable.schedule(spec, gpu(), gpu_deformable.default(spec, gpu())), gpu())
    assert lowered.program.workspaces == ()
    (launch,) = lowered.program.launches
    assert launch.threads <= 256
    assert count(launch.grid) >= gpu().sms


def test_only_deformable_convolutions_on_gpus() -> None:
    assert not gpu_deformable.accepts(SPECS[0], targets.resolve("skylake-avx512"))
    assert not gpu_deformable.accepts(ConvSpec("conv", 4, 4, in_size=8, kernel=3), gpu())
