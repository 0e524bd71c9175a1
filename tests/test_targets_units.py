"""What vector units do in a cycle, and that the estimates differ from the usual ones only where units do."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from convtune.schedules.estimate import FMA_LATENCY, step_cycles, waiting_factor

from convtune import space, targets
from convtune.spec import ConvSpec
from convtune.targets import CpuTarget

USUAL = ("znver5", "sapphirerapids", "skylake-avx512", "x86-64-v4", "x86-64-v3", "znver3", "haswell", "neoverse-n1")
UNITS = ("fmas_per_cycle", "loads_per_cycle", "stores_per_cycle")
LAYERS = (
    "conv,ic=192,oc=192,in=17x17,k=3x3,s=2,layout=NHWC",
    "conv,ic=192,oc=192,in=17x17,k=3x3,s=2",
    "conv,ic=256,oc=921,in=4x14x14,k=1x3x3,s=1x2x2,p=0x1x1,layout=NDHWC",
    "conv,ic=3,oc=32,in=64x64,k=3x3,s=2,layout=NHWC",
    "pointwise,ic=24,oc=108,in=28x28,k=1x1",
    "pointwise,ic=54,oc=24,in=28x28,k=1x1,layout=NHWC",
    "depthwise,ic=96,oc=96,in=28x28,k=3x3,p=1,layout=NHWC",
    "grouped,ic=128,oc=128,in=28x28,k=3x3,p=1,g=32,layout=NHWC",
    "transposed,ic=256,oc=128,in=8x8,k=4x4,s=2,p=1,layout=NHWC",
)


def cpu(name: str, **changed: Any) -> CpuTarget:
    target = targets.resolve(name, threads=2, elsewhere=True)
    assert isinstance(target, CpuTarget)
    return dataclasses.replace(target, **changed)


def units(target: CpuTarget) -> tuple[float, ...]:
    return tuple(getattr(target, name) for name in UNITS)


def defaults(target: CpuTarget) -> list[tuple[space.Candidate, dict[str, float]]]:
    """The default of each layer, and every space's estimate of its own."""
    found = []
    for text in LAYERS:
        spec, estimates = ConvSpec.parse(text), {}
        for each in space.accepting(spec, target):
            if isinstance(each, space.Estimating):
                estimates[each.name] = each.estimate(spec, target, each.default(spec, target))
        found.append((space.default_candidate(spec, target), estimates))
    return found


@pytest.mark.parametrize(
    ("name", "vector_bytes", "expected"),
    [
        ("znver4", 64, (1, 1, 0.5)),
        ("znver4", 32, (2, 2, 1)),
        ("znver4", 16, (2, 2, 1)),
        ("tigerlake", 64, (1, 2, 1)),
        ("tigerlake", 32, (2, 2, 1)),
        ("cortex-a55", 16, (1, 0.5, 1)),
        *((name, None, (2, 2, 1)) for name in (*USUAL, "icelake-server", "cortex-a72")),
    ],
)
def test_units(name: str, vector_bytes: int | None, expected: tuple[float, ...]) -> None:
    assert units(cpu(name, vector_bytes=vector_bytes) if vector_bytes else cpu(name)) == expected


@pytest.mark.parametrize("name", USUAL)
@pytest.mark.parametrize(("sums", "loads"), [(1, 2), (7, 8), (8, 9), (28, 16), (6, 40)])
def test_a_step_of_two_units_takes_what_it_did(name: str, sums: int, loads: int) -> None:
    assert step_cycles(cpu(name), sums, loads) == max(max(sums, 8) / 2.0, loads / 1.8)
    assert waiting_factor(cpu(name), sums) == max(1.0, 8 / sums)


def test_one_unit_needs_half_as_many_sums() -> None:
    zen4 = cpu("znver4")
    assert step_cycles(zen4, 4, 2) == FMA_LATENCY
    assert step_cycles(zen4, 28, 16) == 28
    assert step_cycles(zen4, 4, 9) == 10


@pytest.mark.parametrize("name", ["znver5", "sapphirerapids", "x86-64-v3"])
def test_where_units_are_the_usual_ones_nothing_changes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = defaults(cpu(name))
    for unit, usual in zip(UNITS, (2.0, 2.0, 1.0), strict=True):
        monkeypatch.setattr(CpuTarget, unit, usual)
    assert defaults(cpu(name)) == found


def test_units_choose_defaults() -> None:
    zen4 = cpu("znver4")
    usual = dataclasses.replace(zen4, mcpu="x86-64-v4")
    assert defaults(dataclasses.replace(zen4, vector_bytes=32)) == defaults(dataclasses.replace(usual, vector_bytes=32))
    strided = ConvSpec.parse(LAYERS[1])
    assert space.default_candidate(strided, usual).space == "dense_direct"
    assert space.default_candidate(strided, zen4).space == "minimal_filtering"
