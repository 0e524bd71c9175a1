"""How far a kernel's result may lie from the float64 reference: rounding and no more. Defined here and nowhere else."""

from __future__ import annotations

import dataclasses

import numpy as np

from convtune.reference import OperandArrays
from convtune.spec import ConvSpec, count

UNIT_ROUNDOFF = {"float32": 2.0**-24}
EPILOGUE_ROUNDINGS = 16  # bias, residual, and an activation within 1e-6 that steepens by at most 1.2


def allowed_error(spec: ConvSpec, operands: OperandArrays) -> float:
    """The largest max |y - reference| / max |reference| that rounding explains, whatever the order of summation.

    A sum of K products, each step rounded, is off by at most (K + 1) u sum |x| |w| (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 3.1); K is twice the mean number of terms, as some outputs have more of them.
    """
    terms = 2 * spec.macs / count(spec.out_shape) + EPILOGUE_ROUNDINGS
    magnitude = magnitudes(operands).reference(spec.replace(activation=None)).max()
    return float(terms * UNIT_ROUNDOFF[spec.dtype] * magnitude / (np.abs(operands.reference(spec)).max() or 1.0))


def magnitudes(operands: OperandArrays) -> OperandArrays:
    """The operands' absolute values."""
    return dataclasses.replace(
        operands,
        x=np.abs(operands.x),
        weights=tuple(map(np.abs, operands.weights)),
        bias=None if operands.bias is None else np.abs(operands.bias),
        residual=None if operands.residual is None else np.abs(operands.residual),
    )
