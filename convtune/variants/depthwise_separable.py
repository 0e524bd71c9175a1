"""Depthwise separable convolution: spatial filters on each channel, then channels mixed at each position."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.variants.base import TAPS, Composite

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class DepthwiseSeparable(Composite):
    """Depthwise with `channel_multiplier` filters a channel, then pointwise (Howard et al., arXiv 1704.04861, section
    3.1; Chollet, arXiv 1610.02357).

    With multiplier m it takes m / oc + m / k^2 times the multiply-accumulates of the dense convolution it replaces
    (Howard et al., the same section, for m = 1).
    """

    name = "depthwise_separable"
    summary = "depthwise with a channel multiplier, then pointwise, in one pass"
    extras = Composite.extras | {"channel_multiplier"}

    def ratio(self, rank: int) -> str:
        return f"m/oc + m/{TAPS[rank]}"

    def joints(self, rank: int) -> int:
        return 1

    def chain(self, spec: ConvSpec) -> Sequence[Mapping[str, Any]]:
        assert spec.channel_multiplier is not None, "the constructor fills it in"
        window = {"kernel": spec.kernel, "stride": spec.stride, "dilation": spec.dilation, "padding": spec.padding}
        return (
            {"variant": "depthwise", "out_channels": spec.in_channels * spec.channel_multiplier, **window},
            {"variant": "pointwise", "out_channels": spec.out_channels, "kernel": 1},
        )


depthwise_separable = DepthwiseSeparable()
