"""Looks at large arrays piece by piece: of whole ones, each step of a comparison would be another array as large."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

PIECE = 1 << 17  # elements: as float64 1 MiB, which stays in the cache

Array = NDArray[Any]


@dataclass(frozen=True)
class Found:
    """How many elements, and the flat index of the first; where there is none, of none."""

    count: int
    first: int


def find(test: Callable[..., NDArray[np.bool_]], *arrays: Array) -> Found:
    """The elements of C-contiguous arrays of one size for which the test, given a flat piece of each, is true."""
    count, first = 0, 0
    for start, piece in _pieces(arrays):
        hits = test(*piece)
        if not count and hits.any():
            first = start + int(hits.argmax())
        count += int(np.count_nonzero(hits))
    return Found(count, first)


def largest(function: Callable[..., Array], *arrays: Array) -> float:
    """The largest value of an elementwise function of such arrays; NaN if there is one."""
    return float(np.max([function(*piece).max() for _, piece in _pieces(arrays)]))


def _pieces(arrays: tuple[Array, ...]) -> Iterator[tuple[int, list[Array]]]:
    flat = [array.reshape(-1) for array in arrays]
    for start in range(0, flat[0].size, PIECE):
        yield start, [array[start : start + PIECE] for array in flat]
