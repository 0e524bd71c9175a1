"""Loops of TIR over ranges that need not begin at 0: parts of a size, pieces that end with it, taps on the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from convtune.schedules.statements import Expr, Stmt

if TYPE_CHECKING:
    from convtune.schedules.axes import Axis

Range = tuple[Any, Any]
"""Where it starts and stops, numbers or expressions."""


def ranged(start: Expr, stop: Expr, body: Callable[[Any], Stmt], kind: str = "SERIAL", name: str = "i") -> Stmt:
    """for variable in range(start, stop): body(variable).

    The loop itself counts from 0: of one in a parallel loop that begins elsewhere, and whose body takes the maximum of
    its variable and a number, TVM 0.27 makes wrong code.
    """
    from tvm import tirx

    if isinstance(start, int) and isinstance(stop, int) and stop - start == 1 and kind == "SERIAL":
        return body(start)
    variable, kinds = tirx.Var(name, "int32"), tirx.ForKind
    if isinstance(start, int) and start == 0:
        return tirx.For(variable, 0, stop, kinds[kind], body(variable))

    def shifted(first: Expr) -> Stmt:
        inner = named(first + variable, name, body)
        return tirx.For(variable, 0, stop - first, kinds[kind], inner)

    return named(start, f"{name}_start", shifted)


def named(value: Expr, name: str, body: Callable[[Any], Stmt]) -> Stmt:
    """body(variable) with an integer variable of that value."""
    from tvm import tirx

    if isinstance(value, int):
        return body(value)
    variable = tirx.Var(name, "int32")
    return tirx.SeqStmt([tirx.Bind(variable, value), body(variable)])


def least(a: Expr, b: Expr) -> Expr:
    from tvm import tirx

    return min(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.min(a, b)


def most(a: Expr, b: Expr) -> Expr:
    from tvm import tirx

    return max(a, b) if isinstance(a, int) and isinstance(b, int) else tirx.max(a, b)


def pieces(places: Range, size: int, body: Callable[[Any], Stmt], first: str, name: str) -> Stmt:
    """body(where it begins) for pieces of a range: the last one begins earlier where pieces do not divide it.

    first, name: of the variables.
    """
    low, high = places

    def piece(number: Expr) -> Stmt:
        return named(least(low + number * size, high - size), first, body)

    return ranged(0, (high - low + size - 1) // size, piece, name=name)


def part(size: int, parts: int, number: Expr) -> Range:
    """The range of a size that is the part with that number, of nearly equal ones."""
    return number * size // parts, (number + 1) * size // parts


def valid_taps(axis: Axis, first: Expr) -> Range:
    """The range of taps that read inputs, for an output whose tap 0 is at `first`; maybe empty."""
    start: Expr = 0
    if axis.before:
        start = most(0, (axis.dilation - 1 - first) // axis.dilation)
    stop: Expr = axis.taps
    if (axis.out - 1) * axis.stride - axis.before + (axis.taps - 1) * axis.dilation >= axis.size:
        stop = least(axis.taps, (axis.size - 1 - first) // axis.dilation + 1)
    return start, stop
