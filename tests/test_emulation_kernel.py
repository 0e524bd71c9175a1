"""Kernels on emulated machines: right ones are right, wrong ones are found out, and what they execute is counted."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

import measure_kernels as kernels
import numpy as np
import parallel_kernels as parallel
import pytest
from unicorn import UC_HOOK_CODE

from convtune.emulation import machines
from convtune.emulation.counts import KINDS
from convtune.emulation.kernel import EmulatedKernel, EmulationError
from convtune.errors import KernelError
from convtune.measure.device import Case
from convtune.measure.verify import Verdict, verify
from convtune.runtime.kernel import Kernel

ARM, X86 = "aarch64", "x86_64"
MACHINES = (ARM, X86)
LIMIT = 2e-5
FEW = 20_000_000
OTHER = X86 if platform.machine() == ARM else ARM


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(kernels.SPEC, 0, tmp_path_factory.mktemp("case"))


def emulate(library: Path, case: Case, threads: int = parallel.TASKS) -> tuple[Verdict, EmulatedKernel]:
    inputs = case.inputs(kernels.PACK)
    with EmulatedKernel(library, threads, [*inputs, "y"], most_instructions=FEW) as kernel:
        return verify(kernel, inputs, case.reference, LIMIT), kernel


@pytest.mark.parametrize("machine", MACHINES)
def test_a_right_kernel_is_right_and_counted_the_same_each_time(machine: str, case: Case, tmp_path: Path) -> None:
    library = kernels.library(tmp_path / "k", "none", machine=machine)
    verdict, kernel = emulate(library, case)
    assert (verdict.problem, kernel.counts.regions) == ("", ())
    again = emulate(library, case)[1].counts
    assert again == kernel.counts
    assert kernel.counts.instructions > kernels.SPEC.macs
    assert set(kernel.counts.by_kind) == set(KINDS)
    assert kernel.counts.by_kind["scalar_arithmetic"] >= kernels.SPEC.macs  # a multiplication, an addition, or both
    assert kernel.counts.by_kind["load"] >= 2 * kernels.SPEC.macs  # its arrays are volatile
    assert kernel.counts.by_kind["store"] >= prod(kernels.SPEC.out_shape)


@pytest.mark.parametrize("machine", MACHINES)
def test_counts_are_those_of_stepping_through_it(machine: str, case: Case, tmp_path: Path) -> None:
    """Unicorn calls a function at each instruction: slow, and by other code than that which counts blocks."""
    inputs = case.inputs(kernels.PACK)
    steps: dict[int, int] = {}

    def on_instruction(_machine: Any, address: int, _size: int, _data: Any) -> None:
        steps[address] = steps.get(address, 0) + 1

    library = parallel.library(tmp_path / "k", machine, "keeps scratch")
    with EmulatedKernel(library, parallel.TASKS) as kernel:
        kernel._machine.hook_add(UC_HOOK_CODE, on_instruction)
        kernel([*inputs.values(), case.y], [4, 4, 4])
    assert kernel.counts.instructions == sum(steps.values()) > 500
    # a block may also be the end of another one
    assert all(steps[address] >= times > 0 for address, times in kernel.counts.blocks.items())


FAULTS = {
    "null pointer": ("crash", "wrote 4 bytes at address 0x0, where there is nothing"),
    "endless loop": ("timeout", "ran more than 20000000 instructions (at kernel.so+0x"),
    "far too many": ("crash", "wrote 4 bytes 400000 bytes after the end of y"),
    "one element too many": ("wrong", "wrote outside an array: 4 bytes after the end of y"),
    "one element too early": ("wrong", "wrote outside an array: 4 bytes before the start of y"),
    "same value beyond": ("crash", "read 4 bytes at the end of y"),
    "writes before weight": ("wrong", "wrote outside an array: 8 bytes before the start of weight"),
    "reads after x for nothing": ("crash", "read 4 bytes at the end of x"),
    "reads before x for nothing": ("crash", "read 4 bytes 8 bytes before the start of x"),
    "reads far before weight for nothing": ("crash", "read 4 bytes 68 bytes before the start of weight"),
    "last element missing": ("verdict", "left output unwritten, or read it first: 1 of 15 elements, first y[0, 4, 2]"),
    "slightly wrong": ("verdict", "wrong result: error"),
    "reads before x": ("verdict", "read outside an array: error nan"),
    "reads after weight": ("verdict", "read outside an array: error nan"),
    "changes x": ("verdict", "changed its input x: 1 of 20 elements, first x[0, 1, 1] = 7"),
    "changes each time": ("verdict", "gives another result when run again: 1 of 15 elements"),
    "adds to y": ("verdict", "left output unwritten, or read it first: 15 of 15 elements"),
    "reads scratch": ("verdict", "read scratch memory that it had not written"),
    "reads scratch of the call before": ("verdict", "gives another result when run again"),
    "swallows scratch": ("verdict", "gives another result when run again"),
    "failure": ("failure", "kernel failed with status -1: it gave no message"),
    "abort": ("failure", "it needs abort, which is not emulated"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_kernel_is_found_out(fault: str, case: Case, tmp_path: Path) -> None:
    check_fault(kernels.library(tmp_path / "k", fault, machine=OTHER), case, *FAULTS[fault])


def check_fault(library: Path, case: Case, kind: str, message: str) -> None:
    if kind == "verdict":
        assert emulate(library, case)[0].problem.startswith(message)
        return
    with pytest.raises(KernelError) as problem:
        emulate(library, case)
    assert message in str(problem.value)
    assert getattr(problem.value, "status", "failure") == kind


PARALLEL_FAULTS = {
    "reads what other tasks wrote": ("verdict", "gives another result when run again"),
    "first come": ("verdict", "gives another result when run again"),
    "fails": ("failure", "kernel failed with status -1"),
    "writes beyond scratch": (
        "crash",
        "wrote outside scratch memory: 4 bytes after the end of a scratch block of 100 b",
    ),
    "writes far beyond scratch": ("crash", "wrote 4 bytes 39896 bytes after the end of a scratch block of 100 bytes"),
    "frees what it has not": ("crash", "freed scratch memory at 0x"),
    "no instruction": ("crash", "ran what is no instruction"),
    "endless": ("timeout", "ran more than 20000000 instructions"),
    "deep": ("crash", "before the start of the stack"),
}


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("fault", PARALLEL_FAULTS)
def test_what_a_task_does_wrong_is_found_out(fault: str, machine: str, case: Case, tmp_path: Path) -> None:
    check_fault(parallel.library(tmp_path / "k", machine, fault), case, *PARALLEL_FAULTS[fault])


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("threads", [1, 3, 7])
def test_the_tasks_of_a_region_do_all_its_work(machine: str, threads: int, case: Case, tmp_path: Path) -> None:
    verdict, kernel = emulate(parallel.library(tmp_path / "k", machine), case, threads)
    assert verdict.problem == ""
    (region,) = kernel.counts.regions
    assert len(region) == threads == len(kernel.counts.task_instructions)
    assert 0 < kernel.counts.instructions - sum(region) < 200
    chunk = -(-5 // threads)
    busy = [max(0, min(5, (task + 1) * chunk) - task * chunk) for task in range(threads)]
    assert all(region[a] < region[b] for a in range(threads) for b in range(threads) if busy[a] < busy[b])


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("in_task", ["has a region in it", "keeps scratch"])
def test_regions_may_have_regions_and_scratch(machine: str, in_task: str, case: Case, tmp_path: Path) -> None:
    library = parallel.library(tmp_path / "k", machine, in_task, "failed |= __TVMBackendParallelLaunch(again, &c, 2);")
    verdict, kernel = emulate(library, case)
    assert verdict.problem == ""
    assert [len(region) for region in kernel.counts.regions] == [parallel.TASKS, 2]


def test_a_kernel_can_be_run_again_after_a_fault(case: Case, tmp_path: Path) -> None:
    library = kernels.library(tmp_path / "k", "reads after x for nothing", machine=ARM)
    inputs = case.inputs(kernels.PACK)
    arrays = [*inputs.values(), case.y]
    with EmulatedKernel(library, 1) as kernel:
        with pytest.raises(EmulationError, match="argument 0"):
            kernel(placed(arrays, at_end=True), [4, 4, 4])
        runs = placed(arrays, at_end=False)
        kernel(runs, [4, 4, 4])  # there x is followed by the rest of its page
    assert np.abs(runs[-1] - case.reference).max() < LIMIT


def placed(arrays: Sequence[Any], at_end: bool) -> list[Any]:
    """Copies that end with a page of the emulated machine, or start with one."""
    found = []
    for array in arrays:
        pages = -(-array.nbytes // 4096) + 1
        memory = np.zeros((pages + 1) * 4096, np.uint8)
        start = -memory.ctypes.data % 4096 + (pages * 4096 - array.nbytes if at_end else 0)
        copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        found.append(copy)
    return found


def test_emulation_and_this_machine_agree_to_the_bit(case: Case, tmp_path: Path) -> None:
    library = kernels.library(tmp_path / "k", "none", machine=platform.machine())
    inputs = [*case.inputs(kernels.PACK).values()]
    here, emulated = case.y.copy(), case.y.copy()
    Kernel(library)([*inputs, here], [4, 4, 4])
    with EmulatedKernel(library, 1) as kernel:
        kernel([*inputs, emulated], [4, 4, 4])
    assert here.tobytes() == emulated.tobytes()


def test_bad_input_is_refused_in_a_line(case: Case, tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("no library")
    with pytest.raises(KernelError, match=r"cannot load kernel .*text\.so"):
        EmulatedKernel(text, 1)
    with pytest.raises(KernelError, match=r"cannot load kernel .*none\.so"):
        EmulatedKernel(tmp_path / "none.so", 1)
    library = kernels.library(tmp_path / "k", "none", machine=ARM)
    damaged = library.read_bytes()
    other = library.with_name("other.so")
    other.write_bytes(damaged[:18] + (243).to_bytes(2, "little") + damaged[20:])
    with pytest.raises(KernelError, match="EM_RISCV cannot be emulated; what can is aarch64, x86_64"):
        EmulatedKernel(other, 1)
    other.write_bytes(damaged[: len(damaged) // 3])
    with pytest.raises(KernelError, match=r"cannot load kernel .*other\.so"):
        EmulatedKernel(other, 1)
    inputs = [*case.inputs(kernels.PACK).values(), case.y]
    with EmulatedKernel(library, 1) as kernel:
        with pytest.raises(KernelError, match="argument 0 is not C-contiguous at a multiple of 8192"):
            kernel(inputs, [8192, 4, 4])
        with pytest.raises(KernelError, match="argument 0 is not C-contiguous"):
            kernel([np.asfortranarray(np.ones((3, 4), np.float32)), *inputs[1:]], [4, 4, 4])


def test_a_processor_has_no_more_than_its_features() -> None:
    with pytest.raises(KernelError, match="kernels that need avx2 cannot be emulated"):
        machines.of_elf("EM_X86_64", ["avx2", "sse4_2"])
