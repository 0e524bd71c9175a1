"""Decides how often a kernel runs until its time is known, on a machine that others use too."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from numpy.typing import NDArray


class Timed(Protocol):
    """A kernel with its arguments bound, such as `runtime.kernel.Call`."""

    def __call__(self) -> None: ...

    def time(self, number: int, repeat: int) -> NDArray[Any]:
        """Seconds per call, `repeat` times the mean of `number` calls in a row."""


@dataclass(frozen=True)
class TimingPlan:
    """When to stop. A repeat is the mean of as many calls as fill `repeat_s`; every repeat is kept.

    repeat_s: long against the clock, an interrupt and the waking of a thread (30 us), short against a time slice.
    fewest, most: repeats. settled: enough when the fastest half of them lies within this fraction.
    budget_s: no repeat starts after so long, once there are `first` of them.
    first, hopeless: a candidate whose first repeats all take `hopeless` times the best so far gets no more. The
        machine's speed can halve between the two measurements, so a factor of 2 proves nothing.
    """

    repeat_s: float = 2e-3
    fewest: int = 7
    most: int = 25
    settled: float = 0.02
    budget_s: float = 0.15
    first: int = 3
    hopeless: float = 2.5


PLAN = TimingPlan()


def repeats_us(
    call: Timed,
    best_us: float | None = None,
    plan: TimingPlan = PLAN,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The time of a call, measured until it is settled, hopeless against `best_us`, or at the end of the budget."""
    number = calls_per_repeat(call, plan)
    start, times = clock(), list[float]()
    while not _enough(times, best_us, clock() - start, plan):
        times.append(float(call.time(number, 1)[0]) * 1e6)
    return times


def in_turn_us(calls: Sequence[Timed], rounds: int, plan: TimingPlan = PLAN) -> list[list[float]]:
    """The times of several calls, one repeat of each per round, so that a slower minute hits all of them alike."""
    numbers = [calls_per_repeat(call, plan) for call in calls]
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, number, own in zip(calls, numbers, times):
            call()  # its data is out of the caches, and its code too
            own.append(float(call.time(number, 1)[0]) * 1e6)
    return times


def calls_per_repeat(call: Timed, plan: TimingPlan = PLAN) -> int:
    """How many calls fill a repeat. Finding out warms up the caches, the threads and the clock frequency."""
    number = 1
    while True:
        # the lesser of two: a first call that was slow for once must not decide
        total = number * float(min(call.time(number, 2)))
        if total >= plan.repeat_s / 4:
            return max(1, round(number * plan.repeat_s / total))
        number = max(2 * number, min(16 * number, int(number * plan.repeat_s / 2 / max(total, 1e-9))))


def _enough(times: Sequence[float], best_us: float | None, seconds: float, plan: TimingPlan) -> bool:
    count, ordered = len(times), sorted(times)
    if count < plan.first:
        return False
    if count >= plan.most or seconds >= plan.budget_s:
        return True
    if best_us is not None and ordered[0] > plan.hopeless * best_us:
        return True
    return count >= plan.fewest and ordered[count // 2] <= (1 + plan.settled) * ordered[0]
