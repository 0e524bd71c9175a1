"""Deformable convolution: each tap samples the input beside its place, by an offset that is an input too."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune.errors import SpecError
from convtune.variants.base import Dims, Expr, Operands, Term
from convtune.variants.conv import Convolution

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

    Array = NDArray[np.float64]

CORNERS = tuple(itertools.product((0, 1), repeat=2))  # (dy, dx) of the input elements around a sampled point


@dataclass(frozen=True)
class Sampling:
    """Where a tap samples the input: four elements that are all inside of it, their weights, or nowhere.

    corners: (y, x) of each of CORNERS. weights: their bilinear weights. outside: whether the point counts as zero.
    """

    corners: tuple[tuple[Expr, Expr], ...]
    weights: tuple[Expr, ...]
    outside: Expr


class Deformable(Convolution):
    """y(n, oc, o) = sum over i, k of m(n, g, k, o) * x(n, i, p) * w(oc, i, k)

    with p = o * stride - before + k * dilation + d(n, g, k, o) and x(n, i, p), between the elements of the input,
    interpolated bilinearly, and zero outside; i runs over the input channels of oc's group, and g is i's offset group,
    one of offset_groups runs of channels. d = (dy, dx) is the input `offset`, whose channels are (offset group, kh, kw,
    2), and m, in version 2 (`modulated`), the input `mask`, of (offset group, kh, kw). Dai et al., arXiv 1703.06211,
    section 2.1; Zhu et al., arXiv 1811.11168, section 3.2; torchvision's deform_conv2d.

    An element outside the input adds nothing, not even 0 times an infinity. A point that all its neighbours are outside
    of is 0, so one with an infinite offset is; otherwise an offset of NaN gives NaN, as in torchvision's CUDA kernel,
    where its CPU kernel is undefined. The fraction is that of the offset alone, which is exact in float32: that of the
    position, a larger number, would not be.
    """

    ranks = (2,)
    extras = frozenset({"offset_groups", "modulated"})
    uncounted = "bilinear sampling: 4 multiply-adds for each tap, input channel and output position"

    def check(self, spec: ConvSpec) -> None:
        assert spec.offset_groups is not None, "the constructor fills it in"
        if spec.in_channels % spec.offset_groups:
            raise SpecError(f"offset_groups={spec.offset_groups} does not divide in_channels={spec.in_channels}")

    def inputs(self, spec: ConvSpec) -> Mapping[str, int]:
        assert spec.offset_groups is not None
        taps = spec.offset_groups * spec.kernel[0] * spec.kernel[1]
        return {"offset": 2 * taps, "mask": taps} if spec.modulated else {"offset": 2 * taps}

    def ratio(self, rank: int) -> str:
        return "1/g"

    def reach(self, spec: ConvSpec, out: Sequence[int]) -> tuple[tuple[int, int], ...]:
        return tuple((0, size - 1) for size in spec.in_size)  # all of the input, and never the padding

    def reference(self, spec: ConvSpec, x: Array, weights: Sequence[Array], **inputs: Array) -> Array:
        import numpy as np

        (weight,), groups, points = weights, spec.groups, spec.out_size[0] * spec.out_size[1]
        y = np.zeros((spec.batch, groups, spec.out_channels // groups, points))
        with np.errstate(invalid="ignore", over="ignore"):  # infinities are allowed, and what becomes of them
            for (kh, kw), sampled in _samples(spec, x, inputs):
                w = weight[:, :, kh, kw].reshape(groups, -1, weight.shape[1])
                y += np.matmul(w, sampled.reshape(spec.batch, groups, weight.shape[1], points))
        return y.reshape(spec.batch, spec.out_channels, *spec.out_size)

    def term(self, spec: ConvSpec, operands: Operands) -> Term:
        group_in = spec.in_channels // spec.groups

        def at(n: Expr, oc: Expr, out: Sequence[Expr], reduction: Sequence[Expr]) -> Expr:
            ic, *taps = reduction
            channel = ic if spec.groups == 1 else self.group(spec, oc) * group_in + ic
            group = self.offset_group(spec, channel)
            sampling = self.sampling(spec, operands, n, group, out, taps)
            sample = interpolated(
                lambda q: operands.x(n, channel, *sampling.corners[q]), sampling.weights, sampling.outside
            )
            if operands.mask is not None:
                sample = operands.mask(n, self.tap_channel(spec, group, taps), *out) * sample
            return sample * operands.weight(oc, ic, *taps)

        return Term((("ic", group_in), *zip(("kh", "kw"), spec.kernel)), at)

    def offset_group(self, spec: ConvSpec, ic: Expr) -> Expr:
        """The offset group of an input channel."""
        assert spec.offset_groups is not None
        return 0 if spec.offset_groups == 1 else ic // (spec.in_channels // spec.offset_groups)

    def tap_channel(self, spec: ConvSpec, group: Expr, taps: Sequence[Expr]) -> Expr:
        """The channel of `mask`, and half the first of `offset`, for a tap of an offset group."""
        return (group * spec.kernel[0] + taps[0]) * spec.kernel[1] + taps[1]

    def sampling(
        self, spec: ConvSpec, operands: Operands, n: Expr, group: Expr, out: Sequence[Expr], taps: Sequence[Expr]
    ) -> Sampling:
        """Where a tap of an offset group samples for an output position."""
        from tvm import tirx

        assert operands.offset is not None
        channel = self.tap_channel(spec, group, taps) * 2
        (ys, of_y, outside_y), (xs, of_x, outside_x) = (
            _neighbours(spec, axis, operands.offset(n, channel + axis, *out), out[axis], taps[axis]) for axis in (0, 1)
        )
        return Sampling(
            corners=tuple((ys[dy], xs[dx]) for dy, dx in CORNERS),
            weights=tuple(of_y[dy] * of_x[dx] for dy, dx in CORNERS),
            outside=tirx.any(outside_y, outside_x),
        )


def interpolated(x: Callable[[int], Expr], weights: Sequence[Expr], outside: Expr) -> Expr:
    """The value at a sampled point, x(q) being the input at its neighbour q."""
    from tvm import tirx

    total = x(0) * weights[0]
    for q in range(1, len(CORNERS)):
        total = total + x(q) * weights[q]
    return tirx.Select(outside, tirx.const(0.0, str(total.ty)), total)


def _neighbours(
    spec: ConvSpec, axis: int, offset: Expr, out: Expr, tap: Expr
) -> tuple[tuple[Expr, Expr], tuple[Expr, Expr], Expr]:
    """In one dimension, the elements before and after the sampled position, their weights, and whether it is outside.

    An element outside is replaced by its neighbour inside, and both then have half of that one's weight: so the sum is
    right whatever x holds, and no read leaves the input, wherever the offset points and where it is NaN.
    """
    from tvm import tirx

    dtype, size = str(offset.ty), spec.in_size[axis]
    base = out * spec.stride[axis] - spec.padding[axis][0] + tap * spec.dilation[axis]
    start = tirx.Cast(dtype, base)  # once: exact up to 2**24

    def at(position: int) -> Expr:  # the offset that leads there
        return tirx.const(float(position), dtype) - start

    half, one = tirx.const(0.5, dtype), tirx.const(1.0, dtype)
    # LLVM's conversion to integers is undefined for what does not fit, which NaN and infinity do not
    valid = tirx.Select(tirx.all(offset > at(-1), offset < at(size)), offset, tirx.const(0.0, dtype))
    first = base + tirx.Cast("int32", tirx.floor(valid))
    places = tuple(tirx.max(tirx.min(first + d, size - 1), 0) for d in (0, 1))
    after = offset - tirx.floor(offset)
    before_only = (one - after) * half
    weights = tuple(
        tirx.Select(
            offset < at(0), after * half, tirx.Select(offset >= at(size - 1), before_only, after if d else one - after)
        )
        for d in (0, 1)
    )
    return places, weights, tirx.any(offset <= at(-1), offset >= at(size))


def _samples(spec: ConvSpec, x: Array, inputs: Mapping[str, Array]) -> Iterator[tuple[Dims, Array]]:
    """Each tap with what it samples, (n, ic, outputs), all in float64."""
    import numpy as np

    assert spec.offset_groups is not None
    groups, per_group = spec.offset_groups, spec.in_channels // spec.offset_groups
    shape = (spec.batch, groups, *spec.kernel)
    offset = inputs["offset"].reshape(*shape, 2, *spec.out_size)
    mask = inputs["mask"].reshape(*shape, -1) if spec.modulated else None
    rows = np.ascontiguousarray(np.moveaxis(x.reshape(spec.batch, groups, per_group, -1), 2, 3))
    for kh, kw in itertools.product(*map(range, spec.kernel)):
        sampled = np.empty((spec.batch, groups, per_group, spec.out_size[0] * spec.out_size[1]))
        for n, g in np.ndindex(spec.batch, groups):
            value = _sample(spec, rows[n, g], offset[n, g, kh, kw], (kh, kw))
            sampled[n, g] = value.T if mask is None else mask[n, g, kh, kw] * value.T
        yield (kh, kw), sampled


def _sample(spec: ConvSpec, rows: Array, offset: Array, tap: Dims) -> Array:
    """What a tap samples of the rows, (positions of the input, channels); offset: (2, oh, ow). (outputs, channels)."""
    import numpy as np

    outside, firsts, fractions = np.zeros(spec.out_size, bool), [], []
    for axis, places in enumerate(np.indices(spec.out_size)):
        base = places * spec.stride[axis] - spec.padding[axis][0] + tap[axis] * spec.dilation[axis]
        outside |= (offset[axis] <= -1 - base) | (offset[axis] >= spec.in_size[axis] - base)
        floor = np.floor(offset[axis])
        fractions.append(offset[axis] - floor)  # NaN where the offset is NaN or infinite
        firsts.append(np.where(outside | np.isnan(floor), 0, base + floor).astype(np.int64))
    total = np.zeros((outside.size, rows.shape[1]))
    for corner in CORNERS:
        places = [first + d for first, d in zip(firsts, corner)]
        weight = np.prod([f if d else 1 - f for f, d in zip(fractions, corner)], axis=0)
        there = np.all([(p >= 0) & (p < size) for p, size in zip(places, spec.in_size)], axis=0)
        index = np.ravel_multi_index(places, spec.in_size, mode="clip")
        total += np.where(there.reshape(-1, 1), rows[index.ravel()], 0.0) * weight.reshape(-1, 1)
    return np.where(outside.reshape(-1, 1), 0.0, total)


deformable = Deformable("deformable", "taps sample the input at offsets, bilinearly; version 2 with a mask")
