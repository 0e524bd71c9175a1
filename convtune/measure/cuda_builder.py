"""Turns a candidate for a GPU into machine code, an estimate of its time, and a library that emulates it."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from convtune.measure.builder import BuildRequest, Library, scheduled

if TYPE_CHECKING:
    from convtune.targets.gpu import GpuTarget

PROGRAM_NAME = "program.json"
CUBIN_NAME = "kernel.cubin"


class CudaBuilder:
    """The service of a build worker for a GPU; it needs nvcc and a C++ compiler, and no GPU."""

    def __init__(self, target: GpuTarget, cache_dir: Path) -> None:
        """Raises TargetError where there is no nvcc, or it does not know the target's arch."""
        from convtune.cuda import toolkit

        self._target, self._toolkit = target, toolkit.find()
        self._toolkit.check(target.arch)
        import tvm  # noqa: F401  # now, so that no candidate's time has the second that it takes

    def __call__(self, request: BuildRequest) -> Library:
        """Raises what scheduling or compiling raises."""
        from convtune.cuda.emulation import emulator
        from convtune.cuda.model import estimate
        from convtune.cuda.program import lower

        start = time.perf_counter()
        module, pack = scheduled(request.spec, self._target, request.candidate)
        lowered = lower(module, self._target)
        compiled = self._toolkit.compile(lowered.program.source, self._target.arch, request.directory)
        estimated = estimate(lowered, compiled.resources, self._target)
        (request.directory / PROGRAM_NAME).write_text(lowered.program.to_json(), encoding="utf-8")
        (request.directory / CUBIN_NAME).write_bytes(compiled.data)
        path = emulator.build(lowered.program, request.directory, checked=False)
        resources = {name: asdict(used) for name, used in compiled.resources.items()}
        seconds = time.perf_counter() - start
        return Library(path, pack, seconds, len(compiled.data), resources, (estimated.time_us,))
