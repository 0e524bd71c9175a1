"""Sizes of products by Strassen's algorithm in Winograd's form, and the steps that these take.

Strassen (Numer. Math. 13, 1969) multiplies 2 x 2 blocks with seven products in place of eight; Winograd's form has the
fewest additions (Higham, Accuracy and Stability of Numerical Algorithms, 23.1). With X in blocks of positions x input
channels and W of input x output channels, each step below adds a product to the sums that registers hold.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from convtune.schedules.channel_blocks import ChannelBlocks
from convtune.schedules.one_row import reads_own_place
from convtune.schedules.tiling import ceil_div, spread

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

PRODUCTS = 7
X_BLOCKS = "x11", "x12", "x21", "x22"
X_SUMS = {"s1": (0, 0, 1, 1), "s2": (-1, 0, 1, 1), "s3": (1, 0, -1, 0), "s4": (1, 1, -1, -1)}
"""Of the blocks of X."""
W_SUMS = (
    (1, 0, 0, 0),
    (0, 0, 1, 0),
    (1, -1, 0, 1),
    (-1, 1, 0, 0),
    (0, 0, 0, 1),
    (0, -1, 0, 1),
    (-1, 1, 1, -1),
)
"""Of the blocks 11, 12, 21 and 22 of W, for each step."""


@dataclass(frozen=True)
class Step:
    """sums = `begin` + left times the step's sum of W. begin: a kept value, 0, or what the sums are.

    Then y block `with_kept` = sums + a kept value, sums += the kept value `add`, and the sums are kept as `keep` or are
    the block `y`.
    """

    left: str
    begin: str = "sums"
    keep: str = ""
    y: str = ""
    with_kept: tuple[str, str] = ("", "")
    add: str = ""

    @property
    def written(self) -> str:
        """The block of y that the step completes, or none."""
        return self.y or self.with_kept[0]


STEPS = (
    Step("x11", begin="0", keep="p1"),
    Step("x12", y="11"),
    Step("s2", begin="p1", keep="u2"),
    Step("s1", keep="u4"),
    Step("s4", y="12"),
    Step("s3", begin="0", with_kept=("22", "u4"), add="u2"),
    Step("x22", y="21"),
)
KEPT = "p1", "u2", "u4"


@dataclass(frozen=True)
class OuterStep:
    """A step of the outer one of two levels, whose sums are in memory from one step to the next.

    sums = the kept value `begin` + left times the step's sum of W. y block `written` = sums + the kept value `extra`,
    and kept as `keep` are the sums, + the kept value `keep` where `adds`. An empty name is zero, or nothing.
    """

    left: str
    begin: str
    keep: str
    adds: bool
    written: str
    extra: str

    @property
    def kind(self) -> tuple[bool, ...]:
        """Which of these it has: steps of one kind share their code."""
        return bool(self.begin), bool(self.keep), self.adds, bool(self.written), bool(self.extra)


def _outer_steps() -> tuple[OuterStep, ...]:
    steps: list[OuterStep] = []
    for step in STEPS:
        begin = steps[-1].keep if step.begin == "sums" else step.begin.strip("0")
        keep = step.keep or step.add  # sums that a kept value is added to take its place
        steps.append(OuterStep(step.left, begin, keep, bool(step.add), step.written, step.with_kept[1]))
    return tuple(steps)


OUTER_STEPS = _outer_steps()
STAGED = "y"
"""Sums on their way to an output, for what cannot be written out for each of them."""


class Factors(ABC):
    """Of a plan: what buffers have. copies: whether V has blocks of X as well as sums. staged: whether outputs pass
    through a buffer. past: whether they are stored past the caches. vectors: of a row of a register tile."""

    copies: bool
    staged: bool
    past: bool = False
    vectors: int
    lanes: int

    @property
    @abstractmethod
    def v_shape(self) -> tuple[int, ...]:
        """Of the factors that are sums or copies."""

    @property
    @abstractmethod
    def m_shape(self) -> tuple[int, ...]:
        """Of the kept values."""

    @property
    def stored(self) -> tuple[str, ...]:
        """The factors that V has."""
        copied = sorted({step.left for step in STEPS} - set(X_SUMS)) if self.copies else []
        return *X_SUMS, *copied

    @property
    def kept(self) -> tuple[str, ...]:
        return (*KEPT, STAGED) if self.staged else KEPT


@dataclass(frozen=True)
class Plan(Factors, ChannelBlocks):
    """positions: rows of X. depth: input channels. taps: of the kernel, each a run of `depth` in a row of X.

    out_channels: columns of W, of a transposed convolution those of all phases. channels: of a half of these, in blocks
    of `vectors` vectors. columns: positions of a half of a tile, so a tile has twice as many. tile_block: tiles of a
    task. parts: of the blocks of channels, each a task's. copies: whether V has blocks of X as well as sums. staged:
    whether outputs pass through a buffer. weights_ahead: whether U is fetched ahead. past: whether outputs are stored
    past the caches. levels: of two, what is said of halves is of quarters, the halves of halves.
    """

    positions: int
    depth: int
    taps: int
    out_channels: int
    columns: int
    vectors: int
    lanes: int
    tile_block: int
    parts: int
    copies: bool
    staged: bool
    weights_ahead: bool = False
    past: bool = False
    levels: int = 1

    @property
    def split(self) -> int:
        """Into how many halves of halves a level's halves are."""
        return 1 << self.levels

    @property
    def products(self) -> int:
        """Of blocks, in all levels."""
        return prod([PRODUCTS] * self.levels)

    @property
    def channels(self) -> int:  # type: ignore[override]
        """Of the first half, whole vectors; the last one may lack some lanes of the last vector."""
        return ceil_div(ceil_div(self.out_channels, self.split), self.lanes) * self.lanes

    @property
    def missing(self) -> int:
        """Output channels that the last half lacks."""
        return self.split * self.channels - self.out_channels

    @property
    def half(self) -> int:
        """Input channels of the first half; the last one may have less."""
        return ceil_div(self.depth, self.split)

    @property
    def whole(self) -> int:
        """Input channels that each half has."""
        return self.depth - (self.split - 1) * self.half

    @property
    def steps(self) -> int:
        """Of the reduction of a product."""
        return self.taps * self.half

    @property
    def row(self) -> int:
        """Elements from a row of V to the next."""
        return spread(self.steps)

    @property
    def tile(self) -> int:
        """Positions of a tile."""
        return self.split * self.columns

    @property
    def tiles(self) -> int:
        return ceil_div(self.positions, self.tile)

    @property
    def tile_blocks(self) -> int:
        return ceil_div(self.tiles, self.tile_block)

    @property
    def even(self) -> bool:
        """Whether all blocks of channels are alike, in both halves."""
        return self.missing == 0 and self.channels % self.block == 0

    @property
    def v_shape(self) -> tuple[int, int, int]:
        """(factor, tile and column, channel)."""
        return len(self.stored), self.tile_block * self.columns, self.row

    @property
    def u_shape(self) -> tuple[int, int, int, int]:
        """(block, step, channel, output channel of the block)."""
        return self.blocks, self.products, self.steps, self.block

    @property
    def m_shape(self) -> tuple[int, int, int]:
        """(kept value, column and vector, lane)."""
        return len(self.kept), self.columns * self.vectors, self.lanes

    @property
    def outer_shape(self) -> tuple[int, int, int, int, int, int]:
        """Of what the outer level keeps: (kept value, tile, block of channels, quarter, column and vector, lane)."""
        blocks = ceil_div(self.blocks, self.parts)
        return len(KEPT), self.tile_block, blocks, len(X_BLOCKS), self.columns * self.vectors, self.lanes


def of_patches(spec: ConvSpec) -> bool:
    """Whether outputs read patches of the input that do not overlap, and nothing beside it; or inputs write them."""
    if any(map(any, spec.padding)) or any(d > 1 and k > 1 for k, d in zip(spec.kernel, spec.dilation)):
        return False
    if spec.variant == "transposed":
        return spec.kernel == spec.stride and not any(spec.output_padding or ())
    return spec.variant in ("conv", "pointwise") and all(k <= s for k, s in zip(spec.kernel, spec.stride))


def as_it_lies(spec: ConvSpec) -> bool:
    """Whether the rows of X are the positions of x as they lie in memory."""
    return spec.variant == "transposed" or reads_own_place(spec)
