"""A coarse model of a register-tile schedule's time, in cycles: enough to choose a default, never shown as a time; and
of its rounding error.

It knows the FMA and load ports, from which cache each operand streams, and how evenly tasks fill the threads. The
constants are those of recent x86 and ARM server cores; what differs between machines, how many vectors a core does in a
cycle too, comes from the target. A constant's comment names what was measured and on what, in the spaces' own
estimates too. Of those without no measurement of their own is recorded: they came with a space, whose defaults were
compared with other kernels in turn, of the first ones on two cores of a Zen 5. scripts/quality.py says how near to the
tuned ones defaults are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune.schedules.tiling import LINE_BYTES, ceil_div

from convtune import accuracy
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

FMA_LATENCY = 4.0  # of Zen 3 to 5, of Skylake and later, of Neoverse N1: their optimization guides, uops.info
LOADED_SHARE = 0.9  # of the loads that a core could do, less the conflicts of unaligned and broadcast ones
# Of a core with two units. The estimate of planes (depthwise_planes) takes these for any core: rows wait for their data
# first. On Zen 4 with 512 bits, of one unit, their defaults by what it has were 0.6 to 1.25 times as fast as by these.
FMAS_PER_CYCLE = 2.0
LOADS_PER_CYCLE = 1.8
FEWEST_SUMS = 8  # that keep two units busy for FMA_LATENCY cycles
# Of one core while others read too. Two cores of a Zen 4 read a plain stream from the third cache at 24 each, 175 GB/s,
# and from memory at 4.7, 34 GB/s (docs/performance.md); of the second cache nothing is recorded.
L2_BYTES_PER_CYCLE = 32.0
L3_BYTES_PER_CYCLE = 10.0
MEMORY_BYTES_PER_CYCLE = 4.0
WRITTEN_BYTES_PER_CYCLE = 4.0  # to memory, of one core: each line is read first
# A read or write of few lines side by side, a page from the next ones, which nothing fetches ahead. With such lines of
# four units a task, side by side, a filtered grouped layer of 512 channels at 14x14 took 37.7 us, and 48.6 with one.
RUN_CYCLES = 6.0
HELD_SHARE = 0.75  # of a second cache, by one working set: code, stacks and what comes next have the rest
# Columns or positions of a tile that prefetchers follow. On a Zen 5 a product of 64 to 64 channels at 200x336, whose
# input comes from memory, took 2.6 ms on one thread with 6 and 3.7 with 14; 512 to 27 channels at 50x84 with
# stride 2 took 0.70 ms with 7 and 1.12 with 14.
STREAMS = 8
LONG_RUN_BYTES = 256  # lines side by side that are fetched ahead; of shorter runs half as much is written
HIDDEN_LINES = 16  # that a register tile stores to memory beside the next one's multiply-adds: see burst_cycles
TILE_CYCLES = 20.0  # loop and address arithmetic
TASK_CYCLES = 300.0
# To have other threads take part; a task alone is run without. On 1 x 1 images two threads took 0.2 to 1.2 us where one
# takes 0.01 to 0.2 (Zen 5); of the candidates recorded of 498 layers the one estimated best reached 0.900 of the best
# with it and 0.861 without, and 500 to 1500 cycles were alike.
LAUNCH_CYCLES = 700.0
EXPOSED_SHARE = 0.05  # of the time in which inputs arrive while others are multiplied: the rest is hidden
# One more parallel region, of which threads wait for the last one and read what others wrote. An empty one takes 600
# cycles on one die of a Zen 5 and 2500 on two (docs/performance-zen5.md).
BARRIER_CYCLES = 4000.0
# Of an element that is read or written by itself. In channel_lanes depthwise 3x3 of 144 channels at 56x56 took 257 us
# channels first and 92 channels last, on one core of a Zen 5: 0.7 cycles more of each.
TRANSPOSE_CYCLES = 1.0
UNIT_ROUNDOFF = 2.0**-24  # of float32


def fma_cycles(target: CpuTarget, fmas: float) -> float:
    """Multiply-adds of vectors, or what else takes their units."""
    return fmas / target.fmas_per_cycle


def load_cycles(target: CpuTarget, loads: float) -> float:
    """Loads of vectors, or of elements that are spread over one."""
    return loads / (LOADED_SHARE * target.loads_per_cycle)


def store_cycles(target: CpuTarget, stores: float) -> float:
    """Stores of vectors."""
    return stores / target.stores_per_cycle


def waiting_factor(target: CpuTarget, sums: int) -> float:
    """How much longer FMAs take where so few sums are added to in turn that each waits for the one before."""
    return max(1.0, FMA_LATENCY * target.fmas_per_cycle / sums)


def step_cycles(target: CpuTarget, sums: int, loads: int) -> float:
    """One step of the reduction: `sums` FMAs of vectors that need `loads` loads."""
    return max(fma_cycles(target, sums), FMA_LATENCY, load_cycles(target, loads))


def tile_step_cycles(target: CpuTarget, columns: int, vectors: int) -> float:
    """One step of a register tile of columns x vectors, each column's input spread over a vector's lanes."""
    spreading = columns if target.spreads_apart else 0
    return step_cycles(target, columns * vectors + spreading, columns + vectors)


def stream_cycles(target: CpuTarget, size_bytes: float, resident_bytes: float) -> float:
    """Reading `size_bytes` that are part of a working set of `resident_bytes`, from the cache that holds the set."""
    if resident_bytes <= target.l1d_bytes / 2:
        return 0.0
    if resident_bytes <= target.l2_bytes * HELD_SHARE:
        return size_bytes / L2_BYTES_PER_CYCLE
    return size_bytes / (L3_BYTES_PER_CYCLE if resident_bytes <= target.l3_bytes / 2 else MEMORY_BYTES_PER_CYCLE)


def moved_bytes(spec: ConvSpec) -> int:
    """Of the input and the output, which a call reads and writes."""
    return 4 * (count(spec.in_shape) + count(spec.out_shape))


def rounding_error(spec: ConvSpec, amplification: float, terms: int) -> float:
    """max |y - reference| / max |reference| to expect of sums of so many products, of independent operands of equal
    variance: that of direct sums, which grows with the square root of their length, amplified."""
    return UNIT_ROUNDOFF * amplification * (2.0 + 0.4 * math.sqrt(terms)) * accuracy.magnification(spec)


def second_caches_hold(target: CpuTarget, size_bytes: float) -> bool:
    """Whether a tensor stays in the second caches of all cores, beside as much again."""
    return size_bytes <= target.l2_bytes * target.threads / 2


def stays_cached(target: CpuTarget, moved_bytes: float) -> bool:
    """Whether what a call reads and writes is still in the second caches of all cores when the next one comes."""
    return moved_bytes <= target.l2_bytes * target.threads * HELD_SHARE


def write_cycles(target: CpuTarget, size_bytes: float, run_bytes: float, whole_bytes: float) -> float:
    """Writing `size_bytes` in pieces of `run_bytes` to a tensor of `whole_bytes`; nothing where caches hold it."""
    if second_caches_hold(target, whole_bytes):
        return 0.0
    cycles = size_bytes / WRITTEN_BYTES_PER_CYCLE * (1 if run_bytes >= LONG_RUN_BYTES else 2)
    return cycles / 2 if whole_bytes <= target.l3_bytes / 2 else cycles


def burst_cycles(target: CpuTarget, lines: int, whole_bytes: float) -> float:
    """What a register tile waits for the lines that it stores at once, to a tensor of `whole_bytes` in memory.

    On two cores of a Zen 4 unet_572/up128, with an output of 39 MB, took 15.6 ms in tiles of 28 lines and 13.7 to 14.0
    in ones of 14.
    """
    if whole_bytes <= target.l3_bytes / 2:
        return 0.0
    return max(0, lines - HIDDEN_LINES) * LINE_BYTES / WRITTEN_BYTES_PER_CYCLE


def transpose_cycles(spec: ConvSpec, elements: int) -> float:
    """Moving elements between a channels-first tensor and vectors of channels; nothing where channels are last."""
    return 0.0 if spec.channels_last else TRANSPOSE_CYCLES * elements


def padding_cycles(spec: ConvSpec, target: CpuTarget) -> float:
    """Copying the whole input with its padding, by all threads, before anything else."""
    return count(spec.in_shape) * 8 / L3_BYTES_PER_CYCLE / target.threads + BARRIER_CYCLES


def overlapped(compute: float, stream: float) -> float:
    """Compute and streaming side by side: the longer one, and a share of the other that does not hide."""
    return max(compute, stream) + 0.15 * min(compute, stream)


@dataclass(frozen=True)
class Tasks:
    """A parallel loop: how many tasks, and cycles of one."""

    count: int
    cycles: float

    def on(self, target: CpuTarget) -> float:
        launch = LAUNCH_CYCLES if min(self.count, target.threads) > 1 else 0.0
        return launch + ceil_div(self.count, target.threads) * (self.cycles + TASK_CYCLES)
