"""Which candidate a spec is compiled with, and why. The order, first that applies:

1. explicit   the caller named it
2. log        the winner of this spec on this machine, the user's log before the shipped one
3. log        the winner of this spec on another machine of the family with as wide vectors
4. transfer   the winner of the nearest spec, its knobs snapped to this spec's domain
5. default    the space's own choice, from the target's facts
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune import space
from convtune.log import LogStack
from convtune.record import METASCHEDULE, Record, winner
from convtune.search import nearest, nearest_winner
from convtune.space import Candidate

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target


@dataclass(frozen=True)
class Choice:
    """A candidate, the kind of resolution that gave it, and a sentence that says why."""

    candidate: Candidate
    kind: str
    reason: str


def choices(
    spec: ConvSpec, target: Target, logs: LogStack, max_error: float, explicit: Candidate | None = None
) -> Iterator[Choice]:
    """The candidates to compile, best first; each is tried only where the one before did not build or verify."""
    if explicit is not None:
        yield Choice(explicit, "explicit", "named by the caller")
        return
    seen: set[str] = set()
    for choice in _from_logs(spec, target, logs, max_error):
        if choice.candidate.key not in seen:
            seen.add(choice.candidate.key)
            yield choice
    yield Choice(space.default_candidate(spec, target), "default", "no log has this spec or one near it")


def _from_logs(spec: ConvSpec, target: Target, logs: LogStack, max_error: float) -> Iterator[Choice]:
    exact = logs.winner(spec, target.fingerprint, max_error=max_error)
    if exact and _offered(spec, target, exact[0].candidate):
        record, layer = exact
        yield Choice(record.candidate, "log", f"{record.time_us:.4g} us on this machine, in {layer.name}")
    for record in _relatives(spec, target, logs, max_error):
        yield Choice(record.candidate, "log", f"{record.time_us:.4g} us on {record.target['model']}, of this family")
    spaces = space.accepting(spec, target)
    known = logs.records()
    found = nearest_winner(spec, target, known, *spaces, max_error=max_error)
    candidate = nearest(spec, target, known, *spaces, max_error=max_error)
    if found and candidate:
        yield Choice(candidate, "transfer", f"the knobs that won on {found.spec}, the nearest spec in the log")


def _relatives(spec: ConvSpec, target: Target, logs: LogStack, max_error: float) -> list[Record]:
    """Winners of the spec on other machines of the family with as wide vectors, the nearest thread count first."""
    by_machine: dict[str, list[Record]] = {}
    for record in logs.records(spec):
        facts = record.target
        alike = facts["family"] == target.family and facts["vector_bytes"] == target.vector_bytes
        if alike and record.fingerprint != target.fingerprint:
            by_machine.setdefault(record.fingerprint, []).append(record)
    winners = [winner(records, max_error=max_error) for records in by_machine.values()]
    found = [w for w in winners if w and _offered(spec, target, w.candidate)]
    return sorted(found, key=lambda record: abs(int(record.target["threads"]) - target.threads))


def _offered(spec: ConvSpec, target: Target, candidate: Candidate) -> bool:
    """Whether the candidate is one that this version would make: a log may be older than its spaces."""
    if candidate.space == METASCHEDULE:
        return True
    owner = space.known().get(candidate.space)
    return owner is not None and owner.accepts(spec, target) and space.contains(owner, spec, target, candidate.knobs)
