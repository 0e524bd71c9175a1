"""Builds a program for the CPU, and runs it there: as fast as may be, or with every access checked and counted."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convtune.cuda.emulation.cxx import find_compiler, flags, scheduler_object
from convtune.cuda.emulation.source import translate
from convtune.cuda.program import Array, Program
from convtune.errors import BuildError, KernelError
from convtune.measure.guards import Guarded

__all__ = ["ALIGNMENT", "ORDERS", "Counts", "Emulation", "Report", "build", "find_compiler"]

ALIGNMENT = 64
"""Bytes: where a program may assume that an array starts."""
ORDERS = ("forward", "reverse", "shuffled")
"""In which the threads of a block, and the blocks of a launch, run.

What cp.async copies is there when it has been waited for; in reverse order at once, and in a shuffled one either way.
With checked accesses always as late as may be.
"""

_PROBLEM_BYTES = 512
_PREFIX = {False: "emulated-", True: "checked-"}


@dataclass(frozen=True)
class Counts:
    """What a launch of a kernel asks of a GPU's memory, of its blocks on average.

    As the source has it: what nvcc keeps in registers after a first load counts each time. A request is an instruction
    of a warp. Sectors have 32 bytes. A request to shared memory takes a wavefront for each time it has to be read:
    1 where no two threads want different words of a bank and no thread wants more than 4 bytes.
    """

    global_load_requests: float
    global_store_requests: float
    global_load_sectors: float
    global_store_sectors: float
    shared_load_requests: float
    shared_store_requests: float
    shared_load_wavefronts: float
    shared_store_wavefronts: float
    barriers: float


@dataclass(frozen=True)
class Report:
    """What a run found. problem: "" or what is wrong, in one line. counts: by kernel, where checked."""

    problem: str
    counts: Mapping[str, Counts]


_TOTALS = ("blocks", *(field.name for field in fields(Counts)))


class _Options(ctypes.Structure):
    """Options of launcher.h."""

    _fields_ = [
        ("order", ctypes.c_int32),
        ("threads", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("blocks", ctypes.c_int64),
        ("scratch_byte", ctypes.c_int32),
        ("problem_bytes", ctypes.c_int32),
    ]


class _Counts(ctypes.Structure):
    """Counts of counts.h: of all blocks of a launch that ran."""

    _fields_ = [(name, ctypes.c_uint64) for name in _TOTALS]


def build(program: Program, directory: Path, checked: bool) -> Path:
    """Compiles a program for this machine's CPU, as a shared library of a new name in `directory`.

    checked: every access to memory that threads share is checked and counted, which is slow.

    Raises:
        BuildError: the program has what the emulator does not know. TargetError: there is no C++ compiler.
    """
    source = translate(program, checked)
    directory.mkdir(parents=True, exist_ok=True)
    compiler = find_compiler()
    scheduler = scheduler_object(compiler, checked)
    # a name that was loaded before would give the library that was loaded then
    with tempfile.NamedTemporaryFile(dir=directory, prefix=_PREFIX[checked], suffix=".so", delete=False) as file:
        library = Path(file.name)
    code = library.with_suffix(".cpp")
    code.write_text(source, encoding="utf-8")
    arguments = [*flags(checked), "-shared", "-o", str(library), str(code), str(scheduler)]
    if failure := compiler.run(arguments):
        library.unlink()
        raise BuildError(f"the emulator cannot compile the program: {failure}")
    return library


class Emulation:
    """A program that was built for the CPU."""

    def __init__(self, library: Path, program: Program) -> None:
        """library: what `build` made of `program`. Raises KernelError when it does not load."""
        try:
            loaded = ctypes.CDLL(str(library.resolve()))
            self._emulate = loaded.convtune_emulate
        except (OSError, AttributeError) as error:
            raise KernelError(f"cannot load the emulated program {library}: {error}") from error
        self._emulate.argtypes = [ctypes.c_void_p] * 4
        self._emulate.restype = None
        self._checked = library.name.startswith(_PREFIX[True])
        self._program = program
        self._scratch_byte: int | None = None
        self._calls = 0

    def run(
        self,
        arrays: Sequence[NDArray[Any]],
        order: str = "forward",
        seed: int = 0,
        blocks: int | None = None,
        threads: int = 1,
    ) -> Report:
        """Runs all launches on the arrays of the program's parameters, in order, in place.

        Arrays that do not start where the program assumes are copied between red zones, and back.

        Args:
            order: one of ORDERS.
            blocks: None: all; else how many of each launch: the first, the last and some between. Only for a program
                of one launch.
            threads: of the CPU. What is checked runs on one.

        Raises KernelError when an array or an argument does not fit.
        """
        if order not in ORDERS:
            raise KernelError(f"order is {order!r}; allowed are {', '.join(ORDERS)}")
        if blocks is not None and (blocks < 1 or len(self._program.launches) > 1):
            launches = len(self._program.launches)
            raise KernelError(f"blocks is {blocks}, with {launches} launches; allowed: 1 and up, with one launch")
        if threads < 1:
            raise KernelError(f"threads is {threads}; allowed: 1 and up")
        self._check_arrays(arrays)
        byte = -1 if self._scratch_byte is None else self._scratch_byte
        threads = 1 if self._checked else threads
        options = _Options(ORDERS.index(order), threads, seed, blocks or 0, byte, _PROBLEM_BYTES)
        return self._run(arrays, options)

    def _run(self, arrays: Sequence[NDArray[Any]], options: _Options) -> Report:
        memory: list[_Parameter | _Workspace] = [
            _Parameter(declared, array) for declared, array in zip(self._program.parameters, arrays)
        ]
        memory += [_Workspace(declared, self._scratch_byte) for declared in self._program.workspaces]
        data = (ctypes.c_void_p * len(memory))(*(piece.address for piece in memory))
        counts = (_Counts * len(self._program.launches))()
        problem = ctypes.create_string_buffer(_PROBLEM_BYTES)
        self._emulate(data, ctypes.byref(options), counts, problem)
        problems = [problem.value.decode(errors="replace"), *(piece.finish() for piece in memory)]
        found = next(filter(None, problems), "")
        return Report(found, self._averages(counts) if self._checked and not found else {})

    def _averages(self, counts: Iterable[_Counts]) -> dict[str, Counts]:
        sums: dict[str, _Counts] = {}
        for launch, of_launch in zip(self._program.launches, counts):
            total = sums.setdefault(launch.kernel, _Counts())
            for name in _TOTALS:
                setattr(total, name, getattr(total, name) + getattr(of_launch, name))
        return {
            kernel: Counts(**{field.name: getattr(total, field.name) / total.blocks for field in fields(Counts)})
            for kernel, total in sums.items()
        }

    def _check_arrays(self, arrays: Sequence[NDArray[Any]]) -> None:
        parameters = self._program.parameters
        if len(arrays) != len(parameters):
            raise KernelError(f"{len(arrays)} arrays were given; the program takes {len(parameters)}")
        for array, parameter in zip(arrays, parameters):
            if array.size != parameter.count or array.dtype != parameter.dtype:
                given = f"{array.size} elements of {array.dtype}"
                raise KernelError(f"{parameter.name} has {given}; it must have {parameter.count} of {parameter.dtype}")
            if not array.flags.c_contiguous:
                raise KernelError(f"{parameter.name} has strides {array.strides}; it must be C-contiguous")

    def fill_scratch(self, byte: int | None, /) -> None:
        """Makes shared memory and workspaces full of that byte at first; None: of what was left there."""
        self._scratch_byte = byte

    def __call__(self, arrays: Sequence[NDArray[Any]], alignments: Sequence[int], /) -> None:
        """Runs it once, each time in the next of the three orders, wherever the arrays start.

        Raises KernelError when it finds something wrong.
        """
        report = self.run(arrays, ORDERS[self._calls % len(ORDERS)], seed=self._calls)
        self._calls += 1
        if report.problem:
            raise KernelError(report.problem)


class _Parameter:
    """An array of the caller's, or a copy between red zones where it is not aligned."""

    def __init__(self, declared: Array, array: NDArray[Any]) -> None:
        self._name, self._array, self._copy = declared.name, array, array
        self._guarded: Guarded | None = None
        if array.ctypes.data % ALIGNMENT:
            self._guarded = _guarded(declared)
            self._copy = self._guarded.array.view(array.dtype).reshape(-1)[: array.size].reshape(array.shape)
            self._copy[...] = array
        self.address = self._copy.ctypes.data

    def finish(self) -> str:
        """Takes back what was computed; returns what was wrong."""
        if self._guarded is None:
            return ""
        self._array[...] = self._copy
        where = self._guarded.overrun()
        return f"wrote outside {self._name}: {where}" if where else ""


class _Workspace:
    """Memory between red zones, for a workspace of a program."""

    def __init__(self, declared: Array, byte: int | None) -> None:
        self._name, self._guarded = declared.name, _guarded(declared)
        self.address = self._guarded.array.ctypes.data
        if byte is not None:
            self._guarded.array.view(np.uint8).fill(byte)

    def finish(self) -> str:
        """Returns what was wrong."""
        where = self._guarded.overrun()
        return f"wrote outside workspace {self._name}: {where}" if where else ""


def _guarded(declared: Array) -> Guarded:
    return Guarded((-(-declared.bytes // 4),), ALIGNMENT, at_end=False)  # the wide zone behind names more faults
