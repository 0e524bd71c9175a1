"""The 64-bit ARM family: named CPUs, and how the one at hand is recognised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from convtune.errors import TargetError
from convtune.targets.cpu import CpuTarget
from convtune.targets.cpu_family import MIB, Code, Cpu, CpuFamily, table
from convtune.targets.host import Host

CPUINFO_NAMES: Mapping[str, tuple[str, ...]] = {
    "fp-armv8": ("fp",),
    "neon": ("asimd",),
    "lse": ("atomics",),
    "rdm": ("asimdrdm",),
    "fullfp16": ("fphp", "asimdhp"),
    "dotprod": ("asimddp",),
    "rcpc": ("lrcpc",),
    "rcpc-immo": ("ilrcpc",),
    "complxnum": ("fcma",),
    "fp16fml": ("asimdfhm",),
    "flagm": ("flagm",),
    "lse2": ("uscat",),
    "sha3": ("sha3",),
    "i8mm": ("i8mm",),
    "bf16": ("bf16",),
    "sve": ("sve",),
    "sve2": ("sve2",),
    "sve-bitperm": ("svebitperm",),
}
"""LLVM's feature name to those of /proc/cpuinfo, for every feature that LLVM may use without being told by an
intrinsic. What only an intrinsic, the kernel or a hint uses (aes, jsconv, mte, pauth, …) is left out."""

NEON_BYTES = 16
SVE_LENGTHS = (32, 64, 128, 256)
"""Bytes of SVE's vectors where they are longer than NEON's."""

STAND_IN = "neoverse-n1"
"""What `arm` means on a machine that is none."""


@dataclass(frozen=True)
class ArmCpu(Cpu):
    """mcpu: LLVM's name, where that is another one."""

    mcpu: str = ""
    vector_bytes: int = NEON_BYTES


ARMV8_4 = "rcpc-immo complxnum fp16fml flagm lse2"
ARMV9 = "sve sve2 sve-bitperm i8mm bf16"

# Sizes: Arm's technical reference manuals, of what they leave to the maker those of the chip named. The A53 is that of
# a Raspberry Pi 3, the A55 and the A76 of an RK3588, the A57 of a Jetson TX1, the A72 of a Raspberry Pi 4, the A78AE of
# a Jetson AGX Orin, N1, V1 and V2 of Graviton 2 to 4, the N2 of a Yitian 710.
CPUS = table(
    ArmCpu("armv8-a", "", "fp-armv8 neon", 32, 256, 0, "generic"),
    ArmCpu("armv8.2-a", "armv8-a", "lse rdm", 64, 512, 2 * MIB, "generic"),
    ArmCpu("cortex-a53", "armv8-a", "", 32, 128, 0),
    ArmCpu("cortex-a57", "armv8-a", "", 32, 512, 0),
    ArmCpu("cortex-a72", "armv8-a", "", 32, 256, 0),
    ArmCpu("cortex-a55", "armv8.2-a", "fullfp16 dotprod rcpc", 32, 128, 3 * MIB),
    ArmCpu("cortex-a76", "cortex-a55", "", 64, 512, 3 * MIB),
    ArmCpu("cortex-a78ae", "cortex-a76", "", 64, 256, 2 * MIB),
    ArmCpu("neoverse-n1", "cortex-a76", "", 64, 1024, 32 * MIB),
    ArmCpu("neoverse-n2", "neoverse-n1", f"{ARMV8_4} {ARMV9}", 64, 1024, 64 * MIB),
    ArmCpu("neoverse-v1", "neoverse-n1", f"{ARMV8_4} sha3 sve i8mm bf16", 64, 1024, 32 * MIB, vector_bytes=32),
    ArmCpu("neoverse-v1-neon", "neoverse-v1", "", 64, 1024, 32 * MIB, "neoverse-v1"),
    ArmCpu("neoverse-v2", "neoverse-n2", "", 64, 2 * MIB, 36 * MIB),
    ArmCpu("apple-m1", "cortex-a76", f"{ARMV8_4} sha3", 128, 3 * MIB, 8 * MIB, "apple-a14"),
)  # fmt: skip

LEVELS = ("armv8.2-a", "armv8-a")


class Arm(CpuFamily):
    """64-bit ARM processors from any maker."""

    name = "arm"
    aliases = ("arm64", "aarch64")
    machines = ("aarch64",)
    cpus = CPUS

    def native(self, host: Host, threads: int | None) -> CpuTarget:
        if host.machine not in self.machines:
            target = self.named(STAND_IN, host, threads)
            notice = (
                f"target 'arm': this machine is {host.machine}, so {STAND_IN} is meant; name another: {_examples()}"
            )
            return replace(target, notice=notice)
        if not host.flags:
            raise TargetError(
                f"target 'native': nothing here tells this CPU's features; name the CPU, for example {LEVELS[0]}"
            )
        cpu = recognise(host)
        present = frozenset(name for name, flags in CPUINFO_NAMES.items() if host.flags >= set(flags))
        vector_bytes = next((length for length in SVE_LENGTHS if f"sve{8 * length}" in host.flags), NEON_BYTES)
        return self.target("native", cpu, _code(cpu, present, vector_bytes), host, threads)

    def named(self, name: str, host: Host, threads: int | None) -> CpuTarget:
        cpu = CPUS[name]
        return self.target(name, cpu, _code(cpu, cpu.features, cpu.vector_bytes), host, threads)

    def target(self, name: str, cpu: Cpu, code: Code, host: Host, threads: int | None) -> CpuTarget:
        target = super().target(name, cpu, code, host, threads)
        # a machine that tells of its L2 has no L3 of which it tells nothing
        return replace(target, l3_bytes=host.l3_bytes) if target.is_host and host.l2_bytes else target


FAMILY = Arm()


def recognise(host: Host) -> ArmCpu:
    """The table's entry for the host: by its maker's numbers, else the highest level that its flags reach."""
    if host.model_name in CPUS:
        return CPUS[host.model_name]
    return next((CPUS[level] for level in LEVELS if _flags(CPUS[level].features) <= host.flags), CPUS[LEVELS[-1]])


def _flags(features: Iterable[str]) -> frozenset[str]:
    return frozenset(flag for name in features for flag in CPUINFO_NAMES[name])


def _examples() -> str:
    return ", ".join(name for name in CPUS if name != STAND_IN)


def _code(cpu: ArmCpu, has: frozenset[str], vector_bytes: int) -> Code:
    """With LLVM features `has`, of a CPU that LLVM takes to have those of `cpu`."""
    known = CPUS["armv8-a"].features if cpu.mcpu == "generic" else cpu.features
    length = {f"sve{8 * vector_bytes}"} if vector_bytes > NEON_BYTES else set()
    return Code(
        mcpu=cpu.mcpu or cpu.name,
        features=sorted([f"+{name}" for name in has - known] + [f"-{name}" for name in known - has]),
        required=_flags(has) | length,
        vector_bytes=vector_bytes,
        vector_registers=32,
    )
