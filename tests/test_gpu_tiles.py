"""Convolution as a matrix product of tiles: corners of the domain are right, and do what they are for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from convtune.schedules.gpu_tiles import gpu_tiles
from emulated_kernels import emulated, gpu, program_of

from convtune.cuda.toolkit import Toolkit
from convtune.runtime import packing
from convtune.space import Knobs, all_knobs
from convtune.spec import ConvSpec

A100, T4 = gpu("sm_80"), gpu("sm_75")
LAYER = ConvSpec.parse("conv,ic=64,oc=64,in=56x56,k=3x3,p=1")


def knobs(
    positions: int, channels: int, tile: str = "4x4", depth: int = 16, slices: int = 1, pipeline: str = "none"
) -> Knobs:
    names = ("positions", "channels", "thread_tile", "depth", "slices", "pipeline")
    return dict(zip(names, (positions, channels, tile, depth, slices, pipeline)))


CORNERS = (
    ("conv,ic=5,oc=7,in=11x13,k=3x3,p=1,bias,act=relu,residual", knobs(64, 8, depth=8)),
    ("conv,ic=19,oc=12,in=9x8,k=3x2,s=1x2,p=1:-2x0:-1,layout=NHWC,act=gelu", knobs(32, 16, pipeline="async2")),
    ("conv,n=3,ic=8,oc=20,in=5x7,k=3x3,p=1,residual", knobs(128, 32, "8x8", 8, pipeline="async3")),
    ("conv,n=2,ic=33,oc=40,in=6x6,k=3x3,p=1,layout=NHWC,bias,residual", knobs(128, 64, "8x8", 32, pipeline="async3")),
    ("conv,ic=64,oc=24,in=5x5,k=3x3,p=1,bias,act=relu", knobs(32, 32, slices=2, pipeline="async2")),
    ("shuffled_grouped,ic=144,oc=40,in=5x5,k=1x1,g=2,layout=NHWC,bias", knobs(32, 32, depth=32, slices=2)),
    ("grouped,ic=12,oc=18,in=9x17,k=3x3,d=2x3,p=2x3,g=6", knobs(128, 16, depth=8)),
    ("grouped,ic=16,oc=32,in=3x2,k=5x4,p=1x1:2,g=4,layout=NHWC", knobs(32, 32, "4x8", pipeline="async2")),
    ("pointwise,ic=32,oc=24,in=14x14,k=1x1", knobs(64, 32, "8x4", pipeline="async2")),
    ("conv,ic=3,oc=16,in=301,k=7,s=3,layout=NWC", knobs(64, 16, depth=32)),
    ("conv,n=2,ic=4,oc=6,in=3x4x5,k=2x3x1,p=0:1x2:0x1", knobs(128, 8, depth=16, pipeline="async2")),
    ("conv,ic=1,oc=1,in=1x1,k=1x1", knobs(32, 8, depth=8)),
)


@pytest.mark.parametrize(("text", "chosen"), CORNERS, ids=[text for text, _ in CORNERS])
def test_corners_are_right(text: str, chosen: Knobs, tmp_path: Path) -> None:
    run = emulated(gpu_tiles, ConvSpec.parse(text), A100, chosen, tmp_path)
    assert run.problem == ""
    assert run.error <= run.allowed


@pytest.mark.parametrize(
    ("layout", "tile", "depth"),
    [("NCHW", "8x8", 16), ("NHWC", "8x8", 16), ("NHWC", "4x4", 32), ("NHWC", "8x4", 32)],
)
def test_no_two_threads_wait_for_a_bank(layout: str, tile: str, depth: int, tmp_path: Path) -> None:
    spec = ConvSpec.parse(f"conv,ic=32,oc=64,in=8x16,k=1x3,p=0x1,layout={layout}")
    chosen = knobs(64, 64, tile, depth)
    (counts,) = emulated(gpu_tiles, spec, A100, chosen, tmp_path).counts.values()
    rows, columns = (int(part) for part in tile.split("x"))
    warps = 64 * 64 / (rows * columns * 32)
    words = warps * 32 * 3 * (rows + columns)  # that a thread reads in each step of the depth
    assert counts.shared_load_wavefronts == words, "a wavefront gives each thread of a warp one word"
    assert counts.shared_load_requests == words / 4, "four words at a time"


@pytest.mark.parametrize(
    ("text", "gathers"),
    [
        ("pointwise,ic=32,oc=32,in=14x14,k=1x1", True),  # positions side by side, in rows that are not whole vectors
        ("conv,ic=32,oc=32,in=14x14,k=3x3,p=1,layout=NHWC", True),
        ("grouped,ic=64,oc=64,in=14x14,k=3x3,p=1,g=16,layout=NHWC", True),
        ("conv,ic=32,oc=32,in=14x14,k=3x3,p=1", False),
        ("conv,ic=30,oc=32,in=14x14,k=3x3,p=1,layout=NHWC", False),
    ],
)
def test_global_memory_is_read_and_written_by_fours(text: str, gathers: bool) -> None:
    spec = ConvSpec.parse(text)
    source = program_of(gpu_tiles, spec, A100, knobs(64, 32)).source
    assert "*(float4*)(weight_ptr" in source
    assert "*(float4*)(y_ptr" in source
    assert ("*(float4*)(x_ptr" in source) == gathers


@pytest.mark.parametrize(("layout", "copies"), [("NHWC", "cg_16"), ("NCHW", "ca_4")])
def test_chunks_are_copied_asynchronously_with_zeros_outside(layout: str, copies: str) -> None:
    spec = ConvSpec.parse(f"conv,ic=32,oc=32,in=14x14,k=3x3,p=1,layout={layout}")
    program = program_of(gpu_tiles, spec, A100, knobs(64, 32, pipeline="async3"))
    kernel = program.source[program.source.rindex("__global__") :]
    assert f"ptx_cp_async_legacy_pred_{copies}_4_4(" in kernel, "x, where a condition may fail"
    assert "ptx_cp_async_legacy_cg_16_4_4(" in kernel, "weights, which are padded"
    assert "x_ptr[" not in kernel and "condval" not in kernel, "nothing of x comes through a register"


def test_arch_without_asynchronous_copies() -> None:
    assert gpu_tiles.knobs(LAYER, T4)["pipeline"] == ("none",)


def test_what_does_not_fit_is_not_in_the_domain() -> None:
    """With half the shared memory of an SM the domain has less, and never a block that no SM can hold."""
    less = dataclasses.replace(A100, shared_per_sm=32 << 10, shared_per_block=31 << 10)
    all_of_it, rest = ({tuple(k.values()) for k in all_knobs(gpu_tiles, LAYER, t)} for t in (A100, less))
    assert rest < all_of_it
    assert (128, 64, "8x8", 32, 1, "async3") in all_of_it - rest  # 3 chunks of (128 + 64) * 32 floats
    assert (64, 64, "8x8", 16, 1, "async2") in rest
    assert len(all_of_it) < 700


def test_slices_are_for_small_outputs() -> None:
    small, large = LAYER.replace(in_channels=512, in_size=(7, 7)), LAYER.replace(in_size=(224, 224))
    assert {k["slices"] for k in all_knobs(gpu_tiles, small, A100)} == {1, 2, 4, 8, 16}
    assert {k["slices"] for k in all_knobs(gpu_tiles, large, A100)} == {1}
    chosen = gpu_tiles.default(small, A100)
    assert int(chosen["slices"]) > 1
    program, whole = (program_of(gpu_tiles, small, A100, k) for k in (chosen, {**chosen, "slices": 1}))
    assert (len(program.launches), len(program.workspaces)) == (2, 1)
    assert (len(whole.launches), len(whole.workspaces)) == (1, 0)
    assert program.launches[0].grid[0] == whole.launches[0].grid[0] * int(chosen["slices"])


def test_the_default_of_a_layer_keeps_the_multipliers_busy() -> None:
    """At least a third of the peak, by the model; tiles that are known to be poor are further from it."""
    chosen = gpu_tiles.default(LAYER, A100)
    ideal = LAYER.macs / (A100.sms * A100.fp32_lanes)
    best = gpu_tiles.estimate(LAYER, A100, chosen)
    assert best < 3 * ideal
    for poor in (knobs(128, 64, "8x8"), knobs(32, 16, "4x4")):  # 25 blocks for 108 SMs; 8 reads for 16 multiply-adds
        assert gpu_tiles.estimate(LAYER, A100, poor) > 1.3 * best


def test_groups_of_few_channels_come_several_to_a_block() -> None:
    spec = ConvSpec.parse("grouped,ic=96,oc=96,in=14x14,k=3x3,p=1,g=24,layout=NHWC")
    program = program_of(gpu_tiles, spec, A100, knobs(64, 32))
    assert program.launches[0].block == (8, 16, 1), "8 groups of 4 channels by 16 times 4 positions"
    assert program.launches[0].grid[0] == 4 * 3


def test_weights_are_padded_to_whole_tiles() -> None:
    spec = ConvSpec.parse("conv,ic=19,oc=9,in=7x7,k=3x3")
    chosen = knobs(32, 16, depth=16)
    (steps,) = gpu_tiles.pack(spec, A100, chosen)
    shape = packing.packed_shape(list(steps), spec.weight_shapes[0])
    assert shape == (1, 1, 1, 2, 1, 3, 3, 1, 1, 1, 10, 1, 1, 4, 4), "19 channels are 2 chunks of 10, 9 are 4 times 4"


@pytest.mark.parametrize(
    ("layout", "chosen"),
    [
        ("NCHW", knobs(128, 64, "8x8", 32, pipeline="async3")),
        ("NHWC", knobs(128, 64, "8x8", 32, pipeline="async3")),
        ("NHWC", knobs(64, 64, "4x4")),
    ],
)
def test_nothing_is_outside_of_registers(layout: str, chosen: Knobs, nvcc: Toolkit, tmp_path: Path) -> None:
    spec = LAYER.replace(layout=layout, bias=True, activation="relu")
    program = program_of(gpu_tiles, spec, A100, chosen)
    (resources,) = nvcc.compile(program.source, A100.arch, tmp_path).resources.values()
    assert (resources.stack_bytes, resources.spill_stores_bytes, resources.spill_loads_bytes) == (0, 0, 0)
    assert resources.registers <= 168


def test_a_small_layer_is_spread_over_many_multiprocessors() -> None:
    small = ConvSpec.parse("conv,ic=16,oc=16,in=14x14,k=3x3,p=1")
    (launch,) = program_of(gpu_tiles, small, A100, gpu_tiles.default(small, A100)).launches
    assert launch.grid[0] >= 4, "two blocks of 128 positions each take longer"
