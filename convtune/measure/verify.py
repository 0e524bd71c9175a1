"""Decides whether a kernel computes the right thing and nothing else, before anything is timed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from convtune import codegen
from convtune.measure.guards import OUTSIDE, UNWRITTEN, Guarded
from convtune.measure.pieces import Found, find, largest
from convtune.runtime.kernel import ALIGNMENT

Array = NDArray[Any]  # of float32 or float16

_NAN_BYTE = 0xFF
_SCRATCH: Mapping[int, int] = {4: 0xFFFFFFFF, 2: 0xFFFF}  # a quiet NaN, as OUTSIDE is, by the bytes of an element
# 3.4e38 as float32, 6.1e4 as float16 (1.3e36 as float32): a maximum, which ReLU is, may swallow a NaN but not this
_HUGE_BYTE: Mapping[int, int] = {4: 0x7F, 2: 0x7B}


class Runnable(Protocol):
    """What is verified, such as `runtime.kernel.Kernel`."""

    def __call__(self, arrays: Sequence[NDArray[Any]], alignments: Sequence[int], /) -> None:
        """Runs it on its arrays in order, y last, each at a multiple of its alignment in bytes."""

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


def verify(
    kernel: Runnable,
    inputs: Mapping[str, Array],
    reference: NDArray[np.float64],
    limit: float,
    alignment: int = codegen.ALIGNMENT,
) -> Verdict:
    """Runs the kernel twice on guarded copies of its inputs.

    At first the arrays start behind a fence, aligned no more than they must be, and scratch memory is full of NaNs;
    then they end at a fence, and it is full of huge numbers. y has the dtype of the inputs. The kernel must write all
    of y and nothing else, come within `limit` of the reference (max |y - reference| / max |reference|), and give the
    same bits again, as one whose threads race might not.

    alignment: bytes at which arrays may start, besides weights and biases, which packing aligns.
    """

    try:
        return judge(_runs(kernel, inputs, reference.shape, alignment), reference, limit)
    finally:
        kernel.fill_scratch(None)


def verify_once(
    kernel: Runnable,
    inputs: Mapping[str, Array],
    reference: NDArray[np.float64],
    limit: float,
    alignment: int = codegen.ALIGNMENT,
) -> Verdict:
    """The first of the two runs of `verify`."""
    try:
        return _first(_runs(kernel, inputs, reference.shape, alignment), reference, limit)
    finally:
        kernel.fill_scratch(None)


def verify_part(
    kernel: Runnable, inputs: Mapping[str, Array], reference: NDArray[np.float64], limit: float, alignment: int
) -> Verdict:
    """As `verify`, in one run, of a kernel that computes some of y: what it leaves unwritten is not compared."""
    try:
        run = _run(kernel, inputs, reference.shape, _NAN_BYTE, False, alignment)
    finally:
        kernel.fill_scratch(None)
    if isinstance(run, Verdict):
        return run
    y = run
    if _unwritten(y).count == y.size:
        return Verdict("wrote nothing of its output")
    # as if it were right where it did not write; the rounded reference is within any limit of the reference
    y[...] = np.where(_words(y) == UNWRITTEN[y.itemsize], reference, y)
    error = largest_error(y, reference)
    if not error <= limit:
        return Verdict(_difference(y, reference, error, limit), error if math.isfinite(error) else None)
    return Verdict("", error, y)


def judge(run: Callable[[int, bool], Verdict | Array], reference: NDArray[np.float64], limit: float) -> Verdict:
    """What `verify` finds, wherever the kernel runs.

    run: of a byte and a flag, runs it once with scratch memory full of that byte, its arrays ending at a fence where
    the flag says so, else starting there; y, which it found full of UNWRITTEN, or what it did to other memory.
    """
    first = _first(run, reference, limit)  # as a wide zone behind names more faults
    if first.y is None:
        return first
    again = _whole(run(_HUGE_BYTE[first.y.itemsize], True))
    if isinstance(again, Verdict):
        return again
    if change := difference_in_bits("y", first.y, again):
        return Verdict(f"gives another result when run again: {change}", first.error)
    return first


def _first(run: Callable[[int, bool], Verdict | Array], reference: NDArray[np.float64], limit: float) -> Verdict:
    y = _whole(run(_NAN_BYTE, False))
    if isinstance(y, Verdict):
        return y
    error = largest_error(y, reference)
    if not error <= limit:
        return Verdict(_difference(y, reference, error, limit), error if math.isfinite(error) else None)
    return Verdict("", error, y)


def largest_error(y: Array, reference: NDArray[np.float64]) -> float:
    """max |y - reference| / max |reference|, absolute where the reference is all zero; NaN if y has one."""
    return largest(lambda y, reference: np.abs(y - reference), y, reference) / _scale(reference)


def difference_in_bits(name: str, expected: Array, array: Array) -> str:
    """The first element whose bits differ, in words; "" where none does."""
    found = find(np.not_equal, _words(expected), _words(array))
    return f"{_elements(name, array, found)} {_instead(array, expected, found)}" if found.count else ""


def _runs(
    kernel: Runnable, inputs: Mapping[str, Array], shape: tuple[int, ...], alignment: int
) -> Callable[[int, bool], Verdict | Array]:
    """What `judge` runs."""

    def run(scratch_byte: int, at_end: bool) -> Verdict | Array:
        return _run(kernel, inputs, shape, scratch_byte, at_end, alignment)

    return run


def _run(
    kernel: Runnable,
    inputs: Mapping[str, Array],
    shape: tuple[int, ...],
    scratch_byte: int,
    at_end: bool,
    alignment: int,
) -> Verdict | Array:
    """One run; y, or a verdict if it did to memory what it must not."""
    alignments = alignments_of(inputs, alignment)
    arrays = {name: Guarded.copy_of(array, alignments[name], at_end) for name, array in inputs.items()}
    arrays["y"] = Guarded(shape, alignments["y"], at_end, _dtype(inputs))
    kernel.fill_scratch(scratch_byte)
    kernel([guarded.array for guarded in arrays.values()], list(alignments.values()))
    for name, guarded in arrays.items():
        if where := guarded.overrun():
            return Verdict(f"wrote outside {name}: {where}", overran=True)
    for name, array in inputs.items():
        if change := difference_in_bits(name, array, arrays[name].array):
            return Verdict(f"changed its input {name}: {change}", overran=True)
    return arrays["y"].array


def alignments_of(inputs: Iterable[str], alignment: int = codegen.ALIGNMENT) -> dict[str, int]:
    """Bytes at which each of a kernel's arrays, y last, may start: packing aligns weights and biases."""
    return {name: ALIGNMENT if _is_packed(name) else alignment for name in (*inputs, "y")}


def _whole(run: Verdict | Array) -> Verdict | Array:
    """All of y that a run computed, or why it is not right."""
    if isinstance(run, Verdict):
        return run
    if (unwritten := _unwritten(run)).count:
        return Verdict(f"left output unwritten, or read it first: {_elements('y', run, unwritten)}")
    return run


def _unwritten(y: Array) -> Found:
    return find(lambda words: words == UNWRITTEN[y.itemsize], _words(y))


def _is_packed(name: str) -> bool:
    return name.partition("[")[0] in ("weight", "bias")


def _difference(y: Array, reference: NDArray[np.float64], error: float, limit: float) -> str:
    scale = _scale(reference)
    bad = find(lambda y, reference: ~(np.abs(y - reference) / scale <= limit), y, reference)
    where = f"{_elements('y', y, bad)} {_instead(y, reference, bad)}"
    return f"{_cause(y)}: error {error:.3g}, allowed {limit:.3g}; {where}"


def _scale(reference: NDArray[np.float64]) -> float:
    return largest(np.abs, reference) or 1.0


def _cause(y: Array) -> str:
    words, element = _words(y), y.itemsize
    if find(lambda words: words == OUTSIDE[element], words).count:
        return "read outside an array"
    if find(lambda words: words == _SCRATCH[element], words).count:
        return "read scratch memory that it had not written"
    return "wrong result"


def _words(array: Array) -> NDArray[Any]:
    """The bits of its elements, as unsigned integers."""
    return array.view(f"u{array.itemsize}")


def _dtype(inputs: Mapping[str, Array]) -> np.dtype[Any]:
    return next(iter(inputs.values())).dtype


def _elements(name: str, array: Array, found: Found) -> str:
    first = ", ".join(map(str, np.unravel_index(found.first, array.shape)))
    return f"{found.count} of {array.size} elements, first {name}[{first}]"


def _instead(array: Array, expected: NDArray[Any], found: Found) -> str:
    return f"= {array.flat[found.first]:g} instead of {expected.flat[found.first]:g}"
