"""The activations of a spec's epilogue: what each means in float64, and the TVM expression that computes it.

A plain `tirx.exp`, `tanh` or `erf` becomes one call of the C library per lane inside a vectorised loop (TVM 0.27), so
the expressions here are polynomials, rational functions and bit operations only. Each is within 1e-6 of the float64
value, relatively, over all of float32 (gelu below -4, where it is nearly zero, within 4e-6); results that would be
denormal may be zero, infinities give the limit of the function, and NaN stays NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from convtune.errors import ScheduleError, UnknownNameError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Expr = Any  # a TVM expression of type float32
Let = Callable[[Expr], Expr]  # binds an expression that is used more than once; returns the variable


@dataclass(frozen=True)
class Activation:
    """An elementwise function.

    Args:
        name: as in `ConvSpec.activation`.
        numpy: the definition, float64 to float64, any shape.
        build: the same for one float32 TVM expression; call `expression`, which checks the type.
    """

    name: str
    numpy: Callable[[Array], Array]
    build: Callable[[Let, Expr], Expr]

    def expression(self, x: Expr) -> Expr:
        """The TVM expression of this function at `x`; raises ScheduleError where `x` is not float32."""
        from tvm import tirx

        if str(x.ty) != "float32":
            raise ScheduleError(f"activation {self.name} of a {x.ty} expression; it must be float32")
        bound: list[tuple[Expr, Expr]] = []

        def let(value: Expr) -> Expr:
            bound.append((tirx.Var(f"{self.name}_{len(bound)}", "float32"), value))
            return bound[-1][0]

        # an expression is a tree: with no bindings it grows with the power of its reuses
        body = self.build(let, let(x))
        for variable, value in reversed(bound):
            body = tirx.Let(variable, value, body)
        return body


def get(name: str) -> Activation:
    """The activation of that name; raises UnknownNameError with the near ones."""
    try:
        return _ACTIVATIONS[name]
    except KeyError:
        raise UnknownNameError("activation", name, _ACTIVATIONS) from None


def _constant(value: float) -> Expr:
    from tvm import tirx

    return tirx.const(value, "float32")


def _integer(value: int) -> Expr:
    from tvm import tirx

    return tirx.const(value, "int32")


def _at_least(x: Expr, bound: float) -> Expr:
    """max(x, bound), NaN kept."""
    from tvm import tirx

    # max(a, b) becomes a > b ? a : b, so the second one's NaN is kept. A Select says so openly, but TVM 0.27 takes
    # time exponential in the number of bound, vectorised Selects: 15 ms for two of them, 2.5 s for seven
    return tirx.max(_constant(bound), x)


def _at_most(x: Expr, bound: float) -> Expr:
    """min(x, bound), NaN kept."""
    from tvm import tirx

    return tirx.min(_constant(bound), x)


def _clamp(x: Expr, low: float, high: float) -> Expr:
    return _at_most(_at_least(x, low), high)


def _polynomial(x: Expr, coefficients: Sequence[float]) -> Expr:
    """Horner's scheme; the coefficients from the highest power down to the constant."""
    value = _constant(coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + _constant(coefficient)
    return value


def _exp(let: Let, x: Expr) -> Expr:
    """e^x = 2^n e^f with n = round(x / ln 2), f = x - n ln 2 and a polynomial for e^f.

    Polynomial and the splitting of ln 2 into two floats: Cephes, single/expf.c (Moshier), also in TVM's
    topi::fast_exp. Overflow gives infinity from 88.38 on, which is 0.35 early; what would be denormal may be zero.
    """
    from tvm import tirx

    x = let(_clamp(x, -88.3, 88.5))  # so n is -127 to 128, for which `power` is 0 and infinity
    rounder = _constant(12582912.0)  # 1.5 * 2^23: a sum with it has no fraction bits left, and n in its lowest bits
    rounded = let(x * _constant(math.log2(math.e)) + rounder)
    n = let(rounded - rounder)
    f = let(x - n * _constant(0.693359375) - n * _constant(-2.12194440e-4))
    bits = (tirx.reinterpret("int32", rounded) << _integer(23)) + _integer(0x3F800000)  # n + 127, as an exponent
    power = tirx.reinterpret("float32", bits)
    return (_polynomial(f, _EXP) * (f * f) + (f + _constant(1.0))) * power


_EXP = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1)


def _relu(let: Let, x: Expr) -> Expr:
    return _at_least(x, 0.0)


def _relu_numpy(x: Array) -> Array:
    import numpy as np

    return np.maximum(x, 0.0)


def _relu6(let: Let, x: Expr) -> Expr:
    return _clamp(x, 0.0, 6.0)


def _relu6_numpy(x: Array) -> Array:
    import numpy as np

    return np.clip(x, 0.0, 6.0)


LEAKY_SLOPE = 0.01  # PyTorch's and ONNX's default


def _leaky_relu(let: Let, x: Expr) -> Expr:
    from tvm import tirx

    return tirx.Select(x < _constant(0.0), x * _constant(LEAKY_SLOPE), x)


def _leaky_relu_numpy(x: Array) -> Array:
    import numpy as np

    return np.where(x < 0.0, x * LEAKY_SLOPE, x)


def _hardswish(let: Let, x: Expr) -> Expr:
    """x relu6(x + 3) / 6 (Howard et al., arXiv 1905.02244). Clamped x, since -inf times 0 is no number."""
    x = let(_at_least(x, -3.0))
    return x * (_at_most(x + _constant(3.0), 6.0) * _constant(1 / 6))


def _hardswish_numpy(x: Array) -> Array:
    import numpy as np

    return np.maximum(x, -3.0) * (np.clip(x + 3.0, 0.0, 6.0) / 6.0)


def _sigmoid(let: Let, x: Expr) -> Expr:
    return _constant(1.0) / (_constant(1.0) + _exp(let, _constant(0.0) - x))


def _sigmoid_numpy(x: Array) -> Array:
    from scipy.special import expit

    return expit(x)  # type: ignore[no-any-return]


def _silu(let: Let, x: Expr) -> Expr:
    """x sigmoid(x) (Elfwing et al., arXiv 1702.03118), x clamped where it is zero: -inf over infinity is no number."""
    return _at_least(x, -100.0) / (_constant(1.0) + _exp(let, _constant(0.0) - x))


def _silu_numpy(x: Array) -> Array:
    import numpy as np
    from scipy.special import expit

    return np.maximum(x, -800.0) * expit(x)  # type: ignore[no-any-return]  # expit(-800) is 0 in float64


def _tanh(let: Let, x: Expr) -> Expr:
    """A rational function of degree 13 / 6, x clamped to ±9, where float32 rounds to ±1; it errs to 1.0000002 there.

    Coefficients: Eigen, Eigen/src/Core/MathFunctionsImpl.h, also in TVM's topi::fast_tanh.
    """
    x = let(_clamp(x, -9.0, 9.0))
    square = let(x * x)
    return _clamp(x * _polynomial(square, _TANH_NUMERATOR) / _polynomial(square, _TANH_DENOMINATOR), -1.0, 1.0)


_TANH_NUMERATOR = (
    -2.76076847742355e-16,
    2.00018790482477e-13,
    -8.60467152213735e-11,
    5.12229709037114e-08,
    1.48572235717979e-05,
    6.37261928875436e-04,
    4.89352455891786e-03,
)
_TANH_DENOMINATOR = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def _tanh_numpy(x: Array) -> Array:
    import numpy as np

    return np.tanh(x)


def _gelu(let: Let, x: Expr) -> Expr:
    """gelu(x) = x Phi(x) = max(x, 0) - a Q(a), with a = |x| and Q the upper tail of the normal distribution.

    Nothing cancels in the tails that way, as it does in x (1 + erf(x / sqrt 2)) / 2. Q(a) = e^(-a²/2) t P(t) with
    t = 1 / (1 + a / 4.25): the form of Shepherd and Laframboise (Math. Comp. 36, 1981, 249-253). P is our own fit:
    minimax of the relative error, 1.2e-7, on 0 <= a <= 13.4, beyond which Q is zero in float32.
    """
    from tvm import tirx

    a = let(_at_most(tirx.abs(x), 14.0))
    t = let(_constant(1.0) / (_constant(1.0) + a * _constant(1 / 4.25)))
    tail = _exp(let, a * a * _constant(-0.5)) * (t * _polynomial(t, _NORMAL_TAIL))
    return _at_least(x, 0.0) - a * tail


_NORMAL_TAIL = (
    -0.06342508,
    0.20632016,
    -0.14002648,
    0.17515705,
    0.03777051,
    0.0974591,
    0.09282368,
    0.093921,
)


def _gelu_numpy(x: Array) -> Array:
    """x Phi(x) (Hendrycks and Gimpel, arXiv 1606.08415), with the exact erf, not the tanh approximation."""
    import numpy as np
    from scipy.special import erfc

    return np.maximum(x, -40.0) * (0.5 * erfc(-x / math.sqrt(2.0)))  # type: ignore[no-any-return]  # erfc(28) is 0


_ACTIVATIONS: Mapping[str, Activation] = {
    activation.name: activation
    for activation in (
        Activation("relu", _relu_numpy, _relu),
        Activation("relu6", _relu6_numpy, _relu6),
        Activation("leaky_relu", _leaky_relu_numpy, _leaky_relu),
        Activation("silu", _silu_numpy, _silu),
        Activation("hardswish", _hardswish_numpy, _hardswish),
        Activation("gelu", _gelu_numpy, _gelu),
        Activation("sigmoid", _sigmoid_numpy, _sigmoid),
        Activation("tanh", _tanh_numpy, _tanh),
    )
}
