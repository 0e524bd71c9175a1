"""Transposed convolution: the adjoint of the strided one, which makes outputs larger than inputs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from convtune.errors import SpecError
from convtune.variants.base import Dims, Expr, Operands, Primitive, Term, dense

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

    Array = NDArray[np.float64]


class Transposed(Primitive):
    """y(n, oc, q * stride - before + k * dilation) += x(n, i, q) * w(i, oc within its group, k), over i, q and k

    for the in_channels / groups input channels i of oc's group: what PyTorch calls conv_transpose1d to 3d and ONNX
    ConvTranspose (Dumoulin and Visin, arXiv 1603.07285, chapter 4). Read from the output, at o: the sum over the taps k
    for which stride divides o + before - k * dilation, of x at the quotient.
    """

    name = "transposed"
    summary = "adjoint of the strided convolution, by sub-pixel phases; with output_padding"
    extras = frozenset({"output_padding"})

    def check(self, spec: ConvSpec) -> None:
        assert spec.output_padding is not None, "the constructor fills it in"
        for axis, extra in enumerate(spec.output_padding):
            stride, dilation, span = spec.stride[axis], spec.dilation[axis], spec.span[axis]
            if extra >= max(stride, dilation):
                raise SpecError(
                    f"output_padding={extra} in dimension {axis} is too large; it must be below "
                    f"{max(stride, dilation)}, the larger of stride {stride} and dilation {dilation}"
                )
            if self.out_size(spec)[axis] < 1:
                before, after = spec.padding[axis]
                whole = (spec.in_size[axis] - 1) * stride + span + extra
                raise SpecError(
                    f"output dimension {axis} would be {whole - before - after}: the padding {before} + {after} takes "
                    f"away all of the {whole} outputs; it may be at most {whole - 1}"
                )

    def out_size(self, spec: ConvSpec) -> Dims:
        assert spec.output_padding is not None, "the constructor fills it in"
        sizes = zip(spec.in_size, spec.stride, spec.span, spec.padding, spec.output_padding)
        return tuple((size - 1) * s + span - sum(pad) + extra for size, s, span, pad, extra in sizes)

    def weight_shapes(self, spec: ConvSpec) -> tuple[Dims, ...]:
        return ((spec.in_channels, spec.out_channels // spec.groups, *spec.kernel),)

    def macs(self, spec: ConvSpec) -> int:
        from convtune.spec import count

        return count(spec.in_shape) * (spec.out_channels // spec.groups) * count(spec.kernel)

    def ratio(self, rank: int) -> str:
        return "in/(g·out)"

    def standard(self, spec: ConvSpec) -> ConvSpec:
        """The dense convolution over x with stride - 1 zeros put between its elements (Dumoulin and Visin, 4.5).

        Where the padding takes away more than the kernel's span - 1 first outputs, this one lacks as many last ones
        instead: the cost is the same.
        """
        sizes = [(size - 1) * s + 1 for size, s in zip(spec.in_size, spec.stride)]
        padding = []
        for size, out, span, (before, _) in zip(sizes, spec.out_size, spec.span, spec.padding):
            zeros = max(span - 1 - before, 0)
            padding.append((zeros, out + span - 1 - size - zeros))
        return dense(spec, sizes, [1] * spec.rank, padding)

    def jump(self, spec: ConvSpec) -> tuple[Fraction, ...]:
        return tuple(Fraction(1, s) for s in spec.stride)

    def reads(self, spec: ConvSpec, axis: int, out: int) -> range:
        stride, dilation = spec.stride[axis], spec.dilation[axis]
        last, common = out + spec.padding[axis][0], math.gcd(stride, dilation)
        if last % common:
            return range(0)
        # the taps k for which stride divides last - k * dilation: one in so many
        every, step = stride // common, dilation // common
        taps = range(last // common * pow(step, -1, every) % every, spec.kernel[axis], every)
        first = (last - taps.start * dilation) // stride
        return range(first, first - len(taps) * step, -step)

    def same(self, size: int, stride: int, span: int) -> tuple[int, int]:
        total = span - stride  # the output is size * stride, before output_padding
        return max(0, total // 2), total - max(0, total // 2)

    def reach(self, spec: ConvSpec, out: Sequence[int]) -> tuple[tuple[int, int], ...]:
        sizes = zip(out, spec.stride, spec.span, spec.padding)
        return tuple(((before - span + 1) // s, (o - 1 + before) // s) for o, s, span, (before, _) in sizes)

    def fan_in(self, spec: ConvSpec) -> tuple[int, ...]:
        # as many as meet at one output; where stride and dilation have a common divisor, others have no tap at all
        taps = (-(-k // (s // math.gcd(s, d))) for k, s, d in zip(spec.kernel, spec.stride, spec.dilation))
        return (spec.in_channels // spec.groups * math.prod(taps),)

    def filters(self, spec: ConvSpec) -> tuple[Mapping[str, Any], ...]:
        group_in, group_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        return (
            {"op": "reshape", "shape": [spec.groups, group_in, group_out, *spec.kernel]},
            {"op": "transpose", "axes": [0, 2, 1, *range(3, 3 + spec.rank)]},
            {"op": "reshape", "shape": [spec.out_channels, group_in, *spec.kernel]},
        )

    def reference(self, spec: ConvSpec, x: Array, weights: Sequence[Array], **_: Array) -> Array:
        import numpy as np

        (weight,), groups = weights, spec.groups
        xs = x.reshape(spec.batch, groups, spec.in_channels // groups, -1)
        # all that the taps reach; the padding takes of it, and a negative one adds to it
        whole = [(size - 1) * s + span for size, s, span in zip(spec.in_size, spec.stride, spec.span)]
        ends = [max(size, before + out) for size, out, (before, _) in zip(whole, spec.out_size, spec.padding)]
        y = np.zeros((spec.batch, spec.out_channels, *ends))
        for tap in itertools.product(*map(range, spec.kernel)):
            of_tap: Any = (slice(None), slice(None), *tap)
            w = weight[of_tap].reshape(groups, -1, weight.shape[1])
            added = np.matmul(w.swapaxes(1, 2), xs).reshape(spec.batch, spec.out_channels, *spec.in_size)
            places = zip(tap, spec.dilation, spec.stride, spec.in_size)
            seen: Any = (..., *(slice(k * d, k * d + (size - 1) * s + 1, s) for k, d, s, size in places))
            y[seen] += added
        kept: Any = (..., *(slice(p[0], p[0] + out) for p, out in zip(spec.padding, spec.out_size)))
        return np.ascontiguousarray(y[kept])

    def term(self, spec: ConvSpec, operands: Operands) -> Term:
        from tvm import te, tirx

        group_in = spec.in_channels // spec.groups

        def at(n: Expr, oc: Expr, out: Sequence[Expr], reduction: Sequence[Expr]) -> Expr:
            ic, *taps = reduction
            distances = [o + before - k * d for o, k, d, (before, _) in zip(out, taps, spec.dilation, spec.padding)]
            channel = ic if spec.groups == 1 else self.group(spec, oc) * group_in + ic
            position = [distance // s for distance, s in zip(distances, spec.stride)]
            product = operands.x(n, channel, *position) * operands.weight(oc, ic, *taps)
            meets = [distance % s == 0 for distance, s in zip(distances, spec.stride) if s > 1]
            return te.if_then_else(tirx.all(*meets), product, tirx.const(0.0, str(product.ty))) if meets else product

        names = ("kd", "kh", "kw")[3 - spec.rank :]
        return Term((("ic", group_in), *zip(names, spec.kernel)), at)


transposed = Transposed()
