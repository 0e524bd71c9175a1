"""Builds candidates for CPUs that are not at hand, verifies them in emulation, and ranks them by what they execute."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from convtune import linker
from convtune.emulation.machines import check
from convtune.measure.bench import Bench, Built, Limits, Outcome, Wanted
from convtune.measure.builder import EmulatedBuilder, Library
from convtune.measure.device import Measurement
from convtune.measure.emulated_cpu import EmulatedCpu, Execute
from convtune.measure.worker import Pool, Service, wait_for
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget

DEVICE_MACS_PER_S = 4e6  # at the least: a core here emulates 40 to 120 million multiply-accumulates a second


class EmulationLimits(Limits):
    """What a request may take where every instruction is emulated."""

    def device(self, spec: ConvSpec) -> float:
        """Enough for two runs."""
        return self.device_s + spec.flops / DEVICE_MACS_PER_S


EMULATION_LIMITS = EmulationLimits(build_s=40.0, device_s=60.0)


class EmulatingBench(Bench):
    """A bench whose kernels are emulated: they have no times, and are ranked by a cost.

    `measure` runs a kernel once, `verify` twice. Kernels of a batch run side by side, one on each core.
    """

    origin: ClassVar[str] = "emulated"
    builder: ClassVar[Service] = EmulatedBuilder
    device: ClassVar[Service] = EmulatedCpu
    usual_limits: ClassVar[Limits] = EMULATION_LIMITS
    samples: ClassVar[bool] = True

    def __init__(
        self, target: CpuTarget, directory: Path | None = None, limits: Limits | None = None, seed: int = 0
    ) -> None:
        """Raises TargetError where the target cannot be emulated, and where a package or a C compiler is missing."""
        check(target.machine, target.required_features)
        linker.build_runtime(linker.find_compiler(target.machine), cache_dir())
        super().__init__(target, target.threads, directory, limits, seed)
        arguments = (self._home, target.threads, target.required_features, target, seed)
        self._device = Pool(self.device, arguments, len(os.sched_getaffinity(0)), self._home)

    @property
    def runs(self) -> bool:
        return True

    def outcomes(self, wanted: Wanted) -> Iterator[tuple[Built, Outcome]]:
        wanted.doing(f"building {wanted.how_many}")
        spec = wanted.spec
        waiting: list[tuple[Built, Library]] = []
        for built in self.build(spec, wanted.candidates):
            if built.library is None:
                yield built, Outcome(built.status, built.message)
            else:
                waiting.append((built, built.library))
        if not waiting:
            return
        self._prepare(spec)
        wanted.doing(f"emulating {len(waiting)} candidate{'s' if len(waiting) > 1 else ''}")
        requests = [self._timing(spec, library, wanted.limit, None) for _, library in waiting]
        with self._device.begin(requests, self.limits.device(spec), self.limits.memory(spec)) as batch:
            while batch.open:
                batch.submit()
                wait_for(batch.workers, self._device.on_wait)
                for index, reply in batch.replies().items():
                    built, library = waiting[index]
                    yield built, self._settled(built, self._answered(library, reply))

    def _timing(self, spec: ConvSpec, library: Library, limit: float, best_us: float | None) -> Execute:
        return Execute(spec, library.path, library.pack, limit, library.traffic, twice=False)

    def _verifying(self, spec: ConvSpec, library: Library, limit: float) -> Execute:
        return Execute(spec, library.path, library.pack, limit, library.traffic, twice=True)

    def _times(self, found: Measurement, library: Library) -> tuple[float, ...]:
        return ()

    def _in_turn(self, spec: ConvSpec, libraries: Sequence[Library], rounds: int) -> list[tuple[float, ...]]:
        """None: what kernels cost does not depend on the minute."""
        return [()] * len(libraries)
