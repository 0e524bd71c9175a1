"""Builds, verifies and times candidates for CPUs, of which the one at hand runs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from convtune import linker
from convtune.errors import MeasureError
from convtune.measure.bench import Bench, Limits
from convtune.measure.builder import Builder, Library
from convtune.measure.device import Compare, Device, Measure, Measurement
from convtune.measure.worker import Service
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget


class CpuBench(Bench):
    """A bench whose kernels are machine code, which a target that is this machine runs."""

    origin: ClassVar[str] = "measured"
    builder: ClassVar[Service] = Builder
    device: ClassVar[Service] = Device

    def __init__(
        self, target: CpuTarget, directory: Path | None = None, limits: Limits | None = None, seed: int = 0
    ) -> None:
        """Raises TargetError where there is no C compiler for the target."""
        # now, in this process: without it every candidate would be a build error
        linker.build_runtime(linker.find_compiler(target.machine), cache_dir())
        super().__init__(target, target.threads, directory, limits, seed)

    @property
    def runs(self) -> bool:
        return self.target.is_host

    def _timing(self, spec: ConvSpec, library: Library, limit: float, best_us: float | None) -> Measure:
        return Measure(spec, library.path, library.pack, limit, best_us, timed=True)

    def _verifying(self, spec: ConvSpec, library: Library, limit: float) -> Measure:
        return Measure(spec, library.path, library.pack, limit, None, timed=False)

    def _times(self, found: Measurement, library: Library) -> tuple[float, ...]:
        return found.times_us

    def _in_turn(self, spec: ConvSpec, libraries: Sequence[Library], rounds: int) -> list[tuple[float, ...]]:
        self._prepare(spec)
        request = Compare(spec, tuple((library.path, library.pack) for library in libraries), rounds)
        seconds = self.limits.device(spec) * (1 + len(libraries))
        reply = self._device.call(request, seconds, self.limits.memory(spec))
        if reply.status != "ok":
            raise MeasureError(f"finals of {spec} failed ({reply.status}): {reply.message}")
        times: list[tuple[float, ...]] = reply.value
        return times
