"""The C parts of the emulation, compiled where they are needed: the counter of blocks, and what kernels call."""

from __future__ import annotations

import ctypes
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convtune import linker
from convtune.emulation import hooks
from convtune.emulation.instructions import Block, decode
from convtune.errors import TargetError
from convtune.paths import cache_dir

if TYPE_CHECKING:
    from unicorn import Uc

    from convtune.emulation.image import Image
    from convtune.emulation.machines import Machine

_SOURCES = Path(__file__).parent
_GUEST_FLAGS = (
    "-std=c11", "-O2", "-fPIC", "-nostdlib", "-ffreestanding", "-fno-builtin", "-fno-stack-protector"
)  # fmt: skip


def guest_library(machine: str) -> Path:
    """What emulated kernels call, as a library for `machine`, compiled once.

    Raises:
        TargetError: there is no C compiler for it.
    """
    return _compiled("guest.c", linker.find_compiler(machine), _GUEST_FLAGS)


def _compiled(source: str, compiler: linker.Compiler, flags: tuple[str, ...]) -> Path:
    path = _SOURCES / source
    key = hashlib.sha256(repr((compiler, flags)).encode() + path.read_bytes()).hexdigest()[:16]
    library = path.with_suffix(".so").name
    home = cache_dir() / f"emulation-{path.stem}-{compiler.machine}-{key}"

    def compile_into(work: Path) -> None:
        if failure := compiler.run([*flags, "-shared", "-o", str(work / library), str(path)]):
            raise TargetError(f"cannot compile convtune's emulation: {failure}")

    linker.make_once(home, compile_into)
    return home / library


@functools.cache
def _hook() -> Any:
    library = ctypes.CDLL(str(_compiled("count.c", linker.find_compiler(), linker.FLAGS)))
    return library.convtune_count_block


class _State(ctypes.Structure):
    """Counter of count.c."""

    _fields_ = [
        ("start", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("executions", ctypes.c_void_p),
        ("sizes", ctypes.c_void_p),
        ("left", ctypes.c_uint64),
        ("stop", ctypes.c_void_p),
    ]


class BlockCounter:
    """Counts how often the blocks of an image run on a machine, from the moment it is made.

    To be made before the machine runs: blocks that it has translated by then are not counted.
    """

    def __init__(self, emulated: Uc, machine: Machine, image: Image) -> None:
        from unicorn import UC_HOOK_BLOCK

        self._image, self._disassembler = image, machine.disassembler()
        self._executions = np.zeros(len(image.contents), np.uint64)
        self._sizes = np.zeros(len(image.contents), np.uint32)
        addresses = (self._executions.ctypes.data, self._sizes.ctypes.data)
        self._state = _State(image.start, len(image.contents), *addresses, 0, hooks.stop_function())
        self._blocks: dict[int, Block] = {}
        hooks.add(emulated, UC_HOOK_BLOCK, hooks.address_of(_hook()), ctypes.addressof(self._state))

    def start(self, most_bytes: int) -> None:
        """From now on nothing has run. The machine will stop once it has run so many bytes of code."""
        self._executions[:] = 0
        self._state.left = most_bytes

    @property
    def exhausted(self) -> bool:
        """Whether that was reached."""
        return int(self._state.left) == 0

    def executions(self) -> dict[int, int]:
        """How often each block ran, by its address."""
        (found,) = self._executions.nonzero()
        return {self._image.start + int(at): int(self._executions[at]) for at in found}

    def instructions(self) -> int:
        """How many ran in all."""
        return sum(times * self.block(at).instructions for at, times in self.executions().items())

    def block(self, address: int) -> Block:
        """What is in a block that ran."""
        if address not in self._blocks:
            at = address - self._image.start
            code = bytes(self._image.contents[at : at + int(self._sizes[at])])
            self._blocks[address] = decode(self._disassembler, code, address)
        return self._blocks[address]
