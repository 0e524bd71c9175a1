"""A second opinion of the cache model: a kernel's loops run one by one, and every line they touch goes through caches.

It shares with the model how TVM's objects are read, and nothing of how footprints and misses are found.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from convtune.cache_model import statements
from convtune.cache_model.statements import Define, Evaluate, For, If, Statement, Store
from convtune.lowered import Buffer, Expr

LINE = 64
OPERATORS = {
    "Add": "+", "Sub": "-", "Mul": "*", "FloorDiv": "//", "FloorMod": "%", "Div": "/", "EQ": "==", "NE": "!=",
    "LT": "<", "LE": "<=", "GT": ">", "GE": ">=", "And": "and", "Or": "or",
}  # fmt: skip
FUNCTIONS = {"Min": "min", "Max": "max", "floor": "math.floor", "ceil": "math.ceil", "fabs": "abs", "Not": "not"}

Regions = list[list[list[int]]]
"""Of each parallel region, of each task, the lines in order. What is outside of regions is one with a single task."""


def lines_of(module: Any) -> Regions:
    """Every line that a module's loads and stores touch. Numbers out of arrays of floats are 0."""
    return Program(statements.read(module)).run()


@dataclass
class Program:
    """A kernel as Python source, whose tasks append to lists."""

    body: Iterable[Statement]
    source: list[str] = field(default_factory=list)
    names: dict[Any, str] = field(default_factory=dict)
    buffers: dict[int, Buffer] = field(default_factory=dict)

    def run(self) -> Regions:
        self.emit(0, "regions, tables, task = [], {}, None")
        for key in self._integers(self.body):
            self.emit(0, f"tables[{key}] = {{}}")
        self.emit(0, "def touch(base, start, width):")
        self.emit(1, f"task.extend(range((base + start) // {LINE}, (base + start + width - 1) // {LINE} + 1))")
        for statement in self.body:
            if not isinstance(statement, Define):
                self.emit(0, "task = []")
                self.emit(0, "regions.append([task])")
            self.statement(statement, 0)
        scope: dict[str, Any] = {"math": math}
        starts, top = {}, 0
        for key, buffer in self.buffers.items():
            starts[key] = top
            top += -(-buffer.bytes * math.prod(buffer.shape) // LINE) * LINE + LINE
        scope["start"] = starts
        exec(compile("\n".join(self.source), "kernel", "exec"), scope)
        return [region for region in scope["regions"] if any(region)]

    def _integers(self, body: Iterable[Statement]) -> Iterator[int]:
        for statement in body:
            if isinstance(statement, Store) and statement.value.kind == "int":
                yield statement.buffer.key
            for inside in ("body", "then", "otherwise"):
                yield from self._integers(getattr(statement, inside, ()))

    def emit(self, depth: int, text: str) -> None:
        self.source.append("    " * depth + text)

    def statement(self, one: Statement, depth: int) -> None:
        if isinstance(one, For):
            name = self.names[one.var] = f"v{len(self.names)}"
            begin, extent = self.text(one.begin), self.text(one.extent)
            self.emit(depth, f"for {name} in range({begin}, {begin} + {extent}):")
            self.emit(depth + 1, "pass")
            if one.parallel:
                self.emit(depth + 1, "task = []")
                self.emit(depth + 1, "regions[-1].append(task)")
            for inside in one.body:
                self.statement(inside, depth + 1)
        elif isinstance(one, If):
            self.loads(one.condition, depth)
            for word, body in ((f"if {self.text(one.condition)}:", one.then), ("else:", one.otherwise)):
                self.emit(depth, word)
                self.emit(depth + 1, "pass")
                for inside in body:
                    self.statement(inside, depth + 1)
        elif isinstance(one, Define):
            self.loads(one.value, depth)
            name = self.names[one.var] = f"v{len(self.names)}"
            self.emit(depth, f"{name} = {self.text(one.value)}" if one.value.kind == "int" else f"{name} = 0.0")
        elif isinstance(one, Evaluate):
            self.loads(one.value, depth)
        else:
            self.loads(one.index, depth)
            self.loads(one.value, depth)
            self.touch(one.buffer, one.index, depth)
            if one.value.kind == "int":
                self.emit(depth, f"tables[{one.buffer.key}][{self.text(one.index)}] = {self.text(one.value)}")

    def touch(self, buffer: Buffer, index: Expr, depth: int) -> None:
        if buffer.scope == "local":
            return
        self.buffers[buffer.key] = buffer
        size = buffer.bytes
        if index.lanes > 1:
            self.emit(depth, f"for lane in range({index.lanes}):")
        self.emit(depth + (index.lanes > 1), f"touch(start[{buffer.key}], {self.text(index)} * {size}, {size})")

    def loads(self, expr: Any, depth: int) -> None:
        if not isinstance(expr, Expr) or expr.op in ("const", "var"):
            return
        if expr.op == "load":
            self.loads(expr.args[1], depth)
            self.touch(expr.args[0], expr.args[1], depth)
        elif expr.op == "call" and expr.args[0] == "if_then_else":
            condition, then, otherwise = expr.args[1:]
            self.loads(condition, depth)
            for word, side in ((f"if {self.text(condition)}:", then), ("else:", otherwise)):
                self.emit(depth, word)
                self.emit(depth + 1, "pass")
                self.loads(side, depth + 1)
        elif expr.op == "let":
            self.loads(expr.args[1], depth)
            name = self.names[expr.args[0]] = f"v{len(self.names)}"
            self.emit(depth, f"{name} = {self.text(expr.args[1])}")
            self.loads(expr.args[2], depth)
        else:
            for part in expr.args:
                self.loads(part, depth)

    def text(self, expr: Expr) -> str:
        """An expression in Python."""
        op, args = expr.op, expr.args
        if op == "const":
            return repr(args[0])
        if op == "var":
            return self.names[args[0]]
        if op == "load":
            return f"tables[{args[0].key}][{self.text(args[1])}]" if expr.kind == "int" else "0.0"
        if op in OPERATORS:
            operator = "//" if op == "Div" and expr.kind == "int" else OPERATORS[op]
            return f"({self.text(args[0])} {operator} {self.text(args[1])})"
        if op == "select" or (op == "call" and args[0] == "if_then_else"):
            condition, then, otherwise = map(self.text, args[-3:])
            return f"({then} if {condition} else {otherwise})"
        if op == "ramp":
            return f"({self.text(args[0])} + lane * {self.text(args[1])})"
        if op == "cast":
            return f"int({self.text(args[0])})" if expr.kind == "int" else self.text(args[0])
        if op == "let":
            return self.text(args[2])
        if op == "broadcast":
            return self.text(args[0])
        if op == "call" and args[0] == "likely":
            return self.text(args[1])
        name, parts = (args[0], args[1:]) if op == "call" else (op, args)
        return f"{FUNCTIONS[name]}({', '.join(map(self.text, parts))})" if name in FUNCTIONS else "0.0"


def misses(trace: Iterable[int], lines: int) -> int:
    """Of a cache of so many lines that replaces the least recently used one, empty at the start."""
    held: OrderedDict[int, None] = OrderedDict()
    missed = 0
    for line in trace:
        if line in held:
            held.move_to_end(line)
            continue
        missed += 1
        held[line] = None
        if len(held) > lines:
            held.popitem(last=False)
    return missed


def private_misses(regions: Regions, lines: int, threads: int) -> int:
    """Of one cache for each thread, which runs equal, contiguous parts of each region's tasks."""
    traces: list[list[int]] = [[] for _ in range(threads)]
    for region in regions:
        share = -(-len(region) // threads)
        for position, task in enumerate(region):
            traces[position // share] += task
    return sum(misses(trace, lines) for trace in traces)
