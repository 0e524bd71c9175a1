"""Builds, verifies and estimates candidates for a GPU that is not in this machine."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from convtune.cuda import toolkit
from convtune.cuda.emulation import emulator
from convtune.measure.bench import Bench, Limits
from convtune.measure.builder import Library
from convtune.measure.cuda_builder import EmulationBuilder
from convtune.measure.device import Measurement
from convtune.measure.emulated import Emulate, EmulatedDevice
from convtune.measure.worker import Service

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import GpuTarget


class EmulationLimits(Limits):
    """What a request may take where every block is emulated three times, and some with all their accesses traced."""

    def device(self, spec: ConvSpec) -> float:
        return 3 * super().device(spec)


class EstimatingBench(Bench):
    """A bench whose times are estimates of the static model, and whose kernels are emulated to verify them.

    `measure` checks some of a kernel's blocks, `verify` all of them, in three orders of the threads.
    """

    origin: ClassVar[str] = "estimated"
    builder: ClassVar[Service] = EmulationBuilder
    device: ClassVar[Service] = EmulatedDevice
    usual_limits: ClassVar[Limits] = EmulationLimits(build_s=90.0, device_s=60.0)
    samples: ClassVar[bool] = True

    def __init__(
        self, target: GpuTarget, directory: Path | None = None, limits: Limits | None = None, seed: int = 0
    ) -> None:
        """Raises TargetError where there is no nvcc that knows the target's arch, or no C++ compiler."""
        toolkit.find().check(target.arch)
        emulator.find_compiler()
        super().__init__(target, len(os.sched_getaffinity(0)), directory, limits, seed)

    @property
    def runs(self) -> bool:
        return True

    def _timing(self, spec: ConvSpec, library: Library, limit: float, best_us: float | None) -> Emulate:
        return Emulate(spec, library.path, library.pack, limit, whole=False)

    def _verifying(self, spec: ConvSpec, library: Library, limit: float) -> Emulate:
        return Emulate(spec, library.path, library.pack, limit, whole=True)

    def _times(self, found: Measurement, library: Library) -> tuple[float, ...]:
        return library.estimates_us

    def _in_turn(self, spec: ConvSpec, libraries: Sequence[Library], rounds: int) -> list[tuple[float, ...]]:
        """The estimates again: they do not depend on the minute."""
        return [library.estimates_us for library in libraries]
