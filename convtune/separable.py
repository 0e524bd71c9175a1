"""Factors dense kernels into one 1-D kernel per dimension, as the stages of `spatially_separable` have them.

The factors are a tensor train (Oseledets, SIAM J. Sci. Comput. 33(5), 2011) of the weight with its axes in the order
ic, k_0, ..., k_last, oc: in 2-D the truncated SVD of scheme 2 in Jaderberg et al., arXiv 1405.3866.

    W(oc, ic, kh, kw) = sum over m of F_1(oc, m, kw) * F_0(m, ic, kh)
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from convtune.errors import SpecError
from convtune.runtime.arrays import to_numpy

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Ranks = tuple[int, ...]

_LARGEST_WHOLE = 256
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_EQUAL = 8 * _UNIT_ROUNDOFF  # relative difference that rounding the weight explains


@dataclass(frozen=True, eq=False)
class Separated:
    """The 1-D kernels whose product is a dense kernel, or near it.

    Attributes:
        factors: float32, one per dimension of the kernel. Of a convolution's weight they are the weights of
            `spatially_separable`: (r_0, ic, kh, 1), (oc, r_0, 1, kw), with r_0 the rank; in 3-D
            (r_0, ic, kd, 1, 1), (r_1, r_0, 1, kh, 1), (oc, r_1, 1, 1, kw). Of a bare kernel they are (kh,), (kw,)
            where the rank is 1, otherwise (r_0, kh), (r_0, kw); in 3-D (r_0, kd), (r_1, r_0, kh), (r_1, kw).
        error: ‖W - W'‖ / ‖W‖ in the Frobenius norm, the root of the sum of squares, with W' the factors' product.
    """

    factors: tuple[Float32, ...]
    error: float


def separate(weight: ArrayLike, rank: int | Sequence[int] = 1) -> Separated:
    """The kernel as a sum of `rank` products of 1-D kernels, near the smallest error possible; in 2-D the smallest.

    Where the rank is 1, each factor but the last has 1 as its entry of largest magnitude, or is the smallest multiple
    of that in whole numbers up to 256 where that is as exact: Sobel's kernel is [1, 2, 1] times [-1, 0, 1]. At
    higher ranks the factors have equal norms.

    Args:
        weight: a kernel (kh, kw) or (kd, kh, kw), or a convolution's weight in PyTorch's layout, (oc, ic, kh, kw) or
            (oc, ic, kd, kh, kw).
        rank: channels between one factor and the next; in 3-D one number for both places, or two.

    Raises:
        SpecError: the weight has other dimensions or values that float32 cannot hold, or the rank is out of range.
    """
    dense = _dense(weight)
    full = dense if dense.ndim > 3 else dense[np.newaxis, np.newaxis]
    kernel = full.shape[2:]
    tensor = _tensor(full)
    ranks = _ranks(rank, tensor.shape)
    cores = _tensor_train(tensor, ranks)
    rounded = _normalised(tensor, cores) if set(ranks) == {1} else [c.astype(np.float32) for c in _balanced(cores)]
    channels = (full.shape[1], *ranks, full.shape[0])
    factors = [
        np.ascontiguousarray(core.reshape(channels[i], kernel[i], channels[i + 1]).transpose(2, 0, 1))
        for i, core in enumerate(rounded)
    ]
    return Separated(_shaped(factors, ranks, bare=dense.ndim < 4), _error(tensor, rounded))


def factorable(spec: ConvSpec) -> bool:
    """Whether `separable` has factors to look for: one dense kernel, above 1 in two dimensions or more."""
    return spec.variant in ("conv", "dilated") and sum(k > 1 for k in spec.kernel) > 1


def separable(spec: ConvSpec, weight: Float32, tolerance: float) -> tuple[ConvSpec, Separated] | None:
    """The `spatially_separable` spec with the fewest multiply-accumulates whose factors' error is within tolerance.

    Both give what the dense spec does: zeros around the input stay zeros where no stage but the last adds a bias, so
    that each dimension's stride, padding and dilation can be applied by that dimension's stage.

    Returns:
        None where there is none with fewer multiply-accumulates than the dense spec has, or it is not factorable.

    Raises:
        SpecError: the weight has values that are not finite.
    """
    if not factorable(spec):
        return None
    stages = spec.replace(variant="spatially_separable", mid_channels=1).stages

    def macs(ranks: Ranks) -> int:
        return sum(stage.macs * before * after for stage, before, after in zip(stages, (1, *ranks), (*ranks, 1)))

    tensor = _tensor(_dense(weight))
    tails = _tails(tensor)
    for bound in (tolerance + _UNIT_ROUNDOFF, tolerance - _UNIT_ROUNDOFF):  # rounding may turn out for it or against it
        cheaper = [ranks for ranks in _sufficient(tails, tensor.shape, bound) if macs(ranks) < spec.macs]
        if cheaper:
            ranks = min(cheaper, key=macs)
            separated = separate(weight, ranks)
            if separated.error <= tolerance:
                return spec.replace(variant="spatially_separable", mid_channels=ranks), separated
    return None


def _tails(tensor: Float64) -> list[Float64]:
    """For each place between factors, by rank - 1: the squared error of cutting off there alone, of the tensor's."""
    total = np.sum(tensor**2)
    tails = []
    for place in range(1, tensor.ndim):
        matrix = tensor.reshape(prod(tensor.shape[:place]), -1)
        squares = np.linalg.svd(matrix, compute_uv=False) ** 2
        tails.append(np.append(np.cumsum(squares[:0:-1])[::-1], 0.0) / (total or 1.0))
    return tails


def _sufficient(tails: Sequence[Float64], sizes: Sequence[int], bound: float) -> Iterator[Ranks]:
    """For each choice of the ranks before it, the smallest last rank with which the error is within the bound.

    The squared error of a tensor train is at most the sum of the squared errors of its places (Oseledets, theorem 2.2).
    """
    for first in itertools.product(*(range(1, len(tail) + 1) for tail in tails[:-1])):
        left = max(bound, 0.0) ** 2 - sum(tail[rank - 1] for tail, rank in zip(tails, first))
        enough = np.flatnonzero(tails[-1] <= left)
        if enough.size:
            *_, largest = _largest_ranks(sizes, first)
            yield (*first, min(int(enough[0]) + 1, largest))


def _dense(weight: ArrayLike) -> Float64:
    given: Any = weight
    try:
        array = to_numpy("weight", given) if hasattr(given, "__dlpack__") else np.asarray(given)
    except ValueError as error:
        raise SpecError(f"weight is no array: {error}") from error
    if array.dtype.kind not in "fiub":
        raise SpecError(f"weight has dtype {array.dtype}; it must be floats or integers")
    if array.ndim not in (2, 3, 4, 5) or 0 in array.shape:
        raise SpecError(
            f"weight has shape {array.shape}; it must be a kernel (kh, kw) or (kd, kh, kw), or a convolution's "
            "weight (oc, ic, kh, kw) or (oc, ic, kd, kh, kw)"
        )
    dense = array.astype(np.float64)
    largest = np.abs(dense).max()
    if not largest <= np.finfo(np.float32).max:
        raise SpecError(f"weight has an entry of magnitude {largest}; all must be finite float32 numbers")
    return dense


def _ranks(rank: int | Sequence[int], sizes: Sequence[int]) -> Ranks:
    given: Any = rank
    places = len(sizes) - 1
    ranks = tuple(given) if isinstance(given, Sequence) and not isinstance(given, str) else (given,) * places
    if len(ranks) != places or not all(hasattr(r, "__index__") and not isinstance(r, bool) for r in ranks):
        several = f" or {places} of them" if places > 1 else ""
        raise SpecError(f"rank is {rank!r}; for a kernel of {len(sizes)} dimensions it must be an integer{several}")
    for place, largest in enumerate(_largest_ranks(sizes, ranks[:-1])):
        if not 1 <= ranks[place] <= largest:
            where = f" between factors {place} and {place + 1}" if places > 1 else ""
            raise SpecError(f"rank {ranks[place]}{where} is out of range; it must be between 1 and {largest}")
    return tuple(int(r) for r in ranks)


def _largest_ranks(sizes: Sequence[int], ranks: Sequence[int]) -> Iterator[int]:
    """The largest rank of each place, given those before it."""
    for place, before in enumerate((1, *ranks)):
        yield min(before * sizes[place], prod(sizes[place + 1 :]))


def _tensor(weight: NDArray[Any]) -> Float64:
    """One axis per factor: ic with the first dimension of the kernel, oc with the last."""
    _, ic, *kernel = weight.shape
    return np.moveaxis(weight, 0, -1).astype(np.float64).reshape(ic * kernel[0], *kernel[1:-1], -1)


def _tensor_train(tensor: Float64, ranks: Ranks) -> list[Float64]:
    """Cores (rank before, axis of the tensor, rank after), by truncated SVDs from the first axis to the last."""
    cores, rest, before = [], tensor, 1
    for size, rank in zip(tensor.shape, ranks):
        u, values, vt = np.linalg.svd(rest.reshape(before * size, -1), full_matrices=False)
        cores.append(u[:, :rank].reshape(before, size, rank))
        rest, before = values[:rank, np.newaxis] * vt[:rank], rank
    cores.append(rest.reshape(before, -1, 1))
    return cores


def _normalised(tensor: Float64, cores: Sequence[Float64]) -> list[Float32]:
    """Cores of rank 1 as `separate` promises them; the last is the best there is for the others."""
    options = []
    for core in cores[:-1]:
        scaled = core / _pivot(core)
        whole = _whole(scaled)
        options.append([scaled] if whole is None else [whole, scaled])
    candidates = [_with_best_last(tensor, heads) for heads in itertools.product(*options)]
    enough = _error(tensor, candidates[-1])  # of none in whole numbers
    return next(candidate for candidate in candidates if _error(tensor, candidate) <= enough)


def _pivot(core: Float64) -> float:
    """The entry of largest magnitude; of those that rounding alone makes differ, the last."""
    flat = core.ravel()
    magnitudes = np.abs(flat)
    return float(flat[np.flatnonzero(magnitudes >= magnitudes.max() * (1 - _EQUAL))[-1]])


def _whole(core: Float64) -> Float64 | None:
    """The smallest multiple that is whole numbers but for rounding; None where it is above _LARGEST_WHOLE."""
    for factor in range(1, _LARGEST_WHOLE + 1):
        scaled = core * factor
        if np.abs(scaled - np.rint(scaled)).max() <= factor * _EQUAL:
            return np.rint(scaled) + 0.0  # not -0.0
    return None


def _with_best_last(tensor: Float64, heads: Sequence[Float64]) -> list[Float32]:
    """The cores of rank 1 before the last, rounded, and the last one that makes the error smallest: least squares."""
    rounded = [head.astype(np.float32) for head in heads]
    last = tensor
    for head in rounded:
        vector = head.ravel().astype(np.float64)
        last = np.tensordot(vector, last, axes=1) / (vector @ vector)
    return [*rounded, (last.reshape(1, -1, 1) + 0.0).astype(np.float32)]


def _balanced(cores: Sequence[Float64]) -> list[Float64]:
    """Cores with the same product and equal norms."""
    norms = [float(np.linalg.norm(core)) for core in cores]
    if not all(norms):
        return list(cores)
    mean = math.exp(sum(map(math.log, norms)) / len(norms))
    return [core * (mean / norm) for core, norm in zip(cores, norms)]


def _error(tensor: Float64, cores: Sequence[Float32]) -> float:
    product = functools.reduce(lambda a, b: np.tensordot(a, b, axes=1), [core.astype(np.float64) for core in cores])
    norm = float(np.linalg.norm(tensor))
    return float(np.linalg.norm(product.reshape(tensor.shape) - tensor)) / norm if norm else 0.0


def _shaped(factors: Sequence[Float32], ranks: Ranks, bare: bool) -> tuple[Float32, ...]:
    """Factors (channels after, channels before, k) as `Separated` says."""
    if not bare:
        rank = len(factors)
        unit = [[-1 if axis == place else 1 for axis in range(rank)] for place in range(rank)]
        return tuple(f.reshape(*f.shape[:2], *u) for f, u in zip(factors, unit))
    first, *between, last = factors
    if set(ranks) == {1}:
        return tuple(f.ravel() for f in factors)
    return (first[:, 0], *between, last[0])
