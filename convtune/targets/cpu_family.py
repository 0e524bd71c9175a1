"""What families of CPUs have in common: a table of the processors that LLVM knows, and targets made from it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from convtune.targets.base import Family
from convtune.targets.cpu import CpuTarget
from convtune.targets.host import Host, choose_threads

CROSS_THREADS = 4
"""Threads of a machine that is not at hand, unless said otherwise."""

MIB = 1024
"""In KiB, as the sizes of a table are."""


@dataclass(frozen=True)
class Cpu:
    """A processor that LLVM knows.

    base: the entry whose features it has too. adds: LLVM features beyond those. Sizes are typical ones, of one core and
    of one L3; where cores share an L2, of a core's share. features: LLVM's names of all that it has, of those that the
    family can tell; `table` fills them in.
    """

    name: str
    base: str
    adds: str
    l1d_kib: int
    l2_kib: int
    l3_kib: int
    features: frozenset[str] = field(default=frozenset(), kw_only=True)


AnyCpu = TypeVar("AnyCpu", bound=Cpu)


def table(*cpus: AnyCpu) -> Mapping[str, AnyCpu]:
    """The processors by name; each stands behind its base."""
    found: dict[str, AnyCpu] = {}
    for cpu in cpus:
        inherited = found[cpu.base].features if cpu.base else frozenset()
        found[cpu.name] = replace(cpu, features=inherited | frozenset(cpu.adds.split()))
    return found


@dataclass(frozen=True)
class Code:
    """What the code of a target may use.

    mcpu, features: for LLVM. required: /proc/cpuinfo names of what it needs. vector_bytes, vector_registers: of the
    widest vectors.
    """

    mcpu: str
    features: Iterable[str]
    required: Iterable[str]
    vector_bytes: int
    vector_registers: int


class CpuFamily(Family):
    """CPUs of one instruction set."""

    machines: tuple[str, ...]
    """What platform.machine() prints on hosts of this family, and a triple begins with."""

    cpus: Mapping[str, Cpu]
    """Its table."""

    def names(self) -> Sequence[str]:
        return tuple(self.cpus)

    @abstractmethod
    def native(self, host: Host, threads: int | None) -> CpuTarget: ...

    @abstractmethod
    def named(self, name: str, host: Host, threads: int | None) -> CpuTarget: ...

    def target(self, name: str, cpu: Cpu, code: Code, host: Host, threads: int | None) -> CpuTarget:
        """Of that name, with the host's sizes where it can run the code and tells them, else those of the table."""
        machine, required = self.machines[0], tuple(sorted(code.required))
        is_host = not host.lacks(machine, required)
        return CpuTarget(
            name=name,
            family=self.name,
            model=host.title if is_host else cpu.name,
            mcpu=code.mcpu,
            triple=f"{machine}-unknown-linux-gnu",
            features=tuple(code.features),
            machine=machine,
            required_features=required,
            vector_bytes=code.vector_bytes,
            vector_registers=code.vector_registers,
            threads=choose_threads(threads, host.cores if is_host else CROSS_THREADS),
            l1d_bytes=(is_host and host.l1d_bytes) or cpu.l1d_kib << 10,
            l2_bytes=(is_host and host.l2_bytes) or cpu.l2_kib << 10,
            l3_bytes=(is_host and host.l3_bytes) or cpu.l3_kib << 10,
            is_host=is_host,
        )
