"""How minimal filtering reads x and stores y: as they are where channels are last, else through transposed copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.past_caches import passed
from convtune.schedules.statements import Expr, Stmt, allocated, flat, sequence
from convtune.schedules.tiling import LINE
from convtune.schedules.transposing import transpose
from convtune.schedules.written import Buffers, Held, viewed

from convtune.expression import cube, epilogue, widened

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Body = Callable[["Tensors"], Stmt]


class Tensors(Held):
    """The arguments of a kernel as buffers, with the one that sums are stored to.

    planes: the tensors as they are, (n, channel, position), where tasks move parts of them themselves; `source` or `y`
    is None then.
    """

    def __init__(self, spec: ConvSpec, buffers: Buffers, y: Any, planes: Tensors | None = None) -> None:
        super().__init__(spec, buffers)
        self.y, self.planes = y, planes or self

    def read(self, n: Expr, channel: Expr, lane: Expr, position: Sequence[Expr]) -> Expr:
        """x of a channel and those after it, at a position of three entries."""
        from tvm import tirx

        spec = self.spec
        if spec.channels_last:
            return tirx.BufferLoad(self.source, [n, *position[3 - spec.rank :], channel + lane])
        return tirx.BufferLoad(self.source, [n, flat(position, cube(spec.in_size)), channel + lane])

    def store(self, n: Expr, channel: Expr, lane: Expr, position: Sequence[Expr], value: Expr) -> Stmt:
        """y at a position of three entries, with the epilogue; or the sum where y is stored from a copy."""
        from tvm import tirx

        spec = self.spec
        if not spec.channels_last:
            return tirx.BufferStore(self.y, value, [n, flat(position, cube(spec.out_size)), channel + lane])
        place, value = self._element(n, channel + lane, position, value)
        return tirx.BufferStore(self.y, value, place)

    def store_past(self, n: Expr, channel: Expr, position: Sequence[Expr], value: Callable[[Expr], Expr]) -> Stmt:
        """A line of y, of value(lane), at a position of three entries, past the caches, with the epilogue."""
        return passed(self.y, lambda lane: self._element(n, channel + lane, position, value(lane)), LINE)

    def _element(self, n: Expr, channel: Expr, position: Sequence[Expr], value: Expr) -> tuple[list[Expr], Expr]:
        """Of channels that are last: where it is, and its value with the epilogue."""
        place = list(position)[3 - self.spec.rank :]
        return [n, *place, channel], epilogue(self, value, n, channel, place)

    def store_flat(self, n: Expr, channel: Expr, position: Expr, value: Expr) -> Stmt:
        """A plane's element, with the epilogue."""
        from tvm import tirx

        return tirx.BufferStore(self.y, epilogue(self, value, n, channel, [position]), [n, channel, position])


def with_tensors(
    spec: ConvSpec, lanes: int, buffers: Buffers, y: Any, body: Body, near: tuple[bool, bool] = (False, False)
) -> Stmt:
    """body(tensors), between copies from and to channels-first tensors where the spec has these.

    near: whether tasks take parts of x, and whether they store parts of y themselves, with no copies.
    """
    if spec.channels_last:
        return body(Tensors(spec, buffers, y))
    x, weight, bias, residual = buffers
    into = (spec.batch, spec.in_channels, prod(spec.in_size))
    outof = (spec.batch, spec.out_channels, prod(spec.out_size))

    def with_views(flat_x: Any, flat_y: Any, flat_residual: Any = None) -> Stmt:
        planes = Tensors(spec, [flat_x, weight, bias, flat_residual], flat_y)
        shapes = [(n, positions, channels) for n, channels, positions in (into, outof)]
        return _allocated_all(
            [s for s, of_tasks in zip(shapes, near) if not of_tasks], lambda made: inner(planes, made)
        )

    def inner(planes: Tensors, copies: list[Any]) -> Stmt:
        from tvm import tirx

        made = iter(copies)
        copy, sums = (None if of_tasks else next(made) for of_tasks in near)
        parts = [body(Tensors(spec, [copy, weight, bias, residual], sums, planes))]
        if copy is not None:
            moved = lambda n, c, p, value: tirx.BufferStore(copy, widened(value), [n, p, c])  # noqa: E731
            parts.insert(0, transpose(into, lanes, planes.source, True, moved))
        if sums is not None:
            parts.append(transpose(outof, lanes, sums, False, planes.store_flat))
        return sequence(parts)

    given = [y, *([residual] if residual is not None else [])]
    return viewed([x], into, lambda xs: viewed(given, outof, lambda ys: with_views(xs[0], *ys)))


def _allocated_all(shapes: Sequence[tuple[int, ...]], body: Callable[[list[Any]], Stmt]) -> Stmt:
    if not shapes:
        return body([])
    head, *rest = shapes
    return allocated(
        head, "channels_last", "global", lambda made: _allocated_all(rest, lambda others: body([made, *others]))
    )
