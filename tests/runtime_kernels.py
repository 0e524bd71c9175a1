"""Small kernels for the runtime's tests, compiled by TVM, and what NumPy says they compute."""

from __future__ import annotations

import functools
import platform
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from convtune.linker import link
from convtune.runtime.arrays import empty_aligned

ROWS, COLUMNS = 37, 48


@functools.cache
def cache_dir() -> Path:
    """Holds the compiled runtime for this test process."""
    return Path(tempfile.mkdtemp(prefix="convtune-tests-")) / "cache"


def build(inputs: Sequence[object], output: object, parallel_blocks: Sequence[str], object_path: Path) -> Path:
    """Compiles a tensor expression with each named block parallel over its first loop and vectorised by 8."""
    import tvm
    from tvm import te
    from tvm.s_tir import Schedule

    schedule = Schedule(te.create_prim_func([*inputs, output]))
    for name in parallel_blocks:
        rows, columns = schedule.get_loops(schedule.get_sblock(name))
        schedule.vectorize(schedule.split(columns, [None, 8])[1])
        schedule.parallel(rows)
    mcpu = {"mcpu": "x86-64-v3"} if platform.machine() == "x86_64" else {}
    library = tvm.compile(schedule.mod, target={"kind": "llvm", **mcpu})
    library.mod.write_to_file(str(object_path), "o")
    return object_path


def build_stencil(object_path: Path, scale: float = 1.0) -> Path:
    """y[i] = scale * (x[i - 1] + x[i]) + exp(x[i + 1]): two parallel regions, a workspace, and libm."""
    from tvm import te

    x = te.placeholder((ROWS, COLUMNS), "float32", name="x")
    pad = te.compute(
        (ROWS + 2, COLUMNS),
        lambda i, j: te.if_then_else(te.all(i >= 1, i <= ROWS), x[i - 1, j], 0.0),
        name="pad",
    )
    y = te.compute((ROWS, COLUMNS), lambda i, j: scale * (pad[i, j] + pad[i + 1, j]) + te.exp(pad[i + 2, j]), name="y")
    return build([x], y, ["pad", "y"], object_path)


def stencil(x: np.ndarray, scale: float = 1.0) -> np.ndarray:
    """What the stencil kernel computes, in float64."""
    pad = np.pad(x.astype("float64"), ((1, 1), (0, 0)))
    return scale * (pad[:-2] + pad[1:-1]) + np.exp(pad[2:])


def stencil_library(directory: Path, scale: float = 1.0) -> Path:
    """The stencil kernel as a shared library in `directory`."""
    return link(build_stencil(directory / "stencil.o", scale), directory / "stencil.so", cache_dir())


def random_aligned(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Standard normal float32 numbers in an aligned array."""
    array = empty_aligned(shape, np.float32)
    array[...] = np.random.default_rng(seed).standard_normal(shape)
    return array
