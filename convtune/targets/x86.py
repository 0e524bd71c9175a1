"""The x86-64 family: named CPUs, and how the one at hand is recognised."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from convtune.errors import TargetError
from convtune.targets.cpu import CpuTarget
from convtune.targets.cpu_family import MIB, Code, Cpu, CpuFamily, table
from convtune.targets.host import Host

SAME_NAMES = (
    "ssse3 cx16 popcnt avx avx2 fma f16c bmi2 movbe gfni sse4a cmpccxadd "
    "avx512f avx512cd avx512dq avx512bw avx512vl avx512ifma avx512vbmi"
)
CPUINFO_NAMES: Mapping[str, str] = {name: name for name in SAME_NAMES.split()} | {
    "sse3": "pni",
    "sahf": "lahf_lm",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "bmi": "bmi1",
    "lzcnt": "abm",
    "prfchw": "3dnowprefetch",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vnni": "avx512_vnni",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "avxvnni": "avx_vnni",
    "avxifma": "avx_ifma",
    "avxneconvert": "avx_ne_convert",
    "avxvnniint8": "avx_vnni_int8",
    "avxvnniint16": "avx_vnni_int16",
}
"""LLVM's feature name to that of /proc/cpuinfo, for every feature that LLVM may use without being told by an
intrinsic. What only an intrinsic or the kernel uses (aes, sha, amx, xsave, rdrand, …) is left out."""


@dataclass(frozen=True)
class X86Cpu(Cpu):
    """vendor, family, models: as in /proc/cpuinfo; empty where no processor is meant."""

    vendor: str = ""
    family: int = 0
    models: Sequence[int] = ()


AVX512 = "avx512f avx512cd avx512dq avx512bw avx512vl"
AVX512_2019 = "avx512vbmi avx512ifma avx512vbmi2 avx512bitalg avx512vpopcntdq gfni"
AVX_2023 = "avxifma avxneconvert avxvnniint8 cmpccxadd"
SPR_ADDS = "avx512bf16 avx512fp16 avxvnni"
ZEN4_ADDS = f"{AVX512} {AVX512_2019} avx512vnni avx512bf16"
INTEL, AMD, HYGON = "GenuineIntel", "AuthenticAMD", "HygonGenuine"
ZEN2_MODELS = (*range(0x30, 0x50), *range(0x60, 0x80), *range(0x84, 0x88), *range(0x90, 0xB0))
ZEN3_MODELS = (*range(0x10), *range(0x20, 0x60))
ZEN4_MODELS = (*range(0x10, 0x20), *range(0x60, 0xB0))

CPUS = table(
    X86Cpu("x86-64", "", "", 32, 256, 2 * MIB),
    X86Cpu("x86-64-v2", "x86-64", "sse3 ssse3 sse4.1 sse4.2 popcnt cx16 sahf", 32, 256, 2 * MIB),
    X86Cpu("x86-64-v3", "x86-64-v2", "avx avx2 fma f16c bmi bmi2 lzcnt movbe", 32, 256, 8 * MIB),
    X86Cpu("x86-64-v4", "x86-64-v3", AVX512, 32, 1024, 16 * MIB),
    X86Cpu("sandybridge", "x86-64-v2", "avx", 32, 256, 8 * MIB, INTEL, 6, (0x2A, 0x2D)),
    X86Cpu("ivybridge", "sandybridge", "f16c", 32, 256, 8 * MIB, INTEL, 6, (0x3A, 0x3E)),
    X86Cpu("haswell", "x86-64-v3", "", 32, 256, 8 * MIB, INTEL, 6, (0x3C, 0x3F, 0x45, 0x46)),
    X86Cpu("broadwell", "haswell", "prfchw", 32, 256, 16 * MIB, INTEL, 6, (0x3D, 0x47, 0x4F, 0x56)),
    X86Cpu("skylake", "broadwell", "", 32, 256, 8 * MIB, INTEL, 6, (0x4E, 0x5E, 0x8E, 0x9E, 0xA5, 0xA6)),
    X86Cpu("alderlake", "skylake", "gfni avxvnni", 48, 1280, 24 * MIB, INTEL, 6, (0x97, 0x9A)),
    X86Cpu("gracemont", "alderlake", "", 32, 2 * MIB, 6 * MIB, INTEL, 6, (0xBE,)),
    X86Cpu("raptorlake", "alderlake", "", 48, 2 * MIB, 30 * MIB, INTEL, 6, (0xB7, 0xBA, 0xBF)),
    X86Cpu("meteorlake", "alderlake", "", 48, 2 * MIB, 24 * MIB, INTEL, 6, (0xAA, 0xAC)),
    X86Cpu("sierraforest", "alderlake", AVX_2023, 32, 1024, 96 * MIB, INTEL, 6, (0xAF,)),
    X86Cpu("arrowlake", "sierraforest", "", 48, 3 * MIB, 24 * MIB, INTEL, 6, (0xB5, 0xC5)),
    X86Cpu("arrowlake-s", "arrowlake", "avxvnniint16", 48, 3 * MIB, 36 * MIB, INTEL, 6, (0xC6,)),
    X86Cpu("lunarlake", "arrowlake-s", "", 48, 2560, 12 * MIB, INTEL, 6, (0xBD,)),
    X86Cpu("pantherlake", "arrowlake-s", "", 48, 3 * MIB, 18 * MIB, INTEL, 6, (0xCC,)),
    X86Cpu("clearwaterforest", "arrowlake-s", "", 32, 1024, 96 * MIB, INTEL, 6, (0xDD,)),
    X86Cpu("skylake-avx512", "x86-64-v4", "prfchw", 32, 1024, 24 * MIB, INTEL, 6, (0x55,)),
    X86Cpu("cascadelake", "skylake-avx512", "avx512vnni", 32, 1024, 32 * MIB, INTEL, 6, (0x55,)),
    X86Cpu("cooperlake", "cascadelake", "avx512bf16", 32, 1024, 38 * MIB, INTEL, 6, (0x55,)),
    X86Cpu("icelake-client", "cascadelake", AVX512_2019, 48, 512, 8 * MIB, INTEL, 6, (0x7D, 0x7E, 0x9D)),
    X86Cpu("tigerlake", "icelake-client", "", 48, 1280, 12 * MIB, INTEL, 6, (0x8C, 0x8D)),
    X86Cpu("rocketlake", "icelake-client", "", 48, 512, 16 * MIB, INTEL, 6, (0xA7,)),
    X86Cpu("icelake-server", "icelake-client", "", 48, 1280, 48 * MIB, INTEL, 6, (0x6A, 0x6C)),
    X86Cpu("sapphirerapids", "icelake-server", SPR_ADDS, 48, 2 * MIB, 105 * MIB, INTEL, 6, (0x8F,)),
    X86Cpu("emeraldrapids", "sapphirerapids", "", 48, 2 * MIB, 320 * MIB, INTEL, 6, (0xCF,)),
    X86Cpu("graniterapids", "sapphirerapids", "", 48, 2 * MIB, 432 * MIB, INTEL, 6, (0xAD, 0xAE)),
    X86Cpu("znver1", "x86-64-v3", "prfchw sse4a", 32, 512, 8 * MIB, AMD, 0x17, range(0x30)),
    X86Cpu("znver2", "znver1", "", 32, 512, 16 * MIB, AMD, 0x17, ZEN2_MODELS),
    X86Cpu("znver3", "znver2", "", 32, 512, 32 * MIB, AMD, 0x19, ZEN3_MODELS),
    X86Cpu("znver4", "znver3", ZEN4_ADDS, 32, 1024, 32 * MIB, AMD, 0x19, ZEN4_MODELS),
    X86Cpu("znver5", "znver4", "avxvnni", 48, 1024, 32 * MIB, AMD, 0x1A, range(0x78)),
)  # fmt: skip

LEVELS = ("x86-64-v4", "x86-64-v3", "x86-64-v2", "x86-64")


class X86(CpuFamily):
    """x86-64 processors from any vendor."""

    name = "x86"
    machines = ("x86_64",)
    cpus = CPUS

    def native(self, host: Host, threads: int | None) -> CpuTarget:
        if host.machine not in self.machines:
            raise TargetError(
                f"target 'x86': this machine is {host.machine}; name the CPU to compile for: {', '.join(LEVELS)}, …"
            )
        if not host.flags:
            raise TargetError(
                "target 'native': no /proc/cpuinfo tells this CPU's features; name the CPU, for example x86-64-v3"
            )
        cpu = recognise(host)
        present = frozenset(name for name, flag in CPUINFO_NAMES.items() if flag in host.flags)
        features = [f"+{name}" for name in present - cpu.features] + [f"-{name}" for name in cpu.features - present]
        return self.target("native", cpu, _code(cpu, present, sorted(features)), host, threads)

    def named(self, name: str, host: Host, threads: int | None) -> CpuTarget:
        cpu = CPUS[name]
        return self.target(name, cpu, _code(cpu, cpu.features, []), host, threads)


FAMILY = X86()


def recognise(host: Host) -> X86Cpu:
    """The table's entry for the host: by vendor, family and model, else the highest level that its flags reach."""
    vendor = AMD if host.vendor == HYGON else host.vendor
    family = 0x17 if host.vendor == HYGON else host.family
    same_ids = [c for c in CPUS.values() if c.vendor == vendor and c.family == family and host.model in c.models]
    for cpu in sorted(same_ids, key=lambda c: len(c.features), reverse=True):
        if _flags(cpu.features) <= host.flags:
            return cpu
    if same_ids:  # a hypervisor hides some flags
        return same_ids[0]
    return next(CPUS[level] for level in LEVELS if _flags(CPUS[level].features) <= host.flags)


def _flags(features: Iterable[str]) -> frozenset[str]:
    return frozenset(CPUINFO_NAMES[name] for name in features)


def _code(cpu: X86Cpu, has: frozenset[str], features: list[str]) -> Code:
    """With LLVM features `has`, which are those of `cpu` changed by `features`."""
    wide = "avx512f" in has
    # For Intel's CPUs LLVM vectorises plain loops with half vectors; AMD's do not have this feature there.
    tuning = ["-prefer-256-bit"] if wide and cpu.vendor != AMD else []
    return Code(
        mcpu=cpu.name,
        features=[*features, *tuning],
        required=_flags(has),
        vector_bytes=64 if wide else 32 if "avx" in has else 16,
        vector_registers=32 if wide else 16,
    )
