"""Which candidate a spec is compiled with, and why. The order, first that applies:

1. explicit   the caller named it
2. log        the winner of this spec on this machine, the named or the user's own log before the shipped one
3. log        the winner of this spec on another machine that is alike, the most alike first (`Target.distance`)
4. transfer   a near spec's winner, its knobs snapped to this spec's domain, or another space's default: what is the
              fastest by the estimates, corrected by how far they were off on near specs (`search.guess`); without
              estimates, or times of several candidates of a spec, the winner of the nearest
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
from convtune.search import fitted, guess, nearest_winner
from convtune.space import Candidate
from convtune.spec import ConvSpec

if TYPE_CHECKING:
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
    """The candidates to compile, best first; each is tried only where the one before did not build or verify.

    Raises UnknownNameError and ScheduleError as `space.checked` does of the explicit one.
    """
    if explicit is not None:
        # a trace is found to fit a spec or not by replaying it
        replayed = getattr(explicit, "space", None) == METASCHEDULE
        named = explicit if replayed else space.checked(explicit, spec, target)
        yield Choice(named, "explicit", "named by the caller")
        return
    seen: set[str] = set()
    gone: list[str] = []
    for choice in _from_logs(spec, target, logs, max_error, gone):
        if choice.candidate.key not in seen:
            seen.add(choice.candidate.key)
            yield choice
    searched = " or ".join(layer.name for layer in logs.layers)
    unknown = f"no winner of this spec, or of one near it, in {searched}; `convtune tune` finds one"
    reason = "; ".join(gone) or unknown
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
    """What the records of near specs, of this origin, say is the fastest; nothing where that is the default."""
    spaces, records = space.accepting(spec, target, max_error), logs.records()
    guessed = guess(spec, target, records, spaces, max_error=max_error, origin=origin)
    if guessed is None:
        lender = nearest_winner(spec, target, records, *spaces, max_error=max_error, origin=origin)
        candidate = fitted(lender, spec, target, *spaces) if lender else None
        why = "the nearest spec in the log"
    else:
        lender, candidate = guessed.lender, guessed.candidate
        why = "the fastest by estimates that near specs in the log correct"
        if candidate == space.default_candidate(spec, target, max_error):
            gone.append(f"the default is {why}")
            return
    if candidate:
        whose = _won(lender, spec, origin, why) if lender else f"the default of {candidate.space}, {why}"
        yield Choice(candidate, "transfer", "; ".join([whose, *gone]))


def _won(lender: Record, spec: ConvSpec, origin: str, why: str) -> str:
    own = lender.spec == str(spec)  # of another machine
    place = f"this spec on {lender.target['model']}" if own else f"{lender.spec}, {why}"
    return f"the knobs that {'won' if origin == MEASURED else f'won, as {origin},'} on {place}"


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
