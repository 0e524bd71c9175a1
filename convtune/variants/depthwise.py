"""Depthwise convolution: one group an input channel, with out_channels / in_channels filters each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.errors import SpecError
from convtune.variants.conv import Convolution

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class Depthwise(Convolution):
    def check(self, spec: ConvSpec) -> None:
        if spec.groups != spec.in_channels:
            raise SpecError(
                f"depthwise takes groups=in_channels={spec.in_channels}, not groups={spec.groups}; use variant grouped"
            )

    def ratio(self, rank: int) -> str:
        return "1/ic"


depthwise = Depthwise("depthwise", "one group per input channel, any channel multiplier")
