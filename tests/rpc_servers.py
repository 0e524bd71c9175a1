"""TVM's RPC tracker and server on this machine's loopback, as a user starts them, and ended for sure."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from convtune.errors import TargetError
from convtune.remote import Remote

HOST, KEY = "127.0.0.1", "some-board"
WITHOUT_PYTORCH = str(Path(__file__).parent / "without_pytorch")
"""On its path, a process saves what TVM's import of PyTorch takes."""
_START_S = 60.0  # importing TVM takes 1.5 s, and many times that on a busy machine


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(output: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m` with these arguments, in a group of its own: what TVM's servers start outlives them."""
    path = os.pathsep.join([WITHOUT_PYTORCH, *filter(None, [os.environ.get("PYTHONPATH")])])
    with output.open("ab") as file:
        started = subprocess.Popen(
            [sys.executable, "-m", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PYTHONPATH": path, **environment},
            start_new_session=True,
        )
    try:
        yield started
    finally:
        kill(started)


def kill(started: subprocess.Popen[bytes]) -> None:
    if started.poll() is None or group_lives(started.pid):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _START_S
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not in {_START_S:g} s"
        time.sleep(0.05)


def answers(remote: Remote) -> bool:
    """Whether the tracker has a server with the key."""
    try:
        remote.check()
    except TargetError:
        return False
    return True


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


@contextmanager
def tracker(directory: Path) -> Iterator[Remote]:
    """A tracker without servers."""
    port = free_port()
    arguments = ("--host", HOST, "--port", str(port), "--port-end", str(port + 1))
    with process(directory / "tracker.txt", "tvm.exec.rpc_tracker", *arguments):
        wait_until(lambda: listens(port), "the tracker")
        yield Remote(HOST, port, KEY)


@contextmanager
def server(remote: Remote, directory: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """The server with the key, with these variables besides the test's."""
    port = free_port()
    arguments = ("--host", HOST, "--port", str(port), "--port-end", str(port + 1))
    arguments += ("--tracker", remote.address, "--key", remote.key)
    with process(directory / "server.txt", "tvm.exec.rpc_server", *arguments, **environment) as started:
        wait_until(lambda: answers(remote), "the server")
        yield started
