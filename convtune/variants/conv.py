"""Standard convolution, and the formula that dilated, grouped, depthwise and pointwise specialise."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convtune.errors import SpecError
from convtune.variants.base import Dims, Expr, Operands, Primitive, Term

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

    Array = NDArray[np.float64]


class Convolution(Primitive):
    """y(n, oc, o) = sum over i, k of x(n, group(oc) * icg + i, o * stride - before + k * dilation) * w(oc, i, k)

    with icg = ic / groups input channels a group and group(oc) = oc // (out_channels / groups): the cross-correlation
    that ONNX calls Conv and PyTorch conv1d, conv2d and conv3d.
    """

    def __init__(self, name: str, summary: str) -> None:
        self.name, self.summary = name, summary

    def check(self, spec: ConvSpec) -> None:
        if spec.groups != 1:
            raise SpecError(
                f"groups={spec.groups} is not {self.name}; it must be 1, or the variant grouped or depthwise"
            )
        if any(d != 1 for d in spec.dilation):
            raise SpecError(f"dilation={spec.dilation} is not {self.name}; it must be 1, or the variant dilated")

    def out_size(self, spec: ConvSpec) -> Dims:
        # floor((in + before + after - span) / stride) + 1, as in the ONNX Conv operator
        return tuple(
            (size + sum(pad) - span) // stride + 1
            for size, pad, span, stride in zip(spec.in_size, spec.padding, spec.span, spec.stride)
        )

    def weight_shapes(self, spec: ConvSpec) -> tuple[Dims, ...]:
        return ((spec.out_channels, spec.in_channels // spec.groups, *spec.kernel),)

    def macs(self, spec: ConvSpec) -> int:
        from convtune.spec import count

        return count(spec.out_shape) * (spec.in_channels // spec.groups) * count(spec.kernel)

    def ratio(self, rank: int) -> str:
        return "1"

    def reference(self, spec: ConvSpec, x: Array, weights: Sequence[Array], **_: Array) -> Array:
        import numpy as np

        (weight,), groups, out = weights, spec.groups, spec.out_size
        padded = np.pad(x, [(0, 0), (0, 0), *((before, max(after, 0)) for before, after in spec.padding)])
        y = np.zeros((spec.batch, groups, spec.out_channels // groups, *out))
        for tap in itertools.product(*map(range, spec.kernel)):
            seen: Any = (slice(None), slice(None), *_window(spec, tap))
            window = padded[seen]
            window = window.reshape(spec.batch, groups, -1, *out)
            w = np.moveaxis(weight, (0, 1), (-2, -1))[tap].reshape(groups, -1, weight.shape[1])
            if weight.shape[1] == 1:  # one product an output: a batched matmul of 1 x 1 matrices is far slower
                y += window * w.reshape(1, groups, -1, *(1 for _ in out))
            else:
                y += np.matmul(w, window.reshape(spec.batch, groups, weight.shape[1], -1)).reshape(y.shape)
        return y.reshape(spec.batch, spec.out_channels, *out)

    def term(self, spec: ConvSpec, operands: Operands) -> Term:
        group_in = spec.in_channels // spec.groups

        def at(n: Expr, oc: Expr, out: Sequence[Expr], reduction: Sequence[Expr]) -> Expr:
            ic, *taps = reduction
            position = [
                o * stride - before + k * dilation
                for o, k, stride, dilation, (before, _) in zip(out, taps, spec.stride, spec.dilation, spec.padding)
            ]
            channel = ic if spec.groups == 1 else self.group(spec, oc) * group_in + ic
            return operands.x(n, channel, *position) * operands.weight(oc, ic, *taps)

        names = ("kd", "kh", "kw")[3 - spec.rank :]
        return Term((("ic", group_in), *zip(names, spec.kernel)), at)


def _window(spec: ConvSpec, tap: Sequence[int]) -> tuple[slice, ...]:
    """What one tap sees of the padded input, for every output."""
    return tuple(
        slice(k * d, k * d + (o - 1) * s + 1, s) for k, d, s, o in zip(tap, spec.dilation, spec.stride, spec.out_size)
    )


conv = Convolution("conv", "standard dense convolution")
