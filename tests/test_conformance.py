"""Every variant on every space that accepts it: kernels are built, run and compared with the float64 reference."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from conformance_cases import corners, runnable_targets, specs
from numpy.typing import NDArray
from tolerance import allowed_error

from convtune import space
from convtune.reference import random_operands
from convtune.runtime import packing
from convtune.runtime.arrays import empty_aligned
from convtune.space import Knobs, Space
from convtune.spec import ConvSpec
from convtune.targets import Target

ZONE = 1 << 14  # elements


def check(owner: Space, spec: ConvSpec, target: Target, knobs: Knobs) -> None:
    """Builds the candidate, runs it between zones of NaN and compares its result."""
    operands, answer, limit = expected(spec)
    steps = owner.pack(spec, target, knobs)
    weights = [packing.apply(s, weight) for s, weight in zip(steps, operands.weights, strict=True)]
    rest = (*operands.biases, *operands.inputs.values(), operands.residual)
    inputs = [array for array in (operands.x, *weights, *rest) if array is not None]
    memories = [between_zones(array) for array in (*inputs, np.full(spec.out_shape, np.nan, np.float32))]
    run(owner.schedule(spec, target, knobs), target, [memory[ZONE:-ZONE] for memory in memories])
    *read, y = memories
    for array, memory in zip(inputs, read):
        assert np.array_equal(array.ravel(), memory[ZONE:-ZONE]), f"{dict(knobs)}: changed an input"
    for memory in memories:
        assert np.isnan(memory[:ZONE]).all() and np.isnan(memory[-ZONE:]).all(), f"{dict(knobs)}: wrote outside"
    error = np.abs(y[ZONE:-ZONE].reshape(answer.shape) - answer).max() / (np.abs(answer).max() or 1.0)
    assert error <= limit, f"{dict(knobs)}: error {error:.3g}, allowed {limit:.3g}"  # NaN is not


def between_zones(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A flat copy with NaN before and after it: what a kernel reads there shows in its result."""
    memory = empty_aligned((array.size + 2 * ZONE,), np.float32)
    memory.fill(np.nan)
    memory[ZONE:-ZONE] = array.ravel()
    return memory


def run(module: Any, target: Target, arrays: Sequence[NDArray[np.float32]]) -> None:
    """Compiles the module and calls it with the arrays, which it sees in its own shapes."""
    import tvm

    shapes = [tuple(map(int, parameter.shape)) for parameter in module["main"].params]
    views = [array.reshape(shape) for array, shape in zip(arrays, shapes, strict=True)]
    tvm.compile(module, target=target.to_tvm())["main"](*map(tvm.runtime.from_dlpack, views))


@functools.lru_cache(maxsize=4)
def expected(spec: ConvSpec) -> tuple[Any, NDArray[np.float64], float]:
    operands = random_operands(spec, seed=0)
    return operands, operands.reference(spec), allowed_error(spec, operands)


def cases() -> list[Any]:
    """Each spec with each space, of the fallback every third, the targets in turn, and the turn, which is the seed."""
    found = []
    for turn, spec in enumerate(specs()):
        target = runnable_targets()[turn % len(runnable_targets())]
        for owner in space.known().values():
            if owner.name == space.FALLBACK and turn % 3:  # it has one schedule, and the compiler chooses it last
                continue
            if owner.accepts(spec, target):
                found.append(pytest.param(owner, spec, target, turn, id=f"{owner.name}-{spec}-{target.name}"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "spec", "target", "turn"), cases())
def test_kernels_are_right(owner: Space, spec: ConvSpec, target: Target, turn: int) -> None:
    extremes = corners(owner, spec, target, seed=turn)
    default = dict(owner.default(spec, target))
    check(owner, spec, target, default)
    if extremes and (extreme := extremes[turn % len(extremes)]) != default:
        check(owner, spec, target, extreme)
