"""Target: the machine compiled for, as the facts that schedules and records need."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.errors import TargetError
from convtune.targets.host import MAX_THREADS

if TYPE_CHECKING:
    from convtune.targets.host import Host


@dataclass(frozen=True)
class Target:
    """A machine. Schedules take every width and size from here and hold no ISA constant of their own.

    name: as given to --target. family: "x86", "arm" or "cuda". model: the processor's name, for people.
    mcpu, triple, features: for LLVM (features as "+avx2", "-sse4a"; empty where mcpu says it all).
    machine: as platform.machine() prints it. required_features: /proc/cpuinfo names without which code must not run.
    vector_bytes, vector_registers: of the widest vectors used. threads: kernels run on so many cores.
    l1d_bytes, l2_bytes: of one core. l3_bytes: of one L3, shared by some cores; 0 where there is none.
    is_host: kernels can be run and timed on this machine.

    Raises:
        TargetError: a field's value is impossible.
    """

    name: str
    family: str
    model: str
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
    is_host: bool

    def __post_init__(self) -> None:
        for field in ("name", "family", "model", "mcpu", "triple", "machine"):
            if not getattr(self, field):
                raise TargetError(f"target {self.name!r}: {field} is empty")
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

    @functools.cached_property
    def fingerprint(self) -> str:
        """Equal for machines on which one kernel's time means the same: processor, code generation, threads."""
        key = [self.family, self.model, self.mcpu, self.features, self.threads]
        return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]

    def facts(self) -> dict[str, Any]:
        """What a record keeps of the target."""
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

        config: dict[str, Any] = {
            "kind": "llvm",
            "mcpu": self.mcpu,
            "mtriple": self.triple,
            "num-cores": self.threads,
        }
        if self.mcpu not in _llvm_cpus(self.triple):
            # TVM 0.27 prints an error here and goes on with generic code.
            raise TargetError(f"target {self.name!r}: LLVM knows no CPU {self.mcpu!r} for {self.triple}")
        if self.features:
            config["mattr"] = list(self.features)
        return tvm.target.Target(config)


@functools.cache
def _llvm_cpus(triple: str) -> frozenset[str]:
    import tvm

    list_cpus = tvm.get_global_func("target.llvm_get_cpu_archlist")
    return frozenset(map(str, list_cpus(tvm.target.Target({"kind": "llvm", "mtriple": triple}))))


class Family(ABC):
    """Processors that one set of facts describes. A family is one file with one instance, found by discovery."""

    name: str
    machines: tuple[str, ...]
    """What platform.machine() prints on hosts of this family."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """The processors that can be named for cross-compiling."""

    @abstractmethod
    def native(self, host: Host, threads: int | None) -> Target:
        """The machine at hand.

        Raises:
            TargetError: the host is of another family, or does not say what it is.
        """

    @abstractmethod
    def named(self, name: str, host: Host, threads: int | None) -> Target:
        """The processor of that name, one of `names()`; runnable here if the host has all it needs."""
