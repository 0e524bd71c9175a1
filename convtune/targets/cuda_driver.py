"""What the CUDA driver says of this machine's GPU, without TVM and without NVIDIA's toolkit."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Mapping
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
_NO_DEVICE = 100
# of CUdevice_attribute in cuda.h
_ATTRIBUTES = {
    "major": 75,
    "minor": 76,
    "sms": 16,
    "clock_khz": 13,
    "memory_clock_khz": 36,
    "memory_bus_bits": 37,
    "l2_bytes": 38,
    "shared_per_sm": 81,
    "shared_per_block": 97,
    "shared_reserved": 111,
    "registers_per_sm": 82,
    "threads_per_sm": 39,
    "blocks_per_sm": 106,
}


@dataclass(frozen=True)
class Device:
    """A GPU. name: as the driver prints it. driver: the CUDA version that it knows, such as 13000.

    attributes: by the names of _ATTRIBUTES.
    """

    name: str
    driver: int
    attributes: Mapping[str, int]


@dataclass(frozen=True)
class Found:
    """The first GPU, of those that CUDA_VISIBLE_DEVICES leaves; or why there is none."""

    device: Device | None
    why_none: str = ""


@functools.cache
def first_gpu(library: str = LIBRARY) -> Found:
    """The machine's first GPU, asked for once: starting the driver may take a second."""
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return Found(None, f"no NVIDIA driver is here ({LIBRARY} does not load)")
    try:
        return _ask(driver)
    except _CallError as error:
        return Found(None, str(error))


class _CallError(Exception):
    pass


def _ask(driver: ctypes.CDLL) -> Found:
    error = driver.cuInit(0)
    if error == _NO_DEVICE:
        return Found(None, "the NVIDIA driver sees no GPU")
    _check("cuInit", error)
    device, version, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(256)
    _check("cuDeviceGet", driver.cuDeviceGet(ctypes.byref(device), 0))
    _check("cuDeviceGetName", driver.cuDeviceGetName(name, len(name), device))
    _check("cuDriverGetVersion", driver.cuDriverGetVersion(ctypes.byref(version)))
    attributes = {}
    for attribute, number in _ATTRIBUTES.items():
        value = ctypes.c_int()
        _check(f"cuDeviceGetAttribute({attribute})", driver.cuDeviceGetAttribute(ctypes.byref(value), number, device))
        attributes[attribute] = value.value
    return Found(Device(name.value.decode(errors="replace"), version.value, attributes))


def _check(call: str, error: int) -> None:
    if error:
        raise _CallError(f"the NVIDIA driver fails: {call} gives error {error}")
