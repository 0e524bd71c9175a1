"""A compiled convolution: its kernel with the checks, the packing and the array conversions around it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import constants, cpu, gpu_arrays, packing
from .arrays import aligned_copy, converter_to, empty_aligned, to_numpy
from .errors import KernelError, UnfitCpuError
from .gpu_arrays import GpuArray
from .kernel import AbsentKernel, Call, Kernel
from .manifest import PARAMETERS, Resolution
from .names import RUNTIME_NAME
from .package import as_directory, check_importable, content, read_manifest, write_package

_INPUTS = ("x", "offset", "mask", "residual")  # in the order that `run` takes them
_SECONDS_PER_TIMING = 0.01


@dataclass(frozen=True)
class Packed:
    """Weights and biases as one kernel reads them, by argument index; made by `CompiledConv.pack`.

    uploaded: the same by GPU, once they have been used there.
    """

    library_sha256: str
    arrays: Mapping[int, NDArray[Any]]
    uploaded: dict[int, Mapping[int, GpuArray]] = dataclasses.field(default_factory=dict)


class CompiledConv:
    """One convolution, compiled. Call it with arrays; may be called from several threads at once.

    Attributes:
        manifest: all that is known about the kernel.
        kernel: the loaded library; `kernel.num_threads` is the number of threads of all kernels in the process.
    """

    def __init__(self, directory: Path | str, elsewhere: bool = False) -> None:
        """Loads a package that `save` or the compiler wrote.

        elsewhere: it may be for a CPU that this one is not, and then can be packed for and saved, but not run.

        Raises KernelError when it is not one, its files do not match its hashes, or this CPU cannot execute it.
        """
        self._directory = as_directory(directory)
        self.manifest = manifest = read_manifest(self._directory)
        target = manifest.target
        library = self._directory / manifest.library_name
        content(library, manifest.library_sha256)
        content(self._directory / RUNTIME_NAME, manifest.runtime_sha256)
        self.kernel: Kernel | AbsentKernel
        try:
            cpu.check(target.machine, target.required_features)
            self.kernel = Kernel(library)
        except UnfitCpuError as error:
            if not elsewhere:
                raise
            self.kernel = AbsentKernel(str(error))
        if self.kernel.on_gpu != target.on_gpu:
            found = "is for a GPU" if self.kernel.on_gpu else "is for a CPU"
            raise KernelError(f"manifest.json: target: archs are {list(target.archs)}, and the kernel {found}")
        self._indices: dict[str, list[int]] = {}
        for index, argument in enumerate(manifest.arguments):
            self._indices.setdefault(argument.name, []).append(index)
        # what a launcher copies to the GPU may lie anywhere
        self._signature = [
            (a.shape, np.dtype(a.dtype), 1 if self.kernel.on_gpu else a.alignment) for a in manifest.arguments
        ]
        (self._y_index,) = self._indices["y"]
        self._left_out = tuple(name not in self._indices for name in _INPUTS)
        self._taken = [(i, place) for place, name in enumerate(_INPUTS) for i in self._indices.get(name, ())]
        self._constants = constants.read(self._directory, manifest)
        self._own = self._arranged(self._constants) if self._constants else None
        self._idle: list[Call] = []  # list.pop and list.append are atomic: a thread takes one, and gives it back

    @property
    def spec(self) -> str:
        """The convolution's canonical string."""
        return self.manifest.spec

    @property
    def error(self) -> float | None:
        """max |y - reference| / max |reference| at compile time, with the reference in float64; None where it was not
        verified then."""
        return self.manifest.error

    @property
    def verified(self) -> str | None:
        """How `error` was found: on the "device" that the kernel is for, or by "emulation" on a CPU; None where it was
        compiled for another machine than the one at hand then, and so not verified."""
        return self.manifest.verified

    @property
    def weight_error(self) -> float | None:
        """‖W - W'‖ / ‖W‖ in the Frobenius norm where the convolution's own weights are factors, with the product W', of
        the weight W that it was compiled with; otherwise None. It is no part of `error`."""
        return self.manifest.weight_error

    @property
    def resolution(self) -> Resolution:
        """Which schedule was compiled, and why."""
        return self.manifest.resolution

    def __repr__(self) -> str:
        error = "unverified" if self.error is None else f"{self.error:.1e}"
        error += " by emulation" if self.verified == "emulation" else ""
        return f"CompiledConv({self.spec!r}, target={self.manifest.target.name!r}, error={error})"

    def __reduce__(self) -> NoReturn:
        """Refuses to be pickled or copied: a loaded library belongs to its process."""
        raise self._error("a CompiledConv cannot be pickled or copied; save(directory) it and load(directory) it there")

    def __call__(
        self,
        x: Any,
        weight: Any = None,
        bias: Any = None,
        offset: Any = None,
        mask: Any = None,
        residual: Any = None,
    ) -> Any:
        """Packs the weights and runs: `run(x, pack(weight, bias), ...)`; without them where it has its own."""
        unpacked = weight is None and bias is None
        packed = None if self._own and unpacked else self.pack(weight, bias)
        return self.run(x, packed, offset=offset, mask=mask, residual=residual)

    def pack(self, weight: Any, bias: Any = None) -> Packed:
        """Arranges constant weights, in PyTorch's layout, for the kernel; a tuple of them for composite variants.

        Raises KernelError when a shape or dtype is not the kernel's, where a bias is missing or superfluous, and where
        the convolution has weights of its own.
        """
        for name, given in zip(PARAMETERS, (weight, bias)):
            self._check_not_fixed(name, given)
        return self._arranged(self._parameters(weight, bias))

    def fix(self, weight: Any, bias: Any = None, weight_error: float | None = None) -> None:
        """Gives the convolution weights of its own, in PyTorch's layout: calls bring none then, and `save` writes them.

        They are copied. No other thread may call the convolution meanwhile. weight_error: see there.

        Raises KernelError as `pack` does.
        """
        given = self._parameters(weight, bias)
        self._constants = {index: np.array(array, order="C") for index, array in given.items()}
        self._own = self._arranged(self._constants)
        hashes = constants.hashes(self.manifest, self._constants)
        self.manifest = dataclasses.replace(self.manifest, constants=hashes, weight_error=weight_error)

    def run(
        self,
        x: Any,
        packed: Packed | None = None,
        *,
        offset: Any = None,
        mask: Any = None,
        residual: Any = None,
        out: Any = None,
    ) -> Any:
        """The convolution of x with packed weights or its own; the result is of x's kind, or `out` where that is given.

        Arrays that are C-contiguous and aligned as the kernel assumes are not copied. `out` must not overlap an input.
        A GPU's kernel takes arrays on a GPU as they are, and may return before it has run; it copies what is not there,
        and waits where the result is not.

        Raises KernelError when a shape or dtype is not the kernel's, and where an argument is missing or superfluous.
        """
        packed = self._weights(packed)
        arrays = self._inputs(x, offset, mask, residual)
        shape, dtype, _ = self._signature[self._y_index]
        convert = None
        if out is None and isinstance(arrays[self._indices["x"][0]], GpuArray):
            out = gpu_arrays.empty_like(x, shape)
        elif out is None:
            convert, out = converter_to(x), empty_aligned(shape, dtype)
        arrays[self._y_index] = self._output(out)
        self._call(self._parameters_for(arrays, packed), arrays)
        return convert(out) if convert else out

    def bind(
        self,
        x: Any,
        packed: Packed | None = None,
        *,
        out: Any,
        offset: Any = None,
        mask: Any = None,
        residual: Any = None,
    ) -> Callable[[], None]:
        """A function without arguments that does what `run` does with these, and little beside it: nothing is checked
        again. For small convolutions whose arrays stay where they are; it keeps them, and is for one thread at a time.

        Raises KernelError as `run` does, and where an array would have to be copied: when it is not C-contiguous, or
        not aligned as the kernel assumes.
        """
        packed = self._weights(packed)
        arrays = {**self._inputs(x, offset, mask, residual), self._y_index: self._output(out)}
        call = Call(self.kernel, self._signature)
        for index, array in {**self._parameters_for(arrays, packed), **arrays}.items():
            if not call.bind(index, array):
                name, alignment = self.manifest.arguments[index].name, self._signature[index][2]
                takes = f"only C-contiguous arrays at multiples of {alignment} bytes can be bound"
                raise self._error(f"{'out' if name == 'y' else name} does not lie as the kernel needs it; {takes}")
        self._check_overlap(call)
        return call

    def time(self, repeat: int = 10) -> NDArray[np.float64]:
        """Seconds per call on random data, `repeat` times, each the mean of calls that take 10 ms together.

        As in tuning, each thread is kept on a CPU of its own for that time; afterwards all threads of the process's
        kernels may use any CPU again.
        """
        rng = np.random.default_rng(0)
        arrays = []
        for argument in self.manifest.arguments:
            array = empty_aligned(argument.shape, argument.dtype)
            array[...] = (
                rng.standard_normal(argument.shape) if array.dtype.kind == "f" else rng.integers(0, 9, argument.shape)
            )
            arrays.append(array)
        call = self.kernel.prepare(arrays)
        self.kernel.place_threads(True)
        try:
            call()
            once = float(call.time(number=1, repeat=3).min())
            return call.time(number=max(1, math.ceil(_SECONDS_PER_TIMING / max(once, 1e-9))), repeat=repeat)
        finally:
            self.kernel.place_threads(False)

    def save(self, directory: Path | str) -> Path:
        """Writes a Python package that needs NumPy only: `from kernels import g32; y = g32(x, weight)`.

        An earlier convtune package there is replaced, all at once; raises KernelError where anything else is, where
        it cannot be written, or where Python cannot import a package of that name.
        """
        place = as_directory(directory)
        check_importable(place)
        files = self._directory / self.manifest.library_name, self._directory / RUNTIME_NAME
        return write_package(place, self.manifest, *files, constants.files(self.manifest, self._constants))

    def _weights(self, packed: Packed | None) -> Packed:
        if self._own is not None:
            self._check_not_fixed("packed", packed)
            return self._own
        if not isinstance(packed, Packed):
            raise self._error(f"packed is a {type(packed).__name__}; it must come from this kernel's pack()")
        if packed.library_sha256 != self.manifest.library_sha256:
            raise self._error("packed was made by another kernel; pack the weights with this one")
        return packed

    def _inputs(self, *given: Any) -> dict[int, NDArray[Any] | GpuArray]:
        """What `run` is given, in the order of _INPUTS, checked, by argument index."""
        if tuple([value is None for value in given]) != self._left_out:
            for name, value in zip(_INPUTS, given):
                self._check_presence(name, value)
        arrays = {}
        for index, place in self._taken:
            shape, dtype, _ = self._signature[index]
            arrays[index] = self._checked(_INPUTS[place], given[place], shape, dtype)
        return arrays

    def _output(self, out: Any) -> NDArray[Any] | GpuArray:
        shape, dtype, _ = self._signature[self._y_index]
        result = self._checked("out", out, shape, dtype)
        if isinstance(result, np.ndarray) and not result.flags.writeable:
            raise self._error("out is read-only")
        return result

    def _check_overlap(self, call: Call) -> None:
        overlapped = call.overlapping(self._y_index)
        if overlapped is not None:
            name = self.manifest.arguments[overlapped].name
            raise self._error(f"out overlaps {name}; the kernel would read its own output")

    def _parameters_for(
        self, arrays: Mapping[int, NDArray[Any] | GpuArray], packed: Packed
    ) -> Mapping[int, NDArray[Any] | GpuArray]:
        """The packed weights where the kernel runs, which is where its other arrays are."""
        if not self.kernel.on_gpu:
            return packed.arrays
        device = next((array.device for array in arrays.values() if isinstance(array, GpuArray)), 0)
        if device not in packed.uploaded:  # two threads may both come here: one copy is dropped
            packed.uploaded[device] = {i: self.kernel.upload(array, device) for i, array in packed.arrays.items()}
        return packed.uploaded[device]

    def _call(
        self,
        parameters: Mapping[int, NDArray[Any] | GpuArray],
        arrays: Mapping[int, NDArray[Any] | GpuArray],
    ) -> None:
        try:
            call = self._idle.pop()
        except IndexError:
            call = Call(self.kernel, self._signature)
        scratch = None  # where y goes when the kernel cannot write it in place
        for given in (parameters, arrays):
            for index, array in given.items():
                if not call.bind(index, array):
                    assert isinstance(array, np.ndarray)
                    copy = aligned_copy(array)
                    call.bind(index, copy)
                    if index == self._y_index:
                        scratch = copy
        self._check_overlap(call)
        call()
        if scratch is not None:
            y = arrays[self._y_index]
            assert isinstance(y, np.ndarray)
            y[...] = scratch
        for index in arrays:  # the weights stay bound: they are likely to come again
            call.release(index)
        self._idle.append(call)

    def _parameters(self, weight: Any, bias: Any) -> dict[int, NDArray[Any]]:
        """Weights and biases as given, checked, by argument index."""
        arrays = {}
        for name, given in zip(PARAMETERS, (weight, bias)):
            self._check_presence(name, given)
            for label, index, value in self._each(name, given):
                argument = self.manifest.arguments[index]
                array = self._checked(label, value, argument.user_shape, self._signature[index][1])
                arrays[index] = self.kernel.download(array) if isinstance(array, GpuArray) else array
        return arrays

    def _arranged(self, arrays: Mapping[int, NDArray[Any]]) -> Packed:
        arguments = self.manifest.arguments
        packed = {i: packing.apply(arguments[i].pack, array, arguments[i].dtype) for i, array in arrays.items()}
        return Packed(self.manifest.library_sha256, packed)

    def _check_not_fixed(self, name: str, given: Any) -> None:
        if self._own is not None and given is not None:
            raise self._error(f"{name} was given; this convolution has weights of its own, so leave it out")

    def _each(self, name: str, given: Any) -> list[tuple[str, int, Any]]:
        """Label, argument index and array of each weight or bias; one alone may be in a tuple, too."""
        indices = self._indices.get(name, [])
        if len(indices) <= 1:
            alone = given[0] if isinstance(given, tuple) and len(given) == 1 else given
            return [(name, index, alone) for index in indices]
        if not isinstance(given, Sequence) or len(given) != len(indices):
            found = f"{len(given)} arrays" if isinstance(given, Sequence) else f"a {type(given).__name__}"
            raise self._error(f"{name} is {found}; this kernel takes a tuple of {len(indices)}")
        return [(f"{name}[{i}]", index, value) for i, (index, value) in enumerate(zip(indices, given))]

    def _check_presence(self, name: str, value: Any) -> None:
        indices = self._indices.get(name, [])
        if indices and value is None:
            shapes = " and ".join(str(self.manifest.arguments[index].user_shape) for index in indices)
            raise self._error(f"{name} is missing; this kernel takes one of shape {shapes}")
        if not indices and value is not None:
            # given by its place, it may have been meant as another one
            takes = [each for each in self._indices if each != "y" and not (self._own and each in PARAMETERS)]
            count = f"{len(takes)} argument{'s' if len(takes) > 1 else ''}"
            raise self._error(f"{name} was given; this kernel takes none; its {count}: {', '.join(takes)}")

    def _checked(self, label: str, value: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any] | GpuArray:
        array: NDArray[Any] | GpuArray
        if type(value) is np.ndarray:  # first: for small layers each microsecond counts
            array = value
        elif self.kernel.on_gpu and gpu_arrays.is_on_gpu(value):
            array = gpu_arrays.from_dlpack(label, value)
        else:
            array = to_numpy(label, value)
        if array.shape != shape:
            raise self._error(f"{label} has shape {array.shape}; this kernel takes {shape}")
        if array.dtype != dtype:
            raise self._error(f"{label} has dtype {array.dtype}; this kernel takes {dtype}")
        return array

    def _error(self, message: str) -> KernelError:
        return KernelError(f"{message} (spec: {self.spec})")


def load(directory: Path | str) -> CompiledConv:
    """The convolution saved in `directory`. Raises KernelError as CompiledConv does."""
    return CompiledConv(directory)
