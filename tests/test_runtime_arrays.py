"""Aligned memory, and other libraries' arrays in and out without a copy."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from convtune.runtime.arrays import aligned_copy, converter_to, empty_aligned, ready, to_numpy
from convtune.runtime.errors import KernelError


class Foreign:
    """Another library's array: only what DLPack asks for."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device


class Refusing(Foreign):
    def __dlpack__(self, **options: Any) -> Any:
        raise BufferError("cannot export\nan array that requires gradients")


class Namespaced(Foreign):
    def __array_namespace__(self) -> Any:
        return types.SimpleNamespace(from_dlpack=lambda array: Namespaced(np.from_dlpack(array)))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> type[Foreign]:
    """A library `foreign` whose arrays come from `foreign.nested`."""
    module = types.ModuleType("foreign")
    module.from_dlpack = lambda array: Foreign(np.from_dlpack(array))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "foreign", module)
    monkeypatch.setattr(Foreign, "__module__", "foreign.nested")
    return Foreign


@pytest.mark.parametrize("shape", [(), (1,), (3, 5, 7), (1000, 1000)])
@pytest.mark.parametrize("dtype", ["float32", "int8", "float64"])
def test_empty_aligned(shape: tuple[int, ...], dtype: str) -> None:
    array = empty_aligned(shape, dtype)
    assert array.shape == shape and array.dtype == dtype
    assert array.ctypes.data % 64 == 0 and array.flags.c_contiguous and array.flags.writeable
    array[...] = 1


def test_aligned_copy() -> None:
    array = np.arange(64, dtype="f").reshape(4, 16)
    for source in (array, array[:, ::2], array.T):
        copy = aligned_copy(source)
        assert copy.ctypes.data % 64 == 0 and copy.flags.c_contiguous and not np.may_share_memory(copy, array)
        np.testing.assert_array_equal(copy, source)


def test_ready_copies_only_what_a_kernel_cannot_use() -> None:
    good = empty_aligned((4, 16), "f")
    assert ready(good) is good
    shifted = empty_aligned((65,), "f")[1:].reshape(4, 16)
    shifted[...] = 3
    assert ready(shifted, 4) is shifted
    copy = ready(shifted)
    assert copy.ctypes.data % 64 == 0 and (copy == 3).all()
    assert ready(good.T) is not good.T


def test_foreign_arrays_go_in_and_out_without_a_copy(library: type[Foreign]) -> None:
    x = library(np.arange(6, dtype="f"))
    seen = to_numpy("x", x)
    assert seen.ctypes.data == x.array.ctypes.data
    y = empty_aligned((3,), "f")
    result = converter_to(x)(y)
    assert isinstance(result, library) and result.array.ctypes.data == y.ctypes.data


def test_the_array_api_namespace_comes_first(library: type[Foreign]) -> None:
    x = Namespaced(np.zeros(3, "f"))
    assert isinstance(converter_to(x)(empty_aligned((3,), "f")), Namespaced)


def test_numpy_goes_through_untouched() -> None:
    x = np.zeros(3)
    assert to_numpy("x", x) is x
    assert converter_to(x)(x) is x


def test_a_library_that_makes_no_arrays_from_dlpack() -> None:
    with pytest.raises(KernelError, match=r"no from_dlpack for results like Foreign: pass numpy.from_dlpack\(x\)"):
        converter_to(Foreign(np.zeros(3)))


def test_arrays_that_cannot_be_read() -> None:
    with pytest.raises(KernelError, match="x is a str; it must be a NumPy array or have __dlpack__"):
        to_numpy("x", "abc")
    with pytest.raises(KernelError, match=r"x is on DLPack device \(2, 1\); it must be in the CPU's memory"):
        to_numpy("x", Foreign(np.zeros(3), (2, 1)))
    with pytest.raises(KernelError, match="x cannot be read through DLPack: cannot export an array that requires"):
        to_numpy("x", Refusing(np.zeros(3)))


def test_torch_tensors() -> None:
    torch = pytest.importorskip("torch")
    x = torch.arange(6, dtype=torch.float32)
    seen = to_numpy("x", x)
    seen[0] = 7
    assert x[0] == 7
    result = converter_to(x)(seen)
    assert isinstance(result, torch.Tensor) and result.data_ptr() == x.data_ptr()
    with pytest.raises(KernelError, match="weight cannot be read through DLPack"):
        to_numpy("weight", torch.zeros(3, requires_grad=True))
