"""A convolution's spatial dimensions as three axes: what an output reads along each; views with as few as needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from convtune.expression import cube

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


@dataclass(frozen=True)
class Axis:
    """One dimension: output o reads input o * stride - before + tap * dilation where that is in [0, size)."""

    size: int
    out: int
    taps: int
    stride: int
    dilation: int
    before: int

    @property
    def span(self) -> int:
        """Inputs from an output's first tap to its last."""
        return (self.taps - 1) * self.dilation + 1

    @property
    def reach(self) -> int:
        """Inputs from the first output's first tap to the last one's last, with the zeros around."""
        return (self.out - 1) * self.stride + self.span

    @property
    def read(self) -> int:
        """Inputs from the first one to the last of these, without zeros."""
        return max(0, min(self.size, self.reach - self.before))

    @property
    def trivial(self) -> bool:
        """Whether an output reads the input at its own place only."""
        return (self.taps, self.stride, self.before) == (1, 1, 0) and self.out == self.size

    def first(self, out: Any) -> Any:
        """The input position of an output's tap 0."""
        return out * self.stride - self.before

    def valid(self, out: int) -> tuple[int, ...]:
        """The taps of an output that read inputs."""
        return tuple(t for t in range(self.taps) if 0 <= self.first(out) + t * self.dilation < self.size)

    @property
    def all_valid(self) -> int:
        """Taps that read inputs, over all outputs."""
        return _all_valid(self)


@lru_cache(maxsize=256)
def _all_valid(axis: Axis) -> int:
    return sum(len(axis.valid(out)) for out in range(axis.out))


@dataclass(frozen=True)
class View:
    """The convolution with as few axes as it needs: images, depth, rows, columns.

    Depth that no tap spans is part of the images; of a kernel that spans depth alone, depth is the rows and a plane's
    rows and columns are the columns.
    """

    batch: int
    depth: Axis
    rows: Axis
    columns: Axis

    @property
    def axes(self) -> tuple[Axis, Axis, Axis]:
        return self.depth, self.rows, self.columns


@lru_cache(maxsize=256)
def axes_of(spec: ConvSpec) -> tuple[Axis, Axis, Axis]:
    """Depth, rows and columns as the spec has them."""
    sizes, outs, taps, strides, dilations = map(
        cube, (spec.in_size, spec.out_size, spec.kernel, spec.stride, spec.dilation)
    )
    befores = cube([before for before, _ in spec.padding], 0)
    depth, rows, columns = (Axis(*of_axis) for of_axis in zip(sizes, outs, taps, strides, dilations, befores))
    return depth, rows, columns


@lru_cache(maxsize=256)
def view_of(spec: ConvSpec) -> View:
    depth, rows, columns = axes_of(spec)
    none = Axis(1, 1, 1, 1, 1, 0)
    if rows.trivial and columns.trivial:
        plane = rows.size * columns.size
        return View(spec.batch, none, depth, Axis(plane, plane, 1, 1, 1, 0))
    if depth.trivial:
        return View(spec.batch * depth.size, none, rows, columns)
    return View(spec.batch, depth, rows, columns)


def place(spec: ConvSpec, n: Any, position: Sequence[Any], channel: Any, sizes: Sequence[int]) -> list[Any]:
    """Where an element of `view_of(spec)` is in an array with these spatial sizes and the channels last."""
    depth, rows, columns = axes_of(spec)
    d, h, w = position
    if rows.trivial and columns.trivial:
        width = cube(sizes)[2]
        d, h, w = h, w // width, w % width
    elif depth.trivial and depth.size > 1:
        n, d = n // depth.size, n % depth.size
    return [n, *(d, h, w)[3 - spec.rank :], channel]
