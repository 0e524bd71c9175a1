"""Grouped convolution: channels in groups that do not mix (Krizhevsky 2012; Xie et al., arXiv 1611.05431)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.errors import SpecError
from convtune.variants.conv import Convolution

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class Grouped(Convolution):
    def check(self, spec: ConvSpec) -> None:
        if spec.groups == 1:
            raise SpecError("grouped takes groups above 1, not groups=1; use variant conv")

    def ratio(self, rank: int) -> str:
        return "1/g"


grouped = Grouped("grouped", "channels in groups that do not mix")
