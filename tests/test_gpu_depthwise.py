"""Depthwise convolution on a GPU: corners of the domain are right, and read and store as they are meant to."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from convtune.schedules.gpu_depthwise import gpu_depthwise
from emulated_kernels import emulated, gpu, program_of

from convtune.cuda.toolkit import Toolkit
from convtune.space import Knobs, all_knobs
from convtune.spec import ConvSpec

A100 = gpu("sm_80")


def knobs(
    tile: str, staging: str = "registers", unroll: str = "line", columns: str = "adjacent", threads: int = 64
) -> Knobs:
    """tile: rows x columns, channels first; or rows x columns x vector x channels of a block."""
    rows, across, *channels = (int(part) for part in tile.split("x"))
    vector, block = channels or (1, 1)
    return {
        "threads": threads,
        "channels": block,
        "oh_tile": rows,
        "ow_tile": across,
        "vector": vector,
        "columns": columns,
        "staging": staging,
        "unroll": unroll,
    }


CORNERS = (
    ("depthwise,ic=7,oc=7,in=7x11,k=3x3,p=1", knobs("7x4", "shared", "window", "apart")),
    ("depthwise,ic=7,oc=7,in=7x11,k=3x3,p=1,layout=NHWC", knobs("2x4x1x7", unroll="window")),
    ("depthwise,n=3,ic=8,oc=8,in=9x17,k=3x3,d=2,p=2,bias,act=relu,residual", knobs("2x2", threads=256)),
    ("depthwise,n=3,ic=8,oc=8,in=9x17,k=3x3,d=2,p=2,bias,act=gelu,residual,layout=NHWC", knobs("1x2x2x8", "shared")),
    ("depthwise,ic=148,oc=148,in=5x6,k=3x3,p=1,act=silu,layout=NHWC", knobs("2x1x4x8", "shared", "window")),
    ("depthwise,ic=1,oc=5,in=3x2,k=5x4,p=1:1x1:2", knobs("1x1", "shared", "window", "apart")),
    ("depthwise,ic=5,oc=75,in=5x1,k=3x1,p=1x0,layout=NHWC", knobs("4x1x1x75", "shared")),
    ("depthwise,ic=3,oc=6,in=11x13,k=2x2,s=5x3,bias", knobs("2x4", columns="apart")),
    ("depthwise,ic=37,oc=37,in=23,k=5,p=4:0,layout=NWC", knobs("1x7x1x19", "shared")),
    ("depthwise,ic=2,oc=2,in=130,k=31,p=15,residual", knobs("1x4", "shared")),
    ("depthwise,n=2,ic=6,oc=6,in=5x3x9,k=3x3x3,p=1,s=2x1x2", knobs("2x2", "shared", "window", "apart")),
    ("depthwise,ic=6,oc=6,in=5x3x9,k=3x3x3,p=1,s=2x1x2,layout=NDHWC", knobs("1x2x1x6", "shared")),
    ("depthwise,ic=4,oc=4,in=16x15,k=13x13,p=6", knobs("7x1", "shared", "line", "apart")),
    ("depthwise,ic=20,oc=20,in=9x8,k=3x2,p=1:-2x0:-1,s=1x2,layout=NHWC", knobs("4x2x4x20", "shared")),
    ("grouped,ic=6,oc=4,in=6x16,k=3x3,g=2,p=1,bias", knobs("4x2", "shared", "window", "apart")),
    ("grouped,ic=12,oc=9,in=8x5,k=3x3,g=3,p=1,layout=NHWC", knobs("4x2x1x6", "shared")),
)


@pytest.mark.parametrize(("text", "chosen"), CORNERS, ids=[text for text, _ in CORNERS])
def test_corners_are_right(text: str, chosen: Knobs, tmp_path: Path) -> None:
    run = emulated(gpu_depthwise, ConvSpec.parse(text), A100, chosen, tmp_path)
    assert run.problem == ""
    assert run.error <= run.allowed


@pytest.mark.parametrize("staging", ["registers", "shared"])
@pytest.mark.parametrize(
    ("text", "chosen", "sectors"),
    [
        ("depthwise,ic=4,oc=4,in=16x32,k=3x3,p=1", knobs("4x1", columns="apart"), 4),
        ("depthwise,ic=32,oc=32,in=8x8,k=3x3,p=1,layout=NHWC", knobs("2x2x1x32"), 4),
        ("depthwise,ic=128,oc=128,in=4x4,k=3x3,p=1,layout=NHWC", knobs("2x2x4x128"), 16),
    ],
)
def test_stores_and_copies_are_whole_sectors(
    text: str, chosen: Knobs, sectors: int, staging: str, tmp_path: Path
) -> None:
    spec = ConvSpec.parse(text)
    (counts,) = emulated(gpu_depthwise, spec, A100, {**chosen, "staging": staging}, tmp_path).counts.values()
    assert counts.global_store_sectors == sectors * counts.global_store_requests
    if staging == "shared":
        assert counts.shared_load_wavefronts == counts.shared_load_requests * (4 if chosen["vector"] == 4 else 1)


@pytest.mark.parametrize("unroll", ["line", "window"])
def test_rows_of_a_tile_share_what_they_read(unroll: str, tmp_path: Path) -> None:
    """A window of 4 rows under a kernel of 3 has 6 inputs in each of the 3 columns, not 12."""
    spec = ConvSpec.parse("depthwise,ic=4,oc=4,in=16x32,k=3x3,p=1")
    chosen = knobs("4x1", "shared", unroll, "apart")
    (counts,) = emulated(gpu_depthwise, spec, A100, chosen, tmp_path).counts.values()
    assert counts.shared_load_requests == 2 * 6 * 3, "a block has 2 warps"


def test_columns_of_a_tile_share_what_they_read(tmp_path: Path) -> None:
    spec = ConvSpec.parse("depthwise,ic=32,oc=32,in=8x8,k=3x3,p=1,layout=NHWC")
    (counts,) = emulated(gpu_depthwise, spec, A100, knobs("1x4x1x32", "shared"), tmp_path).counts.values()
    assert counts.shared_load_requests == 2 * 6 * 3


def test_slabs_of_a_volume_are_staged_one_after_the_other() -> None:
    spec = ConvSpec.parse("depthwise,ic=8,oc=8,in=9x16x16,k=5x3x3,p=2x1x1,layout=NDHWC")
    source = program_of(gpu_depthwise, spec, A100, knobs("2x2x1x8", "shared")).source
    rows, columns = 2 * 2 + 2, 4 * 2 + 2  # 2 x 4 threads, 2 x 2 outputs each
    assert f"pad_shared_ptr[{rows * columns * 8 // 4}]" in source or f"pad_shared_ptr[{rows * columns * 8}]" in source
    assert source.count("__syncthreads()") == 2


def test_accepts_few_channels_a_group_only() -> None:
    few, many = (ConvSpec.parse(f"grouped,ic=64,oc=64,in=8x8,k=3x3,g={groups}") for groups in (16, 8))
    assert gpu_depthwise.accepts(few, A100)
    assert not gpu_depthwise.accepts(many, A100)


def test_what_does_not_fit_is_not_in_the_domain() -> None:
    """With half the registers of an SM the domain has less, and so it has with less shared memory."""
    spec = ConvSpec.parse("depthwise,ic=96,oc=96,in=56x56,k=7x7,p=3,layout=NHWC")
    every = {tuple(k.values()) for k in all_knobs(gpu_depthwise, spec, A100)}
    for less in ({"registers_per_sm": 32 << 10}, {"shared_per_sm": 24 << 10, "shared_per_block": 23 << 10}):
        fewer = {tuple(k.values()) for k in all_knobs(gpu_depthwise, spec, dataclasses.replace(A100, **less))}
        assert fewer < every
    assert len(every) < 1500


@pytest.mark.parametrize("staging", ["registers", "shared"])
def test_the_model_prefers_neighbours_that_read_neighbours(staging: str) -> None:
    spec = ConvSpec.parse("depthwise,ic=144,oc=144,in=56x56,k=3x3,p=1")
    apart, adjacent = (knobs("4x4", staging, columns=columns) for columns in ("apart", "adjacent"))
    assert gpu_depthwise.estimate(spec, A100, apart) < gpu_depthwise.estimate(spec, A100, adjacent)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("depthwise,ic=144,oc=144,in=56x56,k=3x3,p=1", knobs("7x4", "shared", "window", threads=256)),
        ("depthwise,ic=144,oc=144,in=56x56,k=3x3,p=1,layout=NHWC", knobs("4x7x2x72", "registers", "window")),
        ("depthwise,ic=96,oc=96,in=56x56,k=7x7,p=3,layout=NHWC", knobs("2x4x4x32", "shared", threads=128)),
        ("depthwise,ic=64,oc=64,in=56x56,k=31x31,p=15", knobs("7x1", "shared", "line", "apart", 128)),
    ],
)
def test_nothing_is_outside_of_registers(text: str, chosen: Knobs, nvcc: Toolkit, tmp_path: Path) -> None:
    program = program_of(gpu_depthwise, ConvSpec.parse(text), A100, chosen)
    (resources,) = nvcc.compile(program.source, A100.arch, tmp_path).resources.values()
    assert (resources.stack_bytes, resources.spill_stores_bytes, resources.spill_loads_bytes) == (0, 0, 0)
