"""What the machine at hand is: processor, instruction sets, caches and the cores this process may use."""

from __future__ import annotations

import functools
import os
import platform
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from convtune.errors import TargetError
from convtune.runtime.cpu import features

THREADS_VARIABLE = "CONVTUNE_NUM_THREADS"
MAX_THREADS = 1024
"""What runtime.c's pool holds."""

# LLVM's names, from Arm's manuals and Linux's arch/arm64/include/asm/cputype.h. Those of Apple are the fast cores'.
ARM_NAMES: Mapping[tuple[str, int], str] = {
    ("0x41", 0xD03): "cortex-a53",
    ("0x41", 0xD05): "cortex-a55",
    ("0x41", 0xD07): "cortex-a57",
    ("0x41", 0xD08): "cortex-a72",
    ("0x41", 0xD09): "cortex-a73",
    ("0x41", 0xD0A): "cortex-a75",
    ("0x41", 0xD0B): "cortex-a76",
    ("0x41", 0xD0C): "neoverse-n1",
    ("0x41", 0xD0D): "cortex-a77",
    ("0x41", 0xD40): "neoverse-v1",
    ("0x41", 0xD41): "cortex-a78",
    ("0x41", 0xD42): "cortex-a78ae",
    ("0x41", 0xD44): "cortex-x1",
    ("0x41", 0xD49): "neoverse-n2",
    ("0x41", 0xD4F): "neoverse-v2",
    ("0x61", 0x023): "apple-m1",
    ("0x61", 0x025): "apple-m1",
    ("0x61", 0x029): "apple-m1",
}
"""ARM processors by the implementer and the part that /proc/cpuinfo has instead of a name."""


@dataclass(frozen=True)
class Host:
    """Facts read from the operating system; empty or 0 where it does not say.

    machine: as platform.machine() prints it. flags: as /proc/cpuinfo spells them, and `runtime.cpu` its own. vendor,
    model: of ARM the implementer and the part. cpus: the logical CPUs that this process may use, one of each physical
    core before their siblings. cores: the physical ones among them, without slow ones beside fast ones, or fewer if the
    cgroup's quota grants less time. l1d_bytes, l2_bytes: of one core; l3_bytes: of one L3.
    """

    machine: str
    vendor: str
    family: int
    model: int
    model_name: str
    flags: frozenset[str]
    cpus: tuple[int, ...]
    cores: int
    l1d_bytes: int
    l2_bytes: int
    l3_bytes: int

    @property
    def title(self) -> str:
        """The processor's name. Virtual machines may shorten it ("AMD EPYC"), so the numbers stand beside it."""
        if self.machine == "aarch64":
            return f"{self.model_name} (implementer {self.vendor or 'unknown'} part {self.model:#x})"
        return f"{self.model_name} (family {self.family} model {self.model})"

    def lacks(self, machine: str, required_features: Iterable[str]) -> tuple[str, ...]:
        """What code for `machine` that needs these /proc/cpuinfo flags would miss here; empty if it can run."""
        if machine != self.machine:
            return (machine,)
        return tuple(sorted(set(required_features) - self.flags))

    def why_not(self, model: str, machine: str, required_features: Iterable[str]) -> str:
        """Why kernels of a target that is not this machine do not run, or are not timed, here."""
        lacks = self.lacks(machine, required_features)
        return f"this machine lacks {', '.join(lacks)}" if lacks else f"it is {model}, and this machine {self.title}"


NOWHERE = Host("", "", 0, 0, "", frozenset(), (), 0, 0, 0, 0)
"""A machine that runs nothing, for targets that are another one than that at hand."""


@functools.cache
def current() -> Host:
    """The machine at hand, read once."""
    machine = platform.machine()
    host = read(Path("/"), machine, usable_cpus())
    # On ARM some features stand elsewhere than in /proc/cpuinfo.
    return replace(host, flags=features()) if machine == "aarch64" else host


def usable_cpus() -> frozenset[int]:
    """The logical CPUs on which the operating system may run this process."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def read(root: Path, machine: str, cpus: frozenset[int]) -> Host:
    """The host whose /proc and /sys are under `root`, seen by a process that may run on `cpus`."""
    fast = _fast(root, cpus)
    info = _cpuinfo(root / "proc/cpuinfo", None if fast == cpus else min(fast))
    siblings = _siblings(root, cpus)
    caches = _caches(root / f"sys/devices/system/cpu/cpu{min(fast)}/cache", shares=machine == "aarch64")
    arm = machine == "aarch64"
    vendor, model = (info.get(key, "") for key in (("CPU implementer", "CPU part") if arm else ("vendor_id", "model")))
    name = ARM_NAMES.get((vendor, _number(model)), "") if arm else info.get("model name", "")
    return Host(
        machine=machine,
        vendor=vendor,
        family=_number(info.get("cpu family", "")),
        model=_number(model),
        model_name=name or "unknown processor",
        flags=frozenset(info.get("Features" if arm else "flags", "").split()),
        cpus=tuple(sorted(cpus, key=lambda cpu: (cpu not in fast, siblings[cpu].index(cpu), cpu))),
        cores=max(1, min([len({siblings[cpu] for cpu in fast}), *map(int, _cpu_quotas(root))])),
        l1d_bytes=caches.get(("1", "Data"), 0),
        l2_bytes=caches.get(("2", "Unified"), 0),
        l3_bytes=caches.get(("3", "Unified"), 0),
    )


def choose_threads(threads: int | None, default: int) -> int:
    """The number asked for, else that of the environment, else `default`.

    Raises:
        TargetError: a number below 1 or above MAX_THREADS, or an environment variable that is no number.
    """
    if threads is not None:
        if not 1 <= threads <= MAX_THREADS:
            raise TargetError(f"threads is {threads}; allowed: 1 to {MAX_THREADS}")
        return threads
    text = os.environ.get(THREADS_VARIABLE, "")
    if not text:
        return min(default, MAX_THREADS)
    if not text.isdecimal() or not 1 <= int(text) <= MAX_THREADS:
        raise TargetError(f"environment variable {THREADS_VARIABLE} is {text!r}; allowed: 1 to {MAX_THREADS}")
    return int(text)


def _fast(root: Path, cpus: frozenset[int]) -> frozenset[int]:
    """Those of `cpus` with more than half the capacity of the strongest; all where Linux does not tell them apart.

    Work is split evenly, so a slow core makes the fast ones wait: a Cortex-A55 has a third of an A76's capacity.
    """
    capacities = {cpu: root / f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity" for cpu in cpus}
    known = {cpu: int(path.read_text()) for cpu, path in capacities.items() if path.exists()}
    return frozenset(cpu for cpu in cpus if 2 * known[cpu] > max(known.values())) if len(known) == len(cpus) else cpus


def _cpuinfo(path: Path, cpu: int | None) -> dict[str, str]:
    """The entry of a processor, None being the first; the others are not read: on large machines that takes a while."""
    entry: dict[str, str] = {}
    if not path.exists():
        return entry
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            key, colon, value = line.partition(":")
            if colon:
                entry[key.strip()] = value.strip()
            elif cpu is None or _number(entry.get("processor", "")) == cpu:
                break
            else:
                entry.clear()
    return entry


def _number(text: str) -> int:
    if re.fullmatch(r"0x[0-9a-fA-F]+", text):
        return int(text, 16)
    return int(text) if text.isdecimal() else 0  # some architectures print a name


def _caches(folder: Path, shares: bool) -> dict[tuple[str, str], int]:
    """Bytes by (level, type) of one CPU's caches. shares: of an L2 that several use its share."""
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    caches = {}
    for index in sorted(folder.glob("index*")):
        level, kind, size = ((index / name).read_text().strip() for name in ("level", "type", "size"))
        caches[level, kind] = int(size[:-1]) * units[size[-1]] if size[-1:] in units else int(size)
        if shares and level == "2" and (index / "shared_cpu_list").exists():
            caches[level, kind] //= _length((index / "shared_cpu_list").read_text())
    return caches


def _length(cpu_list: str) -> int:
    """How many CPUs there are in a list such as 0-3,8."""
    spans = [[int(cpu) for cpu in part.split("-")] for part in cpu_list.strip().split(",")]
    return sum(span[-1] - span[0] + 1 for span in spans)


def _siblings(root: Path, cpus: frozenset[int]) -> dict[int, tuple[int, ...]]:
    """For each of `cpus` those on the same physical core: they share its FMA units."""
    groups: dict[str, list[int]] = {}
    for cpu in sorted(cpus):
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        groups.setdefault(path.read_text() if path.exists() else str(cpu), []).append(cpu)
    return {cpu: tuple(group) for group in groups.values() for cpu in group}


def _cpu_quotas(root: Path) -> Iterator[float]:
    """CPUs' worth of time that each cgroup of this process grants."""
    membership = root / "proc/self/cgroup"
    for line in membership.read_text().splitlines() if membership.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        group = base / path.lstrip("/")
        # The path may be the host's and not visible here: then only the ancestors count.
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                yield from _quota_of(folder)


def _quota_of(cgroup: Path) -> Iterator[float]:
    version2, version1 = cgroup / "cpu.max", cgroup / "cpu.cfs_quota_us"
    if version2.exists():
        quota, period = version2.read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    elif version1.exists():
        quota_us = int(version1.read_text())
        if quota_us > 0:
            yield quota_us / int((cgroup / "cpu.cfs_period_us").read_text())
