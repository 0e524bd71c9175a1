"""Weights that belong to a convolution: calls without them, saved packages, older packages, damage."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_kernels import IN, OUT, PIXELS, pointwise_library, pointwise_manifest

from convtune.runtime import CompiledConv, load
from convtune.runtime.errors import KernelError
from convtune.runtime.names import MANIFEST_NAME, RUNTIME_NAME
from convtune.runtime.package import write_package

RNG = np.random.default_rng(11)
X, RESIDUAL = RNG.standard_normal((PIXELS, IN), "f"), RNG.standard_normal((PIXELS, OUT), "f")
WEIGHT, BIAS = RNG.standard_normal((OUT, IN), "f"), RNG.standard_normal(OUT, "f")
Y = X.astype("f8") @ WEIGHT.T.astype("f8") + BIAS + RESIDUAL


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pointwise")
    library = pointwise_library(directory)
    return write_package(directory / "pw", pointwise_manifest(library), library, library.with_name(RUNTIME_NAME))


@pytest.fixture
def conv(plain: Path) -> CompiledConv:
    loaded = load(plain)
    loaded.fix(WEIGHT, BIAS, weight_error=0.25)
    return loaded


def check(y: Any) -> None:
    np.testing.assert_allclose(y, Y, rtol=1e-5, atol=1e-5)


def test_calls_bring_no_weights(conv: CompiledConv) -> None:
    check(conv(X, residual=RESIDUAL))
    out = np.empty((PIXELS, OUT), "f")
    assert conv.run(X, residual=RESIDUAL, out=out) is out
    check(out)


def test_weights_may_be_changed_afterwards_by_whoever_gave_them(plain: Path) -> None:
    weight, bias = WEIGHT.copy(), BIAS.copy()
    conv = load(plain)
    conv.fix(weight, bias)
    weight[...], bias[...] = 0, 0
    check(conv(X, residual=RESIDUAL))
    assert conv.weight_error is None


@pytest.mark.parametrize("name", ["weight", "bias", "packed"])
def test_weights_that_are_given_all_the_same_are_refused(conv: CompiledConv, plain: Path, name: str) -> None:
    calls: dict[str, Callable[[], Any]] = {
        "weight": lambda: conv(X, WEIGHT, residual=RESIDUAL),
        "bias": lambda: conv(X, bias=BIAS, residual=RESIDUAL),
        "packed": lambda: conv.run(X, load(plain).pack(WEIGHT, BIAS), residual=RESIDUAL),
    }
    with pytest.raises(KernelError, match=f"^{name} was given; this convolution has weights of its own, so leave it"):
        calls[name]()
    with pytest.raises(KernelError, match="weight was given"):
        conv.pack(WEIGHT, BIAS)


def test_without_weights_of_its_own_they_are_missing(plain: Path) -> None:
    with pytest.raises(KernelError, match=r"weight is missing; this kernel takes one of shape \(13, 5\)"):
        load(plain)(X, residual=RESIDUAL)
    with pytest.raises(KernelError, match="packed is a NoneType"):
        load(plain).run(X, residual=RESIDUAL)


def test_what_does_not_fit_is_refused(plain: Path) -> None:
    conv = load(plain)
    with pytest.raises(KernelError, match=r"weight has shape \(5, 13\); this kernel takes \(13, 5\)"):
        conv.fix(WEIGHT.T, BIAS)
    with pytest.raises(KernelError, match="bias is missing"):
        conv.fix(WEIGHT)
    check(conv(X, WEIGHT, BIAS, residual=RESIDUAL))


def test_a_package_brings_them(conv: CompiledConv, tmp_path: Path) -> None:
    package = conv.save(tmp_path / "pw")
    np.testing.assert_array_equal(np.load(package / "weight-0.npy"), WEIGHT)
    np.testing.assert_array_equal(np.load(package / "bias-0.npy"), BIAS)
    again = load(load(package).save(tmp_path / "pw_again"))
    check(again(X, residual=RESIDUAL))
    assert (again.weight_error, again.error, again.manifest) == (0.25, 1e-7, conv.manifest)
    np.savez(tmp_path / "operands.npz", x=X, residual=RESIDUAL)
    program = (
        "import numpy as np, pw; o = np.load('operands.npz'); np.save('y.npy', pw(o['x'], residual=o['residual']));"
        "print(pw.weight_error, pw.__doc__)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("0.25 pointwise-test") and done.stdout.endswith("pw(x)\n")
    check(np.load(tmp_path / "y.npy"))


def test_a_package_with_weights_is_replaced_by_one_without(conv: CompiledConv, plain: Path, tmp_path: Path) -> None:
    package = conv.save(tmp_path / "pw")
    load(plain).save(package)
    assert not list(package.glob("*.npy"))
    check(load(package)(X, WEIGHT, BIAS, residual=RESIDUAL))


def test_packages_from_before_there_were_constants_load(plain: Path, tmp_path: Path) -> None:
    package = load(plain).save(tmp_path / "pw")
    edit(package, constants=..., weight_error=...)
    assert load(package).weight_error is None
    check(load(package)(X, WEIGHT, BIAS, residual=RESIDUAL))


def edit(package: Path, **changes: Any) -> None:
    record = {**json.loads((package / MANIFEST_NAME).read_text()), **changes}
    (package / MANIFEST_NAME).write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))


def refused(package: Path) -> str:
    with pytest.raises(KernelError) as caught:
        load(package)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damage_is_found(conv: CompiledConv, tmp_path: Path) -> None:
    package = conv.save(tmp_path / "pw")
    file = package / "weight-0.npy"
    whole = file.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:-4], b""):
        file.write_bytes(damaged)
        assert "weight-0.npy has SHA-256" in refused(package)
    file.unlink()
    assert "is not a complete convtune package" in refused(package)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "weight-0.npy is no .npy file"),
        (b"\x93NUMPY\x01\x00", "weight-0.npy is no .npy file"),
        (WEIGHT.T, "weight-0.npy holds float32 (5, 13); this kernel takes float32 (13, 5) (spec: pointwise-test)"),
        (WEIGHT.astype("f8"), "weight-0.npy holds float64 (13, 5); this kernel takes float32 (13, 5)"),
        (np.array([None]), "weight-0.npy is no .npy file: Object arrays cannot be loaded when allow_pickle=False"),
    ],
)
def test_files_whose_hash_is_right_are_checked_too(
    conv: CompiledConv, tmp_path: Path, content: bytes | np.ndarray, message: str
) -> None:
    package = conv.save(tmp_path / "pw")
    file = package / "weight-0.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    constants = {**conv.manifest.constants, "weight-0.npy": hashlib.sha256(file.read_bytes()).hexdigest()}
    edit(package, constants=constants)
    assert message in refused(package)


SHA = "0" * 64
BAD_MANIFESTS = {
    "manifest.json: constants are weight-0.npy; they must be weight-0.npy, bias-0.npy, or none": {"weight-0.npy": SHA},
    "manifest.json: constants are ../bias-0.npy, weight-0.npy; they must be weight-0.npy, bias-0.npy, or none": {
        "../bias-0.npy": SHA,
        "weight-0.npy": SHA,
    },
    "manifest.json: constants: bias-0.npy is 3; it must be str": {"weight-0.npy": SHA, "bias-0.npy": 3},
    "manifest.json: 'x' is not a SHA-256 in hexadecimal": {"weight-0.npy": SHA, "bias-0.npy": "x"},
    "manifest.json: constants is []; it must be dict": [],
}


@pytest.mark.parametrize("message", BAD_MANIFESTS)
def test_bad_manifests(conv: CompiledConv, tmp_path: Path, message: str) -> None:
    package = conv.save(tmp_path / "pw")
    edit(package, constants=BAD_MANIFESTS[message])
    assert refused(package) == message


def test_a_weight_error_is_a_number(conv: CompiledConv, tmp_path: Path) -> None:
    package = conv.save(tmp_path / "pw")
    edit(package, weight_error="small")
    assert refused(package) == "manifest.json: weight_error is 'small'; it must be int or float"
