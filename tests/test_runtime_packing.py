"""Packing steps against loops and NumPy, and what malformed steps say."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convtune.runtime.errors import KernelError
from convtune.runtime.packing import apply, packed_shape


def test_blocked_weights_against_a_loop() -> None:
    oc, ic, k, block = 13, 5, 3, 8
    weight = np.random.default_rng(0).standard_normal((oc, ic, k), dtype="f")
    steps = [
        {"op": "pad", "widths": [[0, 3], [0, 0], [0, 0]]},
        {"op": "reshape", "shape": [2, block, ic, k]},
        {"op": "transpose", "axes": [0, 3, 2, 1]},
    ]
    packed = apply(steps, weight)
    assert packed.shape == packed_shape(steps, weight.shape) == (2, k, ic, block)
    for outer, tap, channel, lane in itertools.product(range(2), range(k), range(ic), range(block)):
        index = outer * block + lane
        assert packed[outer, tap, channel, lane] == (weight[index, channel, tap] if index < oc else 0)


@settings(deadline=None)
@given(st.integers(0, 2), st.integers(0, 2), st.integers(1, 4), st.integers(0, 9))
def test_matmul_is_einsum_in_float64(axis: int, before: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    array = rng.standard_normal((2, 3, 4), dtype="f")
    matrix = rng.standard_normal((rows, array.shape[axis]))
    widths = [[before, 0], [0, 0], [0, 0]]
    wanted = np.pad(array, [(0, 0)] * 3).astype("float64")
    wanted = np.stack([sum(m * np.take(wanted, i, axis) for i, m in enumerate(row)) for row in matrix], axis=axis)
    steps = [{"op": "matmul", "axis": axis, "matrix": matrix.tolist()}, {"op": "pad", "widths": widths}]
    np.testing.assert_array_equal(apply(steps, array), np.pad(wanted, widths).astype("f"))


def test_cancellation_survives_because_the_sums_are_in_float64() -> None:
    array = np.array([1.0, 2.0**-20], dtype="f")
    step = {"op": "matmul", "axis": 0, "matrix": [[2.0**20, 2.0**20], [-(2.0**20), 0.0]]}
    again = {"op": "matmul", "axis": 0, "matrix": [[1.0, 1.0]]}
    assert apply([step, again], array).tolist() == [1.0]


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_the_result_is_aligned_contiguous_and_new(dtype: str) -> None:
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    packed = apply([], array)
    assert packed.ctypes.data % 64 == 0 and packed.flags.c_contiguous and packed.dtype == np.float32
    assert not np.may_share_memory(packed, array)
    np.testing.assert_array_equal(packed, array)
    assert apply([], array, "int8").dtype == np.int8


BAD_STEPS: list[tuple[Any, str]] = [
    ({"op": "rotate"}, "step 0 is {'op': 'rotate'}; its op must be one of pad, reshape, transpose, matmul"),
    ("pad", "step 0 is 'pad'; its op must be one of"),
    ({"op": "pad"}, "step 0 (pad) has ['op']; it must have ['op', 'widths']"),
    ({"op": "pad", "widths": [], "mode": "edge"}, "has ['mode', 'op', 'widths']; it must have ['op', 'widths']"),
    ({"op": "pad", "widths": [[0, 1]]}, "on shape (2, 3): widths must be 2 pairs"),
    ({"op": "pad", "widths": [[0, 1], [0]]}, "widths must be 2 pairs"),
    ({"op": "pad", "widths": [[0, -1], [0, 0]]}, "[0, -1] must be whole numbers of at least 0"),
    ({"op": "pad", "widths": 3}, "step 0 (pad {'widths': 3}) on shape (2, 3): 'int' object is not iterable"),
    ({"op": "reshape", "shape": [4, 2]}, "6 elements cannot become 8"),
    ({"op": "reshape", "shape": [-1, 2]}, "[-1, 2] must be whole numbers of at least 0"),
    ({"op": "reshape", "shape": [1.5, 4]}, "[1.5, 4] must be whole numbers"),
    ({"op": "transpose", "axes": [0, 0]}, "axes must be a permutation of [0, 1]"),
    ({"op": "transpose", "axes": [0]}, "axes must be a permutation of [0, 1]"),
    ({"op": "matmul", "axis": 2, "matrix": [[1]]}, "axis must be below 2"),
    ({"op": "matmul", "axis": 1, "matrix": [[1, 2]]}, "shape (1, 2) cannot multiply an axis of size 3"),
    ({"op": "matmul", "axis": 1, "matrix": [1, 2, 3]}, "shape (3,) cannot multiply an axis of size 3"),
    ({"op": "matmul", "axis": 1, "matrix": [["a", 2, 3]]}, "could not convert string to float"),
]


@pytest.mark.parametrize(("step", "message"), BAD_STEPS)
def test_bad_steps(step: Any, message: str) -> None:
    with pytest.raises(KernelError) as caught:
        apply([step], np.zeros((2, 3), "f"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_error_names_the_step_that_fails() -> None:
    steps = [{"op": "reshape", "shape": [3, 2]}, {"op": "transpose", "axes": [0, 1, 2]}]
    with pytest.raises(KernelError, match=r"packing step 1 \(transpose .* on shape \(3, 2\)"):
        packed_shape(steps, (2, 3))
