"""Arrays in and out of kernels: aligned memory, and any library's arrays through DLPack without a copy."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import KernelError
from .gpu_arrays import namespace
from .kernel import ALIGNMENT

_HOST_DEVICES = {1, 3, 11}  # kDLCPU, kDLCUDAHost, kDLROCMHost: all readable by the CPU


def empty_aligned(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """An uninitialised C-contiguous array that starts at a multiple of 64 bytes."""
    dtype = np.dtype(dtype)
    bytes_needed = prod(shape) * dtype.itemsize
    memory = np.empty(bytes_needed + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + bytes_needed].view(dtype).reshape(shape)


def aligned_copy(array: NDArray[Any]) -> NDArray[Any]:
    """A C-contiguous copy that starts at a multiple of 64 bytes."""
    copy = empty_aligned(array.shape, array.dtype)
    copy[...] = array
    return copy


def ready(array: NDArray[Any], alignment: int = ALIGNMENT) -> NDArray[Any]:
    """The array itself when a kernel that assumes `alignment` bytes can use it where it lies, else a copy."""
    usable = array.flags.c_contiguous and array.ctypes.data % alignment == 0
    return array if usable else aligned_copy(array)


def to_numpy(name: str, array: Any) -> NDArray[Any]:
    """A view of `array` as NumPy. Raises KernelError when it is not an array, or not in the CPU's memory."""
    if isinstance(array, np.ndarray):
        return array
    if not hasattr(array, "__dlpack__") or not hasattr(array, "__dlpack_device__"):
        raise KernelError(f"{name} is a {type(array).__name__}; it must be a NumPy array or have __dlpack__")
    device = array.__dlpack_device__()
    if int(device[0]) not in _HOST_DEVICES:
        raise KernelError(f"{name} is on DLPack device {tuple(map(int, device))}; it must be in the CPU's memory")
    try:
        return np.from_dlpack(array)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:  # each library has its own
        raise KernelError(f"{name} cannot be read through DLPack: {' '.join(str(error).split())}") from error


def converter_to(array: Any) -> Callable[[NDArray[Any]], Any]:
    """The function that makes a NumPy array one of `array`'s kind, without a copy.

    That is `from_dlpack` of the array-API namespace of `array`, or else of the package its class comes from.
    Raises KernelError where there is none.
    """
    if isinstance(array, np.ndarray):
        return _unchanged
    convert = getattr(namespace(array), "from_dlpack", None)
    if convert is None:
        raise KernelError(f"no from_dlpack for results like {type(array).__name__}: pass numpy.from_dlpack(x) instead")
    return convert  # type: ignore[no-any-return]


def _unchanged(array: NDArray[Any]) -> NDArray[Any]:
    return array
