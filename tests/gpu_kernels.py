"""Kernels that the tests of the GPU model know by heart: copies, transposes, matrix products, good and bad."""

from __future__ import annotations

import ast
import functools
from pathlib import Path
from typing import Any


def copy(count: int, threads: int = 256, vector: int = 1, stride: int = 1) -> Any:
    """y[i] = x[i * stride], `vector` elements a thread."""
    from tvm import te
    from tvm.s_tir import Schedule

    x = te.placeholder((count * stride,), name="x")
    y = te.compute((count,), lambda i: x[i * stride] * 2.0, name="y")
    sch = Schedule(te.create_prim_func([x, y]))
    (i,) = sch.get_loops(sch.get_sblock("y"))
    block, thread, lane = sch.split(i, [None, threads, vector])
    sch.bind(block, "blockIdx.x")
    sch.bind(thread, "threadIdx.x")
    if vector > 1:
        sch.vectorize(lane)
    return sch.mod


def transpose(size: int, tile: str, rows: int = 8) -> Any:
    """y[j, i] = x[i, j] by tiles of 32 x 32. tile: "none", "shared", or "padded" by one column.

    Without a tile the writes go down a column.
    """
    from tvm import te
    from tvm.s_tir import Schedule

    x = te.placeholder((size, size), name="x")
    y = te.compute((size, size), lambda j, i: x[i, j] * 2.0, name="y")
    sch = Schedule(te.create_prim_func([x, y]))
    block = sch.get_sblock("y")
    if tile != "none":
        staged = sch.cache_read(block, 0, "shared")
    j, i = sch.get_loops(block)
    if tile == "none":
        j, i = i, j
    jo, jm, ji = sch.split(j, [None, 32 // rows, rows])
    io, ii = sch.split(i, [None, 32])
    sch.reorder(jo, io, jm, ji, ii)
    for loop, axis in ((jo, "blockIdx.y"), (io, "blockIdx.x"), (ji, "threadIdx.y"), (ii, "threadIdx.x")):
        sch.bind(loop, axis)
    if tile != "none":
        sch.compute_at(staged, io)
        row, column = sch.get_loops(staged)[-2:]
        _, ty = sch.split(row, [None, rows])
        sch.bind(ty, "threadIdx.y")
        sch.bind(column, "threadIdx.x")
        if tile == "padded":
            sch.storage_align(staged, 0, 0, 32, 1)
    return sch.mod


def _product(m: int, n: int, k: int) -> Any:
    from tvm import te
    from tvm.s_tir import Schedule

    a, b = te.placeholder((m, k), name="a"), te.placeholder((k, n), name="b")
    r = te.reduce_axis((0, k), name="k")
    c = te.compute((m, n), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="c")
    return Schedule(te.create_prim_func([a, b, c]))


def matmul_naive(m: int, n: int, k: int, coalesced: bool = True, block: int = 32) -> Any:
    """One element of the product a thread; neighbouring threads along a row of it, or along a column."""
    sch = _product(m, n, k)
    c = sch.get_sblock("c")
    written = sch.cache_write(c, 0, "local")
    i, j, _ = sch.get_loops(c)
    io, ii = sch.split(i, [None, block])
    jo, ji = sch.split(j, [None, block])
    sch.reorder(io, jo, ii, ji)
    bound = ("blockIdx.y", "blockIdx.x", "threadIdx.y", "threadIdx.x")
    for loop, axis in zip((io, jo, ii, ji), bound if coalesced else (*bound[:2], *bound[:1:-1])):
        sch.bind(loop, axis)
    sch.reverse_compute_at(written, ji)
    sch.decompose_reduction(c, sch.get_loops(c)[-1])
    return sch.mod


def matmul_tiled(
    size: tuple[int, int, int],
    threads: tuple[int, int],
    registers: tuple[int, int],
    k_tile: int,
    vector: int = 1,
    scope: str = "shared",
    asynchronous: bool = False,
) -> Any:
    """Tiles of both operands in shared memory, a tile of the product in each thread's registers."""
    sch = _product(*size)
    c = sch.get_sblock("c")
    written = sch.cache_write(c, 0, "local")
    i, j, k = sch.get_loops(c)
    io, ty, ii = sch.split(i, [None, threads[0], registers[0]])
    jo, tx, ji = sch.split(j, [None, threads[1], registers[1]])
    ko, ki = sch.split(k, [None, k_tile])
    sch.reorder(io, jo, ty, tx, ko, ki, ii, ji)
    for loop, axis in ((io, "blockIdx.y"), (jo, "blockIdx.x"), (ty, "threadIdx.y"), (tx, "threadIdx.x")):
        sch.bind(loop, axis)
    sch.reverse_compute_at(written, tx)
    if vector > 1 and registers[1] % vector == 0:
        sch.vectorize(sch.split(sch.get_loops(written)[-1], [None, vector])[-1])
    for operand in (0, 1):
        staged = sch.cache_read(c, operand, scope)
        sch.compute_at(staged, ko)
        fused = sch.fuse(*sch.get_loops(staged)[-2:])
        _, y, x, v = sch.split(fused, [None, *threads, vector])
        sch.bind(y, "threadIdx.y")
        sch.bind(x, "threadIdx.x")
        if vector > 1:
            sch.vectorize(v)
    sch.unroll(ii)
    sch.unroll(ji)
    if asynchronous:
        sch.annotate(ko, "software_pipeline_stage", [0, 0, 1])
        sch.annotate(ko, "software_pipeline_order", [0, 1, 2])
        sch.annotate(ko, "software_pipeline_async_stages", [0])
    sch.decompose_reduction(c, ko)
    return sch.mod


def matmul_tensor_cores(size: int, padded: bool) -> Any:
    """float16, a tile of 64 x 64 a block, 32 x 32 a warp; rows of the shared tiles padded by 8 elements, or not."""
    from tvm import te
    from tvm.s_tir import Schedule

    _register_intrinsics()
    a, b = (te.placeholder((size, size), "float16", name=name) for name in "ab")
    r = te.reduce_axis((0, size), name="k")
    c = te.compute((size, size), lambda i, j: te.sum(a[i, r] * b[r, j], axis=r), name="c")
    sch = Schedule(te.create_prim_func([a, b, c]))
    loops = sch.get_loops(sch.get_sblock("c"))
    (i, it), (j, jt), (k, kt) = (sch.split(loop, [None, 16]) for loop in loops)
    io, iw, ii = sch.split(i, [None, 2, 2])
    jo, jw, ji = sch.split(j, [None, 2, 2])
    ko, ki = sch.split(k, [None, 2])
    sch.reorder(io, jo, iw, jw, ko, ki, ii, ji, it, jt, kt)
    product = sch.blockize(it)
    warp = sch.fuse(iw, jw)
    for loop, axis in ((io, "blockIdx.y"), (jo, "blockIdx.x"), (warp, "threadIdx.y")):
        sch.bind(loop, axis)
    written = sch.cache_write(product, 0, "wmma.accumulator")
    sch.reverse_compute_at(written, warp)
    _tensorize(sch, written, "wmma_store_16x16x16_f16_global")
    for operand, name in enumerate("ab"):
        staged = sch.cache_read(product, operand, "shared")
        sch.compute_at(staged, ko)
        if padded:
            sch.storage_align(staged, 0, 0, 32, 8)
        fragment = sch.cache_read(product, operand, f"wmma.matrix_{name}")
        sch.compute_at(fragment, ki)
        _tensorize(sch, fragment, f"wmma_load_16x16x16_f16_{name}_shared")
        _, y, x, lane = sch.split(sch.fuse(*sch.get_loops(staged)[-2:]), [None, 4, 32, 8])
        sch.bind(y, "threadIdx.y")
        sch.bind(x, "threadIdx.x")
        sch.vectorize(lane)
    first = sch.get_child_blocks(sch.decompose_reduction(product, ko))[0]
    sch.tensorize(sch.get_loops(first)[-2], "wmma_fill_16x16x16_f16")
    sch.tensorize(sch.get_loops(sch.get_child_blocks(product)[0])[-3], "wmma_sync_16x16x16_f16f16f16")
    return sch.mod


@functools.cache
def _register_intrinsics() -> None:
    """Those that are used here, by TVM's functions that make them: importing their module makes 91, in 20 s."""
    import tvm
    from tvm.s_tir import TensorIntrin

    path = Path(tvm.__file__).parent / "s_tir" / "tensor_intrin" / "cuda.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    tree.body = [
        node
        for node in tree.body
        if isinstance(node, ast.ImportFrom) or (isinstance(node, ast.FunctionDef) and not node.decorator_list)
    ]
    make: dict[str, Any] = {"__name__": "wmma"}
    exec(compile(tree, str(path), "exec"), make)
    size = (16, 16, 16, "float16")
    for operand in "ab":
        load = make["get_wmma_load_intrin"](*size, "shared", operand == "b", False)
        TensorIntrin.register(f"wmma_load_16x16x16_f16_{operand}_shared", *load)
    TensorIntrin.register("wmma_store_16x16x16_f16_global", *make["get_wmma_store_intrin"](*size, "global"))
    TensorIntrin.register("wmma_fill_16x16x16_f16", *make["get_wmma_fill_intrin"](*size))
    sync = make["get_wmma_sync_intrin"](*size, "float16", False)
    TensorIntrin.register("wmma_sync_16x16x16_f16f16f16", *sync)


def _tensorize(sch: Any, block: Any, intrinsic: str) -> None:
    rows, columns = sch.get_loops(block)[-2:]
    (_, row), (outer, column) = (sch.split(loop, [None, 16]) for loop in (rows, columns))
    sch.reorder(outer, row, column)
    sch.tensorize(row, intrinsic)


def one_each(spec: Any, how: str) -> Any:
    """Any variant, an element of each stage's result a thread: "side by side" in memory, "apart", or in "one block"."""
    from tvm.s_tir import Schedule

    from convtune.expression import Geometry, plain

    sch = Schedule(plain(spec))
    last = len(spec.stages) - 1
    for number, stage in enumerate(spec.stages):
        suffix = "" if number == last else str(number)
        if not Geometry.of(stage).inside(stage):
            sch.compute_inline(sch.get_sblock(f"pad{suffix}"))
        loops = sch.get_loops(sch.get_sblock(f"mid{suffix}" if suffix else "y"))
        sums = sch.get_sblock(f"acc{suffix}")
        sch.compute_at(sums, loops[-1], preserve_unit_loops=True)
        sch.set_scope(sums, 0, "local")
        fused = sch.fuse(*loops)
        one = how == "one block"
        if how == "apart":
            thread, block = sch.split(fused, [160, None])  # no whole number of channels
        else:
            block, *outer, thread = sch.split(fused, [1, None, 256] if one else [None, 256])
            sch.reorder(thread, *outer)
        sch.bind(block, "blockIdx.x")
        sch.bind(thread, "threadIdx.x")
        sch.decompose_reduction(sums, sch.get_loops(sums)[2 + one + len(loops)])
    return sch.mod
