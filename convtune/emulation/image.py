"""Lays shared libraries out as a loader does: their segments, relocated, in one block of memory to be mapped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convtune.errors import KernelError

if TYPE_CHECKING:
    from convtune.emulation.machines import Machine


@dataclass(frozen=True)
class _Relocation:
    """An address to be written `at` bytes behind a library's start.

    symbol: where in the library what it names is; missing: the name of what another library has.
    """

    kind: int
    at: int
    addend: int
    symbol: int
    missing: str


SEGMENT_BYTES = 0x10000  # between libraries, at least: the largest page of the machines' linkers


@dataclass(frozen=True)
class Image:
    """Libraries in memory that starts at `start`; `symbols` are the addresses of what they export, and hide."""

    start: int
    contents: bytearray
    symbols: Mapping[str, int]
    executable: Sequence[tuple[int, int]]
    """Where code is, from an address up to another."""
    libraries: Sequence[tuple[str, int]]
    """Their names, and the addresses that their own are counted from."""

    def place(self, address: int) -> str:
        """An address as debuggers name it, such as "kernel.so+0x1234"."""
        name, base = next((found for found in reversed(self.libraries) if found[1] <= address), ("", 0))
        return f"{name}+{address - base:#x}" if address < self.start + len(self.contents) else f"{address:#x}"


def machine_of(library: Path) -> str:
    """The machine that a shared library is for, as ELF names it, such as "EM_AARCH64".

    Raises:
        KernelError: there is none, or it is no shared library.
    """
    with _opened(library) as elf:
        header = elf.header
    if header["e_type"] != "ET_DYN" or header["e_ident"]["EI_CLASS"] != "ELFCLASS64":
        raise KernelError(f"cannot load kernel {library}: it is no 64-bit shared library")
    return str(header["e_machine"])


def load(libraries: Sequence[Path], machine: Machine, start: int) -> Image:
    """Lays the libraries out one behind the other; each finds the symbols that it lacks in the others, first come.

    Raises:
        KernelError: one cannot be read, or needs a symbol that none has.
    """
    contents = bytearray()
    symbols: dict[str, int] = {}
    executable: list[tuple[int, int]] = []
    placed: list[tuple[Path, int, list[_Relocation]]] = []
    for library in libraries:
        base = start + len(contents)
        with _opened(library) as elf:
            contents += _segments(elf, base, executable)
            for name, address in _defined(elf, base).items():
                symbols.setdefault(name, address)
            placed.append((library, base, _relocations(elf)))
    for library, base, relocations in placed:
        for relocation in relocations:
            if relocation.missing and relocation.missing not in symbols:
                raise KernelError(f"cannot emulate {library}: it needs {relocation.missing}, which is not emulated")
            symbol = symbols[relocation.missing] if relocation.missing else base + relocation.symbol
            value = machine.relocated(relocation.kind, base, symbol, relocation.addend)
            if value is None:
                raise KernelError(f"cannot emulate {library}: relocation {relocation.kind} is unknown")
            offset = base - start + relocation.at
            contents[offset : offset + 8] = (value & (1 << 64) - 1).to_bytes(8, "little")
    return Image(start, contents, symbols, executable, [(library.name, base) for library, base, _ in placed])


@contextlib.contextmanager
def _opened(library: Path) -> Iterator[Any]:
    """The library as elftools.elf.elffile.ELFFile; what it finds wrong is a KernelError."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with library.open("rb") as file:
            yield ELFFile(file)
    except (OSError, ELFError) as problem:
        raise KernelError(f"cannot load kernel {library}: {problem}") from problem


def _segments(elf: Any, base: int, executable: list[tuple[int, int]]) -> bytearray:
    """The memory that a library is loaded into. Adds where its code is."""
    segments = [segment for segment in elf.iter_segments() if segment["p_type"] == "PT_LOAD"]
    end = max(segment["p_vaddr"] + segment["p_memsz"] for segment in segments)
    memory = bytearray(-(-end // SEGMENT_BYTES) * SEGMENT_BYTES)
    for segment in segments:
        at = segment["p_vaddr"]
        memory[at : at + segment["p_filesz"]] = segment.data()
        if segment["p_flags"] & 1:
            executable.append((base + at, base + at + segment["p_memsz"]))
    return memory


def _defined(elf: Any, base: int) -> dict[str, int]:
    found = {}
    for section in elf.iter_sections():
        if section["sh_type"] in ("SHT_DYNSYM", "SHT_SYMTAB"):
            for symbol in section.iter_symbols():
                if symbol.name and symbol["st_shndx"] != "SHN_UNDEF":
                    found[symbol.name] = base + symbol["st_value"]
    return found


def _relocations(elf: Any) -> list[_Relocation]:
    found = []
    for section in elf.iter_sections():
        if section["sh_type"] != "SHT_RELA":
            continue
        names = elf.get_section(section["sh_link"])
        for entry in section.iter_relocations():
            symbol = names.get_symbol(entry["r_info_sym"]) if entry["r_info_sym"] else None
            missing = symbol.name if symbol is not None and symbol["st_shndx"] == "SHN_UNDEF" else ""
            value = symbol["st_value"] if symbol is not None else 0
            found.append(_Relocation(entry["r_info_type"], entry["r_offset"], entry["r_addend"], value, missing))
    return found
