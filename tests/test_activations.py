"""Each activation's TVM expression against float64, over all of float32."""

from __future__ import annotations

import platform
import re
from typing import Any

import numpy as np
import pytest

from convtune import activations, spec
from convtune.errors import ScheduleError, UnknownNameError

# What vectors of float32 are in assembly.
MCPU, VECTOR = ({"mcpu": "x86-64-v3"}, r"\bymm") if platform.machine() == "x86_64" else ({}, r"\bv\d+\.4s")
SMALLEST_NORMAL = np.finfo(np.float32).tiny


def grid() -> np.ndarray:
    """Dense where the functions bend, every exponent elsewhere, both signs."""
    dense = np.linspace(-20, 20, 400_003, dtype=np.float32)
    tails = np.linspace(20, 110, 100_003, dtype=np.float32)
    with np.errstate(over="ignore"):
        wide = np.float32(2) ** np.linspace(-126, 127.99, 20_011).astype(np.float32)
    return np.concatenate([dense, tails, -tails, wide, -wide, np.float32([0, np.finfo(np.float32).max])])


def compiled(name: str, shape: tuple[int, ...]) -> Any:
    import tvm
    from tvm import te

    x = te.placeholder(shape, "float32", name="x")
    y = te.compute(shape, lambda *i: activations.get(name).expression(x(*i)), name="y")
    schedule = tvm.s_tir.Schedule(te.create_prim_func([x, y]))
    *_, inner = schedule.get_loops(schedule.get_sblock("y"))
    _, lanes = schedule.split(inner, [None, 16])
    schedule.vectorize(lanes)
    return tvm.compile(schedule.mod, target={"kind": "llvm", **MCPU})


def run(name: str, values: np.ndarray) -> np.ndarray:
    import tvm

    padded = np.zeros(-(-len(values) // 16) * 16, np.float32)
    padded[: len(values)] = values
    x, y = tvm.runtime.tensor(padded), tvm.runtime.tensor(np.empty_like(padded))
    compiled(name, padded.shape)(x, y)
    return y.numpy()[: len(values)]


def test_the_specs_list_is_this_one() -> None:
    assert tuple(activations._ACTIVATIONS) == spec.ACTIVATIONS


def test_an_unknown_name_lists_the_near_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown activation 'relu7'; near it: .*relu6"):
        activations.get("relu7")


def test_only_float32_expressions() -> None:
    from tvm import tirx

    with pytest.raises(ScheduleError, match="activation relu of a float16 expression; it must be float32"):
        activations.get("relu").expression(tirx.Var("x", "float16"))


@pytest.mark.parametrize("name", spec.ACTIVATIONS)
def test_the_expression_is_within_1e6_of_float64(name: str) -> None:
    x = grid()
    y, exact = run(name, x), activations.get(name).numpy(x.astype(np.float64))
    relative = np.where(x < -4, 4e-6, 1e-6) if name == "gelu" else 1e-6
    # a denormal result may be flushed, and so may a denormal sigmoid that silu multiplies with x
    excess = np.abs(y - exact) - relative * np.abs(exact) - SMALLEST_NORMAL * np.maximum(np.abs(x), 1)
    worst = int(np.argmax(excess))
    assert excess[worst] <= 0, f"{name}({x[worst]!r}) is {y[worst]!r}, not {exact[worst]!r}"


@pytest.mark.parametrize(("name", "low", "high"), [("tanh", -1, 1), ("sigmoid", 0, 1), ("relu6", 0, 6)])
def test_no_value_outside_the_range_of_the_function(name: str, low: float, high: float) -> None:
    y = run(name, grid())
    assert low <= y.min() <= y.max() <= high


@pytest.mark.parametrize("name", spec.ACTIVATIONS)
def test_infinities_give_limits_and_nan_stays(name: str) -> None:
    x = np.float32([-np.inf, np.inf, np.nan])
    limits = (
        {"leaky_relu": -np.inf, "tanh": -1.0}.get(name, 0.0),
        {"relu6": 6, "sigmoid": 1, "tanh": 1}.get(name, np.inf),
    )
    np.testing.assert_array_equal(run(name, x), [*limits, np.nan])
    np.testing.assert_array_equal(activations.get(name).numpy(x.astype(np.float64)), [*limits, np.nan])


@pytest.mark.parametrize("name", spec.ACTIVATIONS)
def test_the_loop_is_vector_code_with_no_call(name: str) -> None:
    assembly = compiled(name, (64, 64)).mod.inspect_source("asm")
    assert re.search(VECTOR, assembly)
    calls = set(re.findall(r"\b(?:call\w*|bl)\s+\*?(\S+)", assembly))
    assert not any(re.search(r"exp|tanh|erf|floor|round", call) for call in calls), calls


@pytest.mark.parametrize(
    ("name", "points"),
    [
        # by hand, or from the tables of Abramowitz and Stegun (26.1 for gelu)
        ("relu6", {-1: 0, 2.5: 2.5, 7: 6}),
        ("leaky_relu", {-2: -0.02, 3: 3}),
        ("hardswish", {-4: 0, -3: 0, -1: -1 / 3, 0: 0, 1: 2 / 3, 3: 3, 5: 5}),
        ("sigmoid", {0: 0.5, np.log(3): 0.75}),
        ("silu", {np.log(3): 0.75 * np.log(3)}),
        ("tanh", {np.log(3): 0.8}),
        ("gelu", {0: 0, 1: 0.841344746, 2: 2 * 0.977249868, -1: -0.158655254, -5: -5 * 2.866515719e-7}),
    ],
)
def test_the_definition_at_known_points(name: str, points: dict[float, float]) -> None:
    x = np.array(list(points), np.float64)
    np.testing.assert_allclose(activations.get(name).numpy(x), list(points.values()), rtol=3e-9, atol=1e-15)
