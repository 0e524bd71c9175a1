"""`convtune compile` and `verify` for CPUs that are not here: emulated, and said to be."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from pathlib import Path

import numpy as np
import pytest
from cli_process import TINY, invoke

import convtune
from convtune.emulation.image import machine_of
from convtune.errors import KernelError
from convtune.runtime.manifest import Manifest
from convtune.runtime.names import RUNTIME_NAME

ELSEWHERE = platform.machine() == "aarch64"
TARGET, ELF = ("x86-64-v2", "EM_X86_64") if ELSEWHERE else ("neoverse-n1", "EM_AARCH64")
TOLD = "by emulation on this CPU; never run on such a CPU here"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A package for a CPU of another kind, and what was printed when it was compiled."""
    package = tmp_path_factory.mktemp("compiled") / "tiny"
    result = invoke("compile", TINY, "--target", TARGET, "--threads", "3", "-o", package)
    assert result.exit_code == 0, result.stderr
    return package, result.stdout


def test_a_package_for_another_cpu_is_verified_by_emulation(compiled: tuple[Path, str]) -> None:
    package, printed = compiled
    manifest = Manifest.from_json((package / "manifest.json").read_text())
    assert manifest.error is not None and manifest.error < 2e-5
    assert manifest.verified == "emulation"
    assert machine_of(package / manifest.library_name) == ELF == machine_of(package / RUNTIME_NAME)
    (line,) = (line for line in printed.splitlines() if line.startswith("  error "))
    assert line == f"  error       {manifest.error:.1e}, verified {TOLD}"
    assert "  time " not in printed


def test_it_can_be_verified_again_and_not_called(compiled: tuple[Path, str]) -> None:
    package, _ = compiled
    result = invoke("verify", package)
    assert result.exit_code == 0, result.stderr
    assert f"{package}: {TOLD}\n1 of 1 kernel right" in result.stdout
    with pytest.raises(KernelError, match=r"the kernel was compiled for .*; this machine is ") as refused:
        convtune.load(package).time()
    assert "\n" not in str(refused.value)


def test_a_wrong_kernel_in_it_is_found_out(compiled: tuple[Path, str], tmp_path: Path) -> None:
    package = tmp_path / "wrong"
    shutil.copytree(compiled[0], package)
    manifest = json.loads((package / "manifest.json").read_text())
    (library,) = package.glob("kernel-*.so")
    (other,) = made_for_another_spec(tmp_path).glob("kernel-*.so")
    shutil.copyfile(other, library)
    result = invoke("verify", package)
    assert result.exit_code == 1
    assert "the file was changed" in result.stdout
    digest = hashlib.sha256(other.read_bytes()).hexdigest()
    renamed = library.rename(package / other.name)
    (package / "manifest.json").write_text(json.dumps({**manifest, "library_sha256": digest}))
    result = invoke("verify", package, "--json")
    assert result.exit_code == 1
    (verdict,) = json.loads(result.stdout)["kernels"]
    assert verdict["status"] == "error"
    assert "kernel failed with status -1: " in verdict["message"]
    assert renamed.exists()


def test_a_library_of_another_machine_is_refused(compiled: tuple[Path, str], tmp_path: Path) -> None:
    package = tmp_path / "mixed"
    assert invoke("compile", TINY, "-o", package).exit_code == 0
    manifest = json.loads((package / "manifest.json").read_text())
    target = json.loads((compiled[0] / "manifest.json").read_text())["target"]
    (package / "manifest.json").write_text(json.dumps({**manifest, "target": target}))
    result = invoke("verify", package)
    assert result.exit_code == 1
    assert f" is for {platform.machine()}; the package says {target['machine']}" in result.stdout


def made_for_another_spec(tmp_path: Path) -> Path:
    package = tmp_path / "other"
    assert invoke("compile", TINY.replace("in=9x9", "in=8x9"), "--target", TARGET, "-o", package).exit_code == 0
    return package


def test_workloads_are_verified_for_another_cpu(compiled: tuple[Path, str]) -> None:
    result = invoke("verify", TINY, "--target", TARGET, "--threads", "3", "--seed", "5")
    assert result.exit_code == 0, result.stderr
    assert f"{TINY}: {TOLD}\n1 of 1 kernel right" in result.stdout


def test_python_compiles_packs_and_saves_for_another_cpu(tmp_path: Path) -> None:
    conv = convtune.compile(convtune.ConvSpec.parse(TINY), target=TARGET)
    assert conv.verified == "emulation" and conv.error is not None
    spec = convtune.ConvSpec.parse(conv.spec)
    x, weight = np.zeros(spec.in_shape, "float32"), np.zeros(spec.weight_shapes[0], "float32")
    packed = conv.pack(weight)
    for call in (lambda: conv.run(x, packed), conv.time, lambda: conv.bind(x, packed, out=conv)):
        with pytest.raises(KernelError):
            call()
    with pytest.raises(KernelError, match=r"the kernel was compiled for .*; this machine is "):
        conv(x, weight)
    assert machine_of(conv.save(tmp_path / "tiny") / conv.manifest.library_name) == ELF


@pytest.mark.skipif(ELSEWHERE, reason="neoverse-v1 may be the machine at hand")
def test_long_vectors_are_emulated_too() -> None:
    result = invoke("verify", "conv,ic=5,oc=19,in=7x5,k=3,p=1,layout=NHWC", "--target", "neoverse-v1")
    assert result.exit_code == 0, result.stderr
    assert TOLD in result.stdout


@pytest.mark.skipif(not ELSEWHERE, reason="this machine runs some x86 kernels")
def test_what_cannot_be_emulated_is_refused() -> None:
    result = invoke("verify", TINY, "--target", "x86-64-v3")
    assert result.exit_code == 2
    assert result.stderr.endswith("cannot be emulated: Unicorn does not have it\n")
