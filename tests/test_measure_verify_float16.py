"""What verifying finds in kernels of float16, with Python functions as kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from convtune.measure.guards import OUTSIDE, UNWRITTEN, Guarded
from convtune.measure.verify import Verdict, verify, verify_part

X = np.random.default_rng(0).standard_normal((3, 7)).astype(np.float16)
RIGHT = 2.0 * X.astype(np.float64)


class Doubling:
    """Doubles x, and then does as it likes."""

    def __init__(self, after: Callable[[np.ndarray, np.ndarray], Any]) -> None:
        self._after = after
        self.fillings: list[int | None] = []

    def __call__(self, arrays: Sequence[np.ndarray], alignments: Sequence[int]) -> None:
        x, y = arrays
        np.multiply(x, 2, out=y)
        self._after(x, y)

    def fill_scratch(self, byte: int | None) -> None:
        self.fillings.append(byte)


def poke(array: np.ndarray, index: int, word: int) -> None:
    """Writes 2 bytes at an index that may lie outside."""
    ctypes.c_uint16.from_address(array.ctypes.data + 2 * index).value = word


def verdict(after: Callable[[np.ndarray, np.ndarray], Any] = lambda x, y: None) -> Verdict:
    return verify(Doubling(after), {"x": X}, RIGHT, 1e-6)


@pytest.mark.parametrize("at_end", [False, True])
def test_a_guarded_array_of_an_odd_number_of_elements(at_end: bool) -> None:
    guarded = Guarded((3, 7), 2, at_end, np.float16)
    assert guarded.array.dtype == np.float16
    assert np.isnan(guarded.array).all()
    assert guarded.unwritten().count == 21
    if at_end:
        assert (guarded.array.ctypes.data + guarded.array.nbytes) % 4096 == 0
        return
    poke(guarded.array, 21, 0)
    assert guarded.overrun() == "1 element after its end"


def test_words_are_quiet_nans_that_float32_passes_on() -> None:
    for word in (UNWRITTEN[2], OUTSIDE[2]):
        value = np.array([word], np.uint16).view(np.float16)
        assert np.isnan(value).all() and word & 0x200
        assert value.astype(np.float32).astype(np.float16).view(np.uint16) == word


def test_scratch_memory_is_full_of_nans_then_of_a_huge_number() -> None:
    kernel = Doubling(lambda x, y: None)
    found = verify(kernel, {"x": X}, RIGHT, 1e-6)
    assert (found.problem, found.error) == ("", 0.0)
    first, second, last = kernel.fillings
    assert last is None
    as_float16 = [np.frombuffer(bytes([byte] * 2), np.float16)[0] for byte in (first, second) if byte is not None]
    assert np.isnan(as_float16[0]) and as_float16[1] > 6e4


@pytest.mark.parametrize(
    ("after", "problem"),
    [
        (lambda x, y: y.__setitem__((2, 6), 9), "wrong result: error"),
        (
            lambda x, y: poke(y, 8, UNWRITTEN[2]),
            "left output unwritten, or read it first: 1 of 21 elements, first y[1, 1]",
        ),
        (lambda x, y: poke(y, 8, OUTSIDE[2]), "read outside an array"),
        (lambda x, y: poke(y, 8, 0xFFFF), "read scratch memory that it had not written"),
        (lambda x, y: poke(y, 21, 0), "wrote outside y: 1 element after its end"),
        (lambda x, y: poke(x, -1, 0), "wrote outside x: 1 element before its start"),
        (lambda x, y: x.__setitem__((1, 0), 3), "changed its input x: 1 of 21 elements"),
    ],
)
def test_a_wrong_kernel_is_told_what_is_wrong(after: Callable[..., Any], problem: str) -> None:
    assert verdict().problem == ""
    assert problem in verdict(after).problem


def test_a_part_of_the_output() -> None:
    rounded = np.linspace(-1, 1, 21).reshape(3, 7)

    def first_row(x: np.ndarray, y: np.ndarray) -> None:
        y[0] = rounded[0]
        y.view(np.uint16)[1:] = UNWRITTEN[2]

    found = verify_part(Doubling(first_row), {"x": X}, rounded, 2**-11, 64)
    assert found.problem == ""
    assert found.error is not None and 0 < found.error <= 2**-11
