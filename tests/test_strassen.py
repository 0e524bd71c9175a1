"""Strassen's products: that they multiply, exactly; what they cost; and that rounding stays below its bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from convtune.schedules.strassen import (
    PRODUCTS,
    STRASSEN,
    UPDATES,
    WINOGRAD,
    Form,
    Product,
    error_bound,
    expected_error,
    input_sums,
    products,
)

FORMS = pytest.mark.parametrize("form", [STRASSEN, WINOGRAD], ids=["strassen", "winograd"])
LEVELS = pytest.mark.parametrize("levels", [1, 2])


def cut(matrix: Any, row: int, column: int, parts: int) -> Any:
    rows, columns = matrix.shape[0] // parts, matrix.shape[1] // parts
    return matrix[row * rows : (row + 1) * rows, column * columns : (column + 1) * columns]


def multiplied(of: tuple[Product, ...], a: Any, b: Any, parts: int) -> Any:
    """A B by the records."""
    c = np.zeros((a.shape[0], b.shape[1]), a.dtype)
    for product in of:
        left = sum(sign * cut(a, *place, parts) for sign, place in product.inputs)
        right = sum(sign * cut(b, *place, parts) for sign, place in product.weights)
        made = left @ right
        for sign, place in product.outputs:
            cut(c, *place, parts)[...] += sign * made
    return c


@FORMS
@LEVELS
def test_the_products_multiply(levels: int, form: Form) -> None:
    rng, parts = np.random.default_rng(levels), 2**levels
    a = rng.integers(-99, 99, (3 * parts, 5 * parts))
    b = rng.integers(-99, 99, (5 * parts, 2 * parts))
    assert len(products(levels, form)) == PRODUCTS**levels
    assert np.array_equal(multiplied(products(levels, form), a, b, parts), a @ b)


@pytest.mark.parametrize("levels", [0, 3])
def test_other_levels_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match="allowed: 1 to 2"):
        products(levels)


@pytest.mark.parametrize(("form", "terms"), [(STRASSEN, 12), (WINOGRAD, 14)], ids=["strassen", "winograd"])
def test_terms_of_each_form(form: Form, terms: int) -> None:
    for table in (form.inputs, form.weights, form.outputs):
        assert sum(abs(sign) for signs in table for sign in signs) == terms


def test_updates_in_turn_multiply() -> None:
    """What a kernel does: each product goes to slots that hold sums of earlier ones; complete where it says `last`."""
    rng = np.random.default_rng(0)
    a, b = rng.integers(-99, 99, (6, 4)), rng.integers(-99, 99, (4, 10))
    quadrants = [(row, column) for row in (0, 1) for column in (0, 1)]
    slots: list[Any] = [None] * 4
    complete: dict[int, Any] = {}
    for left, right, updates in zip(WINOGRAD.inputs, WINOGRAD.weights, UPDATES):
        made = sum(s * cut(a, *place, 2) for s, place in zip(left, quadrants)) @ sum(
            s * cut(b, *place, 2) for s, place in zip(right, quadrants)
        )
        for update in updates:
            assert update.target not in complete
            slots[update.target] = made if update.source is None else slots[update.source] + made
            if update.last:
                complete[update.target] = slots[update.target]
    for number, place in enumerate(quadrants):
        assert np.array_equal(complete[number], cut(a @ b, *place, 2))


def test_input_sums_are_the_signs() -> None:
    rng = np.random.default_rng(0)
    given = [int(n) for n in rng.integers(-99, 99, 4)]
    wanted = [sum(s * n for s, n in zip(signs, given)) for signs in WINOGRAD.inputs]
    assert input_sums(given, lambda value: value) == wanted


@FORMS
@LEVELS
def test_rounding_stays_below_its_bound(levels: int, form: Form) -> None:
    rng, n = np.random.default_rng(levels), 128
    a, b = (rng.standard_normal((n, n)).astype(np.float32) for _ in range(2))
    error = np.abs(multiplied(products(levels, form), a, b, 2**levels) - a.astype(np.float64) @ b).max()
    assert 0 < error <= error_bound(n, levels, form) * np.abs(a).max() * np.abs(b).max()


@LEVELS
def test_the_expected_error_is_about_what_happens(levels: int) -> None:
    """Of sums that are added one after the other, as kernels do; rather above than below."""
    rng, n, parts = np.random.default_rng(levels), 256, 2**levels
    a, b = rng.standard_normal((16, n)).astype(np.float32), rng.standard_normal((n, 64)).astype(np.float32)
    made = multiplied(products(levels, WINOGRAD), a.view(InTurn), b, parts)
    exact = a.astype(np.float64) @ b
    error = np.abs(made - exact).max() / np.abs(exact).max()
    assert 0.2 < error / expected_error(n, levels) < 1.5


class InTurn(np.ndarray):
    """Multiplies by adding one product after the other."""

    def __matmul__(self, other: Any) -> Any:
        total = np.zeros((self.shape[0], other.shape[1]), np.float32)
        for k in range(self.shape[1]):
            total += np.asarray(self[:, k : k + 1]) * np.asarray(other[k : k + 1])
        return total
