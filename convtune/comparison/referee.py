"""Computes the reference that all results are compared with, once for all of them, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convtune.errors import MeasureError
from convtune.measure.bench import Limits
from convtune.measure.worker import Pool

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


@dataclass(frozen=True)
class Question:
    """Asks for the reference of a spec's random operands, in a .npy file."""

    spec: ConvSpec
    seed: int
    path: Path


def _service() -> Callable[[Question], None]:
    return _answer


def _answer(question: Question) -> None:
    import numpy as np

    from convtune.reference import random_operands

    np.save(question.path, random_operands(question.spec, question.seed).reference(question.spec))


class Referee:
    """One worker that computes references."""

    def __init__(self, directory: Path) -> None:
        self._pool, self._path = Pool(_service, (), 1, directory), directory / "reference.npy"
        self._limits = Limits()

    def reference(self, spec: ConvSpec, seed: int) -> Path:
        """The file that it is in, until the next call. Raises MeasureError where it cannot be computed."""
        question = Question(spec, seed, self._path)
        reply = self._pool.call(question, self._limits.reference(spec), self._limits.memory(spec))
        if reply.status != "ok":
            raise MeasureError(f"no reference of {spec} ({reply.status}): {reply.message}")
        return self._path

    def close(self) -> None:
        self._pool.stop()
