"""Statements of TIR for spaces that write their loops themselves: loops, buffers, conditions, names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Expr = Any
Stmt = Any
Body = Callable[[Any], Stmt]

BLENDED_LANES = 8  # of the widest vectors that LLVM blends by an immediate


def loop(extent: int, body: Body, kind: str = "SERIAL", name: str = "i") -> Stmt:
    """for variable in range(extent): body(variable)."""
    from tvm import tirx

    if extent == 1 and kind != "PARALLEL":
        return body(0)
    variable = tirx.Var(name, "int32")
    return tirx.For(variable, 0, extent, tirx.ForKind[kind], body(variable))


def nest(extents: Sequence[int], body: Body) -> Stmt:
    """Loops around body(indices)."""
    if not extents:
        return body(())
    return loop(extents[0], lambda i: nest(extents[1:], lambda rest: body((i, *rest))))


def sequence(statements: Sequence[Stmt]) -> Stmt:
    from tvm import tirx

    return statements[0] if len(statements) == 1 else tirx.SeqStmt(list(statements))


def allocated(shape: Sequence[int], name: str, scope: str, body: Callable[[Any], Stmt], dtype: str = "float32") -> Stmt:
    """A buffer for body(buffer)."""
    from tvm import tirx

    buffer = tirx.decl_buffer(tuple(shape), dtype, name=name, scope=scope)
    whole = [kept(buffer)] if scope == "global" and dtype == "float32" else []
    return tirx.SeqStmt([tirx.AllocBuffer(buffer), *whole, body(buffer)])


def vector_sums(vectors: int, lanes: int, body: Callable[[list[Any]], Stmt]) -> Stmt:
    """body(buffers), one for each vector: TVM 0.27 puts less than 1 KiB of "global" on the stack, where LLVM sees that
    it is nothing but a register, and all else in memory, where sums would be stored."""
    if vectors == 0:
        return body([])
    return allocated(
        (lanes,), "acc", "global", lambda one: vector_sums(vectors - 1, lanes, lambda more: body([one, *more]))
    )


def zeros(lanes: int) -> Expr:
    """A vector of them."""
    from tvm import tirx

    return tirx.Broadcast(tirx.const(0.0, "float32"), lanes)


def cleared(sums: Sequence[Any], lanes: int) -> list[Stmt]:
    """Zeros in buffers of a vector each."""
    from tvm import tirx

    return [tirx.BufferStore(each, zeros(lanes), [tirx.Ramp(0, 1, lanes)]) for each in sums]


def kept(buffer: Any) -> Stmt:
    """Has an allocated buffer keep its shape.

    In a function that has blocks, TVM 0.27 shrinks a buffer to the indices that it understands. Variables bound to a
    minimum are not, nor are rows that are read as one; but it leaves a buffer alone of which an address is taken.
    """
    from tvm import tirx

    return tirx.Evaluate(buffer.access_ptr("rw"))


def fetched(load: Expr, first_cache: bool = True, to_write: bool = False) -> Stmt:
    """A prefetch of the line that an element lies in, to all caches, or to all but the first one."""
    from tvm import tirx

    of_data = 1  # as LLVM's prefetch has them
    locality = 3 if first_cache else 2
    return tirx.Evaluate(
        tirx.call_intrin("void", "tirx.prefetch", tirx.address_of(load), int(to_write), locality, of_data)
    )


def spread_over(lanes: int, value: Expr, blended: bool = False) -> Expr:
    """A number in all lanes. blended: with others, lane by lane.

    Where two loads that are spread are blended, LLVM permutes the loaded numbers themselves, by a permute of two
    vectors and a copy of one, not by one instruction, unless it does not see that they are loads: a grouped layer of
    240 to 60 channels took 26 instead of 21 us.
    """
    from tvm import tirx

    value = tirx.Broadcast(value, lanes)
    return tirx.call_llvm_pure_intrin(f"float32x{lanes}", "llvm.arithmetic.fence", value) if blended else value


def joined(lanes: int, value: Expr, other: Expr, start: int) -> Expr:
    """A vector of `other` in the lanes from `start` on, and of `value` in those before.

    LLVM joins vectors of 512 bits by a permute where the lanes before fill 128-bit parts, and x86 permutes where it
    multiplies. A mask that LLVM does not see to be constant makes it a blend, which any unit does: 54 to 24 channels
    were 1.14 times as fast in C. Up to 256 bits it blends by itself.
    """
    from tvm import tirx

    if lanes <= BLENDED_LANES:
        return tirx.Shuffle([value, other], [lane if lane < start else lanes + lane for lane in range(lanes)])
    dtype, before = f"float32x{lanes}", []
    for numbers, end in ((tirx.Ramp(0, 1, lanes), start), (tirx.Ramp(-start, 1, lanes), 0)):
        hidden = tirx.call_llvm_pure_intrin(dtype, "llvm.arithmetic.fence", tirx.Cast(dtype, numbers))
        before.append(hidden < tirx.Broadcast(tirx.const(float(end), "float32"), lanes))
    # twice: LLVM moves a comparison into the loop where its result is used, but not a conjunction
    return tirx.Select(tirx.And(*before), value, other)


def when(conditions: Sequence[Expr], then: Stmt, otherwise: Stmt | None = None) -> Stmt:
    from tvm import tirx

    return tirx.IfThenElse(tirx.all(*conditions), then, otherwise) if conditions else then


class Binder:
    """Names expressions that are used more than once; `statements` are these bindings, and what is stored."""

    def __init__(self, dtype: str = "float32") -> None:
        self.dtype = dtype
        self.statements: list[Stmt] = []

    def __call__(self, value: Expr, dtype: str = "") -> Expr:
        from tvm import tirx

        variable = tirx.Var("value", dtype or self.dtype)
        self.statements.append(tirx.Bind(variable, value))
        return variable

    def store(self, buffer: Any, place: Sequence[Expr], value: Expr) -> None:
        from tvm import tirx

        self.statements.append(tirx.BufferStore(buffer, value, list(place)))

    def add(self, buffer: Any, place: Sequence[Expr], value: Expr) -> None:
        """buffer[place] += value."""
        from tvm import tirx

        self.store(buffer, place, tirx.BufferLoad(buffer, list(place)) + value)


def vectorized(lanes: int, body: Callable[[Binder, Expr], None]) -> Stmt:
    """What body(bind, lane) binds and stores, for all lanes at once."""

    def statements(lane: Expr) -> Stmt:
        bind = Binder()
        body(bind, lane)
        return sequence(bind.statements)

    return loop(lanes, statements, "VECTORIZED", "lane")


def as_row(rank: int, position: Expr, channel: Expr) -> list[Expr]:
    """The index of an element, channels last: all positions of all images are as one row, which they are in memory."""
    return [*(0 for _ in range(rank)), position, channel]


def flat(index: Sequence[Expr], shape: Sequence[int]) -> Expr:
    """The row-major place of an index."""
    flat: Expr = 0
    for i, size in zip(index, shape):
        flat = flat * size + i if size > 1 else flat
    return flat


def unflat(place: Expr, shape: Sequence[int]) -> tuple[Expr, ...]:
    """The index at a row-major place."""
    found: list[Expr] = []
    for size in reversed(shape):
        found.insert(0, place % size if size > 1 else 0)
        place = place // size if size > 1 else place
    return tuple(found)
