"""Target: the machine compiled for, as the facts that schedules and records need."""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A machine. Schedules take every width and size from here and hold no ISA constant of their own.

    name: as given to --target. family: "x86", "arm" or "cuda". model: the processor's name, for people.
    mcpu, triple, features: for LLVM (features as "+avx2", "-sse4a"; empty where mcpu says it all).
    machine: as platform.machine() prints it. required_features: /proc/cpuinfo names without which code must not run.
    vector_bytes, vector_registers: of the widest vectors used. threads: kernels run on so many cores.
    is_host: kernels can be run and timed on this machine.
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
            "vector_bytes": self.vector_bytes,
            "threads": self.threads,
            "fingerprint": self.fingerprint,
        }

    def to_tvm(self) -> Any:
        """The tvm.target.Target that generates code for this machine."""
        import tvm

        config: dict[str, Any] = {
            "kind": "llvm",
            "mcpu": self.mcpu,
            "mtriple": self.triple,
            "num-cores": self.threads,
        }
        if self.features:
            config["mattr"] = list(self.features)
        return tvm.target.Target(config)
