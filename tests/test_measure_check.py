"""Checking a kernel that exists already: whatever it does, there is a verdict, and its files stay."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import measure_kernels as kernels
import pytest

from convtune.measure.check import Checker

LIMIT = 2e-5
numbers = itertools.count()


@pytest.fixture(scope="module")
def checker() -> Iterator[Checker]:
    with Checker(threads=1, seed=3) as checker:
        yield checker


@pytest.mark.parametrize(
    ("fault", "status", "message"),
    [
        ("none", "ok", ""),
        ("slightly wrong", "wrong", "wrong result: error"),
        ("abort", "crash", "while running: SIGABRT"),
        ("one element too many", "wrong", "wrote outside y"),
        ("failure", "error", "kernel failed with status -1"),
    ],
)
def test_a_kernel_gets_its_verdict(checker: Checker, tmp_path: Path, fault: str, status: str, message: str) -> None:
    library = kernels.library(tmp_path / f"{next(numbers)}", fault)
    outcome = checker.check(kernels.SPEC, library, kernels.PACK, LIMIT)
    assert outcome.status == status
    assert message in outcome.message
    assert outcome.times_us == ()
    assert library.exists()


def test_the_limit_counts(checker: Checker, tmp_path: Path) -> None:
    library = kernels.library(tmp_path / "k", "none")
    assert checker.check(kernels.SPEC, library, kernels.PACK, 0.0).status == "wrong"


def test_specs_may_change_from_kernel_to_kernel(checker: Checker, tmp_path: Path) -> None:
    wide = kernels.WHOLE_LINES
    for spec, name in ((kernels.SPEC, "a"), (wide, "b"), (kernels.SPEC, "c")):
        library = kernels.library(tmp_path / name, "none", spec)
        assert checker.check(spec, library, kernels.PACK, LIMIT).status == "ok"
