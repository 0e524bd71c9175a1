"""Decides whether a kernel computes the right thing and nothing else, before anything is timed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convtune.measure.guards import OUTSIDE, Guarded

Array = NDArray[np.float32]

_NAN_BYTE, _SCRATCH = 0xFF, 0xFFFFFFFF  # a quiet NaN, as OUTSIDE is
_HUGE_BYTE = 0x7F  # 3.4e38 as float32: a maximum, which ReLU is, may swallow a NaN but not this


class Runnable(Protocol):
    """What is verified, such as `runtime.kernel.Kernel`."""

    def __call__(self, arrays: Sequence[NDArray[Any]], /) -> None:
        """Runs it on its arrays in order, y last."""

    def fill_scratch(self, byte: int | None, /) -> None:
        """Makes it get scratch memory full of that byte; None: as it was left."""


@dataclass(frozen=True)
class Verdict:
    """The result of verifying. `problem` is "" where the kernel is right; error is None where there is no result.

    y: what it computed, where it is right. overran: it wrote where it must not, so that its process is suspect.
    """

    problem: str
    error: float | None = None
    y: Array | None = None
    overran: bool = False


def verify(kernel: Runnable, inputs: Mapping[str, Array], reference: NDArray[np.float64], limit: float) -> Verdict:
    """Runs the kernel twice on guarded copies of its inputs, with scratch memory full of NaNs, then of 3.4e38.

    It must write all of y and nothing else, come within `limit` of the reference (max |y - reference| /
    max |reference|), and give the same bits again, as a kernel whose threads race might not.
    """
    try:
        return _verify(kernel, inputs, reference, limit)
    finally:
        kernel.fill_scratch(None)


def _verify(kernel: Runnable, inputs: Mapping[str, Array], reference: NDArray[np.float64], limit: float) -> Verdict:
    arrays = {name: Guarded.copy_of(array) for name, array in inputs.items()}
    arrays["y"] = y = Guarded(reference.shape)
    kernel.fill_scratch(_NAN_BYTE)
    first = _run(kernel, arrays, inputs)
    if first is not None:
        return first
    error = largest_error(y.array, reference)
    if not error <= limit:
        return Verdict(_difference(y.array, reference, error, limit), error if math.isfinite(error) else None)
    result = y.array.copy()
    y.poison()
    kernel.fill_scratch(_HUGE_BYTE)
    again = _run(kernel, arrays, inputs)
    if again is not None:
        return again
    if change := difference_in_bits("y", result, y.array):
        return Verdict(f"gives another result when run again: {change}", error)
    return Verdict("", error, result)


def largest_error(y: Array, reference: NDArray[np.float64]) -> float:
    """max |y - reference| / max |reference|, absolute where the reference is all zero; NaN if y has one."""
    scale = float(np.abs(reference).max())
    return float(np.abs(y - reference).max()) / (scale or 1.0)


def difference_in_bits(name: str, expected: Array, array: Array) -> str:
    """The first element whose bits differ, in words; "" where none does."""
    different = np.flatnonzero(expected.view(np.uint32) != array.view(np.uint32))
    if not different.size:
        return ""
    where = int(different[0])
    return (
        f"{different.size} of {array.size} elements, first {_element(name, array, where)} = {array.flat[where]:g} "
        f"instead of {expected.flat[where]:g}"
    )


def _run(kernel: Runnable, arrays: Mapping[str, Guarded], inputs: Mapping[str, Array]) -> Verdict | None:
    """One run; a verdict if it did to memory what it must not."""
    kernel([guarded.array for guarded in arrays.values()])
    for name, guarded in arrays.items():
        if where := guarded.overrun():
            return Verdict(f"wrote outside {name}: {where}", overran=True)
    for name, array in inputs.items():
        if change := difference_in_bits(name, array, arrays[name].array):
            return Verdict(f"changed its input {name}: {change}", overran=True)
    y, unwritten = arrays["y"].array, arrays["y"].unwritten()
    if unwritten.size:
        first = _element("y", y, int(unwritten[0]))
        return Verdict(f"left output unwritten, or read it first: {unwritten.size} of {y.size} elements, first {first}")
    return None


def _difference(y: Array, reference: NDArray[np.float64], error: float, limit: float) -> str:
    difference = np.abs(y - reference)
    bad = np.flatnonzero(~(difference <= limit * (float(np.abs(reference).max()) or 1.0)))
    where = int(bad[0])
    return (
        f"{_cause(y)}: error {error:.3g}, allowed {limit:.3g}; {bad.size} of {y.size} elements, "
        f"first {_element('y', y, where)} = {y.flat[where]:g} instead of {reference.flat[where]:g}"
    )


def _cause(y: Array) -> str:
    words = y.view(np.uint32)
    if np.any(words == OUTSIDE):
        return "read outside an array"
    return "read scratch memory that it had not written" if np.any(words == _SCRATCH) else "wrong result"


def _element(name: str, array: Array, flat_index: int) -> str:
    return f"{name}[{', '.join(map(str, np.unravel_index(flat_index, array.shape)))}]"
