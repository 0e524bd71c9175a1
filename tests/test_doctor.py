"""The doctor: what it finds on this machine, and what it says about machines that lack something."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convtune import doctor, probe, targets
from convtune.cuda import toolkit
from convtune.doctor import Finding
from convtune.errors import TargetError
from convtune.linker import build_runtime, find_compiler
from convtune.paths import cache_dir
from convtune.targets import cuda
from convtune.targets.cuda_driver import Device, Found
from convtune.targets.host import current

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
on_x86 = pytest.mark.skipif(current().machine != "x86_64", reason="native is x86 only")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_tvm_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading TVM takes a second and is tested once."""
    monkeypatch.setattr(doctor, "_LOAD_TVM", "print('0.0', 0)")


def finding(findings: list[Finding], subject: str) -> Finding:
    (found,) = (one for one in findings if one.subject == subject)
    return found


@on_x86
def test_this_machine_is_sound_and_its_peaks_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    real = probe.bandwidth_gbs
    monkeypatch.setattr(probe, "stream_length", lambda target, threads: 1 << 20)
    monkeypatch.setattr(probe, "bandwidth_gbs", lambda target: real(target, seconds=0.001))
    findings = doctor.examine()
    assert [one.subject for one in findings if one.state == "broken"] == []
    assert re.fullmatch(r"0\.27\S* with LLVM \d+ loads", finding(findings, "TVM").value)
    native = targets.resolve("native")
    peaks = probe.recall(native)
    assert peaks is not None
    assert finding(findings, "FMA peak, one core").figures == {"gflops": peaks.core_fma_gflops}
    assert finding(findings, "FMA peak, all threads").figures == {"gflops": peaks.fma_gflops}
    memory = finding(findings, "memory, all threads").figures
    assert memory == dataclasses.asdict(peaks.bandwidth)
    assert all(value > 0 for value in memory.values())
    assert native.mcpu in finding(findings, "CPU").value
    json.dumps([dataclasses.asdict(one) for one in findings])


def test_without_measuring_nothing_is_remembered(no_tvm_load: None) -> None:
    findings = doctor.examine(measure=False)
    assert not [one for one in findings if one.figures.get("gflops")]
    assert not [one for one in findings if one.state == "broken"]
    assert probe.recall(targets.resolve("haswell")) is None


def test_what_is_not_well_says_for_what_and_how(no_tvm_load: None) -> None:
    for one in doctor.examine(measure=False):
        assert one.purpose
        assert bool(one.remedy) == (one.state != "ok")


def test_pins_and_requirements_are_those_of_the_project() -> None:
    text = PYPROJECT.read_text()
    (block,) = re.findall(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    wanted = re.findall(r'^\s*"([\w-]+)(==|>=)([^"]+)"', block, re.MULTILINE)
    pins = {name: version for name, relation, version in wanted if relation == "==" and name in doctor.PINS}
    assert pins == doctor.PINS
    assert {name for name, *_ in wanted} == {*doctor.PINS, *doctor.REQUIRED}
    assert f'requires-python = ">={".".join(map(str, doctor.OLDEST_PYTHON))}"' in text


@pytest.mark.parametrize(("found", "value"), [("0.1.15.post2", "0.1.15.post2"), (None, "not installed")])
def test_a_wrong_pin_is_broken(monkeypatch: pytest.MonkeyPatch, found: str | None, value: str) -> None:
    def version(name: str) -> str:
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", version)
    wrong = doctor._pinned("apache-tvm-ffi")
    assert (wrong.state, wrong.value) == ("broken", value)
    assert wrong.remedy == "pip install apache-tvm-ffi==0.1.14.post1"


@pytest.mark.parametrize(
    ("code", "value"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashes on import with SIGSEGV"),
        ("import no_such_module", "does not load: ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise SystemExit(1)", "does not load: it said nothing"),
    ],
)
def test_a_tvm_that_does_not_load_is_broken(monkeypatch: pytest.MonkeyPatch, code: str, value: str) -> None:
    monkeypatch.setattr(doctor, "_LOAD_TVM", code)
    found = doctor._tvm_loads()
    assert (found.state, found.value) == ("broken", value)
    assert "apache-tvm-ffi==0.1.14.post1" in found.remedy


def test_a_tvm_that_hangs_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LOAD_TVM", "import time; time.sleep(60)")
    monkeypatch.setattr(doctor, "_LOAD_TIMEOUT_S", 0.2)
    assert doctor._tvm_loads().state == "broken"


@on_x86
@pytest.mark.parametrize("command", ["/nowhere/cc", "'/nowhere/cc"])
def test_no_compiler_is_broken_and_the_rest_is_still_told(
    command: str, monkeypatch: pytest.MonkeyPatch, no_tvm_load: None
) -> None:
    monkeypatch.setenv("CONVTUNE_CC", command)
    findings = doctor.examine()
    compiler = finding(findings, "C compiler")
    assert (compiler.state, compiler.remedy) == ("broken", "pip install ziglang")
    assert "/nowhere/cc" in compiler.value
    assert finding(findings, "peaks").state == "absent"
    assert finding(findings, "CPU").state == "ok"


def test_the_runtime_is_compiled_again_where_damaged() -> None:
    runtime = build_runtime(find_compiler(), cache_dir())
    runtime.library.write_bytes(b"garbage")
    runtime.glue.write_bytes(b"")
    assert doctor._runtime().state == "ok"
    assert runtime.library.read_bytes().startswith(b"\x7fELF")
    assert runtime.glue.read_bytes().startswith(b"\x7fELF")


def test_a_runtime_that_does_not_load_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "cc"
    fake.write_text(
        '#!/bin/sh\nwhile [ $# -gt 0 ]; do [ "$1" = -o ] && echo garbage > "$2"; shift; done\necho fake 1\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CONVTUNE_CC", str(fake))
    found = doctor._runtime()
    assert (found.state, "libconvtune_runtime" in found.value) == ("broken", True)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("numpy", "no-such-package", "nor-this"))
    found = doctor._required()
    assert (found.state, found.remedy) == ("broken", "pip install no-such-package nor-this")


def test_a_cache_that_others_may_write_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "open"))
    found = doctor._directories()
    assert found.state == "broken"
    assert "mode 0777" in found.value


def test_a_machine_without_a_native_target_is_told(monkeypatch: pytest.MonkeyPatch, no_tvm_load: None) -> None:
    def native() -> None:
        raise TargetError("this machine is vax")

    monkeypatch.setattr(targets, "native", native)
    findings = doctor.examine()
    assert finding(findings, "CPU").value == "this machine is vax"
    assert not [one for one in findings if "peak" in one.subject]


def test_optional_parts_by_package_and_by_program(monkeypatch: pytest.MonkeyPatch) -> None:
    part = doctor.Part("x", "no-such-package", "testing", "pip install x", program="x")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert doctor._optional(part).state == "absent"
    assert doctor._optional(part).remedy == "pip install x"
    monkeypatch.setattr(shutil, "which", lambda name: f"/bin/{name}")
    assert doctor._optional(part).value == "/bin/x"
    assert doctor._optional(dataclasses.replace(part, distribution="numpy")).value == importlib.metadata.version(
        "numpy"
    )


def test_doctor_imports_no_tvm() -> None:
    code = "import sys; from convtune import doctor; print('tvm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_nvcc_is_told_and_where_there_is_none_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CUDA_PATH", "CUDA_HOME", "NVCC_CCBIN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    absent = doctor._nvcc()
    assert absent.state == "absent" and "none on PATH" in absent.value and "nvidia-cuda-nvcc==13.0" in absent.remedy
    found = toolkit.Toolkit(Path("/x/nvcc"), "g++", "13.0.88")
    monkeypatch.setattr(toolkit, "find", lambda: found)
    monkeypatch.setattr(toolkit.Toolkit, "archs", lambda self: ("sm_75", "sm_80", "sm_121"))
    assert doctor._nvcc().state == "ok"
    assert doctor._nvcc().value == "/x/nvcc: 13.0.88, for sm_75 to sm_121"


def test_an_nvcc_that_does_not_serve_is_broken_and_has_its_own_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def program(name: str, text: str) -> None:
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    (tmp_path / "bin").mkdir()
    monkeypatch.delenv("NVCC_CCBIN", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path / "nowhere"))
    _broken("has no bin/nvcc", "unset CUDA_PATH")
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    program("nvcc", "exit 3")
    _broken("does not tell its version: exit status 3", "install CUDA's toolkit again")
    program("nvcc", "echo release 13.0, V13.0.88; [ $1 = --version ]")
    _broken("g++ and clang++ on PATH do not serve", "install g++")
    monkeypatch.setenv("NVCC_CCBIN", "g++")
    _broken("does not tell which archs it knows", "install CUDA's toolkit again")
    monkeypatch.setenv("TMPDIR", "/nowhere")
    _broken("the temporary directory /nowhere cannot be written", "TMPDIR")


def _broken(value: str, remedy: str) -> None:
    finding = doctor._nvcc()
    assert (finding.state, "nvidia-cuda-nvcc" in finding.remedy) == ("broken", False)
    assert value in finding.value and remedy in finding.remedy


ATTRIBUTES = {
    "major": 8, "minor": 6, "sms": 46, "clock_khz": 1740000, "memory_clock_khz": 7001000, "memory_bus_bits": 256,
    "l2_bytes": 4 << 20, "shared_per_sm": 102400, "shared_per_block": 101376, "shared_reserved": 1024,
    "registers_per_sm": 65536, "threads_per_sm": 1536, "blocks_per_sm": 16,
}  # fmt: skip


def test_a_gpu_is_told_and_why_there_is_none_that_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def driver_says(found: Found) -> None:
        for module in (doctor, cuda):
            monkeypatch.setattr(module, "first_gpu", lambda: found)

    driver_says(Found(Device("A GPU", 12080, ATTRIBUTES)))
    assert doctor._gpu().value == "A GPU: sm_86, 46 SMs, 1740 MHz, 448 GB/s, driver for CUDA 12.8"
    driver_says(Found(Device("An old GPU", 12080, {**ATTRIBUTES, "major": 7, "minor": 0})))
    assert doctor._gpu().state == "absent" and "An old GPU, is of arch sm_70" in doctor._gpu().value
    driver_says(Found(None, "there is none"))
    assert (doctor._gpu().state, doctor._gpu().value) == ("absent", "there is none")
