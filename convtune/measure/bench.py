"""Builds, verifies and times candidates in worker processes, so that none can take the tuner down with it."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from convtune import linker
from convtune.errors import MeasureError, TargetError
from convtune.measure.builder import Builder, BuildRequest, Library
from convtune.measure.device import Compare, Device, Measure, Measurement, Prepare
from convtune.measure.home import Home
from convtune.measure.worker import MEMORY_BYTES, Pool, Reply, Service
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from convtune.space import Candidate
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


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
    or an estimate. resources: of a GPU's kernels, as `record.Record` has them.
    """

    status: str
    message: str = ""
    error: float | None = None
    times_us: tuple[float, ...] = ()
    build_s: float | None = None


@dataclass
class Bench:
    """A build worker per core, and one worker in which kernels run. A context manager; for one thread.

    directory: where its temporary directory goes; None: the system's place. seed: of the operands.
    """

    target: CpuTarget
    directory: Path | None = None
    limits: Limits = field(default_factory=Limits)
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises TargetError where there is no C compiler for the target."""
        cache = cache_dir()
        # now, in this process: without it every candidate would be a build error
        linker.build_runtime(linker.find_compiler(self.target.machine), cache)
        self._temporary = Home(self.directory)
        self._home, self._numbers = self._temporary.path, itertools.count()
        self._builders = Pool(Builder, (self.target, cache), len(os.sched_getaffinity(0)), self._home)
        self._device = Pool(Device, (self._home, self.target.threads, self.seed), 1, self._home)
        self._prepared: ConvSpec | None = None

    def start(self) -> None:
        """Starts all workers without waiting; otherwise they start when they are needed."""
        self._builders.start()
        if self.runs:
            self._device.start()

    def build(self, spec: ConvSpec, candidates: Sequence[Candidate]) -> list[Built]:
        """Builds the candidates in parallel; one result each, in their order.

        Raises:
            MeasureError: a worker does not start.
        """
        directories = [self._home / f"candidate-{next(self._numbers)}" for _ in candidates]
        for directory in directories:
            directory.mkdir()
        requests = [BuildRequest(spec, candidate, directory) for candidate, directory in zip(candidates, directories)]
        replies = self._builders.map(requests, self.limits.build_s, self.limits.memory_bytes)
        return [self._built(request, reply) for request, reply in zip(requests, replies)]

    def _built(self, request: BuildRequest, reply: Reply) -> Built:
        if reply.status == "ok":
            return Built(request.candidate, "ok", library=reply.value)
        shutil.rmtree(request.directory)
        status = "build_error" if reply.status == "error" else reply.status
        message = reply.message if reply.status == "error" else f"while building: {reply.message}"
        return Built(request.candidate, status, message)

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

    def _timing(self, spec: ConvSpec, library: Library, limit: float, best_us: float | None) -> Any:
        """The request to the device worker that `measure` makes."""
        return Measure(spec, library.path, library.pack, limit, best_us, timed=True)

    def _verifying(self, spec: ConvSpec, library: Library, limit: float) -> Any:
        return Measure(spec, library.path, library.pack, limit, None, timed=False)

    def _outcome(self, spec: ConvSpec, built: Built, request: Callable[[Library], Any]) -> Outcome:
        library = built.library
        if library is None:
            return Outcome(built.status, built.message)
        self._prepare(spec)
        reply = self._device.call(request(library), self.limits.device(spec), self.limits.memory(spec))
        outcome = Outcome("", build_s=library.build_s, resources=library.resources)
        if reply.status == "ok":
            found: Measurement = reply.value
            times_us = found.times_us or library.estimates_us if found.status == "ok" else ()
            outcome = replace(outcome, status=found.status, message=found.message, error=found.error, times_us=times_us)
            if found.suspect:
                self._device.stop()
        else:
            outcome = replace(outcome, status=reply.status, message=f"while running: {reply.message}")
        if outcome.status != "ok":
            self.discard(built)
        return outcome

    def finals(self, spec: ConvSpec, built: Sequence[Built], rounds: int = 9) -> list[tuple[float, ...]]:
        """Times verified kernels in turn, A B C A B C …; all times of each in microseconds. The lowest median wins.

        Raises:
            MeasureError: one of them failed after all.
        """
        libraries = [b.library for b in built if b.library is not None]
        if len(libraries) != len(built):
            raise MeasureError("finals of a candidate that was not built; every finalist must have been measured")
        self._prepare(spec)
        request = Compare(spec, tuple((library.path, library.pack) for library in libraries), rounds)
        seconds = self.limits.device(spec) * (1 + len(libraries))
        reply = self._device.call(request, seconds, self.limits.memory(spec))
        if reply.status != "ok":
            raise MeasureError(f"finals of {spec} failed ({reply.status}): {reply.message}")
        times: list[tuple[float, ...]] = reply.value
        return times

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
