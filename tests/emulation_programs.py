"""Programs for the tests of the CUDA emulator: TVM's, and CUDA C written by hand."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convtune.cuda.emulation.emulator import ORDERS, Emulation, Report, build
from convtune.cuda.program import DTYPE_BYTES, Array, Launch, Program

_directory = tempfile.TemporaryDirectory(prefix="convtune-emulation-")


@functools.cache
def emulation(program: Program, checked: bool) -> Emulation:
    """The program, built once for each test process."""
    return Emulation(build(program, Path(_directory.name), checked), program)


def aligned(count: int, dtype: str = "float32") -> NDArray[Any]:
    """As from the GPU's allocator: at a multiple of 256 bytes."""
    size = count * DTYPE_BYTES[dtype]
    memory = np.zeros(size + 256, np.uint8)
    start = -memory.ctypes.data % 256
    return memory[start : start + size].view(dtype)


def random(count: int, seed: int = 0, dtype: str = "float32") -> NDArray[Any]:
    array = aligned(count, dtype)
    array[:] = np.random.default_rng(seed).standard_normal(count)
    return array


def outputs(program: Program) -> NDArray[Any]:
    """An array for the program's last parameter, full of NaN."""
    array = aligned(program.parameters[-1].count, program.parameters[-1].dtype)
    array.fill(np.nan)
    return array


def run(program: Program, inputs: Sequence[NDArray[Any]], checked: bool, order: str = "forward") -> NDArray[Any]:
    """What the program computes from its inputs; it must have no problem."""
    y = outputs(program)
    emulated = emulation(program, checked)
    emulated.fill_scratch(0xFF)
    report = emulated.run([*inputs, y], order)
    assert report.problem == ""
    return y


def in_all_orders(program: Program, inputs: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """What it computes in every order, and where each access is checked: each time the same."""
    results = [run(program, inputs, False, order) for order in ORDERS] + [run(program, inputs, True)]
    for result in results[1:3]:
        np.testing.assert_array_equal(result, results[0])
    np.testing.assert_allclose(results[3], results[0], rtol=1e-5, atol=1e-5)  # other optimisations, other FMAs
    return results[0]


def report_of(program: Program, checked: bool = True, order: str = "forward") -> Report:
    """What a run on random inputs finds."""
    arrays = [random(array.count, seed, array.dtype) for seed, array in enumerate(program.parameters)]
    emulated = emulation(program, checked)
    emulated.fill_scratch(0xFF)
    return emulated.run(arrays, order)


def written(
    body: str,
    arrays: Mapping[str, int],
    grid: int = 1,
    block: int = 32,
    dynamic: int = 0,
    dtype: str = "float",
    before: str = "",
) -> Program:
    """A kernel from the inside of its braces, and from the names and lengths of its arrays."""
    name = {"float": "float32", "half": "float16", "int": "int32"}[dtype]
    parameters = ", ".join(f"{dtype}* __restrict__ {array}" for array in arrays)
    return Program(
        f'{before}\nextern "C" __global__ void main_kernel({parameters}) {{\n{body}\n}}\n',
        tuple(Array(array, count, name) for array, count in arrays.items()),
        (),
        (Launch("main_kernel", tuple(arrays), (grid, 1, 1), (block, 1, 1), dynamic),),
    )


def lowered(module: Any, arch: str = "sm_80") -> Program:
    from convtune.cuda.program import lower
    from convtune.targets import resolve
    from convtune.targets.gpu import GpuTarget

    target = resolve(arch)
    assert isinstance(target, GpuTarget)
    return lower(module, target).program


@functools.cache
def matmul(scope: str = "shared", vectorised: bool = False, stages: int = 1, dtype: str = "float32") -> Program:
    """c = a b, 64 x 64, from tiles of a and b in shared memory; with more stages they are copied by cp.async."""
    from tvm import te
    from tvm.s_tir import Schedule

    n = 64
    a, b = (te.placeholder((n, n), dtype, name=name) for name in "ab")
    k = te.reduce_axis((0, n), "k")
    c = te.compute((n, n), lambda i, j: te.sum(a[i, k].astype("float32") * b[k, j].astype("float32"), axis=k), name="c")
    sch = Schedule(te.create_prim_func([a, b, c]))
    block = sch.get_sblock("c")
    local = sch.cache_write(block, 0, "local")
    i, j, r = sch.get_loops(block)
    bi, ti, ii = sch.split(i, [None, 8, 4])
    bj, tj, jj = sch.split(j, [None, 8, 4])
    ro, ri = sch.split(r, [None, 16])
    sch.reorder(bi, bj, ti, tj, ro, ri, ii, jj)
    for loop, axis in ((bi, "blockIdx.y"), (bj, "blockIdx.x"), (ti, "threadIdx.y"), (tj, "threadIdx.x")):
        sch.bind(loop, axis)
    sch.reverse_compute_at(local, tj)
    for operand in (0, 1):
        staged = sch.cache_read(block, operand, scope)
        sch.compute_at(staged, ro)
        fused = sch.fuse(*sch.get_loops(staged)[-2:])
        _, ty, tx, vector = sch.split(fused, [None, 8, 8, 4 if vectorised else 1])
        sch.bind(ty, "threadIdx.y")
        sch.bind(tx, "threadIdx.x")
        sch.vectorize(vector)
    if stages > 1:
        sch.annotate(ro, "software_pipeline_stage", [0, 0, stages - 1])
        sch.annotate(ro, "software_pipeline_order", [0, 1, 2])
        sch.annotate(ro, "software_pipeline_async_stages", [0])
    sch.decompose_reduction(block, ro)
    return lowered(sch.mod)
