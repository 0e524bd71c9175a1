"""The linker: which compiler, what is cached, what the library exports and needs, clear errors."""

from __future__ import annotations

import ctypes
import platform
import shlex
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from runtime_kernels import build_stencil, cache_dir

from convtune import linker
from convtune.errors import BuildError, TargetError
from convtune.linker import build_runtime, find_compiler, link
from convtune.runtime.names import RUNTIME_NAME


@pytest.fixture(scope="module")
def object_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_stencil(tmp_path_factory.mktemp("object") / "kernel.o")


def compile_c(source: str, object_path: Path) -> Path:
    command = [*find_compiler().command, "-c", "-fPIC", "-x", "c", "-", "-o", str(object_path)]
    subprocess.run(command, input=source, text=True, check=True, timeout=120)
    return object_path


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CONVTUNE_CC", raising=False)
    monkeypatch.setattr(linker.importlib.util, "find_spec", lambda name: None)
    linker._find_compiler.cache_clear()
    yield
    linker._find_compiler.cache_clear()


def test_library_and_runtime_lie_side_by_side(object_path: Path, tmp_path: Path) -> None:
    library = link(object_path, tmp_path / "k.so", cache_dir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["k.so", RUNTIME_NAME]
    assert ctypes.CDLL(str(library)).convtune_num_threads() >= 1


def test_only_the_entry_point_is_exported(object_path: Path, tmp_path: Path) -> None:
    """A TVM in the same process would otherwise take over the kernel's pointers, or have its own taken over."""
    library = ctypes.CDLL(str(link(object_path, tmp_path / "k.so", cache_dir())))
    assert hasattr(library, "__tvm_ffi_main")
    for name in (
        "__TVMBackendParallelLaunch",
        "__TVMBackendAllocWorkspace",
        "TVMFFIErrorSetRaisedFromCStrParts",
    ):
        assert not hasattr(library, name)


def test_a_kernel_works_beside_tvm_in_one_process(object_path: Path, tmp_path: Path) -> None:
    import numpy as np
    import tvm
    from runtime_kernels import COLUMNS, ROWS, random_aligned, stencil

    from convtune.runtime.kernel import Kernel

    with_tvm = tvm.runtime.load_module(str(tvm_library(tmp_path)))
    x, y = random_aligned((ROWS, COLUMNS)), random_aligned((ROWS, COLUMNS))
    y_tvm = tvm.runtime.tensor(y)
    kernel = Kernel(link(object_path, tmp_path / "k.so", cache_dir()))
    for _ in range(3):
        kernel([x, y])
        with_tvm["main"](tvm.runtime.tensor(x), y_tvm)
        np.testing.assert_array_equal(y, y_tvm.numpy())
    np.testing.assert_allclose(y, stencil(x), rtol=1e-5, atol=1e-5)


def tvm_library(directory: Path) -> Path:
    """The same object linked as TVM links it, its pointers filled in by TVM's loader."""
    object_path = build_stencil(directory / "tvm.o")
    glue = compile_c("void *unused;", directory / "unused.o")
    library = directory / "tvm.so"
    command = [*find_compiler().command, "-shared", "-o", str(library), str(object_path), str(glue), "-lm"]
    subprocess.run(command, check=True, timeout=120)
    return library


def test_runtime_is_compiled_once_and_private(tmp_path: Path) -> None:
    cache = tmp_path / "deep" / "cache"
    first = build_runtime(find_compiler(), cache)
    built_at = first.library.stat().st_mtime_ns
    assert build_runtime(find_compiler(), cache) == first
    assert first.library.stat().st_mtime_ns == built_at
    for directory in (cache, first.library.parent):
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [path.name for path in cache.iterdir()] == [first.library.parent.name]


@pytest.mark.parametrize("name", [RUNTIME_NAME, "glue.o", linker._SUMS])
@pytest.mark.parametrize("damage", [b"", b"garbage", b"{}", None])
def test_a_damaged_runtime_is_compiled_again(
    object_path: Path, tmp_path: Path, name: str, damage: bytes | None
) -> None:
    cache = tmp_path / "cache"
    damaged = build_runtime(find_compiler(), cache).library.with_name(name)
    if damage is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damage)
    library = link(object_path, tmp_path / "k.so", cache)
    assert ctypes.CDLL(str(library)).convtune_num_threads() >= 1
    assert damaged.read_bytes() != damage
    assert [path.name for path in cache.iterdir()] == [damaged.parent.name]


def test_an_entry_without_sums_is_compiled_again(object_path: Path, tmp_path: Path) -> None:
    """As earlier versions left it."""
    runtime = build_runtime(find_compiler(), tmp_path)
    (runtime.library.parent / linker._SUMS).unlink()
    runtime.glue.write_bytes(b"")
    assert build_runtime(find_compiler(), tmp_path).glue.stat().st_size > 0


@pytest.mark.parametrize("changed", ["runtime.c", "scratch.h", "glue.c"])
def test_another_source_is_another_runtime(changed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build_runtime(find_compiler(), tmp_path)
    sources = tmp_path / "sources"
    sources.mkdir()
    for name in ("runtime.c", "scratch.h", "glue.c"):
        shutil.copy(linker._SOURCES / name, sources)
    monkeypatch.setattr(linker, "_SOURCES", sources)
    assert build_runtime(find_compiler(), tmp_path) == first
    with (sources / changed).open("a") as file:
        file.write("/* changed */\n")
    assert build_runtime(find_compiler(), tmp_path) != first


def test_no_compiler_is_one_line_that_says_how_to_get_one(no_compiler: None) -> None:
    with pytest.raises(TargetError, match=r"no C compiler for .* `pip install ziglang` brings one") as caught:
        find_compiler()
    assert "\n" not in str(caught.value)


def test_no_cross_compiler_is_one_line(no_compiler: None) -> None:
    with pytest.raises(TargetError, match=r"no C compiler for riscv64 found \(tried riscv64-linux-gnu-gcc, ziglang\)"):
        find_compiler("riscv64")


@pytest.mark.skipif(platform.machine() == "aarch64", reason="its own compilers are tried first")
def test_without_the_arm_extra_it_is_named(no_compiler: None) -> None:
    with pytest.raises(TargetError, match=r"ziglang\); `pip install 'convtune\[arm\]'` brings one$"):
        find_compiler("aarch64")


def test_the_environment_chooses_the_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrapper = tmp_path / "my cc"
    wrapper.write_text(f'#!/bin/sh\nexec {shlex.join(find_compiler().command)} "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CONVTUNE_CC", f"'{wrapper}' -DCHOSEN")
    assert find_compiler().command == (str(wrapper), "-DCHOSEN")


def test_a_chosen_compiler_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVTUNE_CC", "/nowhere/cc")
    with pytest.raises(TargetError, match="CONVTUNE_CC='/nowhere/cc' is not a C compiler that runs"):
        find_compiler()


@pytest.mark.parametrize(
    ("command", "why"), [('"', ": No closing quotation"), ("cc \\", ": No escaped character"), (" ", "")]
)
def test_a_chosen_compiler_that_is_no_command_is_an_error(
    monkeypatch: pytest.MonkeyPatch, command: str, why: str
) -> None:
    monkeypatch.setenv("CONVTUNE_CC", command)
    with pytest.raises(TargetError) as caught:
        find_compiler()
    assert str(caught.value) == f"CONVTUNE_CC={command!r} is not a C compiler that runs{why}"


def test_a_compiler_that_fails_is_quoted(tmp_path: Path) -> None:
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho first line >&2\necho second line >&2\nexit 3\n")
    broken.chmod(0o755)
    compiler = linker.Compiler((str(broken),), platform.machine(), "broken")
    with pytest.raises(TargetError, match=r"exited with 3: first line \| second line$"):
        build_runtime(compiler, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_writes_nothing_is_to_blame(tmp_path: Path) -> None:
    compiler = linker.Compiler(("true",), platform.machine(), "idle")
    said = rf"^cannot compile convtune's runtime: true exited with 0 and did not write {RUNTIME_NAME}$"
    with pytest.raises(TargetError, match=said):
        build_runtime(compiler, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_compiler_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linker, "_TIMEOUT_S", 0.2)
    assert linker.Compiler(("sleep",), platform.machine(), "slow").run(["60"]) == "sleep took longer than 0.2 s"


def test_a_broken_object_is_a_build_error_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "k.o").write_bytes(b"this is no object file")
    with pytest.raises(BuildError, match=r"cannot link k.o: .* exited with 1") as caught:
        link(tmp_path / "k.o", tmp_path / "k.so", cache_dir())
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["k.o"]


def test_what_the_runtime_lacks_is_refused(tmp_path: Path) -> None:
    barrier = compile_c("__attribute__((weak)) void *__TVMBackendParallelBarrier;", tmp_path / "barrier.o")
    with pytest.raises(BuildError, match=r"barrier.o needs __TVMBackendParallelBarrier; convtune's runtime has"):
        link(barrier, tmp_path / "k.so", cache_dir())
    unknown = compile_c("int TVMFFIFunctionCall(void); int f(void) { return TVMFFIFunctionCall(); }", tmp_path / "u.o")
    with pytest.raises(BuildError, match="TVMFFIFunctionCall"):
        link(unknown, tmp_path / "k.so", cache_dir())
    assert not (tmp_path / "k.so").exists()


def test_cross_linking_for_aarch64(tmp_path: Path) -> None:
    pytest.importorskip("ziglang")
    import tvm
    from tvm import te

    x = te.placeholder((64,), "float32", name="x")
    y = te.compute((64,), lambda i: te.exp(x[i]), name="y")
    target = {"kind": "llvm", "mtriple": "aarch64-linux-gnu", "mcpu": "neoverse-n1"}
    tvm.compile(te.create_prim_func([x, y]), target=target).mod.write_to_file(str(tmp_path / "k.o"), "o")
    library = link(tmp_path / "k.o", tmp_path / "k.so", tmp_path / "cache", machine="aarch64")
    for file in (library, library.with_name(RUNTIME_NAME)):
        assert int.from_bytes(file.read_bytes()[18:20], "little") == 183  # ELF's e_machine: EM_AARCH64
