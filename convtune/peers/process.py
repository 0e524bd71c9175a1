"""The process of one contender: it prepares a spec's configurations, checks their results, and takes its turns."""

from __future__ import annotations

import ctypes
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune.peers.base import Configuration, Peer, Prepared, Problem, Unsupported, restored

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

UNSET = frozenset({"OPENBLAS_CORETYPE"})
"""Not for the process's environment: on some machines it is set to Haswell, which is not the processor."""
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_REST_STEP_S, _REST_CPU_S, _REST_LONGEST_S = 2e-3, 4e-4, 0.25


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
    """A configuration's first calls. error: max |y - reference| / max |reference|, None where y is not finite.

    call_s: seconds of a call, the lesser of two. unsupported: why it cannot be; "" where it can.
    """

    error: float | None = None
    call_s: float = 0.0
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
        try:
            prepared = self._peer.prepare(self._problem, configuration)
        except Unsupported as reason:
            return Checked(unsupported=str(reason))
        prepared.call()
        error = _error(restored(prepared.output(), job.spec, configuration.layout), job.reference)
        call_s = min(_seconds(prepared.call) for _ in range(2))
        self._prepared[configuration] = prepared
        _rest()
        return Checked(error, call_s)

    def _open(self, job: Job) -> None:
        from convtune.reference import random_operands

        self._job, self._problem, self._prepared = None, None, {}  # before others are made: they may be large
        self._problem = Problem(job.spec, random_operands(job.spec, job.seed), self._threads, job.package)
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
        _rest()
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


def _error(y: NDArray[Any], reference: Path) -> float | None:
    import numpy as np

    expected = np.load(reference, mmap_mode="r")
    if y.shape != expected.shape:
        raise ValueError(f"its result has shape {y.shape}; the spec's is {expected.shape}")
    largest = float(np.abs(expected).max())
    error = float(np.abs(y - expected).max()) / (largest or 1.0)
    return error if np.isfinite(error) else None


def _rest() -> None:
    """Returns when none of this process's threads spins any more, so that the next one's turn is its own.

    A library's threads look out for more work for some milliseconds before they sleep. One that never sleeps is
    waited for in vain, a quarter of a second long.
    """
    end = time.perf_counter() + _REST_LONGEST_S
    while time.perf_counter() < end:
        busy = time.process_time()
        time.sleep(_REST_STEP_S)
        if time.process_time() - busy < _REST_CPU_S:
            return


def _keep_freed_memory() -> None:
    """Has malloc reuse what was freed: given back and taken again, each page of a large result would fault anew."""
    c = ctypes.CDLL(None)
    if hasattr(c, "mallopt"):  # musl has none
        c.mallopt(_M_MMAP_MAX, 0)
        c.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
