"""What an emulated kernel costs: more of anything costs more, and what threads share costs what the longest takes."""

from __future__ import annotations

import dataclasses
import math

import pytest

from convtune import targets
from convtune.cache_model import Traffic
from convtune.emulation.cores import CORES, core_of
from convtune.emulation.cost import cost, critical
from convtune.emulation.counts import KINDS, Counts
from convtune.targets import CpuTarget

EVERY_KIND = {kind: 1000 + 7 * position for position, kind in enumerate(KINDS)}
LARGE = Traffic(l1_bytes=9e9, l2_bytes=8e9, l3_bytes=7e9, distinct_bytes=6e9)
FAMILIES = ("neoverse-n1", "cortex-a72", "neoverse-v1", "apple-m1", "x86-64-v2", "armv8-a")


def machine(name: str = "neoverse-n1", threads: int = 1) -> CpuTarget:
    target = targets.resolve(name, threads)
    assert isinstance(target, CpuTarget)
    return target


def counts(**more: int) -> Counts:
    kinds = {kind: count + more.get(kind, 0) for kind, count in EVERY_KIND.items()}
    return Counts(sum(kinds.values()), kinds, {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_more_instructions_cost_more(name: str, kind: str) -> None:
    nothing = Traffic(0, 0, 0, 0)
    assert cost(counts(**{kind: 1}), nothing, machine(name)) > cost(counts(), nothing, machine(name))


@pytest.mark.parametrize("level", ["l1_bytes", "l2_bytes", "l3_bytes"])
@pytest.mark.parametrize("name", FAMILIES)
def test_more_misses_cost_more(name: str, level: str) -> None:
    more = dataclasses.replace(LARGE, **{level: getattr(LARGE, level) + 64e6})
    assert cost(counts(), more, machine(name)) > cost(counts(), LARGE, machine(name))


def test_farther_bytes_cost_more() -> None:
    for core in {core_of(machine(name)) for name in FAMILIES}:
        assert core.l2_bytes > core.l3_bytes > core.memory_bytes > 0


def test_what_stays_in_a_cache_between_calls_costs_nothing() -> None:
    target = machine()
    small = Traffic(l1_bytes=9e5, l2_bytes=9e4, l3_bytes=9e4, distinct_bytes=target.l1d_bytes)
    assert cost(counts(), small, target) == cost(counts(), Traffic(0, 0, 0, 0), target)
    middle = dataclasses.replace(small, distinct_bytes=target.l2_bytes)
    assert cost(counts(), middle, target) > cost(counts(), small, target)
    more_of_l2 = dataclasses.replace(middle, l2_bytes=9e8, l3_bytes=9e8)
    assert cost(counts(), more_of_l2, target) == cost(counts(), middle, target)


def test_an_instruction_weighs_by_how_many_a_core_does_at_once() -> None:
    """Neoverse N1 decodes four, and of these has two vector pipes, two of loads, one of stores."""
    nothing, base = Traffic(0, 0, 0, 0), counts()
    weights = {kind: cost(counts(**{kind: 100}), nothing, machine()) - cost(base, nothing, machine()) for kind in KINDS}
    expected = {"vector_arithmetic": 2, "scalar_arithmetic": 2, "shuffle": 2, "load": 2, "store": 4}
    assert weights == pytest.approx({kind: 100 * expected.get(kind, 1) for kind in KINDS})


def test_the_longest_task_counts() -> None:
    alone = Counts(10_000, EVERY_KIND, {}, ())
    even = Counts(10_000, EVERY_KIND, {}, ((4000, 4000), (500, 500)))
    uneven = Counts(10_000, EVERY_KIND, {}, ((7000, 1000), (500, 500)))
    assert (critical(alone), critical(even), critical(uneven)) == (10_000, 1000 + 4000 + 500, 1000 + 7000 + 500)
    target, nothing = machine(threads=2), Traffic(0, 0, 0, 0)
    assert cost(even, nothing, target) < cost(uneven, nothing, target) < cost(alone, nothing, target)
    assert cost(even, nothing, target) / cost(alone, nothing, target) == pytest.approx(0.55)


def test_nothing_executed_costs_nothing() -> None:
    empty = Counts(0, dict.fromkeys(KINDS, 0), {})
    assert cost(empty, Traffic(0, 0, 0, 0), machine()) == 0


def test_cores_are_of_processors_that_have_targets() -> None:
    known = {target.mcpu for target in targets.known() if isinstance(target, CpuTarget)}
    assert set(CORES) <= known
    assert all(math.isfinite(value) and value > 0 for core in CORES.values() for value in vars(core).values())
