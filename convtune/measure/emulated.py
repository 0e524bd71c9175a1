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
"""The same where each access is traced."""
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
        if not request.whole:
            runs.blocks = _share(program, request.spec, SOME_MACS) if len(program.launches) == 1 else None
            verdict = verify_part(runs, inputs, case.reference, request.limit, ALIGNMENT)
        else:
            verdict = _in_all_orders(runs, inputs, case.reference, request.limit)
            if verdict.y is not None and not runs.problem:
                runs.problem = _traced(program, request.spec, directory, [*inputs.values(), verdict.y], self._threads)
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


def _traced(program: Program, spec: ConvSpec, directory: Path, arrays: Sequence[NDArray[Any]], threads: int) -> str:
    """What is wrong with the accesses of some blocks of each launch; "" where nothing is. y, the last array, is lost.

    Each launch is a program of its own, to which workspaces are arrays as others, as the launches before leave them.
    """
    spaces = [np.zeros(space.count, space.dtype) for space in program.workspaces]
    parameters = (*program.parameters, *program.workspaces)
    for number, launch in enumerate(program.launches, start=1):
        alone = Program(program.source, parameters, (), (launch,))
        emulation = Emulation(build(alone, directory, checked=True), alone)
        kept = [array.copy() for array in spaces]  # some blocks' results are not what the next launch reads
        report = emulation.run([*arrays, *kept], blocks=_share(alone, spec, TRACED_MACS))
        if report.problem or number == len(program.launches):
            return report.problem
        Emulation(build(alone, directory, checked=False), alone).run([*arrays, *spaces], threads=threads)
    raise AssertionError("a program has launches")


def _share(program: Program, spec: ConvSpec, macs: float) -> int | None:
    """How many blocks of its only launch do so many multiply-accumulates; None for all."""
    (launch,) = program.launches
    blocks = prod(launch.grid)
    some = max(FEWEST_BLOCKS, int(blocks * macs / max(spec.macs, 1)))
    return some if some < blocks else None
