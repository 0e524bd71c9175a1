"""What a convolution costs beside the standard one that it replaces, and the formula of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from convtune import variants
from convtune.variants.base import EXTENTS, TAPS

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

_LETTERS = re.compile(r"[a-z]+[0-9²³]?")


@dataclass(frozen=True)
class Comparison:
    """A spec's multiply-accumulates over those of the standard convolution.

    Args:
        standard: the dense convolution that it replaces; itself where it replaces none.
        formula: of the ratio, in the letters of `letters`, such as m/oc + m/k².
        numbers: the formula with the spec's numbers, such as 1/128 + 1/9.
    """

    standard: ConvSpec
    formula: str
    numbers: str
    ratio: float


def compare(spec: ConvSpec) -> Comparison:
    """Compares a spec with the standard convolution. Raises SpecError where that is too large to be a spec."""
    variant = variants.get(spec.variant)
    standard, formula, values = variant.standard(spec), variant.ratio(spec.rank), letters(spec)
    numbers = _LETTERS.sub(lambda letter: str(values[letter[0]]), formula)
    return Comparison(standard, formula, numbers, spec.macs / standard.macs)


def letters(spec: ConvSpec) -> Mapping[str, int]:
    """What the letters of a formula stand for.

    ic, oc, g and m as in the canonical string; mid, or mid1 and mid2: the channels between stages; k in one dimension,
    else kh and kw, kd too: the kernel, and k² or k³ all its taps; in and out: positions of the input and the output;
    p1, p2: positions where the first dimension, or the first two, have the output's size and the others the input's.
    """
    found = {"ic": spec.in_channels, "oc": spec.out_channels, "g": spec.groups, "m": spec.channel_multiplier or 1}
    found |= {"in": math.prod(spec.in_size), "out": math.prod(spec.out_size)}
    found |= {f"p{i}": math.prod((*spec.out_size[:i], *spec.in_size[i:])) for i in range(1, spec.rank)}
    between = spec.mid_channels or ()
    found |= {"mid" if len(between) == 1 else f"mid{i}": mid for i, mid in enumerate(between, start=1)}
    return found | dict(zip(EXTENTS[spec.rank], spec.kernel)) | {TAPS[spec.rank]: math.prod(spec.kernel)}


def intermediate_bytes(spec: ConvSpec) -> int:
    """Bytes of the results between the stages of a composite variant, each of them counted once."""
    from convtune.spec import DTYPES, count

    return sum(count(stage.out_shape) for stage in spec.stages[:-1]) * DTYPES[spec.dtype]
