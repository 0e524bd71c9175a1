"""The operands and the reference of a spec, which outlive the worker that made them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from convtune.measure.device import Case
from convtune.reference import OperandArrays, random_operands, reference
from convtune.spec import ConvSpec

SPEC = ConvSpec("conv", in_channels=3, out_channels=5, in_size=(7, 6), kernel=3, padding=1, bias=True, residual=True)
PACK = (({"op": "transpose", "axes": [1, 2, 3, 0]},),)


def test_inputs_come_in_the_order_of_the_kernel_and_give_the_reference(tmp_path: Path) -> None:
    case = Case(SPEC, 7, tmp_path)
    inputs = case.inputs(PACK)
    assert list(inputs) == ["x", "weight", "bias", "residual"]
    assert all(array.ctypes.data % 64 == 0 and array.flags.c_contiguous for array in inputs.values())
    operands = {**inputs, "weight": inputs["weight"].transpose(3, 0, 1, 2)}
    np.testing.assert_array_equal(reference(SPEC, **operands), case.reference)
    assert case.y.shape == SPEC.out_shape


def test_operands_are_those_of_the_seed(tmp_path: Path) -> None:
    np.testing.assert_array_equal(Case(SPEC, 7, tmp_path).inputs(PACK)["x"], random_operands(SPEC, 7).x)
    assert (Case(SPEC, 8, tmp_path).inputs(PACK)["x"] != random_operands(SPEC, 7).x).any()


def test_a_reference_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Case(SPEC, 7, tmp_path).reference
    monkeypatch.setattr(OperandArrays, "reference", lambda self, spec: pytest.fail("computed again"))
    np.testing.assert_array_equal(Case(SPEC, 7, tmp_path).reference, first)


def test_only_the_last_reference_is_kept_and_a_torn_one_is_not_used(tmp_path: Path) -> None:
    Case(SPEC, 7, tmp_path)
    (kept,) = tmp_path.iterdir()
    kept.rename(kept.with_suffix(".unfinished.npy"))
    kept.with_suffix(".unfinished.npy").write_bytes(b"torn")
    other = Case(SPEC.replace(bias=False), 7, tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    again = Case(SPEC, 7, tmp_path)
    assert np.abs(again.reference - other.reference).max() > 0
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]
