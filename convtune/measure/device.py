"""Loads, verifies and times kernels. Runs in the device worker, which imports no TVM and so starts in no time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from convtune.measure import timing
from convtune.measure.builder import Pack
from convtune.measure.verify import difference_in_bits, verify
from convtune.reference import OperandArrays, random_operands
from convtune.resting import rest
from convtune.runtime import packing
from convtune.runtime.arrays import empty_aligned, ready
from convtune.runtime.kernel import Kernel

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Array = NDArray[Any]  # of the spec's dtype


@dataclass(frozen=True)
class Prepare:
    """Make the operands and the reference of a spec; answered with None."""

    spec: ConvSpec


@dataclass(frozen=True)
class Measure:
    """Verify a kernel, then time it if `timed`; answered with a Measurement."""

    spec: ConvSpec
    library: Path
    pack: Pack
    limit: float
    best_us: float | None
    timed: bool


@dataclass(frozen=True)
class Compare:
    """Time several verified kernels in turn; answered with the times of each, in microseconds."""

    spec: ConvSpec
    kernels: tuple[tuple[Path, Pack], ...]
    rounds: int


@dataclass(frozen=True)
class Measurement:
    """status: "ok" or "wrong"; where the kernel was emulated, "crash" or "timeout" too.

    suspect: the kernel wrote where it must not, so this process is not to be trusted. cost, counts: of an emulated
    kernel that is right: what it is ranked by, in weighted instructions, and those executed by kind, with the traffic.
    """

    status: str
    message: str = ""
    error: float | None = None
    times_us: tuple[float, ...] = ()
    suspect: bool = False
    cost: float | None = None
    counts: Mapping[str, int] | None = None


class Case:
    """A spec's operands, from a fixed seed, and its reference, which is kept on disk for the next worker."""

    def __init__(self, spec: ConvSpec, seed: int, directory: Path) -> None:
        self.spec = spec
        self._operands = _aligned(random_operands(spec, seed))
        self.reference = self._stored_reference(directory, f"{spec} {seed}")
        self.y = empty_aligned(spec.out_shape, spec.dtype)

    def _stored_reference(self, directory: Path, name: str) -> NDArray[np.float64]:
        path = directory / f"reference-{hashlib.sha256(name.encode()).hexdigest()[:16]}.npy"
        if not path.exists():
            for other in directory.glob("reference-*"):  # of the spec before, or torn
                other.unlink()
            unfinished = path.with_suffix(".unfinished.npy")
            np.save(unfinished, self._operands.reference(self.spec))
            unfinished.replace(path)
        # mapped, it is no memory of this process, which of a large spec has little to spare
        stored: NDArray[np.float64] = np.asarray(np.load(path, mmap_mode="r"))
        return stored

    def inputs(self, pack: Pack) -> dict[str, Array]:
        """The kernel's inputs by name, in the order it takes them, weights packed."""
        of = self._operands
        packed = [packing.apply(steps, weight, self.spec.dtype) for steps, weight in zip(pack, of.weights)]
        weights = _numbered("weight", packed)
        residual = {} if of.residual is None else {"residual": of.residual}
        return {"x": of.x, **weights, **_numbered("bias", of.biases), **of.inputs, **residual}


class Cases:
    """The case of the spec that is worked on."""

    def __init__(self, directory: Path, seed: int) -> None:
        """directory: for references. seed: of the operands."""
        self._directory, self._seed = directory, seed
        self._last: Case | None = None

    def of(self, spec: ConvSpec) -> Case:
        """The spec's case, which is made where it is not the last one."""
        if self._last is None or self._last.spec != spec:
            self._last = None  # first, so that never two are in memory
            self._last = Case(spec, self._seed, self._directory)
        return self._last


class Device:
    """The service of the device worker."""

    def __init__(self, directory: Path, threads: int, seed: int) -> None:
        """directory: for references. threads: that kernels run on."""
        self._cases, self._threads = Cases(directory, seed), threads

    def __call__(self, request: Prepare | Measure | Compare) -> Any:
        """The answer that the request's class names. Raises KernelError where a kernel does not load or run."""
        case = self._cases.of(request.spec)
        if isinstance(request, Measure):
            return self._measure(case, request)
        if isinstance(request, Compare):
            return self._compare(case, request)
        return None

    def _kernel(self, library: Path) -> Kernel:
        kernel = Kernel(library)
        if kernel.num_threads != self._threads:
            kernel.num_threads = self._threads
        # Beside other processes, Linux often leaves a thread on the caller's CPU, and the fastest repeats, which settle
        # the time, then agree on half the speed: every second measurement of two kernels was 1.5 times too long.
        kernel.place_threads(True)
        return kernel

    def _measure(self, case: Case, request: Measure) -> Measurement:
        kernel, inputs = self._kernel(request.library), case.inputs(request.pack)
        verdict = verify(kernel, inputs, case.reference, request.limit)
        if verdict.y is None:
            return Measurement("wrong", verdict.problem, verdict.error, suspect=verdict.overran)
        if not request.timed:
            return Measurement("ok", "", verdict.error)
        # in memory as a program would have it: page ends and fences are for verifying only
        call = kernel.prepare([*inputs.values(), case.y])
        rest()
        times = timing.repeats_us(call, request.best_us)
        if change := difference_in_bits("y", verdict.y, case.y):
            return Measurement("wrong", f"gives another result when run often: {change}", verdict.error)
        return Measurement("ok", "", verdict.error, tuple(times))

    def _compare(self, case: Case, request: Compare) -> list[tuple[float, ...]]:
        calls = []
        for library, pack in request.kernels:
            calls.append(self._kernel(library).prepare([*case.inputs(pack).values(), case.y]))
        rest()  # packing filtered weights and the reference wake BLAS's threads, which then spin for 40 ms
        return [tuple(times) for times in timing.in_turn_us(calls, request.rounds)]


def _numbered(name: str, arrays: Sequence[Array]) -> dict[str, Array]:
    """By name: the array's own where it is alone, numbered where there are several."""
    return {name if len(arrays) == 1 else f"{name}[{i}]": array for i, array in enumerate(arrays)}


def _aligned(operands: OperandArrays) -> OperandArrays:
    """All but the weights, which packing aligns, as kernels take them."""
    return replace(
        operands,
        x=ready(operands.x),
        biases=tuple(map(ready, operands.biases)),
        inputs={name: ready(array) for name, array in operands.inputs.items()},
        residual=None if operands.residual is None else ready(operands.residual),
    )
