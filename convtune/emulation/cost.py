"""What an emulated kernel costs: its instructions, weighted by how many a core does at once, and its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.emulation.cores import Core, core_of

if TYPE_CHECKING:
    from convtune.cache_model import Traffic
    from convtune.emulation.counts import Counts
    from convtune.targets.cpu import CpuTarget


def cost(counts: Counts, traffic: Traffic, target: CpuTarget) -> float:
    """Weighted instructions of a call: the number by which emulated candidates are ranked. It is no time.

    One is what a core decodes of in a cycle as many as `Core.issued`. Arithmetic, shuffles, loads and stores weigh as
    many as could be decoded while one of them is done; the bytes that the caches wait for are added; where threads
    share the work, the longest of them counts. Data that a cache holds from one call to the next is not fetched again.

    A sum, where a core does several kinds at once: the larger of them instead, and the root of their squares, ranked
    worse (docs/cost-model.md).
    """
    core = core_of(target)
    longest = critical(counts) / max(1, counts.instructions)
    cycles = longest * (_instruction_cycles(counts, core) + _private_cycles(traffic, target, core))
    return (cycles + _memory_cycles(traffic, target, core)) * core.issued


def critical(counts: Counts) -> int:
    """Instructions of the longest path: what one thread alone does, and the longest task of each parallel region."""
    return (
        counts.instructions - sum(counts.task_instructions) + sum(max(region, default=0) for region in counts.regions)
    )


def _instruction_cycles(counts: Counts, core: Core) -> float:
    kinds = counts.by_kind
    vector = kinds["vector_arithmetic"] + kinds["scalar_arithmetic"] + kinds["shuffle"]
    others = kinds["branch"] + kinds["other"]
    return vector / core.vector + kinds["load"] / core.loads + kinds["store"] / core.stores + others / core.issued


def _private_cycles(traffic: Traffic, target: CpuTarget, core: Core) -> float:
    """Of bytes that come into L1, and into L2 where that does not hold all; of all cores together."""
    of_l2 = traffic.l2_bytes if traffic.distinct_bytes > target.l2_bytes * target.threads else 0.0
    of_l1 = traffic.l1_bytes if traffic.distinct_bytes > target.l1d_bytes * target.threads else 0.0
    return of_l1 / core.l2_bytes + of_l2 / core.l3_bytes


def _memory_cycles(traffic: Traffic, target: CpuTarget, core: Core) -> float:
    """Of bytes from memory, which all cores share."""
    last = max(target.l3_bytes, target.l2_bytes)
    return traffic.l3_bytes / core.memory_bytes if traffic.distinct_bytes > last else 0.0
