"""A kernel called from C, as docs/deploy.md shows it: the program is taken from there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from runtime_kernels import IN, OUT, PIXELS, POINTWISE_PACK, pointwise_library

import convtune
from convtune import accuracy
from convtune.linker import find_compiler
from convtune.reference import random_operands
from convtune.runtime.packing import apply

DOCS = Path(__file__).parent.parent / "docs" / "deploy.md"


def documented_program() -> str:
    (program,) = re.findall(r"```c\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.DOTALL)
    return str(program)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("c")
    (directory / "use.c").write_text(documented_program())
    command = [*find_compiler().command, "-std=c11", "-Wall", "-Wextra", "-Werror", "use.c", "-o", "use", "-ldl"]
    subprocess.run(command, cwd=directory, check=True, timeout=120)
    return directory / "use"


def test_the_documented_program_runs_a_kernel(program: Path, tmp_path: Path) -> None:
    library = pointwise_library(tmp_path)
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((PIXELS, IN), dtype="f"), rng.standard_normal((OUT, IN), dtype="f")
    bias, residual = rng.standard_normal(OUT, dtype="f"), rng.standard_normal((PIXELS, OUT), dtype="f")
    arguments = {"x": x, "weight": apply(POINTWISE_PACK, weight), "bias": bias, "residual": residual}
    command = [str(program), str(library)]
    for name, array in arguments.items():
        array.tofile(tmp_path / name)
        command += [str(tmp_path / name), ",".join(map(str, array.shape))]
    command += [str(tmp_path / "y"), f"{PIXELS},{OUT}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    y = np.fromfile(tmp_path / "y", "f").reshape(PIXELS, OUT)
    np.testing.assert_allclose(y, x @ weight.T + bias + residual, rtol=1e-5, atol=1e-5)

    command[-1] = f"{PIXELS},{OUT + 1}"
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "Invalid y.shape[1] on argument #4" in done.stderr


@pytest.mark.parametrize(
    "text",
    [
        "transposed,ic=8,oc=8,in=9x9,k=3,s=2,p=1",  # its packed weight has the most dimensions, 10
        "flattened,ic=8,oc=8,in=4x4x4,k=3,p=1,sbias=1,bias,residual",  # four weights with their biases: 11 arguments
    ],
)
def test_the_documented_program_runs_the_largest_kernels(program: Path, tmp_path: Path, text: str) -> None:
    spec = convtune.ConvSpec.parse(text)
    operands = random_operands(spec, seed=3)
    conv = convtune.compile(spec)
    *inputs, y = conv.manifest.arguments
    conv.save(tmp_path / "package")
    arrays = [operands.x, *operands.weights, *operands.biases]
    if operands.residual is not None:
        arrays.append(operands.residual)
    command = [str(program), str(tmp_path / "package" / conv.manifest.library_name)]
    for number, (argument, array) in enumerate(zip(inputs, arrays, strict=True)):
        apply(argument.pack, array).tofile(tmp_path / str(number))
        command += [str(tmp_path / str(number)), ",".join(map(str, argument.shape))]
    command += [str(tmp_path / "y"), ",".join(map(str, y.shape))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    expected = operands.reference(spec)
    error = np.abs(np.fromfile(tmp_path / "y", "f").reshape(y.shape) - expected).max() / np.abs(expected).max()
    assert error <= accuracy.limit(spec, "standard")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["f", "1"] * 17, "17 arguments are given; MAX_ARGUMENTS is 16"),
        (["f", ",".join("1" * 17)], "17 dimensions are given; MAX_DIMENSIONS is 16"),
        ([], "usage: use KERNEL (FILE SHAPE)..."),
        (["f"], "usage: use KERNEL (FILE SHAPE)..."),
        (["f", "1", "f"], "usage: use KERNEL (FILE SHAPE)..."),
    ],
)
def test_the_documented_program_names_its_limits(
    program: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    command = [str(program), str(pointwise_library(tmp_path)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, f"{said}\n")
