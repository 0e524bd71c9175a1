"""Verifies and times kernels on another machine. Runs in the device worker, which may have to be killed for it."""

from __future__ import annotations

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convtune.errors import MeasureError
from convtune.measure.device import Case, Cases, Compare, Measure, Measurement, Prepare
from convtune.measure.rpc_session import Job, RemoteArray, Session, last_line
from convtune.measure.verify import Verdict, alignments_of, difference_in_bits, judge

if TYPE_CHECKING:
    from convtune.measure.rpc_bench import RpcLimits
    from convtune.remote import Remote
    from convtune.spec import ConvSpec

Array = NDArray[Any]


NO_SESSION, SESSION_ENDED = "NoSessionError: ", "SessionEndedError: "
"""What the messages of replies begin with where a machine was lost: before the request came, or while it worked."""
_SILENT_S = 20  # for what a session begins with: a server whose serving thread died accepts it, and is silent


@dataclass(frozen=True)
class Join:
    """Begin a session with the next server of the key that is free, in so many seconds; answered with its HOST:PORT."""

    remote: Remote
    seconds: float


class NoSessionError(Exception):
    """There is no session, or it has ended."""


class SessionEndedError(Exception):
    """The session ended while it had a request."""


class KernelEndedError(Exception):
    """A kernel did not come to its end. status: as a record has it."""

    def __init__(self, status: str, message: str) -> None:
        super().__init__(message)
        self.status = status


class RpcDevice:
    """The service of the device worker. Operands and reference are made here; kernels run where the session is."""

    def __init__(
        self,
        directory: Path,
        threads: int,
        seed: int,
        libraries: tuple[Path, Path],
        limits: RpcLimits,
    ) -> None:
        """directory: for references. threads: that kernels run on. libraries: the runner and the runtime."""
        from tvm import rpc  # noqa: F401  # now, so that no request's time has the second that it takes

        self._cases, self._threads, self._limits = Cases(directory, seed), threads, limits
        self._libraries = libraries
        self._session: Session | None = None
        self._uploads: tuple[Session, ConvSpec, dict[str, RemoteArray]] | None = None

    def __call__(self, request: Join | Prepare | Measure | Compare) -> Any:
        """The answer that the request's class names.

        Raises:
            MeasureError: no server is free, or the finalists of a Compare failed.
            TargetError: the server's machine is of another kind. RuntimeError: it does not answer as a server.
            NoSessionError, SessionEndedError: there is none any more.
        """
        if isinstance(request, Join):
            return self._join(request)
        case = self._cases.of(request.spec)
        if isinstance(request, Prepare):
            return None
        if self._session is None or not self._session.alive:
            self._session = self._uploads = None
            raise NoSessionError("the RPC session ended while it had nothing to do")
        calls = Calls(self._session, case, self._uploaded(self._session, case), self._job(request))
        try:
            return _compare(calls, request) if isinstance(request, Compare) else _measure(calls, request)
        except RuntimeError as error:  # TVM's, for a server that is gone
            raise SessionEndedError(f"the RPC session ended: {last_line(error)}") from error

    def _join(self, request: Join) -> str:
        self._session = self._uploads = None
        server = request.remote.request(request.seconds)
        address = replace(request.remote, host=server[0], port=server[1]).address
        signal.alarm(_SILENT_S)  # ends this worker: TVM waits for ever
        try:
            self._session = Session(*server, *self._libraries)
        except RuntimeError as error:
            raise RuntimeError(f"{address}: {last_line(error)}") from error
        finally:
            signal.alarm(0)
        return address

    def _job(self, request: Measure | Compare) -> Job:
        kernels = len(request.kernels) if isinstance(request, Compare) else 1
        limits, spec = self._limits, request.spec
        return Job(self._threads, kernels * limits.kernel(spec), limits.memory(spec))

    def _uploaded(self, session: Session, case: Case) -> dict[str, RemoteArray]:
        """The arrays that all kernels of a spec share, by name; none as yet, for a new spec or session."""
        if self._uploads is None or self._uploads[:2] != (session, case.spec):
            self._uploads = None  # first, so that the last spec's arrays are gone there
            self._uploads = (session, case.spec, {})
        return self._uploads[2]


class Calls:
    """A spec's kernels on the session's machine."""

    def __init__(self, session: Session, case: Case, shared: dict[str, RemoteArray], job: Job) -> None:
        self.session, self.case, self._shared, self.job = session, case, shared, job

    def arguments(self, inputs: Mapping[str, Array]) -> list[RemoteArray]:
        """There, in their order, y last. What every kernel packs its own way is uploaded now."""
        arrays = [self.session.copy(a) if n.startswith("weight") else self._kept(n, a) for n, a in inputs.items()]
        return [*arrays, self._kept("y", self.case.y)]

    def _kept(self, name: str, array: Array) -> RemoteArray:
        if name not in self._shared:
            self._shared[name] = self.session.copy(array)
        return self._shared[name]

    def run(
        self, kernel: str, names: Sequence[str], arrays: Sequence[RemoteArray], byte: int, at_end: bool
    ) -> Verdict | Array:
        """As `verify.judge` wants it."""
        alignments = list(alignments_of(names).values())
        report = self.session.run(self.job, kernel, arrays, alignments, byte, at_end)
        if found := _misdeed(report, [*names, "y"], [*map(_shape, arrays)]):
            return Verdict(found, overran=True)
        _check(report, self.job)
        y: Array = arrays[-1].numpy()
        return y

    def time(
        self,
        kernels: Sequence[str],
        arrays: Sequence[Sequence[RemoteArray]],
        rounds: int = 0,
        best_us: float | None = None,
    ) -> NDArray[np.float64]:
        """Microseconds, shape (repeats, kernels); as `Session.time`."""
        report, seconds = self.session.time(self.job, kernels, arrays, rounds, 1e-6 * (best_us or 0.0))
        _check(report, self.job)
        return seconds * 1e6


def _measure(calls: Calls, request: Measure) -> Measurement:
    inputs = calls.case.inputs(request.pack)
    arrays = calls.arguments(inputs)
    with calls.session.uploaded([request.library]) as (kernel,):
        return _judged_and_timed(calls, request, kernel, list(inputs), arrays)


def _judged_and_timed(
    calls: Calls, request: Measure, kernel: str, names: Sequence[str], arrays: Sequence[RemoteArray]
) -> Measurement:
    try:
        verdict = judge(
            lambda byte, at_end: calls.run(kernel, names, arrays, byte, at_end), calls.case.reference, request.limit
        )
        if verdict.y is None:
            return Measurement("wrong", verdict.problem, verdict.error)
        if not request.timed:
            return Measurement("ok", "", verdict.error)
        times = calls.time([kernel], [arrays], best_us=request.best_us)
    except KernelEndedError as ended:
        return Measurement(ended.status, f"while running: {ended}")
    if change := difference_in_bits("y", verdict.y, arrays[-1].numpy()):
        return Measurement("wrong", f"gives another result when run often: {change}", verdict.error)
    return Measurement("ok", "", verdict.error, tuple(times[:, 0].tolist()))


def _compare(calls: Calls, request: Compare) -> list[tuple[float, ...]]:
    arrays = [calls.arguments(calls.case.inputs(pack)) for _, pack in request.kernels]
    try:
        with calls.session.uploaded([library for library, _ in request.kernels]) as kernels:
            times = calls.time(kernels, arrays, rounds=request.rounds)
    except KernelEndedError as ended:
        raise MeasureError(f"{ended.status}: {ended}") from ended
    return [tuple(own.tolist()) for own in times.T]


def _shape(array: RemoteArray) -> tuple[int, ...]:
    return tuple(int(extent) for extent in array.shape)


def _misdeed(report: str, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> str:
    """What a kernel did to memory that it must leave alone; "" where it did nothing."""
    kind, *numbers = report.split()
    if kind == "outside":
        index, before, after = map(int, numbers)
        found = [_elements(before, "before its start")] if before else []
        found += [_elements(after, "after its end")] if after else []
        return f"wrote outside {names[index]}: {' and '.join(found)}"
    if kind == "changed":
        index, element = map(int, numbers)
        where = ", ".join(map(str, np.unravel_index(element, shapes[index])))
        return f"changed its input {names[index]}: first {names[index]}[{where}]"
    return ""


def _elements(count: int, where: str) -> str:
    return f"{count} element{'s' if count > 1 else ''} {where}"


def _check(report: str, job: Job) -> None:
    """Raises KernelEndedError unless the report says ok."""
    kind, _, rest = report.partition(" ")
    if kind == "ok":
        return
    if kind == "timeout":
        raise KernelEndedError("timeout", f"no answer in {job.seconds:g} s")
    if kind == "crash":
        name = signal.Signals(int(rest)).name
        # SIGKILL is not ours here: the kernel sends it when the machine runs out of memory
        raise KernelEndedError("out_of_memory" if name == "SIGKILL" else "crash", name)
    if kind == "exited":
        raise KernelEndedError("crash", f"exited with code {rest}")
    line = " ".join(rest.split())
    raise KernelEndedError("out_of_memory" if "MemoryError" in line else "error", line)
