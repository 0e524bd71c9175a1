"""Instructions that an operation takes, estimated: what nvcc makes of C expressions for sm_75 to sm_90."""

from __future__ import annotations

from typing import NamedTuple

from .values import Value


class Cost(NamedTuple):
    """Instructions of a warp."""

    floating: float = 0.0
    integer: float = 0.0
    special: float = 0.0


# Additions and multiplications of addresses pair up: IADD3 adds three numbers, IMAD and LEA multiply and add.
PAIRED = Cost(integer=0.5)
_INTEGER = Cost(integer=1.0)
_DIVIDED = Cost(integer=4.0)  # by a constant: a wide multiplication, a shift, the sign
_DIVIDED_BY_ANYTHING = Cost(integer=20.0)
FLOATING = Cost(floating=1.0)

# As nvcc's maths functions compile: of the special function unit, and of float32 around it.
_CALLS = {
    "exp": Cost(floating=5, special=1),
    "exp2": Cost(floating=2, special=1),
    "log": Cost(floating=10, special=1),
    "tanh": Cost(floating=10, special=2),
    "sigmoid": Cost(floating=9, special=2),
    "erf": Cost(floating=20, special=1),
    "pow": Cost(floating=20, special=2),
    "sqrt": Cost(floating=6, special=1),
    "rsqrt": Cost(floating=2, special=1),
    "floor": Cost(special=1),
    "ceil": Cost(special=1),
    "round": Cost(special=1),
    "nearbyint": Cost(special=1),
    "trunc": Cost(special=1),
    "fabs": Cost(),
    "reinterpret": Cost(),
}
_UNKNOWN_CALL = Cost(floating=8, special=1)


def of_call(name: str) -> Cost:
    """Of a function, by its name in double precision."""
    return _CALLS.get(name, _UNKNOWN_CALL)


def of_operator(op: str, kind: str, operands: tuple[Value, ...]) -> Cost:
    """Of an operator. kind: of its operands, "int", "float" or "bool"."""
    if kind == "float":
        return Cost(floating=8, special=1) if op == "Div" else FLOATING
    if op in ("Add", "Sub", "Mul", "And", "Or", "Not", "LShift"):
        return PAIRED
    if op in ("Div", "Mod", "FloorDiv", "FloorMod"):
        divisor = operands[1]
        if not divisor.is_constant:
            return _DIVIDED_BY_ANYTHING
        power_of_two = int(divisor.offset) & (int(divisor.offset) - 1) == 0
        return _INTEGER if power_of_two else _DIVIDED
    return _INTEGER
