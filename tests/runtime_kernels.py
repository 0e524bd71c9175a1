"""Small kernels for the runtime's tests, compiled by TVM, and what NumPy says they compute."""

from __future__ import annotations

import functools
import hashlib
import platform
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from convtune.linker import link
from convtune.runtime.arrays import empty_aligned
from convtune.runtime.manifest import Argument, KernelTarget, Manifest, Resolution
from convtune.runtime.names import RUNTIME_NAME

ROWS, COLUMNS = 37, 48


@functools.cache
def cache_dir() -> Path:
    """Holds the compiled runtime for this test process."""
    return Path(tempfile.mkdtemp(prefix="convtune-tests-")) / "cache"


def compile_object(schedule: Any, object_path: Path) -> Path:
    """Compiles a scheduled function for any AVX2 machine (or any aarch64 one)."""
    import tvm

    mcpu = {"mcpu": "x86-64-v3"} if platform.machine() == "x86_64" else {}
    library = tvm.compile(schedule.mod, target={"kind": "llvm", **mcpu})
    library.mod.write_to_file(str(object_path), "o")
    return object_path


def build_stencil(object_path: Path, scale: float = 1.0) -> Path:
    """y[i] = scale * (x[i - 1] + x[i]) + exp(x[i + 1]): two parallel regions, a workspace, and libm."""
    from tvm import te
    from tvm.s_tir import Schedule

    x = te.placeholder((ROWS, COLUMNS), "float32", name="x")
    pad = te.compute(
        (ROWS + 2, COLUMNS),
        lambda i, j: te.if_then_else(te.all(i >= 1, i <= ROWS), x[i - 1, j], 0.0),
        name="pad",
    )
    y = te.compute((ROWS, COLUMNS), lambda i, j: scale * (pad[i, j] + pad[i + 1, j]) + te.exp(pad[i + 2, j]), name="y")
    schedule = Schedule(te.create_prim_func([x, y]))
    for name in ("pad", "y"):
        rows, columns = schedule.get_loops(schedule.get_sblock(name))
        schedule.vectorize(schedule.split(columns, [None, 8])[1])
        schedule.parallel(rows)
    return compile_object(schedule, object_path)


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


PIXELS, IN, OUT, LANES = 11, 5, 13, 8
BLOCKS = -(-OUT // LANES)
POINTWISE_PACK = (
    {"op": "pad", "widths": [[0, BLOCKS * LANES - OUT], [0, 0]]},
    {"op": "reshape", "shape": [BLOCKS, LANES, IN]},
    {"op": "transpose", "axes": [0, 2, 1]},
)


def pointwise_library(directory: Path) -> Path:
    """y[n, o] = sum_c x[n, c] * weight[o // 8, c, o % 8] + bias[o] + residual[n, o] as a shared library."""
    from tvm import te
    from tvm.s_tir import Schedule

    x = te.placeholder((PIXELS, IN), "float32", name="x")
    weight = te.placeholder((BLOCKS, IN, LANES), "float32", name="weight")
    bias = te.placeholder((OUT,), "float32", name="bias")
    residual = te.placeholder((PIXELS, OUT), "float32", name="residual")
    c = te.reduce_axis((0, IN), name="c")
    acc = te.compute((PIXELS, OUT), lambda n, o: te.sum(x[n, c] * weight[o // LANES, c, o % LANES], axis=c), name="acc")
    y = te.compute((PIXELS, OUT), lambda n, o: acc[n, o] + bias[o] + residual[n, o], name="y")
    schedule = Schedule(te.create_prim_func([x, weight, bias, residual, y]))
    for name in ("acc", "y"):
        schedule.parallel(schedule.get_loops(schedule.get_sblock(name))[0])
    return link(compile_object(schedule, directory / "pointwise.o"), directory / "pointwise.so", cache_dir())


def pointwise_manifest(library: Path, **changes: Any) -> Manifest:
    """A manifest of the pointwise kernel; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "spec": "pointwise-test",
        "arguments": (
            Argument("x", (PIXELS, IN)),
            Argument("weight", (BLOCKS, IN, LANES), shape_in=(OUT, IN), pack=POINTWISE_PACK),
            Argument("bias", (OUT,)),
            Argument("residual", (PIXELS, OUT)),
            Argument("y", (PIXELS, OUT)),
        ),
        "target": KernelTarget("test", platform.machine(), (), 2),
        "library_sha256": hashlib.sha256(library.read_bytes()).hexdigest(),
        "runtime_sha256": hashlib.sha256(library.with_name(RUNTIME_NAME).read_bytes()).hexdigest(),
        "error": 1e-7,
        "resolution": Resolution("default", "a test"),
        "candidate": {"space": "test", "knobs": {"tile": 4}},
        "versions": {"convtune": "0"},
        "created": "2025-01-01T00:00:00Z",
    }
    return Manifest(**{**fields, **changes})
