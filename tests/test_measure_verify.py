"""Guarded arrays, and what verifying finds, with Python functions as kernels."""

from __future__ import annotations

import ctypes
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from convtune.compiler import arguments
from convtune.measure import guards
from convtune.measure.guards import Guarded
from convtune.measure.pieces import PIECE
from convtune.measure.verify import Verdict, largest_error, verify, verify_part
from convtune.spec import ConvSpec

Arrays = Sequence[np.ndarray]
RNG = np.random.default_rng(0)
X = RNG.standard_normal((3, 7)).astype(np.float32)
RIGHT = 2.0 * X.astype(np.float64)
UNWRITTEN, OUTSIDE = guards.UNWRITTEN[4], guards.OUTSIDE[4]  # of float32


class Scripted:
    """A Python function as a kernel."""

    def __init__(self, function: Callable[[Arrays], Any]) -> None:
        self.function = function
        self.fillings: list[int | None] = []

    def __call__(self, arrays: Arrays, alignments: Sequence[int]) -> None:
        self.function(arrays)

    def fill_scratch(self, byte: int | None) -> None:
        self.fillings.append(byte)


def double(arrays: Arrays) -> None:
    x, y = arrays
    np.multiply(x, 2, out=y)


def verdict(*after: Callable[[np.ndarray, np.ndarray], Any], limit: float = 1e-6) -> Verdict:
    """Of a kernel that doubles x, and then does as it likes."""

    def kernel(arrays: Arrays) -> None:
        double(arrays)
        for action in after:
            action(*arrays)

    return verify(Scripted(kernel), {"x": X}, RIGHT, limit)


def poke(array: np.ndarray, index: int, word: int) -> None:
    """Writes 4 bytes at an index that may lie outside."""
    ctypes.c_uint32.from_address(array.ctypes.data + 4 * index).value = word


@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.sampled_from([4, 64]), st.booleans())
def test_a_guarded_array_is_aligned_no_more_than_asked_close_to_a_fence_and_unwritten(
    shape: list[int], alignment: int, at_end: bool
) -> None:
    guarded = Guarded(tuple(shape), alignment, at_end)
    array = guarded.array
    assert array.shape == tuple(shape)
    assert array.flags.c_contiguous
    assert array.ctypes.data % alignment == 0
    if at_end:
        assert -(array.ctypes.data + array.nbytes) % 4096 < alignment
    else:
        assert array.ctypes.data % 4096 == alignment
    assert np.isnan(array).all()
    assert guarded.unwritten().count == array.size
    assert guarded.overrun() == ""
    array[...] = 1
    assert guarded.unwritten().count == 0
    assert Guarded.copy_of(RNG.random(7, dtype=np.float32), alignment, at_end).unwritten().count == 0


@pytest.mark.parametrize(
    ("index", "where"),
    [
        (-1, "1 element before its start"),
        (-16, "16 elements before its start"),
        (21, "1 element after its end"),
        (31, "11 elements after its end"),
        (21 + 1000, "1001 elements after its end"),
    ],
)
def test_a_write_outside_is_found(index: int, where: str) -> None:
    guarded = Guarded((21,), 64, at_end=False)
    poke(guarded.array, index, 0)
    assert guarded.overrun() == where


def test_writes_on_both_sides_are_found() -> None:
    guarded = Guarded((21,), 64, at_end=True)
    poke(guarded.array, -2, 0)
    poke(guarded.array, 22, 0)
    assert guarded.overrun() == "2 elements before its start and 2 elements after its end"


def test_a_right_kernel_passes_with_its_error_and_result() -> None:
    found = verdict()
    assert found.problem == ""
    assert found.error == 0
    assert found.y is not None
    np.testing.assert_array_equal(found.y, RIGHT)


def test_the_error_is_relative_to_the_largest_of_the_reference() -> None:
    wrong = RIGHT.astype(np.float32)
    wrong[1, 1] += 0.5
    assert largest_error(wrong, RIGHT) == pytest.approx(0.5 / np.abs(RIGHT).max(), rel=1e-6)
    assert largest_error(np.full(3, 0.25, np.float32), np.zeros(3)) == 0.25
    assert np.isnan(largest_error(np.array([np.nan, 1], np.float32), np.ones(2)))


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        (lambda x, y: y.__setitem__((2, 6), 9), "wrong result: error"),
        (lambda x, y: y.__setitem__((0, 2), np.inf), "first y[0, 2] = inf"),
        (lambda x, y: y.__setitem__((1, 0), np.nan), "first y[1, 0] = nan"),
        (
            lambda x, y: poke(y, 8, UNWRITTEN),
            "left output unwritten, or read it first: 1 of 21 elements, first y[1, 1]",
        ),
        (lambda x, y: poke(y, 8, OUTSIDE), "read outside an array"),
        (lambda x, y: poke(y, 21, 0), "wrote outside y: 1 element after its end"),
        (lambda x, y: poke(x, -1, 0), "wrote outside x: 1 element before its start"),
        (lambda x, y: x.__setitem__((1, 0), 3), "changed its input x: 1 of 21 elements, first x[1, 0] = 3 instead of"),
        (lambda x, y: x.__imul__(1 + 1e-7), "changed its input x"),
    ],
)
def test_a_wrong_kernel_is_told_what_is_wrong(action: Callable[..., Any], problem: str) -> None:
    found = verdict(action)
    assert problem in found.problem
    assert found.y is None
    assert found.error is None or np.isfinite(found.error)
    assert found.overran == problem.startswith(("wrote", "changed"))


LONG = RNG.standard_normal((5, PIECE)).astype(np.float32)
LONG_RIGHT = 2.0 * LONG.astype(np.float64)


def of_long(action: Callable[[np.ndarray, np.ndarray], Any]) -> Verdict:
    """As `verdict`, of arrays of several pieces."""
    return verify(Scripted(lambda arrays: (double(arrays), action(*arrays))), {"x": LONG}, LONG_RIGHT, 1e-6)


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        (lambda x, y: y[1:4, 7].fill(9), f"3 of {LONG.size} elements, first y[1, 7] = 9 instead of"),
        (
            lambda x, y: y[0, :1].fill(np.nan),
            f"error nan, allowed 1e-06; 1 of {LONG.size} elements, first y[0, 0] = nan",
        ),
        (lambda x, y: y[2:, 1].fill(poke(y, 0, OUTSIDE) or 9), "read outside an array: error nan"),
        (
            lambda x, y: x[3, PIECE - 2 :].fill(9),
            f"changed its input x: 2 of {LONG.size} elements, first x[3, {PIECE - 2}]",
        ),
        (lambda x, y: [poke(y, i * PIECE, UNWRITTEN) for i in (3, 4)], f"2 of {LONG.size} elements, first y[3, 0]"),
    ],
)
def test_what_is_wrong_is_found_in_any_piece(action: Callable[..., Any], problem: str) -> None:
    assert of_long(lambda x, y: None).problem == ""
    assert problem in of_long(action).problem


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        (lambda x, y: None, ""),
        (lambda x, y: y.fill(9), "wrong result"),
        (lambda x, y: x.fill(9), "changed its input"),
        (lambda x, y: y.view(np.uint32).fill(UNWRITTEN), "left output unwritten"),
    ],
)
def test_verifying_takes_little_memory_besides_the_guarded_arrays(action: Callable[..., Any], problem: str) -> None:
    tracemalloc.start()  # which does not see guarded arrays
    found = of_long(action)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.problem.startswith(problem)
    assert peak < 8 * 3 * PIECE


def test_scratch_is_filled_with_another_byte_in_each_run_and_no_longer_afterwards() -> None:
    right, failing = Scripted(double), Scripted(lambda arrays: 1 / 0)
    verify(right, {"x": X}, RIGHT, 1e-6)
    assert right.fillings == [0xFF, 0x7F, None]
    with pytest.raises(ZeroDivisionError):
        verify(failing, {"x": X}, RIGHT, 1e-6)
    assert failing.fillings[-1] is None


def test_zero_of_the_other_sign_is_another_result() -> None:
    zeros = iter([0.0, -0.0])
    x = {"x": np.zeros(1, np.float32)}
    found = verify(Scripted(lambda arrays: arrays[-1].fill(next(zeros))), x, np.zeros((2, 2)), 1e-6)
    assert found.problem.startswith("gives another result when run again: 4 of 4 elements, first y[0, 0]")


def test_only_the_second_run_overran() -> None:
    runs = iter([lambda y: None, lambda y: poke(y, -2, 5)])
    found = verdict(lambda x, y: next(runs)(y))
    assert (found.problem, found.overran) == ("wrote outside y: 2 elements before its start", True)


def test_packed_arrays_are_aligned_and_the_others_lie_at_both_fences_in_turn() -> None:
    spec = ConvSpec("pointwise", in_channels=4, out_channels=3, in_size=5, kernel=1, bias=True, residual=True)
    manifest = arguments(spec, ((),))
    inputs = {a.name: RNG.random(a.shape, dtype=np.float32) for a in manifest[:-1]}
    seen: list[tuple[list[int], list[int]]] = []

    class Looking(Scripted):
        def __call__(self, arrays: Arrays, alignments: Sequence[int]) -> None:
            starts, ends = zip(*((a.ctypes.data % 4096, -(a.ctypes.data + a.nbytes) % 4096) for a in arrays))
            assert list(alignments) == [argument.alignment for argument in manifest]
            seen.append((list(starts), [end - end % alignment for end, alignment in zip(ends, alignments)]))
            arrays[-1].fill(0)

    assert verify(Looking(double), inputs, np.zeros(spec.out_shape), 1e-6).problem == ""
    assert seen[0][0] == [4, 64, 64, 4, 4]
    assert seen[1][1] == [0] * 5


def test_an_error_at_the_limit_passes_and_above_it_fails() -> None:
    def off(x: np.ndarray, y: np.ndarray) -> None:
        y[0, 0] += 0.01

    error = verdict(off).error
    assert error is not None
    assert verdict(off, limit=error).problem == ""
    assert verdict(off, limit=np.nextafter(error, 0)).problem.startswith("wrong result")


def part(action: Callable[[np.ndarray, np.ndarray], Any]) -> Verdict:
    """Of a kernel that computes the first five elements of y, and then does as it likes."""

    def kernel(arrays: Arrays) -> None:
        x, y = arrays
        y.flat[:5] = 2 * x.flat[:5]
        action(x, y)

    return verify_part(Scripted(kernel), {"x": X}, RIGHT, 1e-6, alignment=64)


def test_a_part_of_the_output_is_compared_where_it_was_written() -> None:
    found = part(lambda x, y: None)
    assert (found.problem, found.overran) == ("", False)
    assert found.error is not None
    assert found.error < 1e-6


@pytest.mark.parametrize(
    ("action", "problem"),
    [
        (lambda x, y: poke(y, 3, 0), "wrong result: error"),
        (lambda x, y: poke(y, 3, OUTSIDE), "read outside an array: error nan"),
        (lambda x, y: poke(y, 21, 0), "wrote outside y: 1 element after its end"),
        (lambda x, y: poke(x, 2, 0), "changed its input x: 1 of 21 elements"),
        (lambda x, y: y.view(np.uint32).fill(UNWRITTEN), "wrote nothing of its output"),
    ],
)
def test_a_wrong_part_is_told_what_is_wrong(action: Callable[..., Any], problem: str) -> None:
    assert part(action).problem.startswith(problem)
