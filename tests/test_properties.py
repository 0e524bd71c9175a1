"""What one variant says about another, of the NumPy reference on any spec and of compiled kernels on a few."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from numpy.typing import NDArray
from strategies import specs

from convtune import targets, variants
from convtune.compiler import Compiler, open_logs
from convtune.reference import random_operands, reference
from convtune.runtime import CompiledConv
from convtune.spec import LAYOUTS, ConvSpec

Array: TypeAlias = NDArray[Any]
Run: TypeAlias = Callable[..., Array]  # of a spec and its operands, as `convtune.reference`
Sides: TypeAlias = tuple[Array, Array]

ANY = tuple(sorted(variants.known()))
COMPOSITE = tuple(name for name in ANY if isinstance(variants.get(name), variants.Composite))
EXTRAS = frozenset().union(*(variant.extras for variant in variants.known().values()))


@dataclass(frozen=True)
class Property:
    """Two ways to the same numbers.

    Args:
        sides: computes both, for a spec of one of the variants.
        example: a spec of which kernels are compiled.
    """

    sides: Callable[[Run, ConvSpec], Sides]
    variants: tuple[str, ...]
    example: str


PROPERTIES: list[Property] = []


def holds(variants: Sequence[str], example: str) -> Callable[[Callable[[Run, ConvSpec], Sides]], Any]:
    """Registers the function as a property."""

    def register(sides: Callable[[Run, ConvSpec], Sides]) -> Callable[[Run, ConvSpec], Sides]:
        PROPERTIES.append(Property(sides, tuple(variants), example))
        return sides

    return register


def bare(spec: ConvSpec) -> ConvSpec:
    """The convolution alone, linear and channels first."""
    linear = {"stage_bias": None, "stage_activations": None}
    return spec.replace(layout=None, bias=False, activation=None, residual=False, **linear)


def dense(spec: ConvSpec) -> ConvSpec:
    """The convolution of all channels with the same window and epilogue."""
    variant = "dilated" if max(spec.dilation) > 1 else "conv"
    return spec.replace(variant=variant, groups=1, **dict.fromkeys(EXTRAS))


@holds(ANY, "grouped,ic=6,oc=9,in=5x7,k=3x2,s=2x1,p=1,g=3,bias,act=silu,residual")
def channels_first_is_channels_last(run: Run, spec: ConvSpec) -> Sides:
    first, last = (spec.replace(layout=layout) for layout in LAYOUTS[spec.rank])
    o = random_operands(first, seed=6)
    inputs = {name: np.moveaxis(array, 1, -1) for name, array in o.inputs.items()}
    residual = None if o.residual is None else np.moveaxis(o.residual, 1, -1)
    y = run(last, np.moveaxis(o.x, 1, -1), o.weights, o.bias, **inputs, residual=residual)
    return run(first, o.x, o.weights, o.bias, **o.inputs, residual=o.residual), np.moveaxis(y, -1, 1)


@holds(("grouped", "depthwise"), "grouped,ic=6,oc=9,in=5x7,k=3x2,s=2x1,p=1,g=3,bias,act=silu,residual")
def grouped_is_dense_with_a_block_diagonal_weight(run: Run, spec: ConvSpec) -> Sides:
    o = random_operands(spec, seed=4)
    blocks = np.zeros(dense(spec).weight_shapes[0], np.float32)
    group_in, group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    for g in range(spec.groups):
        rows, columns = slice(g * group_out, (g + 1) * group_out), slice(g * group_in, (g + 1) * group_in)
        blocks[rows, columns] = o.weights[0][rows]
    y = run(dense(spec), o.x, blocks, o.bias, residual=o.residual)
    return run(spec, o.x, o.weights, o.bias, residual=o.residual), y


@holds(("depthwise",), "depthwise,ic=20,oc=20,in=9x7,k=3x3,p=1,d=2,g=20,bias,layout=NHWC")
def depthwise_is_grouped_with_a_group_a_channel(run: Run, spec: ConvSpec) -> Sides:
    o = random_operands(spec, seed=5)
    other = spec.replace(variant="grouped") if spec.groups > 1 else dense(spec)
    operands = (o.x, o.weights, o.bias)
    return run(spec, *operands, residual=o.residual), run(other, *operands, residual=o.residual)


@holds(("transposed",), "transposed,ic=6,oc=10,in=5x6,k=4x3,s=2,p=1,op=1,g=2")
def groups_of_a_transposed_convolution_are_independent(run: Run, spec: ConvSpec) -> Sides:
    spec = bare(spec)
    channels = {"in_channels": spec.in_channels // spec.groups, "out_channels": spec.out_channels // spec.groups}
    one, o = spec.replace(groups=1, **channels), random_operands(spec, seed=4)
    groups = zip(np.split(o.x, spec.groups, axis=1), np.split(o.weights[0], spec.groups))
    return run(spec, o.x, o.weights), np.concatenate([run(one, x, weight) for x, weight in groups], axis=1)


@holds(("conv", "dilated", "grouped", "depthwise"), "conv,ic=6,oc=10,in=8x7,k=4x3,s=2,p=1")
def transposed_is_the_adjoint(run: Run, spec: ConvSpec) -> Sides:
    """<A x, y> = <x, A' y>, with the weight as it is: (oc, ic / groups) is the adjoint's (ic, oc / groups)."""
    spec = bare(spec)
    sizes = zip(spec.in_size, spec.padding, spec.span, spec.stride)
    adjoint = spec.replace(
        variant="transposed",
        in_channels=spec.out_channels,
        out_channels=spec.in_channels,
        in_size=spec.out_size,
        output_padding=tuple((size + sum(pad) - span) % s for size, pad, span, s in sizes),
    )
    assert adjoint.out_shape == spec.in_shape
    o, y = random_operands(spec, seed=2), random_operands(adjoint, seed=3).x
    forward, backward = run(spec, o.x, o.weights), run(adjoint, y, o.weights)
    sides = np.vdot(forward.astype(np.float64), y), np.vdot(o.x.astype(np.float64), backward)
    size = np.linalg.norm(forward) * np.linalg.norm(y) or 1.0
    return sides[0] / size, sides[1] / size


DEFORMABLE = "deformable,ic=6,oc=10,in=9x8,k=3x2,s=2x1,p=1,g=2,og=3,modulated,bias,act=relu"


@holds(("deformable",), DEFORMABLE)
def without_offsets_deformable_is_the_plain_convolution(run: Run, spec: ConvSpec) -> Sides:
    o = random_operands(spec, seed=10)
    plain = undeformed(spec, padding=spec.padding)
    y = run(plain, o.x, o.weights, o.bias, residual=o.residual)
    inputs = offsets_and_ones(spec, np.zeros(2), np.zeros(2))
    return run(spec, o.x, o.weights, o.bias, **inputs, residual=o.residual), y


@holds(("deformable",), DEFORMABLE)
def constant_integer_offsets_shift_and_dilate(run: Run, spec: ConvSpec) -> Sides:
    """An offset of shift + tap * more is the plain convolution, dilated by more, of the shifted input."""
    spec = spec.replace(layout=None)
    o, rng = random_operands(spec, seed=11), np.random.default_rng(spec.macs)
    shift, more = rng.integers(-4, 5, 2), rng.integers(0, 3, 2)
    room = 16
    x = np.pad(o.x, [(0, 0), (0, 0), (room, room), (room, room)])
    for axis, (size, (before, after), k) in enumerate(zip(spec.in_size, spec.padding, spec.kernel)):
        first = room - before + shift[axis]
        x = x.take(range(first, first + size + before + after + more[axis] * (k - 1)), axis=2 + axis)
    dilation = tuple(int(d + m) for d, m in zip(spec.dilation, more))
    plain = undeformed(spec, padding=0, in_size=x.shape[2:], dilation=dilation)
    y = run(plain, x, o.weights, o.bias, residual=o.residual)
    return run(spec, o.x, o.weights, o.bias, **offsets_and_ones(spec, shift, more), residual=o.residual), y


def undeformed(spec: ConvSpec, **changes: Any) -> ConvSpec:
    if spec.groups > 1:
        return spec.replace(variant="grouped", offset_groups=None, modulated=None, **changes)
    dilated = max(changes.get("dilation", spec.dilation)) > 1
    return spec.replace(variant="dilated" if dilated else "conv", offset_groups=None, modulated=None, **changes)


def offsets_and_ones(spec: ConvSpec, shift: Array, more: Array) -> dict[str, Array]:
    """Offsets of shift + tap * more everywhere, and a mask of ones where the spec has one."""
    assert spec.offset_groups is not None
    taps = np.moveaxis(np.indices(spec.kernel), 0, -1)  # (kh, kw, 2)
    offsets = np.tile((shift + taps * more).ravel(), spec.offset_groups)
    shapes = spec.input_shapes
    places = np.broadcast_to(offsets.reshape(-1, 1, 1), (spec.batch, len(offsets), *spec.out_size))
    given = {"offset": np.moveaxis(places, 1, -1) if spec.channels_last else places}
    return given | ({"mask": np.ones(shapes["mask"])} if "mask" in shapes else {})


@holds(("shuffled_grouped",), "shuffled_grouped,ic=6,oc=20,in=5x7,k=3x2,p=1,g=2,bias,act=relu")
def a_shuffle_moves_channel_j_of_group_a_to_j_groups_plus_a(run: Run, spec: ConvSpec) -> Sides:
    spec = bare(spec)
    o = random_operands(spec, seed=0)
    y, moved = run(spec.replace(variant="grouped"), o.x, o.weights), np.empty(spec.out_shape)
    run_length = spec.out_channels // spec.groups
    for group in range(spec.groups):
        for j in range(run_length):
            moved[:, j * spec.groups + group] = y[:, group * run_length + j]
    return run(spec, o.x, o.weights), moved


@holds(("shuffled_grouped",), "shuffled_grouped,ic=6,oc=20,in=5x7,k=1x1,g=2")
def shuffling_with_g_and_then_with_c_over_g_is_the_identity(run: Run, spec: ConvSpec) -> Sides:
    channels, groups = spec.groups * (spec.groups + 1), spec.groups  # with g alone it would be its own inverse
    x = np.arange(2.0 * channels * 3, dtype=np.float32).reshape(2, channels, 3)
    once = shuffled(run, x, groups)
    assert not np.array_equal(once, x)
    return x, shuffled(run, once, channels // groups)


def shuffled(run: Run, x: Array, groups: int) -> Array:
    """The shuffle alone: each group's convolution is the identity."""
    n, channels, *size = x.shape
    spec = ConvSpec("shuffled_grouped", channels, channels, tuple(size), 1, batch=n, groups=groups)
    return run(spec, x, np.tile(np.eye(channels // groups, dtype=np.float32), (groups, 1))[..., np.newaxis])


@holds(COMPOSITE, "depthwise_separable,ic=6,oc=10,in=9x8,k=3x3,s=2,p=1,bias,act=relu,m=2,sbias=1,sact=silu")
def a_composite_is_its_stages_one_after_another(run: Run, spec: ConvSpec) -> Sides:
    o = random_operands(spec, seed=7)
    y, biases = o.x, iter(o.biases)
    for stage, weight in zip(spec.stages, o.weights):
        bias = next(biases) if stage.bias else None
        y = run(stage, y, weight, bias, residual=o.residual if stage.residual else None)
    return run(spec, o.x, o.weights, o.bias, residual=o.residual), y


@holds(("depthwise_separable",), "depthwise_separable,ic=6,oc=10,in=9x8,k=3x3,s=2,p=1,bias,act=relu,m=2")
def depthwise_separable_is_dense_with_the_product(run: Run, spec: ConvSpec) -> Sides:
    def compose(depthwise: Array, pointwise: Array) -> Array:
        taps = depthwise.reshape(spec.in_channels, -1, *spec.kernel)  # (ic, m, *k)
        across = pointwise.reshape(spec.out_channels, *taps.shape[:2])  # (oc, ic, m)
        return np.einsum("oim,im...->oi...", across, taps)

    return composed(run, spec, compose)


@holds(("flattened",), "flattened,ic=6,oc=10,in=9x8,k=3x5,s=2x1,p=1x2,bias,act=relu")
def flattened_is_dense_with_the_product(run: Run, spec: ConvSpec) -> Sides:
    def compose(across: Array, *filters: Array) -> Array:
        weight = across
        for taps in filters:  # each (oc, 1, *k) with one k above 1
            weight = weight * taps
        return weight

    return composed(run, spec, compose)


@holds(("spatially_separable",), "spatially_separable,ic=6,oc=10,in=9x8,k=3x5,s=2x1,p=1x2,bias,act=relu,mid=7")
def spatially_separable_is_dense_with_the_sum_of_products(run: Run, spec: ConvSpec) -> Sides:
    def compose(first: Array, *more: Array) -> Array:
        weight = first
        for later in more:
            weight = np.einsum("om...,mi...->oi...", later, weight)
        return weight

    return composed(run, spec, compose)


@holds(("spatially_separable",), "spatially_separable,ic=1,oc=1,in=9x8,k=3x3,p=1,mid=1")
def an_outer_product_is_spatially_separable(run: Run, spec: ConvSpec) -> Sides:
    """Of one channel: the kernel is the outer product of the stages' kernels, as Sobel's is."""
    one = bare(spec).replace(in_channels=1, out_channels=1, mid_channels=None)
    o = random_operands(one, seed=9)
    kernel = functools.reduce(np.multiply.outer, (weight.ravel().astype(np.float64) for weight in o.weights))
    return run(one, o.x, o.weights), run(dense(one), o.x, kernel[np.newaxis, np.newaxis])


def composed(run: Run, spec: ConvSpec, compose: Callable[..., Array]) -> Sides:
    """The composite with linear stages, and the dense convolution whose weight `compose` makes of its weights."""
    linear = spec.replace(stage_bias=None, stage_activations=None)
    o = random_operands(linear, seed=8)
    weight = compose(*(weight.astype(np.float64) for weight in o.weights))
    y = run(dense(spec), o.x, weight, o.bias, residual=o.residual)
    return run(linear, o.x, o.weights, o.bias, residual=o.residual), y


def named(properties: Sequence[Property]) -> list[Any]:
    return [pytest.param(each, id=each.sides.__name__) for each in properties]


@pytest.mark.parametrize("each", named(PROPERTIES))
def test_holds_of_the_reference(each: Property) -> None:
    @given(specs(variants=each.variants))
    @hypothesis.settings(max_examples=50, deadline=None)
    def on_any_spec(spec: ConvSpec) -> None:
        one, other = each.sides(reference, spec)
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-12)

    on_any_spec()


@pytest.fixture(scope="module")
def kernels() -> Iterator[Run]:
    """Runs a spec's kernel as `compile` makes it, all by one set of workers."""
    with Compiler(targets.resolve("native", threads=2), open_logs(None)) as compiler:

        def run(spec: ConvSpec, *operands: Any, **inputs: Any) -> Array:
            conv = CompiledConv(compiler.package(spec).directory)
            return conv(*(as_float32(each) for each in operands), **{k: as_float32(v) for k, v in inputs.items()})

        yield run


def as_float32(operand: Any) -> Any:
    """As a kernel takes it, which is stricter than the reference."""
    if operand is None:
        return None
    if isinstance(operand, tuple):
        return operand[0] if len(operand) == 1 else operand
    return np.ascontiguousarray(operand, np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("each", named(PROPERTIES))
def test_holds_of_kernels(each: Property, kernels: Run) -> None:
    spec = ConvSpec.parse(each.example)
    one, other = each.sides(kernels, spec)
    # results are about 1, of sums of at most a hundred products
    np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
