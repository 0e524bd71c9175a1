"""What TIR's operators and functions make of numbers, on NumPy's arrays: for models that evaluate index expressions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def compute(op: str, parts: list[Array]) -> Array:
    """An operation on arrays. A function whose number no address depends on gives its first argument."""
    function = _COMPUTE.get(op)
    return parts[0] if function is None else np.asarray(function(*parts))


def _divide(a: Array, b: Array) -> Array:
    """C's division: towards zero for integers."""
    divisor = np.where(b == 0, 1, b)
    if np.issubdtype(np.result_type(a, b), np.integer):
        quotient: Array = np.abs(a) // np.abs(divisor)
        return np.asarray(np.where((a < 0) != (divisor < 0), -quotient, quotient))
    return np.asarray(a / divisor)


def _integers(a: Array) -> Array:
    return np.asarray(np.trunc(np.clip(a, -(2.0**40), 2.0**40)), dtype=np.int64)


_COMPUTE: Mapping[str, Callable[..., Any]] = {
    "Add": lambda a, b: a + b,
    "Sub": lambda a, b: a - b,
    "Mul": lambda a, b: a * b,
    "Div": _divide,
    "Mod": lambda a, b: a - _divide(a, b) * b,
    "FloorDiv": lambda a, b: np.floor_divide(a, np.where(b == 0, 1, b)),
    "FloorMod": lambda a, b: np.mod(a, np.where(b == 0, 1, b)),
    "Min": np.minimum,
    "Max": np.maximum,
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
    "And": lambda a, b: np.logical_and(a, b),
    "Or": lambda a, b: np.logical_or(a, b),
    "Not": lambda a: np.logical_not(a),
    "LShift": lambda a, b: _integers(a) << _integers(b),
    "RShift": lambda a, b: _integers(a) >> _integers(b),
    "BitwiseAnd": lambda a, b: _integers(a) & _integers(b),
    "BitwiseOr": lambda a, b: _integers(a) | _integers(b),
    "BitwiseXor": lambda a, b: _integers(a) ^ _integers(b),
    "select": lambda c, a, b: np.where(c, a, b),
    "integer": _integers,
    "real": lambda a: np.asarray(a, dtype=np.float64),
    "floor": np.floor,
    "ceil": np.ceil,
    "round": np.round,
    "trunc": np.trunc,
    "fabs": np.abs,
}
