"""What this machine's CPU can execute, and whether that is enough for a kernel."""

from __future__ import annotations

import ctypes
import functools
import platform
import struct
from collections.abc import Collection
from pathlib import Path

from .errors import KernelError, UnfitCpuError

CPUINFO = Path("/proc/cpuinfo")
AUXV = Path("/proc/self/auxv")
_FEATURE_LINES = {"x86_64": "flags", "aarch64": "Features"}
# Linux's arch/arm64/include/uapi/asm/hwcap.h: the names in /proc/cpuinfo by bit, and by the key in the auxiliary vector
_HWCAP = {
    16: (
        "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma lrcpc dcpop sha3 "
        "sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs sb paca pacg"
    ),
    26: (
        "dcpodp sve2 sveaes svepmull svebitperm svesha3 svesm4 flagm2 frint svei8mm svef32mm svef64mm svebf16 i8mm bf16"
    ),
}
_PR_SVE_GET_VL, _VL_MASK = 51, 0xFFFF


@functools.cache
def features() -> frozenset[str]:
    """The feature names that Linux gives this CPU, such as `avx2` or `asimddp`; raises KernelError without any.

    Where vectors of SVE are longer than 128 bits, their length is one of them, such as `sve256`: code made for one
    length is wrong on any other.
    """
    machine = platform.machine()
    wanted = _FEATURE_LINES.get(machine)
    if wanted is None:
        raise KernelError(f"this machine is {machine}; kernels exist for {', '.join(_FEATURE_LINES)}")
    names = _listed(wanted)
    if names is None and machine == "aarch64":
        names = _auxiliary()  # QEMU's user mode shows the /proc/cpuinfo of the machine that it runs on
    if names is None:
        raise KernelError(f"cannot tell what this CPU supports: {CPUINFO} has no line {wanted!r}")
    return names | frozenset(_length() if machine == "aarch64" and "sve" in names else ())


def _listed(wanted: str) -> frozenset[str] | None:
    try:
        text = CPUINFO.read_text()
    except OSError as error:
        raise KernelError(f"cannot tell what this CPU supports: {error}") from error
    for line in text.splitlines():
        field, _, value = line.partition(":")
        if field.strip() == wanted:
            return frozenset(value.split())
    return None


def _auxiliary() -> frozenset[str] | None:
    if not AUXV.exists():
        return None
    vector = dict(struct.iter_unpack("@LL", AUXV.read_bytes()))
    return frozenset(
        name for key in _HWCAP for bit, name in enumerate(_HWCAP[key].split()) if vector.get(key, 0) >> bit & 1
    )


def _length() -> tuple[str, ...]:
    """The length of this process's vectors as a feature."""
    answer = ctypes.CDLL(None).prctl(_PR_SVE_GET_VL, 0, 0, 0, 0)
    bits = 8 * (answer & _VL_MASK) if answer > 0 else 0
    return (f"sve{bits}",) if bits > 128 else ()


def check(machine: str, required: Collection[str]) -> None:
    """Raises UnfitCpuError unless this is a `machine` with all `required` features: running the kernel would crash."""
    here = platform.machine()
    if machine != here:
        raise UnfitCpuError(f"the kernel was compiled for {machine}; this machine is {here}")
    missing = sorted(set(required) - features()) if required else []
    if missing:
        raise UnfitCpuError(
            f"the kernel needs CPU features {', '.join(sorted(required))}; this CPU lacks {', '.join(missing)}"
        )
