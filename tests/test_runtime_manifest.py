"""manifest.json: what earlier versions wrote is read, and how a kernel was verified is told."""

from __future__ import annotations

import dataclasses
import json
import platform
from pathlib import Path
from typing import Any

import pytest
from runtime_kernels import pointwise_library, pointwise_manifest

from convtune.runtime import CompiledConv, load
from convtune.runtime.errors import KernelError
from convtune.runtime.manifest import KernelTarget, Manifest
from convtune.runtime.names import RUNTIME_NAME
from convtune.runtime.package import write_package


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pointwise_library(tmp_path_factory.mktemp("pointwise"))


def old(manifest: Manifest, **changes: Any) -> str:
    """manifest.json as it was before GPUs."""
    record = json.loads(manifest.to_json())
    del record["verified"], record["target"]["archs"], record["target"]["ptx"]
    return json.dumps({**record, **changes})


def test_manifests_from_before_gpus_are_read(library: Path) -> None:
    manifest = pointwise_manifest(library)
    read = Manifest.from_json(old(manifest))
    assert (read.verified, read.target.archs, read.target.ptx, read.target.on_gpu) == ("device", (), "", False)
    assert read == dataclasses.replace(manifest, verified="device")
    assert Manifest.from_json(old(manifest, error=None)).verified is None


def test_how_a_kernel_was_verified_is_told(library: Path, tmp_path: Path) -> None:
    manifest = pointwise_manifest(library, verified="emulation")
    conv = load(write_package(tmp_path / "pw", manifest, library, library.with_name(RUNTIME_NAME)))
    assert conv.verified == "emulation"
    assert "error=1.0e-07 by emulation)" in repr(conv)
    with pytest.raises(KernelError, match="verified is 'luck'; allowed are device, emulation, or null"):
        pointwise_manifest(library, verified="luck")


GPU = {"machine": "x86_64", "name": "sm_80", "required_features": [], "threads": 1, "archs": ["sm_80"], "ptx": "sm_80"}
WRONG_TARGETS = {
    "archs are missing, and ptx is 'sm_80'": {**GPU, "archs": []},
    "archs are missing, and ptx is 'sm_80'; it": {name: value for name, value in GPU.items() if name != "archs"},
    "'ampere' is no arch of a GPU": {**GPU, "archs": ["ampere"]},
    "'sm_80 ' is no arch of a GPU": {**GPU, "ptx": "sm_80 "},
    "threads is 0; it must be 1 or more": {**GPU, "threads": 0},
}


@pytest.mark.parametrize("message", WRONG_TARGETS)
def test_a_target_that_cannot_be_is_refused(library: Path, message: str) -> None:
    text = pointwise_manifest(library).to_json()
    assert Manifest.from_json(json.dumps({**json.loads(text), "target": GPU})).target.on_gpu
    with pytest.raises(KernelError, match=f"^manifest.json: target: {message}"):
        Manifest.from_json(json.dumps({**json.loads(text), "target": WRONG_TARGETS[message]}))


@pytest.mark.parametrize("size", [0, -5])
def test_sizes_below_one_are_refused(library: Path, size: int) -> None:
    record = json.loads(pointwise_manifest(library).to_json())
    record["arguments"][0]["shape"][1] = size
    with pytest.raises(KernelError, match=rf"^argument x has shape \(11, {size}\).*; sizes are 1 or more$"):
        Manifest.from_json(json.dumps(record))


def test_a_cpus_kernel_is_not_loaded_as_a_gpus(library: Path, tmp_path: Path) -> None:
    target = KernelTarget("sm_80", platform.machine(), (), 1, ("sm_80",), "sm_80")
    package = write_package(
        tmp_path / "pw", pointwise_manifest(library, target=target), library, library.with_name(RUNTIME_NAME)
    )
    with pytest.raises(KernelError, match=r"archs are \['sm_80'\], and the kernel is for a CPU$"):
        CompiledConv(package)
