"""Kernels take arrays at any address that float32 allows, not only at multiples of 64 bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convtune import codegen, linker, reference, space, targets
from convtune.runtime import packing
from convtune.runtime.kernel import Call, Kernel
from convtune.spec import ConvSpec


def _at(array: np.ndarray, offset: int) -> np.ndarray:
    memory = np.empty(array.nbytes + 128, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    placed = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    placed[...] = array
    return placed


@pytest.mark.parametrize("offset", [0, 4, 16, 60])
def test_arrays_may_start_anywhere(offset: int, tmp_path: Path) -> None:
    spec = ConvSpec.parse("conv,ic=16,oc=32,in=9x14,k=3x3,p=1,layout=NHWC,residual")
    target = targets.resolve("native")
    candidate = space.default_candidate(spec, target)
    owner = space.get(candidate.space)
    codegen.write_object(owner.schedule(spec, target, candidate.knobs), target.to_tvm(), tmp_path / "k.o")
    kernel = Kernel(linker.link(tmp_path / "k.o", tmp_path / "k.so", tmp_path / "cache"))
    operands = reference.random_operands(spec, 0)
    weight = packing.apply(owner.pack(spec, target, candidate.knobs)[0], operands.weights[0])
    residual = operands.residual
    assert residual is not None
    y = _at(np.full(spec.out_shape, np.nan, np.float32), offset)
    arrays = [_at(operands.x, offset), weight, _at(residual, offset), y]
    call = Call(kernel, [(a.shape, a.dtype, codegen.ALIGNMENT) for a in arrays])
    assert all(call.bind(index, array) for index, array in enumerate(arrays))
    call()
    expected = operands.reference(spec)
    assert np.abs(y - expected).max() <= 2e-6 * np.abs(expected).max()
