"""Composite variants in one kernel on a GPU, emulated: corners of the domains, shared memory, what does not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from conformance_cases import corners
from convtune.schedules.gpu_chain import gpu_chain
from convtune.schedules.gpu_chain_plan import block_of
from convtune.schedules.gpu_deformable import gpu_deformable
from convtune.schedules.gpu_separable import gpu_separable
from test_gpu_deformable import LAYERS as DEFORMABLE
from test_gpu_deformable import check, gpu
from test_space_contract import check_domain, check_schedule

from convtune import space, targets
from convtune.cuda.emulation import emulator
from convtune.cuda.program import lower
from convtune.cuda.toolkit import find
from convtune.errors import TargetError
from convtune.space import Space
from convtune.spec import ConvSpec
from convtune.targets.gpu import STATIC_SHARED_BYTES

SPECS = tuple(
    map(
        ConvSpec.parse,
        (
            "depthwise_separable,n=2,ic=5,oc=13,in=4x37,k=1x3,s=1x2,p=0x1,m=3,sbias=1,sact=sigmoid,act=gelu,bias,residual",
            "depthwise_separable,ic=12,oc=6,in=3x4x5,k=2x3x1,p=0:1x2:0x1,sbias=1,sact=relu6,layout=NDHWC",
            "spatially_separable,n=3,ic=3,oc=5,in=13x14,k=3x5,s=2x1,p=1x2,mid=11,sbias=1,sact=silu,act=relu,residual",
            "spatially_separable,ic=8,oc=20,in=9x17,k=3x3,d=2x3,p=2x3,mid=6,layout=NHWC,bias",
            "flattened,ic=7,oc=10,in=9x16,k=2x5,s=1x2,p=1x0:2,sbias=1x1,sact=gelu/relu,bias",
            "flattened,ic=4,oc=6,in=301,k=2,s=3,layout=NWC,act=hardswish,residual",
        ),
    )
)
LAYERS = tuple(
    ConvSpec.parse(text + layout)
    for text in (
        "depthwise_separable,ic=128,oc=256,in=56x56,k=3x3,s=2,p=1,sbias=1,sact=relu,act=relu,bias",
        "spatially_separable,ic=64,oc=64,in=128x256,k=3x3,p=1,mid=64,sact=relu,act=relu",
        "flattened,ic=256,oc=512,in=28x28,k=3x3,p=1",
    )
    for layout in ("", ",layout=NHWC")
)
DILATED = ConvSpec.parse("spatially_separable,ic=4,oc=8,in=9x40,k=3x3,p=1x16,d=1x16,mid=128")


def owner_of(spec: ConvSpec) -> Space[Any]:
    (owner,) = (owner for owner in (gpu_chain, gpu_separable) if owner.accepts(spec, gpu()))
    return owner


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_corners_are_right(spec: ConvSpec, tmp_path: Path) -> None:
    owner = owner_of(spec)
    found = corners(owner, spec, gpu(), seed=0)
    for knobs, order in zip(found[:: max(1, len(found) // 2)], emulator.ORDERS):
        check(owner, spec, knobs, tmp_path, order)


def test_threads_wait_for_the_filters_that_others_copy(tmp_path: Path) -> None:
    """With one tap some threads wrote, and all read, the elements of their own index: TVM left out the barrier."""
    spec = ConvSpec.parse("depthwise_separable,ic=16,oc=32,in=8x12,k=1x1,m=3,layout=NHWC")
    knobs = {"positions": 64, "channels": 32, "thread_tile": "8x8", "chunk": 16}
    for order in emulator.ORDERS:
        check(gpu_separable, spec, knobs, tmp_path, order)


@pytest.mark.parametrize("spec", LAYERS, ids=str)
def test_domain_of_real_layers(spec: ConvSpec) -> None:
    owner = owner_of(spec)
    check_domain(owner, spec, gpu())
    candidates = list(space.all_knobs(owner, spec, gpu()))
    check_schedule(owner, spec, gpu(), candidates[len(candidates) // 2])


@pytest.mark.parametrize("spec", LAYERS[::3], ids=str)
def test_nothing_between_the_stages_is_in_global_memory(spec: ConvSpec) -> None:
    owner = owner_of(spec)
    program = lower(owner.schedule(spec, gpu(), owner.default(spec, gpu())), gpu()).program
    assert program.workspaces == ()
    assert len(program.launches) == 1


@pytest.mark.slow
@pytest.mark.parametrize("spec", (*LAYERS, *DEFORMABLE[:2]), ids=str)
def test_what_threads_hold_stays_in_registers(spec: ConvSpec, tmp_path: Path) -> None:
    try:
        toolkit = find()
    except TargetError as error:
        pytest.skip(str(error))
    (owner,) = (s for s in (gpu_chain, gpu_separable, gpu_deformable) if s.accepts(spec, gpu()))
    for knobs in (owner.default(spec, gpu()), *corners(owner, spec, gpu(), seed=3)[-3:]):
        source = lower(owner.schedule(spec, gpu(), knobs), gpu()).program.source
        (resources,) = toolkit.compile(source, "sm_80", tmp_path).resources.values()
        assert (resources.spill_stores_bytes, resources.stack_bytes) == (0, 0), f"{dict(knobs)}: {resources}"


def test_more_shared_memory_than_a_kernel_may_declare(tmp_path: Path) -> None:
    found = [
        knobs for knobs in space.all_knobs(gpu_chain, DILATED, gpu()) if block_of(DILATED, knobs).scope != "shared"
    ]
    knobs = found[0]
    (launch,) = lower(gpu_chain.schedule(DILATED, gpu(), knobs), gpu()).program.launches
    least = block_of(DILATED, knobs).shared_bytes
    assert STATIC_SHARED_BYTES // 2 < launch.dynamic_shared_bytes <= least <= gpu().shared_per_block
    check(gpu_chain, DILATED, knobs, tmp_path)


def test_what_fits_no_block_is_left_to_others() -> None:
    """A block of an output row and what it needs of the stages before is larger than any shared memory."""
    spec = ConvSpec("spatially_separable", 8, 8, in_size=(64, 5000), kernel=3, padding=(1, 2048), dilation=(1, 2048))
    assert not gpu_chain.accepts(spec, gpu())
    assert not gpu_chain.accepts(LAYERS[2], targets.resolve("skylake-avx512"))
    assert not gpu_separable.accepts(LAYERS[2], gpu())
    assert not gpu_chain.accepts(ConvSpec("conv", 4, 4, in_size=8, kernel=3), gpu())
