"""Programs for a GPU: what is launched with which arrays, the limits of a target, and JSON."""

from __future__ import annotations

import ctypes
import dataclasses
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convtune import linker, targets
from convtune.cuda.program import Array, Launch, Program, lower
from convtune.errors import KernelError, ScheduleError

tvm = pytest.importorskip("tvm")
from tvm import te  # noqa: E402
from tvm.s_tir import Schedule  # noqa: E402

_GPU = targets.resolve("sm_80")


def _bind(schedule: Any, stage: str, lanes: int = 1) -> None:
    rows, columns = schedule.get_loops(schedule.get_sblock(stage))
    schedule.bind(rows, "blockIdx.x")
    if lanes > 1:
        columns, vector = schedule.split(columns, [None, lanes])
        schedule.vectorize(vector)
    schedule.bind(columns, "threadIdx.x")


def _schedule(*tensors: Any) -> Any:
    return Schedule(te.create_prim_func(list(tensors)))


def _stage_in(schedule: Any, stage: str, scope: str) -> None:
    """Reads what `stage` reads through shared memory, a row at a time."""
    block = schedule.get_sblock(stage)
    cached = schedule.cache_read(block, 0, scope)
    schedule.compute_at(cached, schedule.get_loops(block)[0])
    schedule.bind(schedule.get_loops(cached)[-1], "threadIdx.x")


def _one_stage(columns: int = 64, dtype: str = "float32") -> tuple[Any, Any]:
    a = te.placeholder((8, columns), name="a", dtype=dtype)
    return a, te.compute((8, columns), lambda i, j: a[i, j] + te.const(1, dtype), name="b")


def _run(program: Program, arrays: Sequence[np.ndarray], folder: Path) -> None:
    """Runs a program without barriers and shared memory, one thread after the other, as plain C."""
    arguments = {array.name: index for index, array in enumerate((*program.parameters, *program.workspaces))}
    calls = []
    for launch in program.launches:
        (signature,) = set(re.findall(rf"{launch.kernel}\(([^)]*)\)", program.source))
        types = [parameter.rpartition(" ")[0] for parameter in signature.split(", ")]
        passed = [f"({kind})arrays[{arguments[name]}]" for kind, name in zip(types, launch.arguments, strict=True)]
        loops = " ".join(
            f"for ({index}.{axis} = 0; {index}.{axis} < {extent}; {index}.{axis}++)"
            for index, extents in (("blockIdx", launch.grid), ("threadIdx", launch.block))
            for axis, extent in zip("xyz", extents)
        )
        calls.append(f"{loops} {launch.kernel}({', '.join(passed)});")
    start = """#define __global__
#define __launch_bounds__(threads)
static struct { int x, y, z; } blockIdx, threadIdx;
struct float4 { float x, y, z, w; };
static float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
"""
    end = f'extern "C" void run(void** arrays) {{ {" ".join(calls)} }}\n'
    (folder / "cuda.h").touch()
    (folder / "run.cpp").write_text(start + program.source + end)
    command = [
        *linker.find_compiler().command,
        "-x",
        "c++",
        "-std=c++17",
        "-w",
        "-fno-strict-aliasing",
        "-fPIC",
        "-shared",
    ]
    subprocess.run([*command, f"-I{folder}", "-o", folder / "run.so", folder / "run.cpp"], check=True)
    scratch = [np.full(array.count, np.nan, array.dtype) for array in program.workspaces]
    pointers = (ctypes.c_void_p * len(arguments))(*(array.ctypes.data for array in (*arrays, *scratch)))
    ctypes.CDLL(str(folder / "run.so")).run(pointers)


def test_arrays_are_passed_by_position_whatever_their_names(tmp_path: Path) -> None:
    first, second = (te.placeholder((8, 64), name="a") for _ in range(2))
    between = te.compute((8, 64), lambda i, j: second[i, 63 - j] * te.const(2, "float32"), name="b")
    last = te.compute((8, 64), lambda i, j: between[7 - i, j] - first[i, j], name="a")
    schedule = _schedule(first, second, last)
    _bind(schedule, "b")
    _bind(schedule, "a")
    program = lower(schedule.mod, _GPU).program
    assert [array.count for array in program.parameters] == [8 * 64] * 3
    assert len({array.name for array in (*program.parameters, *program.workspaces)}) == 4
    x, y = np.random.default_rng(0).standard_normal((2, 8, 64)).astype(np.float32)
    out = np.full((8, 64), np.nan, np.float32)
    _run(program, [x, y, out], tmp_path)
    np.testing.assert_array_equal(out, 2 * y[::-1, ::-1] - x)


def _upside_down(source: Any, name: str) -> Any:
    return te.compute((8, 64), lambda i, j: source[7 - i, j] * 2 + i, name=name)


def test_one_workspace_serves_several_stages_and_vectors(tmp_path: Path) -> None:
    stages = [te.placeholder((8, 64), name="a")]
    for name in "bcdefg":
        stages.append(_upside_down(stages[-1], name))
    schedule = _schedule(stages[0], stages[-1])
    for name in "bcdefg":
        _bind(schedule, name, lanes=4)
    program = lower(schedule.mod, _GPU).program
    assert len(program.launches) == 6
    assert "float4* __restrict__" in program.source, "TVM keeps a workspace as vectors; else this tests less"
    assert {array.bytes for array in program.workspaces} == {8 * 64 * 4}
    x = np.random.default_rng(0).integers(-8, 8, (8, 64)).astype(np.float32)
    out, expected = np.full((8, 64), np.nan, np.float32), x
    for _ in "bcdefg":
        expected = expected[::-1] * 2 + np.arange(8, dtype=np.float32)[:, None]
    _run(program, [x, out], tmp_path)
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("scope", ["shared", "shared.dyn"])
def test_the_source_is_what_tvm_compiles(dtype: str, scope: str) -> None:
    a, b = _one_stage(dtype=dtype)
    c = te.compute((8, 64), lambda i, j: b[i, 63 - j], name="c")
    schedule = _schedule(a, c)
    _bind(schedule, "b")
    _bind(schedule, "c")
    _stage_in(schedule, "c", scope)
    lowered = lower(schedule.mod, _GPU)
    compiled = tvm.compile(schedule.mod, target=_GPU.to_tvm()).mod.imports[0].inspect_source("cuda")
    assert _kernels(lowered.program.source) == _kernels(compiled)
    assert [launch.kernel for launch in lowered.program.launches] == list(lowered.functions)
    assert [launch.grid for launch in lowered.program.launches] == [(8, 1, 1)] * 2
    assert [launch.block for launch in lowered.program.launches] == [(64, 1, 1)] * 2
    row_bytes = 64 * np.dtype(dtype).itemsize
    dynamic = [launch.dynamic_shared_bytes for launch in lowered.program.launches]
    assert dynamic == [0, row_bytes if scope == "shared.dyn" else 0]
    assert {array.dtype for array in (*lowered.program.parameters, *lowered.program.workspaces)} == {dtype}


def _kernels(source: str) -> list[str]:
    """The kernels' text with every name that TVM may number anew replaced by its first place."""
    kernels = re.findall(r'extern "C" __global__[^;{]*\{.*?^\}', source, re.DOTALL | re.MULTILINE)
    assert kernels
    return [_unnamed(kernel.partition("main_kernel")[2]) for kernel in sorted(kernels, key=len)]


def _unnamed(kernel: str) -> str:
    names: dict[str, str] = {}
    return re.sub(r"\b[a-z]\w*_ptr\b|cse_v\d+", lambda match: names.setdefault(match[0], f"n{len(names)}"), kernel)


def test_three_axes_of_blocks_and_threads() -> None:
    a = te.placeholder((2, 3, 5, 7, 4, 6), name="a")
    schedule = _schedule(a, te.compute(a.shape, lambda *i: a(*i) + 1, name="b"))
    axes = ["blockIdx.z", "threadIdx.y", "blockIdx.y", "threadIdx.x", "threadIdx.z", "blockIdx.x"]
    for loop, axis in zip(schedule.get_loops(schedule.get_sblock("b")), axes):
        schedule.bind(loop, axis)
    (launch,) = lower(schedule.mod, _GPU).program.launches
    assert (launch.grid, launch.block) == ((6, 5, 2), (7, 3, 4))
    assert (launch.blocks, launch.threads) == (60, 84)


def _pipelined() -> Any:
    a, b = te.placeholder((64, 64), name="a"), te.placeholder((64, 64), name="b")
    k = te.reduce_axis((0, 64), name="k")
    schedule = _schedule(a, b, te.compute((64, 64), lambda i, j: te.sum(a[i, k] * b[k, j], axis=k), name="c"))
    block = schedule.get_sblock("c")
    i, j, k = schedule.get_loops(block)
    outer, _ = schedule.split(k, [None, 16])
    schedule.bind(i, "blockIdx.x")
    schedule.bind(j, "threadIdx.x")
    written = schedule.cache_write(block, 0, "local")
    schedule.reverse_compute_at(written, j)
    cached = schedule.cache_read(block, 1, "shared")
    schedule.compute_at(cached, outer)
    _, threads, lanes = schedule.split(schedule.fuse(*schedule.get_loops(cached)[-2:]), [None, 64, 4])
    schedule.bind(threads, "threadIdx.x")
    schedule.vectorize(lanes)
    schedule.decompose_reduction(block, outer)
    schedule.annotate(outer, "software_pipeline_stage", [0, 1])
    schedule.annotate(outer, "software_pipeline_order", [0, 1])
    schedule.annotate(outer, "software_pipeline_async_stages", [0])
    return schedule.mod


def test_asynchronous_copies_need_a_target_that_has_them() -> None:
    assert "cp.async.cg" in lower(_pipelined(), _GPU).program.source
    with pytest.raises(ScheduleError, match=r"asynchronous; turing is sm_75, which has no cp\.async"):
        lower(_pipelined(), dataclasses.replace(_GPU, name="turing", arch="sm_75"))


def test_nothing_is_compiled_while_lowering() -> None:
    import tvm_ffi

    def compile_now(code: str) -> bytes:
        raise AssertionError("TVM compiles")

    hook = "tvm_callback_cuda_compile"
    before = tvm.get_global_func(hook)
    schedule = _schedule(*_one_stage())
    _bind(schedule, "b")
    tvm_ffi.register_global_func(hook, compile_now, override=True)
    try:
        lower(schedule.mod, _GPU)
        with pytest.raises(AssertionError, match="TVM compiles"):
            tvm.get_global_func(hook)("it is back in its place")
    finally:
        tvm_ffi.register_global_func(hook, before, override=True)


def _unbound(schedule: Any) -> None:
    pass


def _outer_loop(schedule: Any) -> None:
    rows, columns = schedule.get_loops(schedule.get_sblock("b"))
    schedule.bind(schedule.split(rows, [2, None])[1], "blockIdx.x")
    schedule.bind(columns, "threadIdx.x")


@pytest.mark.parametrize(
    ("bind", "message"),
    [
        (_unbound, "b: the CPU would compute it, since no loop around it is bound to blockIdx or threadIdx"),
        (_outer_loop, "a loop outside of blockIdx and threadIdx launches kernels"),
    ],
)
def test_work_left_for_the_cpu_is_refused(bind: Callable[[Any], None], message: str) -> None:
    schedule = _schedule(*_one_stage())
    bind(schedule)
    with pytest.raises(ScheduleError, match=message):
        lower(schedule.mod, _GPU)


def test_a_stage_that_is_left_out_is_named() -> None:
    a, b = _one_stage()
    schedule = _schedule(a, te.compute((8, 64), lambda i, j: b[i, 63 - j], name="c"))
    _bind(schedule, "c")
    with pytest.raises(ScheduleError, match=r"^b: the CPU would compute it"):
        lower(schedule.mod, _GPU)


def test_modules_that_are_no_program_are_refused() -> None:
    schedule = _schedule(*_one_stage())
    _bind(schedule, "b")
    function = schedule.mod["main"]
    two = tvm.IRModule({name: function.with_attr("global_symbol", name) for name in "fg"})
    with pytest.raises(ScheduleError, match="the module has 2 functions; it must have one"):
        lower(two, _GPU)
    n = tvm.tirx.Var("n", "int32")
    a = te.placeholder((n, 64), name="a")
    schedule = _schedule(a, te.compute((n, 64), lambda i, j: a[i, j] + 1, name="b"))
    _bind(schedule, "b")
    with pytest.raises(ScheduleError, match="an extent of a is n; it must be a constant"):
        lower(schedule.mod, _GPU)
    schedule = _schedule(*_one_stage(dtype="float64"))
    _bind(schedule, "b")
    with pytest.raises(ScheduleError, match="array a has dtype float64; allowed are float32, float16, int8"):
        lower(schedule.mod, _GPU)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ({"threadIdx.x": 1025}, "threadIdx.x is 1025; sm_80 allows 1024"),
        ({"threadIdx.x": 32, "threadIdx.y": 33}, "threads of a block is 1056; sm_80 allows 1024"),
        ({"threadIdx.z": 65}, "threadIdx.z is 65; sm_80 allows 64"),
        ({"blockIdx.y": 65536}, "blockIdx.y is 65536; sm_80 allows 65535"),
        ({"blockIdx.z": 65536}, "blockIdx.z is 65536; sm_80 allows 65535"),
        ({"blockIdx.x": 65536, "threadIdx.x": 1024}, ""),
    ],
)
def test_limits_of_a_launch(axes: dict[str, int], message: str) -> None:
    a = te.placeholder(tuple(axes.values()), name="a")
    schedule = _schedule(a, te.compute(a.shape, lambda *i: a(*i) + 1, name="b"))
    for loop, axis in zip(schedule.get_loops(schedule.get_sblock("b")), axes):
        schedule.bind(loop, axis)
    if message:
        with pytest.raises(ScheduleError, match=message):
            lower(schedule.mod, _GPU)
    else:
        lower(schedule.mod, _GPU)


@pytest.mark.parametrize(
    ("scope", "kib", "message"),
    [
        ("shared", 48, ""),
        ("shared", 49, "static shared memory in bytes is 50176; sm_80 allows 49152"),
        ("shared.dyn", 163, ""),
        ("shared.dyn", 164, "shared memory in bytes is 167936; sm_80 allows 166912"),
    ],
)
def test_limits_of_shared_memory(scope: str, kib: int, message: str) -> None:
    a, b = _one_stage(columns=kib * 256)
    schedule = _schedule(a, b)
    block = schedule.get_sblock("b")
    rows, columns = schedule.get_loops(block)
    schedule.bind(rows, "blockIdx.x")
    cached = schedule.cache_read(block, 0, scope)
    schedule.compute_at(cached, rows)
    for loop in (columns, schedule.get_loops(cached)[-1]):
        schedule.bind(schedule.split(loop, [None, 256])[1], "threadIdx.x")
    if message:
        with pytest.raises(ScheduleError, match=message):
            lower(schedule.mod, _GPU)
    else:
        (launch,) = lower(schedule.mod, _GPU).program.launches
        assert launch.dynamic_shared_bytes == (kib << 10 if scope == "shared.dyn" else 0)


_PROGRAM = Program(
    source='extern "C" __global__ void k(float* a, half* w, float* b) { … }\n',
    parameters=(Array("a", 6, "float32"), Array("b", 4, "float32")),
    workspaces=(Array("w", 3, "float16"),),
    launches=(Launch("k", ("a", "w", "b"), (1, 2, 3), (32, 1, 1), 64),),
)


def test_json_round_trip() -> None:
    assert Program.from_json(_PROGRAM.to_json()) == _PROGRAM


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("schema",), 2, "program has schema 2; this convtune reads 1"),
        (("schema",), None, "program has no field 'schema'"),
        (("source",), 1, "program: source is 1; it must be str"),
        (("launches",), {}, "program: launches is {}; it must be list"),
        (("parameters", 0), "a", r"program: parameters\[0\] has no field 'name'"),
        (("parameters", 0, "count"), True, r"program: parameters\[0\]: count is True; it must be int"),
        (("parameters", 0, "count"), 0, "array a has 0 elements; it must have at least 1"),
        (("workspaces", 0, "dtype"), "float8", "array w has dtype 'float8'; allowed are float32, float16"),
        (("workspaces", 0, "name"), "a", "the arrays are named a, b, a; each name may come once"),
        (("launches", 0, "grid"), [1, 2], r"program: launches\[0\]: grid has 2 numbers; it must have 3"),
        (("launches", 0, "grid"), [1, 2, "3"], r"grid is \[1, 2, '3'\]; each entry must be int"),
        (("launches", 0, "block"), [0, 1, 1], r"kernel k: block is \(0, 1, 1\); each must be at least 1"),
        (("launches", 0, "arguments"), ["c"], "kernel k takes 'c'; the arrays are a, b, w"),
        (("launches", 0, "kernel"), "k;", "kernel 'k;' has no name in C"),
        (("launches", 0, "dynamic_shared_bytes"), -1, "dynamic_shared_bytes is -1, below 0"),
    ],
)
def test_a_damaged_program_is_refused(path: tuple[Any, ...], value: Any, message: str) -> None:
    record = json.loads(_PROGRAM.to_json())
    *parents, field = path
    place = record
    for key in parents:
        place = place[key]
    if value is None:
        del place[field]
    else:
        place[field] = value
    with pytest.raises(KernelError, match=message):
        Program.from_json(json.dumps(record))


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(KernelError, match="program is not JSON"):
        Program.from_json(_PROGRAM.to_json()[:-3])
    with pytest.raises(KernelError, match="program has no field 'schema'"):
        Program.from_json("[]")
