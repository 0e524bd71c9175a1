"""nvcc: where it is found, what it says of kernels, and how it fails."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
import time
from pathlib import Path

import psutil
import pytest

from convtune.cuda import toolkit
from convtune.cuda.toolkit import Resources, Toolkit
from convtune.errors import BuildError, TargetError

_CUDA_13 = """ptxas info    : 24 bytes gmem, 400 bytes cmem[3], 8 bytes cmem[4]
ptxas info    : Compiling entry function 'constant' for 'sm_80'
ptxas info    : Function properties for constant
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 49152 bytes smem, 364 bytes cmem[0]
ptxas info    : Compile time = 9.459 ms
ptxas info    : Compiling entry function 'spills' for 'sm_80'
ptxas info    : Function properties for spills
    6232 bytes stack frame, 6280 bytes spill stores, 16404 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 6232 bytes cumulative stack size, 368 bytes cmem[0]
ptxas info    : Compile time = 2146.496 ms
ptxas info    : Compiling entry function '_Z7mangledIfEvPT_' for 'sm_80'
ptxas info    : Function properties for _Z7mangledIfEvPT_
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, used 1 barriers, 360 bytes cmem[0]
ptxas info    : Compile time = 9.767 ms
ptxas info    : Compiling entry function 'calls' for 'sm_80'
ptxas info    : Function properties for calls
    64 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 20 registers, used 0 barriers, 96 bytes cumulative stack size, 364 bytes cmem[0], 8 bytes cmem[2]
ptxas info    : Compile time = 20.666 ms
ptxas info    : Function properties for _Z3farfi
    32 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
_CUDA_13_SM_90 = """ptxas info    : 24 bytes gmem
ptxas info    : Compiling entry function 'nothing' for 'sm_90'
ptxas info    : Function properties for nothing
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers, used 0 barriers
ptxas info    : Compile time = 3.926 ms
"""
_CUDA_12_4 = """ptxas info    : 24 bytes gmem, 400 bytes cmem[3], 8 bytes cmem[4]
ptxas info    : Compiling entry function 'constant' for 'sm_80'
ptxas info    : Function properties for constant
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 10 registers, 49152 bytes smem, 364 bytes cmem[0]
ptxas info    : Compiling entry function 'spills' for 'sm_80'
ptxas info    : Function properties for spills
    6232 bytes stack frame, 6280 bytes spill stores, 16404 bytes spill loads
ptxas info    : Used 32 registers, 6232 bytes cumulative stack size, 368 bytes cmem[0]
ptxas info    : Function properties for _Z3farfi
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
"""
_CONSTANT = Resources(10, 0, 0, 0, 49152)
_SPILLS = Resources(32, 6280, 16404, 6232, 0)

_REVERSE = """
extern "C" __global__ void reverse(const float* a, float* b) {
  __shared__ float row[256];
  row[threadIdx.x] = a[threadIdx.x];
  __syncthreads();
  b[threadIdx.x] = row[255 - threadIdx.x];
}
"""
_HUNGRY = """
extern "C" __global__ void __launch_bounds__(1024) spills(float* a, float* b) {
  float v[96];
#pragma unroll
  for (int i = 0; i < 96; i++) v[i] = a[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 96; i++) b[i * 1024 + threadIdx.x] = v[i] * v[(7 * i + 1) % 96];
}
extern "C" __global__ void indexed(const int* a, float* b) {
  float v[16];
  for (int i = 0; i < 16; i++) v[a[i]] = b[i];
  b[threadIdx.x] = v[a[threadIdx.x]];
}
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        (
            _CUDA_13,
            {
                "constant": _CONSTANT,
                "spills": _SPILLS,
                "_Z7mangledIfEvPT_": Resources(10, 0, 0, 0, 0),
                "calls": Resources(20, 0, 0, 96, 0),
            },
        ),
        (_CUDA_13_SM_90, {"nothing": Resources(4, 0, 0, 0, 0)}),
        (_CUDA_12_4, {"constant": _CONSTANT, "spills": _SPILLS}),
    ],
)
def test_recorded_outputs_of_ptxas(log: str, expected: dict[str, Resources]) -> None:
    assert toolkit.read_resources(log) == expected


@pytest.mark.parametrize(
    ("log", "message"),
    [
        ("ptxas info    : 0 bytes gmem\n", "ptxas reports no kernel"),
        (_CUDA_13.replace("Used 32 registers", ""), "ptxas does not report what kernel spills uses"),
        (_CUDA_13.replace("6280 bytes spill stores", ""), "ptxas does not report what kernel spills uses"),
    ],
)
def test_an_output_that_lacks_something_is_refused(log: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        toolkit.read_resources(log)


def test_a_cubin_and_its_resources(nvcc: Toolkit, tmp_path: Path) -> None:
    cubin = nvcc.compile(_REVERSE + _HUNGRY, "sm_80", tmp_path)
    assert cubin.data.startswith(b"\x7fELF")
    assert set(cubin.resources) == {"reverse", "spills", "indexed"}
    reverse, spills, indexed = (cubin.resources[name] for name in ("reverse", "spills", "indexed"))
    assert reverse.shared_bytes == 1024
    assert (reverse.stack_bytes, reverse.spill_stores_bytes, reverse.spill_loads_bytes) == (0, 0, 0)
    assert spills.registers <= 64, "the register file is shared by 1024 threads"
    assert spills.spill_stores_bytes >= (96 - 64) * 4 <= spills.stack_bytes
    assert spills.spill_loads_bytes > 0 == spills.shared_bytes
    assert indexed.stack_bytes >= 64, "an array that is indexed by data lies in memory"
    assert indexed.spill_stores_bytes == 0
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_machine_code_depends_on_source_and_arch_only(nvcc: Toolkit, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    first = nvcc.compile(_REVERSE, "sm_80", tmp_path)
    assert nvcc.compile(_REVERSE, "sm_80", tmp_path / "elsewhere") == first
    assert nvcc.compile(_REVERSE, "sm_90", tmp_path).data != first.data


def test_ptx(nvcc: Toolkit, tmp_path: Path) -> None:
    text = nvcc.ptx(_REVERSE, "sm_86", tmp_path)
    assert ".target sm_86\n" in text
    assert ".visible .entry reverse(" in text


def test_a_relative_directory(nvcc: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert nvcc.ptx(_REVERSE, "sm_80", Path())


def test_archs(nvcc: Toolkit, tmp_path: Path) -> None:
    archs = nvcc.archs()
    assert {"sm_80", "sm_86", "sm_90"} <= set(archs)
    assert list(archs) == sorted(archs, key=lambda arch: int(arch.removeprefix("sm_")))
    for arch in ("sm_30", "sm_80a", "compute_80", "", "sm_80 --run"):
        with pytest.raises(TargetError, match=rf"^nvcc {nvcc.version} does not know arch '{arch}'; it knows .*sm_80, "):
            nvcc.compile(_REVERSE, arch, tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            'extern "C" __global__ void f(float* a) {\n  *a = b;\n}',
            r'kernel\.cu\(2\): error: identifier "b" is undefined',
        ),
        ("#error no\nint a = b;", "error: #error no"),
        ("int a;", "ptxas reports no kernel"),
        (
            'extern "C" __global__ void f(float* a, int i) { __shared__ float s[100000]; s[i] = 1; *a = s[i + 1]; }',
            "ptxas error : Entry function 'f' uses too much shared data",
        ),
    ],
)
def test_an_error_of_the_source_in_one_line(nvcc: Toolkit, tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(BuildError, match=message) as caught:
        nvcc.compile(source, "sm_80", tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


_ANSWERS = """case "$*" in
  --version) echo 'Cuda compilation tools, release 13.0, V13.0.88'; exit;;
  --list-gpu-code) echo sm_80; exit;;
esac
"""


def _fake(folder: Path, compiles: str) -> Toolkit:
    return Toolkit(_script(folder / "bin" / "nvcc", _ANSWERS + compiles), "g++", "13.0.88")


@pytest.mark.parametrize(
    ("compiles", "message"),
    [
        ("kill -SEGV $$", "nvcc 13.0.88 for sm_80: killed by SIGSEGV"),
        ("exit 3", "nvcc 13.0.88 for sm_80: exit status 3: it said nothing"),
        ("echo one; echo two >&2; exit 3", r"exit status 3: one \| two"),
        ("echo 'sh: 1: cicc: not found'; echo more; exit 127", "sm_80: sh: 1: cicc: not found$"),
        ("echo warning; echo \"nvcc error   : 'cicc' died due to signal 9\"; exit 9", "nvcc error : 'cicc' died"),
    ],
)
def test_an_nvcc_that_fails(tmp_path: Path, compiles: str, message: str) -> None:
    with pytest.raises(BuildError, match=message):
        _fake(tmp_path, compiles).compile(_REVERSE, "sm_80", tmp_path)


def test_an_nvcc_that_takes_too_long_ends_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit, "_TIMEOUT_S", 2)
    fake = _fake(tmp_path, f"sleep 987 & echo $! > {tmp_path}/child; wait")
    with pytest.raises(BuildError, match="it took longer than 2 s"):
        fake.compile(_REVERSE, "sm_80", tmp_path)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 30
    while _runs(child):
        assert time.monotonic() < deadline, "the child still runs"
        time.sleep(0.01)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without nvcc that has a C++ compiler."""
    for name in ("CUDA_PATH", "CUDA_HOME", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    _script(tmp_path / "path" / "g++", "echo '#define __GLIBCXX__ 1'")
    return tmp_path


def test_where_there_is_no_nvcc(elsewhere: Path) -> None:
    with pytest.raises(TargetError, match=r"no nvcc: .*`pip install 'convtune\[cuda\]'` brings one"):
        toolkit.find()


def test_an_nvcc_on_the_path(elsewhere: Path) -> None:
    fake = _script(elsewhere / "path" / "nvcc", _ANSWERS)
    found = toolkit.find()
    assert found == Toolkit(fake, str(elsewhere / "path" / "g++"), "13.0.88")
    assert found.archs() == ("sm_80",)


@pytest.mark.parametrize("variable", ["CUDA_PATH", "CUDA_HOME"])
def test_the_named_toolkit_comes_first(elsewhere: Path, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _script(elsewhere / "path" / "nvcc", _ANSWERS)
    named = _script(elsewhere / "cuda" / "bin" / "nvcc", _ANSWERS)
    monkeypatch.setenv(variable, str(elsewhere / "cuda"))
    assert toolkit.find().nvcc == named
    monkeypatch.setenv(variable, str(elsewhere / "nowhere"))
    with pytest.raises(TargetError, match=f"^{variable}='.*/nowhere' has no bin/nvcc; correct it, or unset it"):
        toolkit.find()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("exit 1", "nvcc does not tell its version: exit status 1: it said nothing"),
        ("echo hello", r"nvcc does not tell its version: 'hello\\n'"),
    ],
)
def test_an_nvcc_that_does_not_run(elsewhere: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = _script(elsewhere / "cuda" / "bin" / "nvcc", text)
    monkeypatch.setenv("CUDA_PATH", str(elsewhere / "cuda"))
    with pytest.raises(TargetError, match=message):
        toolkit.find()
    broken.chmod(0o644)
    with pytest.raises(TargetError, match="nvcc does not tell its version: it does not start: Permission denied"):
        toolkit.find()


def test_without_a_compiler_of_cpp(elsewhere: Path) -> None:
    _script(elsewhere / "path" / "nvcc", _ANSWERS)
    _script(elsewhere / "path" / "g++", "echo 'cannot execute cc1plus'; exit 1")
    _script(elsewhere / "path" / "clang++", "echo '#define _LIBCPP_VERSION 1'")
    with pytest.raises(TargetError, match=r"GNU's C\+\+ library; .* install g\+\+, or name a compiler in NVCC_CCBIN"):
        toolkit.find()
    _script(elsewhere / "path" / "clang++", "echo '#define __GLIBCXX__ 1'")
    assert toolkit.find().host_compiler == str(elsewhere / "path" / "clang++")


def _install_wheels(folder: Path, *files: str) -> Path:
    home = folder / "nvidia" / "cu13"
    nvcc = _script(home / "bin" / "nvcc", _ANSWERS)
    for file in files:
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).touch()
    return nvcc


def test_wheels(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # find_spec is the real one again
    for name in ("CUDA_PATH", "CUDA_HOME", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(elsewhere / "path"))
    monkeypatch.setattr(sys, "path", [str(elsewhere / "site"), *sys.path])
    monkeypatch.delitem(sys.modules, "nvidia", raising=False)
    importlib.invalidate_caches()
    nvcc = _install_wheels(elsewhere / "site", "include/cuda_runtime.h")
    with pytest.raises(
        TargetError, match=r"nvcc lacks nvidia-nvvm, nvidia-cuda-crt in the same place; .*'convtune\[cuda\]'"
    ):
        toolkit.find()
    _install_wheels(elsewhere / "site", "nvvm/bin/cicc", "include/crt/host_config.h")
    assert toolkit.find().nvcc == nvcc


def test_nvcc_writes_in_the_given_directory_only(
    nvcc: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("given", "here"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    nvcc.archs()  # asked once, without a directory
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))  # where nvcc would put its files, and fail
    nvcc.compile(_REVERSE, "sm_80", tmp_path / "given")
    assert not list((tmp_path / "here").iterdir())


def test_a_temporary_directory_that_is_not_there_is_named(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As nvcc fails without one, when it is asked which archs it knows."""
    failing = _ANSWERS.replace("echo sm_80; exit", ": > $TMPDIR/x || exit 1; echo sm_80; exit")
    _script(elsewhere / "path" / "nvcc", failing)
    monkeypatch.setenv("TMPDIR", str(elsewhere / "missing"))
    with pytest.raises(
        TargetError, match=r"^the temporary directory .*/missing cannot be written: No such file .*TMPDIR"
    ):
        toolkit.find().archs()
    (elsewhere / "missing").mkdir()
    assert toolkit.find().archs() == ("sm_80",)


def test_this_machine_has_what_the_tests_need() -> None:
    """With CUDA installed nothing here may be skipped."""
    if shutil.which("nvcc") or os.environ.get("CUDA_PATH"):
        assert toolkit.find().archs()
