"""manifest.json: what earlier versions wrote is read, and how a kernel was verified is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from runtime_kernels import pointwise_library, pointwise_manifest

from convtune.runtime import load
from convtune.runtime.errors import KernelError
from convtune.runtime.manifest import Manifest
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
