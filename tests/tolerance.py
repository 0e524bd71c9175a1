"""How far a kernel's result may lie from the float64 reference: rounding and no more. Defined here and nowhere else."""

from __future__ import annotations

import numpy as np

from convtune.reference import OperandArrays, reference
from convtune.spec import ConvSpec, count

UNIT_ROUNDOFF = 2.0**-24  # of float32, which all sums are
OUTPUT_ROUNDING = {"float32": 0.0, "float16": 2.0**-11}
EPILOGUE_ROUNDINGS = 16  # bias, residual, and an activation within 1e-6 that steepens by at most 1.2


def allowed_error(spec: ConvSpec, operands: OperandArrays) -> float:
    """The largest max |y - reference| / max |reference| that rounding explains, whatever the order of summation.

    A sum of K products, each step rounded, is off by at most (K + 1) u sum |x| |w| (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 3.1); K is twice the mean number of terms, as some outputs have more of them.
    The errors of a composite's stages add up, each with what the stages after it make of it.
    """
    terms = sum(2 * stage.macs / count(stage.out_shape) + EPILOGUE_ROUNDINGS for stage in spec.stages)
    magnitude = largest_magnitude(spec, operands)
    of_sums = terms * UNIT_ROUNDOFF * magnitude / (np.abs(operands.reference(spec)).max() or 1.0)
    return float(of_sums * (1 + OUTPUT_ROUNDING[spec.dtype]) + OUTPUT_ROUNDING[spec.dtype])


def largest_magnitude(spec: ConvSpec, operands: OperandArrays) -> float:
    """The largest sum of absolute values behind an output.

    An activation between stages adds at most 1 to its argument's absolute value. A deformable's sample is a mean of x.
    """
    biases = iter(operands.biases)
    value = np.abs(operands.x).astype(np.float64)
    for stage, weight in zip(spec.stages, operands.weights):
        between = stage is not spec.stages[-1] and stage.activation is not None
        bias = np.abs(next(biases)) if stage.bias else None
        residual = np.abs(operands.residual) if stage.residual and operands.residual is not None else None
        linear = stage.replace(activation=None)
        value = reference(linear, value, np.abs(weight), bias, **operands.inputs, residual=residual) + float(between)
    return float(value.max())
