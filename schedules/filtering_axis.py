"""One dimension of a convolution as minimal filtering cuts it: tiles of outputs, parts of the taps, phases.

A filtered dimension's taps are summed in parts of r, each filtered with the same points, so that their products are
summed before the outputs are made:

    stride 1     y(o) = sum over parts p of F(m, r) of taps p r + j at inputs o + (p r + j) dilation - before
    stride s     s parts of ceil(taps / s) taps (polyphase):  taps p + j s at inputs (o + j) s + p - before
    transposed   outputs u s + a - cut for phases a are so many filters of ceil(kernel / s) taps of the same inputs;
                 or outputs u s + b are, at inputs that begin one later for the last `turn` phases

What lacks its last tap has nothing at the point at infinity: these products are left out. Where a row, or what a
dilated convolution has of it for a residue, has fewer inputs than taps, all its outputs are one tile, and inputs and
taps change places: F(m, inputs) (`Exchanged`).
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Any

from convtune.schedules.filtering_points import Exchanged, Filtering, exchanged, filtering, zero_is_first
from convtune.schedules.tiling import ceil_div

from convtune.expression import Geometry, cube

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Dims = tuple[int, ...]
MOST_ALPHA = 8  # with more than three taps a part


@dataclass(frozen=True)
class TiledAxis:
    """One of three spatial dimensions: cut into tiles of m outputs a phase; or direct, each tap a part.

    Outputs of a filtered dimension are residue + dilation * (m * tile + i): a dilated convolution is `dilation`
    interleaved dense ones.
    """

    m: int
    taps: int  # of a phase
    stride: int
    dilation: int
    before: int
    size: int
    out: int
    phases: int = 1
    cut: int = 0  # outputs of the first u that the padding takes away
    short: int = 0  # phases, the first ones, that lack the last tap
    turn: int = 0  # phases, the last ones, whose windows of inputs begin one later; there is no cut then
    unmet: tuple[int, int] = (0, 0)  # taps of the kernel before and after these, by which no output meets an input

    @functools.cached_property
    def exchanged(self) -> bool:
        """Whether inputs and taps change places."""
        if self.m == 1 or self.stride > 1 or self.phases > 1 or self.m != ceil_div(self.units, self.residues):
            return False
        fewer = len(self.met) < self.taps or (len(self.met) == self.taps and self._reaching < self.residues)
        return fewer and 0 < len(self.met) <= self.most_alpha + 1 - self.m

    @functools.cached_property
    def met(self) -> range:
        """Of the inputs that the only tiles of all residues read, those that are not on padding in all of them."""
        first = ceil_div(self.before - self.residues + 1, self.dilation)
        end = (self.size - 1 + self.before) // self.dilation + 1
        return range(max(0, first), min(self.m + self.taps - 1, end))

    def cut_into(self, m: int, apart: bool = False) -> TiledAxis:
        """With tiles of m outputs. apart: each phase counts from its own first output, if that saves tiles.

        Where padding takes outputs away, phases that are counted together have one u more than each of them at times:
        17 for 16 of 4 taps with stride 2, which are 5 tiles of 4.
        """
        together = dataclasses.replace(self, m=m)
        turned = dataclasses.replace(together, cut=0, turn=self.cut)
        return turned if apart and m > 1 and turned.tiles < together.tiles else together

    @property
    def most_alpha(self) -> int:
        """Points that a tile may have."""
        return max(MOST_ALPHA, self.m + 2)

    @functools.cached_property
    def parts(self) -> int:
        """Whose sum is taken one by one in the matrix products."""
        if self.m == 1:
            return self.taps
        if self.exchanged:
            return 1
        if self.stride > 1:
            return min(self.stride, self.taps)
        sizes = [r for r in range(2, self.taps + 1) if self.m + r - 1 <= self.most_alpha]
        choices = {ceil_div(self.taps, r): r for r in reversed(sizes)}
        return min(choices, key=lambda parts: (parts * (self.m + choices[parts] - 1), parts), default=1)

    @functools.cached_property
    def r(self) -> int:
        """Taps of a part."""
        return ceil_div(self.taps, self.parts)

    @functools.cached_property
    def filter(self) -> Filtering | Exchanged | None:
        if self.exchanged:
            return exchanged(self.m, len(self.met), self.taps, self.met.start, self.full < self.residues)
        return filtering(self.m, self.r) if self.m > 1 else None

    @functools.cached_property
    def inputs(self) -> int:
        """Of a tile."""
        return len(self.met) if self.exchanged else self.m + self.r - 1

    @functools.cached_property
    def alpha(self) -> int:
        """Points of a tile."""
        return self.m + self.inputs - 1 if self.exchanged else self.m + self.r - 1

    @property
    def windows(self) -> int:
        """How many windows of inputs, one apart, a tile has for its phases."""
        return 1 + (self.turn > 0)

    @functools.cached_property
    def units(self) -> int:
        """Outputs of a phase."""
        return ceil_div(self.out + self.cut, self.phases)

    @functools.cached_property
    def residues(self) -> int:
        return min(self.dilation, self.units) if self.m > 1 else 1

    @functools.cached_property
    def tiles(self) -> int:
        """Of a residue."""
        return ceil_div(ceil_div(self.units, self.residues), self.m)

    @functools.cached_property
    def step(self) -> int:
        """How far apart outputs of a tile are."""
        return self.dilation if self.m > 1 else 1

    @functools.cached_property
    def pitch(self) -> int:
        """How far apart inputs of a tile are."""
        return self.dilation * self.stride if self.m > 1 else 1

    @functools.cached_property
    def ragged(self) -> bool:
        """Whether there are tiles with outputs beyond the last one."""
        return self.residues * self.tiles * self.m * self.phases != self.out + self.cut

    @functools.cached_property
    def reach(self) -> tuple[int, int]:
        """The first and the last input position that tiles read, padding included."""
        last = self.input(self.residues - 1, self.tiles - 1, self.parts - 1) + (self.inputs - 1) * self.pitch
        return self.input(0, 0, 0), last + self.windows - 1

    @functools.cached_property
    def products(self) -> int:
        """Of an input channel and an output channel."""
        return self.residues * self.tiles * self.nonzero - 2 * (self.residues - self.full)

    @functools.cached_property
    def nonzero(self) -> int:
        """Elements of U, of an input channel and an output channel, that are not zero for a tap that is lacking."""
        lacking = sum(self.lacks(part, phase) for part in range(self.parts) for phase in range(self.phases))
        return self.alpha * self.parts * self.phases - lacking

    @functools.cached_property
    def full(self) -> int:
        """Residues that need all points; those after them need neither the first nor the last one."""
        return self._reaching if self.exchanged else self.residues

    @functools.cached_property
    def _reaching(self) -> int:
        """Residues, the first ones, whose only tile has its last output or its last input."""
        if not zero_is_first(self.m + len(self.met) - 2):
            return self.residues
        outputs = self.out - self.dilation * (self.m - 1)
        inputs = self.size + self.before - self.dilation * (self.met.stop - 1)
        return min(self.residues, max(1, outputs, inputs))

    @functools.cached_property
    def whole(self) -> int:
        """Parts that have all taps; those after them lack the last one, if not more."""
        if self.stride > 1 and self.m > 1:
            return self.taps - (self.r - 1) * self.parts
        return self.parts - (self.parts * self.r > self.taps)

    @property
    def lacking(self) -> bool:
        """Whether any part or phase lacks its last tap."""
        return self.whole < self.parts or self.short > 0

    def lacks(self, part: int, phase: int) -> bool:
        """Whether a part of a phase lacks its last tap."""
        return part >= self.whole or (part == self.parts - 1 and self.tapped(phase) < self.short)

    def tapped(self, phase: Any) -> Any:
        """A phase's number by its taps, of which it has every `phases`-th one."""
        return (phase + self.turn) % self.phases if self.turn else phase

    def window(self, phase: Any) -> Any:
        """Which of the windows a phase reads."""
        return (phase + self.turn) // self.phases if self.turn else 0

    def unit(self, residue: Any, tile: Any) -> Any:
        """The first output of a tile, in its phase."""
        return residue + self.dilation * self.m * tile if self.m > 1 else tile

    def input(self, residue: Any, tile: Any, part: Any) -> Any:
        """The first input of a tile, negative where that is padding."""
        if self.exchanged:
            return self.unit(residue, tile) + self.met.start * self.dilation - self.before
        apart = 1 if self.m > 1 and self.stride > 1 else self.dilation * self.r
        return self.unit(residue, tile) * self.stride + part * apart - self.before

    def output(self, unit: Any, phase: Any) -> Any:
        """Where an output of a phase is."""
        return unit * self.phases + phase - self.cut if self.phases > 1 else unit

    @functools.cached_property
    def fresh(self) -> tuple[int, int, int]:
        """The inputs of a tile that none before it has: how far from its first one, how many, how far apart."""
        if self.exchanged:
            return 0, self.inputs, self.pitch
        if self.m == 1:
            count = min(self.stride // gcd(self.stride, self.dilation), self.taps)
            return (self.taps - count) * self.dilation, count, self.dilation
        if self.stride > 1:
            return (self.inputs - self.m) * self.stride, self.m * self.stride, 1
        last = self.input(0, 0, self.parts - 1) - self.input(0, 0, 0)
        return last + (self.inputs - self.m) * self.pitch, self.m, self.pitch

    def inside(self, output: Any) -> list[Any]:
        """That it is one of the outputs; only what can fail."""
        return [output >= 0] * (self.cut > 0) + [output < self.out] * self.ragged


@functools.lru_cache(maxsize=1 << 12)
def tiled_axes(spec: ConvSpec, tiles: Dims, apart: bool = False) -> tuple[TiledAxis, TiledAxis, TiledAxis]:
    """The dimensions, cut into tiles of so many outputs. apart: phases have windows of their own if it saves tiles."""
    pads, sizes, outs = cube([before for before, _ in spec.padding], 0), cube(spec.in_size), cube(spec.out_size)
    if spec.variant == "transposed":
        fields = zip(cube(spec.kernel), cube(spec.stride), pads, sizes, outs)
        first, second, third = (_transposed(*field).cut_into(m, apart) for m, field in zip(tiles, fields))
        return first, second, third
    geometry = Geometry.of(spec)
    dense = zip(tiles, geometry.kernel, geometry.stride, geometry.dilation, pads, sizes, outs)
    first, second, third = (_inside(*field) for field in dense)
    return first, second, third


def _inside(m: int, kernel: int, stride: int, dilation: int, before: int, size: int, out: int) -> TiledAxis:
    """With the taps from the first to the last one that meet inputs: of one frame the middle one of three."""
    last = (out - 1) * stride - before
    met = [j for j in range(kernel) if last + j * dilation >= 0 and j * dilation - before < size] or [0]
    taps = met[-1] + 1 - met[0]
    unmet = (met[0], kernel - 1 - met[-1])
    return TiledAxis(m, taps, stride, dilation, before - met[0] * dilation, size, out, unmet=unmet)


def _transposed(kernel: int, stride: int, before: int, size: int, out: int) -> TiledAxis:
    """Output u * stride + b - before, kernel - stride <= b < kernel, reads the inputs u + j by the taps b - j * stride.

    Counted like this all phases of a u read the same inputs, and what a phase may lack is its last tap.
    """
    taps = ceil_div(kernel, stride)
    skipped = (kernel - 1 - before) // stride  # the first u is minus this: some of its outputs are not taken away
    cut = (skipped + 1) * stride - kernel + before
    return TiledAxis(1, taps, 1, 1, skipped, size, out, stride, cut, taps * stride - kernel)
