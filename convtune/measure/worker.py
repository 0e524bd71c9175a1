"""Worker processes that may crash, hang or eat memory, and a pool of them that goes on regardless."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import math
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import wait
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from convtune.errors import MeasureError

START_TIMEOUT_S = 120.0  # importing TVM takes 1.5 s here, and many times that on a cold, busy machine
WAITING_S = 2.0  # between two signs of life; often enough for a line every ten seconds
MEMORY_BYTES = 4 << 30  # what a request needs whose data is small

_FULL = (os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT))

Service = Callable[..., Callable[[Any], Any]]


@dataclass(frozen=True)
class Reply:
    """What came of a request: status "ok" with a value, or "error", "timeout", "crash" or "out_of_memory"."""

    status: str
    value: Any = None
    message: str = ""


class Worker:
    """One process, in its own session so that the terminal's Ctrl-C passes it by. Starts on demand."""

    def __init__(
        self, service: Service, arguments: tuple[Any, ...], directory: Path, unset: frozenset[str] = frozenset()
    ) -> None:
        self._first_message = (service, arguments)
        self._directory, self._unset = directory, unset
        self._process: subprocess.Popen[bytes] | None = None
        self._timeout_s = 0.0
        self.busy = self.ready = False

    def start(self) -> None:
        """Starts the process unless it runs; returns before it is ready."""
        if self._process is not None:
            return
        self.connection, theirs = Pipe()
        lifeline, self._lifeline = os.pipe()
        self._output = _in_memory()
        descriptors = (theirs.fileno(), lifeline)
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "convtune.measure.worker_main", *map(str, descriptors)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,  # C code prints here too, so replies need a channel of their own
            stderr=subprocess.STDOUT,
            cwd=self._directory,  # which python -m searches first: not where the user happens to be
            env={name: text for name, text in os.environ.items() if name not in self._unset} | {"PYTHONPATH": path},
            pass_fds=descriptors,
            start_new_session=True,
        )
        theirs.close()
        os.close(lifeline)
        self.deadline = time.monotonic() + START_TIMEOUT_S
        self._send(self._first_message)

    def submit(self, request: Any, timeout_s: float, memory_bytes: int) -> None:
        """Sends a request to a ready, idle worker."""
        os.ftruncate(self._output.fileno(), 0)
        self.busy, self._timeout_s = True, timeout_s
        self.deadline = time.monotonic() + timeout_s
        self._send((request, memory_bytes))

    def receive(self) -> Reply | None:
        """The reply, if there is one by now or never will be; then the worker is idle or stopped.

        Raises:
            MeasureError: the process does not start.
        """
        try:
            if self.connection.poll():
                status, value = self.connection.recv()
                return self._received(status, value)
        except (EOFError, OSError):
            return self._died()
        if time.monotonic() < self.deadline:
            return None
        started = self.ready
        self.stop()
        if not started:
            raise MeasureError(f"a worker process was not ready in {START_TIMEOUT_S:g} s; is the machine overloaded?")
        return Reply("timeout", message=f"no answer in {self._timeout_s:g} s")

    def _received(self, status: str, value: Any) -> Reply | None:
        if status == "ready":
            self.ready = True
            return None
        if not self.ready:
            self.stop()
            raise MeasureError(f"a worker process does not start: {self._located(value)}")
        self.busy = False
        if status == "out_of_memory":
            self.stop()  # what it holds on to would be missing to the next request
        return Reply(status, value) if status == "ok" else Reply(status, message=self._located(value))

    def _died(self) -> Reply:
        started, output = self.ready, self._tail()
        code = self.stop()
        cause = signal.Signals(-code).name if code < 0 else f"exited with code {code}"
        message = self._located(f"{cause}; last output: {output}" if output else cause)
        if not started:
            raise MeasureError(f"a worker process does not start: {message}")
        # SIGKILL is not ours here: the kernel sends it when the machine runs out of memory
        out_of_memory = cause == "SIGKILL" or "bad_alloc" in output or "out of memory" in output
        return Reply("out_of_memory" if out_of_memory else "crash", message=message)

    def _tail(self) -> str:
        size = self._output.seek(0, os.SEEK_END)
        self._output.seek(max(size - 2000, 0))
        lines = [line.strip() for line in self._output.read().decode(errors="replace").splitlines()]
        return " / ".join([line for line in lines if line][-2:])[:300]

    def _located(self, message: str) -> str:
        """With the directory, where it says that one is full."""
        full = any(reason in message for reason in _FULL)
        return f"{message}; temporary files are in {self._directory} (see TMPDIR)" if full else message

    def stop(self) -> int:
        """Kills the process and all it started; returns its exit code, as subprocess does, or 0 if there was none."""
        if self._process is None:
            return 0
        with contextlib.suppress(ProcessLookupError):  # gone already, with all of its group
            os.killpg(self._process.pid, signal.SIGKILL)
        code = self._process.wait()
        self._process = None
        self.connection.close()
        os.close(self._lifeline)
        self._output.close()
        self.busy = self.ready = False
        return code

    @property
    def running(self) -> bool:
        return self._process is not None

    @property
    def waits(self) -> bool:
        """Whether it runs, and is to be ready or to answer."""
        return self.running and (self.busy or not self.ready)

    @property
    def died_idle(self) -> bool:
        """Whether the process ended between two requests, so that none is to blame."""
        return self.ready and not self.busy and self.connection.poll()

    def _send(self, message: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # receive() finds out why
            self.connection.send(message)


class Pool:
    """Workers of one service. Requests run in parallel; whatever one does to its worker, the others get replies.

    Args:
        service: called in each worker with `arguments`, it makes the function that answers requests. Found by
            import, so a module-level name.
        size: number of workers.
        directory: where they run, for temporary files; exists.
        unset: environment variables that the workers do not get.

    Attributes:
        on_wait: called every `WAITING_S` seconds in which no worker answers. What it raises ends the requests.
    """

    def __init__(
        self,
        service: Service,
        arguments: tuple[Any, ...],
        size: int,
        directory: Path,
        unset: frozenset[str] = frozenset(),
    ) -> None:
        self.on_wait: Callable[[], None] | None = None
        self._workers = [Worker(service, arguments, directory, unset) for _ in range(size)]

    def start(self) -> None:
        """Starts all workers, without waiting until they are ready."""
        for worker in self._workers:
            worker.start()

    def map(self, requests: Sequence[Any], timeout_s: float, memory_bytes: int) -> list[Reply]:
        """One reply per request, in their order.

        Args:
            timeout_s: for each, from when it starts.
            memory_bytes: what its worker may use meanwhile, beyond what it had once the service was made.

        Raises:
            MeasureError: a worker does not start.
        """
        replies: dict[int, Reply] = {}
        with self.begin(requests, timeout_s, memory_bytes) as batch:
            while len(replies) < len(requests):
                batch.submit()
                wait_for(self._workers, self.on_wait)
                replies |= batch.replies()
        return [replies[index] for index in range(len(requests))]

    def begin(self, requests: Sequence[Any], timeout_s: float, memory_bytes: int) -> Batch:
        """The requests of `map`, for a caller that has other things to do until there are replies."""
        return Batch(self._workers, requests, timeout_s, memory_bytes)

    def call(self, request: Any, timeout_s: float, memory_bytes: int) -> Reply:
        """`map` for one request."""
        return self.map([request], timeout_s, memory_bytes)[0]

    def stop(self) -> None:
        """Kills all workers. They start again when they are needed."""
        for worker in self._workers:
            worker.stop()

    def __enter__(self) -> Pool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Batch:
    """Requests that workers answer side by side. A context manager: those left at its end get no reply."""

    def __init__(self, workers: Sequence[Worker], requests: Sequence[Any], timeout_s: float, memory_bytes: int) -> None:
        """As `Pool.map`. workers: all idle."""
        self.workers, self._requests = workers, requests
        self._timeout_s, self._memory_bytes = timeout_s, memory_bytes
        self._pending = deque(range(len(requests)))
        self._running: dict[Worker, int] = {}

    @property
    def open(self) -> int:
        """How many requests have no reply yet."""
        return len(self._pending) + len(self._running)

    def submit(self) -> None:
        """Gives what is pending to workers that are free, and starts those that are needed."""
        for worker in self.workers[: self.open]:
            if worker.died_idle:
                worker.stop()
            worker.start()
        free = [worker for worker in self.workers if worker.ready and not worker.busy]
        for worker, index in zip(free, list(self._pending)):
            self._running[worker] = self._pending.popleft()
            worker.submit(self._requests[index], self._timeout_s, self._memory_bytes)

    def replies(self) -> dict[int, Reply]:
        """Those that came by now, by the index of their request. Raises MeasureError: a worker does not start."""
        came = {}
        for worker in self.workers:
            reply = worker.receive() if worker.waits else None
            if reply is not None:
                came[self._running.pop(worker)] = reply
        return came

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self._running:
            worker.stop()  # interrupted: its late reply must not be taken for the next request's


def wait_for(workers: Iterable[Worker], on_wait: Callable[[], None] | None, at_most_s: float = math.inf) -> None:
    """Returns when a worker may have something to say, or all was waited for long enough; see `Pool.on_wait`."""
    waiting = [worker for worker in workers if worker.waits]
    seconds = min([at_most_s, *(worker.deadline - time.monotonic() for worker in waiting)])
    if seconds == math.inf:
        return
    if on_wait is not None:
        seconds = min(seconds, WAITING_S)
    heard = wait([worker.connection for worker in waiting], timeout=max(seconds, 0))
    if on_wait is not None and not heard:
        on_wait()


def _in_memory() -> BinaryIO:
    """A file to append to, for what a process prints: where the disk is full, that has to be said."""
    descriptor = os.memfd_create("output")
    fcntl.fcntl(descriptor, fcntl.F_SETFL, fcntl.fcntl(descriptor, fcntl.F_GETFL) | os.O_APPEND)
    return os.fdopen(descriptor, "rb", buffering=0)
