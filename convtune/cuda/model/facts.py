"""Published figures of NVIDIA's GPUs that GpuTarget does not hold: rates, latencies, bandwidths."""

from __future__ import annotations

from dataclasses import dataclass

from convtune.targets.gpu import GpuTarget

LAUNCH_US = 2.5
"""Between two launches of a stream on the device; 2 to 3 µs for an empty kernel (docs/gpu-model.md)."""


@dataclass(frozen=True)
class Facts:
    """Per SM and clock, latencies in clocks.

    integer_lanes: 32-bit additions and multiplications. special_lanes: exp2, reciprocal, conversions.
    l1_bytes: shared memory gives, and L1 at best. request_clocks: of L1 for a request of 4 bytes a thread.
    fill_bytes: L1 receives from L2. l2_bytes: L2 gives each SM where all ask. unified_bytes: L1 and shared memory
    together. dram_share: of the nominal bandwidth that a copy reaches.
    """

    integer_lanes: int
    special_lanes: int
    l1_bytes: int
    request_clocks: float
    fill_bytes: int
    l2_bytes: float
    unified_bytes: int
    dram_share: float
    shared_latency: int
    l2_latency: int
    dram_latency: int


# integer_lanes, special_lanes: CUDA C++ Programming Guide, "Arithmetic Instructions", by compute capability.
# fill_bytes: 64, as NVIDIA's profiling guides draw it. unified_bytes: the guide's chapters on each compute capability.
# The others are measured. Turing: Jia et al. 2019 (arXiv 1903.07486), T4: L1 58.8 B and L2 20 B a clock and SM; 19, 188
# and 434 clocks; of DRAM 83 % on the V100 beside it (the T4 itself, throttled, 69 %).
_TURING = Facts(64, 16, 64, 2.2, 64, 20.0, 96 << 10, 0.83, 19, 188, 434)
# Luo et al. 2024 (arXiv 2402.13499): L1 with 4 bytes a thread, L2, latencies of shared memory, L2 and memory, and the
# share of DRAM, for A100 PCIe, RTX 4090 and H100 PCIe. Abdelkhalik et al. 2022 (arXiv 2208.11174) have 23, 200 and 290
# clocks for the A100.
_A100 = Facts(64, 16, 128, 1.3, 64, 18.6, 192 << 10, 0.90, 29, 262, 466)
_GA102 = Facts(64, 16, 128, 2.0, 64, 13.3, 128 << 10, 0.92, 30, 273, 542)
_H100 = Facts(64, 16, 128, 1.0, 64, 39.2, 256 << 10, 0.91, 29, 263, 479)


def of(target: GpuTarget) -> Facts:
    """The figures of the generation that a target belongs to."""
    compute = target.compute
    datacentre = {80: _A100, 90: _H100, 100: _H100, 103: _H100}
    return _TURING if compute < 80 else datacentre.get(compute, _GA102)
