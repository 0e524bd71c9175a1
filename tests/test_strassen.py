"""Strassen's algorithm: that its steps are a matrix product, what it takes, and kernels at the domain's corners."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conformance_cases import corner, runnable, runnable_targets
from convtune.schedules.strassen import strassen
from convtune.schedules.strassen_plan import KEPT, OUTER_STEPS, STEPS, W_SUMS, X_BLOCKS, X_SUMS, Plan
from repeating import differing_calls
from synthetic_spaces import machine
from test_conformance import check

from convtune.space import all_knobs
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

LONG = ConvSpec.parse("pointwise,n=2,ic=70,oc=45,in=5x7,k=1x1,bias,act=gelu,residual,layout=NHWC")
ODD = ConvSpec.parse("conv,ic=65,oc=96,in=9x11,k=1x1,s=2,bias,act=relu,layout=NHWC")
PATCHES = ConvSpec.parse("conv,n=3,ic=21,oc=60,in=6x7,k=2x2,s=2x3,layout=NHWC")
SPACE = ConvSpec.parse("pointwise,ic=66,oc=160,in=2x3x5,k=1x1x1,residual,layout=NDHWC")
TWICE_ODD = ConvSpec.parse("conv,n=2,ic=259,oc=128,in=7x9,k=1x1,s=2,bias,act=relu,residual,layout=NHWC")
TWICE_LONG = ConvSpec.parse("pointwise,ic=262,oc=96,in=5x7,k=1x1,bias,act=gelu,residual,layout=NHWC")
TWICE_PATCHES = ConvSpec.parse("conv,n=3,ic=67,oc=64,in=6x9,k=2x2,s=2x3,layout=NHWC")
TWICE_PHASES = ConvSpec.parse("transposed,n=2,ic=263,oc=48,in=3x5,k=2x2,s=2,bias,layout=NHWC")


def test_seven_steps_are_a_matrix_product() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 10, (4, 3, 5)), rng.integers(-9, 10, (4, 5, 2))  # blocks 11, 12, 21, 22
    factors = dict(zip(X_BLOCKS, x)) | {name: np.tensordot(signs, x, 1) for name, signs in X_SUMS.items()}
    kept: dict[str, Any] = {"0": np.zeros((3, 2), int)}
    y, sums = {}, np.full((3, 2), 10**6)
    for step, signs in zip(STEPS, W_SUMS):
        if step.begin != "sums":
            sums = kept[step.begin]
        sums = sums + factors[step.left] @ np.tensordot(signs, w, 1)
        block, with_kept = step.with_kept
        if block:
            y[block] = sums + kept[with_kept]
        if step.add:
            sums = sums + kept[step.add]
        if step.keep:
            kept[step.keep] = sums
        if step.y:
            y[step.y] = sums
    for row in (0, 1):
        for column in (0, 1):
            wanted = x[2 * row] @ w[column] + x[2 * row + 1] @ w[2 + column]
            np.testing.assert_array_equal(y[f"{row + 1}{column + 1}"], wanted)
    assert set(kept) == {"0", *KEPT}


def test_seven_steps_with_sums_in_memory_are_a_matrix_product() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-9, 10, (4, 3, 5)), rng.integers(-9, 10, (4, 5, 2))
    factors = dict(zip(X_BLOCKS, x)) | {name: np.tensordot(signs, x, 1) for name, signs in X_SUMS.items()}
    kept: dict[str, Any] = {"": np.zeros((3, 2), int)}
    y = {}
    for step, signs in zip(OUTER_STEPS, W_SUMS):
        sums = kept[step.begin] + factors[step.left] @ np.tensordot(signs, w, 1)
        if step.written:
            assert step.written not in y
            y[step.written] = sums + kept[step.extra]
        if step.keep:
            kept[step.keep] = sums + (kept[step.keep] if step.adds else 0)
    for row in (0, 1):
        for column in (0, 1):
            wanted = x[2 * row] @ w[column] + x[2 * row + 1] @ w[2 + column]
            np.testing.assert_array_equal(y[f"{row + 1}{column + 1}"], wanted)


@pytest.mark.parametrize(
    ("text", "twice"),
    [
        ("pointwise,ic=256,oc=64,in=9x9,k=1x1,layout=NHWC", True),
        ("pointwise,ic=255,oc=64,in=9x9,k=1x1,layout=NHWC", False),  # 63 in the last quarter
        ("pointwise,ic=256,oc=80,in=9x9,k=1x1,layout=NHWC", False),  # quarters of 20 channels
        ("pointwise,ic=256,oc=64,in=3x1,k=1x1,layout=NHWC", False),
        ("conv,ic=64,oc=64,in=9x9,k=2x2,s=2,layout=NHWC", True),
    ],
)
def test_halves_are_halved_where_quarters_are_large(text: str, twice: bool) -> None:
    left = {knobs["left"] for knobs in all_knobs(strassen, ConvSpec.parse(text), machine())}
    assert left - {"sums"} == ({"copies", "twice"} if twice else {"copies"})


def test_a_second_level_is_expected_to_round_more() -> None:
    spec = ConvSpec.parse("pointwise,ic=512,oc=512,in=9x9,k=1x1,layout=NHWC")
    errors: dict[Any, float] = {}
    for knobs in all_knobs(strassen, spec, machine()):
        errors[knobs["left"]] = strassen.expected_error(spec, machine(), knobs)
    assert errors["twice"] == 2 * errors["copies"]


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("pointwise,ic=64,oc=16,in=9x9,k=1x1,layout=NHWC", True),
        ("pointwise,ic=63,oc=16,in=9x9,k=1x1,layout=NHWC", False),  # sums take longer than a product
        ("pointwise,ic=64,oc=8,in=9x9,k=1x1,layout=NHWC", False),  # a half of a vector
        ("pointwise,ic=64,oc=20,in=9x9,k=1x1,layout=NHWC", False),  # the second half would be four of 16
        ("pointwise,ic=64,oc=28,in=9x9,k=1x1,layout=NHWC", True),
        ("pointwise,ic=64,oc=16,in=1x1,k=1x1,layout=NHWC", False),
        ("pointwise,ic=64,oc=16,in=9x9,k=1x1,layout=NCHW", False),
        ("conv,ic=64,oc=16,in=9x9,k=1x1,s=2,layout=NHWC", True),
        ("conv,ic=64,oc=16,in=9x9,k=1x1,p=1,layout=NHWC", False),
        ("conv,ic=16,oc=16,in=9x9,k=2x2,s=3,layout=NHWC", True),
        ("conv,ic=16,oc=16,in=9x9,k=2x2,s=1,layout=NHWC", False),  # patches overlap
        ("grouped,ic=64,oc=64,in=9x9,k=1x1,g=2,layout=NHWC", False),
    ],
)
def test_takes_products_that_halve(text: str, taken: bool) -> None:
    assert machine().lanes == 8
    assert strassen.takes(ConvSpec.parse(text), machine()) is taken


@pytest.mark.parametrize("spec", [LONG, ODD, PATCHES, SPACE], ids=str)
def test_inputs_are_read_in_place_only_where_halves_are_alike(spec: ConvSpec) -> None:
    left = {knobs["left"] for knobs in all_knobs(strassen, spec, machine())}
    assert left == ({"copies"} if spec in (ODD, PATCHES) else {"sums", "copies"})


def test_halves_cover_all_channels_and_positions() -> None:
    plan = Plan(
        positions=31, depth=13, taps=4, out_channels=45, columns=5, vectors=2, lanes=8, tile_block=2, parts=1,
        copies=True, staged=False,
    )  # fmt: skip
    assert (plan.channels, plan.missing, plan.half, plan.steps) == (24, 3, 7, 28)
    assert (plan.blocks, plan.last_vectors, plan.even) == (2, 1, False)
    assert (plan.tiles, plan.tile_blocks, plan.v_shape[:2]) == (4, 2, (7, 10))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        (LONG, {"oc_vectors": 3, "left": "sums"}),
        (LONG, {"oc_vectors": 2, "parts": 2, "left": "copies"}),
        (ODD, {"tile_block": 2, "oc_vectors": 4}),
        (PATCHES, {"tile_block": 1, "oc_vectors": 2}),
        (SPACE, {"oc_vectors": 4, "left": "sums"}),
        (TWICE_ODD, {"left": "twice", "parts": 2}),
        (TWICE_ODD, {"left": "twice", "oc_vectors": 4}),
        (TWICE_LONG, {"left": "twice"}),
        (TWICE_PATCHES, {"left": "twice", "oc_vectors": 2}),
        (TWICE_PHASES, {"left": "twice", "oc_vectors": 2, "parts": 2}),
    ],
)
def test_corners_are_right(spec: ConvSpec, wanted: dict[str, Any]) -> None:
    target = runnable("x86-64-v3")
    check(strassen, spec, target, corner(strassen, spec, target, wanted))


@pytest.mark.slow
@pytest.mark.parametrize("target", runnable_targets(), ids=lambda target: target.name)
def test_the_default_of_each_vector_width_is_right(target: CpuTarget) -> None:
    check(strassen, SPACE, target, strassen.default(SPACE, target))


@pytest.mark.slow
@pytest.mark.parametrize("left", ["copies", "twice"])
def test_positions_of_two_tiles_are_written_by_one(left: str) -> None:
    spec, target = ConvSpec.parse("pointwise,ic=256,oc=128,in=7x7,k=1x1,layout=NHWC"), runnable("x86-64-v3")
    candidates = [knobs for knobs in all_knobs(strassen, spec, target) if knobs["left"] == left]
    widest = {"columns": max(int(knobs["columns"]) for knobs in candidates)}  # so that both tiles are computed at once
    knobs = corner(strassen, spec, target, {"tile_block": 1, "parts": 1, "left": left, **widest})
    assert differing_calls(strassen, spec, target, knobs) == 0
