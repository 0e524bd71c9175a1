"""Index expressions as sums: a constant, multiples of loop variables, and what no sum can say."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from convtune.arithmetic import Array, compute
from convtune.errors import ScheduleError

Number = int | float

GRID = 4096
"""Points at which an expression of several loops is evaluated; of more, evenly spread ones."""


class Form(NamedTuple):
    """offset + the sum of coefficient * term. No term comes twice, none has the coefficient 0."""

    offset: Number
    terms: tuple[tuple[Term, Number], ...]

    @property
    def is_constant(self) -> bool:
        """Whether it has no term."""
        return not self.terms


class Atom(NamedTuple):
    """An operator on forms that is no sum: a division, a minimum, a comparison, or "load" with a table's number."""

    op: str
    arguments: tuple[Form, ...]
    table: int = -1


Term = int | Atom
"""A loop, by its number, or an atom."""

Box = Mapping[int, tuple[int, int]]
"""Least value and end of some loops' variables."""

ZERO = Form(0, ())
NO_BOX: Box = {}


def constant(number: Number) -> Form:
    """A number."""
    return Form(number, ())


def variable(loop: int) -> Form:
    """A loop's variable."""
    return Form(0, ((loop, 1),))


def add(a: Form, b: Form, sign: Number = 1) -> Form:
    """a + sign * b."""
    if not b.terms:
        return Form(a.offset + sign * b.offset, a.terms)
    found = dict(a.terms)
    for term, coefficient in b.terms:
        found[term] = found.get(term, 0) + sign * coefficient
    return Form(a.offset + sign * b.offset, tuple((t, c) for t, c in found.items() if c))


def scale(a: Form, factor: Number) -> Form:
    """a * factor."""
    return Form(a.offset * factor, tuple((t, c * factor) for t, c in a.terms)) if factor else ZERO


@functools.lru_cache(maxsize=1 << 14)
def loops(form: Form) -> frozenset[int]:
    """The loops that a form depends on."""
    found: set[int] = set()
    for term, _ in form.terms:
        found |= {term} if isinstance(term, int) else frozenset().union(*map(loops, term.arguments))
    return frozenset(found)


class Arithmetic:
    """Operators on forms. extents: iterations of each loop. divisors: what loops were divided by in vain."""

    def __init__(self) -> None:
        self.extents: dict[int, int] = {}
        self.divisors: dict[int, set[int]] = {}
        self.tables: dict[int, Array] = {}

    def operate(self, op: str, parts: tuple[Form, ...]) -> Form:
        """The form of an operator or function."""
        if all(part.is_constant for part in parts):
            return constant(compute(op, [np.asarray(part.offset) for part in parts]).item())
        if op in ("Add", "Sub"):
            return add(parts[0], parts[1], 1 if op == "Add" else -1)
        if op == "Mul" and (parts[0].is_constant or parts[1].is_constant):
            number, other = parts if parts[0].is_constant else parts[::-1]
            return scale(other, number.offset)
        if op in ("Div", "Mod") and self.bounds(parts[0])[0] >= 0:
            op = f"Floor{op}"
        if op in ("FloorDiv", "FloorMod") and parts[1].is_constant and parts[1].offset >= 1:
            return self._divide(op, parts[0], int(parts[1].offset))
        if op in ("Min", "Max"):
            return self._extreme(op, *parts)
        if op in ("integer", "floor", "ceil", "trunc", "round", "real") and _is_integral(parts[0]):
            return parts[0]
        return Form(0, ((Atom(op, parts), 1),))

    def _extreme(self, op: str, a: Form, b: Form) -> Form:
        (a_low, a_high), (b_low, b_high) = self.bounds(a), self.bounds(b)
        if a_high <= b_low or b_high <= a_low:
            return a if (a_high <= b_low) == (op == "Min") else b
        return Form(0, ((Atom(op, (a, b)), 1),))

    def _divide(self, op: str, a: Form, divisor: int) -> Form:
        """What is a multiple of the divisor goes through; the rest is a remainder if it is within 0 and the divisor."""
        whole = tuple((t, c) for t, c in a.terms if c % divisor == 0)
        rest = Form(a.offset % divisor, tuple((t, c) for t, c in a.terms if c % divisor))
        low, high = self.bounds(rest)
        if low >= 0 and high < divisor:
            if op == "FloorMod":
                return rest
            return Form((a.offset - rest.offset) // divisor, tuple((t, c // divisor) for t, c in whole))
        for term, coefficient in rest.terms:
            if isinstance(term, int) and float(coefficient).is_integer():
                step = divisor // math.gcd(divisor, abs(int(coefficient)))
                if 1 < step < self.extents[term]:
                    self.divisors.setdefault(term, set()).add(step)
        return Form(0, ((Atom(op, (a, constant(divisor))), 1),))

    def bounds(self, form: Form) -> tuple[Number, Number]:
        """Least and largest value, or what is surely outside of them."""
        low = high = form.offset
        for term, coefficient in form.terms:
            first, last = (0, self.extents[term] - 1) if isinstance(term, int) else self._atom_bounds(term)
            ends = (coefficient * first, coefficient * last)
            low, high = low + min(ends), high + max(ends)
        return low, high

    def _atom_bounds(self, atom: Atom) -> tuple[Number, Number]:
        if atom.op == "load":
            table = self.tables.get(atom.table)
            return (-math.inf, math.inf) if table is None else (table.min(), table.max())
        if atom.op == "FloorMod" and atom.arguments[1].is_constant:
            return 0, atom.arguments[1].offset - 1
        ends = [self.bounds(part) for part in atom.arguments]
        if atom.op in ("Min", "Max"):
            choose = min if atom.op == "Min" else max
            return choose(ends[0][0], ends[1][0]), choose(ends[0][1], ends[1][1])
        if atom.op == "FloorDiv" and math.isfinite(ends[0][0]) and math.isfinite(ends[0][1]):
            divisor = atom.arguments[1].offset
            return ends[0][0] // divisor, ends[0][1] // divisor
        if atom.op == "select":
            return min(ends[1][0], ends[2][0]), max(ends[1][1], ends[2][1])
        return -math.inf, math.inf

    def evaluate(self, form: Form, known: Mapping[int, Array]) -> Array:
        """A form where loops have the given values. known: of each loop in it; arrays that fit together."""
        total: Any = np.asarray(form.offset)
        for term, coefficient in form.terms:
            value = known[term] if isinstance(term, int) else self._atom(term, known)
            total = total + coefficient * np.asarray(value, dtype=np.result_type(value, np.int8))
        return np.asarray(total)

    def _atom(self, atom: Atom, known: Mapping[int, Array]) -> Array:
        parts = [self.evaluate(part, known) for part in atom.arguments]
        if atom.op == "load":
            table = self.tables.get(atom.table)
            if table is None:
                raise ScheduleError("the cache model knows no index that is an argument's number, or is not stored yet")
            return np.asarray(table[np.clip(parts[0].astype(np.int64), 0, len(table) - 1)])
        return compute(atom.op, parts)

    def grid(self, free: frozenset[int], most: int = GRID, box: Box = NO_BOX) -> dict[int, Array]:
        """Values of loops in a box, in all combinations, each an array of one dimension; spread ones of too many."""
        order = sorted(free)
        ranges = [box.get(loop, (0, self.extents[loop])) for loop in order]
        total = math.prod(end - first for first, end in ranges)
        if total <= most:
            linear = np.arange(total)
        else:  # one of each of equal parts, not all at the same place in theirs
            part = total / most
            linear = np.minimum((np.arange(most) + np.random.default_rng(0).random(most)) * part, total - 1)
            linear = linear.astype(np.int64)
        found = {}
        for loop, (first, end) in zip(reversed(order), reversed(ranges)):
            linear, found[loop] = np.divmod(linear, end - first)
            found[loop] += first
        return found


def _is_integral(form: Form) -> bool:
    return all(float(n).is_integer() for n in (form.offset, *(c for _, c in form.terms))) and all(
        isinstance(t, int) or t.op in ("integer", "FloorDiv", "FloorMod", "load") for t, _ in form.terms
    )
