"""CpuTarget: a CPU as the facts that schedules and records need."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from convtune.errors import TargetError
from convtune.targets.base import Target
from convtune.targets.host import MAX_THREADS, current
from convtune.targets.units import per_cycle


@dataclass(frozen=True, kw_only=True)
class CpuTarget(Target):
    """A CPU. Schedules take every width and size from here and hold no ISA constant of their own.

    mcpu, triple, features: for LLVM (features as "+avx2", "-sse4a"; empty where mcpu says it all).
    machine: as platform.machine() prints it. required_features: /proc/cpuinfo names without which code must not run.
    vector_bytes, vector_registers: of the widest vectors used. threads: kernels run on so many cores.
    l1d_bytes, l2_bytes: of one core. l3_bytes: of one L3, shared by some cores; 0 where there is none.

    Raises:
        TargetError: a field's value is impossible.
    """

    mcpu: str
    triple: str
    features: tuple[str, ...]
    machine: str
    required_features: tuple[str, ...]
    vector_bytes: int
    vector_registers: int
    threads: int
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int

    origins: ClassVar[tuple[str, ...]] = ("measured", "emulated")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("mcpu", "triple", "machine"):
            if not getattr(self, field):
                raise TargetError(f"target {self.name!r}: {field} is empty")
        if not self.triple.startswith(f"{self.machine}-"):
            allowed = f"allowed for machine {self.machine!r}: {self.machine}-…"
            raise TargetError(f"target {self.name!r}: triple is {self.triple!r}; {allowed}")
        if not 1 <= self.threads <= MAX_THREADS:
            raise TargetError(f"target {self.name!r}: threads is {self.threads}; allowed: 1 to {MAX_THREADS}")
        for field in ("vector_bytes", "vector_registers", "l1d_bytes", "l2_bytes"):
            if getattr(self, field) < 1:
                raise TargetError(f"target {self.name!r}: {field} is {getattr(self, field)}; allowed: 1 and up")
        if self.l3_bytes < 0:
            raise TargetError(f"target {self.name!r}: l3_bytes is {self.l3_bytes}; allowed: 0 (no L3) and up")
        if self.vector_bytes < 4 or self.vector_bytes & (self.vector_bytes - 1):
            raise TargetError(
                f"target {self.name!r}: vector_bytes is {self.vector_bytes}; allowed: 4, 8, 16, 32, 64, …"
            )
        for feature in self.features:
            if not re.fullmatch(r"[+-][\w.-]+", feature):
                raise TargetError(
                    f'target {self.name!r}: feature {feature!r}; allowed: "+name" or "-name", LLVM\'s name'
                )

    @property
    def lanes(self) -> int:
        """float32 elements in a vector."""
        return self.vector_bytes // 4

    @property
    def tile_registers(self) -> int:
        """Vector registers that a register tile and what it is computed from may take.

        x86 multiplies by what is in memory. On ARM each factor goes through a register, and LLVM loads two ahead: with
        tiles that leave none for them it moved sums from register to register, 38 times for 28 multiply-adds.
        """
        return self.vector_registers - (2 if self.machine == "aarch64" else 0)

    @functools.cached_property
    def _per_cycle(self) -> tuple[float, float, float]:
        return per_cycle(self.mcpu, self.vector_bytes)

    @property
    def fmas_per_cycle(self) -> float:
        """Vectors that a core multiplies and adds in a cycle."""
        return self._per_cycle[0]

    @property
    def loads_per_cycle(self) -> float:
        """Vectors that a core loads in a cycle from its first cache."""
        return self._per_cycle[1]

    @property
    def stores_per_cycle(self) -> float:
        """Vectors that a core stores in a cycle to its first cache."""
        return self._per_cycle[2]

    @property
    def spreads_apart(self) -> bool:
        """Whether spreading an element over a vector takes a unit that could have multiplied.

        x86 does it as it loads, NEON as it multiplies. LLVM's code for SVE of fixed length has a `mov` for it.
        """
        return bool(self._llvm_options)

    @property
    def description(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.model}, {threads}" + ("" if self.name == self.model else f" ({self.name})")

    def facts(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "family": self.family,
            "model": self.model,
            "mcpu": self.mcpu,
            "features": list(self.features),
            "vector_bytes": self.vector_bytes,
            "threads": self.threads,
            "fingerprint": self.fingerprint,
        }

    def to_tvm(self) -> Any:
        """The tvm.target.Target that generates code for this machine.

        Raises:
            TargetError: LLVM does not know the mcpu.
        """
        import tvm

        self.check_mcpu()
        config: dict[str, Any] = {
            "kind": "llvm",
            "mcpu": self.mcpu,
            "mtriple": self.triple,
            "num-cores": self.threads,
        }
        if self.features:
            config["mattr"] = list(self.features)
        if self._llvm_options:
            config["cl-opt"] = list(self._llvm_options)
        return tvm.target.Target(config)

    def check_mcpu(self) -> None:
        """Raises TargetError where LLVM does not know the mcpu: TVM 0.27 prints an error and goes on with generic code.

        Imports TVM, which takes a second.
        """
        if self.mcpu not in _llvm_cpus(self.triple):
            raise TargetError(f"target {self.name!r}: LLVM knows no CPU {self.mcpu!r} for {self.triple}")

    def why_not_here(self) -> str:
        return current().why_not(self.model, self.machine, self.required_features)

    def distance(self, facts: Mapping[str, Any]) -> float:
        """In threads; a schedule's tiles suit machines of the family with as wide vectors."""
        if facts["family"] != self.family or facts["vector_bytes"] != self.vector_bytes:
            return math.inf
        return abs(int(facts["threads"]) - self.threads)

    def _identity(self) -> Sequence[object]:
        # processor, code generation, threads
        return [self.family, self.model, self.mcpu, self.features, self.threads, *self._llvm_options]

    @property
    def _llvm_options(self) -> tuple[str, ...]:
        """Without them, LLVM makes each vector of more than NEON's 16 bytes of several, though SVE has such."""
        if self.machine == "aarch64" and self.vector_bytes > 16:
            bits = 8 * self.vector_bytes
            # with the least length alone LLVM computes the address of nearly every vector by itself
            return (f"-aarch64-sve-vector-bits-min:int={bits}", f"-aarch64-sve-vector-bits-max:int={bits}")
        return ()


@functools.cache
def _llvm_cpus(triple: str) -> frozenset[str]:
    import tvm

    list_cpus = tvm.get_global_func("target.llvm_get_cpu_archlist")
    return frozenset(map(str, list_cpus(tvm.target.Target({"kind": "llvm", "mtriple": triple}))))
