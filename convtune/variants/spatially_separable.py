"""Spatially separable convolution: one dense one-dimensional kernel for each dimension, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.variants.base import EXTENTS, Composite, along, quotient

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class SpatiallySeparable(Composite):
    """k x 1, then 1 x k, each mixing channels, with `mid_channels` between them (Szegedy et al., Inception v3, arXiv
    1512.00567, section 3.2; Romera et al., ERFNet, T-ITS 2018; Jaderberg et al., arXiv 1405.3866, scheme 2).

    A stage has the stride, padding and dilation of its dimension. With linear stages this is the dense convolution with
    the weight w(oc, ic, kh, kw) = sum over m of w1(m, ic, kh) * w2(oc, m, kw), and likewise in three dimensions.
    """

    name = "spatially_separable"
    summary = "one dense one-dimensional kernel per dimension, with mid_channels between, in one pass"
    extras = Composite.extras | {"mid_channels"}

    def ratio(self, rank: int) -> str:
        """p1 and p2 are the positions left once the first dimension, and the first two, are done."""
        between = [] if rank == 1 else ["mid"] if rank == 2 else ["mid1", "mid2"]
        terms = []
        for axis in range(rank):
            others = [k for i, k in enumerate(EXTENTS[rank]) if i != axis]
            first, last = axis == 0, axis == rank - 1
            over = [*([] if last else [f"p{axis + 1}"]), *between[max(axis - 1, 0) : axis + 1]]
            under = [*([] if last else ["out"]), *([] if first else ["ic"]), *([] if last else ["oc"]), *others]
            terms.append(quotient(over, under))
        return " + ".join(terms)

    def joints(self, rank: int) -> int:
        return rank - 1

    def chain(self, spec: ConvSpec) -> Sequence[Mapping[str, Any]]:
        assert spec.mid_channels is not None, "the constructor fills it in"
        stages = []
        for axis, channels in enumerate((*spec.mid_channels, spec.out_channels)):
            window = along(spec, axis)
            variant = "conv" if spec.dilation[axis] == 1 else "dilated"
            stages.append({"variant": variant, "out_channels": channels, **window})
        return stages


spatially_separable = SpatiallySeparable()
