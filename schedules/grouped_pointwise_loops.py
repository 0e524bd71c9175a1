"""Grouped 1 x 1 convolution by blocks of positions: the loops that are the same however their sums are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from convtune.schedules.depthwise_planes_loops import lanewise
from convtune.schedules.grouped_pointwise_plan import Blocks
from convtune.schedules.pointwise_gemm import positions_of
from convtune.schedules.ranges import named, part, pieces, ranged
from convtune.schedules.statements import Binder, Expr, Stmt, allocated, as_row, sequence
from convtune.schedules.written import Held

from convtune.expression import epilogue_at

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

AnyBlocks = TypeVar("AnyBlocks", bound=Blocks)


class BlockSums(ABC, Generic[AnyBlocks]):
    """The statements of a plan: `kernel` is all of them. How a register tile is summed is the subclass's.

    A block of positions takes turns, each for some of the output channels. Their sums are kept in `result`
    (position of the block, place) until it has had all of them, and then stored.
    """

    def __init__(self, spec: ConvSpec, plan: AnyBlocks, arguments: Held, y: Any) -> None:
        self.spec, self.plan, self.arguments, self.y = spec, plan, arguments, y

    @abstractmethod
    def _turns(self) -> int:
        """How many they are."""

    @abstractmethod
    def _tile(self, result: Any, first: Expr, at: Expr, turn: int) -> Stmt:
        """The sums of a register tile from the position first + at on, into `result`, or y where there is none."""

    def _in_result(self) -> bool:
        """Whether sums are kept; otherwise each register tile is stored by itself."""
        return True

    def _starts(self, source: tuple[int, ...]) -> tuple[int, ...]:
        """Where the vectors of `result` begin that are loaded for those places."""
        return self.plan.whole_vectors(source)

    def kernel(self) -> Stmt:
        """A task a part of the positions."""
        plan = self.plan

        def task(number: Expr) -> Stmt:
            return pieces(part(positions_of(self.spec), plan.parts, number), plan.block, self._block, "first", "block")

        return ranged(0, plan.parts, task, "PARALLEL", "task")

    def _block(self, first: Expr) -> Stmt:
        plan = self.plan

        def tiles(result: Any, turn: int) -> Stmt:
            def tile(index: Expr) -> Stmt:
                return named(index * plan.columns, "at", lambda at: self._tile(result, first, at, turn))

            return ranged(0, plan.tiles, tile, name="tile")

        def body(result: Any) -> Stmt:
            sums = [tiles(result, turn) for turn in range(self._turns())]
            return sequence([*sums, ranged(0, plan.block, lambda at: self._kept(result, first, at), name="position")])

        if not self._in_result():
            return sequence([tiles(None, turn) for turn in range(self._turns())])
        return allocated((plan.block, plan.padded), "result", "global", body)

    def _kept(self, result: Any, first: Expr, at: Expr) -> Stmt:
        """The outputs of a position whose sums are in `result`."""
        from tvm import tirx

        load = lambda start: tirx.BufferLoad(result, [at, tirx.Ramp(start, 1, self.plan.lanes)])  # noqa: E731
        return self._stored(first + at, load, self._starts)

    def _stored(
        self, position: Expr, load: Callable[[int], Expr], starts_of: Callable[[tuple[int, ...]], tuple[int, ...]]
    ) -> Stmt:
        """The outputs of a position, by vectors.

        load: the vector of sums from a place on. starts_of: where the vectors begin that are loaded for the places of
        the sums of a vector's lanes.
        """
        from tvm import tirx

        found = []
        for start, source in self.plan.outputs:
            lanes = len(source)
            bind, starts = Binder(f"float32x{lanes}"), starts_of(source)
            value = lanewise(source, starts, [bind(load(s)) for s in starts], bind)

            def vector(
                copy: Any, start: int = start, lanes: int = lanes, value: Expr = value, b: Binder = bind
            ) -> Stmt:
                b.store(copy, [tirx.Ramp(0, 1, lanes)], value)

                def output(lane: Expr) -> Stmt:
                    where, value = as_row(self.spec.rank, position, start + lane), tirx.BufferLoad(copy, [lane])
                    return tirx.BufferStore(self.y, epilogue_at(self.arguments, value, where), where)

                return sequence([*b.statements, ranged(0, lanes, output, "VECTORIZED", "lane")])

            found.append(allocated((lanes,), "copy", "global", vector))
        return sequence(found)
