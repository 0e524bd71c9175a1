"""The code that spaces make for x86, from any machine: what belongs in registers, and which unit does the work."""

from __future__ import annotations

import re
from typing import Any

import pytest
from test_arm_code import on

from convtune import codegen
from convtune.measure.builder import scheduled
from convtune.space import Candidate
from convtune.spec import ConvSpec

WIDE = "znver4"
PRODUCT = "pointwise,ic=12,oc=216,in=3x28x28,k=1x1x1,layout=NDHWC"
STEM = "conv,ic=3,oc=64,in=33x35,k=7x7,s=2,p=3,layout=NHWC"
SHARED = "pointwise,ic=9,oc=24,in=28x28,k=1x1,layout=NHWC"
PADDED = "conv,ic=3,oc=24,in=31x64,k=3x3,s=2,p=1,layout=NHWC"
GROUPS = "shuffled_grouped,ic=24,oc=60,in=28x28,k=1x1,g=3,layout=NHWC"


def code(spec: str, owner: str, **knobs: Any) -> str:
    """For a CPU with vectors of 512 bits."""
    import tvm

    module, _ = scheduled(ConvSpec.parse(spec), on(WIDE), Candidate(owner, knobs))
    return str(tvm.compile(codegen.any_alignment(module), target=on(WIDE).to_tvm()).mod.inspect_source("asm"))


def product(columns: int, vectors: int, order: str) -> str:
    knobs = {"columns": columns, "oc_vectors": vectors, "task_positions": 1176, "order": order}
    return code(PRODUCT, "pointwise_gemm", **knobs)


def spilled(text: str) -> list[str]:
    return re.findall(r"vmov\w+\s+%zmm\d+, -?\w*\(%rsp\)", text)


@pytest.mark.parametrize(("columns", "vectors"), [(8, 3), (6, 4), (7, 3)])
@pytest.mark.parametrize("order", ["outer", "inner"])
def test_sums_of_products_stay_in_registers(columns: int, vectors: int, order: str) -> None:
    text = product(columns, vectors, order)
    assert "vfmadd" in text
    assert not spilled(text)


def test_sums_of_filtered_rows_stay_in_registers() -> None:
    assert not spilled(code(STEM, "filtered_rows", h_tile=4, columns=6, oc_vectors=4))


@pytest.mark.parametrize(("columns", "oc"), [(14, 24), (14, 32)])
def test_sums_of_rows_with_taps_on_padding_stay_in_registers(columns: int, oc: int) -> None:
    spec = PADDED.replace("oc=24", f"oc={oc}")
    assert not spilled(code(spec, "row_taps", columns=columns, vectors=oc // 16, row_block=4))


def test_positions_are_not_taken_apart() -> None:
    """8 positions cross the ends of rows of 28, 7 do not."""
    apart, along = (product(columns, 3, "outer").count("imul") for columns in (8, 7))
    assert apart <= along + 2


@pytest.mark.parametrize(
    ("spec", "owner", "knobs"),
    [
        (SHARED, "pointwise_shared", {"columns": 8, "vectors": 1, "parts": 2}),
        (PADDED, "row_taps", {"columns": 16, "vectors": 1, "row_block": 4}),
        (GROUPS, "grouped_pointwise", {"columns": 4, "vectors": 4, "tiles": 1, "parts": 2}),
    ],
)
def test_inputs_are_blended_and_not_permuted(spec: str, owner: str, knobs: dict[str, Any]) -> None:
    text = code(spec, owner, **knobs)
    assert re.search(r"vblendmps.*zmm|vmovaps\s+%zmm\d+, %zmm\d+ \{%k", text)
    assert not re.search(r"vshuff64x2|vshuff32x4|vinsertf32x4|vinsertf64x4", text)
    first_product = text.index("vfmadd")
    assert "vcmp" not in text[first_product:], "the mask is made before the loops"
