"""What one warp's access to memory costs: sectors and lines of global memory, wavefronts of shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

SECTOR_BYTES = 32
LINE_BYTES = 128
BANKS = 32
WORD_BYTES = 4
WIDEST_BYTES = 16  # of one thread's load or store


def distinct(rows: NDArray[Any], active: NDArray[np.bool_]) -> NDArray[np.int64]:
    """How many different numbers the active entries of each row have. rows: (n, lanes)."""
    marked = np.where(active, rows, np.iinfo(np.int64).min)
    marked.sort(axis=1)
    steps = (marked[:, 1:] != marked[:, :-1]).sum(axis=1) + 1
    return np.asarray(steps - ~active.all(axis=1), dtype=np.int64)


def sectors(addresses: NDArray[Any], size: int, active: NDArray[np.bool_]) -> tuple[float, float]:
    """Sectors and lines of a request, on average over the rows that have an active lane.

    addresses: (n, lanes) in bytes. size: bytes of each lane. 0 where no lane is ever active.
    """
    used = active.any(axis=1)
    if not used.any():
        return 0.0, 0.0
    first, mask = addresses[used], active[used]
    found = distinct(first // SECTOR_BYTES, mask)
    if size > SECTOR_BYTES or (first % SECTOR_BYTES + size > SECTOR_BYTES).any():
        both = np.concatenate([first // SECTOR_BYTES, (first + size - 1) // SECTOR_BYTES], axis=1)
        found = distinct(both, np.concatenate([mask, mask], axis=1))
    return float(found.mean()), float(distinct(first // LINE_BYTES, mask).mean())


def wavefronts(addresses: NDArray[Any], size: int, active: NDArray[np.bool_]) -> float:
    """Passes through shared memory that a request takes, on average over the rows with an active lane.

    Threads with 8 bytes each go by halves of a warp, with 16 by quarters; within a pass the banks, 4 bytes wide, give
    one word each, to as many threads as ask for it.
    """
    used = active.any(axis=1)
    if not used.any():
        return 0.0
    words = max(size // WORD_BYTES, 1)
    group = 32 // words
    first, mask = addresses[used] // WORD_BYTES, active[used]
    rows = np.arange(len(first))[:, None]
    total = np.zeros(len(first))
    for start in range(0, 32, group):
        part = first[:, start : start + group, None] + np.arange(words)
        asked = np.broadcast_to(mask[:, start : start + group, None], part.shape).reshape(len(first), -1)
        total += _deepest_bank(part.reshape(len(first), -1), asked, rows)
    return float(total.mean())


def _deepest_bank(words: NDArray[Any], asked: NDArray[np.bool_], rows: NDArray[Any]) -> NDArray[np.int64]:
    """(n,) different words that the busiest bank gives."""
    marked = np.where(asked, words, -1)
    marked.sort(axis=1)
    fresh = np.ones(marked.shape, dtype=bool)
    fresh[:, 1:] = marked[:, 1:] != marked[:, :-1]
    fresh &= marked >= 0
    bank = np.broadcast_to(rows * BANKS, marked.shape) + marked % BANKS
    given = np.bincount(bank[fresh], minlength=len(words) * BANKS).reshape(len(words), BANKS)
    return np.asarray(given.max(axis=1))


def merged(elements: Sequence[tuple[int, int]], size: int, alignment: int) -> list[tuple[int, int]]:
    """Neighbouring accesses as nvcc joins them: (offset, count) in elements of `size` bytes, at most 16 bytes each.

    alignment: bytes that all addresses without their offset are a multiple of. nvcc joins what it can prove aligned.
    """
    joined: list[tuple[int, int]] = []
    for offset, count in sorted(elements):
        if joined:
            before, width = joined[-1]
            wider = (width + count) * size
            adjacent = before + width == offset
            if adjacent and wider in (4, 8, WIDEST_BYTES) and alignment % wider == 0 and before * size % wider == 0:
                joined[-1] = (before, width + count)
                continue
        joined.append((offset, count))
    return joined if len(joined) == len(elements) else merged(joined, size, alignment)
