"""Builds, verifies and times candidates in worker processes, so that none can take the tuner down with it."""

from __future__ import annotations

import itertools
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from convtune.errors import MeasureError, TargetError
from convtune.measure.builder import BuildRequest, Library
from convtune.measure.device import Measurement, Prepare
from convtune.measure.home import Home
from convtune.measure.worker import MEMORY_BYTES, Pool, Reply, Service
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import Target


@dataclass(frozen=True)
class Limits:
    """What a request may take, in seconds and in bytes beyond what its worker has when it starts.

    All but building grows with the spec.
    """

    build_s: float = 20.0
    device_s: float = 20.0
    reference_s: float = 60.0
    memory_bytes: int = MEMORY_BYTES

    def device(self, spec: ConvSpec) -> float:
        """Enough for a kernel of 0.2 GFLOP/s, which is slower than a plain scalar loop, to be verified."""
        return self.device_s + 2 * spec.flops / 0.2e9

    def reference(self, spec: ConvSpec) -> float:
        """NumPy's depthwise reference, the slowest, makes 0.2 GFLOP/s on a busy machine."""
        return self.reference_s + spec.flops / 0.2e9

    def memory(self, spec: ConvSpec) -> int:
        """Six times the arrays of the spec's stages besides what any spec may use.

        In float64, the reference of a dense convolution with gelu takes 5.9 times as much, that of depthwise ones 2.5
        times; verifying takes 2.5 to 4.4 times. References of transposed and deformable ones take up to 13 times, for
        which the rest makes up to 0.6 GB.
        """
        return self.memory_bytes + 6 * sum(stage.bytes for stage in spec.stages)


@dataclass(frozen=True)
class Wanted:
    """Candidates of a spec whose outcomes are asked for.

    limit: the largest error allowed. best_us: the best time so far, as of the moment. doing: called with what is going
    on, in words. yardstick: where several machines measure, each measures this candidate first, and an outcome of it
    comes from each: their speeds may differ.
    """

    spec: ConvSpec
    candidates: Sequence[Candidate]
    limit: float
    yardstick: Candidate
    best_us: Callable[[], float | None]
    doing: Callable[[str], None]

    @property
    def how_many(self) -> str:
        return f"{len(self.candidates)} candidate{'s' if len(self.candidates) > 1 else ''}"


@dataclass(frozen=True)
class Built:
    """What came of building a candidate: status "ok" with its library, or why there is none."""

    candidate: Candidate
    status: str
    message: str = ""
    library: Library | None = None


@dataclass(frozen=True)
class Outcome:
    """What came of a candidate, as a record keeps it.

    status: "ok", "wrong", "build_error", "timeout", "crash", "out_of_memory" or "error". message: why it is not ok.
    error: max |y - reference| / max |reference|, None where there is no finite one. times_us: all repeats, in order,
    or an estimate. resources: of a GPU's kernels, as `record.Record` has them. cost, counts: of an emulated kernel, in
    place of times, as `device.Measurement` has them. device: which of the machines over RPC, HOST:PORT.
    """

    status: str
    message: str = ""
    error: float | None = None
    times_us: tuple[float, ...] = ()
    build_s: float | None = None
    resources: Mapping[str, Mapping[str, int]] | None = None
    cost: float | None = None
    counts: Mapping[str, int] | None = None
    device: str | None = None


class Bench(ABC):
    """A build worker per core, and one worker in which kernels run. A context manager; for one thread.

    A subclass says what is in the workers, and where times come from.
    """

    origin: ClassVar[str]
    """Of the times, as a record has it."""
    builder: ClassVar[Service]
    device: ClassVar[Service]
    usual_limits: ClassVar[Limits] = Limits()
    samples: ClassVar[bool] = False
    """Whether `measure` verifies a part of what `verify` does."""
    machines: int = 1
    """On which kernels run."""
    finals_device: str | None = None
    """Which of the machines over RPC the last finals were on, HOST:PORT."""

    def __init__(
        self, target: Target, threads: int, directory: Path | None = None, limits: Limits | None = None, seed: int = 0
    ) -> None:
        """threads: of this machine, that kernels run on. directory: where its temporary directory goes; None: the
        system's place. seed: of the operands.
        """
        self.target, self.limits = target, limits or self.usual_limits
        self._temporary = Home(directory)
        self._home, self._numbers = self._temporary.path, itertools.count()
        self._builders = Pool(self.builder, (target, cache_dir()), len(os.sched_getaffinity(0)), self._home)
        self._device = Pool(self.device, (self._home, threads, seed), 1, self._home)
        self._prepared: ConvSpec | None = None

    @property
    @abstractmethod
    def runs(self) -> bool:
        """Whether the target's kernels run here."""

    @abstractmethod
    def _timing(self, spec: ConvSpec, library: Library, limit: float, best_us: float | None) -> Any:
        """The request to the device worker that `measure` makes."""

    @abstractmethod
    def _verifying(self, spec: ConvSpec, library: Library, limit: float) -> Any:
        """The request to the device worker that `verify` makes."""

    @abstractmethod
    def _times(self, found: Measurement, library: Library) -> tuple[float, ...]:
        """The times in microseconds of a kernel that is right."""

    @abstractmethod
    def _in_turn(self, spec: ConvSpec, libraries: Sequence[Library], rounds: int) -> list[tuple[float, ...]]:
        """The times of `finals`."""

    def start(self) -> None:
        """Starts all workers without waiting; otherwise they start when they are needed."""
        self._builders.start()
        if self.runs:
            self._device.start()

    def while_waiting(self, call: Callable[[], None]) -> None:
        """Has `call` called every few seconds in which no worker answers."""
        self._builders.on_wait = self._device.on_wait = call

    def build(self, spec: ConvSpec, candidates: Sequence[Candidate]) -> list[Built]:
        """Builds the candidates in parallel; one result each, in their order.

        Raises:
            MeasureError: a worker does not start.
        """
        requests = self._build_requests(spec, candidates)
        replies = self._builders.map(requests, self.limits.build_s, self.limits.memory_bytes)
        return [self._built(request, reply) for request, reply in zip(requests, replies)]

    def _build_requests(self, spec: ConvSpec, candidates: Sequence[Candidate]) -> list[BuildRequest]:
        directories = [self._home / f"candidate-{next(self._numbers)}" for _ in candidates]
        for directory in directories:
            directory.mkdir()
        return [BuildRequest(spec, candidate, directory) for candidate, directory in zip(candidates, directories)]

    def _built(self, request: BuildRequest, reply: Reply) -> Built:
        if reply.status == "ok":
            return Built(request.candidate, "ok", library=reply.value)
        shutil.rmtree(request.directory)
        status = "build_error" if reply.status == "error" else reply.status
        message = reply.message if reply.status == "error" else f"while building: {reply.message}"
        return Built(request.candidate, status, message)

    def outcomes(self, wanted: Wanted) -> Iterator[tuple[Built, Outcome]]:
        """Builds candidates and does what `measure` does; each with its outcome as soon as there is one.

        Raises as `measure`.
        """
        wanted.doing(f"building {wanted.how_many}")
        spec = wanted.spec
        for built in self.build(spec, wanted.candidates):  # all before the first is timed, which building would disturb
            wanted.doing("verifying a candidate")
            yield built, self.measure(spec, built, wanted.limit, wanted.best_us())

    def measure(self, spec: ConvSpec, built: Built, limit: float, best_us: float | None = None) -> Outcome:
        """Verifies a kernel against the reference and, if its error is at most `limit`, times it.

        best_us: the best time so far; a kernel far slower is timed less. A candidate that was not built keeps its
        status. The library stays, for `finals`, until `discard`; one that is not ok goes at once.

        Raises:
            MeasureError: the device worker does not start, or the reference cannot be computed.
            TargetError: the target is not this machine.
        """
        return self._outcome(spec, built, lambda library: self._timing(spec, library, limit, best_us))

    def verify(self, spec: ConvSpec, built: Built, limit: float) -> Outcome:
        """As `measure`, without times: a status of "ok" says that the kernel is right."""
        return self._outcome(spec, built, lambda library: self._verifying(spec, library, limit))

    def _outcome(self, spec: ConvSpec, built: Built, request: Callable[[Library], Any]) -> Outcome:
        library = built.library
        if library is None:
            return Outcome(built.status, built.message)
        self._prepare(spec)
        reply = self._device.call(request(library), self.limits.device(spec), self.limits.memory(spec))
        if reply.status == "ok" and reply.value.suspect:
            self._device.stop()
        return self._settled(built, self._answered(library, reply))

    def _settled(self, built: Built, outcome: Outcome) -> Outcome:
        """The outcome, once the library of what is not right is gone."""
        if outcome.status != "ok":
            self.discard(built)
        return outcome

    def _answered(self, library: Library, reply: Reply) -> Outcome:
        """What a device worker's reply says of a kernel."""
        outcome = Outcome("", build_s=library.build_s, resources=library.resources)
        if reply.status != "ok":
            return replace(outcome, status=reply.status, message=f"while running: {reply.message}")
        found: Measurement = reply.value
        times_us = self._times(found, library) if found.status == "ok" else ()
        outcome = replace(outcome, status=found.status, message=found.message, error=found.error, times_us=times_us)
        return replace(outcome, cost=found.cost, counts=found.counts)

    def finals(self, spec: ConvSpec, built: Sequence[Built], rounds: int = 9) -> list[tuple[float, ...]]:
        """Times verified kernels in turn, A B C A B C …; all times of each in microseconds. The lowest median wins.

        Raises:
            MeasureError: one of them failed after all.
        """
        libraries = [b.library for b in built if b.library is not None]
        if len(libraries) != len(built):
            raise MeasureError("finals of a candidate that was not built; every finalist must have been measured")
        return self._in_turn(spec, libraries, rounds)

    def discard(self, built: Built) -> None:
        """Removes a library that is needed no more. Closing removes all."""
        if built.library is not None:
            shutil.rmtree(built.library.path.parent, ignore_errors=True)

    def _prepare(self, spec: ConvSpec) -> None:
        if not self.runs:
            raise TargetError(f"target {self.target.name!r} is not this machine, so its kernels cannot be timed here")
        if spec == self._prepared:
            return
        reply = self._device.call(Prepare(spec), self.limits.reference(spec), self.limits.memory(spec))
        if reply.status != "ok":
            raise MeasureError(f"no reference of {spec} ({reply.status}): {reply.message}")
        self._prepared = spec

    def close(self) -> None:
        """Ends all workers and removes all files. May be called twice."""
        self._builders.stop()
        self._device.stop()
        self._temporary.close()

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
