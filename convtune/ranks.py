"""Ranks: the numbers that records of one origin are compared by, in that origin's units, as people read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

MEASURED = "measured"


@dataclass(frozen=True)
class Unit:
    """name: as a sentence says it. short: as the head of a column does. size: how much of a rank it is."""

    name: str
    short: str
    size: float


_TIMES = (Unit("µs", "µs", 1.0), Unit("ms", "ms", 1e3))
_COSTS = (
    Unit("weighted instructions", "instr.", 1.0),
    Unit("k weighted instructions", "k instr.", 1e3),
    Unit("M weighted instructions", "M instr.", 1e6),
)
UNITS: Mapping[str, Sequence[Unit]] = {"measured": _TIMES, "emulated": _COSTS, "estimated": _TIMES}
"""Of each origin, the smallest first. An emulated kernel has a count and no time: nothing may call it one."""
SOURCES: Mapping[str, str] = {
    "measured": "times measured on the device",
    "emulated": "no times: weighted instructions, counted in emulation",
    "estimated": "times estimated by a static model",
}
"""What the ranks of an origin are."""


def unit_of(ranks: Iterable[float | None], origin: str) -> Unit:
    """The largest unit of which the least rank is at least one; the smallest where there is none."""
    least = min((rank for rank in ranks if rank is not None), default=math.inf)
    units = UNITS[origin]
    fitting = [unit for unit in units if unit.size <= least < math.inf]
    return fitting[-1] if fitting else units[0]


def digits(rank: float, origin: str) -> str:
    """Four digits of a rank, with its unit as a sentence says it."""
    unit = unit_of([rank], origin)
    return f"{rank / unit.size:.4g} {unit.name}"


def has_times(origin: str) -> bool:
    """Whether ranks of the origin are times, so that there are rates and shares of a peak as well."""
    return UNITS[origin] is _TIMES


def gain_word(origin: str) -> str:
    """What the default's rank over the tuned one's is called: fewer instructions are not surely faster."""
    return "speed-up" if has_times(origin) else "default/tuned"


def gains_words(origin: str) -> str:
    """Several of them, for a sentence."""
    return "the speed-ups" if has_times(origin) else "default/tuned"


def as_time(rank: float | None, origin: str) -> float | None:
    """The rank where it is a time in microseconds; None where its origin has no times."""
    return rank if has_times(origin) else None


def as_cost(rank: float | None, origin: str) -> float | None:
    """The rank where it is a cost in weighted instructions; None where its origin has times."""
    return None if has_times(origin) else rank
