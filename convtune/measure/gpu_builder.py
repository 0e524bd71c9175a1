"""Turns a candidate for the GPU in this machine into a library that runs it there."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from convtune.measure.builder import BuildRequest, Library, scheduled
from convtune.measure.cuda_builder import CUBIN_NAME, PROGRAM_NAME

if TYPE_CHECKING:
    from convtune.cuda.program import Program
    from convtune.cuda.toolkit import Cubin
    from convtune.targets.gpu import GpuTarget


class GpuBuilder:
    """The service of a build worker for a GPU in this machine, which it does not use."""

    def __init__(self, target: GpuTarget, cache_dir: Path) -> None:
        """cache_dir: of the linker's runtime. Raises TargetError where no nvcc knows the target's arch."""
        from convtune.cuda import toolkit

        self._target, self._cache_dir, self._toolkit = target, cache_dir, toolkit.find()
        self._toolkit.check(target.arch)
        import tvm  # noqa: F401  # now, so that no candidate's time has the second that it takes

    def __call__(self, request: BuildRequest) -> Library:
        """Raises what scheduling, compiling or linking raises."""
        from convtune.cuda import launcher
        from convtune.cuda.program import lower

        start = time.perf_counter()
        module, pack = scheduled(request.spec, self._target, request.candidate)
        program = lower(module, self._target).program
        compiled = self.compile(program, request.directory)
        (request.directory / PROGRAM_NAME).write_text(program.to_json(), encoding="utf-8")
        (request.directory / CUBIN_NAME).write_bytes(compiled.data)
        images = {self._target.arch: compiled.data}
        path = launcher.link(program, images, None, request.directory, self._cache_dir)
        resources = {name: asdict(used) for name, used in compiled.resources.items()}
        return Library(path, pack, time.perf_counter() - start, len(compiled.data), resources)

    def compile(self, program: Program, directory: Path) -> Cubin:
        """The program's machine code. Raises BuildError where nvcc refuses it."""
        return self._toolkit.compile(program.source, self._target.arch, directory)
