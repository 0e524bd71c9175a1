"""How large a kernel's error may be: the limits behind accuracy="strict", "standard" and "loose".

The error of a kernel is max |y - reference| / max |reference|, with the reference in float64.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from convtune.errors import UnknownNameError
from convtune.spec import count

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

STANDARD = 2e-5
LOOSE = 1e-3
NAMES = ("strict", "standard", "loose")
_UNIT_ROUNDOFF = 2.0**-24


def limit(spec: ConvSpec, accuracy: str) -> float:
    """The largest error allowed for a kernel of this spec; raises UnknownNameError for another accuracy.

    `strict` is what direct summation in float32 gives: its error grows like the square root of the number of summands
    (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019), times 4 for the spread between orders of summation.
    """
    if accuracy == "strict":
        summands = max(1, spec.macs // count(spec.out_shape))
        return min(STANDARD, max(1e-6, 4 * _UNIT_ROUNDOFF * math.sqrt(summands)))
    if accuracy not in NAMES:
        raise UnknownNameError("accuracy", accuracy, NAMES)
    return STANDARD if accuracy == "standard" else LOOSE
