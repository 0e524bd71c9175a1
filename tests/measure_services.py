"""Services for worker tests: each request says what the worker does."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Puppet:
    """Does what a request names, and otherwise echoes it."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting
        self.hoard: list[Any] = []

    def __call__(self, request: Any) -> Any:
        action, *arguments = request if isinstance(request, tuple) else ("echo", request)
        return getattr(self, action)(*arguments)

    def echo(self, value: Any) -> Any:
        return value

    def greet(self) -> str:
        return self.greeting

    def imported(self, name: str) -> list[str]:
        """Imports it; which of two large modules there are then."""
        importlib.import_module(name)
        return [name for name in ("torch", "tvm") if name in sys.modules]

    def pid(self) -> int:
        return os.getpid()

    def raises(self) -> None:
        raise ValueError("first line\nthe reason")

    def abort(self) -> None:
        os.write(2, b"about to abort\n")
        os.abort()

    def segfault(self) -> None:
        ctypes.string_at(0)

    def exit(self) -> None:
        os._exit(3)

    def full(self, how: str) -> None:
        """Fails as what writes files does where no space is left: LLVM says so and leaves, a linker is an error."""
        reason = "LLVM ERROR: IO failure on output stream: No space left on device"
        if how == "raise":
            raise RuntimeError(reason)
        os.write(2, f"{reason}\n".encode())
        os._exit(1)

    def hang(self) -> None:
        libc = ctypes.PyDLL(None)  # PyDLL keeps the interpreter's lock, as a hanging compiler pass may
        while True:
            libc.usleep(1000)

    def eat(self) -> None:
        while True:
            self.hoard.append(bytearray(1 << 20))

    def hold(self, size_bytes: int) -> int:
        """Uses so much memory while it answers."""
        return len(bytearray(size_bytes))

    def bad_alloc(self) -> None:
        raise RuntimeError("std::bad_alloc")

    def killed(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def die_later(self) -> str:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        return "soon"

    def interrupt(self) -> str:
        os.kill(os.getpid(), signal.SIGINT)
        return "survived"

    def child(self) -> int:
        """Starts a process that outlives the request, and hangs."""
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        return child.pid

    def meet(self, directory: Path, name: str, other: str) -> str:
        """Waits for the worker that was asked to be `other`."""
        (directory / name).touch()
        while not (directory / other).exists():
            time.sleep(0.01)
        return other

    def slow(self, seconds: float) -> float:
        time.sleep(seconds)
        return seconds


class Stillborn:
    """Cannot be made."""

    def __init__(self) -> None:
        raise RuntimeError("no such device")


class DiesAtBirth:
    """Ends its process when it is made."""

    def __init__(self) -> None:
        os._exit(7)
