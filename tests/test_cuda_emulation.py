"""CUDA C on the CPU: what programs compute, in every order of their threads, and that memory is guarded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from emulation_programs import aligned, emulation, in_all_orders, lowered, matmul, outputs, random, run, written
from numpy.typing import NDArray

from convtune import activations
from convtune.cuda.emulation.emulator import ORDERS
from convtune.cuda.program import Array, Launch, Program
from convtune.errors import KernelError
from convtune.measure.verify import verify

MATMULS: list[dict[str, Any]] = [
    {},
    {"vectorised": True},
    {"scope": "shared.dyn", "vectorised": True},
    {"vectorised": True, "stages": 2},
    {"scope": "shared.dyn", "stages": 3},
    {"vectorised": True, "dtype": "float16"},
    {"scope": "shared.dyn", "dtype": "float16", "vectorised": True, "stages": 2},
]


@pytest.mark.parametrize("options", MATMULS, ids=str)
def test_tiles_in_shared_memory(options: dict[str, Any]) -> None:
    dtype = options.get("dtype", "float32")
    a, b = random(64 * 64, 1, dtype), random(64 * 64, 2, dtype)
    expected = a.reshape(64, 64).astype(np.float64) @ b.reshape(64, 64).astype(np.float64)
    c = in_all_orders(matmul(**options), [a, b])
    np.testing.assert_allclose(c.reshape(64, 64), expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_copies_of_several_stages_are_asynchronous() -> None:
    assert "cp.async.cg" in matmul(vectorised=True, stages=2).source
    assert "cp.async.ca" in matmul("shared.dyn", stages=3).source


def test_blocks_of_one_launch_run_on_several_threads_of_the_cpu() -> None:
    program, a, b, c = matmul(), random(4096, 1), random(4096, 2), outputs(matmul())
    assert emulation(program, False).run([a, b, c], threads=3).problem == ""
    np.testing.assert_array_equal(c, run(program, [a, b], False))


@pytest.mark.parametrize("checked", [False, True])
def test_some_blocks_of_many(checked: bool) -> None:
    """The first, the last and some between; no other writes."""
    program = written("y[blockIdx.x] = blockIdx.x;", {"y": 100}, grid=100, block=1)
    y = outputs(program)
    assert emulation(program, checked).run([y], order="shuffled", blocks=7).problem == ""
    ran = np.flatnonzero(~np.isnan(y))
    assert len(ran) == 7 and ran[0] == 0 and ran[-1] == 99
    np.testing.assert_array_equal(y[ran], ran)


@pytest.mark.parametrize("checked", [False, True])
def test_all_indices_of_grid_and_block(checked: bool) -> None:
    body = """
      int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
      int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
      y[block * blockDim.x * blockDim.y * blockDim.z + thread] = 100 * block + thread;"""
    program = written(body, {"y": 24 * 30})
    launch = Launch("main_kernel", ("y",), (2, 3, 4), (5, 2, 3), 0)
    program = Program(program.source, program.parameters, (), (launch,))
    expected = 100 * np.arange(24)[:, None] + np.arange(30)
    np.testing.assert_array_equal(run(program, [], checked), expected.reshape(-1))


def depthwise() -> Program:
    """A 3-tap filter for each of 5 channels of 37 elements, with a border of one zero, 32 elements a block."""
    from tvm import te, tirx
    from tvm.s_tir import Schedule

    x, w = te.placeholder((5, 37), name="x"), te.placeholder((5, 3), name="w")
    padded = te.compute(
        (5, 39), lambda c, i: tirx.if_then_else(tirx.all(i >= 1, i < 38), x[c, i - 1], 0.0), name="padded"
    )
    k = te.reduce_axis((0, 3), "k")
    y = te.compute((5, 37), lambda c, i: te.sum(padded[c, i + k] * w[c, k], axis=k), name="y")
    sch = Schedule(te.create_prim_func([x, w, y]))
    block, border = sch.get_sblock("y"), sch.get_sblock("padded")
    c, i, _ = sch.get_loops(block)
    outer, inner = sch.split(i, [None, 32])
    sch.bind(c, "blockIdx.y")
    sch.bind(outer, "blockIdx.x")
    sch.bind(inner, "threadIdx.x")
    sch.compute_at(border, outer)
    sch.set_scope(border, 0, "shared")
    fused = sch.fuse(*sch.get_loops(border)[2:])
    _, inner = sch.split(fused, [None, 32])
    sch.bind(inner, "threadIdx.x")
    return lowered(sch.mod)


def filtered(x: NDArray[Any], w: NDArray[Any]) -> NDArray[Any]:
    rows = zip(x.reshape(5, 37).astype(np.float64), w.reshape(5, 3).astype(np.float64))
    return np.stack([np.correlate(np.pad(row, 1), taps, "valid") for row, taps in rows])


def test_predicates_at_borders() -> None:
    x, w = random(5 * 37, 1), random(15, 2)
    np.testing.assert_allclose(in_all_orders(depthwise(), [x, w]).reshape(5, 37), filtered(x, w), atol=1e-5)


def test_verify_takes_an_emulation_for_a_kernel() -> None:
    x, w = random(5 * 37, 1), random(15, 2)
    inputs = {"x": x.reshape(5, 37), "weight": w.reshape(5, 3)}
    verdict = verify(emulation(depthwise(), False), inputs, filtered(x, w), 1e-5)
    assert verdict.problem == "" and verdict.error is not None
    verdict = verify(emulation(depthwise(), False), inputs, filtered(x, w) + 0.1, 1e-5)
    assert verdict.problem.startswith("wrong result")


def two_kernels() -> Program:
    """y = (2 x) reversed, through a workspace."""
    source = """
      extern "C" __global__ void twice(float* __restrict__ x, float* __restrict__ t) {
        t[blockIdx.x * 32 + threadIdx.x] = x[blockIdx.x * 32 + threadIdx.x] * 2.0f;
      }
      extern "C" __global__ void reversed(float* __restrict__ t, float* __restrict__ y) {
        y[blockIdx.x * 16 + threadIdx.x] = t[63 - (blockIdx.x * 16 + threadIdx.x)];
      }"""
    launches = (
        Launch("twice", ("x", "t"), (2, 1, 1), (32, 1, 1), 0),
        Launch("reversed", ("t", "y"), (4, 1, 1), (16, 1, 1), 0),
    )
    return Program(
        source, (Array("x", 64, "float32"), Array("y", 64, "float32")), (Array("t", 64, "float32"),), launches
    )


def test_launches_follow_each_other() -> None:
    x = random(64)
    np.testing.assert_array_equal(in_all_orders(two_kernels(), [x]), 2 * x[::-1])


def test_writes_outside_a_workspace_are_found() -> None:
    program = two_kernels()
    broken = Program(program.source.replace("t[blockIdx.x", "t[1 + blockIdx.x"), *_parts(program))
    found = emulation(broken, False).run([random(64), aligned(64)]).problem
    assert found == "wrote outside workspace t: 1 element after its end"
    found = emulation(broken, True).run([random(64), aligned(64)]).problem
    assert "write of 4 bytes out of bounds at element 64 of t, which has 64, by thread (31, 0, 0)" in found


def _parts(program: Program) -> tuple[Any, ...]:
    return program.parameters, program.workspaces, program.launches


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("index, where", [("-1", "before its start"), ("32", "after its end")])
def test_writes_outside_shared_arrays_are_found(dynamic: bool, index: str, where: str) -> None:
    declared = "extern __shared__ float s[];" if dynamic else "__shared__ float s[32];"
    program = written(f"{declared} s[{index}] = 1.0f; y[0] = 1.0f;", {"y": 1}, block=1, dynamic=128 * dynamic)
    assert (
        emulation(program, False).run([aligned(1)]).problem
        == f"kernel main_kernel wrote outside shared array s: {where}"
    )
    assert f"out of bounds at element {index} of shared array s" in emulation(program, True).run([aligned(1)]).problem


def test_shared_memory_is_full_of_what_is_asked_for() -> None:
    program = written("__shared__ float s[4]; y[threadIdx.x] = s[threadIdx.x];", {"y": 4}, block=4)
    y = outputs(program)
    emulated = emulation(program, False)
    emulated.fill_scratch(0x7F)
    emulated.run([y])
    emulated.fill_scratch(None)
    assert (y.view(np.uint8) == 0x7F).all()


@pytest.mark.parametrize("name", ["relu", "relu6", "leaky_relu", "silu", "hardswish", "gelu", "sigmoid", "tanh"])
@pytest.mark.parametrize("lanes", [1, 4])
def test_activations(name: str, lanes: int) -> None:
    from tvm import te
    from tvm.s_tir import Schedule

    x = te.placeholder((16, 64), name="x")
    y = te.compute((16, 64), lambda i, j: activations.get(name).expression(x[i, j] + 0.0), name="y")
    sch = Schedule(te.create_prim_func([x, y]))
    i, j = sch.get_loops(sch.get_sblock("y"))
    outer, inner = sch.split(j, [None, lanes])
    sch.bind(i, "blockIdx.x")
    sch.bind(outer, "threadIdx.x")
    sch.vectorize(inner)
    values = aligned(1024)
    values[:] = np.linspace(-20, 20, 1024)
    found = in_all_orders(lowered(sch.mod), [values])
    expected = activations.get(name).numpy(values.astype(np.float64))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_maximum_swallows_a_nan_as_on_the_gpu() -> None:
    x = aligned(32)
    x.fill(np.nan)
    y = in_all_orders(written("y[threadIdx.x] = max(x[threadIdx.x], 0.0f);", {"x": 32, "y": 32}), [x])
    np.testing.assert_array_equal(y, np.zeros(32))


FUNCTIONS = {
    "expf(v)": np.exp,
    "__expf(v)": np.exp,
    "tanhf(v)": np.tanh,
    "fmaf(v, v, v)": lambda v: v * v + v,
    "rsqrtf(v)": lambda v: 1 / np.sqrt(v),
    "__logf(v)": np.log,
    "powf(v, 1.5f)": lambda v: v**1.5,
    "floorf(v)": np.floor,
    "fabsf(-v)": np.abs,
    "__ldg(x + threadIdx.x)": lambda v: v,
    "__int_as_float(__float_as_int(v))": lambda v: v,
    "min(max(v, 1.0f), 2.0f)": lambda v: np.clip(v, 1, 2),
    "(*(float *)(&(v)))": lambda v: v,
}


def test_functions() -> None:
    x = aligned(32)
    x[:] = np.linspace(0.1, 4, 32)
    lines = [f"y[{32 * i} + threadIdx.x] = {code};" for i, code in enumerate(FUNCTIONS)]
    body = "float v = x[threadIdx.x];" + "\n".join(lines)
    y = in_all_orders(written(body, {"x": 32, "y": 32 * len(FUNCTIONS)}), [x])
    expected = np.stack([function(x.astype(np.float64)) for function in FUNCTIONS.values()])
    np.testing.assert_allclose(y.reshape(len(FUNCTIONS), 32), expected, rtol=1e-5)


def test_every_half_converts_as_in_numpy() -> None:
    """All 65536 to float32 and back, and sums and products rounded to 16 bits each."""
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    held = aligned(65536, "float16")
    held[:] = x
    same = written(
        "int i = blockIdx.x * 256 + threadIdx.x; y[i] = __float2half_rn((float)x[i]);",
        {"x": 65536, "y": 65536},
        256,
        256,
        dtype="half",
    )
    np.testing.assert_array_equal(run(same, [held], False), x)
    body = "int i = blockIdx.x * 256 + threadIdx.x; y[i] = x[i] * x[65535 - i] + x[i] * __float2half_rn(3.0f);"
    y = run(written(body, {"x": 65536, "y": 65536}, 256, 256, dtype="half"), [held], False)
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(y, x * x[::-1] + x * np.float16(3))


@pytest.mark.parametrize("checked", [False, True])
def test_arrays_at_any_address(checked: bool) -> None:
    """They are copied where a program may assume them, between red zones, and back."""
    program = written("y[threadIdx.x] = x[threadIdx.x];", {"x": 32, "y": 32})
    x, y = random(33)[1:], aligned(33)[1:]
    assert emulation(program, checked).run([x, y]).problem == ""
    np.testing.assert_array_equal(y, x)
    broken = written("y[threadIdx.x + 1] = x[threadIdx.x];", {"x": 32, "y": 32})
    with pytest.raises(KernelError, match="wrote outside y: 1 element after its end"):
        emulation(broken, False)([x, y], [4, 4])


def test_arguments_that_do_not_fit_are_refused() -> None:
    emulated = emulation(two_kernels(), False)
    x, y = random(64), aligned(64)
    with pytest.raises(KernelError, match="order is 'sideways'; allowed are forward, reverse, shuffled"):
        emulated.run([x, y], "sideways")
    with pytest.raises(KernelError, match="1 arrays were given; the program takes 2"):
        emulated.run([x])
    with pytest.raises(KernelError, match="x has 63 elements of float32; it must have 64 of float32"):
        emulated.run([x[:63], y])
    with pytest.raises(KernelError, match="x has 64 elements of float64"):
        emulated.run([x.astype(np.float64), y])
    with pytest.raises(KernelError, match="y has strides"):
        emulated.run([x, aligned(128)[::2]])
    with pytest.raises(KernelError, match="threads is 0"):
        emulated.run([x, y], threads=0)
    with pytest.raises(KernelError, match="blocks is 1, with 2 launches"):
        emulated.run([x, y], blocks=1)


def test_orders_differ() -> None:
    """The last thread to run wins a race."""
    program = written("y[0] = threadIdx.x;", {"y": 1}, block=64)
    winners = []
    for order in ORDERS:
        y = outputs(program)
        emulation(program, False).run([y], order)
        winners.append(int(y[0]))
    assert winners[0] == 63 and winners[1] == 0 and winners[2] not in (0, 63)
