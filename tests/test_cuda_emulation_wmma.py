"""CUDA's wmma on the CPU: tiles of all shapes and layouts, and what it demands of a warp and of addresses."""

from __future__ import annotations

import numpy as np
import pytest
from emulation_programs import emulation, in_all_orders, outputs, random, report_of

from convtune.cuda.program import Array, Launch, Program

LAYOUTS = ("row", "col")


def program(m: int, n: int, a: str, b: str, c: str, sums: str = "float", offset: int = 0, threads: int = 32) -> Program:
    """y = a b + c for tiles of m x 16 and 16 x n, given and written by rows or by columns; a and b in shared memory."""
    k = 16
    strides = {"a": k if a == "row" else m, "b": n if b == "row" else k, "c": n if c == "row" else m}
    shape = f"{m}, {n}, {k}"
    source = f"""
    #include <mma.h>
    extern "C" __global__ void product(half* a, half* b, {sums}* c, {sums}* y) {{
      __shared__ half as[{m * k + 64}];
      __shared__ half bs[{k * n}];
      for (int i = threadIdx.x; i < {m * k + 64}; i += {threads}) as[i] = a[i % {m * k}];
      for (int i = threadIdx.x; i < {k * n}; i += {threads}) bs[i] = b[i];
      __syncthreads();
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, {shape}, half, nvcuda::wmma::{a}_major> left;
      nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, {shape}, half, nvcuda::wmma::{b}_major> right;
      nvcuda::wmma::fragment<nvcuda::wmma::accumulator, {shape}, {sums}> result[1];
      nvcuda::wmma::load_matrix_sync(left, &as[{offset}], {strides["a"]});
      nvcuda::wmma::load_matrix_sync(right, (half*)bs, {strides["b"]});
      nvcuda::wmma::load_matrix_sync(result[0], c, {strides["c"]}, nvcuda::wmma::mem_{c}_major);
      nvcuda::wmma::mma_sync(result[0], left, right, result[0]);
      for (int i = 0; i < result[0].num_elements; i++) result[0].x[i] = result[0].x[i] * ({sums})2.0f;
      nvcuda::wmma::store_matrix_sync(y, result[0], {strides["c"]}, nvcuda::wmma::mem_{c}_major);
    }}"""
    wide = "float32" if sums == "float" else "float16"
    parameters = (
        Array("a", m * k, "float16"), Array("b", k * n, "float16"), Array("c", m * n, wide), Array("y", m * n, wide)
    )  # fmt: skip
    return Program(source, parameters, (), (Launch("product", ("a", "b", "c", "y"), (1, 1, 1), (threads, 1, 1), 0),))


@pytest.mark.parametrize("m, n", [(16, 16), (32, 8), (8, 32)])
@pytest.mark.parametrize(
    "a, b, c", [("row", "row", "row"), ("col", "row", "row"), ("row", "col", "col"), ("col", "col", "row")]
)
def test_products_of_tiles(m: int, n: int, a: str, b: str, c: str) -> None:
    order = {"row": "C", "col": "F"}
    made = program(m, n, a, b, c)
    inputs = [random(array.count, seed, array.dtype) for seed, array in enumerate(made.parameters[:3])]
    left, right, start = (
        held.astype(np.float64).reshape(shape, order=order[layout])
        for held, shape, layout in zip(inputs, ((m, 16), (16, n), (m, n)), (a, b, c))
    )
    y = in_all_orders(made, inputs).reshape((m, n), order=order[c])
    np.testing.assert_allclose(y, 2 * (left @ right + start), rtol=0, atol=1e-4)


def test_sums_of_halves_are_rounded_once_a_product() -> None:
    made = program(16, 16, "row", "row", "row", sums="half")
    a, b, c = (random(256, seed, "float16") for seed in range(3))
    product = a.reshape(16, 16).astype(np.float64) @ b.reshape(16, 16).astype(np.float64) + c.reshape(16, 16)
    y = in_all_orders(made, [a, b, c])
    np.testing.assert_allclose(y.reshape(16, 16), 2 * product.astype(np.float16), rtol=2e-3)


def test_tiles_start_at_multiples_of_32_bytes() -> None:
    problem = report_of(program(16, 16, "row", "row", "row", offset=8)).problem
    assert problem == "kernel product: a tile of wmma starts at an address that is no multiple of 32 bytes"
    assert report_of(program(16, 16, "row", "row", "row", offset=16)).problem == ""


def test_a_whole_warp_multiplies() -> None:
    made = program(16, 16, "row", "row", "row", threads=16)
    for checked in (False, True):
        arrays = [random(array.count, 1, array.dtype) for array in made.parameters[:3]]
        problem = emulation(made, checked).run([*arrays, outputs(made)]).problem
        assert problem == "kernel product: mma_sync without all 32 threads of a warp"


def test_a_tile_outside_its_array_is_found() -> None:
    assert "read of 16 bytes out of bounds" in report_of(program(16, 16, "row", "row", "row", offset=128)).problem


def test_a_tile_costs_what_ldmatrix_costs() -> None:
    """Rows of 32 bytes, 8 at a time: 2 wavefronts for each 128 bytes of the left matrix, and so of the right."""
    counts = report_of(program(16, 16, "row", "row", "row")).counts["product"]
    assert (counts.shared_load_requests, counts.shared_load_wavefronts) == (2, 2 * 4 * 2)
