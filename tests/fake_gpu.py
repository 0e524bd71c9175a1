"""A GPU for tests: fake_cuda.c as libcuda.so.1, and images whose kernels run by emulation."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rpc_servers import WITHOUT_PYTORCH

from convtune.cuda.emulation import emulator
from convtune.cuda.program import Launch, Program
from convtune.cuda.toolkit import Cubin
from convtune.linker import find_compiler
from convtune.measure.cuda_builder import GpuBuilder

SOURCE = Path(__file__).with_name("fake_cuda.c")


@functools.cache
def driver(*flags: str) -> Path:
    """A directory for LD_LIBRARY_PATH with the fake driver in it."""
    directory = Path(tempfile.mkdtemp(prefix="convtune-tests-"))
    arguments = ["-std=c11", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-Wl,-soname,libcuda.so.1", *flags]
    failure = find_compiler().run([*arguments, "-o", str(directory / "libcuda.so.1"), str(SOURCE)])
    assert not failure, failure
    return directory


def image(program: Program, emulations: Mapping[Launch, Path], name: str = "code") -> bytes:
    """What the fake driver takes for machine code. A launch without an emulation does nothing."""
    lines = [name]
    for launch in program.launches:
        extents = " ".join(map(str, (*launch.grid, *launch.block)))
        library = emulations.get(launch, "-")
        lines.append(f"{launch.kernel} {library} {extents} {launch.dynamic_shared_bytes} {len(launch.arguments)}")
    return "\n".join([*lines, "\0"]).encode()


def emulations(program: Program, directory: Path) -> dict[Launch, Path]:
    """By launch, a library that emulates it alone."""
    arrays = {array.name: array for array in (*program.parameters, *program.workspaces)}
    built = {}
    for launch in program.launches:
        parameters = tuple(arrays[name] for name in launch.arguments)
        alone = replace(program, parameters=parameters, workspaces=(), launches=(launch,))
        built[launch] = emulator.build(alone, directory, checked=False)
    return built


def run(script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A Python script in a process that finds the fake driver. The variables FAKE_CUDA_… are its own."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("FAKE_CUDA_")}
    path = {"LD_LIBRARY_PATH": str(driver()), "PYTHONPATH": f"{SOURCE.parent}{os.pathsep}{WITHOUT_PYTORCH}"}
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**clean, **path, **environment},
        timeout=120,
        check=False,
    )


class FakeBuilder(GpuBuilder):
    """The builder for the fake GPU: nvcc has compiled the program before its emulation is taken."""

    def compile(self, program: Program, directory: Path) -> Cubin:
        lasting = Path(os.environ["LD_LIBRARY_PATH"]) / "emulations"  # packages outlive the builder's directory
        return replace(super().compile(program, directory), data=image(program, emulations(program, lasting)))
