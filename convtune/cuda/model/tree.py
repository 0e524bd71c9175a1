"""A kernel's body as a small tree of Python values: what the model walks, read from TVM's objects once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from convtune.cuda import tensor_cores
from convtune.errors import ScheduleError
from convtune.lowered import Buffer, Define, Evaluate, Expr, If, StatementReader, Store, call_name


@dataclass(frozen=True)
class Loop:
    """A loop that a thread runs."""

    var: Any
    begin: Expr
    extent: Expr
    unrolled: bool
    body: tuple[Statement, ...]
    stored: frozenset[int]  # keys of the buffers written inside
    has_barrier: bool
    indexes_registers: bool  # its variable chooses an element of a local array
    size: int  # loads, stores and operators of the body, loops with a constant extent multiplied out


@dataclass(frozen=True)
class AsyncCopy:
    """cp.async: bytes from global to shared memory that no register holds. condition: None where it is always made."""

    target: Buffer
    target_index: Expr
    source: Buffer
    source_index: Expr
    bytes: int
    condition: Expr | None


@dataclass(frozen=True)
class Barrier:
    """A barrier of the whole block."""


@dataclass(frozen=True)
class AsyncWait:
    """Waits until at most `pending` groups of asynchronous copies are under way."""

    pending: int


@dataclass(frozen=True)
class MatrixMove:
    """A warp loads or stores a matrix for the Tensor Cores. kind: "load" or "store". stride: elements between rows."""

    kind: str
    buffer: Buffer
    index: Expr
    stride: Expr
    elements: int


@dataclass(frozen=True)
class MatrixMultiply:
    """A warp's product on the Tensor Cores."""

    multiply_adds: int


Statement = Loop | If | Store | Define | AsyncCopy | Barrier | AsyncWait | MatrixMove | MatrixMultiply | Evaluate


@dataclass
class Kernel:
    """What a kernel does. arguments: the buffers that are its arguments, by position."""

    name: str
    body: tuple[Statement, ...]
    threads: dict[Any, str] = field(default_factory=dict)  # variable key -> "threadIdx.x" …
    extents: dict[str, int] = field(default_factory=dict)
    arguments: dict[Buffer, int] = field(default_factory=dict)


def read(function: Any) -> Kernel:
    """The body of a lowered device function.

    Raises ScheduleError for a statement or an expression that the model does not know.
    """
    return Reader(function).kernel()


class Reader(StatementReader):
    """Reads one function."""

    def __init__(self, function: Any) -> None:
        super().__init__("the GPU model")
        self.function = function
        self.threads: dict[Any, str] = {}
        self.extents: dict[str, int] = {}
        self.parameters = list(function.params)
        self.arguments: dict[Buffer, int] = {}
        self.size = 0
        self.stored: set[int] = set()
        self.choosers: set[Any] = set()  # variables that index local arrays
        self.has_barrier = False
        self.matrix = (16, 16, 16)  # m, n, k of the Tensor Cores' products

    def kernel(self) -> Kernel:
        name = str(self.function.attrs["global_symbol"])
        body = tuple(self.statements(self.function.body))
        return Kernel(name, body, self.threads, self.extents, self.arguments)

    def _read_attrstmt(self, node: Any) -> list[Statement]:
        if node.attr_key == "thread_extent":
            axis = str(node.node.thread_tag)
            self.threads[node.node.var] = axis
            self.extents[axis] = int(node.value)
        if node.attr_key == "fragment_shape":
            m, n, k = str(node.value.value).split(",")
            self.matrix = int(m), int(n), int(k)
        body = self.statements(node.body)
        if node.attr_key == "async_wait_inflight_count":
            return [AsyncWait(int(node.value)), *body]
        return body

    def _read_declbuffer(self, node: Any) -> list[Statement]:
        if any(node.data.same_as(parameter) for parameter in self.parameters):
            self.arguments[self.buffer(node.buffer)] = next(
                i for i, p in enumerate(self.parameters) if node.data.same_as(p)
            )
        return []

    def _read_for(self, node: Any) -> list[Statement]:
        outer_size, outer_stored, outer_barrier = self.size, self.stored, self.has_barrier
        self.size, self.stored, self.has_barrier = 0, set(), False
        begin, extent = self.expression(node.min), self.expression(node.extent)
        body = tuple(self.statements(node.body))
        stored, barrier = frozenset(self.stored), self.has_barrier
        size = self.size * max(int(extent.args[0]), 1) if extent.op == "const" else self.size
        self.size, self.stored, self.has_barrier = outer_size + size, outer_stored | stored, outer_barrier or barrier
        unrolled = int(node.kind) == 3  # ForKind.UNROLLED
        chooses = node.loop_var in self.choosers
        return [Loop(node.loop_var, begin, extent, unrolled, body, stored, barrier, chooses, size)]

    def _read_bufferstore(self, node: Any) -> list[Statement]:
        self.stored.add(self.buffer(node.buffer).key)
        self.size += 1
        return super()._read_bufferstore(node)

    def _read_evaluate(self, node: Any) -> list[Statement]:
        call = node.value
        if type(call).__name__ == "IntImm":
            return []
        name = call_name(call)
        if "storage_sync" in name:
            self.has_barrier = True
            return [Barrier()] if str(call.args[0].value) != "warp" else []
        if name in ("cp_async_raw", "ptx_cp_async"):
            return [self.async_copy(call)]
        if "wait_group" in name:
            return [AsyncWait(int(call.args[0]))]
        if "fragment" in name or "matri" in name or "mma" in name:
            return self.matrices(name, call)
        if name == tensor_cores.NAME:
            return self.product(call)
        return [Evaluate(self.expression(call))]

    def product(self, call: Any) -> list[Statement]:
        """A warp's product of operands in registers; what is loaded twice for two of them nvcc loads once."""
        sums, *words = call.args[1:]
        self.stored.add(self.buffer(sums.args[0].source).key)
        operands = [Evaluate(self.expression(word)) for word in words]
        return [*operands, MatrixMultiply(tensor_cores.ROWS * tensor_cores.COLUMNS * tensor_cores.DEPTH)]

    def matrices(self, name: str, call: Any) -> list[Statement]:
        """What warps do together on the Tensor Cores."""
        m, n, k = self.matrix
        if name == "tvm_fill_fragment":
            return []
        if name == "tvm_mma_sync":
            return [MatrixMultiply(m * n * k)]
        if name not in ("tvm_load_matrix_sync", "tvm_store_matrix_sync"):
            raise ScheduleError(f"the GPU model does not know {name}; of the Tensor Cores it knows the wmma operations")
        element = call.args[5].args[0]  # of address_of
        buffer = self.buffer(element.source)
        index, stride = self.index(buffer, element.indices), self.expression(call.args[6])
        if name == "tvm_load_matrix_sync":
            inner = self.buffer(call.args[0].args[0]).scope
            return [MatrixMove("load", buffer, index, stride, k * (n if inner.endswith("_b") else m))]
        self.stored.add(buffer.key)
        return [MatrixMove("store", buffer, index, stride, m * n)]

    def async_copy(self, call: Any) -> AsyncCopy:
        arguments = [a for a in call.args if type(a).__name__ != "StringImm"]
        target, source = self.pointed(arguments[0]), self.pointed(arguments[2])
        self.stored.add(target.key)
        self.size += 1
        condition = self.expression(arguments[5]) if len(arguments) > 5 else None
        target_index, source_index = self.expression(arguments[1]), self.expression(arguments[3])
        return AsyncCopy(target, target_index, source, source_index, int(arguments[4]), condition)

    def pointed(self, pointer: Any) -> Buffer:
        """The buffer whose data a call is given."""
        return self.buffer(pointer.args[0])

    def index(self, buffer: Buffer, indices: Sequence[Any]) -> Expr:
        flat = super().index(buffer, indices)
        if buffer.scope == "local":
            self.choosers.update(_variables(flat))
        return flat

    def buffer(self, node: Any) -> Buffer:
        found = super().buffer(node)
        return found._replace(scope="shared") if found.scope.startswith("shared") else found

    def expression(self, node: Any) -> Expr:
        found = super().expression(node)
        self.size += found.op not in ("const", "var")
        return found


def _variables(expr: Expr) -> Iterator[Any]:
    """The keys of the variables in an index."""
    if expr.op == "var":
        yield expr.args[0]
    for part in expr.args:
        if isinstance(part, Expr):
            yield from _variables(part)
