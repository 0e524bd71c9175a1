"""Kernels run on convtune's own runtime: results, threads, fork, concurrency, errors, scratch memory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_kernels import COLUMNS, ROWS, random_aligned, stencil, stencil_library

from convtune.runtime.arrays import empty_aligned
from convtune.runtime.errors import KernelError
from convtune.runtime.kernel import Kernel
from convtune.runtime.names import RUNTIME_NAME


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stencil_library(tmp_path_factory.mktemp("stencil"))


@pytest.fixture
def kernel(library: Path) -> Kernel:
    return Kernel(library)


def poisoned() -> np.ndarray:
    y = empty_aligned((ROWS, COLUMNS), np.float32)
    y[...] = np.nan
    return y


def check(kernel: Kernel, seed: int) -> None:
    x, y = random_aligned((ROWS, COLUMNS), seed), poisoned()
    kernel([x, y])
    np.testing.assert_allclose(y, stencil(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_result_on_any_number_of_threads(kernel: Kernel, threads: int) -> None:
    before = kernel.num_threads
    kernel.num_threads = threads
    try:
        assert kernel.num_threads == threads
        for seed in range(20):
            check(kernel, seed)
    finally:
        kernel.num_threads = before


def test_time_calls_the_kernel_and_gives_seconds_per_call(kernel: Kernel) -> None:
    x, y = random_aligned((ROWS, COLUMNS)), poisoned()
    seconds = kernel.time([x, y], number=3, repeat=4)
    assert seconds.shape == (4,) and seconds.dtype == np.float64
    assert (seconds > 0).all()
    np.testing.assert_allclose(y, stencil(x), rtol=1e-5, atol=1e-5)


def test_a_bound_call_can_take_other_arrays(kernel: Kernel) -> None:
    call = kernel.prepare([random_aligned((ROWS, COLUMNS), 1), poisoned()])
    call()
    x, y = random_aligned((ROWS, COLUMNS), 2), poisoned()
    assert call.bind(0, x) and call.bind(1, y)
    call()
    np.testing.assert_allclose(y, stencil(x), rtol=1e-5, atol=1e-5)


def test_two_threads_may_call_at_once(kernel: Kernel) -> None:
    before = kernel.num_threads
    kernel.num_threads = 3
    failures: list[BaseException] = []

    def call_often(first_seed: int) -> None:
        try:
            for seed in range(first_seed, first_seed + 200):
                check(kernel, seed)
        except BaseException as error:
            failures.append(error)

    users = [threading.Thread(target=call_often, args=(1000 * n,)) for n in range(3)]
    for user in users:
        user.start()
    for user in users:
        user.join(timeout=120)
    kernel.num_threads = before
    assert not any(user.is_alive() for user in users)
    assert not failures


def test_two_libraries_share_one_pool(kernel: Kernel, tmp_path: Path) -> None:
    other = Kernel(stencil_library(tmp_path, scale=-2.0))
    before = kernel.num_threads
    kernel.num_threads = 7
    try:
        assert other.num_threads == 7
        x, y = random_aligned((ROWS, COLUMNS)), poisoned()
        other([x, y])
        np.testing.assert_allclose(y, stencil(x, scale=-2.0), rtol=1e-5, atol=1e-5)
        check(kernel, 3)
    finally:
        kernel.num_threads = before


FORK = """
import os, sys
from pathlib import Path
sys.path[:0] = sys.argv[2:]
from runtime_kernels import COLUMNS, ROWS, random_aligned, stencil
from convtune.runtime.kernel import Kernel
import numpy as np

kernel = Kernel(Path(sys.argv[1]))
kernel.num_threads = 3
x, y = random_aligned((ROWS, COLUMNS)), random_aligned((ROWS, COLUMNS))
call = kernel.prepare([x, y])
for generation in range(20):
    call()
    child = os.fork()
    if child == 0:
        y[...] = 0
        for _ in range(20):
            call()
        os._exit(0 if np.allclose(y, stencil(x), rtol=1e-5, atol=1e-5) and kernel.num_threads == 3 else 1)
    assert os.waitpid(child, 0)[1] == 0, "the child failed"
print("ok")
"""


def run_script(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )


def test_kernels_run_after_fork(library: Path) -> None:
    here = Path(__file__).parent
    done = run_script(FORK, str(library), str(here), str(here.parent))
    assert done.stdout == "ok\n", done.stderr


COUNT = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).convtune_num_threads())"


def test_number_of_threads_comes_from_the_environment(library: Path) -> None:
    assert run_script(COUNT, str(library), CONVTUNE_NUM_THREADS="5").stdout == "5\n"


def test_number_of_threads_is_the_number_of_usable_cpus(library: Path) -> None:
    pin = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert run_script(pin + COUNT, str(library), CONVTUNE_NUM_THREADS="").stdout == "1\n"
    usable = len(os.sched_getaffinity(0))
    assert run_script(COUNT, str(library), CONVTUNE_NUM_THREADS="").stdout == f"{usable}\n"


@pytest.mark.parametrize("value", ["many", "0", "-3", "4x", "100000"])
def test_a_bad_number_of_threads_is_reported(library: Path, value: str) -> None:
    done = run_script(COUNT, str(library), CONVTUNE_NUM_THREADS=value)
    usable = len(os.sched_getaffinity(0))
    assert done.stdout == f"{usable}\n"
    assert f"CONVTUNE_NUM_THREADS={value} is not a number from 1 to 1024; using {usable}" in done.stderr


@pytest.mark.parametrize("count", [0, -1, 1025, 10**12, 1.5, True, "2", None])
def test_wrong_number_of_threads_is_refused(kernel: Kernel, count: Any) -> None:
    before = kernel.num_threads
    with pytest.raises(KernelError) as caught:
        kernel.num_threads = count
    assert str(caught.value) == f"num_threads is {count!r}; it must be an integer from 1 to 1024"
    assert kernel.num_threads == before


def test_scratch_memory_can_be_filled(kernel: Kernel) -> None:
    try:
        kernel.fill_scratch(0xFF)
        check(kernel, 0)
        with pytest.raises(KernelError, match="byte is 256; it must be from 0 to 255"):
            kernel.fill_scratch(256)
    finally:
        kernel.fill_scratch(None)


def test_the_kernels_own_message_surfaces(kernel: Kernel) -> None:
    with pytest.raises(KernelError, match=r"shape\[0\] on argument #1 .*expected 37"):
        kernel([random_aligned((ROWS, COLUMNS)), random_aligned((ROWS + 1, COLUMNS))])
    with pytest.raises(KernelError, match="Expected 2 arguments"):
        kernel([random_aligned((ROWS, COLUMNS))])
    with pytest.raises(KernelError, match="Expected 2 arguments"):
        kernel.time([random_aligned((ROWS, COLUMNS))], number=1, repeat=1)
    check(kernel, 0)


def test_arrays_a_kernel_cannot_read_are_refused(kernel: Kernel) -> None:
    x, y = random_aligned((ROWS, COLUMNS)), poisoned()
    shifted = empty_aligned((ROWS * COLUMNS + 1,), np.float32)[1:].reshape(ROWS, COLUMNS)
    with pytest.raises(KernelError, match=r"argument 0 lies at address .* multiples of 64"):
        kernel([shifted, y])
    with pytest.raises(KernelError, match=r"argument 1 lies at .* with strides \(4, 148\)"):
        kernel([x, random_aligned((COLUMNS, ROWS)).T])
    with pytest.raises(KernelError, match="argument 0 has dtype >f4"):
        kernel([x.astype(">f4"), y])


def test_the_alignment_of_each_argument_is_the_callers(kernel: Kernel) -> None:
    shifted = empty_aligned((ROWS * COLUMNS + 1,), np.float32)[1:].reshape(ROWS, COLUMNS)
    kernel.prepare([shifted, shifted], [4, 2])
    with pytest.raises(KernelError, match=r"argument 1 lies at address .* at multiples of 8"):
        kernel([shifted, shifted], [4, 8])
    with pytest.raises(KernelError, match="2 arguments and 1 alignments"):
        kernel.prepare([shifted, shifted], [4])


@pytest.mark.parametrize(("number", "repeat"), [(0, 1), (1, "a"), (1, 1.5), (True, 1)])
def test_timing_nothing_is_refused(kernel: Kernel, number: Any, repeat: Any) -> None:
    said = f"number is {number!r} and repeat is {repeat!r}; both must be integers of at least 1"
    with pytest.raises(KernelError, match=re.escape(said)):
        kernel.time([random_aligned((ROWS, COLUMNS)), poisoned()], number=number, repeat=repeat)


def test_a_file_that_is_no_kernel_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("not a library")
    with pytest.raises(KernelError, match=r"cannot load kernel .*text.so"):
        Kernel(tmp_path / "text.so")
    with pytest.raises(KernelError, match=r"cannot load kernel .*absent.so"):
        Kernel(tmp_path / "absent.so")


@pytest.mark.parametrize("symbol", ["convtune_kernel_error", "convtune_place_threads", "convtune_fill_workspace"])
def test_a_runtime_that_lacks_a_function_is_refused(library: Path, tmp_path: Path, symbol: str) -> None:
    for file in (library, library.with_name(RUNTIME_NAME)):
        renamed = file.read_bytes().replace(symbol.encode() + b"\0", b"x" * len(symbol) + b"\0")
        (tmp_path / file.name).write_bytes(renamed)
    # in a process of its own: this one has the whole runtime loaded, and would find the function there
    script = "import sys; from convtune.runtime.kernel import Kernel; Kernel(sys.argv[1])"
    done = run_script(script, str(tmp_path / library.name))
    assert "KernelError: cannot load kernel" in done.stderr and symbol in done.stderr.splitlines()[-1]
