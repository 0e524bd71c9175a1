"""Dilated convolution: the taps of the kernel lie `dilation` apart (Yu and Koltun, arXiv 1511.07122)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.errors import SpecError
from convtune.variants.conv import Convolution

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class Dilated(Convolution):
    def check(self, spec: ConvSpec) -> None:
        if spec.groups != 1:
            raise SpecError(f"dilated takes groups=1, not groups={spec.groups}; use variant grouped or depthwise")
        if all(d == 1 for d in spec.dilation):
            raise SpecError("dilated takes a dilation above 1 in some dimension, not 1 in all; use variant conv")


dilated = Dilated("dilated", "dense, taps `dilation` apart")
