"""Builds, verifies and times candidates for the GPU in this machine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from convtune import linker
from convtune.cuda import toolkit
from convtune.errors import TargetError
from convtune.measure.bench import Built, Limits, Outcome
from convtune.measure.builder import Library
from convtune.measure.cuda_builder import GpuBuilder
from convtune.measure.timing_bench import TimingBench
from convtune.measure.worker import MEMORY_BYTES, Service
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from convtune.spec import ConvSpec
    from convtune.targets import GpuTarget


class GpuBench(TimingBench):
    """A bench whose kernels run on this machine's GPU, called through their launcher.

    They are verified there first, on copies of the arrays between red zones, and timed by the GPU's own events; with
    CONVTUNE_FLUSH_L2=1 its L2 cache is overwritten before each call.
    """

    builder: ClassVar[Service] = GpuBuilder
    # nvcc takes longer than LLVM, and NVIDIA's driver takes memory of the CPU besides what a spec needs
    usual_limits: ClassVar[Limits] = Limits(build_s=90.0, memory_bytes=2 * MEMORY_BYTES)

    def __init__(
        self, target: GpuTarget, directory: Path | None = None, limits: Limits | None = None, seed: int = 0
    ) -> None:
        """Raises TargetError where there is no nvcc that knows the target's arch, or no C compiler."""
        toolkit.find().check(target.arch)
        linker.build_runtime(linker.find_compiler(), cache_dir())
        super().__init__(target, 1, directory, limits, seed)

    @property
    def runs(self) -> bool:
        return True

    def _outcome(self, spec: ConvSpec, built: Built, request: Callable[[Library], Any]) -> Outcome:
        outcome = super()._outcome(spec, built, request)
        if "NoGpuError: " in outcome.message:
            raise TargetError(f"target {self.target.name!r}: {outcome.message.rpartition('NoGpuError: ')[2]}")
        if outcome.status in ("error", "out_of_memory"):
            # what a kernel breaks stays broken for its process: the next one would get the same error
            self._device.stop()
        return outcome
