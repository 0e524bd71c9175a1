"""What a kernel's blocks have to do, and how long a GPU takes for it: the model by which GPU spaces order schedules.

A rough one, on counts that a space makes from its knobs alone; `convtune.cuda` estimates what was compiled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from convtune.schedules.tiling import ceil_div

from convtune.targets.gpu import WARP, GpuTarget

SCHEDULERS = 4  # of an SM; each issues one instruction a cycle
L2_BYTES_PER_CYCLE = 48  # that one SM gets of the second cache
LATENCY_CYCLES = 400  # from asking for global memory to having it
DEPENDENT_CYCLES = 1.3  # between two instructions of one warp, on average: some need what the one before made
BLOCK_CYCLES = 40  # that an SM takes to start a block
LAUNCH_CYCLES = 3000


@dataclass(frozen=True)
class Work:
    """The blocks of a kernel, and what each of them does.

    registers: of a thread. fmas, instructions: of a thread, the latter besides the former. wavefronts: of a warp, 128
    bytes each. waits: how often a thread waits for memory before it can go on. l2_bytes: that a block moves.
    dram_bytes: of the whole kernel.
    """

    blocks: int
    threads: int
    registers: int
    shared_bytes: int
    fmas: float
    instructions: float
    wavefronts: float
    waits: float
    l2_bytes: float
    dram_bytes: float


def cycles(work: Work, target: GpuTarget) -> float:
    """Cycles of an SM that the kernel takes, one wave of blocks after the other."""
    resident = max(1, target.resident_blocks(work.threads, work.registers, work.shared_bytes))
    waves, rest = divmod(ceil_div(work.blocks, target.sms), resident)
    busy = waves * _wave(work, target, resident) + (_wave(work, target, rest) if rest else 0)
    moving = work.dram_bytes * target.clock_mhz / (1e3 * target.dram_gbs)
    return LAUNCH_CYCLES + max(busy, moving) + min(busy, moving) / 3  # the one hides most of the other


def _wave(work: Work, target: GpuTarget, blocks: int) -> float:
    """Cycles for some blocks at once on an SM: what it is busy with, or one block that waits again and again."""
    warps, issued = ceil_div(work.threads, WARP), work.fmas + work.instructions
    computing = [warps * work.fmas * WARP / target.fp32_lanes, warps * issued / SCHEDULERS, warps * work.wavefronts]
    limits = [blocks * busy for busy in (*computing, work.l2_bytes / L2_BYTES_PER_CYCLE)]
    # a block's warps wait at its barriers for the slowest of them: none computes while the memory answers
    limits.append(max(*computing, issued * DEPENDENT_CYCLES) + work.waits * LATENCY_CYCLES)
    largest = max(limits)
    together = largest * math.pow(sum((limit / largest) ** 4 for limit in limits), 1 / 4)  # they overlap, not wholly
    return blocks * BLOCK_CYCLES + together
