"""Minimal filtering F(m, r): m outputs of an r-tap filter by m + r - 1 products, from exact interpolation points.

    y = A^T [(G g) * (B^T d)]      y_i = sum_j g_j d_(i+j),  d: alpha = m + r - 1 inputs

Cook and Toom's algorithm transposed (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, arXiv
1509.09308): with finite points p_0 ... p_(alpha-2), M(x) = prod (x - p_k) and the point at infinity last,
A^T has the rows p^i, G the rows p_k^j / M'(p_k), and B^T the coefficients of M(x) / (x - p_k), of M(x) for infinity.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Row = tuple[Fraction, ...]
Matrix = tuple[Row, ...]

# The pairs p, -p by the number of finite points, in eighths; an odd number has 0 besides. They have the least
# amplification (below) of all multiples of 1/8 up to 3; 0, 1, -1, 2, -2, which is usual, has twice that a dimension.
_PAIRS: tuple[tuple[int, ...], ...] = (
    (),
    (),
    (8,),
    (8,),
    (3, 10),
    (5, 13),
    (2, 6, 16),
    (4, 8, 16),
    (2, 6, 8, 20),
    (4, 6, 10, 20),
)
# With 0 beside an odd number of others: pairs, and the point that is in none, last. 0 and 1 lose no more than 1 and -1,
# with fewer additions; 0, 6, -6, 13 lose a quarter more in F(3, 3) than what is above.
_BESIDE_ZERO: Mapping[int, tuple[int, ...]] = {2: (8,), 4: (6, 13)}
MOST_POINTS = len(_PAIRS)  # infinity included


@dataclass(frozen=True)
class Filtering:
    """The matrices of F(m, r), and which neighbouring points p, -p are pairs (by the first one's index)."""

    m: int
    r: int
    at: Matrix  # m x alpha
    g: Matrix  # alpha x r
    bt: Matrix  # alpha x alpha
    pairs: tuple[int, ...]

    @functools.cached_property
    def alpha(self) -> int:
        return self.m + self.r - 1

    @functools.cached_property
    def amplification(self) -> float:
        """How much larger than of direct sums the rounding errors are, for independent inputs of equal variance.

        The products' errors are relative to the products: their variances, times the squares of A^T's row, against the
        variance of the direct sum. The largest of the m outputs counts.
        """
        products = [_energy(g) * _energy(b) for g, b in zip(self.g, self.bt)]
        worst = max(sum(a * a * float(p) for a, p in zip(map(float, row), products)) for row in self.at)
        return math.sqrt(worst / self.r)

    @functools.cached_property
    def operations(self) -> tuple[int, int]:
        """Vector operations of the transforms of input and output, for one row of alpha values."""
        return _operations(self.transform_input, self.alpha), _operations(self.transform_output, self.alpha)

    def transform_input(self, values: Sequence[Any], bind: Callable[[Any], Any]) -> list[Any]:
        """B^T d for expressions d; `bind` names one that is used more than once.

        Rows of a pair p, -p are sum and difference of the same two parts. Without the last value, which only the row of
        infinity reads, all rows but that one are right.
        """
        result: list[Any] = [None] * self.alpha
        for i in self.pairs:
            plus, minus = self.bt[i], self.bt[i + 1]
            same = [(a + b) / 2 for a, b in zip(plus, minus)]
            other = [(a - b) / 2 for a, b in zip(plus, minus)]
            scale = next(c for c in reversed(other) if c)
            left, right = bind(_dot(same, values)), bind(_dot([c / scale for c in other], values))
            result[i], result[i + 1] = _added(left, scale, right), _added(left, -scale, right)
        return [_dot(row, values) if known is None else known for row, known in zip(self.bt, result)]

    def transform_output(self, values: Sequence[Any], bind: Callable[[Any], Any]) -> list[Any]:
        """A^T v for expressions v; of a pair p, -p all outputs need no more than sum and difference."""
        folded, columns = list(values), [list(column) for column in zip(*self.at)]
        for i in self.pairs:
            plus, minus = columns[i], columns[i + 1]
            folded[i], folded[i + 1] = bind(values[i] + values[i + 1]), bind(values[i] - values[i + 1])
            columns[i] = [(a + b) / 2 for a, b in zip(plus, minus)]
            columns[i + 1] = [(a - b) / 2 for a, b in zip(plus, minus)]
        return [_dot(row, folded) for row in zip(*columns)]


@dataclass(frozen=True)
class Exchanged:
    """All m outputs of a row of fewer inputs than taps: F(m, inputs), with taps and inputs in each other's place.

    y_i = sum_l d_l g_(l + before - i), so the taps from last to first are what is transformed by B^T, the inputs from
    last to first are transformed by G, and nothing is multiplied by the zeros around the inputs.

    Where 0 is a point, it is the first one, of the last input alone; the point at infinity is of the last output alone.
    """

    rule: Filtering
    taps: int
    before: int  # zeros in front of the inputs

    @property
    def m(self) -> int:
        return self.rule.m

    @property
    def alpha(self) -> int:
        return self.rule.alpha

    @functools.cached_property
    def g(self) -> Matrix:
        """Of the taps, alpha x taps: of taps that no input meets, zeros."""
        last = self.before + self.rule.r - 1
        zero = Fraction(0)
        return tuple(
            tuple(row[last - j] if 0 <= last - j < self.alpha else zero for j in range(self.taps))
            for row in self.rule.bt
        )

    @property
    def amplification(self) -> float:
        return self.rule.amplification

    @functools.cached_property
    def operations(self) -> tuple[int, int]:
        return _operations(self.transform_input, self.rule.r), self.rule.operations[1]

    def transform_input(self, values: Sequence[Any], bind: Callable[[Any], Any]) -> list[Any]:
        return [_dot(row[::-1], values) for row in self.rule.g]

    def transform_output(self, values: Sequence[Any], bind: Callable[[Any], Any]) -> list[Any]:
        return self.rule.transform_output(values, bind)


@functools.cache
def exchanged(m: int, inputs: int, taps: int, before: int, zero: bool = False) -> Exchanged:
    """Of a row of inputs and its padding; zero: with 0 as the first point.

    Raises ValueError where it needs more points than there are, or 0 cannot be one.
    """
    return Exchanged(from_points(m, inputs, *_points(m + inputs - 2, zero)), taps, before)


@functools.cache
def filtering(m: int, r: int) -> Filtering:
    """F(m, r). Raises ValueError where it needs more points than there are."""
    return from_points(m, r, *_points(m + r - 2))


def zero_is_first(count: int) -> bool:
    """Whether 0 can be the first of so many finite points."""
    return count % 2 == 1 or count in _BESIDE_ZERO


def from_points(m: int, r: int, points: Sequence[Fraction], pairs: Sequence[int] = ()) -> Filtering:
    """F(m, r) with these finite points, m + r - 2 of them, and infinity."""
    if len(points) != m + r - 2:
        raise ValueError(f"F({m}, {r}) has {len(points)} finite points; it must have {m + r - 2}")
    zeros = [Fraction(0)]
    slopes = [math.prod((p - q for q in points if q != p), start=Fraction(1)) for p in points]
    at = [[p**i for p in points] + [Fraction(i == m - 1)] for i in range(m)]
    g = [[p**j / slope for j in range(r)] for p, slope in zip(points, slopes)]
    g.append([Fraction(j == r - 1) for j in range(r)])
    bt = [_product([q for q in points if q != p]) + zeros for p in points] + [_product(points)]
    return Filtering(m, r, _frozen(at), _frozen(g), _frozen(bt), tuple(pairs))


def _points(count: int, zero: bool = False) -> tuple[list[Fraction], list[int]]:
    """Finite points, 0 first where their number is odd or it is asked for, and where pairs begin."""
    if not 0 <= count < MOST_POINTS:
        raise ValueError(f"minimal filtering has {count} finite points; allowed: up to {MOST_POINTS - 1}")
    if zero and not zero_is_first(count):
        raise ValueError(f"0 is to be one of {count} finite points; allowed: odd numbers and {[*_BESIDE_ZERO]}")
    pairs, single = _PAIRS[count], list[Fraction]()
    if count == 2 or (zero and count % 2 == 0):
        pairs, single = _BESIDE_ZERO[count][:-1], [Fraction(_BESIDE_ZERO[count][-1], 8)]
    points = [Fraction(0)] * (count % 2 or len(single))
    begin = [*range(len(points), count - len(single), 2)]
    for p in pairs:
        points += [Fraction(p, 8), Fraction(-p, 8)]
    return [*points, *single], begin


def _product(roots: Sequence[Fraction]) -> list[Fraction]:
    """The coefficients of prod (x - root), from the constant up."""
    result = [Fraction(1)]
    for root in roots:
        result = [a - root * b for a, b in zip([Fraction(0), *result], [*result, Fraction(0)])]
    return result


def _frozen(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return tuple(map(tuple, rows))


def _energy(row: Row) -> Fraction:
    return sum((c * c for c in row), start=Fraction(0))


def _dot(coefficients: Sequence[Fraction], values: Sequence[Any]) -> Any:
    """sum c * value, terms with c = 1 first, so that all others are one multiply-add each."""
    terms = sorted(((c, v) for c, v in zip(coefficients, values) if c), key=lambda term: abs(term[0]) != 1)
    (first, value), *rest = sorted(terms, key=lambda term: term[0] != 1)
    total = value if first == 1 else value * float(first)
    for c, v in rest:
        total = _added(total, c, v)
    return total


def _added(total: Any, c: Fraction, value: Any) -> Any:
    if abs(c) == 1:
        return total + value if c == 1 else total - value
    return total + value * float(c)


def _operations(transform: Callable[..., list[Any]], size: int) -> int:
    counted = _Counted()
    transform([_Counting(counted) for _ in range(size)], lambda value: value)
    return counted.operations


class _Counted:
    operations = 0


class _Counting:
    """A value that counts what is done with it; a product is free where it is added to something."""

    def __init__(self, counted: _Counted) -> None:
        self._counted = counted

    def __add__(self, other: _Counting) -> _Counting:
        self._counted.operations += 1
        return _Counting(self._counted)

    __sub__ = __add__

    def __mul__(self, factor: float) -> _Counting:
        return _Counting(self._counted)
