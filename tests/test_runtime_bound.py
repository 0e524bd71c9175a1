"""CompiledConv.bind: a call whose arrays are checked once."""

from __future__ import annotations

import numpy as np
import pytest
from runtime_kernels import IN, OUT, PIXELS, pointwise_library, pointwise_manifest

from convtune.runtime import CompiledConv, load
from convtune.runtime.arrays import empty_aligned
from convtune.runtime.errors import KernelError
from convtune.runtime.names import RUNTIME_NAME
from convtune.runtime.package import write_package


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> CompiledConv:
    home = tmp_path_factory.mktemp("bound")
    library = pointwise_library(home)
    return load(write_package(home / "pw", pointwise_manifest(library), library, library.with_name(RUNTIME_NAME)))


@pytest.fixture
def operands() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {"x": (PIXELS, IN), "weight": (OUT, IN), "bias": (OUT,), "residual": (PIXELS, OUT)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def expected(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, residual: np.ndarray) -> np.ndarray:
    return x.astype("float64") @ weight.T.astype("float64") + bias + residual


def test_a_bound_call_reads_what_its_arrays_hold_then(conv: CompiledConv, operands: dict[str, np.ndarray]) -> None:
    x, residual = operands["x"].copy(), operands["residual"].copy()
    out, x0 = empty_aligned((PIXELS, OUT), "float32"), empty_aligned((PIXELS, IN), "float32")
    residual0 = empty_aligned(residual.shape, "float32")
    x0[...], residual0[...] = x, residual
    call = conv.bind(x0, conv.pack(operands["weight"], operands["bias"]), residual=residual0, out=out)
    call()
    np.testing.assert_allclose(out, expected(**operands), rtol=1e-5, atol=1e-5)
    x0 *= -2
    call()
    np.testing.assert_allclose(out, expected(**{**operands, "x": x * np.float32(-2)}), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_bound(conv: CompiledConv, operands: dict[str, np.ndarray]) -> None:
    packed, x = conv.pack(operands["weight"], operands["bias"]), empty_aligned((PIXELS, IN), "float32")
    out, residual = empty_aligned((PIXELS, OUT), "float32"), empty_aligned((PIXELS, OUT), "float32")
    with pytest.raises(KernelError, match="x does not lie as the kernel needs it"):
        conv.bind(np.asfortranarray(x), packed, residual=residual, out=out)
    with pytest.raises(KernelError, match="out overlaps residual"):
        conv.bind(x, packed, residual=out, out=out)
    with pytest.raises(KernelError, match="residual is missing"):
        conv.bind(x, packed, out=out)
    with pytest.raises(KernelError, match="out has shape"):
        conv.bind(x, packed, residual=residual, out=x)
