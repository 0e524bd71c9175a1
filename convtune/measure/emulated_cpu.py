"""Verifies kernels of CPUs that are not at hand, and counts what they execute. Runs in the device worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from convtune.emulation.cost import cost
from convtune.emulation.kernel import EmulatedKernel, EmulationError
from convtune.measure.builder import Pack
from convtune.measure.device import Cases, Measurement, Prepare
from convtune.measure.verify import verify, verify_once

if TYPE_CHECKING:
    from convtune.cache_model import Traffic
    from convtune.emulation.counts import Counts
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

FEWEST_INSTRUCTIONS = 300e6  # before a kernel is taken for endless: seconds of emulation
INSTRUCTIONS_PER_FLOP = 50  # the same for each operation of the spec: a plain scalar loop takes 8


@dataclass(frozen=True)
class Execute:
    """Emulate a kernel and compare its result with the reference; answered with a Measurement.

    traffic: what its memory has to bring, as its builder has found it; None: nobody asks for its cost. twice: as
    `verify` does it; else only its first run.
    """

    spec: ConvSpec
    library: Path
    pack: Pack
    limit: float
    traffic: Traffic | None
    twice: bool


class EmulatedCpu:
    """The service of the device worker for a CPU that is not there."""

    def __init__(
        self, directory: Path, threads: int, features: tuple[str, ...], target: CpuTarget | None, seed: int
    ) -> None:
        """directory: for references. threads: of the CPU that is emulated. features: that it has, as in /proc/cpuinfo.
        target: to tell the cost on; None: nobody asks for it.
        """
        self._cases, self._threads, self._features, self._target = Cases(directory, seed), threads, features, target

    def __call__(self, request: Prepare | Execute) -> Measurement | None:
        """None to Prepare. Raises KernelError where a kernel does not load, or fails."""
        case = self._cases.of(request.spec)
        if isinstance(request, Prepare):
            return None
        inputs = case.inputs(request.pack)
        most = int(FEWEST_INSTRUCTIONS + INSTRUCTIONS_PER_FLOP * request.spec.flops)
        with EmulatedKernel(request.library, self._threads, [*inputs, "y"], self._features, most) as kernel:
            try:
                verdict = (verify if request.twice else verify_once)(kernel, inputs, case.reference, request.limit)
            except EmulationError as fault:
                return Measurement(fault.status, str(fault))
        if verdict.problem or self._target is None or request.traffic is None:
            return Measurement("wrong" if verdict.problem else "ok", verdict.problem, verdict.error)
        weighted = cost(kernel.counts, request.traffic, self._target)
        return Measurement("ok", "", verdict.error, cost=weighted, counts=_in_all(kernel.counts, request.traffic))


def _in_all(counts: Counts, traffic: Traffic) -> Mapping[str, int]:
    """The counts of a record."""
    moved = {"l1_bytes": traffic.l1_bytes, "l2_bytes": traffic.l2_bytes, "l3_bytes": traffic.l3_bytes}
    return {**counts.by_kind, **{name: round(amount) for name, amount in moved.items()}}
