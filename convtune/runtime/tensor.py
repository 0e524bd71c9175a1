"""The C structures through which kernels get their arguments."""

from __future__ import annotations

import ctypes

DLPACK_CODES = {"i": 0, "u": 1, "f": 2}
"""DLDataTypeCode, by NumPy's dtype.kind."""
CPU, GPU = 1, 2
"""DLDeviceType: kDLCPU, kDLCUDA."""
TENSOR = 7
"""TVMFFIAny.type_index: kTVMFFIDLTensorPtr."""


class Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.c_void_p),  # null: C-contiguous
        ("byte_offset", ctypes.c_uint64),
    ]


class Any(ctypes.Structure):
    """TVMFFIAny of tvm/ffi/c_api.h."""

    _fields_ = [("type_index", ctypes.c_int32), ("zero", ctypes.c_int32), ("pointer", ctypes.c_void_p)]
