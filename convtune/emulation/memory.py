"""The memory of an emulated machine: blocks with nothing mapped around them, so that whatever strays is caught."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from unicorn import Uc

PAGE = 4096  # of the emulated machines; mmap's is a multiple
_GAP = 1 << 20  # between two blocks: wide enough to catch a jump of several rows


@dataclass
class Block:
    """Memory that an emulated machine shares with this process: `contents`, at `address` there.

    pages: that it is part of, in bytes, from `offset` on. What page ends leave over is full of `filling`, a pattern of
    some bytes that starts with the pages.
    """

    name: str
    address: int
    offset: int
    size: int
    pages: NDArray[np.uint8]
    filling: NDArray[np.uint8]

    @property
    def contents(self) -> NDArray[np.uint8]:
        return self.pages[self.offset : self.offset + self.size]

    def refill(self) -> None:
        """Fills all pages anew."""
        self.pages.reshape(-1, self.filling.size)[...] = self.filling

    def strayed(self) -> str:
        """Where the filling was changed, such as "4 bytes after the end of x"; "" where it was not."""
        end, filling = self.offset + self.size, self.filling
        before, after = self.pages[: self.offset], self.pages[end:]
        if (changed := np.flatnonzero(before != np.resize(filling, before.size))).size:
            return f"{_bytes(self.offset - int(changed[0]))} before the start of {self.name}"
        if (changed := np.flatnonzero(after != np.resize(np.roll(filling, -end % filling.size), after.size))).size:
            return f"{_bytes(int(changed[-1]) + 1)} after the end of {self.name}"
        return ""


def _bytes(count: int) -> str:
    return f"{count} byte{'s' if count > 1 else ''}"


class Memory:
    """Blocks of an emulated machine's memory, each behind the last, from the address `start`."""

    def __init__(self, emulated: Uc, start: int) -> None:
        self._emulated, self._start, self._next = emulated, start, start
        self.blocks: list[Block] = []

    def block(self, name: str, size: int, offset: int, filling: NDArray[np.uint8]) -> Block:
        """A block of `size` bytes at `offset` in its first page, all of whose pages are full of `filling`."""
        total = max(-(-(offset + size) // PAGE), 1) * PAGE
        try:
            # private, so that it counts for the limit of a worker's memory
            memory = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as problem:
            raise MemoryError(f"no {size} bytes for {name}") from problem
        pages = np.frombuffer(memory, np.uint8)
        made = Block(name, self._next + offset, offset, size, pages, filling)
        made.refill()
        self._emulated.mem_map_ptr(self._next, total, 3, pages.ctypes.data)  # to read and write
        self._next += -(-total // _GAP) * _GAP + _GAP
        self.blocks.append(made)
        return made

    def clear(self) -> None:
        """Unmaps all."""
        for block in self.blocks:
            self._emulated.mem_unmap(block.address - block.offset, block.pages.size)
        self.blocks.clear()
        self._next = self._start

    def place(self, address: int) -> str:
        """Where an address is, in words; "" where it is not near a block."""
        for block in self.blocks:
            before, after = block.address - address, address - block.address - block.size
            if 0 < before <= _GAP // 2:
                return f"{_bytes(before)} before the start of {block.name}"
            if 0 <= after <= _GAP // 2:
                return f"{_bytes(after)} after the end of {block.name}" if after else f"at the end of {block.name}"
        return ""
