"""How often a kernel runs, against scripted times: no clock, no kernel."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, repeat

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convtune.measure.timing import PLAN, calls_per_repeat, in_turn_us, repeats_us


class Scripted:
    """A kernel whose calls take `warm_s`, the first one `cold_s`, and whose repeats are slower by `factors`."""

    def __init__(self, warm_s: float, cold_s: float = 0.0, factors: Iterable[float] = ()) -> None:
        self.warm_s, self.cold_s = warm_s, cold_s or warm_s
        self.factors: Iterator[float] = chain(factors, repeat(1.0))
        self.now = 0.0
        self.log: list[tuple[int, int]] = []
        self.calls = 0

    def __call__(self) -> None:
        self._run(1)

    def _run(self, number: int) -> float:
        seconds = number * self.warm_s + (self.cold_s - self.warm_s if self.calls == 0 else 0)
        self.calls += number
        return seconds

    def time(self, number: int, repeat: int) -> np.ndarray:
        self.log.append((number, repeat))
        # only single repeats are measurements; pairs are the calibration
        factors = [next(self.factors) if repeat == 1 else 1.0 for _ in range(repeat)]
        seconds = np.array([self._run(number) * factor for factor in factors])
        self.now += float(seconds.sum())
        return seconds / number

    def measure(self, best_us: float | None = None) -> list[float]:
        return repeats_us(self, best_us, clock=lambda: self.now)


@given(st.floats(1e-7, 1.0), st.floats(1.0, 1000.0))
def test_a_repeat_fills_its_time_whatever_the_kernel_and_its_first_call(warm_s: float, slower: float) -> None:
    number = calls_per_repeat(Scripted(warm_s, warm_s * slower))
    assert number == 1 or 0.9 * PLAN.repeat_s <= number * warm_s <= 1.1 * PLAN.repeat_s
    assert number > 1 or warm_s >= PLAN.repeat_s / 2


@given(st.floats(1e-7, 1e-1))
def test_finding_the_number_takes_little(warm_s: float) -> None:
    kernel = Scripted(warm_s)
    calls_per_repeat(kernel)
    assert kernel.now <= 4 * max(PLAN.repeat_s, warm_s)


def test_steady_times_stop_at_the_fewest_repeats_and_are_all_kept() -> None:
    times = Scripted(5e-5).measure()
    assert times == pytest.approx([50.0] * PLAN.fewest)


def test_times_stay_in_the_order_they_were_measured() -> None:
    factors = [1.9, 1.0, 1.01, 1.0, 3.0, 1.005, 1.0]
    assert Scripted(1e-4, factors=factors).measure() == pytest.approx([100 * factor for factor in factors])


def test_unsteady_times_are_measured_until_the_faster_half_agrees() -> None:
    slow_start = [1.3, 1.2, 1.4, 1.1, 1.3, 1.2, 1.4, 1.5]
    times = Scripted(1e-4, factors=slow_start).measure()
    fast = sum(time < 102 for time in times)
    assert PLAN.fewest < len(times) < PLAN.most
    assert fast > len(times) / 2


def test_times_that_never_settle_end_at_the_most_repeats() -> None:
    assert len(Scripted(1e-4, factors=(1 + 0.05 * i for i in range(100))).measure()) == PLAN.most


def test_a_slow_kernel_ends_with_its_budget_but_not_before_the_first_repeats() -> None:
    assert len(Scripted(0.03).measure()) == 5
    assert len(Scripted(0.5).measure()) == PLAN.first


@pytest.mark.parametrize(("best_us", "count"), [(None, PLAN.fewest), (41, PLAN.fewest), (39, PLAN.first)])
def test_a_hopeless_kernel_is_cut_early(best_us: float | None, count: int) -> None:
    assert len(Scripted(1e-4).measure(best_us)) == count


def test_one_slow_repeat_does_not_make_a_kernel_hopeless() -> None:
    assert len(Scripted(1e-4, factors=[9.0, 9.0, 1.0]).measure(best_us=100.0)) >= PLAN.fewest


def test_finals_go_round() -> None:
    order: list[str] = []

    class Logged(Scripted):
        def __init__(self, name: str, warm_s: float) -> None:
            super().__init__(warm_s)
            self.name = name

        def time(self, number: int, repeat: int) -> np.ndarray:
            if repeat == 1:
                order.append(self.name)
            return super().time(number, repeat)

    times = in_turn_us([Logged("A", 1e-4), Logged("B", 2e-4), Logged("C", 1e-2)], rounds=7)
    assert "".join(order) == "ABC" * 7
    assert times == [pytest.approx([us] * 7) for us in (100, 200, 10000)]
