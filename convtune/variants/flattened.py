"""Flattened convolution: channels mixed at each position, then one depthwise one-dimensional filter per dimension."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.variants.base import EXTENTS, TAPS, Composite, along, quotient

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class Flattened(Composite):
    """1 x 1 across channels, then k x 1, 1 x k depthwise (Jin, Dundar and Culurciello, arXiv 1412.5474, section 3).

    With linear stages and no bias before the last this is the dense convolution whose weight is
    w(oc, ic, kh, kw) = w1(oc, ic) * w2(oc, kh) * w3(oc, kw), and likewise in one and three dimensions.
    """

    name = "flattened"
    summary = "across channels, then one depthwise one-dimensional filter per dimension, in one pass"

    def ratio(self, rank: int) -> str:
        """p1 and p2 are the positions left once the first dimension, and the first two, are done."""
        terms = [quotient(["in"], ["out", TAPS[rank]])]
        for axis in range(rank):
            others = [k for i, k in enumerate(EXTENTS[rank]) if i != axis]
            last = axis == rank - 1
            terms.append(quotient([], ["ic", *others]) if last else quotient([f"p{axis + 1}"], ["ic", "out", *others]))
        return " + ".join(terms)

    def joints(self, rank: int) -> int:
        return rank

    def chain(self, spec: ConvSpec) -> Sequence[Mapping[str, Any]]:
        across = {"variant": "pointwise", "out_channels": spec.out_channels, "kernel": 1}
        filters = {"variant": "depthwise", "out_channels": spec.out_channels}
        return (across, *({**filters, **along(spec, axis)} for axis in range(spec.rank)))


flattened = Flattened()
