"""The state of a warp on its walk through a kernel, and the expressions that it evaluates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convtune.arithmetic import compute
from convtune.lowered import Buffer, Expr

from . import costs
from .regions import Frame, GlobalUse, Group, Region
from .samples import LANES, Sampler
from .tree import Kernel
from .values import Value, Values, constant

Vector = list[Value]


class Machine:
    """Names, registers, the loops and the condition around, the open regions."""

    def __init__(self, kernel: Kernel, as_written: bool = False) -> None:
        """as_written: nothing is loaded once for many uses, or joined with its neighbours."""
        self.as_written = as_written
        self.serial = 0
        self.values = Values()
        self.sampler = Sampler(kernel.extents)
        self.masks: list[NDArray[np.bool_]] = [self.sampler.active]
        self.mask_table: dict[tuple[int, Value, bool], int] = {}
        self.mask = 0
        self.names: dict[Any, Value | Expr] = {}
        self.variables: dict[str, Value] = {}
        self.registers: dict[tuple[Any, int], Value] = {}
        self.loaded: dict[int, tuple[str, Region]] = {}  # nodes out of memory
        self.chains: dict[int, tuple[Region, int]] = {}
        self.shared: dict[int, dict[Value, Value]] = {}  # what was stored where, by buffer
        self.memory: dict[tuple[Region, int, Value], Value] = {}
        self.conditions = 0  # of if_then_else around
        self.frames: tuple[Frame, ...] = ()
        self.closed: list[Region] = []
        self.uses: list[GlobalUse] = []
        self.open: list[Region] = [Region((), 1.0, 1.0)]
        self.lane = self.values.leaf("lane", 0, np.arange(LANES)[None, :])
        for variable, name in kernel.threads.items():
            if name not in self.variables:
                self.variables[name] = self.values.leaf(name, 0, self.sampler.axis(name))
            self.names[variable] = self.variables[name]

    @property
    def region(self) -> Region:
        return self.open[-1]

    @property
    def taken(self) -> float:
        """Share of the warps that are here."""
        return float(self.masks[self.mask].any(axis=1).mean())

    @property
    def weight(self) -> float:
        return self.taken / self.region.taken if self.region.taken else 0.0

    def masked(self, condition: Value, positive: bool) -> int:
        """The mask of where a condition holds, or does not, among the active lanes."""
        key = (self.mask, condition, positive)
        if key not in self.mask_table:
            holds = self.values.sampled(condition).astype(bool)
            self.masks.append(self.masks[self.mask] & (holds if positive else ~holds))
            self.mask_table[key] = len(self.masks) - 1
        return self.mask_table[key]

    def scalar(self, expr: Expr) -> Value:
        """Of an expression that is no vector."""
        found = self.value(expr)
        return found[0] if isinstance(found, list) else found

    def lanes(self, index: Expr) -> Vector:
        """The elements that an index names: one, or those of a ramp."""
        found = self.value(index)
        return found if isinstance(found, list) else [found]

    def value(self, expr: Expr) -> Value | Vector:
        """Evaluates an expression and charges what is new in it; a list for a vector."""
        if expr.op == "const":
            return constant(expr.args[0])
        if expr.op == "var":
            return self.name(expr.args[0])
        special: Callable[[Expr], Value | Vector] | None = getattr(self, f"_value_{expr.op}", None)
        if special is not None:
            return special(expr)
        kind = expr.args[0].kind
        if kind == "float" and expr.op in ("Add", "Sub"):
            for first, second in (expr.args, expr.args[::-1]):
                if second.op == "Mul":
                    parts = [self.value(part) for part in (first, *second.args)]
                    return self.each(lambda *v: self.fused(expr.op, *v), parts)
        parts = [self.value(part) for part in expr.args]
        return self.each(lambda *v: self.operate(expr.op, kind, v), parts)

    def each(self, compute: Callable[..., Value], parts: list[Value | Vector]) -> Value | Vector:
        """Lane by lane where a part is a vector."""
        widths = [len(part) for part in parts if isinstance(part, list)]
        if not widths:
            return compute(*parts)
        spread = [part if isinstance(part, list) else [part] * max(widths) for part in parts]
        return [compute(*lane) for lane in zip(*spread)]

    def name(self, key: Any) -> Value:
        """What a name stands for, evaluated at its first use."""
        found = self.names.get(key)
        if isinstance(found, Expr):
            found = self.names[key] = self.scalar(found)
        if found is None:  # a pointer, or a scalar argument of the kernel
            found = self.names[key] = self.values.leaf("argument", 0, np.zeros((1, 1), np.int64))
        return found

    def operate(self, op: str, kind: str, operands: tuple[Value, ...]) -> Value:
        """One operator. Constants fold; those added to an integer stay beside its node, as addresses have them."""
        if all(value.is_constant for value in operands):
            arrays = [np.asarray(value.offset) for value in operands]
            return constant(compute(op, arrays).item())
        if kind == "int" and op in ("Add", "Sub", "Mul"):
            folded = self._fold(op, *operands)
            if folded is not None:
                return folded
        return self.new(op, operands, costs.of_operator(op, kind, operands), kind)

    def _fold(self, op: str, a: Value, b: Value) -> Value | None:
        if op == "Mul":
            if a.is_constant:
                a, b = b, a
            if not b.is_constant:
                return None
            if b.offset in (0, 1):
                return a if b.offset else constant(0)
            scaled = self.new("Mul", (Value(a.node, 0), b), costs.PAIRED, "int")
            return Value(scaled.node, a.offset * b.offset)
        sign = 1 if op == "Add" else -1
        offset = a.offset + sign * b.offset
        if b.is_constant:
            return Value(a.node, offset)
        if a.is_constant and op == "Add":
            return Value(b.node, offset)
        return Value(self.new(op, (Value(a.node, 0), Value(b.node, 0)), costs.PAIRED, "int").node, offset)

    def fused(self, op: str, c: Value, a: Value, b: Value) -> Value:
        """c + a * b in one instruction."""
        product, _ = self.values.find("Mul", a, b)
        self._follow(product, (a, b), 0)
        result, is_new = self.values.find(op, c, product)
        if is_new:
            self._charge(result, costs.FLOATING, fma=1.0)
            self._follow(result, (c, product), 1)
        return result

    def new(self, op: str, operands: tuple[Value, ...], cost: costs.Cost, kind: str) -> Value:
        """The node of an operation, charged if it is a new one."""
        result, is_new = self.values.find(op, *operands)
        if is_new:
            self._charge(result, cost)
            self._follow(result, operands, 1 if kind == "float" else 0)
        return result

    def _charge(self, value: Value, cost: costs.Cost, fma: float = 0.0) -> None:
        """To the region of the loop that the value depends on: compilers compute it there, once."""
        level = self.values.level(value)
        weight = self.weight if level == len(self.frames) else 1.0
        if level and cost is costs.PAIRED:
            weight /= self.frames[level - 1].unroll  # iterations share an address and differ by constants
        counts = self.open[min(level, len(self.open) - 1)].counts
        counts.floating += weight * cost.floating
        counts.integer += weight * cost.integer
        counts.special += weight * cost.special
        counts.fma += weight * fma

    def _follow(self, result: Value, operands: tuple[Value, ...], steps: int) -> None:
        """Keeps the longest chain of dependent float instructions, and marks loads that are waited for."""
        depth = 0
        for operand in operands:
            self.used(operand)
            region, length = self.chains.get(operand.node, (None, 0))
            if region is self.region:
                depth = max(depth, length)
        self.chains[result.node] = (self.region, depth + steps)
        self.region.chain = max(self.region.chain, depth + steps)

    def used(self, value: Value) -> None:
        """An instruction needs the value now."""
        if value.node in self.loaded:
            scope, region = self.loaded[value.node]
            if region is self.region:
                region.exposed.add(scope)

    # Expressions that are no operators

    def _value_ramp(self, expr: Expr) -> Vector:
        base, stride = self.scalar(expr.args[0]), self.scalar(expr.args[1])
        steps = (self.operate("Mul", "int", (stride, constant(lane))) for lane in range(expr.lanes))
        return [self.operate("Add", "int", (base, step)) for step in steps]

    def _value_broadcast(self, expr: Expr) -> Vector:
        return [self.scalar(expr.args[0])] * expr.lanes

    def _value_shuffle(self, expr: Expr) -> Vector:
        found: Vector = []
        for part in expr.args:
            value = self.value(part)
            found += value if isinstance(value, list) else [value]
        return found

    def _value_let(self, expr: Expr) -> Value | Vector:
        self.names[expr.args[0]] = self.scalar(expr.args[1])
        return self.value(expr.args[2])

    def _value_cast(self, expr: Expr) -> Value | Vector:
        source = expr.args[0].kind
        value = self.value(expr.args[0])
        if source == expr.kind or {source, expr.kind} == {"int", "bool"}:
            return value
        op = "integer" if expr.kind == "int" else "real"
        return self.each(lambda v: self.operate(op, "cast", (v,)), [value])

    def _value_select(self, expr: Expr) -> Value | Vector:
        parts = [self.value(part) for part in expr.args]
        return self.each(lambda *v: self.operate("select", "int", v), parts)

    def _value_call(self, expr: Expr) -> Value | Vector:
        name, *arguments = expr.args
        if name == "if_then_else":
            return self._conditional(*arguments)
        if name == "likely":
            return self.value(arguments[0])
        parts = [self.value(part) for part in arguments if part.kind != "handle"]
        if expr.kind == "handle" or not parts:
            return self.unknown(expr.kind)
        return self.each(lambda *v: self.new(name, v, costs.of_call(name), "float"), parts)

    def _conditional(self, condition: Expr, then: Expr, otherwise: Expr) -> Value | Vector:
        """Loads on either side are made by the lanes that need them."""
        holds = self.scalar(condition)
        if holds.is_constant:
            return self.value(then if holds.offset else otherwise)
        parts: list[Value | Vector] = [holds]
        outer = self.mask
        for positive, side in ((True, then), (False, otherwise)):
            self.mask = self.masked(holds, positive)
            self.conditions += 1
            parts.append(self.value(side) if self.masks[self.mask].any() else constant(0))
            self.conditions -= 1
            self.mask = outer
        # The register is cleared before, and the load writes it under its predicate.
        return self.each(lambda *v: self.new("select", v, costs.PAIRED, "select"), parts)

    def unknown(self, kind: str) -> Value:
        """A number that only the running kernel knows."""
        return self.values.leaf("unknown", len(self.frames), self.sampler.noise(kind))

    # Memory

    def _value_load(self, expr: Expr) -> Value | Vector:
        buffer, index = expr.args
        indices = self.lanes(index)
        if buffer.scope == "local":
            found = [self._register(buffer, one, expr.kind) for one in indices]
        else:
            self.access("load", buffer, indices)
            found = [self._loaded(buffer, one, expr.kind) for one in indices]
        return found if expr.lanes > 1 else found[0]

    def _register(self, buffer: Buffer, index: Value, kind: str) -> Value:
        key = (buffer.key, int(index.offset))
        if not index.is_constant:
            self.region.counts.local_requests += self.weight
            return self.unknown(kind)
        if key not in self.registers:
            self.registers[key] = self.unknown(kind)
        return self.registers[key]

    def _loaded(self, buffer: Buffer, index: Value, kind: str) -> Value:
        """The number at an address; the same one within a region, where nothing overwrites it."""
        key = (self.region, buffer.key, index)
        if key not in self.memory:
            value = self.memory[key] = self._stored_before(buffer, index, kind)
            self.loaded[value.node] = (buffer.scope, self.region)
        return self.memory[key]

    def _stored_before(self, buffer: Buffer, index: Value, kind: str) -> Value:
        """What threads have left in shared memory, if it is an index of something else; else anything."""
        stored = self.shared.get(buffer.key, {})
        if kind == "float" or not stored:
            return self.unknown(kind)
        value = stored.get(index) or next(iter(stored.values()))
        samples = self.values.sampled(value)
        if index not in stored:
            writer = self.values.sampled(next(iter(stored)))[:, None, :]
            same = np.broadcast_to(writer == self.values.sampled(index)[:, :, None], (self.sampler.size, LANES, LANES))
            source = np.where(same.any(axis=2), same.argmax(axis=2), np.arange(LANES))
            samples = np.take_along_axis(np.broadcast_to(samples, source.shape), source, axis=1)
        return self.values.leaf("shared", len(self.frames), samples)

    def access(self, kind: str, buffer: Buffer, indices: Vector, alone: bool = False) -> None:
        """Notes what a load, a store or an asynchronous copy touches."""
        first = indices[0]
        alone = alone or self.conditions > 0
        in_order = all(value == Value(first.node, first.offset + lane) for lane, value in enumerate(indices))
        for value, width in [(first, len(indices))] if in_order else [(value, 1) for value in indices]:
            self.serial += self.as_written
            group = Group(kind, buffer, value.node, self.mask, alone, self.serial)
            self.region.access(group, int(value.offset), width, self.weight)
