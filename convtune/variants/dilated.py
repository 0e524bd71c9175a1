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
            raise SpecError(f"groups={spec.groups} is not dilated; it must be 1, or the variant grouped or depthwise")
        if all(d == 1 for d in spec.dilation):
            raise SpecError(f"dilation={spec.dilation} is not dilated; one must be above 1, or the variant conv")


dilated = Dilated("dilated", "dense, taps `dilation` apart")
