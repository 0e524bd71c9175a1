"""A session with a TVM RPC server: puts files and arrays on its machine, and runs and times kernels there."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convtune.errors import TargetError
from convtune.measure.guards import OUTSIDE, UNWRITTEN
from convtune.measure.timing import PLAN
from convtune.runtime.names import RUNTIME_NAME

RUNNER_NAME = "rpc_runner.so"
_REPORT_BYTES = 2048  # of rpc_runner.c

RemoteArray = Any
"""An array in the memory of the session's process, a tvm.runtime.Tensor."""


@dataclass(frozen=True)
class Job:
    """What all calls have in common.

    threads: of kernels. seconds: after which they are killed. memory_bytes: that they may use beyond the session's.
    """

    threads: int
    seconds: float
    memory_bytes: int


class Session:
    """Calls raise RuntimeError, as TVM does, where the session has ended."""

    def __init__(self, host: str, port: int, key: str, runner: Path, runtime: Path) -> None:
        """With the server that the tracker named. runner, runtime: libraries for its machine.

        Raises TargetError where it is a machine of another kind, which does not load them.
        """
        import tvm
        from tvm import rpc

        self._empty = tvm.runtime.empty
        self._session = rpc.connect(host, port, key)
        self._device = self._session.cpu(0)
        self._session.upload(str(runtime), RUNTIME_NAME)
        self._session.upload(str(runner), RUNNER_NAME)
        try:
            loaded = self._session.load_module(RUNNER_NAME)
        except RuntimeError as error:
            why = f"does not load libraries for the target: {last_line(error)}"
            # Linux says of a library for another processor that there is no such file
            raise TargetError(f"{host}:{port}{self._machine()} {why}") from error
        loaded["watch"](port)
        self._run, self._time = loaded["run"], loaded["time"]
        self._report = self.empty((_REPORT_BYTES,), np.uint8)
        self._numbers = itertools.count()

    def _machine(self) -> str:
        """What it is, in brackets, where TVM there can tell."""
        try:
            return f" ({self._session.get_function('target.llvm_get_system_triple')()})"
        except (AttributeError, RuntimeError):  # TVM without LLVM
            return ""

    @property
    def alive(self) -> bool:
        try:
            self._directory()
        except RuntimeError:
            return False
        return True

    def _directory(self) -> str:
        return str(self._session.get_function("tvm.rpc.server.workpath")("")).rstrip("/")

    @contextmanager
    def uploaded(self, libraries: Sequence[Path]) -> Iterator[list[str]]:
        """The libraries' paths on the session's machine, under names that no other one had in this session."""
        # TVM 0.27: a name that was used before may crash the session
        names = [f"kernel-{next(self._numbers)}.so" for _ in libraries]
        for library, name in zip(libraries, names):
            self._session.upload(str(library), name)
        directory = self._directory()
        yield [f"{directory}/{name}" for name in names]
        for name in names:
            self._session.remove(name)

    def empty(self, shape: Sequence[int], dtype: Any) -> RemoteArray:
        """An array with any contents."""
        return self._empty(tuple(shape), np.dtype(dtype).name, self._device)

    def copy(self, array: NDArray[Any]) -> RemoteArray:
        """A copy there."""
        there = self.empty(array.shape, array.dtype)
        there.copyfrom(np.ascontiguousarray(array))
        return there

    def run(
        self, job: Job, kernel: str, arrays: Sequence[RemoteArray], alignments: Sequence[int], byte: int, at_end: bool
    ) -> str:
        """One call on guarded copies, from which the last array, y, is brought back; its report.

        alignments, byte, at_end: as `verify.judge` and `guards.Guarded` have them.
        """
        element = np.dtype(str(arrays[-1].dtype)).itemsize
        numbers = [*astuple(job), byte, at_end, _word(OUTSIDE, element), _word(UNWRITTEN, element)]
        self._run(_text(self, [kernel]), self._floats([*numbers, *alignments]), self._report, *arrays)
        return self._said()

    def time(
        self,
        job: Job,
        kernels: Sequence[str],
        arrays: Sequence[Sequence[RemoteArray]],
        rounds: int = 0,
        best_s: float = 0.0,
    ) -> tuple[str, NDArray[np.float64]]:
        """The report, and the seconds of a call, shape (repeats, kernels), by `timing.PLAN`.

        rounds: of all in turn; 0: of one until its time is known. best_s: of other kernels; 0: not known.
        """
        numbers = [*astuple(job), len(kernels), rounds, best_s, *astuple(PLAN)]
        seconds = self._floats([0.0] * len(kernels) * max(rounds, PLAN.most))
        flat = itertools.chain.from_iterable(arrays)
        self._time(_text(self, kernels), self._floats(numbers), self._report, seconds, *flat)
        report = self._said()
        repeats = int(report.removeprefix("ok ")) if report.startswith("ok ") else 0
        return report, seconds.numpy()[: repeats * len(kernels)].reshape(repeats, len(kernels))

    def _floats(self, numbers: Sequence[float]) -> RemoteArray:
        return self.copy(np.array(numbers, np.float64))

    def _said(self) -> str:
        text: bytes = self._report.numpy().tobytes()
        return text.partition(b"\0")[0].decode(errors="replace")


def last_line(error: Exception) -> str:
    """The reason, in TVM's long messages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _text(session: Session, lines: Sequence[str]) -> RemoteArray:
    return session.copy(np.frombuffer(b"".join(line.encode() + b"\0" for line in lines), np.uint8))


def _word(patterns: Mapping[int, int], element: int) -> int:
    """Four bytes of the pattern that zones and arrays are full of."""
    return patterns[4] if element == 4 else patterns[2] << 16 | patterns[2]
