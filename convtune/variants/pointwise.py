"""Pointwise convolution: a 1 x 1 kernel, so a matrix product over the channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.errors import SpecError
from convtune.variants.conv import Convolution

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class Pointwise(Convolution):
    def check(self, spec: ConvSpec) -> None:
        super().check(spec)
        if any(k != 1 for k in spec.kernel):
            raise SpecError(f"pointwise takes kernel 1, not {'x'.join(map(str, spec.kernel))}; use variant conv")


pointwise = Pointwise("pointwise", "1 x 1 kernel: channels only")
