"""Walks a kernel as one warp does, and counts what it executes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from convtune.lowered import Buffer, Define, Evaluate, Expr, If, Store

from .accesses import WIDEST_BYTES
from .machine import Machine, Vector
from .regions import TENSOR_MULTIPLY_ADDS, Counts, Frame, GlobalUse, Region
from .samples import LANES, Sampler
from .tree import AsyncCopy, AsyncWait, Barrier, Kernel, Loop, MatrixMove, MatrixMultiply, Statement
from .values import Value, Values, constant

AUTO_UNROLL = 1000
"""Nodes up to which nvcc unrolls a loop of known extent by itself."""
REGISTER_UNROLL = 20000
"""The same for a loop that indexes an array of registers, which they can only be once it is unrolled."""


@dataclass(frozen=True)
class Counted:
    """What a walk found. warps: of a block. variables: thread and block indices by name, as values."""

    regions: list[Region]
    uses: list[GlobalUse]
    values: Values
    sampler: Sampler
    variables: dict[str, Value]

    def per_block(self) -> Counts:
        """Sums over all regions and warps."""
        total = Counts()
        for region in self.regions:
            total.add(region.counts, region.executions * self.sampler.warps)
        return total


def count(kernel: Kernel, as_written: bool = False) -> Counted:
    """Counts what one block of a kernel executes, on average over its blocks and warps.

    as_written: its loads and stores as they are in the source, before nvcc drops and joins some.
    """
    walker = Walker(kernel, as_written)
    walker.run(kernel.body)
    walker.finish()
    return Counted(walker.closed, walker.uses, walker.values, walker.sampler, walker.variables)


class Walker(Machine):
    """Runs the statements of a kernel."""

    def finish(self) -> None:
        for region in self.open:
            self._close(region)

    def _close(self, region: Region) -> None:
        self.uses += region.close(self.values, self.masks)
        self.closed.append(region)

    def _cut(self) -> None:
        """Ends the open stretch and starts the next, inside the same loop."""
        old = self.open.pop()
        self._close(old)
        self.open.append(Region(self.frames, old.executions, old.taken))

    # Statements

    def run(self, body: Sequence[Statement]) -> None:
        for statement in body:
            getattr(self, f"_{type(statement).__name__.lower()}")(statement)

    def _define(self, statement: Define) -> None:
        # An integer is computed where it is used: most of these names, made by TVM, are not used at all.
        lazy = statement.value.kind == "int" and statement.value.op != "load"
        self.names[statement.var] = statement.value if lazy else self.scalar(statement.value)

    def _barrier(self, _: Barrier) -> None:
        self.region.counts.barriers += self.weight
        self._cut()

    def _asyncwait(self, statement: AsyncWait) -> None:
        self.region.waits = statement.pending

    def _evaluate(self, statement: Evaluate) -> None:
        self.value(statement.value)

    def _if(self, statement: If) -> None:
        condition = self.scalar(statement.condition)
        for positive, body in ((True, statement.then), (False, statement.otherwise)):
            with_condition = self.masked(condition, positive)
            if body and self.masks[with_condition].any():
                outer, self.mask = self.mask, with_condition
                self.run(body)
                self.mask = outer

    def _store(self, statement: Store) -> None:
        found = self.value(statement.value)
        lanes = found if isinstance(found, list) else [found]
        if statement.buffer.scope == "local":
            self._store_register(statement, lanes)
            return
        indices = self.lanes(statement.index)
        for index, value in zip(indices, lanes):
            self.used(value)
            if statement.buffer.scope == "shared" and statement.value.kind != "float":
                self.shared.setdefault(statement.buffer.key, {})[index] = value
        self.access("store", statement.buffer, indices)

    def _store_register(self, statement: Store, lanes: Vector) -> None:
        indices = self.lanes(statement.index)
        if len(lanes) == 1:
            lanes = lanes * len(indices)
        for index, value in zip(indices, lanes):
            if index.is_constant:
                self.registers[statement.buffer.key, int(index.offset)] = value
            else:
                self.region.counts.local_requests += self.weight

    def _asynccopy(self, statement: AsyncCopy) -> None:
        # Where its condition does not hold it reads nothing and writes zeros.
        self._copied(statement.target, statement.target_index, statement.bytes, alone=statement.condition is not None)
        outer = self.mask
        if statement.condition is not None:
            self.mask = self.masked(self.scalar(statement.condition), True)
        if self.masks[self.mask].any():
            self._copied(statement.source, statement.source_index, statement.bytes, statement.condition is not None)
        self.mask = outer

    def _copied(self, buffer: Buffer, index: Expr, size: int, alone: bool) -> None:
        first = self.scalar(index)
        lanes = [Value(first.node, first.offset + lane) for lane in range(size // buffer.bytes)]
        self.access("copy", buffer, lanes, alone)

    def _matrixmove(self, statement: MatrixMove) -> None:
        # Each lane has some 16 bytes of a row, as ldmatrix and wmma have it.
        buffer = statement.buffer
        width = min(statement.elements // LANES, WIDEST_BYTES // buffer.bytes)
        row = self.operate(
            "Mul", "int", (self.operate("Mod", "int", (self.lane, constant(16))), self.scalar(statement.stride))
        )
        column = self.operate("Mul", "int", (self.operate("Div", "int", (self.lane, constant(16))), constant(width)))
        base = self.operate("Add", "int", (self.scalar(statement.index), self.operate("Add", "int", (row, column))))
        for start in range(0, statement.elements // LANES, width):
            first = base.offset + start * LANES // 16
            self.access(statement.kind, buffer, [Value(base.node, first + lane) for lane in range(width)])
        if statement.kind == "load":
            self.region.exposed.add(buffer.scope)

    def _matrixmultiply(self, statement: MatrixMultiply) -> None:
        self.region.counts.tensor += self.weight * statement.multiply_adds / TENSOR_MULTIPLY_ADDS

    def _loop(self, loop: Loop) -> None:
        begin, extent = self.scalar(loop.begin), self.scalar(loop.extent)
        if extent.is_constant and begin.is_constant and self._is_unrolled(loop):
            for iteration in range(int(extent.offset)):
                self.names[loop.var] = constant(int(begin.offset) + iteration)
                self.run(loop.body)
            return
        trips = np.maximum(self.values.sampled(extent), 0)
        per_warp = np.where(self.masks[self.mask], trips, 0).max(axis=1)
        average = float(per_warp.mean()) / self.taken if self.taken else 0.0
        if average == 0.0:
            return
        level = len(self.frames) + 1
        taken = self.taken
        variable = self.values.leaf("loop", level, self.sampler.spread(trips) + self.values.sampled(begin))
        executions = self.region.executions * self.weight * average
        largest = int(trips.max())
        frame = Frame(level, average, executions, variable, largest, loop.has_barrier)
        self._enter(loop, frame, taken)
        self.run(loop.body)
        self.region.counts.integer += 2 / frame.unroll  # the counter and the branch
        self._close(self.open.pop())
        self.frames = self.frames[:-1]
        self._forget(loop)
        self._cut()

    def _is_unrolled(self, loop: Loop) -> bool:
        if loop.unrolled:
            return loop.size <= REGISTER_UNROLL
        return not loop.has_barrier and loop.size <= (REGISTER_UNROLL if loop.indexes_registers else AUTO_UNROLL)

    def _enter(self, loop: Loop, frame: Frame, taken: float) -> None:
        self._forget(loop)
        self.names[loop.var] = frame.variable
        self.frames = (*self.frames, frame)
        self.open.append(Region(self.frames, frame.executions, taken))

    def _forget(self, loop: Loop) -> None:
        """What a loop writes has another value in each iteration."""
        self.registers = {key: value for key, value in self.registers.items() if key[0] not in loop.stored}
