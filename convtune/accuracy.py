"""How large a kernel's error may be: the limits behind accuracy="strict", "standard" and "loose".

The error of a kernel is max |y - reference| / max |reference|, with the reference in float64, from the same operands.

Of float16, sums and all between them and the output are float32, so what is left is the output's own rounding, at most
2^-11 of each element. `strict` allows that besides the sums' errors. `standard` allows as much again, for what a kernel
rounds to float16 on its way because Tensor Cores take nothing wider, such as the samples of a deformable convolution.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

from convtune import activations, variants
from convtune.errors import UnknownNameError
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

STANDARD = {"float32": 2e-5, "float16": 2.0**-10}
LOOSE = {"float32": 1e-3, "float16": 1e-2}
NAMES = ("strict", "standard", "loose")
_UNIT_ROUNDOFF = 2.0**-24
_OUTPUT_ROUNDING = {"float32": 0.0, "float16": 2.0**-11}  # of float32 it is one of the sums' roundings


def limit(spec: ConvSpec, accuracy: str) -> float:
    """The largest error allowed for a kernel of this spec; raises UnknownNameError for another accuracy.

    `strict` is what direct summation in float32 gives: its error grows like the square root of the number of summands
    (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019), times 4 for the spread between orders of summation. Counted are
    the summands of the mean output, of all stages of a composite, or of the output with the most where that is more.
    """
    if accuracy == "strict":
        summands = max(1, spec.macs // count(spec.out_shape), *variants.get(spec.variant).fan_in(spec))
        of_sums = min(STANDARD["float32"], max(1e-6, 4 * _UNIT_ROUNDOFF * math.sqrt(summands)))
        return of_sums + _OUTPUT_ROUNDING[spec.dtype]
    if accuracy not in NAMES:
        raise UnknownNameError("accuracy", accuracy, NAMES)
    return (STANDARD if accuracy == "standard" else LOOSE)[spec.dtype]


def magnification(spec: ConvSpec) -> float:
    """How many times as large an error of sums is of the largest output as it is of the largest sum, to expect.

    A bounded activation, such as tanh, leaves errors as they are where its slope is 1, but makes large outputs small.
    Sums are normally distributed, with the variances that `reference.random_operands` gives; the largest of n of them
    is about sqrt(2 ln 2n) standard deviations.
    """
    if spec.activation is None:
        return 1.0
    variance = 1 + bool(spec.bias) + bool(spec.residual)
    return _magnified(spec.activation, math.sqrt(2 * variance * math.log(2 * count(spec.out_shape))))


@functools.cache
def _magnified(activation: str, largest: float) -> float:
    import numpy as np

    sums = np.linspace(-largest, largest, 257)
    outputs = activations.get(activation).numpy(sums)
    slope = np.abs(np.diff(outputs) / np.diff(sums)).max()
    return float(slope * largest / np.abs(outputs).max())
