"""Serves this machine to tuners through TVM's RPC: processes that are started again when they end, and end with us."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from convtune.errors import TargetError
from convtune.remote import Remote

PORTS = range(9200, 9300)
"""Of which a server takes the first that is free."""
_PAUSES_S = (1.0, 10.0)  # before a process is started again, the first and the longest: tuners wait 60 s for a server
_LIVED_S = 30.0  # after which an end is the first one again
_LOOK_S = 0.2  # between two looks at the processes


class _ToldToEndError(Exception):
    """A signal came; which one."""


@dataclass(frozen=True)
class Listener:
    """A socket that listens at host:port. It is held here, so that no restart loses the port."""

    socket: socket.socket
    host: str
    port: int

    @property
    def address(self) -> str:
        return Remote(self.host, self.port, "").address


@contextmanager
def listening(host: str, ports: Sequence[int]) -> Iterator[Listener]:
    """At the first of the ports that is free. Raises TargetError where none is, or the host is no address of ours."""
    with socket.socket(_resolved(host)[0], socket.SOCK_STREAM) as opened:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for port in ports:
            try:
                opened.bind((host, port))
                opened.listen()
            except OSError as error:
                if error.errno == errno.EADDRINUSE and port != ports[-1]:
                    continue
                place = Remote(host, port, "").address
                tried = f"; tried were the ports {ports[0]} to {ports[-1]}" if len(ports) > 1 else ""
                raise TargetError(f"cannot listen at {place}: {error.strerror}{tried}") from error
            break
        _notice_dead_peers(opened)
        yield Listener(opened, host, port)


def _notice_dead_peers(opened: socket.socket) -> None:
    """Connections that it accepts end a minute after their other machine was switched off."""
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 60_000)  # in ms, where data was sent meanwhile
    for option, value in ((socket.TCP_KEEPIDLE, 30), (socket.TCP_KEEPINTVL, 10), (socket.TCP_KEEPCNT, 3)):
        opened.setsockopt(socket.IPPROTO_TCP, option, value)


def is_loopback(host: str) -> bool:
    """Whether the host is reached from its own machine alone. Raises TargetError where nobody knows its address."""
    return ipaddress.ip_address(_resolved(host)[1]).is_loopback


def _resolved(host: str) -> tuple[socket.AddressFamily, str]:
    try:
        family, _, _, _, place = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise TargetError(f"host {host!r} is no address, and nobody knows it: {error.strerror}") from error
    return family, str(place[0]).partition("%")[0]


@dataclass
class _Process:
    """`server_main` in a session of its own, where Ctrl-C passes it by, with a directory for its temporary files."""

    name: str
    listener: Listener
    arguments: tuple[str, ...]
    directory: Path
    pause_s: float = _PAUSES_S[0]
    start_at: float = 0.0
    _started_at: float = 0.0
    _running: subprocess.Popen[bytes] | None = field(default=None, init=False)

    def start(self, lifeline: int) -> None:
        """lifeline: the reading end of a pipe to which only we can write."""
        self.directory.mkdir(exist_ok=True)
        descriptors = (self.listener.socket.fileno(), lifeline)
        path = os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path)
        self._running = subprocess.Popen(
            [sys.executable, "-m", "convtune.server_main", self.name, *map(str, descriptors), *self.arguments],
            stdin=subprocess.DEVNULL,
            stdout=2,  # what a library prints is no result
            cwd=self.directory,  # which python -m searches first: not where the user happens to be
            env={**os.environ, "TMPDIR": str(self.directory), "PYTHONPATH": path},
            pass_fds=descriptors,
            start_new_session=True,
        )
        self._started_at = time.monotonic()

    @property
    def running(self) -> bool:
        return self._running is not None

    def look(self) -> str:
        """What is to be said of it: how it ended, where it did since the last look."""
        if self._running is None or (code := self._running.poll()) is None:
            return ""
        now = time.monotonic()
        self.pause_s = _PAUSES_S[0] if now - self._started_at > _LIVED_S else self.pause_s
        self.start_at = now + self.pause_s
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        said = f"the {self.name} ended ({how}); it is started again in {self.pause_s:g} s"
        self.pause_s = min(2 * self.pause_s, _PAUSES_S[1])
        self.end()
        return said

    def end(self) -> None:
        """Kills it with all that it started, and removes their files."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):  # gone already, with all of its group
                os.killpg(self._running.pid, signal.SIGKILL)
            self._running.wait()
            self._running = None
        shutil.rmtree(self.directory, ignore_errors=True)


def serve(remote: Remote, host: str, ports: Sequence[int], with_tracker: bool, say: Callable[[str], None]) -> None:
    """Registers this machine with the remote's tracker, under its key, until SIGINT, SIGTERM or SIGHUP.

    Args:
        host, ports: where the server listens, at the first port that is free.
        with_tracker: the tracker is started here too, at its address.
        say: called with every line for the user.

    Raises:
        TargetError: the tracker does not answer, the ports are taken, or clients cannot reach the host.
    """
    from convtune.measure.home import Home  # NumPy comes with it

    _check_reachable(remote, host)
    with ExitStack() as stack:
        processes = []
        home = stack.enter_context(contextlib.closing(Home())).path
        if with_tracker:
            at_tracker = stack.enter_context(listening(remote.host, [remote.port]))
            processes.append(_Process("tracker", at_tracker, (), home / "tracker"))
        else:
            remote.servers()
        listener = stack.enter_context(listening(host, ports))
        arguments = (remote.host, str(remote.port), remote.key, *_told_address(host), str(listener.port))
        processes.append(_Process("server", listener, arguments, home / "server"))
        for process in processes:
            stack.callback(process.end)
            _warn(process, say)
        say(f"serves as {remote.key!r} at {listener.address}, by tracker {remote.address}; Ctrl-C ends it")
        stack.enter_context(_signals())
        try:
            _supervise(processes, say)
        except _ToldToEndError as told:
            say(f"ended by {told}")


def _supervise(processes: Sequence[_Process], say: Callable[[str], None]) -> None:
    lifeline, ours = os.pipe()  # ours closes when this process ends, however it does
    try:
        while True:
            for process in processes:
                if said := process.look():
                    say(said)
                if not process.running and time.monotonic() >= process.start_at:
                    process.start(lifeline)
            time.sleep(_LOOK_S)
    finally:
        os.close(ours)
        os.close(lifeline)


def _check_reachable(remote: Remote, host: str) -> None:
    if is_loopback(host) and not is_loopback(remote.host):
        raise TargetError(
            f"the server would listen at {host}, which tracker {remote.address} and its clients cannot reach; give "
            "--host with this machine's address in their network, or a tunnel's end on this machine as --tracker"
        )


def _told_address(host: str) -> tuple[str]:
    """What the tracker is told; it takes "" for the address that it sees itself."""
    return ("" if ipaddress.ip_address(_resolved(host)[1]).is_unspecified else host,)


def _warn(process: _Process, say: Callable[[str], None]) -> None:
    if not is_loopback(process.listener.host):
        say(
            f"warning: the {process.name} listens at {process.listener.address}; the protocol asks nobody who they "
            "are, and whoever reaches a server can run any program on its machine"
        )


@contextmanager
def _signals() -> Iterator[None]:
    def tell(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)  # once is enough: what follows must not be interrupted
        raise _ToldToEndError(signal.Signals(number).name)

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
