"""Time of a kernel from its counts: the slowest of its limits, latencies hidden by the warps that are resident."""

from __future__ import annotations

import math
from dataclasses import dataclass

from convtune.targets.gpu import WARP, GpuTarget

from . import facts
from .counting import Counted
from .regions import TENSOR_MULTIPLY_ADDS, Counts, Region
from .traffic import Traffic

SCHEDULERS = 4
BARRIER_CLOCKS = 30.0
FLOAT_LATENCY = 4.0
"""Clocks until a dependent float32 instruction: Volta to Hopper alike (arXiv 1804.06826, 2208.11174)."""
SHARPNESS = 4.0
"""Limits near each other add up a little: of two equal ones the time is 2^(1/4) times each."""


@dataclass(frozen=True)
class Rates:
    """Clocks that an SM needs for one warp's unit of each limit."""

    fma: float
    issue: float
    integer: float
    special: float
    tensor: float
    shared: float
    l1: float

    @classmethod
    def of(cls, target: GpuTarget) -> Rates:
        """Of a target."""
        found = facts.of(target)
        return cls(
            fma=WARP / target.fp32_lanes,
            issue=1 / SCHEDULERS,
            integer=WARP / found.integer_lanes,
            special=WARP / found.special_lanes,
            tensor=TENSOR_MULTIPLY_ADDS / target.fp16_tensor_lanes if target.fp16_tensor_lanes else math.inf,
            shared=128 / found.l1_bytes,
            l1=found.request_clocks,
        )

    def clocks(self, counts: Counts) -> dict[str, float]:
        """Clocks that each part of an SM is busy with what was counted."""
        requests = counts.global_loads + counts.global_stores + counts.local_requests
        data = (counts.sectors_loaded + counts.sectors_stored) / 4 + counts.local_requests
        shared = counts.shared_wavefronts * self.shared
        cached = max(requests * self.l1, counts.lines, data * self.shared)
        return {
            "fma": counts.floating * self.fma,
            "issue": counts.instructions * self.issue,
            "integer": counts.integer * self.integer,
            "special": counts.special * self.special,
            "tensor": counts.tensor * self.tensor if counts.tensor else 0.0,
            # one memory, which answers one or the other; named by whoever asks for more
            "shared": shared + cached if shared > cached else 0.0,
            "l1": shared + cached if shared <= cached else 0.0,
        }


@dataclass(frozen=True)
class Wave:
    """Clocks of the blocks that an SM runs at a time. bound: the limit that takes longest."""

    clocks: float
    bound: str


def combined(limits: dict[str, float]) -> float:
    """Of limits that overlap, though not wholly."""
    largest = max(limits.values(), default=0.0)
    if largest == 0.0:
        return 0.0
    return float(largest * sum((value / largest) ** SHARPNESS for value in limits.values()) ** (1 / SHARPNESS))


class Clock:
    """What a kernel takes on one SM."""

    def __init__(self, counted: Counted, traffic: Traffic, blocks: int, target: GpuTarget) -> None:
        self.counted = counted
        self.facts = facts.of(target)
        self.rates = Rates.of(target)
        self.warps = counted.sampler.warps
        loaded = max(traffic.l2_loaded, 1.0)
        far = min(1.0, traffic.dram / (loaded + traffic.l2_stored))
        self.latency = self.facts.l2_latency + far * (self.facts.dram_latency - self.facts.l2_latency)
        self.fill = (traffic.l2_loaded + traffic.l2_stored) / blocks / self.facts.fill_bytes
        self.busy = self.rates.clocks(counted.per_block())
        self.alone = self._alone()

    def wave(self, blocks: int) -> Wave:
        """So many blocks on an SM at a time."""
        limits = {name: clocks * blocks for name, clocks in self.busy.items()}
        limits["l2"] = self.fill * blocks
        limits["latency"] = self.alone
        return Wave(combined(limits), max(limits, key=limits.__getitem__))

    def _alone(self) -> float:
        """One block with the SM to itself: its stretches one after the other, nothing hidden but by its own warps."""
        return sum(region.executions * self._stretch(region) for region in self.counted.regions)

    def _stretch(self, region: Region) -> float:
        """Of all warps of a block. Where no barrier holds them together, one computes while another waits."""
        one = self.rates.clocks(region.counts)
        together = {name: clocks * self.warps for name, clocks in one.items()}
        for name in ("issue", "fma", "tensor"):  # a scheduler has a quarter of the lanes, and a warp has one scheduler
            one[name] *= SCHEDULERS
            together[name] *= SCHEDULERS / min(self.warps, SCHEDULERS)
        busy, chain = max(together.values()), region.chain * FLOAT_LATENCY
        waiting = self._waiting(region)
        if region.frames and not region.frames[-1].has_barrier:
            return max(busy, max(*one.values(), chain) + waiting)
        return max(busy, chain) + waiting

    def _waiting(self, region: Region) -> float:
        clocks = 0.0
        if "global" in region.exposed or region.waits == 0:
            clocks += self.latency
        if "shared" in region.exposed:
            clocks += self.facts.shared_latency
        if region.frames:
            clocks /= region.frames[-1].unroll
        return clocks + region.counts.barriers * BARRIER_CLOCKS
