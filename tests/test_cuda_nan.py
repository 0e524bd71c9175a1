"""NaN and infinities through the activations of CUDA kernels, emulated, against the reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from emulated_kernels import gpu

from convtune import space
from convtune.cuda.emulation import emulator
from convtune.cuda.program import lower
from convtune.reference import random_operands
from convtune.runtime import packing
from convtune.spec import ACTIVATIONS, ConvSpec

VALUES = np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.5, -1.5, 1e30, -1e30, np.nan, 7.0, -3.0])


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("name", ["gpu_tiles", "gpu_threads"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_they_come_through_as_in_the_reference(activation: str, name: str, layout: str, tmp_path: Path) -> None:
    spec = ConvSpec.parse(f"conv,ic=1,oc=4,in=3x4,k=1x1,act={activation},layout={layout}")
    owner, target = space.known()[name], gpu("sm_80")
    operands = random_operands(spec, seed=0)
    operands.x[...] = VALUES.reshape(spec.in_shape)
    operands.weights[0][...] = 1.0
    knobs = owner.default(spec, target)
    program = lower(owner.schedule(spec, target, knobs), target).program
    assert name != "gpu_tiles" or layout != "NHWC" or "float4" in program.source, "vectors, too"
    weight = packing.apply(owner.pack(spec, target, knobs)[0], operands.weights[0])
    y = np.full(spec.out_shape, 12345.0, np.float32)
    report = emulator.Emulation(emulator.build(program, tmp_path, checked=True), program).run([operands.x, weight, y])
    assert report.problem == ""
    with np.errstate(invalid="ignore", over="ignore"):
        expected = operands.reference(spec)
    assert np.isnan(expected).sum() == 2 * spec.out_channels
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-30)
