"""The static model of CUDA kernels: what it counts, by hand; how it ranks; published measurements it comes near."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import gpu_kernels
import pytest

from convtune import targets
from convtune.cuda import model
from convtune.cuda.program import lower
from convtune.cuda.toolkit import Resources
from convtune.errors import ScheduleError
from convtune.targets.gpu import GpuTarget


def gpu(name: str) -> GpuTarget:
    found = targets.resolve(name)
    assert isinstance(found, GpuTarget)
    return found


def estimated(module: Any, target: GpuTarget, registers: int = 32, shared: int = 0, spills: int = 0) -> Any:
    """The estimate of a module's one kernel, with what ptxas would say of it."""
    lowered = lower(module, target)
    resources = Resources(registers, spills, spills, spills, shared)
    found = model.estimate(lowered, dict.fromkeys(lowered.functions, resources), target)
    (kernel,) = found.kernels
    assert found.time_us == kernel.time_us
    return kernel


@pytest.fixture(scope="module")
def a100() -> GpuTarget:
    return gpu("nvidia/nvidia-a100")


@pytest.mark.parametrize("vector", [1, 4])
def test_a_copy_moves_four_sectors_a_request_at_the_speed_of_memory(a100: GpuTarget, vector: int) -> None:
    count = 1 << 26
    kernel = estimated(gpu_kernels.copy(count, vector=vector), a100)
    counts = kernel.counts
    assert counts.global_loads == counts.global_stores == 8
    assert counts.sectors_loaded == counts.sectors_stored == 4 * 8 * vector
    assert kernel.bound == "dram"
    assert kernel.dram_bytes == kernel.l2_bytes == 2 * 4 * count
    # arXiv 2402.13499 measures 1407 GB/s on this GPU
    assert 2 * 4 * count / (kernel.time_us * 1e3) == pytest.approx(1407, rel=0.03)


def test_a_strided_copy_asks_for_a_sector_a_thread(a100: GpuTarget) -> None:
    kernel = estimated(gpu_kernels.copy(1 << 20, stride=8), a100)
    assert kernel.counts.sectors_loaded == 32 * kernel.counts.global_loads
    assert kernel.counts.sectors_stored == 4 * kernel.counts.global_stores
    assert kernel.l2_bytes == (1 << 20) * (32 + 4)


def test_padding_a_tile_takes_its_bank_conflicts_away(a100: GpuTarget) -> None:
    """A column of a 32 x 32 tile is in one bank; "An Efficient Matrix Transpose in CUDA C/C++" (NVIDIA blog)."""
    conflicts = estimated(gpu_kernels.transpose(1024, "shared"), a100).counts
    padded = estimated(gpu_kernels.transpose(1024, "padded"), a100).counts
    writes = reads = conflicts.shared_requests / 2
    assert conflicts.shared_wavefronts == writes + 32 * reads
    assert padded.shared_requests == padded.shared_wavefronts == conflicts.shared_requests


def test_transposes_rank_as_they_were_measured(a100: GpuTarget) -> None:
    none, shared, padded = (estimated(gpu_kernels.transpose(4096, tile), a100) for tile in ("none", "shared", "padded"))
    assert none.counts.sectors_stored == 32 * none.counts.global_stores
    assert none.time_us > 1.05 * shared.time_us > 1.1 * padded.time_us
    assert (padded.bound, shared.bound) == ("dram", "shared")


SIZE = (4096, 4096, 4096)


def published_ladder() -> list[tuple[Any, int, int, float]]:
    """Module, registers, shared bytes, and GFLOP/s measured on an RTX A6000.

    From S. Boehm, "How to Optimize a CUDA Matmul Kernel for cuBLAS-like Performance: a Worklog" (2022), kernels 1 to 5
    and 9.
    """
    tiled = gpu_kernels.matmul_tiled
    return [
        (gpu_kernels.matmul_naive(*SIZE, coalesced=False), 43, 0, 309.0),
        (gpu_kernels.matmul_naive(*SIZE), 43, 0, 1986.5),
        (tiled(SIZE, (32, 32), (1, 1), 32), 41, 8192, 2980.3),
        (tiled(SIZE, (8, 64), (8, 1), 8), 40, 4096, 8474.7),
        (tiled(SIZE, (16, 16), (8, 8), 8), 128, 8192, 15971.7),
        (tiled(SIZE, (16, 16), (8, 8), 16, vector=4), 128, 16384, 19721.0),
    ]


def test_matrix_products_are_as_fast_as_published() -> None:
    a6000 = gpu("nvidia/rtx-a6000")
    times = []
    for module, registers, shared, gflops in published_ladder():
        kernel = estimated(module, a6000, registers, shared)
        measured_us = 2e-3 * 4096**3 / gflops
        assert measured_us / 1.5 < kernel.time_us < measured_us * 1.5
        assert kernel.counts.fma * kernel.blocks * 32 == 4096**3
        times.append(kernel.time_us)
    assert times == sorted(times, reverse=True)


def test_one_block_is_slower_than_many(a100: GpuTarget) -> None:
    many = estimated(gpu_kernels.matmul_naive(256, 256, 256, block=16), a100)
    one = estimated(gpu_kernels.matmul_tiled((256, 256, 256), (16, 16), (16, 16), 16), a100, 255, 32768)
    assert (one.blocks, many.blocks) == (1, 256)
    assert one.time_us > 5 * many.time_us


def test_a_waste_of_sms_by_the_last_wave_is_seen(a100: GpuTarget) -> None:
    """109 blocks on 108 SMs take as long as 216, where one block fills an SM."""
    size = 1024
    kernels = [
        estimated(gpu_kernels.matmul_tiled((64 * blocks, 64, size), (16, 16), (4, 4), 16), a100, 255, 100 << 10)
        for blocks in (108, 109, 216)
    ]
    one, more, two = (kernel.time_us for kernel in kernels)
    assert [kernel.resident_blocks for kernel in kernels] == [1, 1, 1]
    assert more > 1.8 * one
    assert more == pytest.approx(two, rel=0.1)


def test_spills_cost_time(a100: GpuTarget) -> None:
    module = gpu_kernels.matmul_tiled((1024, 1024, 1024), (16, 16), (4, 4), 16)
    clean, spilled = (estimated(module, a100, 128, 8192, spills) for spills in (0, 256))
    assert spilled.time_us > 1.2 * clean.time_us
    assert spilled.counts.local_requests > clean.counts.local_requests == 0


def test_tensor_cores_are_counted_and_fed_by_shared_memory(a100: GpuTarget) -> None:
    """Rows 64 and 128 bytes apart are in 2 and 1 of 8 groups of banks; padded by 16 bytes they are in all."""
    size = 512
    plain, padded = (estimated(gpu_kernels.matmul_tensor_cores(size, pad), a100, 78, 9216) for pad in (False, True))
    for kernel in (plain, padded):
        assert kernel.counts.tensor * kernel.blocks == size**3 / (16 * 8 * 16)
        assert kernel.counts.sectors_stored * kernel.blocks == size * size * 2 / 32
    loads = 4 * size // 16 * 2  # by each of 4 warps, of 16 x 16 elements for either operand, 4 wavefronts at best
    stores = size // 32 * 2 * 2 * 4
    assert plain.counts.shared_wavefronts == loads * (4 * 4 + 4 * 8) + stores * 4
    # eight threads fill two rows of the first operand, which the padding moves onto each other
    assert padded.counts.shared_wavefronts == loads * 2 * 4 + stores / 2 * (4 + 8)
    assert padded.time_us < plain.time_us


def test_what_does_not_fit_is_refused(a100: GpuTarget) -> None:
    with pytest.raises(ScheduleError, match=r"256 threads with 32 registers and 204800 bytes .* do not fit on"):
        estimated(gpu_kernels.copy(1 << 12), a100, shared=200 << 10)


def test_an_estimate_is_data_and_the_same_every_time(a100: GpuTarget) -> None:
    module = gpu_kernels.matmul_naive(512, 512, 512)
    first, second = (json.dumps(dataclasses.asdict(estimated(module, a100))) for _ in range(2))
    assert first == second
