"""The loop nest of a kernel: who accesses which bytes in which loops, loops split until their indices are sums."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from convtune.errors import ScheduleError
from convtune.lowered import Buffer, Define, Evaluate, Expr, If, Store

from . import forms
from .forms import Arithmetic, Form, constant
from .statements import For, Statement

ROUNDS = 4
"""Splitting a loop may show that another one is divided; so often they are split."""
TABLE = 1 << 18
"""Most elements of an array of indices that is worked out."""
REGISTERS = "local"
"""Scope of arrays that LLVM keeps in registers."""


@dataclass(eq=False)
class Loop:
    """A loop. extent: values of its variable. trips: on average, of one thread. threads: that share its iterations."""

    key: int
    extent: int
    trips: float
    threads: int
    body: list[Node] = field(default_factory=list)


@dataclass(frozen=True, eq=False)
class Condition:
    """Where something is done. box: outside of it, never. share: of the box in which it is. loops: that decide."""

    box: forms.Box
    share: float
    loops: frozenset[int]


@dataclass(eq=False)
class Access:
    """Loads or stores that differ in a constant alone.

    terms: of the address in bytes. offsets: the constants, in bytes. width: bytes of each. conditions: those around it.
    path: the loops around, from the outside, without `together`: what runs inside of all, places in a vector and other
    threads.
    """

    buffer: Buffer
    terms: tuple[tuple[forms.Term, int], ...]
    offsets: list[int]
    width: int
    conditions: tuple[Condition, ...]
    path: tuple[Loop, ...]
    together: tuple[int, ...]


Node = Loop | Access


@dataclass(frozen=True)
class Nest:
    """A kernel. arithmetic: knows the extents of its loops."""

    body: list[Node]
    arithmetic: Arithmetic


def build(statements: Sequence[Statement], threads: int, shared: bool) -> Nest:
    """The nest of a kernel as one of its threads runs it; shared: all of them, at the same time.

    Raises:
        ScheduleError: an address or a loop's extent that cannot be worked out.
    """
    splits: dict[int, list[int]] = {}
    for _ in range(ROUNDS):
        builder = Builder(threads, shared, splits)
        body = builder.body(statements)
        found = _chains(builder.arithmetic.divisors, builder.origin, splits)
        if found == splits:
            break
        splits = found
    return Nest(body, builder.arithmetic)


def _chains(
    divisors: dict[int, set[int]], origin: dict[int, tuple[int, int]], known: dict[int, list[int]]
) -> dict[int, list[int]]:
    """By loop as it was written the steps to split it at, each a multiple of the one before."""
    wanted: dict[int, set[int]] = {loop: set(steps) for loop, steps in known.items()}
    for key, steps in divisors.items():
        written, stride = origin[key]
        if written < 0:
            continue
        wanted.setdefault(written, set()).update(step * stride for step in steps)
    chains = {}
    for written, steps in wanted.items():
        chain: list[int] = []
        for step in sorted(steps):
            if step % (chain[-1] if chain else 1) == 0:
                chain.append(step)
        chains[written] = chain
    return chains


class Builder:
    """Builds a nest of statements, with the loops split as `splits` says."""

    def __init__(self, threads: int, shared: bool, splits: dict[int, list[int]]) -> None:
        self.threads, self.shared, self.splits = threads, shared, splits
        self.arithmetic = Arithmetic()
        self.origin: dict[int, tuple[int, int]] = {}  # of a loop's key: number of the written loop, and its stride
        self.written = 0
        self.names: dict[Any, Form | Expr] = {}
        self.path: tuple[Loop, ...] = ()
        self.together: tuple[int, ...] = ()
        self.conditions: tuple[Condition, ...] = ()
        self.where: dict[tuple[Form, bool], Condition] = {}
        self.nodes: list[Node] = []
        self.merged: dict[tuple[Any, ...], Access] = {}
        self.lanes: dict[int, int] = {}  # the loop that stands for the places in a vector of so many

    def body(self, statements: Sequence[Statement]) -> list[Node]:
        """The nodes of statements that run one after the other."""
        outer = self.nodes, self.merged
        self.nodes, self.merged = [], {}
        self.run(statements)
        found = self.nodes
        self.nodes, self.merged = outer
        return found

    def run(self, statements: Sequence[Statement]) -> None:
        for statement in statements:
            if isinstance(statement, For):
                self._loop(statement)
                self.merged = {}  # what comes after a loop is not merged with what came before
            elif isinstance(statement, If):
                self._branch(statement)
            elif isinstance(statement, Store):
                self._store(statement)
            else:
                assert isinstance(statement, (Define, Evaluate))
                self.loads(statement.value)
                if isinstance(statement, Define):
                    self.names[statement.var] = statement.value

    # Loops

    def _loop(self, statement: For) -> None:
        extent = self.form(statement.extent)
        most, mean = self._trips(extent)
        number, self.written = self.written, self.written + 1
        if most < 1:
            return
        threads = min(self.threads, most) if statement.parallel else 1
        total, loops = self.form(statement.begin), []
        steps = [1, *(step for step in self.splits.get(number, ()) if step < most)]
        for position in reversed(range(len(steps))):
            above = most if position == len(steps) - 1 else steps[position + 1]
            count = -(-above // steps[position])
            trips = mean / steps[position] if position == len(steps) - 1 else float(count)
            shares = min(threads, count)
            threads = -(-threads // shares)
            loop = self._split(number, steps[position], count, trips, shares)
            loops.append(loop[0])
            total = forms.add(total, loop[1])
        self._nested(statement, loops, total)

    def _split(self, number: int, stride: int, count: int, trips: float, shares: int) -> tuple[Loop, Form]:
        """A loop over every `stride`-th value, and its part of the variable."""
        chunk = -(-count // shares)
        loop = Loop(self._key(number, stride, chunk), chunk, max(trips / shares, 1e-9), shares)
        part = forms.scale(forms.variable(loop.key), stride)
        if self.shared and shares > 1:
            thread = self._key(number, stride * chunk, shares)
            self.together = (*self.together, thread)
            part = forms.add(part, forms.scale(forms.variable(thread), stride * chunk))
        return loop, part

    def _key(self, number: int, stride: int, extent: int) -> int:
        key = len(self.origin)
        self.origin[key] = number, stride
        self.arithmetic.extents[key] = extent
        return key

    def _nested(self, statement: For, loops: list[Loop], total: Form) -> None:
        self.names[statement.var] = total
        outer, together = self.path, self.together
        self.path = (*outer, *loops)
        for around, inside in itertools.pairwise(loops):
            around.body.append(inside)
        loops[-1].body = self.body(statement.body)
        self.path = outer
        if not statement.parallel:
            self.together = together
        self.nodes.append(loops[0])

    def _trips(self, extent: Form) -> tuple[int, float]:
        """Most iterations of a loop, and the mean."""
        if extent.is_constant:
            return int(extent.offset), float(extent.offset)
        values = self.arithmetic.evaluate(extent, self.arithmetic.grid(forms.loops(extent)))
        return int(values.max()), float(np.maximum(values, 0).mean())

    # Conditions

    def _branch(self, statement: If) -> None:
        self.loads(statement.condition)
        condition = self.form(statement.condition)
        for positive, body in ((True, statement.then), (False, statement.otherwise)):
            outer = self.conditions
            if self.enter(condition, positive):
                self.run(body)
            self.conditions = outer

    def enter(self, condition: Form, positive: bool) -> bool:
        """Goes to where a condition holds, or does not; False if that is nowhere."""
        if (condition, positive) not in self.where:
            loops = forms.loops(condition)
            known = self.arithmetic.grid(loops)
            holds = np.atleast_1d(self.arithmetic.evaluate(condition, known).astype(bool)) == positive
            inside = {loop: values[holds] for loop, values in known.items()} if holds.any() else {}
            box = {loop: (int(values.min()), int(values.max()) + 1) for loop, values in inside.items()}
            ratio = math.prod((end - first) / self.arithmetic.extents[loop] for loop, (first, end) in box.items())
            self.where[condition, positive] = Condition(box, min(1.0, float(holds.mean()) / ratio), loops)
        found = self.where[condition, positive]
        if found.share == 0:
            return False
        if found.share < 1 or any(end - first < self.arithmetic.extents[k] for k, (first, end) in found.box.items()):
            self.conditions = (*self.conditions, found)
        return True

    # Memory

    def _store(self, statement: Store) -> None:
        self.loads(statement.index)
        self.loads(statement.value)
        if statement.value.kind == "int":
            self._tabulate(statement)
        self.access(statement.buffer, statement.index)

    def _tabulate(self, statement: Store) -> None:
        """Works out what an array of indices holds, where the loops around it are in the middle."""
        buffer, arithmetic = statement.buffer, self.arithmetic
        index, value = self.form(statement.index), self.form(statement.value)
        free = forms.loops(index)
        size = math.prod(buffer.shape)
        if size > TABLE or math.prod(arithmetic.extents[loop] for loop in free) > TABLE:
            raise ScheduleError(f"the cache model works out arrays of up to {TABLE} indices; {buffer.name} has {size}")
        known = arithmetic.grid(free, TABLE)
        known |= {loop: np.asarray(arithmetic.extents[loop] // 2) for loop in forms.loops(value) - free}
        table = arithmetic.tables.setdefault(buffer.key, np.zeros(size, np.int64))
        evaluated = arithmetic.evaluate(index, known), arithmetic.evaluate(value, known)
        places, values = np.broadcast_arrays(*map(np.atleast_1d, evaluated))
        table[np.clip(places.astype(np.int64), 0, size - 1)] = values

    def access(self, buffer: Buffer, index: Expr) -> None:
        """Notes what a load or a store touches."""
        if buffer.scope == REGISTERS:
            return
        form, size = self.form(index), buffer.bytes
        parts = {term: int(coefficient) * size for term, coefficient in form.terms}
        width, together = size, self.together
        for lane in forms.loops(form) & set(self.lanes.values()):
            if parts.get(lane) == size:
                width = size * self.arithmetic.extents[lane]
                del parts[lane]
            else:
                together = (*together, lane)
        terms = tuple(sorted(parts.items(), key=repr))
        key = (buffer.key, terms, width, self.conditions)
        if key not in self.merged:
            made = Access(buffer, terms, [], width, self.conditions, self.path, together)
            self.merged[key] = made
            self.nodes.append(made)
        self.merged[key].offsets.append(int(form.offset) * size)

    def loads(self, expr: Expr) -> None:
        """Notes all loads of an expression, under the conditions inside of it."""
        if expr.op in ("const", "var"):
            return
        if expr.op == "load":
            self.loads(expr.args[1])
            self.access(expr.args[0], expr.args[1])
            return
        if expr.op == "let":
            self.loads(expr.args[1])
            self.names[expr.args[0]] = expr.args[1]
            self.loads(expr.args[2])
            return
        if expr.op == "call" and expr.args[0] == "if_then_else":
            self._conditional(*expr.args[1:])
            return
        for part in expr.args[1:] if expr.op == "call" else expr.args:
            if part.kind == "handle" and part.op != "const":
                raise ScheduleError(f"the cache model cannot follow what {expr.args[0]} does with an address")
            self.loads(part)

    def _conditional(self, condition: Expr, then: Expr, otherwise: Expr) -> None:
        self.loads(condition)
        holds = self.form(condition)
        for positive, side in ((True, then), (False, otherwise)):
            outer = self.conditions
            if self.enter(holds, positive):
                self.loads(side)
            self.conditions = outer

    # Numbers

    def form(self, expr: Expr) -> Form:
        """An expression as a form. What is loaded from an array of floats is taken as 0, as offsets are around it."""
        op, args = expr.op, expr.args
        if op == "const":
            return constant(args[0])
        if op == "var":
            return self._name(args[0])
        if op == "load":
            if expr.kind != "int":
                return forms.ZERO
            index = self.form(args[1])
            return Form(0, ((forms.Atom("load", (index,), args[0].key), 1),))
        if op == "let":
            self.names[args[0]] = args[1]
            return self.form(args[2])
        if op == "cast":
            return self._cast(expr)
        if op == "broadcast":
            return self.form(args[0])
        if op == "ramp":
            parts = self._lane(expr.lanes), self.form(args[1])
            return forms.add(self.form(args[0]), self.arithmetic.operate("Mul", parts))
        if op == "call":
            return self._call(args[0], [self.form(part) for part in args[1:]])
        if op == "shuffle":
            raise ScheduleError("the cache model knows no address made of parts of vectors")
        return self.arithmetic.operate(op, tuple(self.form(part) for part in args))

    def _lane(self, lanes: int) -> Form:
        """The place in a vector, as a loop that always runs."""
        if lanes not in self.lanes:
            self.lanes[lanes] = self._key(-1, 1, lanes)
        return forms.variable(self.lanes[lanes])

    def _name(self, key: Any) -> Form:
        found = self.names.get(key)
        if found is None:
            raise ScheduleError(f"the cache model does not know the value of {key}")
        if isinstance(found, Expr):
            found = self.names[key] = self.form(found)
        return found

    def _cast(self, expr: Expr) -> Form:
        (source,) = expr.args
        form = self.form(source)
        if source.kind == expr.kind or {source.kind, expr.kind} == {"int", "bool"}:
            return form
        return self.arithmetic.operate("integer" if expr.kind == "int" else "real", (form,))

    def _call(self, name: str, parts: list[Form]) -> Form:
        if name == "likely":
            return parts[0]
        return self.arithmetic.operate("select" if name == "if_then_else" else name, tuple(parts))
