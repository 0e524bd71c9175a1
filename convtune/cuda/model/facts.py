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
    l1_bytes: L1 and shared memory give. fill_bytes: L1 receives from L2. l2_bytes_per_clock: of the whole GPU.
    unified_bytes: L1 and shared memory together. dram_share: of the nominal bandwidth that a copy reaches.
    """

    integer_lanes: int
    special_lanes: int
    l1_bytes: int
    fill_bytes: int
    l2_bytes_per_clock: float
    unified_bytes: int
    dram_share: float
    shared_latency: int
    l1_latency: int
    l2_latency: int
    dram_latency: int


# integer_lanes, special_lanes: CUDA C++ Programming Guide, "Arithmetic Instructions", throughput by compute capability.
# Turing: Jia et al. 2019 (arXiv 1903.07486), T4: L1 32, shared 19, L2 188 clocks; L1 64 B and L2 about 20 B a clock and
# SM; Volta in their table: 83 % of DRAM (the T4, throttled, 69 %).
_TURING = Facts(64, 16, 64, 64, 20.0, 96 << 10, 0.83, 19, 32, 188, 434)
# Ampere: Abdelkhalik et al. 2022 (arXiv 2208.11174): shared 23, L1 33, L2 200, global 290 clocks; Luo et al. 2024
# (arXiv 2402.13499), A100: L1 37.9, shared 29.0, L2 261.5, global 466.3 clocks, 90 % of DRAM. L2: 5120 B a clock (A100
# whitepaper), 47 B for each of its 108 SMs.
_A100 = Facts(64, 16, 128, 64, 47.0, 192 << 10, 0.90, 29, 38, 262, 466)
# GA10x and AD10x: Luo et al. 2024, RTX 4090: L1 43.4, shared 30.1, L2 273.0, global 541.5 clocks, 92 % of DRAM.
# L2: Luo et al. measure 1622 to 1708 B a clock on 128 SMs; 13 B for each.
_GA102 = Facts(64, 16, 128, 64, 13.0, 128 << 10, 0.92, 30, 43, 273, 542)
# Hopper: Luo et al. 2024, H100 PCIe: L1 40.7, shared 29.0, L2 263.0, global 478.8 clocks, 91 % of DRAM; L2 as A100's.
_H100 = Facts(64, 16, 128, 64, 39.0, 256 << 10, 0.91, 29, 41, 263, 479)


def of(target: GpuTarget) -> Facts:
    """The figures of the generation that a target belongs to; l2_bytes_per_clock of all its SMs."""
    compute = target.compute
    datacentre = {80: _A100, 90: _H100, 100: _H100, 103: _H100}
    found = _TURING if compute < 80 else datacentre.get(compute, _GA102)
    scaled = {**vars(found), "l2_bytes_per_clock": found.l2_bytes_per_clock * target.sms}
    return Facts(**scaled)
