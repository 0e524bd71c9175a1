"""What the GPU spaces for deformable convolution share: the stages that say where each tap samples, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convtune import variants
from convtune.expression import Geometry, operands
from convtune.variants.deformable import CORNERS, Deformable, Sampling

if TYPE_CHECKING:
    from convtune.expression import Arguments

Entry = Callable[..., Sequence[Any]]  # entry(n, offset group, output position, taps): one value per neighbour q


def sampling_tables(arguments: Arguments, table: Callable[[str, int, Entry], Any]) -> list[Any]:
    """The stages index, weights, outside and, with a mask, scale, each made by table(name, entries, entry)."""
    from tvm import tirx

    spec, width = arguments.spec, arguments.spec.in_size[1]
    variant = variants.primitive(spec)
    assert isinstance(variant, Deformable)
    given = operands(Geometry.of(spec), arguments.read_x, None, arguments)

    def sampling(*at: Any) -> Sampling:
        return variant.sampling(spec, given, *at)

    found = [
        table("index", len(CORNERS), lambda *at: [y * width + x for y, x in sampling(*at).corners]),
        table("weights", len(CORNERS), lambda *at: sampling(*at).weights),
        table("outside", 1, lambda *at: [tirx.Cast("int32", sampling(*at).outside)]),
    ]
    mask = given.mask
    if mask is not None:
        found.append(table("scale", 1, lambda n, g, out, taps: [mask(n, variant.tap_channel(spec, g, taps), *out)]))
    return found


def entry_at(values: Sequence[Any], q: Any) -> Any:
    """The value of number q."""
    from tvm import tirx

    *others, value = values
    for i, other in enumerate(others):
        value = tirx.Select(q == i, other, value)
    return value
