"""What an emulated kernel executed: its instructions by kind, by block and by task of its parallel regions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KINDS = ("vector_arithmetic", "scalar_arithmetic", "load", "store", "shuffle", "branch", "other")


@dataclass(frozen=True)
class Counts:
    """Instructions of one run; the same at each run, to the instruction.

    by_kind: of KINDS. Arithmetic is that on floating-point and vector registers, of a whole vector or of one element.
    A shuffle moves elements in or between those registers. What is done with integers counts as other. An x86
    instruction that computes with an operand in memory counts as a load too, so that kinds may add up to more than
    `instructions`.
    blocks: executions by the address of a basic block's start.
    regions: instructions of each task, in the order of the tasks, of each parallel region in the order of their launch.
    """

    instructions: int
    by_kind: Mapping[str, int]
    blocks: Mapping[int, int]
    regions: tuple[tuple[int, ...], ...] = ()

    @property
    def task_instructions(self) -> tuple[int, ...]:
        """Of all tasks of all regions."""
        return tuple(task for region in self.regions for task in region)
