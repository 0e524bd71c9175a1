"""The statements of a scheduled module on a CPU, read once: loops, conditions, names, stores, calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convtune.errors import ScheduleError
from convtune.lowered import Buffer, Define, Evaluate, Expr, If, StatementReader, Store, call_name


@dataclass(frozen=True)
class For:
    """A loop."""

    var: Any
    begin: Expr
    extent: Expr
    parallel: bool
    body: tuple[Statement, ...]


Statement = For | If | Store | Define | Evaluate

STORE = "convtune_store"  # how functions of LLVM's begin that store a vector: of an address and a value
_PARALLEL = 1  # tirx.ForKind.PARALLEL


def read(module: Any) -> tuple[Statement, ...]:
    """The statements of a module's one function, whose blocks and buffers of several dimensions are lowered first.

    Loops stay as they were scheduled: those marked as unrolled or vectorized are loops.

    Raises:
        ScheduleError: there are several functions, or something that no model of memory can follow.
    """
    functions = [function for function in module.functions.values() if hasattr(function, "body")]
    if len(functions) != 1:
        raise ScheduleError(f"the cache model takes modules of one function; this one has {len(functions)}")
    (function,) = [f for f in _lowered(module).functions.values() if hasattr(f, "body")]
    reader = Reader()
    body = reader.statements(function.body)
    return (*(Define(var, Expr("const", (0,), "int", 1)) for var in reader.starts), *body)


def _lowered(module: Any) -> Any:
    import tvm
    from tvm import s_tir, tirx

    # As s_tir's default pipeline has them, without what splits loops or unrolls them.
    passes = [
        s_tir.transform.CanonicalizeLoop(),
        s_tir.transform.LowerInitBlock(),
        s_tir.transform.PlanAndUpdateBufferAllocationLocation(),
        s_tir.transform.ConvertBlocksToOpaque(),
        s_tir.transform.CompactBufferAllocation(),
        s_tir.transform.LowerMatchBuffer(),
        s_tir.transform.LowerOpaqueBlock(),
        tirx.transform.FlattenBuffer(),
    ]
    return tvm.ir.transform.Sequential(passes)(module)


class Reader(StatementReader):
    """Reads one function."""

    def __init__(self) -> None:
        super().__init__("the cache model")
        self.starts: list[Any] = []  # variables that say where in its memory an array starts

    def buffer(self, node: Any) -> Buffer:
        if node not in self.buffers and type(node.elem_offset).__name__ == "Var":
            self.starts.append(node.elem_offset)
        return super().buffer(node)

    def _read_attrstmt(self, node: Any) -> list[Statement]:
        return self.statements(node.body)

    def _read_declbuffer(self, node: Any) -> list[Statement]:
        """A view of an array is that array."""
        pointer = node.data
        if type(pointer).__name__ == "Call" and call_name(pointer) == "buffer_data":
            self.buffers[node.buffer] = self.buffer(pointer.args[0])
        return []

    def _read_for(self, node: Any) -> list[Statement]:
        begin, extent = self.expression(node.min), self.expression(node.extent)
        body = tuple(self.statements(node.body))
        return [For(node.loop_var, begin, extent, int(node.kind) == _PARALLEL, body)]

    def _read_evaluate(self, node: Any) -> list[Statement]:
        value = node.value
        if type(value).__name__ == "IntImm" or call_name(value) in ("tvm_access_ptr", "prefetch"):
            return []  # an address that nobody uses, or what is read soon after, and is counted there
        if call_name(value).startswith(STORE):
            return [self._stored(*value.args[1:])]
        return [Evaluate(self.expression(node.value))]

    def _stored(self, address: Any, value: Any) -> Store:
        """A vector that goes to the address of its first element by a function of LLVM's."""
        place = address.args[0]
        buffer, stored = self.buffer(place.source), self.expression(value)
        ramp = (self.index(buffer, place.indices), Expr("const", (1,), "int", 1))
        return Store(buffer, Expr("ramp", ramp, "int", stored.lanes), stored)
