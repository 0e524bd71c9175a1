"""Hypothesis strategies for specs, valid by construction: every draw is a spec, none is filtered away."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from convtune import variants as known_variants
from convtune.spec import ACTIVATIONS, LAYOUTS, ConvSpec

PLAIN = ("conv", "pointwise", "dilated", "grouped", "depthwise")


@st.composite
def specs(
    draw: st.DrawFn,
    variants: tuple[str, ...] = PLAIN,
    ranks: tuple[int, ...] = (1, 2, 3),
    largest_channels: int = 6,
    largest_size: int = 5,
) -> ConvSpec:
    """A spec of one of the variants, in one of the ranks it takes, odd in every way a spec may be.

    Args:
        largest_channels: of a group, and most groups.
        largest_size: most output elements a dimension; the input is what they need and a little more. Of `transposed`
            it is the input that has so many.
    """
    variant = draw(st.sampled_from(variants))
    rank = draw(st.sampled_from([rank for rank in ranks if rank in known_variants.get(variant).ranks]))
    channels = draw_channels(draw, variant, largest_channels)
    one_dimension = draw_transposed_dimension if variant == "transposed" else draw_dimension
    dimensions = [one_dimension(draw, variant, largest_size) for _ in range(rank)]
    if variant == "dilated" and all(d["dilation"] == 1 for d in dimensions):
        dimensions[draw(st.integers(0, rank - 1))] |= draw_dimension(draw, variant, largest_size, least_dilation=2)
    return ConvSpec(
        variant,
        **channels,
        **draw_extras(draw, variant, rank, channels["in_channels"]),
        **{field: tuple(d[field] for d in dimensions) for field in dimensions[0]},
        batch=draw(st.integers(1, 3)),
        layout=draw(st.sampled_from(LAYOUTS[rank])),
        bias=draw(st.booleans()),
        activation=draw(st.sampled_from((None, *ACTIVATIONS))),
        residual=draw(st.booleans()),
    )


def draw_channels(draw: st.DrawFn, variant: str, largest: int) -> dict[str, int]:
    """in_channels, out_channels and groups that the variant allows."""
    few = st.integers(1, largest)
    if variant == "depthwise":
        groups = draw(few)
        return {"in_channels": groups, "out_channels": groups * draw(few), "groups": groups}
    least = 2 if variant in ("grouped", "shuffled_grouped") else 1
    most = max(2, largest) if least == 2 or variant in ("transposed", "deformable") else 1
    groups = draw(st.integers(least, most))
    return {"in_channels": groups * draw(few), "out_channels": groups * draw(few), "groups": groups}


def draw_extras(draw: st.DrawFn, variant: str, rank: int, in_channels: int) -> dict[str, Any]:
    """The fields that only some variants have, but for output_padding, which belongs to a dimension."""
    joints = known_variants.get(variant).joints(rank)

    def at_joints(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
        return st.lists(values, min_size=joints, max_size=joints).map(tuple)

    strategies = {
        "offset_groups": st.sampled_from([n for n in range(1, in_channels + 1) if in_channels % n == 0]),
        "modulated": st.booleans(),
        "channel_multiplier": st.integers(1, 3),
        "mid_channels": at_joints(st.integers(1, 4)),
        "stage_bias": at_joints(st.booleans()),
        "stage_activations": at_joints(st.sampled_from((None, *ACTIVATIONS))),
    }
    extras = known_variants.get(variant).extras - {"output_padding"}
    return {field: draw(strategies[field]) for field in sorted(extras)}


def draw_dimension(draw: st.DrawFn, variant: str, largest_size: int, least_dilation: int = 1) -> dict[str, Any]:
    """One dimension's in_size, kernel, stride, padding and dilation."""
    kernel = 1 if variant == "pointwise" else draw(st.integers(1, 4))
    dilated = variant not in ("conv", "pointwise")
    dilation = draw(st.integers(least_dilation, 3)) if dilated else 1
    stride = draw(st.integers(1, 5))
    before, after = draw(st.integers(0, 6)), draw(st.integers(-3, 6))
    span, out = dilation * (kernel - 1) + 1, draw(st.integers(1, largest_size))
    padded = (out - 1) * stride + span + draw(st.integers(0, stride - 1))
    in_size = max(1, padded - before - after)
    return {
        "in_size": in_size,
        "kernel": kernel,
        "stride": stride,
        "padding": (before, after),
        "dilation": dilation,
    }


def draw_transposed_dimension(draw: st.DrawFn, _variant: str, largest_size: int) -> dict[str, Any]:
    """One dimension's in_size, kernel, stride, padding, output_padding and dilation of a transposed convolution."""
    kernel, dilation, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    in_size = draw(st.integers(1, largest_size))
    output_padding = draw(st.integers(0, max(stride, dilation) - 1))
    unpadded = (in_size - 1) * stride + dilation * (kernel - 1) + 1 + output_padding
    before = draw(st.integers(0, min(6, unpadded - 1)))
    return {
        "in_size": in_size,
        "kernel": kernel,
        "stride": stride,
        "padding": (before, draw(st.integers(-3, min(6, unpadded - 1 - before)))),
        "output_padding": output_padding,
        "dilation": dilation,
    }
