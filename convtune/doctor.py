"""Says whether convtune can do its work on this machine, what is missing for what, and how to get it."""

from __future__ import annotations

import ctypes
import importlib.metadata
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from convtune import __version__, probe, targets
from convtune.cuda import toolkit
from convtune.errors import ConvtuneError, TargetError
from convtune.linker import build_runtime, find_compiler
from convtune.paths import cache_dir, log_path
from convtune.targets import CpuTarget, GpuTarget
from convtune.targets.cuda_driver import first_gpu
from convtune.targets.gpu import OLDEST

State = Literal["ok", "absent", "broken"]

OLDEST_PYTHON = (3, 10)
# The FFI library 0.1.15, which pip takes by itself, crashes with this TVM as soon as MetaSchedule starts.
PINS: Mapping[str, str] = {"apache-tvm": "0.27.0.post1", "apache-tvm-ffi": "0.1.14.post1"}
REQUIRED = (
    "numpy",
    "scipy",
    "xgboost-cpu",
    "psutil",
    "cloudpickle",
    "tornado",
    "click",
    "rich",
    "tabulate",
    "platformdirs",
)
_LOAD_TVM = "import tvm; print(tvm.__version__, tvm.get_global_func('target.llvm_version_major')())"
_LOAD_TIMEOUT_S = 120


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    state: "ok"; "absent", what it is for cannot be done and the rest can; "broken", convtune cannot do its main job, or
    an nvcc that is there or is named cannot do its own.
    value: what was found, for people; figures: the same as numbers, units in their names. remedy: a command or an
    instruction, empty where there is nothing to do.
    """

    subject: str
    state: State
    value: str
    purpose: str
    remedy: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """A part that convtune runs without. distribution: its name for pip; program: where a program will do instead."""

    subject: str
    distribution: str
    purpose: str
    remedy: str
    program: str = ""


_PEERS, _REPORT = "pip install 'convtune[peers]'", "pip install 'convtune[report]'"
OPTIONAL = (
    Part("onnx", "onnx", "workloads from ONNX files", "pip install 'convtune[onnx]'"),
    Part("torch", "torch", "PyTorch tensors as arguments, and `convtune bench` against PyTorch", _PEERS),
    Part("torchvision", "torchvision", "`convtune bench` of deformable layers against it", _PEERS),
    Part("onnxruntime", "onnxruntime", "`convtune bench` against ONNX Runtime", _PEERS),
    Part("openvino", "openvino", "`convtune bench` against OpenVINO", _PEERS),
    Part("jinja2", "jinja2", "pages of `convtune report`", _REPORT),
    Part("vl-convert", "vl-convert-python", "the same: their pictures", _REPORT),
    Part("ziglang", "ziglang", "a C compiler where there is none, or for other machines", "pip install ziglang"),
    Part("unicorn", "unicorn", "emulating ARM CPUs, to verify and tune for them", "pip install 'convtune[arm]'"),
    Part("capstone", "capstone", "the same: what its instructions are", "pip install 'convtune[arm]'"),
    Part("pyelftools", "pyelftools", "the same: loading its libraries", "pip install 'convtune[arm]'"),
)
_NVCC_WHEELS = (
    "pip install 'nvidia-cuda-nvcc==13.0.*' 'nvidia-cuda-crt==13.0.*' 'nvidia-cuda-runtime==13.0.*' "
    "'nvidia-cuda-cccl==13.0.*' 'nvidia-nvvm==13.0.*'"
)


def examine(measure: bool = True) -> list[Finding]:
    """Everything looked at, in the order to read it. Takes three seconds, one without `measure`.

    measure: also measure the FMA peak and the memory bandwidth, and remember them for this machine.
    """
    findings = [
        Finding("convtune", "ok", __version__, "all"),
        _python(),
        *map(_pinned, PINS),
        _tvm_loads(),
        _required(),
        _compiler(),
        _directories(),
        _runtime(),
    ]
    try:
        target = targets.native()
    except TargetError as error:
        findings.append(Finding("CPU", "absent", str(error), "tuning, and running kernels here"))
    else:
        findings.append(_cpu(target))
        if measure:
            findings += _peaks(target)
    return [*findings, *(_optional(part) for part in OPTIONAL), _nvcc(), _gpu()]


def _python() -> Finding:
    oldest = ".".join(map(str, OLDEST_PYTHON))
    good = sys.version_info[:2] >= OLDEST_PYTHON
    remedy = "" if good else f"install Python {oldest} or newer, and convtune in it"
    return Finding("Python", "ok" if good else "broken", platform.python_version(), f"all; {oldest} or newer", remedy)


def _version(distribution: str) -> str:
    """Its version, or nothing where it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _pinned(distribution: str) -> Finding:
    wanted, found = PINS[distribution], _version(distribution)
    purpose = f"compiling; {wanted} exactly, others crash or differ"
    if found == wanted:
        return Finding(distribution, "ok", found, purpose)
    return Finding(distribution, "broken", found or "not installed", purpose, f"pip install {distribution}=={wanted}")


def _tvm_loads() -> Finding:
    """In a process of its own: with a wrong library TVM crashes."""
    purpose = "compiling"
    command = [sys.executable, "-c", _LOAD_TVM]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return Finding("TVM", "broken", f"does not load in {_LOAD_TIMEOUT_S} s", purpose, _reinstall())
    if done.returncode == 0:
        version, llvm = done.stdout.split()[-2:]
        return Finding("TVM", "ok", f"{version} with LLVM {llvm} loads", purpose)
    if done.returncode < 0:
        said = f"crashes on import with {signal.Signals(-done.returncode).name}"
    else:
        said = f"does not load: {(done.stderr.strip().splitlines() or ['it said nothing'])[-1]}"
    return Finding("TVM", "broken", said, purpose, _reinstall())


def _reinstall() -> str:
    return "pip install --force-reinstall " + " ".join(f"{name}=={version}" for name, version in PINS.items())


def _required() -> Finding:
    missing = [name for name in REQUIRED if not _version(name)]
    if missing:
        remedy = f"pip install {' '.join(missing)}"
        return Finding("packages", "broken", f"not installed: {', '.join(missing)}", "all", remedy)
    return Finding("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in REQUIRED), "all")


def _compiler() -> Finding:
    purpose = "linking kernels; $CONVTUNE_CC names another one"
    try:
        compiler = find_compiler()
    except TargetError as error:
        return Finding("C compiler", "broken", str(error), purpose, "pip install ziglang")
    return Finding("C compiler", "ok", f"{' '.join(compiler.command)}: {compiler.version}", purpose)


def _directories() -> Finding:
    purpose = "compiled kernels and your log; $CONVTUNE_CACHE and $CONVTUNE_LOG name other places"
    try:
        return Finding("files", "ok", f"cache {cache_dir()}, log {log_path()}", purpose)
    except (ConvtuneError, ModuleNotFoundError) as error:
        return Finding("files", "broken", str(error), purpose, "set CONVTUNE_CACHE to a directory of yours, mode 0700")


def _runtime() -> Finding:
    """Compiled here and loaded, as every kernel does."""
    purpose = "linking and running kernels"
    try:
        library = build_runtime(find_compiler(), cache_dir()).library
        threads = ctypes.CDLL(str(library)).convtune_num_threads()
    except (ConvtuneError, ModuleNotFoundError, OSError) as error:
        return Finding("runtime", "broken", str(error), purpose, "mend what is broken above, then again")
    return Finding("runtime", "ok", f"compiles, and loads with {threads} threads", purpose)


def _cpu(target: CpuTarget) -> Finding:
    sizes = (("L1d", target.l1d_bytes), ("L2", target.l2_bytes), ("L3", target.l3_bytes))
    caches = ", ".join(f"{name} {size >> 10} KiB" for name, size in sizes if size)
    value = (
        f"{target.model}: {target.mcpu}, {target.vector_registers} vectors of {8 * target.vector_bytes} bits, "
        f"{target.threads} threads, {caches}"
    )
    if target.features:
        value += f", {' '.join(target.features)}"
    return Finding("CPU", "ok", value, "tuning, and running kernels here", "", {"threads": target.threads})


def _peaks(target: CpuTarget) -> list[Finding]:
    limit, memory = "the limit of dense kernels", "the limit of kernels that hardly compute"
    try:
        core = probe.fma_peak_gflops(target, threads=1)
        every = probe.fma_peak_gflops(target)
        bandwidth = probe.bandwidth_gbs(target)
        probe.remember(target, probe.Peaks(core, every, bandwidth))
    except (ConvtuneError, ModuleNotFoundError) as error:
        purpose = "the share of the peak in tables"
        return [Finding("peaks", "absent", str(error), purpose, "mend what is broken above, then again")]
    return [
        Finding("FMA peak, one core", "ok", f"{core:.0f} GFLOP/s", limit, "", {"gflops": core}),
        Finding(
            "FMA peak, all threads", "ok", f"{every:.0f} GFLOP/s on {target.threads}", limit, "", {"gflops": every}
        ),
        Finding(
            "memory, all threads",
            "ok",
            f"read {bandwidth.read_gbs:.1f} GB/s, triad {bandwidth.triad_gbs:.1f} GB/s",
            memory,
            "",
            {"read_gbs": bandwidth.read_gbs, "triad_gbs": bandwidth.triad_gbs},
        ),
    ]


def _nvcc() -> Finding:
    purpose = "compiling for --target cuda; $CUDA_PATH names another one"
    try:
        found = toolkit.find()
        archs = found.archs()
    except toolkit.NvccError as error:
        state: State = "absent" if error.missing else "broken"
        return Finding("nvcc", state, str(error), purpose, error.remedy or _NVCC_WHEELS)
    return Finding("nvcc", "ok", f"{found.nvcc}: {found.version}, for {archs[0]} to {archs[-1]}", purpose)


def _gpu() -> Finding:
    purpose = "running and timing CUDA kernels here; without one they are emulated, and their times estimated"
    remedy = f"install NVIDIA's driver where there is a GPU of sm_{OLDEST} or newer"
    found = first_gpu()
    if found.device is None:
        return Finding("GPU", "absent", found.why_none, purpose, remedy)
    try:
        target = targets.resolve("cuda")
    except TargetError as error:
        return Finding("GPU", "absent", str(error), purpose, remedy)
    assert isinstance(target, GpuTarget)
    version = f"{found.device.driver // 1000}.{found.device.driver % 1000 // 10}"
    value = (
        f"{target.model}: {target.arch}, {target.sms} SMs, {target.clock_mhz} MHz, {target.dram_gbs:.0f} GB/s, "
        f"driver for CUDA {version}"
    )
    return Finding("GPU", "ok", value, purpose, "", {"sms": target.sms, "dram_gbs": target.dram_gbs})


def _optional(part: Part) -> Finding:
    found = _version(part.distribution) or (part.program and shutil.which(part.program)) or ""
    if found:
        return Finding(part.subject, "ok", found, part.purpose)
    return Finding(part.subject, "absent", "not installed", part.purpose, part.remedy)
