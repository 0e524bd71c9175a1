"""Grouped convolution, then ShuffleNet's channel shuffle, so that groups mix in the next layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.errors import SpecError
from convtune.variants.conv import Convolution

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convtune.spec import ConvSpec

    Array = NDArray[np.float64]


class ShuffledGrouped(Convolution):
    """y(n, j * g + a, o) = grouped convolution(n, a * (oc / g) + j, o), for g groups a of oc / g channels j each.

    The channels (g, oc / g) are transposed and flattened back (Zhang et al., ShuffleNet, arXiv 1707.01083, section
    3.1). Weights stay in the order of the grouped convolution; bias, residual and activation come after the shuffle.
    """

    interleaved = True

    def check(self, spec: ConvSpec) -> None:
        if spec.groups == 1:
            raise SpecError("groups=1 shuffles nothing; it must be above 1, or the variant conv or dilated")

    def ratio(self, rank: int) -> str:
        return "1/g"

    def reference(self, spec: ConvSpec, x: Array, weights: Sequence[Array], **_: Array) -> Array:
        import numpy as np

        y = super().reference(spec, x, weights)
        grouped = y.reshape(spec.batch, spec.groups, -1, *spec.out_size)
        return np.ascontiguousarray(grouped.swapaxes(1, 2)).reshape(y.shape)

    def filters(self, spec: ConvSpec) -> tuple[Mapping[str, Any], ...]:
        ((oc, *rest),) = spec.weight_shapes
        return (
            {"op": "reshape", "shape": [spec.groups, oc // spec.groups, *rest]},
            {"op": "transpose", "axes": [1, 0, *range(2, 2 + len(rest))]},
            {"op": "reshape", "shape": [oc, *rest]},
        )


shuffled_grouped = ShuffledGrouped("shuffled_grouped", "grouped, then the channel shuffle as an index of the store")
