"""Lowered TIR as small Python values, read from TVM's objects once, for models that walk kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

from convtune.errors import ScheduleError


class Expr(NamedTuple):
    """One node of an expression.

    op: "const", "var", "load", "ramp", "broadcast", "call", "select", "cast", "let", or an operator such as "Add".
    args: expressions; of "const" the value, of "var" its key, of "load" the buffer and the index, of "call" the name
    and the arguments. kind: "int", "float", "bool" or "handle". lanes: of a vector.
    """

    op: str
    args: tuple[Any, ...]
    kind: str
    lanes: int


class Buffer(NamedTuple):
    """Memory of a kernel. key: its number. scope: "global", "shared", "local", "wmma.…". bytes: of an element."""

    key: int
    name: str
    scope: str
    bytes: int
    shape: tuple[int, ...]


@dataclass(frozen=True)
class If:
    """An if, with an else or an empty one."""

    condition: Expr
    then: tuple[Any, ...]
    otherwise: tuple[Any, ...]


@dataclass(frozen=True)
class Store:
    """Elements written: one, or those of a vector index."""

    buffer: Buffer
    index: Expr
    value: Expr


@dataclass(frozen=True)
class Define:
    """A name for a value, used below it."""

    var: Any
    value: Expr


@dataclass(frozen=True)
class Evaluate:
    """An expression for its effect."""

    value: Expr


_EMPTY = ("AllocBuffer", "AssertStmt", "ScopeIdDefStmt")
_OPERATORS = ("Add", "Sub", "Mul", "Div", "Mod", "FloorDiv", "FloorMod", "Min", "Max", "And", "Or")
_BITS = ("LShift", "RShift", "BitwiseAnd", "BitwiseOr", "BitwiseXor")
_BINARY = frozenset((*_OPERATORS, *_BITS, "EQ", "NE", "LT", "LE", "GT", "GE"))
_KINDS = {"int": "int", "uint": "int", "float": "float", "bfloat": "float", "bool": "bool", "handle": "handle"}


class ExpressionReader:
    """Reads the expressions of one function, and numbers the buffers in them."""

    def __init__(self, owner: str) -> None:
        """owner: whom an error names."""
        self.owner = owner
        self.buffers: dict[Any, Buffer] = {}

    def buffer(self, node: Any) -> Buffer:
        if node not in self.buffers:
            shape = tuple(int(extent) for extent in node.shape)
            scope = str(node.scope()) or "global"
            self.buffers[node] = Buffer(len(self.buffers), str(node.name), scope, _bytes(str(node.dtype)), shape)
        return self.buffers[node]

    def index(self, buffer: Buffer, indices: Sequence[Any]) -> Expr:
        """Buffers are flat after lowering; what is not is folded here, row by row."""
        flat = self.expression(indices[0])
        for extent, index in zip(buffer.shape[1:], indices[1:]):
            row = Expr("Mul", (flat, Expr("const", (extent,), "int", 1)), "int", 1)
            flat = Expr("Add", (row, self.expression(index)), "int", 1)
        return flat

    def expression(self, node: Any) -> Expr:
        name = type(node).__name__
        if name in ("IntImm", "FloatImm"):
            return Expr("const", (node.value,), _kind_and_lanes(node)[0], 1)
        if name in ("Var", "SizeVar"):
            return Expr("var", (node,), _kind_and_lanes(node)[0], 1)
        kind, lanes = _kind_and_lanes(node)
        if name in _BINARY:
            return Expr(name, (self.expression(node.a), self.expression(node.b)), kind, lanes)
        if name == "TensorLoad":
            buffer = self.buffer(node.source)
            return Expr("load", (buffer, self.index(buffer, node.indices)), kind, lanes)
        if name == "Cast":
            return Expr("cast", (self.expression(node.value),), kind, lanes)
        if name == "Call":
            return Expr("call", (call_name(node), *self.operands(node)), kind, lanes)
        return self._rare(name, node, kind, lanes)

    def _rare(self, name: str, node: Any, kind: str, lanes: int) -> Expr:
        if name == "Ramp":
            return Expr("ramp", (self.expression(node.base), self.expression(node.stride)), kind, lanes)
        if name == "Broadcast":
            return Expr("broadcast", (self.expression(node.value),), kind, lanes)
        if name == "Not":
            return Expr("Not", (self.expression(node.a),), kind, lanes)
        if name == "Select":
            parts = (node.condition, node.true_value, node.false_value)
            return Expr("select", tuple(self.expression(part) for part in parts), kind, lanes)
        if name == "Let":
            return Expr("let", (node.var, self.expression(node.value), self.expression(node.body)), kind, lanes)
        if name == "Shuffle":
            return Expr("shuffle", tuple(self.expression(part) for part in node.vectors), kind, lanes)
        raise ScheduleError(f"{self.owner} does not know the expression {name}")

    def operands(self, call: Any) -> list[Expr]:
        return [self.expression(a) for a in call.args if type(a).__name__ not in ("StringImm", "Op", "GlobalVar")]


class StatementReader(ExpressionReader):
    """Reads statements too. A subclass has `_read_` and the name of a kind of them, in lower case, for its others."""

    def statements(self, node: Any) -> list[Any]:
        """What a statement of TVM's comes to. Raises ScheduleError for one that the owner does not know."""
        kind = type(node).__name__
        if kind == "SeqStmt":
            return [found for child in node.seq for found in self.statements(child)]
        if kind in _EMPTY:
            return self.statements(node.body) if getattr(node, "body", None) is not None else []
        reader: Callable[[Any], list[Any]] | None = getattr(self, f"_read_{kind.lower()}", None)
        if reader is None:
            raise ScheduleError(f"{self.owner} does not know the statement {kind}")
        return reader(node)

    def _read_bind(self, node: Any) -> list[Any]:
        return [Define(node.var, self.expression(node.value))]

    def _read_ifthenelse(self, node: Any) -> list[Any]:
        otherwise = self.statements(node.else_case) if node.else_case is not None else []
        return [If(self.expression(node.condition), tuple(self.statements(node.then_case)), tuple(otherwise))]

    def _read_bufferstore(self, node: Any) -> list[Any]:
        buffer = self.buffer(node.buffer)
        return [Store(buffer, self.index(buffer, node.indices), self.expression(node.value))]


def call_name(call: Any) -> str:
    """Name of what is called, without namespaces; of a C function in double precision: "erf" for erff and __erff."""
    name = str(getattr(call.op, "name", None) or getattr(call.op, "name_hint", "")).rpartition(".")[2]
    if name in ("call_extern", "call_pure_extern"):
        function = str(call.args[0].value).removeprefix("__")
        return function.removesuffix("f") if function not in ("erf", "modf") else function
    return name


def _kind_and_lanes(node: Any) -> tuple[str, int]:
    dtype = getattr(node.ty, "dtype", None)
    return ("handle", 1) if dtype is None else _parse(str(dtype))


@cache
def _parse(dtype: str) -> tuple[str, int]:
    scalar, _, lanes = dtype.partition("x")
    return _KINDS.get(scalar.rstrip("0123456789_efmn"), "handle") if scalar != "bool" else "bool", int(lanes or 1)


def _bytes(dtype: str) -> int:
    scalar = dtype.partition("x")[0]
    digits = scalar[len(scalar.rstrip("0123456789")) :]
    return max(int(digits or 8) // 8, 1)
