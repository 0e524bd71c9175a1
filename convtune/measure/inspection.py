"""Inspection: what a candidate's schedule and machine code look like, in a worker process that may die."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from convtune import cache_model, codegen, space, targets
from convtune.assembly import Listing, listing
from convtune.errors import ScheduleError, TargetError, UnknownNameError
from convtune.measure.builder import scheduled
from convtune.measure.home import Home
from convtune.measure.worker import MEMORY_BYTES, Pool
from convtune.record import METASCHEDULE

if TYPE_CHECKING:
    from convtune.cache_model import Traffic
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target

TIMEOUT_S = 120.0
WORKERS = 2


@dataclass(frozen=True)
class Inspected:
    """A schedule as TVM script, its machine code's instructions, and what a model says that its caches fetch.

    listing, traffic: None for a GPU, whose code ptxas made. no_traffic: why the model cannot tell, "" where it does.
    """

    script: str
    listing: Listing | None
    traffic: Traffic | None = None
    no_traffic: str = ""


class Inspector:
    """The service of a worker: schedules, compiles and lists one candidate at a time."""

    def __init__(self, target: Target) -> None:
        self._target, self._tvm_target = target, target.to_tvm()

    def __call__(self, request: tuple[ConvSpec, Candidate]) -> Inspected:
        """Raises what scheduling and compiling raise."""
        import tvm

        spec, candidate = request
        _check(spec, self._target, candidate)
        module, _ = scheduled(spec, self._target, candidate)
        if not isinstance(self._target, targets.CpuTarget):
            return Inspected(module.script(), None)
        compiled = tvm.compile(codegen.any_alignment(module), target=self._tvm_target)
        found = Inspected(module.script(), listing(compiled.mod.inspect_source("asm")))
        try:
            return replace(found, traffic=cache_model.traffic(module, self._target))
        except ScheduleError as error:
            return replace(found, no_traffic=str(error))


def _check(spec: ConvSpec, target: Target, candidate: Candidate) -> None:
    """Raises ScheduleError where this version's space has no such schedule any more; UnknownNameError without it."""
    if candidate.space == METASCHEDULE:
        return
    owner = space.get(candidate.space)
    if not (owner.takes(spec, target) and space.contains(owner, spec, target, candidate.knobs)):
        raise ScheduleError(f"space {candidate.space} of this version has no such schedule")


def inspect(facts: Mapping[str, Any], requests: Sequence[tuple[ConvSpec, Candidate]]) -> list[Inspected | str]:
    """What each candidate looks like on a record's target; where it cannot be built, why not.

    Raises:
        MeasureError: no worker starts.
    """
    try:
        target = named(facts)
    except (TargetError, UnknownNameError) as error:
        return [str(error)] * len(requests)
    home = Home()
    try:
        with Pool(Inspector, (target,), WORKERS, home.path) as pool:
            replies = pool.map(requests, TIMEOUT_S, MEMORY_BYTES)
    finally:
        home.close()
    return [reply.value if reply.status == "ok" else reply.message or reply.status for reply in replies]


def named(facts: Mapping[str, Any]) -> Target:
    """The target that a record was made for, by its name.

    Raises:
        TargetError: that name means another machine here. UnknownNameError: there is no such name.
    """
    target = targets.resolve(str(facts["name"]), facts.get("threads"))
    if target.fingerprint != facts["fingerprint"]:
        raise TargetError(f"{facts['name']!r} is {target.model} here, and the record is of {facts['model']}")
    return target
