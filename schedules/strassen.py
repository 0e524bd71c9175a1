"""Strassen's algorithm: the products of matrices cut into quadrants, 7 a level where the definition has 8.

    C = A B      product p = (sum of signed quadrants of A) (sum of signed quadrants of B), added to quadrants of C

A and C are cut by rows, B and C by columns, A by columns as B by rows; L levels cut 2^L by 2^L and take 7^L products
instead of 8^L. Two forms: Strassen's own (Numer. Math. 13, 1969) has the fewest terms, so it is the one for products
that are added to the output one by one (Huang, Smith, Henry, van de Geijn, SC16). Winograd's has fewer additions
where sums are shared; in the order below all but three of seven products go on from what the one before has left in
the registers, so that a kernel which computes them in turn stores 7 sums a level and loads 3, not 12 and 8.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

UNIT_ROUNDOFF = 2.0**-24
MOST_LEVELS = 2
QUADRANTS = 4  # of a level: (0, 0), (0, 1), (1, 0), (1, 1) by row and column
PRODUCTS = 7  # of a level
Signs = tuple[int, ...]


@dataclass(frozen=True)
class Form:
    """One level: for each product the signs of A's quadrants, of B's, and with which signs C's quadrants have it.

    growth, order: of the error's bound, see `error_bound`.
    """

    inputs: tuple[Signs, ...]
    weights: tuple[Signs, ...]
    outputs: tuple[Signs, ...]
    growth: int
    order: int

    @functools.cached_property
    def amplification(self) -> float:
        """How much larger than of direct sums errors are, for independent operands of equal variance.

        A product's error goes with the product: with the number of terms of both its factors. Of a direct sum two
        products of single quadrants are in each quadrant of C.
        """
        terms = [sum(map(abs, a)) * sum(map(abs, b)) for a, b in zip(self.inputs, self.weights)]
        sums = [sum(abs(out[q]) * n for out, n in zip(self.outputs, terms)) for q in range(QUADRANTS)]
        return math.sqrt(max(sums) / 2)


STRASSEN = Form(
    inputs=((1, 0, 0, 1), (0, 0, 1, 1), (1, 0, 0, 0), (0, 0, 0, 1), (1, 1, 0, 0), (-1, 0, 1, 0), (0, 1, 0, -1)),
    weights=((1, 0, 0, 1), (1, 0, 0, 0), (0, 1, 0, -1), (-1, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0), (0, 0, 1, 1)),
    outputs=((1, 0, 0, 1), (0, 0, 1, -1), (0, 1, 0, 1), (1, 0, 1, 0), (-1, 1, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0)),
    growth=12,
    order=5,
)

# In the order of UPDATES. The weights of the fifth have their sign turned round, so that outputs are added to alone.
WINOGRAD = Form(
    inputs=((1, 0, 0, 0), (0, 1, 0, 0), (-1, 0, 1, 1), (1, 0, -1, 0), (0, 0, 0, 1), (0, 0, 1, 1), (1, 1, -1, -1)),
    weights=((1, 0, 0, 0), (0, 0, 1, 0), (1, -1, 0, 1), (0, -1, 0, 1), (-1, 1, 1, -1), (-1, 1, 0, 0), (0, 0, 0, 1)),
    outputs=((1, 1, 1, 1), (1, 0, 0, 0), (0, 1, 1, 1), (0, 0, 1, 1), (0, 0, 1, 0), (0, 1, 0, 1), (0, 1, 0, 0)),
    growth=18,
    order=6,
)


@dataclass(frozen=True)
class Update:
    """C's quadrant `target` = its quadrant `source`, if any, + the product. `last`: it is complete then."""

    source: int | None
    target: int
    last: bool = False


UPDATES: tuple[tuple[Update, ...], ...] = (
    (Update(None, 1),),
    (Update(1, 0, last=True),),
    (Update(1, 1),),
    (Update(1, 3),),
    (Update(3, 2, last=True),),
    (Update(3, 3, last=True), Update(1, 1)),
    (Update(1, 1, last=True),),
)
"""How Winograd's form makes C with each sum stored once: for each product, in turn, what it is added to."""


@dataclass(frozen=True)
class Product:
    """One product of all levels: pairs of (sign, (row, column)), of quadrants in grids of 2^levels by 2^levels."""

    inputs: tuple[tuple[int, tuple[int, int]], ...]
    weights: tuple[tuple[int, tuple[int, int]], ...]
    outputs: tuple[tuple[int, tuple[int, int]], ...]


@functools.cache
def products(levels: int, form: Form = STRASSEN) -> tuple[Product, ...]:
    """The 7^levels products, by Kronecker product.

    Raises:
        ValueError: levels is not 1 or 2.
    """
    if not 1 <= levels <= MOST_LEVELS:
        raise ValueError(f"levels is {levels}; allowed: 1 to {MOST_LEVELS}")
    tables = (form.inputs, form.weights, form.outputs)
    chosen = itertools.product(range(PRODUCTS), repeat=levels)
    return tuple(Product(*(_kronecker([table[p] for p in ps]) for table in tables)) for ps in chosen)


def error_bound(depth: int, levels: int, form: Form = STRASSEN) -> float:
    """The largest max |C - exact| / (max |A| max |B|), to first order, of square matrices of `depth` rows.

    Higham, Accuracy and Stability of Numerical Algorithms (2002), theorems 23.2 and 23.3: with n = 2^levels n0, whose
    products are summed directly, (growth^levels (n0^2 + order n0) - order n) u. A direct sum has n^2 u: so each level
    multiplies the bound by 3 (Strassen) or 4.5 (Winograd), and errors of independent operands by 2.4 or 3.
    """
    cut = depth / 2**levels
    return UNIT_ROUNDOFF * (form.growth**levels * (cut * cut + form.order * cut) - form.order * depth)


def expected_error(depth: int, levels: int) -> float:
    """max |C - exact| / max |C| to expect of Winograd's form, for independent operands of equal variance."""
    return UNIT_ROUNDOFF * WINOGRAD.amplification**levels * (2.0 + 0.4 * math.sqrt(depth / 2**levels))


def input_sums(quadrants: Sequence[Any], bind: Callable[[Any], Any]) -> list[Any]:
    """Winograd's seven sums of four quadrants of A, in the order of the products; `bind` names what is used again."""
    a11, a12, a21, a22 = quadrants
    below = bind(a21 + a22)
    rest = bind(below - a11)
    return [a11, a12, rest, a11 - a21, a22, below, a12 - rest]


def _kronecker(signs: Sequence[Signs]) -> tuple[tuple[int, tuple[int, int]], ...]:
    """Terms of nested quadrants, the outermost level first, without those of sign 0."""
    terms = []
    for places in itertools.product(range(QUADRANTS), repeat=len(signs)):
        sign = math.prod(of_level[place] for of_level, place in zip(signs, places))
        row = column = 0
        for place in places:
            row, column = 2 * row + place // 2, 2 * column + place % 2
        if sign:
            terms.append((sign, (row, column)))
    return tuple(terms)
