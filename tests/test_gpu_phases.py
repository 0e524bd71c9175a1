"""Transposed convolution on a GPU: corners are right, no inserted zero is multiplied, rows are stored side by side."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from convtune.schedules.gpu_phases import gpu_phases
from emulated_kernels import emulated, gpu, program_of

from convtune.cuda.toolkit import Toolkit
from convtune.space import Knobs, all_knobs
from convtune.spec import ConvSpec, count

A100 = gpu("sm_80")


def knobs(positions: int, channels: int, tile: str, chunk: int = 4, phases: str = "apart") -> Knobs:
    names = ("positions", "channels", "thread_tile", "chunk", "phases")
    return dict(zip(names, (positions, channels, tile, chunk, phases)))


CORNERS = (
    ("ic=7,oc=7,in=7x13,k=4x3,s=2,p=1,op=0x1", knobs(64, 8, "4x4", 8, "together")),
    ("ic=7,oc=7,in=7x13,k=4x3,s=2,p=1,op=0x1,layout=NHWC", knobs(64, 8, "2x8")),
    ("ic=8,oc=8,in=5x5,k=4x4,s=2,p=1", knobs(32, 8, "1x8")),
    ("ic=3,oc=5,in=4x3,k=2x5,s=4x6,d=2x4,op=3x5,bias", knobs(16, 8, "1x4", 4, "together")),
    ("n=3,ic=16,oc=32,in=5x6,k=2x2,s=2x3,p=1:-2x0,op=1x0,bias,act=relu,residual", knobs(32, 32, "4x4", 16, "together")),
    ("n=3,ic=16,oc=32,in=5x6,k=2x2,s=2x3,p=1:-2x0,op=1x0,act=gelu,residual,layout=NHWC", knobs(32, 32, "4x8", 8)),
    ("n=2,ic=6,oc=4,in=19,k=16,s=8,p=4,op=3,g=2", knobs(32, 2, "1x2", 4, "together")),
    ("ic=5,oc=6,in=2x3x4,k=2x1x3,s=2x1x3,op=1x0x2", knobs(16, 8, "1x4", 8, "together")),
    ("ic=12,oc=12,in=3x4x5,k=3x3x3,s=2,p=1,op=1,g=3,bias,layout=NDHWC", knobs(32, 4, "1x4", 4, "together")),
    ("ic=9,oc=1,in=7,k=64,s=16,layout=NWC", knobs(16, 1, "1x1", 16, "together")),
    ("ic=100,oc=12,in=1x1,k=4x4", knobs(16, 16, "1x8", 8)),
    ("ic=8,oc=3,in=8x9,k=4x4,s=2,p=1,act=tanh,layout=NHWC", knobs(128, 4, "4x4", 8, "together")),
    ("ic=4,oc=8,in=6x7,k=3x3,p=1,d=2,s=3", knobs(64, 8, "2x4", 4, "together")),
    ("ic=20,oc=20,in=5x5,k=5x5,s=1,p=2,residual,layout=NHWC", knobs(32, 32, "4x8", 16)),
    ("ic=5,oc=6,in=3x3,k=2x2,s=5x3", knobs(16, 8, "1x4", 4, "together")),
    ("ic=3,oc=2,in=9,k=37,s=2,p=3", knobs(32, 2, "1x2", 4)),
)


@pytest.mark.parametrize(("text", "chosen"), CORNERS, ids=[text for text, _ in CORNERS])
def test_corners_are_right(text: str, chosen: Knobs, tmp_path: Path) -> None:
    run = emulated(gpu_phases, ConvSpec.parse(f"transposed,{text}"), A100, chosen, tmp_path)
    assert run.problem == ""
    assert run.error <= run.allowed


@pytest.mark.parametrize("phases", ["apart", "together"])
@pytest.mark.parametrize("kernel", [2, 3, 4, 5])
def test_sums_read_for_the_taps_of_the_kernel_only(kernel: int, phases: str, tmp_path: Path) -> None:
    """All phases of a stride of 2 together have as many taps as the kernel; outside of the sums nothing is read."""
    spec = ConvSpec.parse(f"transposed,ic=8,oc=8,in=12x12,k={kernel}x{kernel},s=2,op={kernel % 2}")
    chosen = knobs(128, 8, "4x8", 8, phases)
    program = program_of(gpu_phases, spec, A100, chosen)
    (counts,) = emulated(gpu_phases, spec, A100, chosen, tmp_path).counts.values()
    (launch,) = program.launches
    blocks, warps = count(launch.grid), count(launch.block) // 32
    places = blocks // (4 if phases == "apart" else 2)  # where a block is, for each of the phases
    products = counts.shared_load_requests * blocks / (places * warps * 8)
    assert products == pytest.approx(kernel * kernel * 4 * 8 * 2, rel=0), "an input and a weight for each"


def test_all_phases_are_one_launch() -> None:
    spec = ConvSpec.parse("transposed,ic=16,oc=16,in=9x9,k=3x3,s=4x3,d=2")
    for phases, blocks in (("apart", 12), ("together", 4)):
        program = program_of(gpu_phases, spec, A100, knobs(64, 16, "4x4", 16, phases))
        (launch,) = program.launches
        assert launch.grid[0] % blocks == 0
        assert program.workspaces == ()


@pytest.mark.parametrize(("phases", "waste"), [("apart", 2), ("together", 1)])
def test_phases_of_a_row_are_stored_side_by_side(phases: str, waste: int, tmp_path: Path) -> None:
    spec = ConvSpec.parse("transposed,ic=4,oc=4,in=8x32,k=2x2,s=2")
    (counts,) = emulated(gpu_phases, spec, A100, knobs(128, 4, "4x4", 4, phases), tmp_path).counts.values()
    blocks = count(spec.out_size) // 128 // (1 if phases == "apart" else 2)
    assert 32 * counts.global_store_sectors * blocks == 4 * count(spec.out_shape) * waste


def test_lanes_are_phases_where_a_stride_is_long(tmp_path: Path) -> None:
    """One output channel only: neighbouring threads have the phases of a place, which lie side by side."""
    spec = ConvSpec.parse("transposed,ic=4,oc=1,in=8,k=64,s=32")
    (counts,) = emulated(gpu_phases, spec, A100, knobs(16, 1, "1x1", 4, "together"), tmp_path).counts.values()
    assert counts.global_store_sectors == 4 * counts.global_store_requests


def test_what_does_not_fit_is_not_in_the_domain() -> None:
    spec = ConvSpec.parse("transposed,ic=256,oc=128,in=16x16,k=4x4,s=2,p=1")
    less = dataclasses.replace(A100, shared_per_sm=17 << 10, shared_per_block=16 << 10)
    every, fewer = ({tuple(k.values()) for k in all_knobs(gpu_phases, spec, t)} for t in (A100, less))
    assert fewer < every
    assert (64, 64, "4x8", 16, "apart") in every - fewer  # 16 channels of 81 inputs and of 4 * 64 weights
    assert (64, 64, "4x8", 8, "apart") in fewer
    assert len(every) < 600


def test_the_default_of_a_layer_keeps_the_multipliers_busy() -> None:
    spec = ConvSpec.parse("transposed,ic=256,oc=128,in=100x100,k=2x2,s=2,layout=NHWC")
    ideal = spec.macs / (A100.sms * A100.fp32_lanes)
    best = gpu_phases.estimate(spec, A100, gpu_phases.default(spec, A100))
    assert ideal < best < 2 * ideal
    assert gpu_phases.estimate(spec, A100, knobs(32, 32, "1x4")) > 1.3 * best


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("ic=128,oc=64,in=16x16,k=4x4,s=2,p=1,bias,act=relu", knobs(128, 64, "4x8", 16, "together")),
        ("ic=128,oc=64,in=64x128,k=3x3,s=2,p=1,op=1,layout=NHWC", knobs(128, 64, "4x8", 16, "together")),
        ("ic=256,oc=128,in=100x100,k=2x2,s=2,layout=NHWC", knobs(128, 128, "8x8", 16)),
    ],
)
def test_nothing_is_outside_of_registers(text: str, chosen: Knobs, nvcc: Toolkit, tmp_path: Path) -> None:
    program = program_of(gpu_phases, ConvSpec.parse(f"transposed,{text}"), A100, chosen)
    (resources,) = nvcc.compile(program.source, A100.arch, tmp_path).resources.values()
    assert (resources.stack_bytes, resources.spill_stores_bytes, resources.spill_loads_bytes) == (0, 0, 0)
