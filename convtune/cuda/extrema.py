"""Gives max and min of a kernel the meaning that they have on a CPU, where NaN stays NaN."""

from __future__ import annotations

from typing import Any


def keep_nan(function: Any) -> Any:
    """A tirx.PrimFunc whose max(a, b) of floating point is a > b ? a : b, as TVM has it on a CPU; min likewise.

    C's fmax and fmin, which TVM 0.27 generates for CUDA, return the other operand in place of NaN.
    """
    from tvm import tirx
    from tvm_ffi import structural_map

    def chosen(compare: Any, node: Any) -> Any:
        if "float" not in str(node.ty):
            return node
        # each operand is written twice; without a variable, nested ones would grow exponentially
        a, b = tirx.Var("a", node.ty), tirx.Var("b", node.ty)
        return tirx.Let(a, node.a, tirx.Let(b, node.b, tirx.Select(compare(a, b), a, b)))

    extrema = [(tirx.Max, lambda node: chosen(tirx.GT, node)), (tirx.Min, lambda node: chosen(tirx.LT, node))]
    return structural_map(function, extrema)
