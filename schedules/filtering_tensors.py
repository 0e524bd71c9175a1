"""How minimal filtering reads x and stores y: as they are where channels are last, else through transposed copies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from convtune.schedules.statements import Expr, Stmt, allocated, flat, sequence
from convtune.schedules.transposing import transpose
from convtune.schedules.written import Buffers, Held

from convtune.expression import cube, epilogue

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Body = Callable[["Tensors"], Stmt]


class Tensors(Held):
    """The arguments of a kernel as buffers, with the one that sums are stored to."""

    def __init__(self, spec: ConvSpec, buffers: Buffers, y: Any) -> None:
        super().__init__(spec, buffers)
        self.y = y

    def read(self, n: Expr, channel: Expr, position: Sequence[Expr]) -> Expr:
        """x at a position of three entries."""
        from tvm import tirx

        spec = self.spec
        if spec.channels_last:
            return tirx.BufferLoad(self.source, [n, *position[3 - spec.rank :], channel])
        return tirx.BufferLoad(self.source, [n, flat(position, cube(spec.in_size)), channel])

    def store(self, n: Expr, channel: Expr, position: Sequence[Expr], value: Expr) -> Stmt:
        """y at a position of three entries, with the epilogue; or the sum where y is stored from a copy."""
        from tvm import tirx

        spec, place = self.spec, list(position)[3 - self.spec.rank :]
        if not spec.channels_last:
            return tirx.BufferStore(self.y, value, [n, flat(position, cube(spec.out_size)), channel])
        return tirx.BufferStore(self.y, epilogue(self, value, n, channel, place), [n, *place, channel])


def with_tensors(spec: ConvSpec, lanes: int, buffers: Buffers, y: Any, body: Body) -> Stmt:
    """body(tensors), between copies from and to channels-first tensors where the spec has these."""
    if spec.channels_last:
        return body(Tensors(spec, buffers, y))
    x, weight, bias, residual = buffers
    into = (spec.batch, spec.in_channels, prod(spec.in_size))
    outof = (spec.batch, spec.out_channels, prod(spec.out_size))

    def with_copies(copies: list[Any]) -> Stmt:
        copy, sums = copies
        inner = body(Tensors(spec, [copy, weight, bias, residual], sums))
        stored = viewed(
            [y, *([residual] if residual is not None else [])], outof, lambda flat_ones: last(flat_ones, sums)
        )
        return sequence([viewed([x], into, lambda flat_ones: first(flat_ones[0], copy)), inner, stored])

    def first(source: Any, copy: Any) -> Stmt:
        from tvm import tirx

        def move(n: Expr, channel: Expr, position: Expr, value: Expr) -> Stmt:
            return tirx.BufferStore(copy, value, [n, position, channel])

        return transpose(into, lanes, source, True, move)

    def last(flat_ones: list[Any], sums: Any) -> Stmt:
        from tvm import tirx

        tensors = Tensors(spec, [None, None, bias, *(flat_ones[1:] or [None])], flat_ones[0])

        def move(n: Expr, channel: Expr, position: Expr, value: Expr) -> Stmt:
            return tirx.BufferStore(tensors.y, epilogue(tensors, value, n, channel, [position]), [n, channel, position])

        return transpose(outof, lanes, sums, False, move)

    shapes = [(n, positions, channels) for n, channels, positions in (into, outof)]
    return _allocated_all(shapes, with_copies)


def _allocated_all(shapes: Sequence[tuple[int, ...]], body: Callable[[list[Any]], Stmt]) -> Stmt:
    if not shapes:
        return body([])
    head, *rest = shapes
    return allocated(
        head, "channels_last", "global", lambda made: _allocated_all(rest, lambda others: body([made, *others]))
    )


def viewed(buffers: Sequence[Any], shape: Sequence[int], body: Callable[[list[Any]], Stmt]) -> Stmt:
    """body(the buffers in another shape)."""
    from tvm import tirx

    views = [tirx.decl_buffer(tuple(shape), str(b.dtype), name=f"{b.name}_flat", data=b.data) for b in buffers]
    return sequence([*(tirx.DeclBuffer(view, data=b.data) for view, b in zip(views, buffers)), body(views)])
