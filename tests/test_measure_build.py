"""Whatever building a candidate does to its worker, it becomes a status, and the others are built."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import measure_spaces as spaces
import pytest

from convtune.errors import MeasureError
from convtune.measure import Built, CpuBench, Limits
from convtune.space import Candidate
from convtune.targets import resolve

LIMIT = 2e-5
LIMITS = Limits(memory_bytes=512 << 20)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuBench]:
    patch = pytest.MonkeyPatch()
    patch.setenv("CONVTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    patch.setattr(CpuBench, "builder", spaces.FaultyBuilder)
    with CpuBench(resolve("native"), tmp_path_factory.mktemp("bench"), limits=LIMITS) as bench:
        bench.start()
        yield bench
    patch.undo()


def build(bench: CpuBench, *faults: str) -> list[Built]:
    return bench.build(spaces.SPEC, [Candidate("faulty", {"fault": fault}) for fault in faults])


def test_candidates_fail_by_a_full_directory_that_is_named(bench: CpuBench, tmp_path: Path) -> None:
    """The compiler's own words, in a file system of 4 KiB; skipped where nobody may mount one."""
    script = """
import measure_spaces as spaces
from convtune.measure import CpuBench
from convtune.space import default_candidate
from convtune.targets import resolve
with CpuBench(resolve("native")) as bench:
    (built,) = bench.build(spaces.SPEC, [default_candidate(spaces.SPEC, bench.target)])
print(built.status, built.message, sep="\\n")
"""
    mount = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs -o size=4k tmpfs {tmp_path} && exec "$@"', "sh"]
    if subprocess.run([*mount, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    path = os.pathsep.join(entry for entry in sys.path if entry)
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": path}
    done = subprocess.run([*mount, sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    status, message = done.stdout.splitlines()
    assert status == "crash"
    assert f"No space left on device; temporary files are in {tmp_path}/" in message


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("raise", "build_error", "ScheduleError: no such knob"),
        ("tvm", "build_error", "ScheduleError: Cannot find a block with the name: there is no such block"),
        ("undefined", "build_error", "BuildError: cannot link kernel.o"),
        ("abort", "crash", "while building: SIGABRT"),
        ("exit", "crash", "while building: exited with code 3"),
        ("eat", "out_of_memory", "while building: out of memory"),
        ("hang", "timeout", "while building: no answer in 3 s"),
    ],
)
def test_a_failed_build_is_a_status_and_the_others_are_built(
    bench: CpuBench, monkeypatch: pytest.MonkeyPatch, fault: str, status: str, message: str
) -> None:
    if status == "timeout":
        build(bench, "none", "none")  # all workers are ready
        monkeypatch.setattr(bench, "limits", replace(LIMITS, build_s=3.0))
    left, failed, right = build(bench, "none", fault, "none")
    assert (failed.status, failed.library) == (status, None)
    assert message in failed.message
    assert "\n" not in failed.message
    for built in (left, right):
        assert built.status == "ok"
        assert bench.measure(spaces.SPEC, built, LIMIT).status == "ok"
    outcome = bench.measure(spaces.SPEC, failed, LIMIT)
    assert (outcome.status, outcome.message, outcome.times_us) == (failed.status, failed.message, ())


def test_a_built_candidate_has_a_directory_of_its_own_and_its_packing(bench: CpuBench) -> None:
    first, second = build(bench, "none", "none")
    assert first.library is not None
    assert second.library is not None
    assert first.candidate == Candidate("faulty", {"fault": "none"})
    assert first.library.path.parent != second.library.path.parent
    assert {path.suffix for path in first.library.path.parent.iterdir()} == {".so", ".1"}
    assert first.library.size_bytes == first.library.path.stat().st_size
    assert first.library.build_s > 0
    assert [step["op"] for step in first.library.pack[0]] == ["reshape", "transpose"]


def test_weights_bias_and_residual_reach_the_kernel_and_a_wrong_one_is_told(bench: CpuBench) -> None:
    right, wrong = build(bench, "none", "wrong")
    good, bad = (bench.measure(spaces.SPEC, built, LIMIT) for built in (right, wrong))
    assert (good.status, bad.status) == ("ok", "wrong")
    assert good.error is not None
    assert bad.error is not None
    assert good.error < 1e-6
    assert bad.error == pytest.approx(1e-3, rel=1e-2)
    assert (good.build_s or 0) > 0
    assert (bad.build_s or 0) > 0


def test_an_unknown_space_is_a_build_error_that_lists_the_known_ones(bench: CpuBench) -> None:
    (built,) = bench.build(spaces.SPEC, [Candidate("no_such_space", {})])
    assert built.status == "build_error"
    assert "unknown space 'no_such_space'" in built.message


@pytest.mark.usefixtures("bench")
def test_a_target_that_llvm_does_not_know_is_an_error_of_the_run(tmp_path: Path) -> None:
    unknown = resolve('{"mcpu": "znver5", "features": ["+avx2"], "required_features": []}')
    object.__setattr__(unknown, "mcpu", "znver99")
    with CpuBench(unknown, tmp_path) as other, pytest.raises(MeasureError, match="LLVM knows no CPU 'znver99'"):
        other.build(spaces.SPEC, [Candidate("faulty", {"fault": "none"})])
