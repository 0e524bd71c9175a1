"""Arranges weights as a kernel reads them, by a list of steps that is data and so goes into a manifest.

{"op": "pad", "widths": [[before, after], ...]}       zeros around, one pair per axis
{"op": "reshape", "shape": [...]}                     same elements in the same order
{"op": "transpose", "axes": [...]}                    result axis i is axis axes[i]
{"op": "matmul", "axis": k, "matrix": [[...], ...]}   result = matrix @ array along axis k, in float64
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .arrays import empty_aligned
from .errors import KernelError

Step = Mapping[str, Any]
Shape = tuple[int, ...]


def packed_shape(steps: Sequence[Step], shape: Sequence[int]) -> Shape:
    """The shape that `apply` makes of `shape`. Raises KernelError, naming the step, where they do not fit."""
    result = tuple(shape)
    for number, step in enumerate(steps):
        op = step.get("op") if isinstance(step, Mapping) else None
        if op not in _SHAPES:
            raise KernelError(f"packing step {number} is {step!r}; its op must be one of {', '.join(_SHAPES)}")
        needed = {"op", *_FIELDS[op]}
        if set(step) != needed:
            raise KernelError(f"packing step {number} ({op}) has {sorted(step)}; it must have {sorted(needed)}")
        try:
            result = _SHAPES[op](result, step)
        except (TypeError, ValueError) as error:
            given = {field: step[field] for field in _FIELDS[op] if field != "matrix"}
            raise KernelError(f"packing step {number} ({op} {given}) on shape {result}: {error}") from error
    return result


def apply(steps: Sequence[Step], array: NDArray[Any], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """The packed array: a C-contiguous copy of `dtype`, aligned to 64 bytes. Raises KernelError as `packed_shape`."""
    shape = packed_shape(steps, array.shape)
    for step in steps:
        array = _ARRAYS[step["op"]](array, step)
    packed = empty_aligned(shape, dtype)
    packed[...] = array
    return packed


def _whole(values: Any) -> Shape:
    numbers = tuple(values)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{list(numbers)} must be whole numbers of at least 0")
    return numbers


def _pad_shape(shape: Shape, step: Step) -> Shape:
    widths = [_whole(pair) for pair in step["widths"]]
    if len(widths) != len(shape) or any(len(pair) != 2 for pair in widths):
        raise ValueError(f"widths must be {len(shape)} pairs")
    return tuple(before + size + after for size, (before, after) in zip(shape, widths))


def _reshape_shape(shape: Shape, step: Step) -> Shape:
    result = _whole(step["shape"])
    if prod(result) != prod(shape):
        raise ValueError(f"{prod(shape)} elements cannot become {prod(result)}")
    return result


def _transpose_shape(shape: Shape, step: Step) -> Shape:
    axes = _whole(step["axes"])
    if sorted(axes) != list(range(len(shape))):
        raise ValueError(f"axes must be a permutation of {list(range(len(shape)))}")
    return tuple(shape[axis] for axis in axes)


def _matmul_shape(shape: Shape, step: Step) -> Shape:
    (axis,) = _whole([step["axis"]])
    matrix = np.asarray(step["matrix"], dtype=np.float64)
    if axis >= len(shape):
        raise ValueError(f"axis must be below {len(shape)}")
    if matrix.ndim != 2 or matrix.shape[1] != shape[axis]:
        raise ValueError(f"a matrix of shape {matrix.shape} cannot multiply an axis of size {shape[axis]}")
    return (*shape[:axis], matrix.shape[0], *shape[axis + 1 :])


def _matmul(array: NDArray[Any], step: Step) -> NDArray[Any]:
    matrix, axis = np.asarray(step["matrix"], dtype=np.float64), step["axis"]
    return np.moveaxis(np.tensordot(matrix, array.astype(np.float64), axes=([1], [axis])), 0, axis)


_FIELDS = {"pad": ["widths"], "reshape": ["shape"], "transpose": ["axes"], "matmul": ["axis", "matrix"]}
_SHAPES: dict[str, Callable[[Shape, Step], Shape]] = {
    "pad": _pad_shape,
    "reshape": _reshape_shape,
    "transpose": _transpose_shape,
    "matmul": _matmul_shape,
}
_ARRAYS: dict[str, Callable[[NDArray[Any], Step], NDArray[Any]]] = {
    "pad": lambda array, step: np.pad(array, step["widths"]),
    "reshape": lambda array, step: array.reshape(step["shape"]),
    "transpose": lambda array, step: array.transpose(step["axes"]),
    "matmul": _matmul,
}
