"""Arrays in a GPU's memory: other libraries' through DLPack, without a copy, and our own."""

from __future__ import annotations

import ctypes
import sys
from math import prod
from typing import Any

import numpy as np

from .errors import KernelError
from .tensor import DLPACK_CODES, Tensor

DEVICES = {2, 13}  # kDLCUDA, kDLCUDAManaged
_LEGACY_DEFAULT_STREAM = 1  # as `__dlpack__` counts them; where kernels are launched

_capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_capsule_pointer.restype, _capsule_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


class GpuArray:
    """A C-contiguous array in the memory of a GPU. owner: what keeps the memory."""

    def __init__(self, address: int, device: int, shape: tuple[int, ...], dtype: np.dtype[Any], owner: object) -> None:
        self.address, self.device, self.shape, self.dtype, self.owner = address, device, shape, dtype, owner

    @property
    def nbytes(self) -> int:
        """Its size."""
        return prod(self.shape) * self.dtype.itemsize


def is_on_gpu(array: Any) -> bool:
    """Whether it says that it is in a GPU's memory."""
    return hasattr(array, "__dlpack_device__") and int(array.__dlpack_device__()[0]) in DEVICES


def from_dlpack(name: str, array: Any) -> GpuArray:
    """A view of an array that is on a GPU.

    What its library launched before is done before what a kernel reads of it, by the protocol of DLPack.

    Raises KernelError where its library refuses, and where it is not C-contiguous or has no dtype of NumPy's.
    """
    try:
        capsule = array.__dlpack__(stream=_LEGACY_DEFAULT_STREAM)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:  # each library has its own
        raise KernelError(f"{name} cannot be read through DLPack: {' '.join(str(error).split())}") from error
    # the capsule is not renamed, so it stays the owner and gives the array back when it goes
    tensor = Tensor.from_address(_capsule_pointer(capsule, b"dltensor"))
    shape = tuple(tensor.shape[axis] for axis in range(tensor.ndim))
    kinds = {code: kind for kind, code in DLPACK_CODES.items()}
    if tensor.code not in kinds or tensor.lanes != 1 or tensor.bits not in (8, 16, 32, 64):
        found = f"DLPack dtype ({tensor.code}, {tensor.bits}, {tensor.lanes})"
        raise KernelError(f"{name} has {found}; kernels take NumPy's numbers")
    if not _is_contiguous(tensor, shape):
        raise KernelError(f"{name} is on a GPU and not C-contiguous; make a contiguous copy of it first")
    dtype = np.dtype(f"{kinds[tensor.code]}{tensor.bits // 8}")
    return GpuArray((tensor.data or 0) + tensor.byte_offset, tensor.device_id, shape, dtype, capsule)


def empty_like(array: Any, shape: tuple[int, ...]) -> Any:
    """An uninitialised array of another shape, of the same library and dtype, on the same GPU.

    Raises KernelError where the library has neither `new_empty` (PyTorch) nor `empty_like` with a shape (CuPy).
    """
    if hasattr(array, "new_empty"):
        return array.new_empty(shape)
    make = getattr(namespace(array), "empty_like", None)
    kind = type(array).__name__
    if make is None:
        raise KernelError(f"there is no empty_like for results like {kind}: pass out=")
    try:
        made = make(array, shape=shape)
    except TypeError as error:
        raise KernelError(f"cannot make a result like {kind}: {' '.join(str(error).split())}; pass out=") from error
    places = [tuple(map(int, each.__dlpack_device__())) for each in (array, made)]
    if places[0] != places[1]:
        raise KernelError(f"x is on DLPack device {places[0]}, its library makes arrays on {places[1]}; pass out=")
    return made


def namespace(array: Any) -> Any:
    """The array-API namespace of an array, or else the package that its class comes from; None where it has neither."""
    if hasattr(array, "__array_namespace__"):
        return array.__array_namespace__()
    return sys.modules.get(type(array).__module__.partition(".")[0])


def _is_contiguous(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    if not tensor.strides:
        return True
    strides = ctypes.cast(tensor.strides, ctypes.POINTER(ctypes.c_int64))
    expected = 1
    for axis in reversed(range(len(shape))):
        if shape[axis] != 1 and strides[axis] != expected:
            return False
        expected *= shape[axis]
    return True
