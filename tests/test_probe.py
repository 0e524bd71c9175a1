"""The measuring loops: that they do all the work they are credited with, and say so when they cannot."""

from __future__ import annotations

import ctypes
import dataclasses
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from convtune import probe, targets
from convtune.assembly import MULTIPLY_ADD, listing
from convtune.errors import MeasureError, TargetError
from convtune.linker import find_compiler
from convtune.targets import Target
from convtune.targets.host import current

SOURCE = Path(probe.__file__).parent / "runtime" / "probe.c"
on_x86 = pytest.mark.skipif(current().machine != "x86_64", reason="x86 targets run on x86 only")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("cache")
        path.chmod(0o700)
        patch.setenv("CONVTUNE_CACHE", str(path))
        yield path


@pytest.fixture
def native(cache: Path) -> Target:
    return targets.resolve("native")


@on_x86
@pytest.mark.parametrize("name", ["native", "x86-64", "x86-64-v2", "x86-64-v3"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_multiply_adds_are_counted_rightly(cache: Path, name: str, threads: int) -> None:
    """Every sum starts at its index and grows by one an iteration: the checksum is known without the loop."""
    target = targets.resolve(name)
    if not target.is_host:
        pytest.skip(f"this machine cannot run {name}")
    result, seconds = probe._Result(), 0.01
    library = probe._library(target)
    assert library.convtune_probe_multiply_add(threads, probe._cpus(threads), seconds, ctypes.byref(result)) == 0
    sums = 24 if target.vector_registers >= 32 else 12
    iterations, rest = divmod(result.work, sums * target.lanes * threads)
    assert rest == 0
    assert iterations > 1000
    assert result.windows >= 1
    expected = target.lanes * sum(start + int(iterations) for start in range(sums)) * threads * result.windows
    assert result.checksum == expected == result.expected
    assert result.best_s > 0


@on_x86
def test_peaks_are_positive(native: Target) -> None:
    assert probe.fma_peak_gflops(native, seconds=0.01) > 0
    assert probe.fma_peak_gflops(native, threads=1, seconds=0.01) > 0


@on_x86
@pytest.mark.parametrize("threads", [1, 3])
def test_the_read_pass_finds_what_the_triad_wrote(
    native: Target, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "stream_length", lambda target, threads: 1_000_003)
    bandwidth = probe.bandwidth_gbs(native, threads, seconds=1e-4)
    assert bandwidth.read_gbs > 0
    assert bandwidth.triad_gbs > 0


@on_x86
def test_streams_exceed_the_last_cache(native: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    memory = type("Memory", (), {"available": 1 << 40})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    large = dataclasses.replace(native, l3_bytes=256 << 20)
    assert 4 * probe.stream_length(large, 8) >= 4 * large.l3_bytes
    assert probe.stream_length(large, 64) == 8 * probe.stream_length(large, 8)
    memory.available = 1 << 30  # type: ignore[attr-defined]
    assert 3 * 4 * probe.stream_length(large, 64) <= 1 << 28


def test_a_changed_loop_is_noticed() -> None:
    result = probe._Result(best_s=1.0, work=1.0, windows=1, checksum=7, expected=8)
    with pytest.raises(MeasureError, match="checksum 7, not 8"):
        probe._check("loop", 0, result)


def test_an_error_of_the_system_is_told() -> None:
    with pytest.raises(MeasureError, match="loop: Cannot allocate memory"):
        probe._check("loop", 12, probe._Result())


@on_x86
@pytest.mark.parametrize(("name", "register", "sums"), [("skylake-avx512", "zmm", 24), ("x86-64-v3", "ymm", 12)])
def test_the_loop_is_multiply_adds_in_registers_only(tmp_path: Path, name: str, register: str, sums: int) -> None:
    """One instruction for each sum, and none that touches memory, between the loop's label and its jump."""
    flags = [flag for flag in probe.flags_for(targets.resolve(name)) if flag != "-shared"]
    assert find_compiler().run([*flags, "-S", "-g0", "-o", str(tmp_path / "probe.s"), str(SOURCE)]) == ""
    lines = (tmp_path / "probe.s").read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if re.search(rf"\bvfmadd\w+ps\s.*%{register}", line))
    jump = next(i for i in range(first, len(lines)) if re.match(r"\tj\w+\t", lines[i]))
    loop = lines[first:jump]
    multiply_adds = sum("vfmadd" in line for line in loop)
    assert multiply_adds > 0 and multiply_adds % sums == 0, "a compiler may unroll"
    assert not any("(%" in line for line in loop)


def test_the_loop_for_arm_is_multiply_adds_in_registers_only(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    target = targets.resolve("neoverse-v1", elsewhere=True)
    flags = [flag for flag in probe.flags_for(target) if flag != "-shared"]
    compiler = find_compiler("aarch64")
    assert compiler.run([*flags, "-S", "-g0", "-o", str(tmp_path / "probe.s"), str(SOURCE)]) == ""
    found = listing((tmp_path / "probe.s").read_text()).loop
    assert found is not None
    assert found.kinds[MULTIPLY_ADD] == found.instructions - 2 == 24, "one to count, one to jump"


# ---- what cannot be measured -------------------------------------------------------------------------


def test_another_machine_cannot_be_measured() -> None:
    other = dataclasses.replace(targets.resolve("graniterapids"), is_host=False)
    for measure in (probe.fma_peak_gflops, probe.bandwidth_gbs):
        with pytest.raises(TargetError, match="target 'graniterapids' cannot be measured here"):
            measure(other)


@on_x86
@pytest.mark.parametrize(("threads", "seconds"), [(0, 0.1), (1, 0.0), (1, float("nan"))])
def test_impossible_arguments(native: Target, threads: int, seconds: float) -> None:
    with pytest.raises((TargetError, MeasureError), match="allowed: "):
        probe.fma_peak_gflops(native, threads, seconds)


@on_x86
def test_no_compiler_is_a_clear_error(native: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVTUNE_CC", "/nowhere/cc")
    with pytest.raises(TargetError, match="CONVTUNE_CC='/nowhere/cc' is not a C compiler"):
        probe.fma_peak_gflops(native)


@on_x86
def test_a_compiler_that_fails_is_quoted_and_leaves_nothing(
    native: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "cc"
    fake.write_text('#!/bin/sh\n[ "$1" = --version ] && echo fake 1 && exit 0\necho no disk >&2; exit 1\n')
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CONVTUNE_CC", str(fake))
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TargetError, match=r"cannot compile the measuring loops: .*no disk"):
        probe.fma_peak_gflops(native)
    assert list((tmp_path / "cache").iterdir()) == []


@on_x86
@pytest.mark.parametrize("damage", [b"", b"garbage"])
def test_a_damaged_library_is_compiled_again(
    native: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: bytes
) -> None:
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "cache"))
    path = probe.build(find_compiler(), probe.flags_for(native))
    path.write_bytes(damage)
    assert probe.fma_peak_gflops(native, seconds=0.01) > 0
    assert path.read_bytes() != damage


@on_x86
def test_a_library_that_never_loads_is_a_clear_error(
    native: Target, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "cc"
    fake.write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && echo garbage > "$2"; shift; done\necho fake 1\n'
    )
    fake.chmod(fake.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CONVTUNE_CC", str(fake))
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "cache"))
    with pytest.raises(TargetError, match=r"measuring loops in .*probe\.so do not load"):
        probe.fma_peak_gflops(native)


# ---- remembering -------------------------------------------------------------------------------------


def test_peaks_are_remembered_by_machine(cache: Path) -> None:
    one, two = targets.resolve("haswell", 1), targets.resolve("haswell", 2)
    peaks = probe.Peaks(100.0, 190.5, probe.Bandwidth(30.0, 25.5))
    assert probe.recall(one) is None
    probe.remember(one, peaks)
    assert probe.recall(one) == peaks
    assert probe.recall(two) is None


@pytest.mark.parametrize("text", ["{", "[]", '{"core_fma_gflops": 1}', '{"core_fma_gflops": []}'])
def test_damaged_memory_is_told(cache: Path, text: str) -> None:
    target = targets.resolve("haswell", 3)
    path = probe.remember(target, probe.Peaks(1, 2, probe.Bandwidth(3, 4)))
    path.write_text(text)
    with pytest.raises(MeasureError, match=r"damaged .* measure again with `convtune doctor`"):
        probe.recall(target)
