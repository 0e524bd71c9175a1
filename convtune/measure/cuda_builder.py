"""Turns a candidate for a GPU into machine code and a library that runs it: on the GPU, or emulated on the CPU."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from convtune.measure.builder import BuildRequest, Library, scheduled

if TYPE_CHECKING:
    from convtune.cuda.program import Lowered, Program
    from convtune.cuda.toolkit import Cubin
    from convtune.targets import GpuTarget

PROGRAM_NAME = "program.json"
CUBIN_NAME = "kernel.cubin"


class CudaBuilder(ABC):
    """The service of a build worker for a GPU; it needs nvcc, and no GPU."""

    def __init__(self, target: GpuTarget, cache_dir: Path) -> None:
        """cache_dir: of the linker's runtime. Raises TargetError where no nvcc knows the target's arch."""
        from convtune.cuda import toolkit

        self._target, self._cache_dir, self._toolkit = target, cache_dir, toolkit.find()
        self._toolkit.check(target.arch)
        import tvm  # noqa: F401  # now, so that no candidate's time has the second that it takes

    def __call__(self, request: BuildRequest) -> Library:
        """Raises what scheduling, compiling or linking raises."""
        from convtune.cuda.program import lower

        start = time.perf_counter()
        module, pack = scheduled(request.spec, self._target, request.candidate)
        lowered = lower(module, self._target)
        compiled = self.compile(lowered.program, request.directory)
        (request.directory / PROGRAM_NAME).write_text(lowered.program.to_json(), encoding="utf-8")
        (request.directory / CUBIN_NAME).write_bytes(compiled.data)
        path = self._link(lowered.program, compiled, request.directory)
        estimates_us = self._estimates_us(lowered, compiled)
        resources = {name: asdict(used) for name, used in compiled.resources.items()}
        return Library(path, pack, time.perf_counter() - start, len(compiled.data), resources, estimates_us)

    def compile(self, program: Program, directory: Path) -> Cubin:
        """The program's machine code. Raises BuildError where nvcc refuses it."""
        return self._toolkit.compile(program.source, self._target.arch, directory)

    @abstractmethod
    def _link(self, program: Program, compiled: Cubin, directory: Path) -> Path:
        """The library that runs the program."""

    def _estimates_us(self, lowered: Lowered, compiled: Cubin) -> tuple[float, ...]:
        """Estimates of its time, where it is not measured."""
        return ()


class GpuBuilder(CudaBuilder):
    """For the GPU in this machine: the library is a launcher with the machine code in it."""

    def _link(self, program: Program, compiled: Cubin, directory: Path) -> Path:
        from convtune.cuda import launcher

        return launcher.link(program, {self._target.arch: compiled.data}, None, directory, self._cache_dir)


class EmulationBuilder(CudaBuilder):
    """For a GPU that is not here: the library is the program for the CPU."""

    def _link(self, program: Program, compiled: Cubin, directory: Path) -> Path:
        from convtune.cuda.emulation import emulator

        return emulator.build(program, directory, checked=False)

    def _estimates_us(self, lowered: Lowered, compiled: Cubin) -> tuple[float, ...]:
        from convtune.cuda.model import estimate

        return (estimate(lowered, compiled.resources, self._target).time_us,)
