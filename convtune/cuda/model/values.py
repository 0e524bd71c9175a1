"""The values of a kernel: equal ones are one node, as a compiler has them, and NumPy can evaluate any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from convtune.arithmetic import Array, compute


class Value(NamedTuple):
    """A node and a constant on top of it, as addresses have an offset. Node 0 is nothing: the value is the constant."""

    node: int
    offset: Any

    @property
    def is_constant(self) -> bool:
        """Whether it is known before the kernel runs."""
        return self.node == 0


def constant(number: Any) -> Value:
    """A number as a value."""
    return Value(0, number)


@dataclass(frozen=True)
class Node:
    """What a node computes. level: of the innermost loop that it depends on, 0 outside of all."""

    op: str
    operands: tuple[Value, ...]
    level: int


class Values:
    """All nodes of one kernel. `leaves` holds what the samples say of the nodes that nothing is computed from."""

    def __init__(self) -> None:
        self.nodes = [Node("const", (), 0)]
        self.table: dict[tuple[str, tuple[Value, ...]], int] = {}
        self.samples: dict[int, Array] = {0: np.zeros((1, 1), np.int64)}

    def leaf(self, op: str, level: int, samples: Array) -> Value:
        """A new node with its own samples: a thread's index, a loop's variable, a number out of memory."""
        self.nodes.append(Node(op, (), level))
        self.samples[len(self.nodes) - 1] = samples
        return Value(len(self.nodes) - 1, 0)

    def find(self, op: str, *operands: Value) -> tuple[Value, bool]:
        """The node of an operation, and whether it is a new one."""
        if op == "Add" and operands[0].node > operands[1].node:
            operands = operands[::-1]
        key = (op, operands)
        found = self.table.get(key)
        if found is not None:
            return Value(found, 0), False
        level = max(self.nodes[value.node].level for value in operands)
        self.nodes.append(Node(op, operands, level))
        self.table[key] = len(self.nodes) - 1
        return Value(len(self.nodes) - 1, 0), True

    def level(self, value: Value) -> int:
        """Of the innermost loop that a value depends on."""
        return self.nodes[value.node].level

    def sampled(self, value: Value) -> Array:
        """Its samples: (samples or 1, lanes or 1)."""
        array = self.evaluate(value.node, self.samples)
        return array + value.offset if value.offset else array

    def evaluate(self, node: int, known: dict[int, Array]) -> Array:
        """A node's value where leaves have the given ones; `known` is filled with all that was computed."""
        found = known.get(node)
        if found is not None:
            return found
        one = self.nodes[node]
        if not one.operands:
            return np.zeros((1, 1), np.int64)  # a leaf that was not given
        parts = []
        for operand in one.operands:
            part = self.evaluate(operand.node, known)
            parts.append(part + operand.offset if operand.offset else part)
        result = compute(one.op, parts)
        known[node] = result
        return result
