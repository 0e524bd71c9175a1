"""GpuTarget: a CUDA GPU as the facts that schedules, records and the static model need."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from convtune.errors import TargetError
from convtune.targets.base import Target

OLDEST = 75
"""The oldest compute capability that nvcc 13.0, which these kernels are made for, compiles for."""
WARP = 32
REGISTERS_PER_THREAD = 255
STATIC_SHARED_BYTES = 48 << 10
"""Shared memory that a kernel may declare; what is above it must be dynamic, on every arch."""

BOUNDS: Mapping[str, tuple[int, int]] = {
    "sms": (1, 4096),
    "clock_mhz": (1, 10_000),
    "dram_gbs": (1, 1_000_000),
    "l2_bytes": (1, 1 << 34),
    "shared_per_sm": (1, 1 << 24),
    "shared_per_block": (1, 1 << 24),
    "shared_reserved": (0, 1 << 16),
    "registers_per_sm": (1 << 15, 1 << 20),  # with fewer, blocks of 256 threads that need registers would not fit
    "threads_per_sm": (WARP, 1 << 14),
    "blocks_per_sm": (1, 1024),
    "fp32_lanes": (1, 1 << 14),
    "fp16_tensor_lanes": (0, 1 << 18),
}
FACTS = tuple(BOUNDS)
"""The fields of GpuTarget that are numbers."""

_REGISTER_UNIT = 256  # registers are given to a warp in units of so many
_WARP_UNIT = 4  # and to a block's warps in units of so many, one for each of the SM's partitions


@dataclass(frozen=True, kw_only=True)
class GpuTarget(Target):
    """A CUDA GPU.

    arch: for nvcc, such as "sm_80".
    sms: streaming multiprocessors. clock_mhz: boost. dram_gbs: GB/s of its memory. l2_bytes: of the whole GPU.
    shared_per_sm, shared_per_block: bytes of shared memory, at most; shared_reserved: what the system takes of each
    block's. registers_per_sm: of 32 bits. threads_per_sm, blocks_per_sm: resident at most.
    fp32_lanes: float32 multiply-adds per SM and clock. fp16_tensor_lanes: float16 multiply-adds of the Tensor Cores per
    SM and clock, with float32 sums.

    Raises:
        TargetError: a field's value is impossible.
    """

    family: str = "cuda"
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

    origins: ClassVar[tuple[str, ...]] = ("measured", "estimated")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.family != "cuda":
            raise TargetError(f"target {self.name!r}: family is {self.family!r}; allowed for an arch: 'cuda'")
        check_arch(self.name, self.arch)
        for field, (least, most) in BOUNDS.items():
            value = getattr(self, field)
            if not least <= value <= most:
                raise TargetError(f"target {self.name!r}: {field} is {value}; allowed: {least} to {most}")
        if self.threads_per_sm % WARP:
            raise TargetError(
                f"target {self.name!r}: threads_per_sm is {self.threads_per_sm}; allowed: multiples of {WARP}"
            )
        if self.shared_per_block + self.shared_reserved > self.shared_per_sm:
            raise TargetError(
                f"target {self.name!r}: shared_per_block is {self.shared_per_block}; allowed: up to shared_per_sm, "
                f"{self.shared_per_sm}, without shared_reserved, {self.shared_reserved}"
            )

    @property
    def compute(self) -> int:
        """The arch as a number, such as 80."""
        return compute(self.arch)

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

    @property
    def description(self) -> str:
        return f"{self.model}, {self.arch} ({self.name})"

    def facts(self) -> dict[str, Any]:
        texts = {"name": self.name, "family": self.family, "model": self.model, "arch": self.arch}
        return {**texts, **{field: getattr(self, field) for field in FACTS}, "fingerprint": self.fingerprint}

    def why_not_here(self) -> str:
        return f"it is {self.model}, which is not this machine's GPU"

    def distance(self, facts: Mapping[str, Any]) -> float:
        """In generations, and doublings of the number of SMs; what suits an older arch suits a newer one."""
        if facts["family"] != self.family or compute(facts["arch"]) > self.compute:
            return math.inf
        return (self.compute - compute(facts["arch"])) / 10 + abs(math.log2(facts["sms"] / self.sms))

    def _identity(self) -> Sequence[object]:
        # an estimate follows from these facts, and so does what may differ between two GPUs of one name
        return [self.family, self.model, self.arch, *(getattr(self, field) for field in FACTS)]

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


def check_arch(name: str, arch: str) -> None:
    """Raises TargetError where the arch of the target of that name is none, or too old."""
    if not re.fullmatch(r"sm_\d+[af]?", arch):
        raise TargetError(f"target {name!r}: arch is {arch!r}; allowed: sm_ and a number, such as sm_80")
    if compute(arch) < OLDEST:
        raise TargetError(f"target {name!r}: arch is {arch!r}; nvcc 13.0 compiles for sm_{OLDEST} and newer")


def compute(arch: str) -> int:
    """An arch such as "sm_80" or "sm_90a" as a number."""
    return int(arch.removeprefix("sm_").rstrip("af"))
