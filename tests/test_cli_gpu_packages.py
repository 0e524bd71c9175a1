"""`convtune compile` and `verify` for GPUs that are not here: what packages hold, and what is said of them."""

from __future__ import annotations

import json
import re
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cli_process import TINY, invoke

from convtune.cuda import toolkit
from convtune.errors import TargetError
from convtune.runtime.manifest import Manifest
from convtune.targets.cuda_driver import first_gpu

# not this machine's, even where this machine has one of that arch
ABSENT = json.dumps({"arch": "sm_75", "name": "absent", "model": "of another machine"})
EM_CUDA = 190


def nvcc() -> toolkit.Toolkit:
    try:
        return toolkit.find()
    except TargetError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A package for three archs, and what was printed when it was compiled."""
    nvcc()
    package = tmp_path_factory.mktemp("compiled") / "tiny"
    result = invoke("compile", TINY, "--target", ABSENT, "--arch", "sm_90,sm_80", "--arch", "sm_80", "-o", package)
    assert result.exit_code == 0, result.stderr
    return package, result.stdout


def manifest(package: Path) -> Manifest:
    return Manifest.from_json((package / "manifest.json").read_text())


def library(package: Path) -> bytes:
    return (package / manifest(package).library_name).read_bytes()


def test_a_kernel_is_verified_by_emulation_and_said_to_have_run_on_no_gpu(compiled: tuple[Path, str]) -> None:
    package, printed = compiled
    (line,) = (line for line in printed.splitlines() if line.startswith("  error "))
    error = manifest(package).error
    assert error is not None and error < 2e-5
    assert line == f"  error       {error:.1e}, verified by emulation on this CPU; never run on a GPU here"
    assert "  code        for sm_75, sm_80, sm_90; PTX of sm_75" in printed
    assert "  time " not in printed
    assert manifest(package).verified == "emulation"


def test_the_library_has_machine_code_of_each_arch(compiled: tuple[Path, str]) -> None:
    data = library(compiled[0])
    starts = [i for i in range(1, len(data)) if data.startswith(b"\x7fELF", i)]
    cubins = [i for i in starts if struct.unpack_from("<H", data, i + 18)[0] == EM_CUDA]
    assert len(cubins) == 3
    assert all(f"sm_{number}".encode() in data for number in (75, 80, 90))


def test_newer_gpus_can_be_compiled_for_from_its_ptx(compiled: tuple[Path, str], tmp_path: Path) -> None:
    """By ptxas, as the driver would."""
    (ptx,) = re.findall(rb"\n(\.version [\d.]+\n[^\0]*)\0", library(compiled[0]))
    assert b".target sm_75" in ptx
    (tmp_path / "kernel.ptx").write_bytes(ptx)
    for arch in ("sm_75", "sm_120"):
        command = [nvcc().nvcc, "--cubin", f"-arch={arch}", "-o", tmp_path / arch, tmp_path / "kernel.ptx"]
        subprocess.run(command, check=True)


def test_verifying_a_package_without_a_gpu_says_so(compiled: tuple[Path, str]) -> None:
    if first_gpu().device:
        pytest.skip("this machine has a GPU")
    result = invoke("verify", compiled[0])
    assert result.exit_code == 1
    why = f"it needs a GPU, but {first_gpu().why_none}; when it was compiled it was verified by emulation"
    assert f"{compiled[0]}: {why}\n" in result.stdout


def test_a_workload_is_verified_by_emulation(compiled: tuple[Path, str]) -> None:
    result = invoke("verify", TINY, "--target", ABSENT, "--seed", "5", "--json")
    assert result.exit_code == 0, result.stderr
    (kernel,) = json.loads(result.stdout)["kernels"]
    assert kernel["status"] == "ok" and 0 < kernel["error"] < 2e-5
    assert kernel["message"] == "by emulation on this CPU; never run on a GPU here"
    assert kernel["error"] != manifest(compiled[0]).error, "the operands are of another seed"


def test_json_says_how_it_was_verified(compiled: tuple[Path, str]) -> None:
    archs = ("--arch", "sm_80", "--arch", "sm_90")
    result = invoke("compile", TINY, "--target", ABSENT, *archs, "-o", compiled[0], "--json")
    data: dict[str, Any] = json.loads(result.stdout)
    (package,) = data["packages"]
    assert (package["verified"], package["archs"]) == ("emulation", ["sm_75", "sm_80", "sm_90"])
    assert data["not_verified"] is None and package["time_us"] is None


BAD = {
    "--target sm_80 --arch sm_12": "does not know arch 'sm_12'; it knows sm_75, ",
    "--target sm_80 --arch ampere": "does not know arch 'ampere'",
    "--target native --arch sm_80": "archs are sm_80; target 'native' is a CPU, so leave them out",
    "--target sm_80 --threads 2": "only CPUs have a number of threads to choose",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_archs_are_one_line(tmp_path: Path, arguments: str) -> None:
    nvcc()
    result = invoke("compile", TINY, *arguments.split(), "-o", tmp_path / "out")
    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert BAD[arguments] in line
    assert not (tmp_path / "out").exists()


def test_without_nvcc_compiling_for_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    result = invoke("compile", TINY, "--target", ABSENT, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert (
        result.stderr
        == f"convtune: error: CUDA_PATH={str(tmp_path)!r} has no bin/nvcc; correct it, or unset it to "
        + ("use another nvcc\n")
    )
