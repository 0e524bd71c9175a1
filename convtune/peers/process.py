"""The process of one contender: it prepares a spec's configurations, checks their results, and takes its turns."""

from __future__ import annotations

import ctypes
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune.peers.base import Configuration, Peer, Prepared, Problem, Unsupported, restored
from convtune.resting import rest

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

UNSET = frozenset({"OPENBLAS_CORETYPE"})
"""Not for the process's environment: on some machines it is set to Haswell, which is not the processor."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_PART = 1 << 16  # elements: in float64 they fit in the second cache of any CPU


@dataclass(frozen=True)
class Job:
    """A spec to compute. seed: of `random_operands`. reference: a .npy file. package: see `Problem`."""

    spec: ConvSpec
    seed: int
    reference: Path
    package: Path | None = None


@dataclass(frozen=True)
class Prepare:
    """Asks for a `Checked`."""

    job: Job
    configuration: Configuration


@dataclass(frozen=True)
class Checked:
    """A configuration's first call. error: max |y - reference| / max |reference|, None where y is not finite.

    unsupported: why it cannot be; "" where it can.
    """

    error: float | None = None
    unsupported: str = ""


@dataclass(frozen=True)
class Turn:
    """Asks for a `Taken` of a prepared configuration: calls that fill `seconds`, at least `fewest`."""

    configuration: Configuration
    seconds: float
    fewest: int


@dataclass(frozen=True)
class Taken:
    """A turn that was taken. seconds: the median of its calls. others: see `CpuTimes`."""

    seconds: float
    others: float


class Contender:
    """Answers `Prepare` with `Checked`, and `Turn` with `Taken`. Holds the configurations of one job at a time."""

    def __init__(self, peer: Peer, threads: int) -> None:
        _keep_freed_memory()
        self._peer, self._threads = peer, threads
        peer.start(threads)
        self._job: Job | None = None
        self._problem: Problem | None = None
        self._expected: Expected | None = None
        self._prepared: dict[Configuration, Prepared] = {}

    def __call__(self, request: Prepare | Turn) -> Checked | Taken:
        if isinstance(request, Turn):
            if request.configuration not in self._prepared:
                raise RuntimeError("its process ended between two turns")
            return self._turn(self._prepared[request.configuration].call, request)
        return self._prepare(request.job, request.configuration)

    def _prepare(self, job: Job, configuration: Configuration) -> Checked:
        if self._problem is None or job != self._job:
            self._open(job)
        assert self._problem is not None
        assert self._expected is not None
        try:
            prepared = self._peer.prepare(self._problem, configuration)
        except Unsupported as reason:
            return Checked(unsupported=str(reason))
        prepared.call()
        error = self._expected.error(restored(prepared.output(), job.spec, configuration.layout))
        self._prepared[configuration] = prepared
        rest()
        return Checked(error)

    def _open(self, job: Job) -> None:
        from convtune.reference import random_operands

        # before others are made: they may be large
        self._job, self._problem, self._expected, self._prepared = None, None, None, {}
        self._problem = Problem(job.spec, random_operands(job.spec, job.seed), self._threads, job.package)
        self._expected = Expected(job.reference)
        self._job = job

    def _turn(self, call: Callable[[], object], turn: Turn) -> Taken:
        """What others did since has put data and code out of the caches and threads to sleep, so that a part of the
        turn is not counted."""
        before = CpuTimes.now()
        warm = time.perf_counter() + turn.seconds / 4
        call()
        while time.perf_counter() < warm:
            call()
        times: list[float] = []
        end = time.perf_counter() + turn.seconds
        while time.perf_counter() < end or len(times) < turn.fewest:
            times.append(_seconds(call))
        others = CpuTimes.now().others_since(before)
        rest()
        return Taken(statistics.median(times), others)


@dataclass(frozen=True)
class CpuTimes:
    """Seconds so far: of the clock, of this process on all CPUs, and that the CPUs it may use were busy or stolen."""

    clock: float
    own: float
    busy: float
    cpus: int

    @classmethod
    def now(cls) -> CpuTimes:
        mine = {f"cpu{cpu}" for cpu in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
        # user nice system idle iowait irq softirq steal, in ticks; guests are counted as user already
        ticks = sum(sum(map(int, line[1:4])) + sum(map(int, line[6:9])) for line in lines if line[0] in mine)
        return cls(time.perf_counter(), time.process_time(), ticks / os.sysconf("SC_CLK_TCK"), len(mine))

    def others_since(self, before: CpuTimes) -> float:
        """The share of these CPUs' time that others had.

        The kernel counts ticks of 10 ms: one of a short turn is rough, and may be negative; so it must be for the mean
        of many to be right.
        """
        others = (self.busy - before.busy) - (self.own - before.own)
        return others / max((self.clock - before.clock) * self.cpus, 1e-9)


def _seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Expected:
    """The reference that results are compared with."""

    def __init__(self, path: Path) -> None:
        """path: of a .npy file, which stays mapped."""
        import numpy as np

        self._y = np.load(path, mmap_mode="r")
        self._largest = max(float(self._y.max()), -float(self._y.min())) or 1.0

    def error(self, y: NDArray[Any]) -> float | None:
        """max |y - reference| / max |reference|, None where y is not finite. Raises ValueError for another shape."""
        if y.shape != self._y.shape:
            raise ValueError(f"its result has shape {y.shape}; the spec's is {self._y.shape}")
        greatest = _greatest_difference(y, self._y)
        return greatest / self._largest if math.isfinite(greatest) else None


def _greatest_difference(y: NDArray[Any], expected: NDArray[Any]) -> float:
    """max |y - expected|, NaN where y has one.

    In parts: the difference of a large result, in float64, would take more time and memory than the library does, the
    more so where y is in another order.
    """
    import numpy as np

    if y.size <= _PART:
        return float(np.abs(y - expected).max())
    if len(y) == 1:
        return _greatest_difference(y[0], expected[0])
    rows = max(_PART * len(y) // y.size, 1)
    parts = [slice(start, start + rows) for start in range(0, len(y), rows)]
    return float(np.max([_greatest_difference(y[part], expected[part]) for part in parts]))


def _keep_freed_memory() -> None:
    """Has malloc reuse what was freed: given back and taken again, each page of a large result would fault anew."""
    c = ctypes.CDLL(None)
    if hasattr(c, "mallopt"):  # musl has none
        c.mallopt(_M_MMAP_MAX, 0)
        c.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
