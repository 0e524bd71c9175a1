"""Hypothesis strategies for specs, valid by construction: every draw is a spec, none is filtered away."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

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
    """A spec of a plain variant, odd in every way a spec may be.

    Args:
        largest_channels: of a group, and most groups.
        largest_size: most output elements a dimension; the input is what they need and a little more.
    """
    variant = draw(st.sampled_from(variants))
    rank = draw(st.sampled_from(ranks))
    channels = draw_channels(draw, variant, largest_channels)
    dimensions = [draw_dimension(draw, variant, largest_size) for _ in range(rank)]
    if variant == "dilated" and all(d["dilation"] == 1 for d in dimensions):
        dimensions[draw(st.integers(0, rank - 1))] |= draw_dimension(draw, variant, largest_size, least_dilation=2)
    return ConvSpec(
        variant,
        **channels,
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
    groups = draw(st.integers(2, max(2, largest))) if variant == "grouped" else 1
    return {"in_channels": groups * draw(few), "out_channels": groups * draw(few), "groups": groups}


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
