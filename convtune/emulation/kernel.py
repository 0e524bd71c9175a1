"""Runs a compiled kernel on an emulated machine, counts its instructions, and catches what it must not do."""

from __future__ import annotations

import ctypes
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convtune.emulation import machines
from convtune.emulation.counter import BlockCounter, guest_library
from convtune.emulation.counts import KINDS, Counts
from convtune.emulation.hooks import Hooks
from convtune.emulation.image import load, machine_of
from convtune.emulation.memory import PAGE, Block, Memory
from convtune.emulation.regions import Regions
from convtune.errors import KernelError
from convtune.measure.guards import OUTSIDE
from convtune.runtime import tensor as c

_CODE, _STACK, _RETURN, _ARGUMENTS, _ARRAYS, _SCRATCH = (
    0x10000000, 0x7000000, 0x1000, 0x6000000, 0x100000000, 0x1000000000
)  # fmt: skip
_STACK_BYTES = 1 << 20
_ALIGNMENT = 64  # of scratch memory, as runtime.c has it
_ALLOCATE, _FREE, _BEGIN_REGION, _NEXT_TASK = 1, 2, 3, 4  # of guest.c
_NO_INSTRUCTION = "ran what is no instruction, or none of this processor"
MOST_INSTRUCTIONS = 1 << 40


class EmulationError(KernelError):
    """An emulated kernel did what it must not. status: "crash", "timeout" or "wrong", as a record has it."""

    def __init__(self, status: str, message: str) -> None:
        self.status = status
        super().__init__(message)


class EmulatedKernel:
    """A library on an emulated machine of the kind that it was built for.

    Every array and scratch block has unmapped memory around its pages. Of two calls, the second has the tasks of
    parallel regions in reverse order, and scratch blocks at the end of their pages rather than the start.

    A context manager. counts: of the last call whose tasks were in their order.
    """

    def __init__(
        self,
        library: Path,
        threads: int,
        names: Sequence[str] = (),
        features: Collection[str] | None = None,
        most_instructions: int = MOST_INSTRUCTIONS,
    ) -> None:
        """threads: for which parallel regions make tasks. names: of the arguments, for messages. features: of the
        processor, as `machines.of_elf` has them. most_instructions: after which a call is taken for endless.

        Raises:
            KernelError: the library cannot be loaded, or there is no emulation of its machine.
            TargetError: there is no C compiler for this machine or for that.
        """
        kind = machines.of_elf(machine_of(library), features)
        self._kind, self._names, self._most_instructions = kind, names, most_instructions
        self._image = load([library, guest_library(kind.name)], kind, _CODE)
        self._machine = kind.new()
        self._map()
        self._counter = BlockCounter(self._machine, kind, self._image)
        self._regions = Regions(threads, self._counter.instructions)
        self._arrays, self._scratch = Memory(self._machine, _ARRAYS), Memory(self._machine, _SCRATCH)
        self._fixed = Memory(self._machine, _STACK)
        self._stack = self._fixed.block("the stack", _STACK_BYTES, 0, _pattern(0))
        self._free: list[Block] = []
        self._byte: int | None = None
        self._calls = 0
        self._fault = ""
        self.counts = Counts(0, dict.fromkeys(KINDS, 0), {})
        self._hooks = Hooks(self._machine, self._on_interrupt, self._on_invalid)

    def _map(self) -> None:
        contents = self._image.contents
        self._machine.mem_map(_CODE, len(contents), 3)
        self._machine.mem_write(_CODE, bytes(contents))
        for start, end in self._image.executable:
            first, last = start // PAGE * PAGE, -(-end // PAGE) * PAGE
            self._machine.mem_protect(first, last - first, 5)  # to read and to execute
        self._machine.mem_map(_RETURN, PAGE, 5)
        self._machine.mem_map(_ARGUMENTS, 16 * PAGE, 3)

    def close(self) -> None:
        """Gives the machine's memory back, 1 GB of addresses, which would wait for the garbage collector otherwise."""
        self._hooks.close()

    def fill_scratch(self, byte: int | None) -> None:
        """From now on the kernel gets scratch memory, and a stack, full of `byte`; with None, of zeros."""
        self._byte = byte

    def __call__(self, arrays: Sequence[NDArray[Any]], alignments: Sequence[int]) -> None:
        """Runs the kernel once on its arguments in order, each at a multiple of its alignment in bytes.

        Each is copied to and from the same place in a page as it has here.

        Raises:
            EmulationError: it did what it must not.
            KernelError: it failed, or takes no such arrays.
        """
        from unicorn import UC_ERR_INSN_INVALID, UcError

        self._calls += 1
        self._fault = ""
        self._regions.start(self._reversed)
        self._stack.pages[:] = self._byte or 0
        self._counter.start(self._most_instructions * 4)
        try:
            blocks = self._place(arrays, alignments)
            self._prepare(blocks, arrays)
            try:
                self._machine.emu_start(self._image.symbols["__tvm_ffi_main"], _RETURN)
            except UcError as problem:
                self._raise_own()
                known = {UC_ERR_INSN_INVALID: _NO_INSTRUCTION}.get(problem.errno, str(problem))
                raise EmulationError("crash", f"{self._fault or known}{self._where()}") from problem
            self._raise_own()
            self._check(blocks)
            for block, array in zip(blocks, arrays):
                _copy_back(block, array)
        finally:
            self._arrays.clear()
            self._scratch.clear()
            self._free.clear()
        if not self._reversed:
            self.counts = self._counted()

    @property
    def _reversed(self) -> bool:
        """Whether this is the second of two calls."""
        return self._calls % 2 == 0

    def _place(self, arrays: Sequence[NDArray[Any]], alignments: Sequence[int]) -> list[Block]:
        blocks = []
        for index, (array, alignment) in enumerate(zip(arrays, alignments, strict=True)):
            if not array.flags.c_contiguous or array.ctypes.data % alignment:
                raise KernelError(f"argument {index} is not C-contiguous at a multiple of {alignment}")
            offset = array.ctypes.data % PAGE
            filling = _outside(array.itemsize)
            block = self._arrays.block(self._name(index), array.nbytes, offset, filling)
            block.contents[...] = array.reshape(-1).view(np.uint8)
            blocks.append(block)
        return blocks

    def _name(self, index: int) -> str:
        return self._names[index] if index < len(self._names) else f"argument {index}"

    def _prepare(self, blocks: Sequence[Block], arrays: Sequence[NDArray[Any]]) -> None:
        """Writes the arguments' structures, and sets the registers for a call."""
        written = bytearray()

        def put(data: bytes) -> int:
            written.extend(bytes(-len(written) % 16))
            address = _ARGUMENTS + len(written)
            written.extend(data)
            return address

        args = (c.Any * len(blocks))()
        for arg, block, array in zip(args, blocks, arrays):
            tensor = c.Tensor(data=block.address, device_type=c.CPU, ndim=array.ndim, lanes=1)
            tensor.code, tensor.bits = c.DLPACK_CODES[array.dtype.kind], 8 * array.itemsize
            shape = put(bytes((ctypes.c_int64 * array.ndim)(*array.shape)))
            tensor.shape = ctypes.cast(shape, ctypes.POINTER(ctypes.c_int64))
            arg.type_index, arg.pointer = c.TENSOR, put(bytes(tensor))
        values = (0, put(bytes(args)), len(blocks), put(bytes(c.Any())))
        self._machine.mem_write(_ARGUMENTS, bytes(written))
        self._kind.call(self._machine, _RETURN, self._stack.address + _STACK_BYTES - 256)
        for register, value in zip(self._kind.arguments, values):
            self._machine.reg_write(register, value)

    def _raise_own(self) -> None:
        """Raises what one of our own functions raised, while the kernel ran, such as MemoryError."""
        problem, self._hooks.problem = self._hooks.problem, None
        if problem is not None:
            raise problem

    def _check(self, blocks: Sequence[Block]) -> None:
        """Raises what the call has not raised by itself."""
        if self._fault:
            raise EmulationError("crash", self._fault)
        if self._counter.exhausted:
            raise EmulationError("timeout", f"ran more than {self._most_instructions} instructions{self._where()}")
        if status := ctypes.c_int32(self._machine.reg_read(self._kind.result)).value:
            message = bytes(self._machine.mem_read(self._image.symbols["convtune_message"], 1024))
            line = " ".join(message.partition(b"\0")[0].decode(errors="replace").split())
            raise KernelError(f"kernel failed with status {status}: {line or 'it gave no message'}")
        for block in blocks:
            if where := block.strayed():
                raise EmulationError("wrong", f"wrote outside an array: {where}")

    def _where(self) -> str:
        return f" (at {self._image.place(self._machine.reg_read(self._kind.counter))})"

    def _on_invalid(self, access: int, address: int, size: int) -> None:
        """Remembers what was touched; the machine stops."""
        from unicorn import unicorn_const as names

        place = next(
            (found for memory in (self._arrays, self._scratch, self._fixed) if (found := memory.place(address))), ""
        )
        what = {
            names.UC_MEM_READ_UNMAPPED: "read",
            names.UC_MEM_WRITE_UNMAPPED: "wrote",
            names.UC_MEM_WRITE_PROT: "wrote",
        }.get(access, "ran code")
        self._fault = f"{what} {size} bytes {place or f'at address {address:#x}, where there is nothing'}"

    def _on_interrupt(self, number: int) -> None:
        """Answers guest.c; whatever else interrupts is a fault."""
        machine = self._machine
        if number != self._kind.interrupt:
            self._fault = f"{_NO_INSTRUCTION}{self._where()}"
            machine.emu_stop()
            return
        argument = machine.reg_read(self._kind.argument)
        answers = {
            _ALLOCATE: self._allocate,
            _FREE: self._release,
            _BEGIN_REGION: self._regions.begin,
            _NEXT_TASK: self._regions.next,
        }
        answer = answers[machine.reg_read(self._kind.request)](argument)
        machine.reg_write(self._kind.answer, answer & (1 << 64) - 1)

    def _allocate(self, size: int) -> int:
        """The address of scratch memory, the last that was freed of its size if there is one."""
        block = next((free for free in reversed(self._free) if free.size == size), None)
        if block is None:
            offset = -size % PAGE // _ALIGNMENT * _ALIGNMENT if self._reversed else 0
            block = self._scratch.block(f"a scratch block of {size} bytes", size, offset, _pattern(self._byte or 0))
        else:
            self._free.remove(block)
            block.refill()
        return block.address

    def _release(self, address: int) -> int:
        block = next((used for used in self._scratch.blocks if used.address == address), None)
        if block is None or block in self._free:
            self._fault = f"freed scratch memory at {address:#x}, which it has not"
            self._machine.emu_stop()
        elif where := block.strayed():
            self._fault = f"wrote outside scratch memory: {where}"
            self._machine.emu_stop()
        else:
            self._free.append(block)
        return 0

    def _counted(self) -> Counts:
        executions = self._counter.executions()
        by_kind = dict.fromkeys(KINDS, 0)
        for address, times in executions.items():
            for kind, count in self._counter.block(address).by_kind.items():
                by_kind[kind] += times * count
        return Counts(self._counter.instructions(), by_kind, executions, self._regions.instructions())

    def __enter__(self) -> EmulatedKernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pattern(byte: int) -> NDArray[np.uint8]:
    return np.array([byte], np.uint8)


def _outside(itemsize: int) -> NDArray[np.uint8]:
    """What is around an array whose elements have so many bytes."""
    return np.array([OUTSIDE.get(itemsize, 0)], f"u{itemsize}").view(np.uint8)


def _copy_back(block: Block, array: NDArray[Any]) -> None:
    after = block.contents.view(array.dtype).reshape(array.shape)
    if array.flags.writeable:
        array[...] = after
    elif not np.array_equal(after.view(np.uint8), array.view(np.uint8)):
        raise EmulationError("wrong", f"changed {block.name}, which it may only read")
