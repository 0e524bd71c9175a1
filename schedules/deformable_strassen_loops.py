"""The loops of Strassen's algorithm over what a deformable convolution samples: tables, samples and their sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.deformable_sampling import (
    AT_BORDER,
    FIRST,
    WEIGHTS,
    WORDS,
    at_border_value,
    entry_words,
    interpolated,
)
from convtune.schedules.ranges import named, part, ranged
from convtune.schedules.statements import (
    Binder,
    Expr,
    Stmt,
    allocated,
    as_row,
    loop,
    sequence,
    unflat,
    vectorized,
    when,
)
from convtune.schedules.strassen_loops import Kernel
from convtune.schedules.strassen_tile import Tile, factors
from convtune.schedules.written import Held, viewed

from convtune.expression import epilogue, widened
from convtune.spec import count
from convtune.variants.deformable import CORNERS

if TYPE_CHECKING:
    from convtune.schedules.deformable_strassen_plan import Plan

    from convtune.spec import ConvSpec

MASK = WORDS  # one more word of a table's entry
Stored = Callable[[Binder, Any, Any, list[Any]], None]
"""Stores vectors of samples, with their chunk's number and a lane."""


@dataclass(frozen=True)
class Sample:
    """A sampled position of one of the blocks of X. place: of its first neighbour's first channel in x, as a row."""

    place: Expr
    at_border: Expr
    weights: Sequence[Expr]
    mask: Expr | None

    def value(self, x: Callable[[Expr], Expr], row: int, column: int, inside: bool) -> Expr:
        """With x(an element), whose neighbours below and to the right are so far; inside: all neighbours are."""

        def interpolation(down: Expr, right: Expr) -> Expr:
            return interpolated(
                lambda dy, dx: x(self.place + dy * row + dx * column), self.weights.__getitem__, down, right
            )

        value = interpolation(1, 1) if inside else at_border_value(interpolation, self.at_border)
        return value if self.mask is None else self.mask * value


class Sampled(Kernel):
    """Writes the statements of a plan: `statement` is all of them."""

    plan: Plan

    def __init__(self, spec: ConvSpec, plan: Plan, arguments: Held, y: Any) -> None:
        super().__init__(spec, plan, arguments, y)
        self.flat: dict[str, Any] = {}  # x and the inputs besides, as rows
        self.number: Expr = 0  # of the part of the taps whose statements are being written

    def statement(self) -> Stmt:
        return self._flattened([("x", self.arguments.source), *self.arguments.inputs.items()])

    def _flattened(self, given: Sequence[tuple[str, Any]]) -> Stmt:
        if not given:
            return super().statement()
        (name, buffer), *more = given

        def body(views: list[Any]) -> Stmt:
            self.flat[name] = views[0]
            return self._flattened(more)

        return viewed([buffer], (prod(map(int, buffer.shape)),), body)

    def _given(self, name: str, place: Expr) -> Expr:
        from tvm import tirx

        return widened(tirx.BufferLoad(self.flat[name], [place]))

    def _task(self, task: Expr, v: Any, m: Any) -> Stmt:
        plan, spec = self.plan, self.spec
        words = WORDS + (1 if spec.modulated else 0)

        def staged(offsets: Any) -> Stmt:
            return allocated((words, plan.tables, plan.entries), "table", "global", lambda t: tabled(offsets, t))

        def tabled(offsets: Any, table: Any) -> Stmt:
            self.offsets, self.table = offsets, table
            if plan.cuts == 1:
                return self._part(task, v, m)
            shape = (plan.tile_block * plan.tile, plan.split * plan.channels)
            return allocated(shape, "total", "global", lambda total: self._summed(total, task, v, m))

        return allocated((2, plan.entries), "offsets", "global", staged)

    def _summed(self, total: Any, task: Expr, v: Any, m: Any) -> Stmt:
        """The task where the taps are in parts: tables of all, sums of part after part, and the outputs."""
        plan, self.total = self.plan, total

        def taps(number: Expr) -> Stmt:
            self.number = number
            return self._part(task, v, m)

        parts = loop(plan.cuts, taps, name="taps")
        tables, outputs = self._tiles(task, self._tables), self._tiles(task, self._outputs)
        return sequence([tables, self._zeros(total), parts, outputs])

    def _part(self, task: Expr, v: Any, m: Any) -> Stmt:
        """The task's products of a part of the taps."""
        return super()._task(task, v, m)

    def _tiles(self, task: Expr, body: Callable[[Expr, Expr], Stmt]) -> Stmt:
        """body(number in the task, first position) for the tiles of a task, which may be one less than of another."""
        from tvm import tirx

        plan = self.plan
        start, stop = part(plan.tiles, plan.tile_blocks, task)

        def tile(number: Expr) -> Stmt:
            first = number * plan.tile
            if plan.positions % plan.tile:
                first = tirx.min(first, plan.positions - plan.tile)
            return named(first, "first", lambda first: body(number - start, first))

        return ranged(start, stop, tile, name="tile")

    def _tables(self, i: Expr, first: Expr) -> Stmt:
        """The table of a tile."""
        from tvm import tirx

        spec, plan = self.spec, self.plan

        def copied(entry: Expr) -> Stmt:
            bind, place = Binder(), first * plan.all_taps + entry
            for axis in (0, 1):
                bind.store(self.offsets, [axis, entry], self._given("offset", place * 2 + axis))
            if spec.modulated:
                bind.store(self.table, [MASK, i, entry], self._given("mask", place))
            return sequence(bind.statements)

        def vector(number: Expr) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                entry = number * plan.lanes + lane
                output, tap = (bind(each, "int32") for each in (entry // plan.all_taps, entry % plan.all_taps))
                _, *place = unflat(first + output, (spec.batch, *spec.out_size))
                y, x = (bind(each, "int32") for each in place)
                words = entry_words(spec, lambda axis: tirx.BufferLoad(self.offsets, [axis, entry]), (y, x), tap)
                for word, value in enumerate(words):
                    bind.store(self.table, [word, i, entry], tirx.reinterpret("float32", value))

            return vectorized(plan.lanes, body)

        copies = loop(plan.tile * plan.all_taps, copied, name="entry")
        return sequence([copies, loop(plan.entries // plan.lanes, vector, name="vector")])

    def _sums(self, v: Any, i: Expr, first: Expr) -> Stmt:
        """V of a tile, for a part of the taps."""
        plan = self.plan

        def column(c: Expr) -> Stmt:
            return loop(plan.pieces, lambda p: loop(plan.taps, partial(self._piece, v, (i, first), c, p)), name="piece")

        sums = loop(plan.columns, column, name="column")
        return sums if plan.cuts > 1 else sequence([self._tables(0, first), sums])

    def _piece(self, v: Any, at: tuple[Expr, Expr], c: Expr, piece: Expr, tap: Expr) -> Stmt:
        """Of a position of each half, at a tap, some channels of each half."""
        bind, columns = Binder(), self.plan.columns
        samples = [each for rows in (0, 1) for each in self._samples(bind, at, c + rows * columns, piece, tap)]

        def vector(bind: Binder, chunk: Expr, lane: Expr, values: list[Expr]) -> None:
            for number, total in enumerate(factors(self.plan, values)):
                bind.store(v, [number, at[0], chunk, c, lane], total)

        return sequence([*bind.statements, self._chunks(samples, piece, tap, vector)])

    def _samples(self, bind: Binder, at: tuple[Expr, Expr], column: Expr, piece: Expr, tap: Expr) -> list[Sample]:
        """Of a position, at a tap: a piece of each half of the channels, or half of a half."""
        samples: list[Sample] = []
        for half in range(self.plan.split):
            if self.spec.offset_groups == 1 and half:
                samples.append(self._beside(samples[-1]))
            else:
                samples.append(self._sample(bind, at, column, half * self.plan.half + piece * self.plan.piece, tap))
        return samples

    def _chunks(self, samples: Sequence[Sample], piece: Expr, tap: Expr, vector: Stored) -> Stmt:
        """vector(bind, number of the chunk, lane, values) of the chunks of a piece."""
        at_border = samples[0].at_border
        for sample in samples[1:]:
            at_border = at_border | sample.at_border

        def chunks(inside: bool) -> Stmt:
            each = self.plan.piece // self.plan.wide
            first = (tap * self.plan.pieces + piece) * each
            return loop(each, lambda k: self._vector(samples, first + k, k, inside, vector), name="chunk")

        return when([at_border == 0], chunks(True), chunks(False))

    def _sample(self, bind: Binder, at: tuple[Expr, Expr], column: Expr, channel: Expr, tap: Expr) -> Sample:
        """What channels from that one on sample at a tap of the part, in a column of the tile."""
        from tvm import tirx

        spec, plan, (i, first) = self.spec, self.plan, at
        assert spec.offset_groups is not None
        per = spec.in_channels // spec.offset_groups
        group = channel // per if spec.offset_groups > 1 else 0
        entry = column * plan.all_taps + group * count(spec.kernel) + self.number * plan.taps + tap
        row = i if plan.cuts > 1 else 0

        def word(number: int) -> Expr:
            return tirx.BufferLoad(self.table, [number, row, entry])

        place = tirx.reinterpret("int32", word(FIRST)) + (channel - group * per)
        if spec.batch > 1:
            place = place + (first + column) // count(spec.out_size) * (count(spec.in_size) * spec.in_channels)
        return Sample(
            bind(place, "int32"),
            bind(tirx.reinterpret("int32", word(AT_BORDER)), "int32"),
            [bind(word(WEIGHTS + q)) for q in range(len(CORNERS))],
            bind(word(MASK)) if spec.modulated else None,
        )

    def _beside(self, sample: Sample) -> Sample:
        """Of the next half of the channels, where both have the same offsets."""
        return Sample(sample.place + self.plan.half, sample.at_border, sample.weights, sample.mask)

    def _vector(self, samples: Sequence[Sample], chunk: Expr, k: Expr, inside: bool, vector: Stored) -> Stmt:
        """A vector of each sample. k: the number of the chunk in its piece."""
        spec, plan = self.spec, self.plan

        def body(bind: Binder, lane: Expr) -> None:
            def x(element: Expr) -> Expr:
                return self._given("x", element + k * plan.wide + lane)

            row = spec.in_size[1] * spec.in_channels
            vector(bind, chunk, lane, [bind(each.value(x, row, spec.in_channels, inside)) for each in samples])

        return vectorized(plan.wide, body)

    def _factor(self, v: Any, left: str, column: int, k: Expr, at: tuple[Expr, Expr]) -> Expr:
        from tvm import tirx

        plan = self.plan
        return tirx.BufferLoad(v, [plan.stored.index(left), at[0], k // plan.wide, column, k % plan.wide])

    def _panel(self, block: Expr) -> Expr:
        return self.number * self.plan.blocks + block

    def _fetches(self, block: Expr, number: int, k: Expr, first: Expr) -> list[Stmt]:
        return []  # what is sampled next, only the tables say

    def _outputs_ahead(self, tile: Tile, number: int, first: Expr) -> list[Stmt]:
        return super()._outputs_ahead(tile, number, first) if self.plan.cuts == 1 else []

    def _written(self, tile: Tile, y: str, at: tuple[Expr, Expr], value: Callable[[int, Expr], Expr]) -> Stmt:
        from tvm import tirx

        plan = self.plan
        if plan.cuts == 1:
            return super()._written(tile, y, at, value)
        rows, channels = self._place(y)

        def added(number: int, place: tuple[int, int]) -> Stmt:
            column, cv = place
            row = at[0] * plan.tile + rows + column
            channel = tile.block * plan.block + channels + cv * plan.lanes

            def body(bind: Binder, lane: Expr) -> None:
                index = [row, channel + lane]
                bind.store(self.total, index, tirx.BufferLoad(self.total, index) + value(number, lane))

            return vectorized(plan.lanes, body)

        return sequence([added(number, place) for number, (place, _) in enumerate(tile.sums)])

    def _zeros(self, total: Any) -> Stmt:
        from tvm import tirx

        rows, channels = map(int, total.shape)
        lanes = self.plan.lanes

        def vector(row: Expr, k: Expr) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                bind.store(total, [row, k * lanes + lane], tirx.const(0.0, "float32"))

            return vectorized(lanes, body)

        return loop(rows, lambda row: loop(channels // lanes, partial(vector, row), name="oc"), name="row")

    def _outputs(self, i: Expr, first: Expr) -> Stmt:
        """y of a tile, from the sums over all parts of the taps."""
        from tvm import tirx

        spec, plan = self.spec, self.plan

        def vector(row: Expr, channel: Expr, lanes: int) -> Stmt:
            def body(bind: Binder, lane: Expr) -> None:
                value = tirx.BufferLoad(self.total, [i * plan.tile + row, channel + lane])
                index = as_row(spec.rank, first + row, channel + lane)
                bind.store(self.y, index, epilogue(self.arguments, value, index[0], index[-1], index[1:-1]))

            return vectorized(lanes, body)

        def outputs(row: Expr) -> Stmt:
            whole, rest = divmod(spec.out_channels, plan.lanes)
            last = [vector(row, whole * plan.lanes, rest)] if rest else []
            vectors = loop(whole, lambda k: vector(row, k * plan.lanes, plan.lanes), name="oc")
            return when(self._not_written(first, row), sequence([vectors, *last]))

        return loop(plan.tile, outputs, name="row")
