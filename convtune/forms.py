"""What a package holds for a target: a CPU's machine code, or a launcher with machine code and PTX for GPUs."""

from __future__ import annotations

import platform
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from convtune import codegen
from convtune.errors import TargetError
from convtune.paths import cache_dir
from convtune.runtime.kernel import ALIGNMENT
from convtune.runtime.manifest import KernelTarget
from convtune.targets import CpuTarget, GpuTarget, Target

if TYPE_CHECKING:
    from convtune.measure.builder import Library


class Form(ABC):
    """How kernels for a target are packed.

    target: what a manifest says of it. alignment: bytes at which the kernel's arrays start, but for packed ones.
    key: what a package depends on besides its candidate and its target.
    """

    target: KernelTarget
    alignment: int
    key: str

    @abstractmethod
    def kernel(self, library: Library) -> Path:
        """The package's library, made of what was built. Raises BuildError where that cannot be."""


class CpuForm(Form):
    """The library as it was built."""

    alignment = codegen.ALIGNMENT
    key = ""

    def __init__(self, target: CpuTarget) -> None:
        self.target = KernelTarget(target.name, target.machine, target.required_features, target.threads)

    def kernel(self, library: Library) -> Path:
        return library.path


class GpuForm(Form):
    """A launcher for this machine's CPU, with code for the target and other archs, and PTX for newer ones.

    The PTX is of the oldest arch whose name has no suffix: drivers take that of sm_90a for sm_90a alone.
    """

    alignment = ALIGNMENT

    def __init__(self, target: GpuTarget, archs: Sequence[str]) -> None:
        """Raises TargetError where there is no nvcc, or it does not know an arch."""
        from convtune.cuda import launcher, toolkit

        self._toolkit, self._arch = toolkit.find(), target.arch
        for arch in (target.arch, *archs):
            self._toolkit.check(arch)
        self._archs = launcher.by_age({target.arch, *archs})
        ptx = next((arch for arch in self._archs if arch[-1].isdigit()), "")
        self.target = KernelTarget(target.name, platform.machine(), (), 1, tuple(self._archs), ptx)
        self.key = f"{','.join(self._archs)} nvcc {self._toolkit.version}"

    def kernel(self, library: Library) -> Path:
        from convtune.cuda import launcher
        from convtune.cuda.program import Program
        from convtune.measure.cuda_builder import CUBIN_NAME, PROGRAM_NAME

        directory = library.path.parent
        program = Program.from_json((directory / PROGRAM_NAME).read_text(encoding="utf-8"))
        images = {self._arch: (directory / CUBIN_NAME).read_bytes()}
        for arch in self._archs:
            launcher.check_arch(program, arch)
        for arch in self._archs:
            if arch not in images:
                images[arch] = self._toolkit.compile(program.source, arch, directory).data
        ptx = self._toolkit.ptx(program.source, self.target.ptx, directory) if self.target.ptx else None
        return launcher.link(program, images, ptx, directory, cache_dir())


def form_of(target: Target, archs: Sequence[str]) -> Form:
    """The form for a target. archs: of other GPUs that the package is also for; a string may list them with commas.

    Raises TargetError for archs of a CPU, for what is no name of an arch, and as GpuForm does.
    """
    if isinstance(archs, str):
        archs = archs.split(",")
    if not isinstance(archs, Iterable) or not all(isinstance(arch, str) for arch in archs):
        raise TargetError(f"archs are {archs!r}; allowed are names such as 'sm_90', or a list of them")
    if isinstance(target, GpuTarget):
        return GpuForm(target, archs)
    if archs:
        raise TargetError(f"archs are {', '.join(archs)}; target {target.name!r} is a CPU, so leave them out")
    if isinstance(target, CpuTarget):
        return CpuForm(target)
    raise TargetError(f"target {target.name!r}: nothing here compiles for {type(target).__name__}")
