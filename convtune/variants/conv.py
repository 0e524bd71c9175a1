"""Standard convolution, and the formula that dilated, grouped, depthwise and pointwise specialise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from convtune.errors import SpecError
from convtune.variants.base import Dims, Expr, Operands, Primitive, Term

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

    Array = NDArray[np.float64]

BLOCK_BYTES = 4 << 20  # of float64, computed at once: twice as fast as 64 MiB, since the taps meet in the cache


class Convolution(Primitive):
    """y(n, oc, o) = sum over i, k of x(n, group(oc) * icg + i, o * stride - before + k * dilation) * w(oc, i, k)

    with icg = ic / groups input channels a group and group(oc) = oc // (out_channels / groups): the cross-correlation
    that ONNX calls Conv and PyTorch conv1d, conv2d and conv3d.
    """

    def __init__(self, name: str, summary: str) -> None:
        self.name, self.summary = name, summary

    def check(self, spec: ConvSpec) -> None:
        if spec.groups != 1:
            raise SpecError(f"{self.name} takes groups=1, not groups={spec.groups}; use variant grouped or depthwise")
        if any(d != 1 for d in spec.dilation):
            dilation = "x".join(map(str, spec.dilation))
            raise SpecError(f"{self.name} takes dilation 1, not {dilation}; use variant dilated")

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

        groups, group_in = spec.groups, spec.in_channels // spec.groups
        pads = [(0, 0), (0, 0), *((before, max(after, 0)) for before, after in spec.padding)]
        weight = weights[0].reshape(groups, -1, *weights[0].shape[1:])
        y = np.zeros((spec.batch, groups, spec.out_channels // groups, *spec.out_size))
        at_once = _groups_at_once(spec)
        for first in range(0, groups, at_once):
            block = slice(first, min(first + at_once, groups))
            padded = np.pad(x[:, block.start * group_in : block.stop * group_in], pads)
            _add_taps(spec, padded, weight[block], y[:, block])
        return y.reshape(spec.batch, spec.out_channels, *spec.out_size)

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


def _groups_at_once(spec: ConvSpec) -> int:
    """How many groups have BLOCK_BYTES of padded input and output, at least one."""
    padded = (size + before + max(after, 0) for size, (before, after) in zip(spec.in_size, spec.padding))
    elements = spec.in_channels * math.prod(padded) + spec.out_channels * math.prod(spec.out_size)
    return max(1, BLOCK_BYTES * spec.groups // (8 * spec.batch * elements))


def _add_taps(spec: ConvSpec, padded: Array, weight: Array, y: Array) -> None:
    """Adds to y, of shape (n, g, oc / g, *out_size), the sum of some g groups.

    padded: their part of the padded input, of shape (n, ic, *size). weight: of shape (g, oc / g, ic / g, *kernel).
    """
    import numpy as np

    groups, group_in = weight.shape[0], weight.shape[2]
    for tap in itertools.product(*map(range, spec.kernel)):
        seen: Any = (slice(None), slice(None), *_window(spec, tap))
        of_tap: Any = (..., *tap)
        window, w = padded[seen], weight[of_tap]
        if group_in == 1:  # one product an output: a batched matmul of 1 x 1 matrices is far slower
            y += window.reshape(spec.batch, groups, 1, *spec.out_size) * w.reshape(1, groups, -1, *[1] * spec.rank)
        else:
            y += np.matmul(w, window.reshape(spec.batch, groups, group_in, -1)).reshape(y.shape)


def _window(spec: ConvSpec, tap: Sequence[int]) -> tuple[slice, ...]:
    """What one tap sees of the padded input, for every output."""
    return tuple(
        slice(k * d, k * d + (o - 1) * s + 1, s) for k, d, s, o in zip(tap, spec.dilation, spec.stride, spec.out_size)
    )


conv = Convolution("conv", "standard dense convolution")
