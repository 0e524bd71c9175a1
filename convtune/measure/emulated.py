"""Checks a GPU's kernels where there is no GPU: their CUDA C runs on the CPU. Runs in the device worker."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convtune.cuda.emulation.emulator import ORDERS, Emulation, build
from convtune.cuda.program import Program
from convtune.measure.builder import Pack
from convtune.measure.cuda_builder import PROGRAM_NAME
from convtune.measure.device import Cases, Measurement, Prepare
from convtune.measure.verify import Verdict, difference_in_bits, verify, verify_part
from convtune.runtime.kernel import ALIGNMENT

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Array = NDArray[Any]  # of the spec's dtype

SOME_MACS = 30e6
"""Multiply-accumulates of the blocks that stand for all of them: some tenths of a second."""
TRACED_MACS = 3e6
FEWEST_BLOCKS = 6


@dataclass(frozen=True)
class Emulate:
    """Compare a kernel's emulation with the reference; answered with a Measurement.

    whole: every block, in three orders of its threads, and some with each access traced; else some of the blocks.
    """

    spec: ConvSpec
    library: Path
    pack: Pack
    limit: float
    whole: bool


class EmulatedDevice:
    """The service of the device worker for a GPU that is not there."""

    def __init__(self, directory: Path, threads: int, seed: int) -> None:
        """directory: for references. threads: of the CPU, over which blocks are spread."""
        self._cases, self._threads = Cases(directory, seed), threads

    def __call__(self, request: Prepare | Emulate) -> Measurement | None:
        """None to Prepare. Raises BuildError where the traced emulation does not compile."""
        case = self._cases.of(request.spec)
        if isinstance(request, Prepare):
            return None
        directory = request.library.parent
        program = Program.from_json((directory / PROGRAM_NAME).read_text(encoding="utf-8"))
        runs = Runs(Emulation(request.library, program), self._threads)
        inputs = case.inputs(request.pack)
        if request.whole:
            verdict = _in_all_orders(runs, inputs, case.reference, request.limit)
            if not verdict.problem:
                traced = Emulation(build(program, directory / "traced", checked=True), program)
                runs = Runs(traced, self._threads, _blocks(program, request.spec, TRACED_MACS))
                verdict = verify_part(runs, inputs, case.reference, request.limit, ALIGNMENT)
        else:
            runs.blocks = _blocks(program, request.spec, SOME_MACS)
            verdict = verify_part(runs, inputs, case.reference, request.limit, ALIGNMENT)
        problem = runs.problem or verdict.problem
        return Measurement("wrong" if problem else "ok", problem, verdict.error, suspect=verdict.overran)


class Runs:
    """An emulation as `verify` runs it: every time in another order of its threads.

    blocks: how many of each launch; None: all. problem: what a run found besides its result, if anything.
    """

    def __init__(self, emulation: Emulation, threads: int, blocks: int | None = None) -> None:
        self._emulation, self._threads, self.blocks = emulation, threads, blocks
        self._orders = itertools.cycle(ORDERS)
        self.problem = ""

    def __call__(self, arrays: Sequence[NDArray[Any]], alignments: Sequence[int]) -> None:
        report = self._emulation.run(arrays, order=next(self._orders), blocks=self.blocks, threads=self._threads)
        self.problem = self.problem or report.problem

    def fill_scratch(self, byte: int | None) -> None:
        self._emulation.fill_scratch(byte)


def _in_all_orders(runs: Runs, inputs: Mapping[str, Array], reference: NDArray[np.float64], limit: float) -> Verdict:
    """The verdict on the first two orders, then the third: without races they give the same bits."""
    verdict = verify(runs, inputs, reference, limit, ALIGNMENT)
    if verdict.y is None:
        return verdict
    y = np.empty_like(verdict.y)
    runs([*inputs.values(), y], [])
    if change := difference_in_bits("y", verdict.y, y):
        return Verdict(f"gives another result in another order of its threads: {change}", verdict.error)
    return verdict


def _blocks(program: Program, spec: ConvSpec, macs: float) -> int | None:
    """How many blocks do so many multiply-accumulates; None for all, as where one launch needs another's result."""
    if len(program.launches) > 1:
        return None
    blocks = prod(program.launches[0].grid)
    some = max(FEWEST_BLOCKS, int(blocks * macs / max(spec.macs, 1)))
    return some if some < blocks else None
