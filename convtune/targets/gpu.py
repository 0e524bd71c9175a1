"""GpuTarget: a CUDA GPU as the facts that schedules, records and the static model need."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WARP = 32
REGISTERS_PER_THREAD = 255
STATIC_SHARED_BYTES = 48 << 10
"""Shared memory that a kernel may declare; what is above it must be dynamic, on every arch."""

_REGISTER_UNIT = 256  # registers are given to a warp in units of so many
_WARP_UNIT = 4  # and to a block's warps in units of so many, one for each of the SM's partitions


@dataclass(frozen=True)
class GpuTarget:
    """A CUDA GPU.

    name: as given to --target. model: the GPU's name, for people. arch: for nvcc, such as "sm_80".
    sms: streaming multiprocessors. clock_mhz: boost. dram_gbs: GB/s of its memory. l2_bytes: of the whole GPU.
    shared_per_sm, shared_per_block: bytes of shared memory, at most; shared_reserved: what the system takes of each
    block's. registers_per_sm: of 32 bits. threads_per_sm, blocks_per_sm: resident at most.
    fp32_lanes: float32 multiply-adds per SM and clock. fp16_tensor_lanes: float16 multiply-adds of the Tensor Cores per
    SM and clock, with float32 sums.
    is_host: the GPU is in this machine.
    """

    name: str
    model: str
    arch: str
    sms: int
    clock_mhz: int
    dram_gbs: float
    l2_bytes: int
    shared_per_sm: int
    shared_per_block: int
    shared_reserved: int
    registers_per_sm: int
    threads_per_sm: int
    blocks_per_sm: int
    fp32_lanes: int
    fp16_tensor_lanes: int
    is_host: bool
    family: str = "cuda"

    @property
    def compute(self) -> int:
        """The arch as a number, such as 80."""
        return int(self.arch.removeprefix("sm_").rstrip("af"))

    @property
    def has_async_copy(self) -> bool:
        """Whether `cp.async` exists."""
        return self.compute >= 80

    @property
    def fp32_gflops(self) -> float:
        """Peak of float32, two operations a multiply-add."""
        return 2e-3 * self.sms * self.fp32_lanes * self.clock_mhz

    @property
    def tensor_gflops(self) -> float:
        """Peak of the Tensor Cores for dense float16 with float32 sums."""
        return 2e-3 * self.sms * self.fp16_tensor_lanes * self.clock_mhz

    def resident_blocks(self, threads: int, registers: int, shared_bytes: int) -> int:
        """Blocks that one SM holds at a time; 0 where not even one fits.

        threads: of a block. registers: of a thread. shared_bytes: of a block, static and dynamic. The units of
        allocation are those of NVIDIA's occupancy calculator.
        """
        warps = -(-threads // WARP)
        if threads > 1024 or registers > REGISTERS_PER_THREAD or shared_bytes > self.shared_per_block:
            return 0
        per_warp = -(-max(registers, 1) * WARP // _REGISTER_UNIT) * _REGISTER_UNIT
        warps_by_registers = self.registers_per_sm // per_warp // _WARP_UNIT * _WARP_UNIT
        shared = -(-shared_bytes // 128) * 128 + self.shared_reserved
        by_shared = self.shared_per_sm // shared if shared else self.blocks_per_sm
        return min(self.blocks_per_sm, self.threads_per_sm // WARP // warps, warps_by_registers // warps, by_shared)

    def to_tvm(self) -> Any:
        """The tvm.target.Target that generates CUDA C for this GPU. Without arch TVM would take sm_50 silently."""
        import tvm

        config = {
            "kind": "cuda",
            "arch": self.arch,
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": self.shared_per_block,
            "thread_warp_size": WARP,
            "registers_per_block": self.registers_per_sm,
            "max_num_threads": 1024,
        }
        return tvm.target.Target(config, host={"kind": "llvm"})
