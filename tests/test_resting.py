"""What is timed has the CPUs for itself: no thread of the process that did something before still runs."""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import measure_kernels as kernels
import pytest

from convtune.measure import timing
from convtune.measure.builder import Pack
from convtune.measure.device import Case, Compare, Device, Measure
from convtune.resting import LONGEST_S, others_run, rest


def work() -> None:
    """For some 20 ms; hashing lets go of Python's lock, so that the thread runs beside, as those of a library do."""
    for _ in range(4):
        hashlib.sha256(bytes(10_000_000)).digest()


def test_it_ends_when_no_thread_runs_any_more() -> None:
    for _ in range(3):
        thread = threading.Thread(target=work)
        thread.start()
        began = time.perf_counter()
        rest()
        assert not others_run() or time.perf_counter() - began >= LONGEST_S
        thread.join()


@pytest.mark.parametrize("timed", ["repeats_us", "in_turn_us"])
def test_kernels_are_timed_when_what_went_before_has_ended(
    timed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packing weights for filtering woke BLAS's threads, and while they spun every second turn took 3 times as long."""
    library = kernels.library(tmp_path / "library", "none")
    running = []

    def inputs(case: Case, pack: Pack) -> Any:
        threading.Thread(target=work).start()
        return unspied(case, pack)

    def times(calls: Any, *_: Any) -> list[Any]:
        running.append(others_run())
        return [1.0] if timed == "repeats_us" else [[1.0]]

    unspied = Case.inputs
    monkeypatch.setattr(Case, "inputs", inputs)
    monkeypatch.setattr(timing, timed, times)
    requests = {
        "repeats_us": Measure(kernels.SPEC, library, kernels.PACK, 2e-5, None, timed=True),
        "in_turn_us": Compare(kernels.SPEC, ((library, kernels.PACK),), 1),
    }
    Device(tmp_path, 2, seed=0)(requests[timed])
    assert running == [False]
