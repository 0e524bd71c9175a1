"""Carries the knobs that won on a similar spec over to a spec that was never tuned."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable
from typing import TYPE_CHECKING, Any

from convtune.record import winner
from convtune.search.domain import Domain
from convtune.search.features import spec_numbers
from convtune.search.trial import parse

if TYPE_CHECKING:
    from convtune.record import Record
    from convtune.space import Candidate, Space
    from convtune.spec import ConvSpec
    from convtune.targets import Target

FARTHEST = 4.0  # as if each of four sizes had doubled twice; beyond, the default knows more
OTHER_MACHINE = 1.0  # added to the distance: as if one size had doubled
# a doubled filter, stride or dilation changes more than a doubled extent; the last three follow from the others
WEIGHTS = {
    "kd": 2.0,
    "kh": 2.0,
    "kw": 2.0,
    "stride": 2.0,
    "dilation": 2.0,
    "channels_last": 3.0,
    "group_ic": 0.0,
    "flops": 0.0,
    "flops_per_byte": 0.0,
}


def distance(a: ConvSpec, b: ConvSpec) -> float:
    """How far apart two specs are: Euclidean over log2 of their sizes, so 1 is one size doubled. 0 for equal specs."""
    of_a, of_b = spec_numbers(a), spec_numbers(b)
    return math.hypot(*(WEIGHTS.get(name, 1.0) * (of_a[name] - of_b[name]) for name in of_a))


def nearest(
    spec: ConvSpec,
    target: Target,
    records: Iterable[Record],
    *spaces: Space[Any],
    max_error: float | None = None,
    origin: str = "measured",
) -> Candidate | None:
    """The winner of the nearest spec, its knobs snapped to this spec's domain; None where none is near enough.

    `nearest_winner` says which that is. Each of the spaces must accept the spec.
    """
    found = nearest_winner(spec, target, records, *spaces, max_error=max_error, origin=origin)
    return None if found is None else fitted(found, spec, target, *spaces)


def fitted(found: Record, spec: ConvSpec, target: Target, *spaces: Space[Any]) -> Candidate | None:
    """A record's candidate, of one of the spaces, with its knobs snapped to this spec's domain; None where none fit."""
    space = next(space for space in spaces if space.name == found.candidate.space)
    return Domain(space, spec, target).snap(found.candidate.knobs)


def own_winner(
    spec: ConvSpec,
    target: Target,
    records: Iterable[Record],
    space: Space[Any],
    max_error: float | None = None,
    origin: str = "measured",
) -> Candidate | None:
    """What won on this very spec and machine, its knobs snapped to the domain, which may have changed since; None where
    nothing did.

    records: without the history of the search; the shipped log's are such.
    """
    own = (str(spec), target.fingerprint)
    same = [r for r in records if (r.spec, r.fingerprint) == own and r.candidate.space == space.name]
    found = winner(same, max_error=max_error, origin=origin)
    return None if found is None else fitted(found, spec, target, space)


def nearest_winner(
    spec: ConvSpec,
    target: Target,
    records: Iterable[Record],
    *spaces: Space[Any],
    max_error: float | None = None,
    origin: str = "measured",
) -> Record | None:
    """The record that won, among the candidates of `spaces`, on the nearest spec and machine.

    Machines of the target's family count, the target's own before others. The spec's own records on the target do not:
    they need no transfer. Variants are not told apart: what shares a space shares the meaning of its knobs.
    """
    for far, group in by_distance(spec, target, records, {space.name for space in spaces}, origin):
        if far > FARTHEST:
            return None
        found = winner(group, max_error=max_error, origin=origin)
        if found is not None:
            return found
    return None


def by_distance(
    spec: ConvSpec, target: Target, records: Iterable[Record], spaces: Container[str], origin: str
) -> list[tuple[float, list[Record]]]:
    """The records of each other spec or machine of the family, of these spaces and this origin, the nearest first."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        ours = record.candidate.space in spaces and record.target["family"] == target.family
        if ours and record.origin == origin:
            groups.setdefault((record.spec, record.fingerprint), []).append(record)
    groups.pop((str(spec), target.fingerprint), None)

    def far(place: tuple[str, str]) -> float:
        return distance(parse(place[0]), spec) + (0 if place[1] == target.fingerprint else OTHER_MACHINE)

    return [(away, groups[place]) for away, place in sorted((far(place), place) for place in groups)]
