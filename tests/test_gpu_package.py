"""Packages for GPUs: compiled and verified on a GPU that is a fake, called with NumPy arrays and with a GPU's."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import fake_gpu
import numpy as np
import pytest

import convtune
from convtune.reference import random_operands
from convtune.runtime import CompiledConv
from convtune.runtime.errors import KernelError, NoGpuError
from convtune.runtime.manifest import Manifest
from convtune.runtime.names import MANIFEST_NAME
from convtune.targets.cuda_driver import first_gpu

SPEC = convtune.ConvSpec(
    "depthwise_separable",
    in_channels=6,
    out_channels=10,
    in_size=(5, 7),
    kernel=3,
    padding=1,
    layout="NHWC",
    bias=True,
    residual=True,
    activation="relu",
)

COMPILE = """
import sys
import convtune, fake_gpu, numpy as np
from convtune import targets
from convtune.measure import Limits, gpu_bench
from convtune.space import Candidate
gpu_bench.GpuBench.builder = fake_gpu.FakeBuilder

spec, candidate = convtune.ConvSpec.parse(sys.argv[1]), Candidate("gpu_threads", {})
target = targets.resolve("cuda")
assert target.is_host and target.arch == "sm_80", target
with gpu_bench.GpuBench(target) as bench:
    (built,) = bench.build(spec, [candidate])
    assert built.status == "ok", built
    outcome = bench.measure(spec, built, 2e-5)
    print(outcome.status, outcome.message, outcome.error, set(outcome.times_us), bench.finals(spec, [built], 3))
    print(sorted(outcome.resources))
conv = convtune.compile(spec, target, candidate=candidate, archs=["sm_90"])
print(conv.verified, conv.error < 2e-5, conv)
print({*conv.time(4).round(9)})
conv.save(sys.argv[2])
"""


@pytest.fixture(scope="module")
def operands(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with the arrays of a call, and what it gives."""
    of = random_operands(SPEC, 3)
    weights = {f"weight{i}": weight for i, weight in enumerate(of.weights)}
    biases = {f"bias{i}": bias for i, bias in enumerate(of.biases)}
    path = tmp_path_factory.mktemp("operands") / "operands.npz"
    np.savez(path, x=of.x, residual=of.residual, y=of.reference(SPEC), **weights, **biases)
    return path


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A package, and what was printed when it was compiled."""
    try:
        convtune.cuda.toolkit.find()
    except convtune.errors.TargetError as error:
        pytest.skip(str(error))
    package = tmp_path_factory.mktemp("gpu") / "kernels" / "separable"
    done = fake_gpu.run(COMPILE, str(SPEC), package)
    assert done.returncode == 0, done.stderr
    return package, done.stdout


def test_on_a_gpu_candidates_are_verified_and_timed_there(compiled: tuple[Path, str]) -> None:
    """By the fake's clock each of the two launches takes 1 ms."""
    measured, resources, package, times = compiled[1].splitlines()
    assert measured.startswith("ok  ") and measured.endswith("{2000.0} [(2000.0, 2000.0, 2000.0)]")
    assert len(resources.split(",")) == 2
    assert package.startswith("device True CompiledConv(") and "emulation" not in package
    assert times == "{np.float64(0.002)}"


def test_its_manifest_says_what_it_is_for(compiled: tuple[Path, str]) -> None:
    manifest = Manifest.from_json((compiled[0] / MANIFEST_NAME).read_text())
    target = manifest.target
    assert (target.name, target.archs, target.ptx, target.on_gpu) == ("cuda", ("sm_80", "sm_90"), "sm_80", True)
    assert manifest.verified == "device"
    assert Manifest.from_json(manifest.to_json()) == manifest


CALL = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from kernels import separable as conv
of = dict(np.load(sys.argv[2]))
weight, bias = (of["weight0"], of["weight1"]), tuple(of[f"bias{i}"] for i in range(2) if f"bias{i}" in of)
right = lambda y: bool(np.abs(y - of["y"]).max() < 1e-5 * np.abs(of["y"]).max())
from kernels.separable._runtime.errors import KernelError
try:
    exec(sys.argv[3])
except KernelError as error:
    print(error)
"""

# An array of a library for GPUs. It lies on the fake GPU, and may say that it lies on another one.
TENSOR = """
import ctypes
from kernels.separable._runtime.tensor import Tensor as Raw

class Managed(ctypes.Structure):
    _fields_ = [("tensor", Raw), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]

make = ctypes.pythonapi.PyCapsule_New
make.restype, make.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]

class Tensor:
    def __init__(self, array, device=0, strides=None, code=2):
        self.memory, self.device = conv.kernel.upload(np.ascontiguousarray(array), 0), device
        self.shape, self.dtype, self.strides, self.code = array.shape, array.dtype, strides, code
        self.kept = []

    def __dlpack_device__(self):
        return (2, self.device)

    def __dlpack__(self, *, stream):
        assert stream == 1, stream
        managed, shape = Managed(), (ctypes.c_int64 * len(self.shape))(*self.shape)
        raw = managed.tensor
        raw.data, raw.device_type, raw.device_id, raw.ndim = self.memory.address, 2, self.device, len(self.shape)
        raw.code, raw.bits, raw.lanes, raw.shape = self.code, 8 * self.dtype.itemsize, 1, shape
        if self.strides:
            strides = (ctypes.c_int64 * len(self.shape))(*self.strides)
            self.kept.append(strides)
            raw.strides = ctypes.addressof(strides)
        self.kept += [managed, shape]
        return make(ctypes.addressof(managed), b"dltensor", None)

    def new_empty(self, shape):
        return Tensor(np.full(shape, np.nan, self.dtype), self.device)

    def numpy(self):
        return conv.kernel.download(self.memory)

x, residual = Tensor(of["x"]), Tensor(of["residual"])
packed = conv.pack(weight, bias)
"""


def printed(package: Path, operands: Path, code: str, **environment: str) -> str:
    done = fake_gpu.run(CALL, package.parent.parent, operands, code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_numpy_arrays_go_there_and_back(compiled: tuple[Path, str], operands: Path, tmp_path: Path) -> None:
    code = """
packed = conv.pack(weight, bias)
for _ in range(3):
    print(right(conv.run(of["x"], packed, residual=of["residual"])))
out = np.empty((*of["y"].shape[::-1],), "f").T
print(conv.run(of["x"][:, :, ::-1].copy()[:, :, ::-1], packed, residual=of["residual"], out=out) is out, right(out))
print(right(conv(of["x"], weight, bias, residual=of["residual"])))
"""
    log = tmp_path / "log"
    assert printed(compiled[0], operands, code, FAKE_CUDA_LOG=str(log)).split() == ["True"] * 6
    copies = [line for line in log.read_text().splitlines() if line.startswith("to GPU")]
    of = np.load(operands)
    once = [f"to GPU {of[name].nbytes}" for name in of.files if name.startswith(("weight", "bias"))]
    for line in once:
        assert copies.count(line) == 2 * once.count(line), "uploaded once for each pack()"


def test_a_gpus_arrays_stay_there(compiled: tuple[Path, str], operands: Path, tmp_path: Path) -> None:
    code = f"""{TENSOR}
y = conv.run(x, packed, residual=residual)
print(type(y).__name__, y is not x)
mark = open(sys.argv[4], "a")
mark.write("again\\n"), mark.flush()
again = conv.run(x, packed, residual=residual, out=y)
mark.write("done\\n"), mark.flush()
print(again is y, right(y.numpy()))
"""
    log = tmp_path / "log"
    done = fake_gpu.run(CALL, compiled[0].parent.parent, operands, code, log, FAKE_CUDA_LOG=str(log))
    assert done.stdout == "Tensor True\nTrue True\n", done.stderr
    calls = log.read_text().splitlines()
    assert [line.partition(" ")[0] for line in calls[calls.index("again") + 1 : calls.index("done")]] == ["launch"] * 2


def test_arrays_of_both_kinds_may_be_mixed(compiled: tuple[Path, str], operands: Path) -> None:
    code = f"""{TENSOR}
y = conv.run(of["x"], packed, residual=residual)
print(type(y).__name__, right(y))
y = conv.run(x, packed, residual=of["residual"])
print(type(y).__name__, right(y.numpy()))
out = np.empty(of["y"].shape, "f")
print(conv.run(x, packed, residual=residual, out=out) is out, right(out))
on_gpu = conv.pack(tuple(map(Tensor, weight)), tuple(map(Tensor, bias)))
print(right(conv.run(x, on_gpu, residual=residual).numpy()))
"""
    assert printed(compiled[0], operands, code).splitlines() == ["ndarray True", "Tensor True", "True True", "True"]


REFUSED = {
    "x = Tensor(of['x'], strides=(1, 2, 3, 4))": "x is on a GPU and not C-contiguous; make a contiguous copy",
    "x = Tensor(of['x'], code=4)": "x has DLPack dtype (4, 32, 1); kernels take NumPy's numbers",
    "x = Tensor(of['x'][:, :4])": "x has shape (1, 4, 7, 6); this kernel takes (1, 5, 7, 6)",
    "x = Tensor(of['x'].astype('f8'))": "x has dtype float64; this kernel takes float32",
    "residual = Tensor(of['residual'], device=1)": "residual is on GPU 1, another array on GPU 0",
    "x = Tensor(of['x'], device=5)": "there is no GPU 5: the driver sees 1",
    "x.memory.address += 4": "x starts at no multiple of 64 bytes; copy it first",
    "del Tensor.new_empty": "there is no empty_like for results like Tensor: pass out=",
}


@pytest.mark.parametrize("change", REFUSED)
def test_a_gpus_arrays_that_do_not_fit_are_refused(compiled: tuple[Path, str], operands: Path, change: str) -> None:
    said = printed(compiled[0], operands, f"{TENSOR}{change}\nconv.run(x, packed, residual=residual)")
    assert REFUSED[change] in said and "\n" not in said


def test_results_like_cupys_are_made_on_the_gpu_of_x(compiled: tuple[Path, str], operands: Path) -> None:
    code = f"""{TENSOR}
del Tensor.new_empty
class Namespace:
    device = 0
    def empty_like(self, array, shape):
        return Tensor(np.full(shape, np.nan, array.dtype), self.device)
Tensor.__array_namespace__ = lambda self: Namespace()
print(right(conv.run(x, packed, residual=residual).numpy()))
Namespace.device = 1
conv.run(x, packed, residual=residual)
"""
    right, refused = printed(compiled[0], operands, code).splitlines()
    assert right == "True"
    assert refused == "x is on DLPack device (2, 0), its library makes arrays on (2, 1); pass out="


def test_a_package_opens_packs_and_keeps_weights_without_a_gpu(
    compiled: tuple[Path, str], operands: Path, tmp_path: Path
) -> None:
    of = np.load(operands)
    conv = CompiledConv(compiled[0])
    weight = (of["weight0"], of["weight1"])
    bias = tuple(of[name] for name in of.files if name.startswith("bias"))
    conv.fix(weight, bias if len(bias) > 1 else bias[0])
    conv.save(tmp_path / "kernels" / "separable")
    code = "print(right(conv(of['x'], residual=of['residual'])))"
    assert printed(tmp_path / "kernels" / "separable", operands, code) == "True"
    if first_gpu().device:
        pytest.skip("this machine has a GPU")
    with pytest.raises(NoGpuError, match=r"^this kernel needs an NVIDIA GPU"):
        conv(of["x"], residual=of["residual"])


def test_a_gpus_package_that_says_it_is_a_cpus_is_refused(compiled: tuple[Path, str], tmp_path: Path) -> None:
    shutil.copytree(compiled[0], tmp_path / "separable")
    path = tmp_path / "separable" / MANIFEST_NAME
    record = json.loads(path.read_text())
    del record["target"]["archs"], record["target"]["ptx"]
    path.write_text(json.dumps(record))
    with pytest.raises(KernelError, match=r"^manifest.json: target: archs are \[\], and the kernel is for a GPU$"):
        CompiledConv(tmp_path / "separable")


def test_running_out_of_the_gpus_memory_is_a_status_of_its_own(tmp_path: Path) -> None:
    script = """
import sys
import convtune, fake_gpu
from convtune import targets
from convtune.errors import TargetError
from convtune.measure import gpu_bench
from convtune.space import Candidate
import os
gpu_bench.GpuBench.builder = fake_gpu.FakeBuilder
spec, candidate = convtune.ConvSpec.parse(sys.argv[1]), Candidate("gpu_threads", {})
target = targets.resolve("cuda")
with gpu_bench.GpuBench(target) as bench:
    for memory, failure in (("20000", ""), ("1000000", "cuLaunchKernel=700"), ("1000000", ""), ("0", "cuInit=100")):
        os.environ.update(FAKE_CUDA_MEMORY=memory, FAKE_CUDA_FAIL=failure)
        bench._device.stop()
        (built,) = bench.build(spec, [candidate])
        try:
            outcome = bench.measure(spec, built, 2e-5)
            print(outcome.status, outcome.message)
        except TargetError as error:
            print("gone:", error)
"""
    small = convtune.ConvSpec("pointwise", in_channels=3, out_channels=2, in_size=4, kernel=1, layout="NWC")
    done = fake_gpu.run(script, str(small))
    memory, failed, right, gone = done.stdout.splitlines()
    assert memory.startswith("out_of_memory while running: ") and "CUDA_ERROR_OUT_OF_MEMORY" in memory
    assert failed.startswith("error while running: ") and "CUDA_ERROR_700" in failed
    assert right == "ok "
    assert gone == "gone: target 'cuda': this kernel needs an NVIDIA GPU; the driver sees none"


def test_a_cpus_kernel_refuses_a_gpus_array(tmp_path: Path) -> None:
    class OnGpu:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self, **_: object) -> object:
            raise AssertionError("it must not be asked")

    spec = convtune.ConvSpec("pointwise", in_channels=3, out_channels=2, in_size=4, kernel=1, layout="NWC")
    conv = convtune.compile(spec)
    with pytest.raises(KernelError, match=r"x is on DLPack device \(2, 0\); it must be in the CPU's memory"):
        conv(OnGpu(), np.ones((2, 3, 1), np.float32))


def test_a_gpu_that_is_here_runs_what_was_compiled(tmp_path: Path) -> None:
    """The only test that needs NVIDIA's hardware; where it runs, nothing in it is a fake."""
    from convtune import targets

    target = targets.resolve("cuda")
    if not target.is_host:
        pytest.skip(target.notice)
    spec = SPEC.replace(in_size=(33, 35)) if hasattr(SPEC, "replace") else SPEC
    done = subprocess.run(
        [sys.executable, "-m", "convtune.cli", "verify", "--target", "cuda", str(spec)],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
