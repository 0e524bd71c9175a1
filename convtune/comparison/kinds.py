"""The kinds of layers that geometric means are taken over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convtune.comparison.verdict import LOSS, NO_DIFFERENCE, WIN, geometric_mean
from convtune.variants.base import DENSE

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

KINDS: Mapping[str, str] = {
    "dense_3x3": "dense and dilated 3x3, stride 1",
    "other_dense": "other dense, pointwise",
    "depthwise": "depthwise, 1-D to 3-D",
    "grouped": "grouped, with a shuffle or without",
    "transposed": "transposed, 1-D to 3-D",
    "deformable": "deformable",
    "conv_3d": "dense 3-D",
    "conv_1d": "dense 1-D",
    "composite": "composites",
}
"""Each with what a table calls it."""
ALL = "all"


def kind_of(spec: ConvSpec) -> str:
    """One of KINDS."""
    if len(spec.stages) > 1:
        return "composite"
    if spec.variant in ("grouped", "shuffled_grouped"):
        return "grouped"
    if spec.variant not in DENSE:
        return spec.variant if spec.variant in KINDS else "composite"
    if spec.rank != 2:
        return f"conv_{spec.rank}d"
    plain = spec.kernel == (3, 3) and spec.stride == (1, 1)
    return "dense_3x3" if plain else "other_dense"


def summary(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the file has of all layers together: counts and geometric means by kind, and against each peer."""
    kinds = [_of_kind(kind, [layer for layer in layers if layer["kind"] == kind]) for kind in KINDS]
    names = list(dict.fromkeys(name for layer in layers for name in layer["peers"]))
    return {
        "kinds": [*(kind for kind in kinds if kind["layers"]), _of_kind(ALL, layers)],
        "peers": {name: geometric_mean(_ratios_to(name, layers)) for name in names},
    }


def _of_kind(kind: str, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    compared = [layer for layer in layers if layer["verdict"]]
    counts = {verdict: sum(layer["verdict"] == verdict for layer in compared) for verdict in (WIN, LOSS, NO_DIFFERENCE)}
    converted = [layer["ratio_converted"] for layer in compared if layer["ratio_converted"]]
    return {
        "kind": kind,
        "layers": len(layers),
        "compared": len(compared),
        **counts,
        "geomean": geometric_mean(layer["ratio"]["median"] for layer in compared),
        "geomean_converted": geometric_mean(converted),
    }


def _ratios_to(name: str, layers: Sequence[Mapping[str, Any]]) -> list[float]:
    """A peer's times over ours, of the layers that both have."""
    found = [(layer["peers"].get(name), layer["ours"]) for layer in layers]
    return [peer["us"] / ours["us"] for peer, ours in found if peer and ours and peer["us"]]
