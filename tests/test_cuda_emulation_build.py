"""Building emulated programs: what is refused, with which words, and by which compiler."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from emulation_programs import aligned, written

from convtune.cuda.emulation import cxx
from convtune.cuda.emulation.assembly import translate as translate_assembly
from convtune.cuda.emulation.emulator import Emulation, build
from convtune.errors import BuildError, KernelError, TargetError

PROGRAM = written("y[threadIdx.x] = 1;", {"y": 32})


@pytest.mark.parametrize(
    "statement, text",
    [
        (r'asm volatile("bar.sync 1, 64;");', "bar.sync 1, 64;"),
        (
            r'__asm__ __volatile__("{mma.sync.aligned.m16n8k16" ".row.col {%0}, {%1};}\n" : "=f"(d) : "r"(a));',
            "{mma.sync.aligned.m16n8k16.row.col {%0}, {%1};}",
        ),
        (r'asm("cp.async.bulk.commit_group;");', "cp.async.bulk.commit_group;"),
        (r'asm volatile("cp.async.cg.shared.global [%0], [%1], %2; exit;" :: "r"(a), "l"(b), "n"(16));', "cp.async.cg"),
    ],
)
@pytest.mark.parametrize("checked", [False, True])
def test_unknown_assembly_is_refused(statement: str, text: str, checked: bool, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as refusal:
        build(written(statement, {"y": 1}), tmp_path, checked)
    assert str(refusal.value).startswith(f"unknown inline assembly: {text}") and "\n" not in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "statement, call",
    [
        (r'asm volatile("cp.async.wait_group 2;" :  :  : "memory");', "emulation::wait_for_copies(2);"),
        (r'asm volatile("cp.async.wait_all;");', "emulation::wait_for_copies(emulation::kNoGroups);"),
        (r'asm volatile("cp.async.commit_group;" :  : );', "emulation::commit_copies();"),
        (
            'asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], %2;\\n"\n'
            ' :: "r"(f(a, b)), "l"(p[i ? 1 : 2]), "n"(16));',
            "emulation::copy_async((f(a, b)), (p[i ? 1 : 2]), (16), (16));",
        ),
    ],
)
def test_known_assembly(statement: str, call: str) -> None:
    assert translate_assembly(f"x; {statement} y;") == f"x; {call} y;"


@pytest.mark.parametrize(
    "body, message",
    [
        ("__shared__ float s[4][5]; y[0] = 1;", "shared array s has extents [4][5]; the emulator takes one number"),
        ("extern __shared__ float s[]; extern __shared__ float t[];", "declares dynamic shared memory twice"),
        ("__shared__ Strange s[4];", "does not know this declaration of shared memory: __shared__ Strange s[4];"),
        ("y[0] = atomicAdd(y, 1.0f);", "cannot compile the program"),
    ],
)
def test_what_else_is_refused(body: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as refusal:
        build(written(body, {"y": 1}), tmp_path, checked=False)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_each_library_has_a_new_name(tmp_path: Path) -> None:
    """The system would take one of a name that it knows for the one that it has loaded."""
    libraries = [build(PROGRAM, tmp_path / "new" / "directory", checked=False) for _ in range(2)]
    assert libraries[0] != libraries[1]
    assert Emulation(libraries[1], PROGRAM).run([aligned(32)]).problem == ""


def test_a_library_that_does_not_load(tmp_path: Path) -> None:
    (tmp_path / "emulated.so").write_bytes(b"nothing")
    for name in ("emulated.so", "absent.so"):
        with pytest.raises(KernelError, match="cannot load the emulated program"):
            Emulation(tmp_path / name, PROGRAM)


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CONVTUNE_CXX", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    cxx._find_compiler.cache_clear()
    yield
    cxx._find_compiler.cache_clear()


@pytest.mark.usefixtures("no_compiler")
def test_no_compiler_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match=r"no C\+\+ compiler found.*`pip install ziglang` brings one") as refusal:
        build(PROGRAM, tmp_path, checked=False)
    assert "\n" not in str(refusal.value)


@pytest.mark.usefixtures("no_compiler")
def test_a_wanted_compiler_must_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVTUNE_CXX", "/nowhere/c++ -x")
    with pytest.raises(TargetError, match=r"CONVTUNE_CXX='/nowhere/c\+\+ -x' is not a C\+\+ compiler that runs"):
        cxx.find_compiler()
    monkeypatch.setenv("CONVTUNE_CXX", "'c++")
    with pytest.raises(
        TargetError, match=r'CONVTUNE_CXX="\'c\+\+" is not a C\+\+ compiler that runs: No closing quotation'
    ):
        cxx.find_compiler()


def test_a_wanted_compiler_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    path = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if path is None:
        pytest.skip("no C++ compiler on PATH")
    monkeypatch.setenv("CONVTUNE_CXX", f"{path} -DWANTED")
    cxx._find_compiler.cache_clear()
    assert cxx.find_compiler().command == (path, "-DWANTED")
    cxx._find_compiler.cache_clear()


def test_the_scheduler_is_compiled_once() -> None:
    compiler = cxx.find_compiler()
    first = cxx.scheduler_object(compiler, checked=False)
    written_at = first.stat().st_mtime_ns
    assert cxx.scheduler_object(compiler, checked=False) == first and first.stat().st_mtime_ns == written_at
    assert cxx.scheduler_object(compiler, checked=True) != first
