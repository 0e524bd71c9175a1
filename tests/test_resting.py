"""What is timed has the CPUs for itself: no thread of the process that did something before still runs."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path

from convtune.measure.device import Device, Prepare
from convtune.resting import LONGEST_S, others_run, rest
from convtune.spec import ConvSpec


def test_it_ends_when_no_thread_runs_any_more() -> None:
    """Hashing lets go of Python's lock, so that the thread runs beside, as those of a library do."""
    ended: list[float] = []

    def busy() -> None:
        for _ in range(4):
            hashlib.sha256(bytes(10_000_000)).digest()
        ended.append(time.perf_counter())

    for _ in range(3):
        ended.clear()
        thread = threading.Thread(target=busy)
        thread.start()
        began = time.perf_counter()
        rest()
        assert ended or time.perf_counter() - began >= LONGEST_S
        thread.join()


def test_a_case_is_ready_when_the_threads_of_its_reference_sleep(tmp_path: Path) -> None:
    """Those of NumPy's BLAS went on for 40 ms, and meanwhile turns of the first finals took 3 times as long."""
    spec = ConvSpec.parse("conv,ic=67,oc=131,in=29x31,k=3x3,p=1,layout=NHWC")
    Device(tmp_path, 2, seed=0)(Prepare(spec))
    assert not others_run()
