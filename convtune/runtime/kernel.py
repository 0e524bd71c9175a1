"""Calls a compiled kernel, a shared library, with NumPy arrays, and times it."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from . import tensor as c
from .errors import KernelError, NoGpuError
from .gpu_arrays import GpuArray

ALIGNMENT = 64
"""Bytes. TVM's generated code assumes it of every buffer: a vector load from a lesser address may fault."""

_first_byte: Callable[[Any], ctypes.c_char] = ctypes.c_char.from_buffer
_MAX_THREADS = 1024  # MAX_THREADS of runtime.c
_RUNTIME_SYMBOLS = (
    "convtune_fill_workspace",
    "convtune_kernel_error",
    "convtune_num_threads",
    "convtune_place_threads",
    "convtune_release_workspace",
    "convtune_set_num_threads",
)


class AbsentKernel:
    """In place of a library that this CPU cannot execute. What would run it, or load it, raises KernelError."""

    on_gpu = False

    def __init__(self, why: str) -> None:
        self._why = why

    def __getattr__(self, name: str) -> NoReturn:
        raise KernelError(self._why)

    @property
    def num_threads(self) -> int:
        raise KernelError(self._why)

    @num_threads.setter
    def num_threads(self, count: int) -> None:
        raise KernelError(self._why)


class Kernel:
    """A loaded library. May be called from several threads at once."""

    def __init__(self, library: Path) -> None:
        """Loads `library` and, from beside it, the runtime. Raises KernelError when one does not load or is too old."""
        try:
            self._library = ctypes.CDLL(str(Path(library).resolve()))
            self._main = self._library["__tvm_ffi_main"]  # an attribute of that name would be mangled
            self._time = self._library.convtune_time
            for symbol in _RUNTIME_SYMBOLS:  # an older runtime may lack some: found out here, not in the first call
                self._library[symbol]
        except (OSError, AttributeError) as error:
            raise KernelError(f"cannot load kernel {library}: {error}") from error
        self._library.convtune_kernel_error.restype = ctypes.c_char_p
        self._time.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int] * 3, ctypes.c_void_p]
        self.on_gpu = hasattr(self._library, "convtune_gpu_allocate")
        """Whether it is a launcher, which runs kernels on a GPU."""

    def __call__(self, arrays: Sequence[NDArray[Any]], alignments: Sequence[int] | None = None) -> None:
        """Runs the kernel once, as `prepare(arrays, alignments)()`. Raises KernelError when it fails."""
        self.prepare(arrays, alignments)()

    def prepare(self, arrays: Sequence[NDArray[Any]], alignments: Sequence[int] | None = None) -> Call:
        """Binds the arguments, so that calling the result costs little more than the kernel itself.

        Args:
            arrays: the arguments in order, outputs included.
            alignments: bytes that the kernel assumes of each; None: 64 of all.

        Raises KernelError when one is not C-contiguous or not aligned.
        """
        needed = [ALIGNMENT] * len(arrays) if alignments is None else alignments
        if len(needed) != len(arrays):
            raise KernelError(f"{len(arrays)} arguments and {len(needed)} alignments were given; each needs one")
        call = Call(self, [(array.shape, array.dtype, alignment) for array, alignment in zip(arrays, needed)])
        for index, array in enumerate(arrays):
            if not call.bind(index, array):
                where = f"at address {array.ctypes.data:#x} with strides {array.strides}"
                needed_here = f"the kernel takes C-contiguous arrays at multiples of {needed[index]}"
                raise KernelError(f"argument {index} lies {where}; {needed_here}")
        return call

    def time(self, arrays: Sequence[NDArray[Any]], number: int, repeat: int) -> NDArray[np.float64]:
        """Seconds per call, `repeat` times the mean of `number` calls in a row. No warm-up: call it once before."""
        return self.prepare(arrays).time(number, repeat)

    @property
    def num_threads(self) -> int:
        """Threads on which kernels of this process run, 1 to 1024: all kernels share one pool."""
        return int(self._library.convtune_num_threads())

    @num_threads.setter
    def num_threads(self, count: int) -> None:
        # bool is an int to Python; numpy integers are not, yet mean one
        if isinstance(count, bool) or not hasattr(count, "__index__") or not 1 <= count <= _MAX_THREADS:
            raise KernelError(f"num_threads is {count!r}; it must be an integer from 1 to {_MAX_THREADS}")
        self._library.convtune_set_num_threads(int(count))

    def place_threads(self, on: bool) -> None:
        """Keeps each thread of the pool on a CPU of its own, other than the caller's, for all kernels of the process.

        For measuring: a program that pins its threads disturbs others, and they it. No effect where the caller may use
        fewer CPUs than there are threads.
        """
        self._library.convtune_place_threads(on)

    def fill_scratch(self, byte: int | None) -> None:
        """From now on, all kernels of the process get scratch memory full of `byte`, or, with None, as it was left.

        For verifying: a kernel that reads what it did not write must not find the right values of the last call.
        """
        if byte is not None and not 0 <= byte <= 255:
            raise KernelError(f"byte is {byte}; it must be from 0 to 255")
        self._library.convtune_fill_workspace(-1 if byte is None else byte)

    def upload(self, array: NDArray[Any], device: int) -> GpuArray:
        """A copy in the memory of a GPU. Raises KernelError where there is no such GPU, or no memory."""
        address = ctypes.c_uint64()
        self._check(self._library.convtune_gpu_allocate(device, ctypes.c_size_t(array.nbytes), ctypes.byref(address)))
        copy = GpuArray(address.value, device, array.shape, array.dtype, None)
        # a process that ends gives all back at once
        weakref.finalize(copy, self._library.convtune_gpu_free, device, address).atexit = False
        source, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._check(self._library.convtune_gpu_upload(device, address, source, size))
        return copy

    def download(self, array: GpuArray) -> NDArray[Any]:
        """A copy in the CPU's memory. Raises KernelError where the GPU fails."""
        copy = np.empty(array.shape, array.dtype)
        target, source = ctypes.c_void_p(copy.ctypes.data), ctypes.c_uint64(array.address)
        self._check(self._library.convtune_gpu_download(array.device, target, source, ctypes.c_size_t(array.nbytes)))
        return copy

    def _check(self, status: int) -> None:
        if status != 0:
            self._raise_failure(status)

    def _raise_failure(self, status: int) -> None:
        message = self._library.convtune_kernel_error().decode(errors="replace")
        self._library.convtune_release_workspace()
        line = " ".join(message.split())
        if self.on_gpu:  # a launcher says itself what failed, often not the kernel
            kind, _, text = line.partition(": ")
            if kind == "NoGpuError":
                raise NoGpuError(text)
            raise KernelError(text if kind in ("CudaError", "ValueError") else line)
        raise KernelError(f"kernel failed with status {status}: {line or 'it gave no message'}")


class Call:
    """A kernel with its arguments bound, checked no further than said here. For one thread at a time."""

    def __init__(
        self, kernel: Kernel | AbsentKernel, arguments: Sequence[tuple[tuple[int, ...], np.dtype[Any], int]]
    ) -> None:
        """`arguments`: shape, dtype and alignment in bytes of each; bind an array to each before the first call."""
        count = len(arguments)
        self._kernel = kernel
        self._alignments = [alignment for _, _, alignment in arguments]
        self._shapes = [(ctypes.c_int64 * len(shape))(*shape) for shape, _, _ in arguments]
        self._arrays: list[NDArray[Any] | GpuArray | None] = [None] * count  # kept alive as long as their addresses are
        self._addresses = [0] * count
        self._sizes = [prod(shape) * dtype.itemsize for shape, dtype, _ in arguments]
        self._tensors = (c.Tensor * count)()
        # what is written at each call: a field of an element of `_tensors` would take four times as long
        self._data = [ctypes.c_void_p.from_buffer(self._tensors, _data_offset(index)) for index in range(count)]
        self._elsewhere = [False] * count  # whether it was on a GPU last
        self._args = (c.Any * count)()
        self._result = c.Any()
        for index, (shape, dtype, _) in enumerate(arguments):
            if dtype.kind not in c.DLPACK_CODES or not dtype.isnative:
                raise KernelError(f"argument {index} has dtype {dtype}; kernels take native numbers")
            tensor = self._tensors[index]
            tensor.device_type, tensor.lanes, tensor.ndim = c.CPU, 1, len(shape)
            tensor.code, tensor.bits = c.DLPACK_CODES[dtype.kind], 8 * dtype.itemsize
            tensor.shape = self._shapes[index]
            self._args[index].type_index = c.TENSOR
            self._args[index].pointer = ctypes.addressof(tensor)
        self._checked = -1  # which argument overlaps no other, as the addresses are now
        # as ctypes objects, which take half the time that converting numbers at each call does
        args, result = ctypes.addressof(self._args), ctypes.addressof(self._result)
        self._invocation = (None, ctypes.c_void_p(args), ctypes.c_int32(count), ctypes.c_void_p(result))

    def bind(self, index: int, array: NDArray[Any] | GpuArray) -> bool:
        """Makes `array`, whose shape and dtype the caller has checked, the argument.

        Returns False, and changes nothing, where the kernel cannot use it where it lies.
        """
        if self._arrays[index] is array:
            return True
        if isinstance(array, GpuArray):
            address = array.address
            self._place(index, c.GPU, array.device)
        else:
            flags = array.flags
            if not flags.c_contiguous:
                return False
            # `array.ctypes.data` takes four times as long; what is read-only has no such buffer
            address = ctypes.addressof(_first_byte(array)) if flags.writeable else array.ctypes.data
            if address % self._alignments[index]:
                return False
            if self._elsewhere[index]:
                self._place(index, c.CPU, 0)
        self._arrays[index] = array
        self._data[index].value = address
        if self._addresses[index] != address:
            self._addresses[index] = address
            self._checked = -1
        return True

    def _place(self, index: int, kind: int, device: int) -> None:
        self._tensors[index].device_type, self._tensors[index].device_id = kind, device
        self._elsewhere[index] = kind != c.CPU

    def release(self, index: int) -> None:
        """Lets go of an argument's array. Bind another before the next call: the kernel refuses the null address."""
        self._arrays[index] = None
        self._data[index].value = None

    def overlapping(self, index: int) -> int | None:
        """The first other argument that shares memory with this one, where all are bound."""
        if self._checked == index:
            return None
        start = self._addresses[index]
        end = start + self._sizes[index]
        for other, address in enumerate(self._addresses):
            if address < end and start < address + self._sizes[other] and other != index:
                return other
        self._checked = index
        return None

    def __call__(self) -> None:
        """Runs the kernel once. Raises KernelError when it fails."""
        status = self._kernel._main(*self._invocation)
        if status != 0:
            self._kernel._raise_failure(status)

    def time(self, number: int, repeat: int) -> NDArray[np.float64]:
        """Seconds per call, `repeat` times the mean of `number` calls in a row."""
        if any(isinstance(each, bool) or not hasattr(each, "__index__") or each < 1 for each in (number, repeat)):
            raise KernelError(f"number is {number!r} and repeat is {repeat!r}; both must be integers of at least 1")
        seconds = np.empty(repeat)
        main = ctypes.cast(self._kernel._main, ctypes.c_void_p)
        _, args, count, _ = self._invocation
        status = self._kernel._time(main, args, count, number, repeat, seconds.ctypes.data)
        if status != 0:
            self._kernel._raise_failure(status)
        return seconds


def _data_offset(index: int) -> int:
    """Where in an array of tensors the address of one is."""
    return index * ctypes.sizeof(c.Tensor) + int(c.Tensor.data.offset)
