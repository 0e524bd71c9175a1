"""The launcher in a GPU's package, on a driver that is not NVIDIA's: images, launches, memory, errors, time."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import fake_gpu
import pytest

from convtune.cuda import launcher, toolkit
from convtune.cuda.program import Array, Launch, Program
from convtune.cuda.tensor_cores import prelude
from convtune.errors import BuildError, TargetError
from convtune.linker import find_compiler
from convtune.paths import cache_dir

ELEMENTS = 100
SOURCE = """
extern "C" __global__ void __launch_bounds__(32) first(float* __restrict__ ws, float* __restrict__ x) {
  int i = ((((int)blockIdx.x) * 32) + ((int)threadIdx.x));
  if (i < 100) { ws[i] = (x[i] * 2.000000e+00f); }
}
extern "C" __global__ void __launch_bounds__(32) second(float* __restrict__ y, float* __restrict__ bias,
                                                        float* __restrict__ ws) {
  int i = ((((int)blockIdx.x) * 32) + ((int)threadIdx.x));
  if (i < 100) { y[i] = (ws[i] + bias[i]); }
}
"""
X, BIAS, Y, WS = (Array(name, ELEMENTS, "float32") for name in ("x", "bias", "y", "ws"))
FIRST = Launch("first", ("ws", "x"), (4, 1, 1), (32, 1, 1), 0)
SECOND = Launch("second", ("y", "bias", "ws"), (4, 1, 1), (32, 1, 1), 0)
PROGRAM = Program(SOURCE, (X, BIAS, Y), (WS,), (FIRST, SECOND))

# y = 2 * x + bias, called as the tests wish; a KernelError is printed
CALL = """
import sys, numpy as np
from convtune.runtime.errors import KernelError
from convtune.runtime.kernel import Kernel
kernel = Kernel(sys.argv[1])
x, bias, y = np.arange(100, dtype="f"), np.full(100, 7, "f"), np.full(100, np.nan, "f")
call = kernel.prepare([x, bias, y], [4, 4, 4])
try:
    exec(sys.argv[2])
except KernelError as error:
    print(f"{type(error).__name__}: {error}")
"""
RIGHT = "call(); print(np.array_equal(y, 2 * x + 7))"

Linked = Callable[..., Path]


@pytest.fixture(scope="module")
def linked(tmp_path_factory: pytest.TempPathFactory) -> Linked:
    """Links a program, by default PROGRAM, whose images run by emulation."""
    directory = tmp_path_factory.mktemp("launcher")
    emulated = fake_gpu.emulations(PROGRAM, directory)

    def link(archs: Sequence[str] = ("sm_80",), program: Program = PROGRAM, ptx: str | None = None) -> Path:
        libraries = {launch: emulated[old] for launch, old in zip(program.launches, PROGRAM.launches)}
        images = {arch: fake_gpu.image(program, libraries, f"code for {arch}") for arch in archs}
        return launcher.link(program, images, ptx, directory, cache_dir())

    return link


def printed(library: Path, code: str = RIGHT, **environment: str) -> str:
    done = fake_gpu.run(CALL, library, code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def logged(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_program_runs_launch_after_launch(linked: Linked, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert printed(linked(), f"{RIGHT}; x += 1; y[:] = 0; {RIGHT}", FAKE_CUDA_LOG=str(log)) == "True\nTrue"
    calls = logged(log)
    assert [line for line in calls if line.startswith("launch")] == ["launch first", "launch second"] * 2
    assert sum(line.startswith("load") for line in calls) == 1
    assert sum(line.startswith("allocate") for line in calls) == 4, "memory is kept between calls"
    copies = [line for line in calls if " GPU " in line]
    assert copies == ["to GPU 400", "to GPU 400", "from GPU 400"] * 2, "y is not copied in, nor x and bias out"


def test_the_library_opens_where_there_is_no_driver(linked: Linked) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(linked()), "print(kernel.on_gpu); call()"],
        capture_output=True,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "LD_LIBRARY_PATH"},
        check=False,
    )
    first, second = done.stdout.splitlines()
    assert first == "True"
    if "libcuda.so.1" not in second:
        pytest.skip(f"this machine has NVIDIA's driver: {second}")
    assert second.startswith("NoGpuError: this kernel needs an NVIDIA GPU and its driver: libcuda.so.1: cannot open")


@pytest.mark.parametrize(
    ("message", "environment"),
    {
        "NoGpuError: this kernel needs an NVIDIA GPU; the driver sees none": {"FAKE_CUDA_FAIL": "cuInit=100"},
        "NoGpuError: the NVIDIA driver does not start: CUDA_ERROR_803 (as the test wants)": {
            "FAKE_CUDA_FAIL": "cuInit=803"
        },
        "NoGpuError: there is no GPU 0: the driver sees 0": {"FAKE_CUDA_GPUS": "0"},
        "NoGpuError: context of GPU 0, Fake GPU 0: CUDA_ERROR_46 (as the test wants)": {
            "FAKE_CUDA_FAIL": "cuDevicePrimaryCtxRetain=46"
        },
        "KernelError: kernel second: CUDA_ERROR_500 (as the test wants)": {
            "FAKE_CUDA_FAIL": "cuModuleGetFunction=500@2"
        },
        "KernelError: launching second with 4 x 1 x 1 blocks of 32 x 1 x 1 threads on Fake GPU 0: CUDA_ERROR_701 (as "
        "the test wants)": {"FAKE_CUDA_FAIL": "cuLaunchKernel=701@2"},
        "KernelError: after the kernel, copying y from GPU: CUDA_ERROR_700 (as the test wants)": {
            "FAKE_CUDA_FAIL": "cuMemcpyDtoH_v2=700"
        },
        "KernelError: MemoryError: 8592 bytes of the GPU's memory for y: CUDA_ERROR_OUT_OF_MEMORY (out of memory)": {
            "FAKE_CUDA_MEMORY": "20000"
        },
        "KernelError: MemoryError: context of GPU 0, Fake GPU 0: CUDA_ERROR_OUT_OF_MEMORY (out of memory)": {
            "FAKE_CUDA_FAIL": "cuDevicePrimaryCtxRetain=2"
        },
    }.items(),
)
def test_each_failure_is_one_line(linked: Linked, message: str, environment: dict[str, str]) -> None:
    assert printed(linked(), **environment) == message


def test_a_gpu_that_disappears_is_named_at_each_call(linked: Linked) -> None:
    lost = "NoGpuError: Fake GPU 0: CUDA_ERROR_46 (as the test wants)"
    assert printed(linked(), f"{RIGHT}; call()", FAKE_CUDA_FAIL="cuCtxPushCurrent_v2=46@2") == f"True\n{lost}"


def test_after_a_failure_memory_is_given_back_and_a_call_may_succeed(linked: Linked, tmp_path: Path) -> None:
    code = f"""
import os
try:
    call()
except KernelError as error:
    print("MemoryError" in str(error))
os.environ["FAKE_CUDA_MEMORY"] = "40000"
{RIGHT}
"""
    log = tmp_path / "log"
    assert printed(linked(), code, FAKE_CUDA_MEMORY="20000", FAKE_CUDA_LOG=str(log)) == "True\nTrue"
    assert logged(log).count("free 8592") == 2


IMAGES = {
    "75": (("sm_80",), "sm_75", "PTX"),
    "80": (("sm_80", "sm_86"), "sm_75", "code for sm_80"),
    "86": (("sm_80", "sm_86"), None, "code for sm_86"),
    "89": (("sm_90", "sm_86", "sm_80"), "sm_80", "code for sm_86"),
    "90": (("sm_80", "sm_90", "sm_90a"), None, "code for sm_90a"),
    "100": (("sm_80", "sm_90"), "sm_80", "PTX"),
    "103": (("sm_100", "sm_100a"), None, "code for sm_100"),
    "87": (("sm_80", "sm_86"), "sm_80", "PTX"),
    "120": (("sm_120",), "sm_80", "code for sm_120"),
}


@pytest.mark.parametrize("arch", IMAGES)
def test_the_image_that_suits_the_gpu_is_loaded(linked: Linked, tmp_path: Path, arch: str) -> None:
    archs, ptx, expected = IMAGES[arch]
    text = ptx and f"PTX\n{fake_gpu.image(PROGRAM, {}).decode()[:-1]}\n.target {ptx}\n"
    printed(linked(archs, ptx=text), "call()", FAKE_CUDA_ARCH=arch, FAKE_CUDA_LOG=str(tmp_path / "log"))
    assert [line for line in logged(tmp_path / "log") if line.startswith("load")] == [f"load {expected}"]


REFUSED = {
    "75": (("sm_80",), "sm_80", "code for sm_80, PTX of sm_80"),
    "86": (("sm_87",), None, "code for sm_87"),
    "87": (("sm_80", "sm_86"), None, "code for sm_80, code for sm_86"),
    "100": (("sm_80", "sm_90a"), None, "code for sm_80, code for sm_90a"),
}


@pytest.mark.parametrize("arch", REFUSED)
def test_a_gpu_without_an_image_is_named_with_those_that_have_one(linked: Linked, arch: str) -> None:
    archs, ptx, has = REFUSED[arch]
    library = linked(archs, ptx=ptx and f".target {ptx}\n")
    assert (
        printed(library, FAKE_CUDA_ARCH=arch) == f"KernelError: GPU 0, Fake GPU 0, is sm_{arch}; this kernel has {has}"
    )


def test_what_the_driver_says_of_bad_ptx_is_told(linked: Linked) -> None:
    said = printed(linked((), ptx="BROKEN\n.target sm_75\n"))
    wanted = (
        "loading the PTX of sm_75 on GPU 0, Fake GPU 0, with a driver for CUDA 13.0: line 1: not PTX: CUDA_ERROR_218"
    )
    assert said == f"KernelError: {wanted} (as the test wants)"


def test_dynamic_shared_memory_is_asked_for(linked: Linked, tmp_path: Path) -> None:
    launches = (FIRST, dataclasses.replace(SECOND, dynamic_shared_bytes=100_000))
    library = linked(program=dataclasses.replace(PROGRAM, launches=launches))
    assert printed(library, FAKE_CUDA_LOG=str(tmp_path / "log")) == "True"
    assert "attribute 8 of second = 100000" in logged(tmp_path / "log")


BAD_ARGUMENTS = {
    "3 arguments": ("kernel([x, y])", "KernelError: 2 arguments were given; the kernel takes 3"),
    "size": ("kernel([x[:99], bias, y], [1, 1, 1])", "KernelError: x has 99 elements; the kernel takes 100"),
    "dtype": ("kernel([x, bias.view('i4'), y])", "KernelError: bias has another dtype than the kernel takes"),
    "null": ("call.release(1); call()", "KernelError: bias is null"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_arguments_that_do_not_fit_are_refused(linked: Linked, case: str) -> None:
    code, message = BAD_ARGUMENTS[case]
    assert printed(
        linked(), f"from convtune.runtime.arrays import ready\nx, bias, y = map(ready, (x, bias, y))\n{code}"
    ) == (message)


def test_time_is_the_gpus_own(linked: Linked, tmp_path: Path) -> None:
    """The fake's clock: a launch takes 1 ms, filling memory 100 ms, copying nothing."""
    library, log = linked(), tmp_path / "log"
    code = "print(*call.time(5, 3).round(9)); print(np.array_equal(y, 2 * x + 7))"
    assert printed(library, code, FAKE_CUDA_LOG=str(log)) == "0.002 0.002 0.002\nTrue"
    assert logged(log).count("launch first") == 15
    assert not any(line.startswith("fill") for line in logged(log))
    flushed = tmp_path / "flushed"
    assert printed(library, code, CONVTUNE_FLUSH_L2="1", FAKE_CUDA_LOG=str(flushed)) == "0.002 0.002 0.002\nTrue"
    assert logged(flushed).count(f"fill {2 * (40 << 20)}") == 15
    said = printed(library, code, CONVTUNE_FLUSH_L2="yes")
    assert said == "KernelError: CONVTUNE_FLUSH_L2 is yes; allowed are 0 and 1"


def test_verifying_fills_workspaces_and_brings_all_arrays_back(linked: Linked, tmp_path: Path) -> None:
    log = tmp_path / "log"
    code = f"kernel.fill_scratch(255); {RIGHT}; kernel.fill_scratch(None); call()"
    assert printed(linked(), code, FAKE_CUDA_LOG=str(log)) == "True"
    calls = logged(log)
    assert calls.count("fill 4096") == 8 and calls.count("fill 400") == 1
    assert calls.count("to GPU 400") == 3 + 2 and calls.count("from GPU 400") == 3 + 1


@pytest.mark.parametrize(("index", "where"), [("i + 101", "5 bytes behind"), ("i - 3", "12 bytes before")])
def test_writing_outside_an_array_is_found_while_verifying(tmp_path: Path, index: str, where: str) -> None:
    source = SOURCE.replace("i < 100) { y[i]", f"i < 1) {{ y[{index}]")
    assert source != SOURCE
    program = dataclasses.replace(PROGRAM, source=source)
    image = fake_gpu.image(program, fake_gpu.emulations(program, tmp_path))
    library = launcher.link(program, {"sm_80": image}, None, tmp_path, cache_dir())
    said = printed(library, "call(); print('not seen'); kernel.fill_scratch(255); call()")
    assert said == f"not seen\nKernelError: the kernel wrote outside y: {where} it"


def test_threads_and_their_calls_do_not_mix(linked: Linked) -> None:
    code = """
import threading
wrong = []
def use(n):
    mine, out = x + n, np.empty(100, "f")
    own = kernel.prepare([mine, bias, out], [4, 4, 4])
    for _ in range(30):
        own()
        wrong.extend([] if np.array_equal(out, 2 * mine + 7) else [n])
users = [threading.Thread(target=use, args=(n,)) for n in range(3)]
[user.start() for user in users]
[user.join() for user in users]
print(wrong)
"""
    assert printed(linked(), code) == "[]"


def test_a_forked_process_is_told_that_it_cannot_use_the_gpu(linked: Linked) -> None:
    code = """
import os
call()
sys.stdout.flush()
if os.fork() == 0:
    try:
        call()
    except KernelError as error:
        print("was forked after the GPU was used" in str(error), flush=True)
    os._exit(0)
os.wait()
"""
    assert printed(linked(), code) == "True"


def test_an_old_driver_is_named(linked: Linked) -> None:
    old = str(fake_gpu.driver("-DOLD_DRIVER"))
    said = printed(linked(), LD_LIBRARY_PATH=old)
    assert said == "NoGpuError: the NVIDIA driver is too old: it has no cuEventDestroy_v2"


def test_linking_needs_an_image_and_ptx_that_says_its_arch(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="neither machine code nor PTX"):
        launcher.link(PROGRAM, {}, None, tmp_path, cache_dir())
    with pytest.raises(BuildError, match=r"no \.target"):
        launcher.link(PROGRAM, {}, "nothing", tmp_path, cache_dir())


def test_any_bytes_may_be_an_image(tmp_path: Path) -> None:
    data = bytes(range(256)) * 3 + b'??/ "\\ 0\n1'
    library = launcher.link(PROGRAM, {"sm_80": data}, None, tmp_path, cache_dir())
    assert data in library.read_bytes()


def test_more_shared_memory_than_an_arch_has_is_refused() -> None:
    launches = (FIRST, dataclasses.replace(SECOND, dynamic_shared_bytes=120_000))
    program = dataclasses.replace(PROGRAM, launches=launches)
    launcher.check_arch(program, "sm_80")
    with pytest.raises(BuildError, match="second needs 120000 bytes of shared memory; a block of sm_86 has 101376"):
        launcher.check_arch(program, "sm_86")


@pytest.mark.parametrize(
    ("code", "does"),
    [('asm volatile("cp.async.wait_all;");', "copies asynchronously"), (prelude(80), "multiplies by Tensor Cores")],
)
def test_instructions_that_an_arch_lacks_are_refused(code: str, does: str) -> None:
    program = dataclasses.replace(PROGRAM, source=code + SOURCE)
    for arch in ("sm_80", "sm_90a"):
        launcher.check_arch(program, arch)
    launcher.check_arch(PROGRAM, "sm_75")
    with pytest.raises(BuildError, match=f"^its schedule {does}.*, which sm_75 cannot, only sm_80 and newer; "):
        launcher.check_arch(program, "sm_75")


def test_launcher_and_fake_are_as_nvidia_declares_the_driver(tmp_path: Path) -> None:
    """Compiled with cuda.h, which refuses what differs in a type; the numbers of constants are compared too."""
    try:
        header = next(toolkit.find().nvcc.resolve().parents[1].rglob("include/cuda.h"), None)
    except TargetError as error:
        pytest.skip(str(error))
    if header is None:
        pytest.skip("no cuda.h beside nvcc")
    (tmp_path / "cuda_program.inc").write_text("\n".join(launcher._tables(PROGRAM, {"sm_80": b""}, None)))
    constants = re.findall(r"^    (CU\w+) = (\d+),$", (launcher.LAUNCHER.with_name("cuda_driver.h")).read_text(), re.M)
    assert len(constants) >= 8
    asserted = "".join(f'_Static_assert({name} == {value}, "{name}");\n' for name, value in constants)
    (tmp_path / "constants.c").write_text(f"#include CONVTUNE_CUDA_H\n{asserted}")
    flags = ["-std=c11", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", f"-DCONVTUNE_CUDA_H=<{header}>"]
    for source in (launcher.LAUNCHER, fake_gpu.SOURCE, tmp_path / "constants.c"):
        assert not (failure := find_compiler().run([*flags, "-I", str(tmp_path), str(source)])), failure
