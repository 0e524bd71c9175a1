"""How many cache lines the accesses of a loop nest touch while some of its loops run and the others stand still."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import forms
from .forms import Arithmetic, Form, Term
from .nest import Access

LINE_BYTES = 64
MOST = 512
"""Separate stretches of memory that are looked at one by one; of more, the increase is taken to go on."""

Offsets = NDArray[np.int64]
Terms = tuple[tuple[Term, int], ...]


class Cover(NamedTuple):
    """Memory that is touched: `times` disjoint copies of stretches low to high, in bytes, high not included.

    fixed: terms of the address that stand still. lines: of all copies together. alignment: where in a line it starts.
    overlap: how often each byte is touched, on average.
    """

    fixed: Terms
    low: Offsets
    high: Offsets
    times: float
    lines: float
    alignment: int
    overlap: float


class _Move(NamedTuple):
    """Moves an access by multiples of `stride`, below `steps`, or by `shifts`, which are at least `gap` apart."""

    gap: int
    stride: int
    steps: int
    shifts: Offsets | None


def merged(low: Offsets, high: Offsets) -> tuple[Offsets, Offsets]:
    """Stretches in order; those with no whole line between them become one, which changes no count of lines."""
    order = np.argsort(low, kind="stable")
    low, high = low[order], np.maximum.accumulate(high[order])
    apart = low[1:] - high[:-1] >= LINE_BYTES
    return low[np.concatenate([[True], apart])], high[np.concatenate([apart, [True]])]


class Sweep:
    """Stretches of memory, moved by the values of one loop after the other."""

    def __init__(self, offsets: Sequence[int], width: int) -> None:
        low = np.unique(np.asarray(offsets, np.int64))
        self.low, self.high = merged(low, low + width)
        self.times = 1.0
        self.phase = LINE_BYTES  # all copies start at multiples of it, from the first

    def steps(self, stride: int, count: int) -> None:
        """Also moved by stride, 2 * stride … (count - 1) * stride."""
        if stride < 0:
            self.low, self.high = self.low + stride * (count - 1), self.high + stride * (count - 1)
            stride = -stride
        if len(self.low) == 1 and stride - (self.high[0] - self.low[0]) < LINE_BYTES:
            self.high = self.high + stride * (count - 1)
        else:
            self.moved(np.arange(count, dtype=np.int64) * stride, stride)

    def moved(self, shifts: Offsets, gap: int) -> None:
        """Also moved by each of the shifts, which are in order and at least `gap` apart."""
        span = int(self.high[-1] - self.low[0])
        if len(self.low) * len(shifts) > MOST and gap >= span:
            self.times *= len(shifts)
            self.phase = math.gcd(self.phase, *map(int, np.unique(np.diff(shifts))[:16]))
            return
        some = max(3, MOST // len(self.low))
        if len(shifts) <= some:
            self.low, self.high = self._spread(shifts)
            return
        # the stretches of some more shifts are as many as of the last one looked at
        before = _length(*self._spread(shifts[: some - some // 2]))
        low, high = self._spread(shifts[:some])
        now = _length(low, high)
        self.times *= (now + (len(shifts) - some) * (now - before) / (some // 2)) / now
        self.low, self.high = low, high

    def _spread(self, shifts: Offsets) -> tuple[Offsets, Offsets]:
        return merged((self.low + shifts[:, None]).reshape(-1), (self.high + shifts[:, None]).reshape(-1))

    def lines(self, alignment: int) -> float:
        """Lines touched, on average over where the stretches start: at the multiples of `alignment` in a line."""
        return lines(self.low, self.high, math.gcd(self.phase, alignment)) * self.times


def lines(low: Offsets, high: Offsets, alignment: int) -> float:
    """Lines of merged stretches, on average over the places in a line where memory may start."""
    starts = np.arange(0, LINE_BYTES, alignment)[:, None]
    first, last = (low + starts) // LINE_BYTES, (high - 1 + starts) // LINE_BYTES
    return float((last - first + 1).sum()) / len(starts)


def _length(low: Offsets, high: Offsets) -> float:
    return float((high - low).sum())


class Footprints:
    """Counts lines, of arrays that start at one."""

    def __init__(self, arithmetic: Arithmetic) -> None:
        self.arithmetic = arithmetic
        self.known: dict[tuple[Any, ...], Cover] = {}
        self.values: dict[tuple[Any, ...], Offsets] = {}

    def of(self, accesses: Iterable[Access], depth: int) -> dict[int, float]:
        """Lines by buffer that accesses touch while their loops from the `depth`th on run, and those of other threads.

        Where several accesses reach the same memory it counts once; never more than the whole buffer.
        """
        covers: dict[int, list[tuple[Cover, float]]] = defaultdict(list)
        sizes = {}
        for access in accesses:
            covers[access.buffer.key].append(self._cover(access, depth))
            sizes[access.buffer.key] = access.buffer.bytes * math.prod(access.buffer.shape)
        return {key: min(_union(found), -(-sizes[key] // LINE_BYTES)) for key, found in covers.items()}

    def _cover(self, access: Access, depth: int) -> tuple[Cover, float]:
        """What an access touches, and how likely."""
        free = frozenset([*(loop.key for loop in access.path[depth:]), *access.together])
        fixed: list[tuple[Term, int]] = []
        moving: list[tuple[Term, int]] = []
        for term, stride in access.terms:
            (moving if _loops(term) & free else fixed).append((term, stride))
        box = _box(access)
        depends: frozenset[int] = frozenset().union(*(_loops(term) for term, _ in moving))
        inside = tuple(sorted((loop, box[loop]) for loop in depends & free if loop in box))
        key = (tuple(fixed), tuple(moving), tuple(access.offsets), access.width, depends & free, inside)
        if key not in self.known:
            self.known[key] = self._swept(access, tuple(fixed), moving, free, box)
        share = math.prod((box[k][1] - box[k][0]) / self.arithmetic.extents[k] for k in box if k not in free)
        kept = 1.0  # what is touched several times is touched where a condition holds now and then
        for condition in access.conditions:
            if not condition.loops & free:
                share *= condition.share
            elif condition.loops & free & depends:
                kept *= condition.share
        return self.known[key], share * min(1.0, kept * self.known[key].overlap)

    def _swept(
        self, access: Access, fixed: Terms, moving: Sequence[tuple[Term, int]], free: frozenset[int], box: forms.Box
    ) -> Cover:
        moves, start = [], 0
        for cluster in _clusters(moving):
            term, stride = cluster[0]
            if len(cluster) == 1 and isinstance(term, int):
                first, end = box.get(term, (0, self.arithmetic.extents[term]))
                moves.append(_Move(abs(stride), stride, end - first, None))
                start += first * stride
            else:
                shifts = self._values(cluster, free, box)
                moves.append(_Move(int(np.diff(shifts).min()) if len(shifts) > 1 else 0, 0, len(shifts), shifts))
        sweep = Sweep([start + offset for offset in access.offsets], access.width)
        for move in sorted(moves, key=lambda move: move.gap):
            if move.shifts is None:
                sweep.steps(move.stride, move.steps)
            else:
                sweep.moved(move.shifts, move.gap)
        alignment = math.gcd(LINE_BYTES, *(stride for _, stride in fixed))
        touched = access.width * len(access.offsets) * math.prod(move.steps for move in moves)
        overlap = max(1.0, touched / (_length(sweep.low, sweep.high) * sweep.times))
        return Cover(fixed, sweep.low, sweep.high, sweep.times, sweep.lines(alignment), alignment, overlap)

    def _values(self, cluster: Sequence[tuple[Term, int]], free: frozenset[int], box: forms.Box) -> Offsets:
        """What some terms together amount to, each number once, where the loops that are not free are in the middle."""
        form = Form(0, tuple(cluster))
        loops = forms.loops(form)
        inside = {loop: box[loop] for loop in sorted(loops) if loop in box}
        key = form, loops & free, tuple(inside.items())
        if key not in self.values:
            known: dict[int, NDArray[Any]] = dict(self.arithmetic.grid(loops & free, box=inside))
            for loop in loops - free:
                known[loop] = np.asarray(sum(inside.get(loop, (0, self.arithmetic.extents[loop]))) // 2)
            self.values[key] = np.unique(self.arithmetic.evaluate(form, known).astype(np.int64))
        return self.values[key]


def _box(access: Access) -> forms.Box:
    """Where all conditions may hold; one value of what they never agree on."""
    box: dict[int, tuple[int, int]] = {}
    for condition in access.conditions:
        for loop, (first, end) in condition.box.items():
            least, most = box.get(loop, (first, end))
            least = max(least, first)
            box[loop] = least, max(least + 1, min(most, end))
    return box


def _loops(term: Term) -> frozenset[int]:
    return frozenset([term]) if isinstance(term, int) else forms.loops(Form(0, ((term, 1),)))


def _clusters(moving: Sequence[tuple[Term, int]]) -> Iterator[list[tuple[Term, int]]]:
    """Terms that have loops in common, together."""
    rest = list(moving)
    while rest:
        cluster, loops = [rest[0]], _loops(rest[0][0])
        rest = rest[1:]
        while near := [one for one in rest if _loops(one[0]) & loops]:
            cluster += near
            rest = [one for one in rest if one not in near]
            loops = loops.union(*(_loops(term) for term, _ in near))
        yield cluster


def _union(covers: list[tuple[Cover, float]]) -> float:
    """Lines of one buffer that several accesses touch."""
    by_place: dict[tuple[Any, ...], list[tuple[Cover, float]]] = defaultdict(list)
    for cover, share in covers:
        by_place[cover.fixed].append((cover, share))
    return sum(_at_one_place(found) for found in by_place.values())


def _at_one_place(covers: list[tuple[Cover, float]]) -> float:
    """Of addresses with the same fixed part: what overlaps counts once."""
    total = sum(cover.lines * share for cover, share in covers)
    if len(covers) == 1:
        return total
    once = [cover for cover, _ in covers if cover.times == 1]
    hulls = [(int(c.low[0]), int(c.high[-1]), c.lines) for c, _ in covers if c.times != 1]
    if once:
        low, high = merged(np.concatenate([c.low for c in once]), np.concatenate([c.high for c in once]))
        hulls.append((int(low[0]), int(high[-1]), lines(low, high, once[0].alignment)))
    found, largest, end = 0.0, 0.0, -math.inf
    for first, last, count in sorted(hulls):
        if first >= end:
            found, largest = found + largest, 0.0
        largest, end = max(largest, count), max(end, last)
    return min(total, found + largest)
