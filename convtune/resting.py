"""Waits until the threads of this process are asleep, so that what is timed next has the CPUs for itself."""

from __future__ import annotations

import threading
import time
from pathlib import Path

LONGEST_S = 0.25
"""After which a process that never is at rest is waited for no more."""
_STEP_S, _SAMPLES = 4e-4, 3


def rest() -> None:
    """Returns when none of this process's other threads spins any more.

    A library's threads look out for more work before they sleep: ONNX Runtime's and OpenBLAS's for 45 ms or so. One
    that never sleeps is waited for in vain, a quarter of a second long.
    """
    end, quiet = time.perf_counter() + LONGEST_S, 0
    while quiet < _SAMPLES and time.perf_counter() < end:
        time.sleep(_STEP_S)
        quiet = 0 if others_run() else quiet + 1


def others_run() -> bool:
    """Whether another thread of this process has a CPU, or waits for one.

    Their CPU time would not tell: the kernel adds that of a running thread up at its tick, every 4 or 10 ms.
    """
    own = threading.get_native_id()
    for task in Path("/proc/self/task").iterdir():
        try:
            state = (task / "stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if state == "R" and int(task.name) != own:
            return True
    return False
