"""Turns a candidate into a shared library: schedule, compile, link. Runs in the build workers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune import codegen, linker, space
from convtune.expression import plain_pack
from convtune.measure.replay import replay
from convtune.record import METASCHEDULE, trace
from convtune.space import Candidate, PackStep

if TYPE_CHECKING:
    from convtune.cache_model import Traffic
    from convtune.spec import ConvSpec
    from convtune.targets import CpuTarget, Target

Pack = tuple[tuple[PackStep, ...], ...]


@dataclass(frozen=True)
class BuildRequest:
    """What to build, and an existing, empty directory for the result."""

    spec: ConvSpec
    candidate: Candidate
    directory: Path


@dataclass(frozen=True)
class Library:
    """A built kernel: the library, how its weights are packed, and what building it took and gave.

    resources, estimates_us: of a GPU's kernels; None and nothing elsewhere. traffic: of a kernel that will be emulated,
    what each level of memory has to bring.
    """

    path: Path
    pack: Pack
    build_s: float
    size_bytes: int
    resources: Mapping[str, Mapping[str, int]] | None = None
    estimates_us: tuple[float, ...] = ()
    traffic: Traffic | None = None


class Builder:
    """The service of a build worker: TVM is loaded, and LLVM has compiled once, before the first request comes."""

    def __init__(self, target: CpuTarget, cache_dir: Path) -> None:
        """cache_dir: of the linker's runtime. Raises TargetError where LLVM does not know the target."""
        self._target, self._cache_dir = target, cache_dir
        self._tvm_target = target.to_tvm()
        warm_up(self._tvm_target)

    def __call__(self, request: BuildRequest) -> Library:
        """Raises what scheduling, compiling or linking raises."""
        start = time.perf_counter()
        module, pack = scheduled(request.spec, self._target, request.candidate)
        object_path = request.directory / "kernel.o"
        codegen.write_object(module, self._tvm_target, object_path)
        path = linker.link(object_path, request.directory / "kernel.so", self._cache_dir, self._target.machine)
        object_path.unlink()
        traffic = self._traffic(module)
        return Library(path, pack, time.perf_counter() - start, path.stat().st_size, traffic=traffic)

    def _traffic(self, module: Any) -> Traffic | None:
        """What each level of memory has to bring, where that is asked for."""
        return None


class EmulatedBuilder(Builder):
    """For a CPU that is not here, of whose caches there is a model."""

    def _traffic(self, module: Any) -> Traffic:
        from convtune.cache_model import traffic

        return traffic(module, self._target)


def scheduled(spec: ConvSpec, target: Target, candidate: Candidate) -> tuple[Any, Pack]:
    """The scheduled tvm.IRModule of a candidate and the packing of its weights. Engines differ here and nowhere else.

    Raises:
        UnknownNameError: there is no such space.
        ScheduleError: the knobs are outside the space's domain, or the trace does not fit the spec.
    """
    if candidate.space == METASCHEDULE:
        return replay(spec, trace(candidate)).mod, plain_pack(spec)
    owner = space.get(candidate.space)
    return owner.schedule(spec, target, candidate.knobs), owner.pack(spec, target, candidate.knobs)


def warm_up(tvm_target: Any) -> None:
    """Compiles a function of one element, which sets up LLVM for the target."""
    import tvm
    from tvm import te

    x = te.placeholder((1,), "float32", name="x")
    function = te.create_prim_func([x, te.compute((1,), lambda i: x[i] + x[i], name="y")])
    tvm.compile(function, target=tvm_target)
