"""The process of TVM's RPC server, or of its tracker: one that ends when it can serve nobody any more."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import signal
import socket
import sys
from typing import Any

from convtune.measure.worker_main import die_with_parent, one_line
from convtune.remote import reason
from convtune.tvm_alone import import_tvm_alone

_TRACKER_S = 60.0  # that of `serve --with-tracker` may have to import TVM yet
_SHOWN = ("connected from", "finish serving")  # of what TVM's server logs
_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Arguments: "server" or "tracker", the descriptors of the listening socket and of the lifeline, and a server's."""
    name, listener, lifeline, *arguments = sys.argv[1:]
    die_with_parent(int(lifeline))
    for descriptor in (int(listener), int(lifeline)):
        os.set_inheritable(descriptor, False)
    _forks_die_with_this_process()
    opened = socket.socket(fileno=int(listener))
    import_tvm_alone()
    try:
        if name == "tracker":
            _track(opened)
        else:
            _serve(opened, *arguments)
    except Exception as error:
        sys.exit(f"convtune: {name}: {one_line(error)}")


def _serve(listener: socket.socket, tracker: str, tracker_port: str, key: str, told: str, port: str) -> None:
    """TVM's own loop, in this thread: TVM's program lives on, and serves nobody, when it ends."""
    from tvm.rpc import base
    from tvm.rpc import server as tvm_server

    _shorten(tvm_server.logger)
    multiprocessing.set_start_method("fork")  # of sessions: so do kernels' limits and this process's end reach them
    base.connect_with_retry = _connect
    tvm_server._listen_loop(listener, int(port), key, (tracker, int(tracker_port)), None, told or None)


def _connect(tracker: tuple[str, int]) -> socket.socket:
    """In place of TVM's, which goes on at full speed where a network is down. A tracker that hangs is gone too."""
    try:
        return socket.create_connection(tracker, timeout=_TRACKER_S)
    except OSError as error:
        raise RuntimeError(f"tracker {tracker[0]}:{tracker[1]} does not answer: {reason(error)}") from error


def _track(listener: socket.socket) -> None:
    from tvm.rpc import tracker

    tracker.logger.setLevel(logging.ERROR)
    tracker._tracker_server(listener, "")


def _shorten(logger: Any) -> None:
    """What TVM's server says in one line that tells whose it is; no more than who came and went."""
    for handler in logger.handlers:
        handler.setFormatter(logging.Formatter("convtune: server: %(message)s"))
        handler.addFilter(lambda r: r.levelno >= logging.WARNING or r.getMessage().startswith(_SHOWN))


def _forks_die_with_this_process() -> None:
    """Sessions handle SIGIO, by which the lifeline speaks, themselves."""
    server = os.getpid()
    prctl = ctypes.CDLL(None).prctl

    def die_with_server() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != server:  # it ended before
            os._exit(0)

    os.register_at_fork(after_in_child=die_with_server)


if __name__ == "__main__":
    main()
