"""What a core's vector units do in a cycle, where that is less than usual, by LLVM's name of the CPU."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Units:
    """Bytes of vectors that a core multiplies and adds, loads, and stores in a cycle, however wide the vectors are."""

    multiplied: int
    loaded: int
    stored: int


# Zen 4: AMD's Software Optimization Guide (57647), and measured: a 512-bit vector passes the units of Zen 3 twice.
# Intel's client cores: the Optimization Reference Manual and uops.info: of 512 bits port 0 alone multiplies.
# Cortex-A53 and A55: Arm's Software Optimization Guide of the A55: 128 bits are multiplied in a cycle, loaded in two.
_ZEN4 = Units(64, 64, 32)
_INTEL_CLIENT = Units(64, 128, 64)
_IN_ORDER = Units(16, 8, 16)

UNITS: Mapping[str, Units] = {
    "znver4": _ZEN4,
    "icelake-client": _INTEL_CLIENT,
    "tigerlake": _INTEL_CLIENT,
    "rocketlake": _INTEL_CLIENT,
    "cortex-a53": _IN_ORDER,
    "cortex-a55": _IN_ORDER,
}
"""Others, and CPUs that are not known, multiply and load two of their widest vectors in a cycle and store one."""


def per_cycle(mcpu: str, vector_bytes: int) -> tuple[float, float, float]:
    """Vectors that are multiplied and added, loaded, and stored in a cycle: two, two and one at most."""
    units = UNITS.get(mcpu)
    if units is None:
        return 2.0, 2.0, 1.0
    return (
        min(2.0, units.multiplied / vector_bytes),
        min(2.0, units.loaded / vector_bytes),
        min(1.0, units.stored / vector_bytes),
    )
