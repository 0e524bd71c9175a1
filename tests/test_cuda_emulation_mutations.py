"""What the emulator is for: programs that were right until something was taken out or moved must be caught."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
from emulation_programs import emulation, matmul, outputs, random
from numpy.typing import NDArray
from test_cuda_emulation import depthwise, filtered

from convtune.cuda.emulation.emulator import ORDERS
from convtune.cuda.program import Program

MATMULS: list[dict[str, Any]] = [
    {},
    {"scope": "shared.dyn", "vectorised": True},
    {"vectorised": True, "stages": 2},
    {"scope": "shared.dyn", "stages": 3},
]
MATMUL_INPUTS = [random(4096, 1), random(4096, 2)]
PRODUCT = (MATMUL_INPUTS[0].reshape(64, 64).astype(np.float64) @ MATMUL_INPUTS[1].reshape(64, 64)).reshape(-1)
X, W = random(5 * 37, 1), random(15, 2)


def changed(program: Program, start: int, end: int, text: str) -> Program:
    return dataclasses.replace(program, source=program.source[:start] + text + program.source[end:])


def body(program: Program) -> int:
    """Where the kernel's body starts: before that are TVM's own definitions."""
    return program.source.rindex("__global__")


def found(program: Program, inputs: list[NDArray[Any]], checked: bool, order: str) -> tuple[str, NDArray[Any]]:
    y = outputs(program)
    emulated = emulation(program, checked)
    emulated.fill_scratch(0xFF)
    return emulated.run([*inputs, y], order).problem, y


def is_wrong(y: NDArray[Any], expected: NDArray[Any]) -> bool:
    return not np.allclose(y, expected.reshape(-1), rtol=0, atol=1e-4 * abs(expected).max())


def deletions(pattern: str, options: dict[str, Any]) -> list[Program]:
    """The matrix product without each of the statements in turn."""
    program = matmul(**options)
    matches = re.compile(pattern).finditer(program.source, body(program))
    return [changed(program, match.start(), match.end(), ";") for match in matches]


@pytest.mark.parametrize("options", MATMULS, ids=str)
def test_each_missing_barrier_is_caught(options: dict[str, Any]) -> None:
    mutants = deletions(r"__syncthreads\(\);", options)
    assert len(mutants) >= 2
    for mutant in mutants:
        problem, _ = found(mutant, MATMUL_INPUTS, True, "forward")
        assert re.search("race on shared|shared .* (is read before written|while a cp.async of thread)", problem)
        # without checks the barriers show too, in one of the orders
        runs = (found(mutant, MATMUL_INPUTS, False, order)[1] for order in ORDERS)
        assert any(is_wrong(y, PRODUCT) for y in runs)


@pytest.mark.parametrize("options", MATMULS[2:], ids=str)
def test_each_missing_wait_for_copies_is_caught(options: dict[str, Any]) -> None:
    mutants = deletions(r"\w+_wait_group_\d\(\);", options)
    assert len(mutants) == options["stages"]
    for mutant in mutants:
        problem, _ = found(mutant, MATMUL_INPUTS, True, "forward")
        assert re.search(r"is read at element \d+ by thread \d+ .* while a cp.async of thread \d+ to it", problem)
        assert is_wrong(found(mutant, MATMUL_INPUTS, False, "forward")[1], PRODUCT)


@pytest.mark.parametrize("options", MATMULS[2:], ids=str)
def test_each_missing_commit_is_caught(options: dict[str, Any]) -> None:
    for mutant in deletions(r"\w+_commit_group\(\);", options):
        problem, y = found(mutant, MATMUL_INPUTS, True, "forward")
        assert problem or is_wrong(y, PRODUCT)


def test_a_wait_for_fewer_groups_is_caught() -> None:
    program = matmul(**MATMULS[3])
    source = program.source.replace("cp.async.wait_group 2;", "cp.async.wait_group 3;")
    problem, _ = found(dataclasses.replace(program, source=source), MATMUL_INPUTS, True, "forward")
    assert "is not waited for" in problem


def shifts(program: Program, pattern: str) -> list[Program]:
    """The program with the index of each access to shared or global memory moved by one."""
    matches = re.compile(pattern).finditer(program.source, body(program))
    return [changed(program, match.end(), match.end(), "1 + ") for match in matches]


@pytest.mark.parametrize("options", [MATMULS[0], MATMULS[1]], ids=str)
def test_each_shifted_index_is_caught(options: dict[str, Any]) -> None:
    scalars = r"\b(?:[abc]|[ab]_shared)_ptr\[(?=\()|\(\(float\*\)buf_dyn_shmem_ptr\)\[(?=\()"
    mutants = shifts(matmul(**options), rf"{scalars}|\*\(float4\*\)\(.{{0,40}}?_ptr\)? \+ ")
    assert len(mutants) >= 7
    for mutant in mutants:
        problem, y = found(mutant, MATMUL_INPUTS, True, "forward")
        assert problem or is_wrong(y, PRODUCT)


def test_each_shifted_index_of_a_border_is_caught() -> None:
    mutants = shifts(depthwise(), r"\b(?:x|w|y|padded_shared)_ptr\[(?=\()")
    assert len(mutants) == 7
    for mutant in mutants:
        problem, y = found(mutant, in_order(mutant, x=X, w=W), True, "forward")
        assert problem or is_wrong(y, filtered(X, W))


def in_order(program: Program, **arrays: NDArray[Any]) -> list[NDArray[Any]]:
    return [arrays[parameter.name] for parameter in program.parameters[:-1]]


def conditions(program: Program) -> list[tuple[int, int]]:
    """Of each `if`: where its condition starts and ends."""
    found = []
    for match in re.compile(r"\bif \(").finditer(program.source, body(program)):
        depth, position = 1, match.end()
        while depth:
            depth += {"(": 1, ")": -1}.get(program.source[position], 0)
            position += 1
        found.append((match.end(), position - 1))
    return found


def test_each_dropped_bounds_check_is_caught() -> None:
    program = depthwise()
    dropped = conditions(program)
    assert len(dropped) == 4
    for start, end in dropped:
        mutant = changed(program, start, end, "true")
        problem, y = found(mutant, in_order(mutant, x=X, w=W), True, "forward")
        assert problem or is_wrong(y, filtered(X, W))
    for start, end in dropped[:2]:  # what was a store beyond shared memory, and a load in front of x
        problem, _ = found(changed(program, start, end, "true"), in_order(program, x=X, w=W), True, "forward")
        assert "out of bounds" in problem
