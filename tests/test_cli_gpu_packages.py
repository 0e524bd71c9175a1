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

import convtune
from convtune import space, targets
from convtune.cuda import launcher, toolkit
from convtune.cuda.program import Program
from convtune.errors import BuildError, TargetError
from convtune.forms import form_of
from convtune.runtime.manifest import Manifest
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.targets.cuda_driver import first_gpu

# not this machine's, even where this machine has one of that arch
ABSENT = json.dumps({"arch": "sm_75", "name": "absent", "model": "of another machine"})
EM_CUDA = 190
COPIES = ConvSpec.parse("conv,ic=16,oc=16,in=14x14,k=3x3,p=1")


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


def test_ptx_is_of_an_arch_that_newer_gpus_take(tmp_path: Path) -> None:
    """Drivers take the PTX of sm_90a for sm_90a alone."""
    nvcc()
    result = invoke("compile", TINY, "--target", "sm_100", "--arch", "sm_90a", "-o", tmp_path / "px")
    assert result.exit_code == 0, result.stderr
    assert "  code        for sm_90a, sm_100; PTX of sm_100\n" in result.stdout
    assert b".target sm_100\n" in library(tmp_path / "px") and b".target sm_90a" not in library(tmp_path / "px")


def test_a_schedule_that_an_older_arch_cannot_run_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    nvcc()
    target = targets.resolve("sm_80")
    copies = Candidate("gpu_tiles", {**space.get("gpu_tiles").default(COPIES, target), "pipeline": "async2"})
    assert space.contains(space.get("gpu_tiles"), COPIES, target, copies.knobs)
    with pytest.raises(
        BuildError, match=r"^gpu_tiles\(.*: its schedule copies asynchronously, which sm_75 cannot.*conv,"
    ):
        convtune.compile(COPIES, target, candidate=copies, archs="sm_75")


def test_a_layer_that_fails_is_named_and_no_package_is_said_to_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc()

    def refuse(program: Program, arch: str) -> None:
        if len(program.parameters) == 4:  # of the layer with a bias
            raise BuildError("its schedule is refused")

    monkeypatch.setattr(launcher, "check_arch", refuse)
    other = f"{TINY},bias"
    result = invoke("compile", TINY, other, "--target", ABSENT, "-o", tmp_path / "two")
    assert result.exit_code == 1
    assert f"{other}: failed: " in result.stderr and "its schedule is refused" in result.stderr
    assert "  package " not in result.stdout and "nothing was written, because some failed" in result.stdout
    assert not (tmp_path / "two").exists()


def test_archs_may_be_a_string_and_must_be_names() -> None:
    nvcc()
    target = targets.resolve("sm_80")
    assert form_of(target, "sm_90,sm_86").target.archs == ("sm_80", "sm_86", "sm_90")
    wrong: Any
    for wrong in (90, [90], None):
        with pytest.raises(TargetError, match=r"archs are .*; allowed are names such as 'sm_90', or a list of them"):
            form_of(target, wrong)


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
