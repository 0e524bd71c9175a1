"""Whatever a kernel does, it becomes an outcome with its status, and the next kernel is measured."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import measure_kernels as kernels
import pytest

from convtune.errors import MeasureError, TargetError
from convtune.measure import Built, CpuBench, Limits
from convtune.measure.builder import Library
from convtune.measure.device import Device, Measure
from convtune.runtime.kernel import Kernel
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.targets import resolve

LIMIT = 2e-5
LIMITS = Limits(memory_bytes=512 << 20)
numbers = itertools.count()


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CpuBench]:
    patch = pytest.MonkeyPatch()
    patch.setenv("CONVTUNE_CACHE", str(tmp_path_factory.mktemp("cache")))
    home = tmp_path_factory.mktemp("bench")
    with CpuBench(resolve("native"), home, limits=LIMITS) as bench:
        yield bench
    assert list(home.iterdir()) == []
    patch.undo()


def built(tmp_path: Path, fault: str, spec: ConvSpec = kernels.SPEC) -> Built:
    library = kernels.library(tmp_path / f"{next(numbers)}", fault, spec)
    return Built(Candidate("c", {"fault": fault}), "ok", library=Library(library, kernels.PACK, 0.1, 1))


OUTCOMES = {
    "null pointer": ("crash", "while running: SIGSEGV"),
    "endless loop": ("timeout", "while running: no answer in 1 s"),
    "abort": ("crash", "while running: SIGABRT"),
    "failure": ("error", "while running: KernelError: kernel failed with status -1"),
    "too large a workspace": ("out_of_memory", "no 8589934592 bytes of scratch memory"),
    "no end of memory": ("crash", "while running: SIGSEGV"),  # malloc's null, which C code need not look at
    "one element too many": ("wrong", "wrote outside y: 1 element after its end"),
    "one element too early": ("wrong", "wrote outside y: 1 element before its start"),
    "far too many": ("crash", "while running: SIGSEGV"),
    "last element missing": ("wrong", "left output unwritten, or read it first: 1 of 15 elements, first y[0, 4, 2]"),
    "not a number": (
        "wrong",
        "wrong result: error nan, allowed 2e-05; 1 of 15 elements, first y[0, 1, 0] = nan instead of",
    ),
    "infinite": ("wrong", "first y[0, 1, 0] = inf instead of"),
    "slightly wrong": ("wrong", "allowed 2e-05; 1 of 15 elements, first y[0, 1, 1] ="),
    "reads before x": (
        "wrong",
        "read outside an array: error nan, allowed 2e-05; 1 of 15 elements, first y[0, 0, 0] = nan",
    ),
    "reads after x": (
        "wrong",
        "read outside an array: error nan, allowed 2e-05; 1 of 15 elements, first y[0, 0, 0] = nan",
    ),
    "reads after weight": (
        "wrong",
        "read outside an array: error nan, allowed 2e-05; 1 of 15 elements, first y[0, 0, 0] = nan",
    ),
    "changes x": ("wrong", "changed its input x: 1 of 20 elements, first x[0, 1, 1] = 7 instead of"),
    "writes before weight": ("wrong", "wrote outside weight: 2 elements before its start"),
    "changes each time": ("wrong", "gives another result when run again: 1 of 15 elements, first y[0, 0, 2] ="),
    "changes in time": ("wrong", "gives another result when run often: 1 of 15 elements, first y[0, 0, 2] ="),
    "adds to y": ("wrong", "left output unwritten, or read it first: 15 of 15 elements, first y[0, 0, 0]"),
    "reads scratch": (
        "wrong",
        "read scratch memory that it had not written: error nan, allowed 2e-05; 1 of 15 elements, first y[0, 0, 2]",
    ),
    "reads scratch of the call before": ("wrong", "gives another result when run again: 1 of 15 elements"),
    "swallows scratch": ("wrong", "gives another result when run again: 1 of 15 elements, first y[0, 0, 2] ="),
}

BESIDE = [
    "same value beyond",
    "reads after x for nothing",
    "reads before x for nothing",
    "reads far before weight for nothing",
    "reads a line after weight for nothing",
]


@pytest.mark.parametrize("fault", OUTCOMES)
def test_a_faulty_kernel_is_named_and_the_next_one_is_measured(
    bench: CpuBench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    status, message = OUTCOMES[fault]
    if status == "timeout":
        monkeypatch.setattr(bench, "limits", replace(LIMITS, device_s=1.0))
    outcome = bench.measure(kernels.SPEC, built(tmp_path, fault), LIMIT)
    assert (outcome.status, outcome.times_us, outcome.build_s) == (status, (), 0.1)
    assert message in outcome.message
    assert "\n" not in outcome.message
    right = bench.measure(kernels.SPEC, built(tmp_path, "none"), LIMIT)
    assert (right.status, right.message) == ("ok", "")


@pytest.mark.parametrize("spec", [kernels.SPEC, kernels.WHOLE_LINES], ids=["odd size", "whole lines"])
@pytest.mark.parametrize("fault", BESIDE)
def test_touching_what_lies_beside_an_array_is_a_crash(
    bench: CpuBench, tmp_path: Path, fault: str, spec: ConvSpec
) -> None:
    outcome = bench.verify(spec, built(tmp_path, fault, spec), LIMIT)
    assert (outcome.status, outcome.message) == ("crash", "while running: SIGSEGV")


@pytest.mark.parametrize("spec", [kernels.SPEC, kernels.WHOLE_LINES], ids=["odd size", "whole lines"])
@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ("takes x at multiples of 8", "crash"),
        ("takes y at multiples of 8", "crash"),
        ("takes weight at multiples of 64", "ok"),
    ],
)
def test_kernels_must_take_any_address_of_all_but_the_packed_arrays(
    bench: CpuBench, tmp_path: Path, fault: str, status: str, spec: ConvSpec
) -> None:
    assert bench.verify(spec, built(tmp_path, fault, spec), LIMIT).status == status


def test_every_fault_has_its_test() -> None:
    elsewhere = {fault for fault in kernels.FAULTS if fault.startswith("takes")} | {"none"}
    assert kernels.FAULTS.keys() == {*OUTCOMES, *BESIDE, *elsewhere}


def test_a_right_kernel_has_its_error_and_times(bench: CpuBench, tmp_path: Path) -> None:
    outcome = bench.measure(kernels.SPEC, built(tmp_path, "none"), LIMIT)
    assert outcome.error is not None
    assert 0 < outcome.error < 1e-6
    assert 7 <= len(outcome.times_us) <= 25
    assert all(time > 0 for time in outcome.times_us)


def test_kernels_are_timed_with_each_thread_on_a_cpu_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "cache"))
    asked: list[bool] = []
    monkeypatch.setattr(Kernel, "place_threads", lambda self, on: asked.append(on))
    library = kernels.library(tmp_path / "kernel", "none")
    device = Device(tmp_path, Kernel(library).num_threads, 0)
    found = device(Measure(kernels.SPEC, library, kernels.PACK, LIMIT, None, True))
    assert (found.status, asked) == ("ok", [True])


def test_verifying_alone_takes_no_times(bench: CpuBench, tmp_path: Path) -> None:
    right = bench.verify(kernels.SPEC, built(tmp_path, "none"), LIMIT)
    wrong = bench.verify(kernels.SPEC, built(tmp_path, "slightly wrong"), LIMIT)
    assert (right.status, right.times_us) == ("ok", ())
    assert right.error is not None
    assert wrong.status == "wrong"
    assert wrong.error is not None
    assert right.error < LIMIT < wrong.error


def test_a_spec_larger_than_the_plain_limit_is_verified(tmp_path: Path) -> None:
    spec, small = kernels.SPEC.replace(in_size=(3_000_000,)), Limits(memory_bytes=64 << 20)
    assert spec.bytes > small.memory_bytes
    with CpuBench(resolve("native"), tmp_path, small) as bench:
        assert bench.verify(spec, built(tmp_path, "none", spec), LIMIT).status == "ok"
        assert bench.verify(spec, built(tmp_path, "slightly wrong", spec), LIMIT).status == "wrong"
        assert bench.verify(spec, built(tmp_path, "too large a workspace", spec), LIMIT).status == "out_of_memory"


def test_the_limit_is_the_callers(bench: CpuBench, tmp_path: Path) -> None:
    slightly = built(tmp_path, "slightly wrong")
    error = bench.measure(kernels.SPEC, built(tmp_path, "slightly wrong"), LIMIT).error
    assert error is not None
    assert bench.measure(kernels.SPEC, slightly, error).status == "ok"
    assert bench.measure(kernels.SPEC, slightly, 0.99 * error).status == "wrong"


def test_a_library_that_is_none_is_an_error(bench: CpuBench, tmp_path: Path) -> None:
    kernel = built(tmp_path, "none")
    assert kernel.library is not None
    kernel.library.path.unlink()
    kernel.library.path.write_bytes(b"no library")
    outcome = bench.measure(kernels.SPEC, kernel, LIMIT)
    assert outcome.status == "error"
    assert "cannot load kernel" in outcome.message


def test_only_what_is_not_ok_is_removed_before_discard(bench: CpuBench, tmp_path: Path) -> None:
    right, wrong = built(tmp_path, "none"), built(tmp_path, "slightly wrong")
    assert right.library is not None
    assert wrong.library is not None
    for kernel in (right, wrong):
        bench.measure(kernels.SPEC, kernel, LIMIT)
    assert right.library.path.exists()
    assert not wrong.library.path.parent.exists()
    bench.discard(right)
    assert not right.library.path.parent.exists()


def test_finals_time_each_kernel_once_a_round(bench: CpuBench, tmp_path: Path) -> None:
    times = bench.finals(kernels.SPEC, [built(tmp_path, "none") for _ in range(3)], rounds=8)
    assert [len(own) for own in times] == [8, 8, 8]
    assert all(time > 0 for own in times for time in own)


def test_finals_that_fail_say_why(bench: CpuBench, tmp_path: Path) -> None:
    with pytest.raises(MeasureError, match=r"failed \(crash\): SIGABRT"):
        bench.finals(kernels.SPEC, [built(tmp_path, "none"), built(tmp_path, "abort")])
    with pytest.raises(MeasureError, match="not built"):
        bench.finals(kernels.SPEC, [Built(Candidate("c", {}), "build_error")])


def test_a_candidate_that_was_not_built_keeps_its_status(bench: CpuBench) -> None:
    outcome = bench.measure(kernels.SPEC, Built(Candidate("c", {}), "build_error", "no such knob"), LIMIT)
    assert (outcome.status, outcome.message, outcome.times_us) == ("build_error", "no such knob", ())


def test_another_machines_kernels_are_refused(bench: CpuBench, tmp_path: Path) -> None:
    kernel = built(tmp_path, "none")
    foreign = resolve("""{"mcpu": "znver5", "required_features": ["no_such_feature"], "features": ["+avx2"]}""")
    with CpuBench(foreign, tmp_path) as other, pytest.raises(TargetError, match="not this machine"):
        other.measure(kernels.SPEC, kernel, LIMIT)
