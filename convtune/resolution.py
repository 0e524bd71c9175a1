"""Which candidate a spec is compiled with, and why. The order, first that applies:

1. explicit   the caller named it
2. log        the winner of this spec on this machine, the user's log before the shipped one
3. log        the winner of this spec on another machine that is alike, the most alike first (`Target.distance`)
4. transfer   the winner of the nearest spec, its knobs snapped to this spec's domain; not where that spec's own default
              is nearly as fast: then this one's is likely to be, and it fits this spec
5. default    the space's own choice, from the target's facts; after one whose sums are not direct, one whose are

2 and 3 look for measured times first, then for emulated costs of a CPU or estimated times of a GPU, and so does 4: they
never compete (`Target.origins`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune import space
from convtune.log import LogStack
from convtune.ranks import MEASURED, digits
from convtune.record import METASCHEDULE, Record, winner
from convtune.search import fitted, nearest_winner
from convtune.space import Candidate
from convtune.spec import ConvSpec

if TYPE_CHECKING:
    from convtune.targets import Target

WORTHWHILE = 1.1  # times as fast as its spec's default, for a winner's knobs to be lent to another spec


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
    gone: list[str] = []
    for choice in _from_logs(spec, target, logs, max_error, gone):
        if choice.candidate.key not in seen:
            seen.add(choice.candidate.key)
            yield choice
    reason = "; ".join(gone) or "no log has this spec or one near it"
    default = space.default_candidate(spec, target, max_error)
    yield Choice(default, "default", reason)
    direct = space.default_candidate(spec, target, 0.0)
    if direct != default:
        yield Choice(direct, "default", f"{reason}; sums are direct")


def _from_logs(spec: ConvSpec, target: Target, logs: LogStack, max_error: float, gone: list[str]) -> Iterator[Choice]:
    """Adds to `gone` why winners were passed over, which is a part of the reason for all that comes after them."""
    for origin in target.origins:
        exact = logs.winner(spec, target.fingerprint, max_error=max_error, origin=origin)
        if exact:
            record, layer = exact
            if _offered(spec, target, record.candidate):
                here = "this machine" if target.is_host else target.model
                yield Choice(record.candidate, "log", f"{_rank(record, here)}, in {layer.name}")
            else:
                gone.append(_gone(record))
        for record in _relatives(spec, target, logs, max_error, origin):
            if _offered(spec, target, record.candidate):
                reason = f"{_rank(record, record.target['model'])}, of this family"
                yield Choice(record.candidate, "log", "; ".join([reason, *gone]))
            else:
                gone.append(_gone(record))
    for origin in target.origins:
        yield from _transferred(spec, target, logs, max_error, origin, gone)


def _transferred(
    spec: ConvSpec, target: Target, logs: LogStack, max_error: float, origin: str, gone: list[str]
) -> Iterator[Choice]:
    """The knobs of the nearest spec that has a winner of this origin."""
    spaces = space.accepting(spec, target, max_error)
    found = nearest_winner(spec, target, logs.records(), *spaces, max_error=max_error, origin=origin)
    candidate = fitted(found, spec, target, *spaces) if found else None
    if found and candidate:
        own = found.spec == str(spec)  # of another machine
        place = f"this spec on {found.target['model']}" if own else f"{found.spec}, the nearest spec in the log"
        if _gain(found, target, max_error, logs) < WORTHWHILE:
            gone.append(f"the default is nearly the fastest on {place}")
            return
        won = "won" if origin == MEASURED else f"won, as {origin},"
        yield Choice(candidate, "transfer", "; ".join([f"the knobs that {won} on {place}", *gone]))


def _gain(found: Record, target: Target, max_error: float, logs: LogStack) -> float:
    """How many times as fast as its spec's default a winner is; infinite where the two were not compared in turn."""
    if found.fingerprint != target.fingerprint or not found.batch:
        return math.inf
    default = space.default_candidate(ConvSpec.parse(found.spec), target, max_error)
    finals = [r for r in logs.records(found.spec, found.fingerprint) if r.batch == found.batch]
    beside = [r.rank for r in finals if (r.candidate, r.origin, r.status) == (default, found.origin, "ok")]
    return beside[0] / found.rank if beside else math.inf


def _rank(record: Record, machine: str) -> str:
    text = digits(record.rank, record.origin)
    return f"{text} on {machine}" if record.origin == MEASURED else f"{record.origin} {text} for {machine}"


def _gone(record: Record) -> str:
    candidate = record.candidate
    knobs = ", ".join(f"{name}={value}" for name, value in candidate.knobs.items())
    winner_of = f"the log's winner {candidate.space}({knobs}), {_rank(record, record.target['model'])},"
    return f"{winner_of} is not in this version's spaces"


def _relatives(spec: ConvSpec, target: Target, logs: LogStack, max_error: float, origin: str) -> list[Record]:
    """Winners of the spec on other machines whose schedules suit this one, the most alike first."""
    by_machine: dict[str, list[Record]] = {}
    for record in logs.records(spec):
        if record.fingerprint != target.fingerprint and target.distance(record.target) < math.inf:
            by_machine.setdefault(record.fingerprint, []).append(record)
    winners = [winner(records, max_error=max_error, origin=origin) for records in by_machine.values()]
    return sorted(filter(None, winners), key=lambda record: target.distance(record.target))


def _offered(spec: ConvSpec, target: Target, candidate: Candidate) -> bool:
    """Whether the candidate is one that this version would make: a log may be older than its spaces."""
    if candidate.space == METASCHEDULE:
        return True
    owner = space.known().get(candidate.space)
    return owner is not None and owner.takes(spec, target) and space.contains(owner, spec, target, candidate.knobs)
