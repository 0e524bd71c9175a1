"""Measures what this machine can do at most: multiply-adds per second and bytes per second from memory."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convtune.errors import MeasureError, TargetError
from convtune.linker import Compiler, find_compiler, make_once
from convtune.paths import cache_dir
from convtune.targets import CpuTarget
from convtune.targets.host import current

_SOURCE = Path(__file__).parent / "runtime" / "probe.c"
# Contraction makes multiply-adds of products and sums: GCC leaves them apart in ISO C.
_FLAGS = ("-std=c11", "-O2", "-fPIC", "-shared", "-pthread", "-fvisibility=hidden", "-ffp-contract=fast")
_VECTOR_FEATURES = ("avx", "avx2", "fma", "avx512f", "avx512vl")  # named alike by /proc/cpuinfo and by compilers
_SMALLEST_STREAM_BYTES = 64 << 20


class _Result(ctypes.Structure):
    """Result of probe.c."""

    _fields_ = [
        ("best_s", ctypes.c_double),
        ("work", ctypes.c_double),
        ("windows", ctypes.c_int64),
        ("checksum", ctypes.c_uint64),
        ("expected", ctypes.c_uint64),
    ]


@dataclass(frozen=True)
class Bandwidth:
    """Streams through memory. triad: a = b + 3 c, its two reads and one write counted."""

    read_gbs: float
    triad_gbs: float


@dataclass(frozen=True)
class Peaks:
    """What was measured on a machine: on one core, and on all the target's threads."""

    core_fma_gflops: float
    fma_gflops: float
    bandwidth: Bandwidth


def fma_peak_gflops(target: CpuTarget, threads: int | None = None, seconds: float = 0.2) -> float:
    """Multiply-adds in registers with the target's widest vectors, in GFLOP/s: the fastest of windows of 2 ms.

    threads: the target's, unless given. May be called again and again, in turn with a kernel; then 0.01 s is enough.

    Raises:
        TargetError: the target is not this machine, or there is no C compiler. MeasureError: it did not run rightly.
    """
    threads = _checked(target, threads, seconds)
    result = _Result()
    error = _library(target).convtune_probe_multiply_add(threads, _cpus(threads), seconds, ctypes.byref(result))
    _check("multiply-add loop", error, result)
    return float(2 * result.work / result.best_s / 1e9)


def bandwidth_gbs(target: CpuTarget, threads: int | None = None, seconds: float = 0.2) -> Bandwidth:
    """Reading, and the triad, over arrays well beyond the last cache; `seconds` for each of the two.

    Raises:
        As `fma_peak_gflops`.
    """
    threads = _checked(target, threads, seconds)
    read, triad = _Result(), _Result()
    error = _library(target).convtune_probe_memory(
        threads, _cpus(threads), stream_length(target, threads), seconds, ctypes.byref(read), ctypes.byref(triad)
    )
    _check("memory streams", error, read)
    return Bandwidth(read.work / read.best_s / 1e9, triad.work / triad.best_s / 1e9)


def stream_length(target: CpuTarget, threads: int) -> int:
    """float32 elements of each of the three streams: four times the L3, one L3 for 8 threads, while memory lasts."""
    import psutil

    wanted = max(_SMALLEST_STREAM_BYTES, 4 * target.l3_bytes * -(-threads // 8))
    return int(min(wanted, psutil.virtual_memory().available // 12)) // 4


def remember(target: CpuTarget, peaks: Peaks) -> Path:
    """Keeps what was measured, for this machine and target, in the user's cache; returns where."""
    path = _memory_path(target)
    _write(path, lambda unfinished: unfinished.write_text(json.dumps(asdict(peaks)) + "\n", encoding="utf-8"))
    return path


def recall(target: CpuTarget) -> Peaks | None:
    """What was last remembered for this machine and target; None if nothing was.

    Raises:
        MeasureError: the file is damaged.
    """
    path = _memory_path(target)
    if not path.exists():
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        return Peaks(float(kept["core_fma_gflops"]), float(kept["fma_gflops"]), Bandwidth(**kept["bandwidth"]))
    except (ValueError, KeyError, TypeError) as error:
        raise MeasureError(f"peaks in {path} are damaged ({error}); measure again with `convtune doctor`") from error


def _memory_path(target: CpuTarget) -> Path:
    return cache_dir() / f"peaks-{target.fingerprint}.json"


def _checked(target: CpuTarget, threads: int | None, seconds: float) -> int:
    if not target.is_host:
        raise TargetError(f"target {target.name!r} cannot be measured here: it is not this machine")
    threads = target.threads if threads is None else threads
    if threads < 1:
        raise TargetError(f"threads is {threads}; allowed: 1 and up")
    if not seconds > 0:
        raise MeasureError(f"seconds is {seconds}; allowed: above 0")
    return threads


def _cpus(threads: int) -> ctypes.Array[ctypes.c_int]:
    cpus = current().cpus
    return (ctypes.c_int * threads)(*(cpus[i % len(cpus)] for i in range(threads)))


def _check(what: str, error: int, result: _Result) -> None:
    if error:
        raise MeasureError(f"{what}: {os.strerror(error)}")
    if result.checksum != result.expected:
        raise MeasureError(f"{what} gave checksum {result.checksum}, not {result.expected}: the compiler changed it")


def _library(target: CpuTarget) -> Any:
    return _load(build(find_compiler(target.machine), flags_for(target)))


def flags_for(target: CpuTarget) -> tuple[str, ...]:
    """The compiler's options with which probe.c uses the target's vectors."""
    features = (f"-m{feature}" for feature in _VECTOR_FEATURES if feature in target.required_features)
    # Each compiler is told of SVE in a way of its own. A Neoverse V1 does as many multiply-adds a clock with NEON.
    vector_bytes = 16 if target.machine == "aarch64" else target.vector_bytes
    shape = (f"-DVECTOR_BYTES={vector_bytes}", f"-DVECTOR_REGISTERS={target.vector_registers}")
    return (*_FLAGS, *features, *shape)


@functools.cache
def _load(path: Path) -> Any:
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise TargetError(f"the measuring loops in {path} do not load, though as compiled: {error}") from error
    cpus, result = ctypes.POINTER(ctypes.c_int), ctypes.POINTER(_Result)
    library.convtune_probe_multiply_add.argtypes = [ctypes.c_int, cpus, ctypes.c_double, result]
    library.convtune_probe_memory.argtypes = [ctypes.c_int, cpus, ctypes.c_int64, ctypes.c_double, result, result]
    return library


def build(compiler: Compiler, flags: tuple[str, ...]) -> Path:
    """The compiled probe.c in the user's cache, once for each source, compiler and flags; again where damaged.

    Raises:
        TargetError: the compiler refuses.
    """
    key = hashlib.sha256(repr((compiler, flags)).encode() + _SOURCE.read_bytes()).hexdigest()[:16]
    home = cache_dir() / f"probe-{compiler.machine}-{key}"

    def compile_into(work: Path) -> None:
        if failure := compiler.run([*flags, "-o", str(work / "probe.so"), str(_SOURCE)]):
            raise TargetError(f"cannot compile the measuring loops: {failure}")

    make_once(home, compile_into)
    return home / "probe.so"


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Makes the file whole or not at all, whoever else does so at the same time."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".probe-") as scratch:
        unfinished = Path(scratch) / path.name
        write(unfinished)
        unfinished.replace(path)
