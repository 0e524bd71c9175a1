"""The contract of a schedule space, and the candidates it spans."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from convtune.accuracy import STANDARD
from convtune.discovery import discover
from convtune.errors import ScheduleError, TargetError, UnknownNameError

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import Target

KnobValue = int | str
Knobs = Mapping[str, KnobValue]
PackStep = Mapping[str, Any]
Machine = TypeVar("Machine", bound="Target")


class Space(ABC, Generic[Machine]):
    """A hand-written family of schedules with named knobs of finite domain. An instance is stateless.

    Machine: the kind of target it is for. The other methods are called with a target that `accepts` said yes to.
    """

    name: str
    summary: str
    last_resort: ClassVar[bool] = False
    """Whether it is for what no other space accepts."""
    dtypes: ClassVar[tuple[str, ...]] = ("float32",)
    """Of the specs that `accepts` is asked about."""

    @abstractmethod
    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        """Whether this space can schedule the spec, which is of one of its dtypes, on the target."""

    def takes(self, spec: ConvSpec, target: Target) -> bool:
        """Whether this space has a schedule of the spec for the target."""
        return spec.dtype in self.dtypes and self.accepts(spec, target) and _has_candidates(self, spec, target)

    @abstractmethod
    def knobs(self, spec: ConvSpec, target: Machine) -> Mapping[str, tuple[KnobValue, ...]]:
        """Each knob's values, in order, without hopeless ones (registers, code size, caches)."""

    def allows(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> bool:
        """Whether values, each in its domain, go together."""
        return True

    @abstractmethod
    def default(self, spec: ConvSpec, target: Machine) -> Knobs:
        """Knobs that are good with no tuning, from the target's facts. Always in the domain."""

    def expected_error(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> float:
        """What the error will be about, rather above than below it, so that no time is lost on schedules that cannot
        pass an accuracy; 0 where it is that of direct sums. What is measured decides all the same."""
        return 0.0

    def default_within(self, spec: ConvSpec, target: Machine, max_error: float) -> Knobs | None:
        """The default among knobs whose expected error is at most that; None where there are none."""
        knobs = default_knobs(self, spec, target)
        return knobs if self.expected_error(spec, target, knobs) <= max_error else None

    def features(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> Mapping[str, float]:
        """Numbers that explain a schedule's speed better than its knobs do, such as the registers it holds, for the
        search's model; the same names whatever the knobs. Called for thousands of candidates, so it must be cheap."""
        return {}

    @abstractmethod
    def pack(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        """For each weight the steps that turn PyTorch's layout into what the kernel reads (`runtime.packing`)."""

    @abstractmethod
    def schedule(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> Any:
        """The scheduled tvm.IRModule, whose `main` takes the arguments in the order of `arguments`.

        Raises:
            ScheduleError: the knobs are outside the domain.
        """


class Estimating(Space[Machine]):
    """A space with a model of its own time, which gives the default and helps the search."""

    @abstractmethod
    def estimate(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> float:
        """Cycles of one call, coarsely: it orders schedules and is never shown as a time."""

    def default(self, spec: ConvSpec, target: Machine) -> Knobs:
        return min(all_knobs(self, spec, target), key=lambda knobs: self.estimate(spec, target, knobs))

    def features(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> Mapping[str, float]:
        return {"log_estimate": math.log(self.estimate(spec, target, knobs))}


@dataclass(frozen=True)
class Within(Estimating[Machine]):
    """A space without the candidates whose expected error is above a limit."""

    space: Estimating[Machine]
    max_error: float

    @property
    def name(self) -> str:  # type: ignore[override]  # the space's own: its candidates are that space's
        return self.space.name

    @property
    def summary(self) -> str:  # type: ignore[override]
        return self.space.summary

    def accepts(self, spec: ConvSpec, target: Target) -> bool:
        return self.space.accepts(spec, target)

    def knobs(self, spec: ConvSpec, target: Machine) -> Mapping[str, tuple[KnobValue, ...]]:
        return self.space.knobs(spec, target)

    def allows(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> bool:
        allowed = self.space.allows(spec, target, knobs)
        return allowed and self.space.expected_error(spec, target, knobs) <= self.max_error

    def default(self, spec: ConvSpec, target: Machine) -> Knobs:
        knobs = self.space.default_within(spec, target, self.max_error)
        return knobs if knobs is not None else super().default(spec, target)

    def estimate(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> float:
        return self.space.estimate(spec, target, knobs)

    def features(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> Mapping[str, float]:
        return self.space.features(spec, target, knobs)

    def pack(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> tuple[tuple[PackStep, ...], ...]:
        return self.space.pack(spec, target, knobs)

    def schedule(self, spec: ConvSpec, target: Machine, knobs: Knobs) -> Any:
        return self.space.schedule(spec, target, knobs)


@dataclass(frozen=True)
class Candidate:
    """A space and one value per knob. Equal candidates have equal keys, in every process and version."""

    space: str
    knobs: Knobs

    @property
    def key(self) -> str:
        text = json.dumps([self.space, sorted(self.knobs.items())], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        if "trace" in self.knobs:  # of MetaSchedule: some kilobytes
            return f"{self.space}({self.key})"
        return f"{self.space}({', '.join(f'{k}={v}' for k, v in self.knobs.items())})"


def known() -> Mapping[str, Space[Any]]:
    """All spaces by name."""
    return discover("convtune.schedules", Space)


def get(name: str) -> Space[Any]:
    """The space of that name; raises UnknownNameError with the near ones."""
    try:
        return known()[name]
    except KeyError:
        raise UnknownNameError("space", name, known()) from None


def accepting(spec: ConvSpec, target: Target, max_error: float = math.inf) -> list[Space[Any]]:
    """The spaces that accept the spec, the last resort only where it is the only one. Never empty.

    Without candidates whose expected error is above max_error.

    Raises:
        TargetError: no space accepts it on this target.
    """
    spaces = [space for space in known().values() if space.takes(spec, target)]
    if not spaces:
        dtypes = sorted({d for space in known().values() if space.accepts(spec, target) for d in space.dtypes})
        others = dtypes and spec.dtype not in dtypes
        refused = f"{spec.dtype}; allowed: {', '.join(dtypes)}" if others else "it"
        raise TargetError(f"target {target.name!r}: no schedule space of this version accepts {refused} (spec: {spec})")
    first = [s for s in spaces if not s.last_resort]
    limited = [within(space, max_error) for space in first or spaces]
    return [space for space in limited if space.takes(spec, target)] or spaces


def within(space: Space[Any], max_error: float) -> Space[Any]:
    """The space without candidates whose expected error is above that; itself where all sums are direct."""
    approximates = type(space).expected_error is not Space.expected_error
    return Within(space, max_error) if approximates and isinstance(space, Estimating) else space


def enumerate_candidates(space: Space[Machine], spec: ConvSpec, target: Machine) -> Iterator[Candidate]:
    """Every candidate of the space, the default first, each once."""
    default = Candidate(space.name, dict(default_knobs(space, spec, target)))
    yield default
    for knobs in all_knobs(space, spec, target):
        if knobs != default.knobs:
            yield Candidate(space.name, knobs)


def all_knobs(space: Space[Machine], spec: ConvSpec, target: Machine) -> Iterator[Knobs]:
    """Every combination of knobs that the space allows."""
    domain = space.knobs(spec, target)
    for values in itertools.product(*domain.values()):
        knobs = dict(zip(domain, values))
        if space.allows(spec, target, knobs):
            yield knobs


@functools.lru_cache(maxsize=1 << 12)
def _has_candidates(space: Space[Any], spec: ConvSpec, target: Target) -> bool:
    """Whether the domain is not empty, as it may be for a machine with hardly any registers or shared memory."""
    return next(all_knobs(space, spec, target), None) is not None


def contains(space: Space[Machine], spec: ConvSpec, target: Machine, knobs: Knobs) -> bool:
    """Whether these knobs, and no others, have values of the domain that the space allows together."""
    domain = space.knobs(spec, target)
    valid = knobs.keys() == domain.keys() and all(value in domain[name] for name, value in knobs.items())
    return valid and space.allows(spec, target, knobs)


def checked(candidate: object, spec: ConvSpec, target: Target) -> Candidate:
    """The candidate itself, its integers as Python's. For what a caller made; its space takes the spec on the target.

    Raises:
        UnknownNameError: there is no such space, or it has no such knob for the spec.
        ScheduleError: it is no Candidate, its space does not take the spec, a knob is missing, a value is not in its
            domain, or the values do not go together.
    """
    named = isinstance(candidate, Candidate) and isinstance(candidate.space, str)
    if not (isinstance(candidate, Candidate) and named and isinstance(candidate.knobs, Mapping)):
        raise ScheduleError(f"candidate is {candidate!r}; it must be a Candidate: a space's name, and a value per knob")
    owner, whose = get(candidate.space), f"(spec: {spec})"
    if not owner.takes(spec, target):
        names = ", ".join(each.name for each in accepting(spec, target))
        raise ScheduleError(f"space {owner.name!r} of the candidate does not take this; allowed: {names} {whose}")
    domain = owner.knobs(spec, target)
    for name in candidate.knobs:
        if name not in domain:
            raise UnknownNameError(f"knob of {owner.name}", name, domain)
    knobs: dict[str, KnobValue] = {}
    for name, allowed in domain.items():
        values = f"it must be one of {', '.join(map(repr, allowed))} {whose}"
        if name not in candidate.knobs:
            raise ScheduleError(f"knob {name} of {owner.name} is missing; {values}")
        value = candidate.knobs[name]
        usable = isinstance(value, str) or (hasattr(value, "__index__") and not isinstance(value, bool))
        if not (usable and value in allowed):
            raise ScheduleError(f"knob {name}={value!r} of {owner.name} is not allowed; {values}")
        knobs[name] = allowed[allowed.index(value)]
    if not owner.allows(spec, target, knobs):
        given, near = Candidate(owner.name, knobs), Candidate(owner.name, dict(owner.default(spec, target)))
        raise ScheduleError(f"{given}: each knob is allowed, but not all together; the default is {near} {whose}")
    return Candidate(owner.name, knobs)


def default_candidate(spec: ConvSpec, target: Target, max_error: float = STANDARD["float32"]) -> Candidate:
    """What is used with no tuning: the default of the space that estimates its own to be the fastest.

    max_error: none is used whose expected error is above.
    """
    spaces = accepting(spec, target, max_error)
    estimating = [space for space in spaces if isinstance(space, Estimating)]
    if not estimating:
        return Candidate(spaces[0].name, dict(default_knobs(spaces[0], spec, target)))
    defaults = [(space, default_knobs(space, spec, target)) for space in estimating]
    space, knobs = min(defaults, key=lambda pair: pair[0].estimate(spec, target, pair[1]))
    return Candidate(space.name, dict(knobs))


@functools.lru_cache(maxsize=1 << 12)
def default_knobs(space: Space[Any], spec: ConvSpec, target: Target) -> Knobs:
    """`space.default`, remembered: it may look at every candidate, and a search's model asks it for every spec of a
    log."""
    return space.default(spec, target)
