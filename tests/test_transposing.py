"""Squares of vectors: that their columns are what is asked for, and by which shuffles."""

from __future__ import annotations

from typing import Any

import pytest
from convtune.schedules.transposing import PIECE, transposed

SHAPES = [(2, 2), (2, 8), (4, 4), (4, 8), (8, 4), (8, 8), (8, 16), (16, 8), (16, 16)]


@pytest.mark.parametrize("shape", SHAPES)
def test_columns(shape: tuple[int, int]) -> None:
    rows, columns = shape
    read, bind = _Elements(), _Bound()
    found = [bind.values(read, vector) for vector in transposed(shape, read, bind)]
    assert found == [[(row, column) for row in range(rows)] for column in range(columns)]


@pytest.mark.parametrize("shape", SHAPES)
def test_shuffles_stay_within_pieces(shape: tuple[int, int]) -> None:
    """Between pieces x86 has but permutes; loads put them in place."""
    from tvm import tirx

    rows, columns = shape
    read, bind = _Elements(), _Bound()
    list(transposed(shape, read, bind))
    of_vectors = [e for e in bind.bound if isinstance(e, tirx.Shuffle) and not any(v in read for v in e.vectors)]
    for shuffle in of_vectors:
        assert all(int(i) % rows // PIECE == lane // PIECE for lane, i in enumerate(shuffle.indices))
    stages = min(PIECE, rows, columns).bit_length() - 1
    if rows > PIECE:
        assert len(of_vectors) == stages * columns


class _Elements:
    """Loads, as variables that stand for the elements."""

    def __init__(self) -> None:
        self.loads: list[tuple[Any, list[tuple[int, int]]]] = []

    def __call__(self, row: int, column: int, width: int) -> Any:
        from tvm import tirx

        variable = tirx.Var("load", f"float32x{width}")
        self.loads.append((variable, [(row, column + i) for i in range(width)]))
        return variable

    def __contains__(self, value: Any) -> bool:
        return any(value.same_as(variable) for variable, _ in self.loads)

    def elements(self, value: Any) -> list[tuple[int, int]]:
        return next(found for variable, found in self.loads if value.same_as(variable))


class _Bound:
    """Keeps what is bound, without names."""

    def __init__(self) -> None:
        self.bound: list[Any] = []

    def __call__(self, value: Any) -> Any:
        self.bound.append(value)
        return value

    def values(self, read: _Elements, value: Any) -> list[tuple[int, int]]:
        from tvm import tirx

        if not isinstance(value, tirx.Shuffle):
            return read.elements(value)
        given = [element for vector in value.vectors for element in self.values(read, vector)]
        return [given[int(i)] for i in value.indices]
