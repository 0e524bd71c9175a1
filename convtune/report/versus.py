"""Versus: two sides, such as two logs or two spaces, layer by layer: is what differs more than the spread?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from convtune import accuracy as accuracies
from convtune.comparison.verdict import (
    FEWEST_PAIRS,
    INDIFFERENCE,
    LOSS,
    NO_DIFFERENCE,
    WIN,
    compare,
    geometric_mean,
    interval_rank,
)
from convtune.ranks import MEASURED
from convtune.record import METASCHEDULE, Record, winner
from convtune.report.names import names_among
from convtune.space import KnobValue
from convtune.spec import ConvSpec

FEWEST_REPEATS = 3
"""Of a measured time whose spread is to be known."""
MISSING, FAILED = "missing", "failed"
"""Why a side has nothing to compare: it has no record of the layer, or none that works."""


@dataclass(frozen=True)
class Bounds:
    """A's rank over B's; above 1, B is the better.

    lower, upper: of the ratio of the medians, at 95 % or more; None where too few repeats tell no spread.
    in_turn: the repeats were taken in turn, so that they compare pair by pair. exact: they are counts, which would be
    the same again, so any difference is one.
    """

    ratio: float
    lower: float | None
    upper: float | None
    in_turn: bool
    exact: bool = False

    @property
    def verdict(self) -> str:
        """Of B: win, loss or no_difference."""
        if self.exact:
            return WIN if self.ratio > 1 else LOSS if self.ratio < 1 else NO_DIFFERENCE
        if self.lower is not None and self.lower > 1 and self.ratio >= 1 + INDIFFERENCE:
            return WIN
        if self.upper is not None and self.upper < 1 and self.ratio <= 1 / (1 + INDIFFERENCE):
            return LOSS
        return NO_DIFFERENCE


def bounds(a: Record, b: Record) -> Bounds:
    """How two records' ranks compare. They must be of one target and origin."""
    assert (a.fingerprint, a.origin) == (b.fingerprint, b.origin), "they do not compare"
    if a.origin == "emulated":
        ratio = a.rank / b.rank
        return Bounds(ratio, ratio, ratio, False, exact=True)
    if a.batch and a.batch == b.batch and len(a.times_us) == len(b.times_us) >= FEWEST_PAIRS:
        paired = compare(a.times_us, b.times_us)
        return Bounds(paired.median, paired.lower, paired.upper, True)
    if a.origin == MEASURED and min(len(a.times_us), len(b.times_us)) < FEWEST_REPEATS:
        return Bounds(a.time_us / b.time_us, None, None, False)
    (low_a, high_a), (low_b, high_b) = interval(a.times_us), interval(b.times_us)
    return Bounds(a.time_us / b.time_us, low_a / high_b, high_a / low_b, False)


def interval(times_us: Sequence[float]) -> tuple[float, float]:
    """Between these two the median lies, with 95 % confidence; with few repeats, the least and the greatest."""
    ordered = sorted(times_us)
    rank = interval_rank(len(ordered)) if len(ordered) >= FEWEST_PAIRS else 1
    return ordered[rank - 1], ordered[-rank]


@dataclass(frozen=True)
class Pair:
    """A layer on both sides. name: the likeliest in the zoo. a, b: each side's winner, or why it has none."""

    spec: ConvSpec
    name: str
    target: Mapping[str, Any]
    origin: str
    a: Record | str
    b: Record | str

    @cached_property
    def bounds(self) -> Bounds | None:
        """None where a side has nothing to compare."""
        return bounds(self.a, self.b) if isinstance(self.a, Record) and isinstance(self.b, Record) else None

    @property
    def verdict(self) -> str:
        """Of B: win, loss, no_difference; else such as "a missing" or "b failed"."""
        if self.bounds:
            return self.bounds.verdict
        return ", ".join(f"{side} {why}" for side, why in (("a", self.a), ("b", self.b)) if isinstance(why, str))

    def is_regression(self, tolerance: float) -> bool:
        """Whether B is surely worse, and by more than this share of A's rank; or has no kernel where A has one."""
        if self.bounds:
            return self.bounds.verdict == LOSS and 1 / self.bounds.ratio > 1 + tolerance
        return isinstance(self.a, Record) and self.b == FAILED

    @property
    def differing(self) -> Mapping[str, tuple[KnobValue | None, KnobValue | None]]:
        """What differs in the two schedules: "space" and the knobs, each side's value, None where it has none."""
        sides = [_choices(side) if isinstance(side, Record) else {} for side in (self.a, self.b)]
        names = dict.fromkeys([*sides[0], *sides[1]])
        values = {name: (sides[0].get(name), sides[1].get(name)) for name in names}
        return {name: pair for name, pair in values.items() if pair[0] != pair[1]} if all(sides) else {}


def _choices(record: Record) -> dict[str, KnobValue]:
    knobs = {"trace": record.candidate.key} if record.candidate.space == METASCHEDULE else dict(record.candidate.knobs)
    return {"space": record.candidate.space, **knobs}


@dataclass(frozen=True)
class Group:
    """The layers of one target and origin: only these compare with each other."""

    target: Mapping[str, Any]
    origin: str
    pairs: Sequence[Pair]

    @property
    def compared(self) -> Sequence[Pair]:
        """The pairs that have a rank on both sides."""
        return [pair for pair in self.pairs if pair.bounds]

    @property
    def verdicts(self) -> Mapping[str, int]:
        """How many layers there are of each verdict."""
        return Counter(pair.verdict for pair in self.pairs)

    @property
    def geometric_mean(self) -> float | None:
        """Of A's ranks over B's, each layer once."""
        return geometric_mean(pair.bounds.ratio for pair in self.pairs if pair.bounds)


@dataclass(frozen=True)
class Versus:
    """Two sides, and what they have of each target and origin. a, b: their names, for people."""

    a: str
    b: str
    groups: Sequence[Group]

    @property
    def compared(self) -> int:
        """How many layers have a rank on both sides."""
        return sum(len(group.compared) for group in self.groups)

    def regressions(self, tolerance: float) -> list[Pair]:
        """The layers in which B is worse than A by more than the share `tolerance`."""
        return [pair for group in self.groups for pair in group.pairs if pair.is_regression(tolerance)]


def versus(a: str, b: str, records_a: Iterable[Record], records_b: Iterable[Record], accuracy: str) -> Versus:
    """Pairs what two sides have of each target, origin and spec. a, b: their names, for people."""
    found_a, found_b = _grouped(records_a), _grouped(records_b)
    groups: dict[tuple[str, str], list[Pair]] = {}
    specs = {text: ConvSpec.parse(text) for _, _, text in [*found_a, *found_b]}
    names = names_among(specs.values())
    for key in dict.fromkeys([*found_a, *found_b]):
        fingerprint, origin, text = key
        mine, others = found_a.get(key, []), found_b.get(key, [])
        spec = specs[text]
        limit = accuracies.limit(spec, accuracy)
        sides = (_side(side, limit) for side in (mine, others))
        pair = Pair(spec, names[str(spec)][0], (mine or others)[-1].target, origin, *sides)
        groups.setdefault((fingerprint, origin), []).append(pair)
    return Versus(a, b, [Group(pairs[0].target, origin, pairs) for (_, origin), pairs in groups.items()])


def _grouped(records: Iterable[Record]) -> dict[tuple[str, str, str], list[Record]]:
    found: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        found.setdefault((record.fingerprint, record.origin, record.spec), []).append(record)
    return found


def _side(records: Sequence[Record], limit: float) -> Record | str:
    if not records:
        return MISSING
    return winner(records, max_error=limit, origin=records[0].origin) or FAILED
