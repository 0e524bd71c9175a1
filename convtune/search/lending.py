"""Chooses a candidate for a spec that was never tuned: by estimates, corrected by how far they were off on near specs.

Of one near spec and machine, `off` is log(rank / estimate) of a candidate, less the median of all that count of its
machine, so that only what the estimates have wrong among candidates is left, and not how fast a machine is. Of a
candidate of this spec it is taken to be the mean of `off` over the near specs' records of its space, the more alike
and the nearer the more:

    log estimate + sum(weight * off) / (PRIOR + sum(weight))
    weight = exp(-(distance / REACH)^2 / 2) * min(1, sum over a near spec's records of exp(-DIFFERENT * unlike knobs))
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.record import standing, winner
from convtune.search.domain import Domain, differing
from convtune.search.transfer import FARTHEST, by_distance
from convtune.search.trial import parse
from convtune.space import Estimating

if TYPE_CHECKING:
    from convtune.record import Record
    from convtune.space import Candidate, Space
    from convtune.spec import ConvSpec
    from convtune.targets import Target

# Over the 498 layers that were recorded first, with the layers of the same networks left out, REACH 1 to 3, 8 to 16
# specs, DIFFERENT 2 to 6 and PRIOR 0.1 to 2 all reached 0.900 to 0.911 of the tuned speed.
NEAR_SPECS = 12
LENDERS = 3  # of these, whose winners' knobs are considered
REACH = 2.0  # in distance
DIFFERENT = 3.0  # so little counts a record whose knobs are others: 1/20 for each
PRIOR = 0.1  # the weight of the estimate's being right


@dataclass(frozen=True)
class Guess:
    """A candidate that is expected to be the fastest. lender: whose knobs it has; None where they are a space's
    default."""

    candidate: Candidate
    lender: Record | None


@dataclass(frozen=True)
class _Near:
    """What is known of a near spec on one machine. off: of each candidate. winner: of one of this spec's spaces."""

    weight: float
    off: Mapping[Candidate, float]
    winner: Record


def guess(
    spec: ConvSpec,
    target: Target,
    records: Iterable[Record],
    spaces: Sequence[Space[Any]],
    *,
    max_error: float | None = None,
    origin: str = "measured",
) -> Guess | None:
    """The fastest by corrected estimates, of each space's default and of near winners' knobs, snapped to the domain.

    None where no near spec has several candidates to compare, or a space has no estimate.
    """
    estimating = {space.name: space for space in spaces if isinstance(space, Estimating)}
    if len(estimating) < len(spaces):
        return None
    near = _near(spec, target, records, estimating, max_error, origin)
    if all(len(each.off) < 2 for each in near):
        return None
    domains = {name: Domain(space, spec, target) for name, space in estimating.items()}
    lenders: dict[Candidate, Record | None] = {domain.default: None for domain in domains.values()}
    for each in near[:LENDERS]:
        lent = each.winner.candidate
        lenders.setdefault(domains[lent.space].snap(lent.knobs), each.winner)

    def expected(candidate: Candidate) -> float:
        estimate = estimating[candidate.space].estimate(spec, target, candidate.knobs)
        return math.log(estimate) + _correction(candidate, near)

    best = min(lenders, key=expected)
    return Guess(best, lenders[best])


def _correction(candidate: Candidate, near: Sequence[_Near]) -> float:
    total, weights = 0.0, PRIOR
    for each in near:
        alike = {
            other: math.exp(-DIFFERENT * differing(candidate, other))
            for other in each.off
            if other.space == candidate.space
        }
        if alike:
            weight = each.weight * min(1.0, sum(alike.values()))
            total += weight * sum(share * each.off[other] for other, share in alike.items()) / sum(alike.values())
            weights += weight
    return total / weights


def _near(
    spec: ConvSpec,
    target: Target,
    records: Iterable[Record],
    spaces: Mapping[str, Estimating[Any]],
    max_error: float | None,
    origin: str,
) -> list[_Near]:
    """The nearest first."""
    found: list[tuple[float, str, dict[Candidate, float], Record]] = []
    for far, group in by_distance(spec, target, records, spaces, origin):
        if far > FARTHEST or len(found) == NEAR_SPECS:
            break
        best = winner(group, max_error=max_error, origin=origin)
        off = _off(target, group, spaces, max_error)
        if best is not None and off:
            found.append((far, best.fingerprint, off, best))
    usual = {
        machine: statistics.median(value for _, m, off, _ in found if m == machine for value in off.values())
        for machine in {machine for _, machine, _, _ in found}
    }
    return [
        _Near(
            math.exp(-((far / REACH) ** 2) / 2),
            {candidate: value - usual[machine] for candidate, value in off.items()},
            best,
        )
        for far, machine, off, best in found
    ]


def _off(
    target: Target, group: Sequence[Record], spaces: Mapping[str, Estimating[Any]], max_error: float | None
) -> dict[Candidate, float]:
    """log(rank / estimate) of the candidates of one spec and machine, the finals before the search.

    Without those that a space for this target no longer has.
    """
    spec = parse(group[0].spec)
    domains: dict[str, Domain] = {}
    found: dict[Candidate, float] = {}
    for record in sorted(standing(group), key=lambda record: (record.round == "final", record.batch)):
        candidate, space = record.candidate, spaces[record.candidate.space]
        accurate = max_error is None or (record.error is not None and record.error <= max_error)
        if candidate.space not in domains and space.takes(spec, target):
            domains[candidate.space] = Domain(space, spec, target)
        if accurate and candidate.space in domains and candidate in domains[candidate.space]:
            found[candidate] = math.log(record.rank / space.estimate(spec, target, candidate.knobs))
    return found
