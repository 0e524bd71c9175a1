"""The loop of a worker process: receives a service, then answers requests until its parent is gone."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from convtune.tvm_alone import import_tvm_alone


def main() -> None:
    """Arguments: the descriptor of the connection, and that of a pipe which only the parent can write to."""
    connection, lifeline = Connection(int(sys.argv[1])), int(sys.argv[2])
    die_with_parent(lifeline)
    for descriptor in (connection.fileno(), lifeline):
        os.set_inheritable(descriptor, False)  # a linker must not keep the connection open after us
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    import_tvm_alone()
    try:
        make, arguments = connection.recv()
        try:
            service = make(*arguments)
        except Exception as error:
            connection.send(("failed", one_line(error)))
            return
        own_bytes = data_bytes()
        connection.send(("ready", None))
        while True:
            request, memory_bytes = connection.recv()
            limit_memory(own_bytes + memory_bytes)
            connection.send(answer(service, request))
    except (EOFError, BrokenPipeError):
        return  # the parent closed the connection


def answer(service: Any, request: Any) -> tuple[str, Any]:
    """(status, value or message): "ok", "error" for an exception, "out_of_memory" for that one."""
    try:
        return "ok", service(request)
    except MemoryError:
        return "out_of_memory", "out of memory"
    except Exception as error:
        text = one_line(error)
        # C++ code and kernels report it as one failure among others
        return ("out_of_memory" if "bad_alloc" in text or "MemoryError" in text else "error"), text


def one_line(error: BaseException) -> str:
    """The exception's type and the last line of its text, which in TVM's long messages is the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1].removeprefix('Error message: ')}" if lines else type(error).__name__


def die_with_parent(lifeline: int) -> None:
    """Ends this process group when the other end of the pipe closes, whatever the process does then.

    The kernel sends SIGIO, whose default action is to end the process: this works while C code holds the
    interpreter, and unlike PR_SET_PDEATHSIG not also when the parent's thread, rather than the parent, ends.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)


def data_bytes() -> int:
    """What RLIMIT_DATA limits, as it is now: private memory that can be written, so no mapped files."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def limit_memory(limit: int) -> None:
    """Of RLIMIT_DATA, until the next call. Not RLIMIT_AS: threads and LLVM reserve far more than they use."""
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit if most == resource.RLIM_INFINITY else min(limit, most), most))


if __name__ == "__main__":
    main()
