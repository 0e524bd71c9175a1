"""Arrays between red zones, so that a kernel which reads or writes beside them is found out."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from convtune.measure.pieces import Found, find

ZONE_BYTES = mmap.PAGESIZE  # of the zone on the side away from the fence, at least
FENCE_BYTES = 1 << 20  # without access: address space only, so wide enough to catch a jump of several rows

UNWRITTEN: Mapping[int, int] = {4: 0x7FDA5A5A, 2: 0x7E5A}
OUTSIDE: Mapping[int, int] = {4: 0x7FE5A5A5, 2: 0x7EA5}
"""What arrays and zones hold first, by the bytes of an element: quiet NaNs of float32 and float16, which processors
pass on as they are, and never make."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_PROT_NONE = 0


class Guarded:
    """An array of float32 or float16 in memory of its own:

        fence | zone | array | zone | fence

    At the end, it ends as close to the fence behind it as its alignment allows: for an element's own bytes, exactly
    there. Else it starts `alignment` bytes after the fence in front, so at a multiple of that and of no more. The
    array is full of UNWRITTEN at first, the zones of OUTSIDE: what a kernel reads there shows in its result. Touching
    a fence is a segmentation fault.
    """

    def __init__(self, shape: tuple[int, ...], alignment: int, at_end: bool, dtype: DTypeLike = np.float32) -> None:
        count, element = prod(shape), np.dtype(dtype).itemsize
        self._unwritten, self._outside = UNWRITTEN[element], OUTSIDE[element]
        body = -(-(count * element + ZONE_BYTES + alignment) // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, body + 2 * FENCE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        words = np.frombuffer(memory, f"u{element}", body // element, FENCE_BYTES)
        for fence in (words.ctypes.data - FENCE_BYTES, words.ctypes.data + body):
            if _libc.mprotect(fence, FENCE_BYTES, _PROT_NONE) != 0:
                raise OSError(ctypes.get_errno(), f"mprotect: {os.strerror(ctypes.get_errno())}")
        start = ((body - count * element) // alignment * alignment if at_end else alignment) // element
        self._before, self._words, self._after = np.split(words, [start, start + count])
        self.array: NDArray[Any] = self._words.view(dtype).reshape(shape)
        self._before.fill(self._outside)
        self._words.fill(self._unwritten)
        self._after.fill(self._outside)

    @classmethod
    def copy_of(cls, array: NDArray[Any], alignment: int, at_end: bool) -> Guarded:
        """A guarded array of the same contents."""
        guarded = cls(array.shape, alignment, at_end, array.dtype)
        guarded.array[...] = array
        return guarded

    def unwritten(self) -> Found:
        """The elements that are still UNWRITTEN, or were computed from it."""
        return find(lambda words: words == self._unwritten, self._words)

    def overrun(self) -> str:
        """Where a zone was written, such as "1 element after its end"; "" where neither was."""
        before, after = (np.flatnonzero(zone != self._outside) for zone in (self._before, self._after))
        found = []
        if before.size:
            found.append(f"{_elements(self._before.size - int(before[0]))} before its start")
        if after.size:
            found.append(f"{_elements(int(after[-1]) + 1)} after its end")
        return " and ".join(found)


def _elements(count: int) -> str:
    return f"{count} element{'s' if count > 1 else ''}"
