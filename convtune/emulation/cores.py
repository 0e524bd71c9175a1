"""What processor cores do in a cycle at most, as their makers and those who measured them publish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convtune.targets.cpu import CpuTarget


@dataclass(frozen=True)
class Core:
    """Of one cycle. issued: instructions decoded. vector: arithmetic and shuffles of vectors. loads, stores: of them.

    l2_bytes, l3_bytes, memory_bytes: that come into L1 from L2, into L2 from L3, from memory, to a core by itself.
    """

    issued: float
    vector: float
    loads: float
    stores: float
    l2_bytes: float
    l3_bytes: float
    memory_bytes: float


# Instructions: Arm's Software Optimization Guides (Cortex-A53 and A55: two in a row, one 128-bit result; A57 and A72:
# three, two 64-bit halves of NEON's, one load and one store; A76, A78 and Neoverse N1: four, two NEON pipes, two loads;
# Neoverse V1, V2 and N2: eight, or five, four or two pipes); Apple M1: D. Johnson's measurements; x86-64: A. Fog's
# tables and uops.info, of what all cores since Haswell and Zen have. Bytes: the same guides for L2; for L3 and memory
# what one core gets on a usual board, as chipsandcheese.com and STREAM results have it.
_IN_ORDER = Core(2, 1, 1, 1, 8, 4, 2)
_SMALL = Core(3, 2, 1, 1, 16, 8, 4)
_MIDDLE = Core(4, 2, 2, 1, 32, 16, 6)
_WIDE = Core(8, 4, 3, 2, 32, 16, 8)
_X86 = Core(4, 2, 2, 1, 32, 16, 8)

CORES = {
    "cortex-a53": _IN_ORDER,
    "cortex-a55": _IN_ORDER,
    "cortex-a57": _SMALL,
    "cortex-a72": _SMALL,
    "cortex-a76": _MIDDLE,
    "cortex-a78ae": _MIDDLE,
    "neoverse-n1": _MIDDLE,
    "neoverse-n2": Core(5, 2, 3, 2, 32, 16, 8),
    "neoverse-v1": Core(8, 2, 3, 2, 32, 16, 8),  # its SVE pipes are two of 256 bits
    "neoverse-v2": _WIDE,
    "apple-a14": Core(8, 4, 3, 2, 64, 32, 24),
}
"""By LLVM's name of the processor."""


def core_of(target: CpuTarget) -> Core:
    """The core of a target; where it is no named one, a usual one of its family."""
    return CORES.get(target.mcpu, _MIDDLE if target.family == "arm" else _X86)
