"""The candidates of one space for one spec and target: how many, at random, and which are next to one another."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from convtune.space import Candidate, Knobs, KnobValue, Space, default_knobs, enumerate_candidates

if TYPE_CHECKING:
    import numpy as np

    from convtune.spec import ConvSpec
    from convtune.targets import Target

MOST_ENUMERATED = 20_000  # combinations of knobs; `allows` costs microseconds each


class Domain:
    """A space's knobs for one spec and target. values: each knob's values, in order."""

    def __init__(self, space: Space[Any], spec: ConvSpec, target: Target) -> None:
        self.space, self._spec, self._target = space, spec, target
        self.values: Mapping[str, tuple[KnobValue, ...]] = dict(space.knobs(spec, target))

    @functools.cached_property
    def default(self) -> Candidate:
        """The space's default."""
        return self._candidate(default_knobs(self.space, self._spec, self._target))

    def __contains__(self, candidate: Candidate) -> bool:
        knobs = candidate.knobs
        if candidate.space != self.space.name or knobs.keys() != self.values.keys():
            return False
        return all(knobs[name] in values for name, values in self.values.items()) and self._allows(knobs)

    def listed(self, most: int) -> list[Candidate] | None:
        """Every candidate, the default first; None where there are more than `most`, or too many to look at."""
        if math.prod(map(len, self.values.values())) > MOST_ENUMERATED:
            return None
        found = list(itertools.islice(enumerate_candidates(self.space, self._spec, self._target), most + 1))
        return found if len(found) <= most else None

    def sample(self, rng: np.random.Generator, size: int) -> list[Candidate]:
        """Up to `size` distinct candidates, uniform over the domain; fewer where `allows` refuses most."""
        lengths = [len(values) for values in self.values.values()]
        found: dict[tuple[int, ...], Candidate] = {}
        for place in rng.integers(0, lengths, size=(4 * size, len(lengths))).tolist():
            if len(found) == size:
                break
            knobs = {name: values[i] for i, (name, values) in zip(place, self.values.items())}
            if tuple(place) not in found and self._allows(knobs):
                found[tuple(place)] = Candidate(self.space.name, knobs)
        return list(found.values())

    def neighbours(self, candidate: Candidate) -> list[Candidate]:
        """The candidates that differ in one knob: a number by one place in its domain, a word by any other value."""
        found = []
        for name, values in self.values.items():
            place = values.index(candidate.knobs[name])
            for i, value in enumerate(values):
                both_numbers = isinstance(value, int) and isinstance(candidate.knobs[name], int)
                if i == place or (both_numbers and abs(i - place) > 1):
                    continue
                knobs = {**candidate.knobs, name: value}
                if self._allows(knobs):
                    found.append(Candidate(self.space.name, knobs))
        return found

    def snap(self, knobs: Knobs) -> Candidate:
        """The candidate next to knobs from elsewhere: each knob's nearest value, or its default where it has none.

        Where `allows` refuses that, one knob goes back to its default; if no single one is enough, one after the other.
        """
        default = self.default.knobs
        near = {name: _nearest(values, knobs.get(name), default[name]) for name, values in self.values.items()}
        for attempt in self._towards_default(near):
            if self._allows(attempt):
                return self._candidate(attempt)
        return self.default

    def _towards_default(self, knobs: Knobs) -> Iterable[Knobs]:
        default = self.default.knobs
        yield knobs
        for name in knobs:
            yield {**knobs, name: default[name]}
        for names in itertools.accumulate(([name] for name in knobs), list.__add__):
            yield {**knobs, **{name: default[name] for name in names}}

    def _allows(self, knobs: Knobs) -> bool:
        return self.space.allows(self._spec, self._target, knobs)

    def _candidate(self, knobs: Knobs) -> Candidate:
        return Candidate(self.space.name, {name: knobs[name] for name in self.values})


def differing(a: Candidate, b: Candidate) -> int:
    """In how many knobs two candidates differ; all of them where the spaces do."""
    if a.space != b.space:
        return max(len(a.knobs), len(b.knobs))
    return sum(value != b.knobs.get(name) for name, value in a.knobs.items())


def _nearest(values: tuple[KnobValue, ...], wanted: KnobValue | None, default: KnobValue) -> KnobValue:
    if wanted is not None and wanted in values:
        return wanted
    numbers = [value for value in values if isinstance(value, int)]
    if not isinstance(wanted, int) or not numbers:
        return default
    # sizes act by their ratio: 4 is as far from 2 as from 8
    return min(numbers, key=lambda value: (abs(_magnitude(value) - _magnitude(wanted)), value))


def _magnitude(value: int) -> float:
    return math.copysign(math.log2(abs(value) + 1), value)
