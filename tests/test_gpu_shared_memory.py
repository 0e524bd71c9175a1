"""What a GPU space says of a block's shared memory, by which it bounds its knobs, against what TVM declares."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from convtune.schedules import (
    gpu_deformable,
    gpu_depthwise,
    gpu_depthwise_plan,
    gpu_phases,
    gpu_phases_plan,
    gpu_tiles,
)
from emulated_kernels import gpu

from convtune.cuda.program import lower
from convtune.space import Knobs, Space, all_knobs
from convtune.spec import ConvSpec

SAYS: list[tuple[Space[Any], str, Callable[[ConvSpec, Knobs], int]]] = [
    (
        gpu_tiles.gpu_tiles,
        "conv,ic=32,oc=64,in=14x14,k=3x3,p=1",
        lambda spec, knobs: gpu_tiles._shared_bytes(gpu_tiles._tile(spec, knobs), str(knobs["pipeline"])),
    ),
    (
        gpu_phases.gpu_phases,
        "transposed,ic=32,oc=64,in=14x14,k=4x4,s=2,p=1",
        lambda spec, knobs: gpu_phases_plan.shared_bytes(spec, gpu_phases_plan.plan_of(spec, knobs)),
    ),
    (
        gpu_depthwise.gpu_depthwise,
        "depthwise,ic=64,oc=64,in=28x28,k=3x3,p=1",
        lambda spec, knobs: gpu_depthwise_plan.shared_bytes(spec, gpu_depthwise_plan.plan_of(spec, knobs)),
    ),
    (
        gpu_deformable.gpu_deformable,
        "deformable,ic=32,oc=64,in=14x14,k=3x3,p=1,og=2,modulated",
        lambda spec, knobs: gpu_deformable._shared_bytes(spec, gpu_deformable._tile(spec, knobs)),
    ),
]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("owner", "text", "says"), SAYS, ids=[owner.name for owner, *_ in SAYS])
def test_it_is_what_the_kernel_has(
    owner: Space[Any], text: str, says: Callable[[ConvSpec, Knobs], int], dtype: str, layout: str
) -> None:
    spec, target = ConvSpec.parse(f"{text},layout={layout}").replace(dtype=dtype), gpu("sm_80")
    candidates = list(all_knobs(owner, spec, target))
    for knobs in (owner.default(spec, target), candidates[len(candidates) // 2], candidates[-1]):
        lowered = lower(owner.schedule(spec, target, knobs), target)
        (launch,) = lowered.program.launches[:1]
        declared = _declared(lowered.functions[launch.kernel]) + launch.dynamic_shared_bytes
        assert 0.97 * declared <= says(spec, knobs) <= 1.03 * declared + 64, f"{dict(knobs)}: {declared} bytes"


def _declared(kernel: Any) -> int:
    from convtune.cuda.program import _static_shared_bytes

    return _static_shared_bytes(kernel)
