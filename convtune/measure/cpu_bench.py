"""Builds, verifies and times candidates for CPUs, of which the one at hand runs them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from convtune import linker
from convtune.measure.bench import Limits
from convtune.measure.builder import Builder
from convtune.measure.timing_bench import TimingBench
from convtune.measure.worker import Service
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from convtune.targets import CpuTarget


class CpuBench(TimingBench):
    """A bench whose kernels are machine code, which a target that is this machine runs."""

    builder: ClassVar[Service] = Builder

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
