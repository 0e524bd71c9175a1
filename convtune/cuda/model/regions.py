"""Stretches of a kernel between barriers and loop edges: what one execution of each costs a warp."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convtune.lowered import Buffer

from . import accesses
from .values import Value, Values

SERIAL_UNROLL = 4.0
"""What nvcc unrolls loops by where it does not unroll them wholly."""


TENSOR_MULTIPLY_ADDS = 16 * 8 * 16
"""Of one instruction of a warp on the Tensor Cores."""


@dataclass
class Counts:
    """Of one warp: instructions by kind, requests, what the requests cost. Fractions where only some take a branch."""

    fma: float = 0.0
    floating: float = 0.0  # float32 instructions, fused multiply-adds among them
    integer: float = 0.0
    special: float = 0.0  # of the special function units
    tensor: float = 0.0  # products on the Tensor Cores
    global_loads: float = 0.0
    global_stores: float = 0.0
    sectors_loaded: float = 0.0
    sectors_stored: float = 0.0
    lines: float = 0.0  # 128-byte lines of all global requests
    shared_requests: float = 0.0
    shared_wavefronts: float = 0.0
    local_requests: float = 0.0  # to arrays that no registers can hold
    barriers: float = 0.0

    @property
    def instructions(self) -> float:
        """All that a scheduler issues."""
        memory = self.global_loads + self.global_stores + self.shared_requests + self.local_requests
        return self.floating + self.integer + self.special + self.tensor + memory + self.barriers

    def add(self, other: Counts, times: float) -> None:
        """Adds what is executed so many times."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value * times)


@dataclass(frozen=True)
class Frame:
    """A serial loop. level: 1 for an outermost one. trips: on average. executions: of its body, by a warp."""

    level: int
    trips: float
    executions: float
    variable: Value
    extent: int
    has_barrier: bool

    @property
    def unroll(self) -> float:
        """Iterations that nvcc writes one after the other and whose loads it starts together."""
        return 1.0 if self.has_barrier else min(SERIAL_UNROLL, max(1.0, self.trips))


class Group(NamedTuple):
    """Accesses that one address and different constants make, under one condition."""

    kind: str  # "load", "store", or "copy" for what goes past the registers
    buffer: Buffer
    node: int
    mask: int
    alone: bool  # not joined with its neighbours: each has its own condition
    serial: int  # its number where nothing is joined, else 0


class GlobalUse(NamedTuple):
    """Global memory that a group touches: what the caches are asked for."""

    group: Group
    offsets: tuple[int, ...]  # elements
    elements: int  # of each access
    frames: tuple[Frame, ...]
    executions: float
    sectors: float  # of all its requests, of one execution


@dataclass(eq=False)
class Region:
    """One stretch. executions: by a warp. waits: groups of copies under way after its wait, None without one."""

    frames: tuple[Frame, ...]
    executions: float
    taken: float  # share of the warps that were here when it was opened
    counts: Counts = field(default_factory=Counts)
    groups: dict[Group, dict[int, tuple[int, float]]] = field(default_factory=dict)
    exposed: set[str] = field(default_factory=set)  # scopes whose loads are used in the region itself
    chain: int = 0  # longest path of dependent float instructions
    waits: int | None = None

    def access(self, group: Group, offset: int, count: int, weight: float) -> None:
        """Notes one access of `count` elements; the same one twice is made once."""
        known = self.groups.setdefault(group, {})
        known[offset] = max(known.get(offset, (0, 0.0)), (count, weight))

    def close(self, values: Values, masks: list[NDArray[np.bool_]]) -> list[GlobalUse]:
        """Counts the requests of all that was noted."""
        uses = []
        for group, noted in self.groups.items():
            size = group.buffer.bytes
            bases = values.sampled(Value(group.node, 0)) * size
            alignment = int(np.gcd.reduce(bases, axis=None)) or accesses.WIDEST_BYTES
            weight = max(weight for _, weight in noted.values())
            elements = [(offset, count) for offset, (count, _) in noted.items()]
            joined = elements if group.alone else accesses.merged(elements, size, alignment)
            total = self._requests(group, joined, bases, masks[group.mask], weight)
            if group.buffer.scope == "global":
                offsets = tuple(offset for offset, _ in joined)
                width = max(count for _, count in joined)
                uses.append(GlobalUse(group, offsets, width, self.frames, self.executions * weight, total))
        self.groups.clear()
        return uses

    def _requests(self, group: Group, joined: list[tuple[int, int]], bases: Any, mask: Any, weight: float) -> float:
        """Adds the costs; returns the sectors of one execution."""
        size, scope, counts = group.buffer.bytes, group.buffer.scope, self.counts
        active = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, bases.shape))
        bases = np.broadcast_to(bases, active.shape)
        period = 128 if scope == "shared" else accesses.SECTOR_BYTES
        known: dict[tuple[int, int], tuple[float, float]] = {}
        total = 0.0
        for offset, count in joined:
            key = (offset * size % period, count)
            if key not in known:
                addresses = bases + offset * size
                if scope == "shared":
                    known[key] = accesses.wavefronts(addresses, count * size, active), 0.0
                else:
                    known[key] = accesses.sectors(addresses, count * size, active)
            cost, lines = known[key]
            total += cost
            if scope == "shared":
                counts.shared_requests += weight * (group.kind != "copy")  # cp.async is one instruction
                counts.shared_wavefronts += weight * cost
            elif group.kind == "store":
                counts.global_stores += weight
                counts.sectors_stored += weight * cost
                counts.lines += weight * lines
            else:
                counts.global_loads += weight
                counts.sectors_loaded += weight * cost
                counts.lines += weight * lines
        return total
