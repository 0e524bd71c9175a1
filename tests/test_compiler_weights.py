"""Convolutions compiled with their weights: constants, saved packages, and separable factors where they are allowed."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convtune
from convtune.compiler import Compiler
from convtune.errors import ConvtuneError, KernelError, SpecError
from convtune.reference import random_operands
from convtune.runtime import CompiledConv
from convtune.space import Candidate
from convtune.spec import ConvSpec
from convtune.weights import known_weights

SPEC = ConvSpec.parse("conv,ic=8,oc=8,in=13x11,k=5x3,p=1x0:1,s=2x3,layout=NHWC,bias,residual,act=silu")
SOBEL = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]], "f")[None, None]
RNG = np.random.default_rng(21)
WEIGHT = random_operands(SPEC, 1).weights[0]
BIAS = RNG.standard_normal(8, "f")
RANK_3 = np.einsum("mci,omj->ocij", RNG.standard_normal((3, 8, 5)), RNG.standard_normal((8, 3, 3))).astype("f")


@pytest.fixture(scope="module", autouse=True)
def own_files(tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVTUNE_LOG", str(home / "user.jsonl"))
        patch.setenv("CONVTUNE_CACHE", str(home / "cache"))
        yield


def difference(conv: Any, spec: ConvSpec, weight: Any, bias: Any = None) -> float:
    """max |y - reference| / max |reference|, where the reference has the dense weight."""
    operands = random_operands(spec, 2)
    expected = convtune.reference(spec, operands.x, weight, bias, residual=operands.residual)
    y = conv(operands.x, residual=operands.residual)
    assert y.shape == expected.shape and (conv.run(operands.x, residual=operands.residual) == y).all()
    return float(np.abs(y - expected).max() / np.abs(expected).max())


def test_constant_weights_need_not_be_given_again() -> None:
    conv = convtune.compile(SPEC, weight=WEIGHT, bias=BIAS)
    assert conv.spec == str(SPEC) and conv.weight_error is None and conv.error is not None
    assert difference(conv, SPEC, WEIGHT, BIAS) <= 2e-5
    with pytest.raises(KernelError, match="weight was given; this convolution has weights of its own"):
        conv(np.zeros(SPEC.in_shape, "f"), WEIGHT, BIAS)


def test_other_weights_are_the_same_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    first = convtune.compile(SPEC, weight=WEIGHT, bias=BIAS)
    monkeypatch.setattr(Compiler, "_workers", lambda _: pytest.fail("the cache has it"))
    second = convtune.compile(SPEC, weight=2 * WEIGHT, bias=BIAS)
    assert first.manifest.library_sha256 == second.manifest.library_sha256
    assert first.manifest.constants != second.manifest.constants
    assert difference(first, SPEC, WEIGHT, BIAS) <= 2e-5 and difference(second, SPEC, 2 * WEIGHT, BIAS) <= 2e-5
    assert not convtune.compile(SPEC).manifest.constants
    assert not list(Path(os.environ["CONVTUNE_CACHE"]).rglob("*.npy"))


def test_a_package_has_the_factors(tmp_path: Path) -> None:
    conv = convtune.compile(SPEC, weight=RANK_3, bias=BIAS, allow_separable=1e-6)
    package = conv.save(tmp_path / "kernels" / "thin")
    assert sorted(path.name for path in package.glob("*.npy")) == ["bias-0.npy", "weight-0.npy", "weight-1.npy"]
    loaded = convtune.load(package)
    assert loaded.manifest == conv.manifest and difference(loaded, SPEC, RANK_3, BIAS) <= 2e-5
    program = "from kernels import thin; print(thin.spec, thin.weight_error)"
    alone = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert alone.stdout.split() == [conv.spec, str(conv.weight_error)]
    file = package / "weight-1.npy"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(KernelError, match=r"weight-1.npy has SHA-256 .*: the file was changed"):
        convtune.load(package)


def test_sobel_becomes_two_filters_and_loses_nothing() -> None:
    spec = ConvSpec.parse("conv,ic=1,oc=1,in=17x23,k=3x3,p=1,s=1x2,n=2")
    conv = convtune.compile(spec, weight=SOBEL, allow_separable=0)
    assert conv.spec == "spatially_separable,n=2,ic=1,oc=1,in=17x23,k=3x3,s=1x2,p=1" and conv.weight_error == 0
    assert conv.resolution.reason.startswith("separable with mid_channels=1, weight error 0; ")
    x = RNG.integers(-9, 9, spec.in_shape).astype("f")
    np.testing.assert_array_equal(conv(x), convtune.reference(spec, x, SOBEL))


def test_separable_weights_are_used_and_both_errors_are_told() -> None:
    conv = convtune.compile(SPEC, weight=RANK_3, bias=BIAS, allow_separable=1e-6)
    factored = ConvSpec.parse(conv.spec)
    assert factored == SPEC.replace(variant="spatially_separable", mid_channels=3) and factored.macs < SPEC.macs
    assert conv.weight_error is not None and 0 < conv.weight_error <= 1e-6
    assert conv.error is not None and conv.error <= 2e-5
    assert "separable with mid_channels=3, weight error " in conv.resolution.reason
    assert difference(conv, SPEC, RANK_3, BIAS) <= 2e-5


def test_a_tolerance_shows_in_the_result_but_not_in_the_kernels_error() -> None:
    weight = RANK_3 + 0.05 * RNG.standard_normal(RANK_3.shape).astype("f")
    conv = convtune.compile(SPEC, weight=weight, bias=BIAS, allow_separable=0.1)
    assert ConvSpec.parse(conv.spec).mid_channels == (3,)
    assert conv.weight_error is not None and 1e-3 < conv.weight_error <= 0.1
    assert conv.error is not None and conv.error <= 2e-5
    assert 1e-3 < difference(conv, SPEC, weight, BIAS) < 0.3


def test_in_three_dimensions() -> None:
    spec = ConvSpec.parse("conv,ic=4,oc=5,in=7x9x8,k=3x3x3,p=1x0:2x1,s=2x1x3")
    cores = RNG.standard_normal((2, 4, 3)), RNG.standard_normal((3, 2, 3)), RNG.standard_normal((5, 3, 3))
    weight = np.einsum("aci,baj,obk->ocijk", *cores).astype("f")
    conv = convtune.compile(spec, weight=weight, allow_separable=1e-6)
    assert ConvSpec.parse(conv.spec).mid_channels == (2, 3) and difference(conv, spec, weight) <= 2e-5


def test_where_nothing_is_gained_the_dense_kernel_is_compiled() -> None:
    spec = SPEC.replace(bias=False)
    weight = random_operands(spec, 1).weights[0]
    conv = convtune.compile(spec, weight=weight, allow_separable=0.1)
    assert conv.spec == str(spec) and conv.weight_error is None and difference(conv, spec, weight) <= 2e-5
    told = "dense, as no factors with weight error up to 0.1 need fewer multiply-accumulates; "
    assert conv.resolution.reason.startswith(told)


@pytest.mark.parametrize(
    "text",
    [
        "depthwise,ic=8,oc=8,in=9x9,k=3x3",
        "grouped,ic=8,oc=8,in=9x9,k=3x3,g=2",
        "pointwise,ic=8,oc=8,in=9x9,k=1x1",
        "conv,ic=8,oc=8,in=9x9,k=1x3",
        "conv,ic=8,oc=8,in=9,k=3",
        "spatially_separable,ic=8,oc=8,in=9x9,k=3x3",
    ],
)
def test_what_is_not_factored_is_compiled_as_it_is(text: str) -> None:
    spec = ConvSpec.parse(text)
    weights = random_operands(spec, 1).weights
    weight = weights if len(weights) > 1 else weights[0]
    known = known_weights(spec, weight, allow_separable=0.5)
    assert known.spec is spec and known.weight is weight and known.error is None
    assert known.reason == (
        "as it is: only conv and dilated with a kernel above 1 in two dimensions or more are factored"
    )


COMPOSITE = ConvSpec.parse("spatially_separable,ic=3,oc=4,in=8x9,k=3x3,mid=2,bias,sbias=1")


def test_a_composite_takes_a_tuple_of_constants() -> None:
    operands = random_operands(COMPOSITE, 1)
    conv = convtune.compile(COMPOSITE, weight=operands.weights, bias=operands.bias)
    assert sorted(conv.manifest.constants) == ["bias-0.npy", "bias-1.npy", "weight-0.npy", "weight-1.npy"]
    assert difference(conv, COMPOSITE, operands.weights, operands.bias) <= 2e-5


BAD = {
    "bias is given without weight; it is for constant weights": {"weight": None},
    "allow_separable is given without weight": {"weight": None, "bias": None, "allow_separable": 0.1},
    "bias is missing; the spec takes one of shape (8,)": {"bias": None},
    "weight has shape (8, 8, 3, 5); it must be (8, 8, 5, 3)": {"weight": WEIGHT.swapaxes(2, 3)},
    "weight has dtype float64; it must be float32": {"weight": WEIGHT.astype("f8")},
    "weight is a tuple; it must be a NumPy array or have __dlpack__": {"weight": (WEIGHT, WEIGHT)},
    "bias has shape (1, 8); it must be (8,)": {"bias": BIAS[None]},
    "allow_separable=True is not allowed; it must be a number of at least 0, below 1": {"allow_separable": True},
    "allow_separable=-0.1 is not allowed": {"allow_separable": -0.1},
    "allow_separable=nan is not allowed": {"allow_separable": float("nan")},
    "allow_separable='0.1' is not allowed": {"allow_separable": "0.1"},
    "allow_separable=1 is not allowed": {"allow_separable": 1},
    "weight has an entry of magnitude nan": {"weight": WEIGHT * np.float32("nan"), "allow_separable": 0.1},
    "candidate is given with allow_separable": {"candidate": Candidate("fallback", {}), "allow_separable": 0.1},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_constants_are_one_line_before_anything_is_built(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Compiler, "package", lambda *_: pytest.fail("nothing may be built"))
    given = {"weight": WEIGHT, "bias": BIAS, **BAD[message]}
    with pytest.raises(ConvtuneError) as raised:
        convtune.compile(SPEC, **given)
    assert str(raised.value).startswith(message) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "weight", "bias", "message"),
    [
        (SPEC.replace(bias=False), WEIGHT, BIAS, "bias is given; the spec has bias=False"),
        (COMPOSITE, WEIGHT, BIAS, "weight is a ndarray; the spec takes a tuple of 2"),
        (COMPOSITE, (WEIGHT,), BIAS, "weight is 1 arrays; the spec takes a tuple of 2"),
        (COMPOSITE, (WEIGHT, WEIGHT), BIAS, r"weight\[0\] has shape"),
        (COMPOSITE, random_operands(COMPOSITE, 1).weights, BIAS, "bias is a ndarray; the spec takes a tuple of 2"),
    ],
)
def test_constants_are_as_many_as_the_spec_has(spec: ConvSpec, weight: Any, bias: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        convtune.compile(spec, weight=weight, bias=bias)


def test_the_page_about_separable_kernels_says_what_happens() -> None:
    failed, attempted = doctest.testfile(
        str(Path(__file__).parents[1] / "docs" / "separable.md"), module_relative=False
    )
    assert failed == 0 and attempted > 20


def test_the_page_about_compiling_says_what_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[1] / "docs" / "compiling.md"
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
        exec(block, names)
    expected = convtune.reference(names["spec"], names["x"], names["weight"], names["bias"])
    for y in (names["y"], convtune.load("kernels/first")(names["x"])):
        np.testing.assert_allclose(y, expected, atol=2e-5 * np.abs(expected).max())


def test_what_a_call_brings_is_unchanged_without_constants() -> None:
    operands = random_operands(SPEC, 3)
    conv = convtune.compile(SPEC)
    assert isinstance(conv, CompiledConv) and conv.weight_error is None
    y = conv(operands.x, operands.weights[0], operands.bias, residual=operands.residual)
    np.testing.assert_allclose(y, operands.reference(SPEC), atol=1e-4)
