"""The plain schedule of a GPU: right for every kind of spec, one kernel a stage, neighbours side by side."""

from __future__ import annotations

from pathlib import Path

import pytest
from convtune.schedules.gpu_threads import gpu_threads
from emulated_kernels import emulated, gpu, program_of

from convtune import space
from convtune.spec import ConvSpec

SPECS = (
    "conv,ic=5,oc=7,in=7x11,k=3x3,p=1,bias,act=relu,residual",
    "depthwise,n=3,ic=6,oc=6,in=5x1,k=3x1,p=1x0,layout=NHWC",
    "shuffled_grouped,ic=6,oc=9,in=19,k=4,s=5,d=2,p=9:-2,g=3,layout=NWC",
    "transposed,ic=3,oc=4,in=3x4x5,k=2x3x3,s=2x1x3,p=1,op=1x0x2,act=gelu",
    "deformable,ic=4,oc=6,in=7x5,k=3x3,p=1,og=2,modulated,bias",
    "depthwise_separable,ic=5,oc=9,in=9x8,k=3x3,p=1,m=2,sact=relu6,act=silu,layout=NHWC",
    "flattened,ic=4,oc=6,in=7x9,k=3,p=1,sbias=1x0,sact=relu",
)


@pytest.mark.parametrize("text", SPECS)
def test_any_variant_is_right(text: str, tmp_path: Path) -> None:
    spec = ConvSpec.parse(text)
    run = emulated(gpu_threads, spec, gpu("sm_75"), {}, tmp_path)
    assert run.problem == ""
    assert run.error <= run.allowed
    assert len(run.counts) == len(spec.stages)


def test_it_is_the_last_resort() -> None:
    target = gpu("sm_80")
    spec = ConvSpec.parse("conv,ic=8,oc=8,in=8x8,k=3x3")
    assert gpu_threads.accepts(spec, target)
    assert gpu_threads not in space.accepting(spec, target), "others are written for it"


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_warp_stores_whole_sectors(layout: str, tmp_path: Path) -> None:
    spec = ConvSpec.parse(f"conv,ic=2,oc=16,in=8x16,k=1x1,layout={layout}")
    run = emulated(gpu_threads, spec, gpu("sm_80"), {}, tmp_path)
    (counts,) = run.counts.values()
    assert counts.global_store_sectors == 4 * counts.global_store_requests, "128 bytes a warp"


def test_a_small_output_is_spread_over_the_gpu() -> None:
    small, large = (ConvSpec.parse(f"conv,ic=8,oc=64,in={size},k=3x3,p=1") for size in ("7x7", "112x112"))
    threads = [program_of(gpu_threads, spec, gpu("sm_80"), {}).launches[0].block[0] for spec in (small, large)]
    assert threads == [32, 256]
