"""Gives an output that is computed in whole tiles the shape that the spec has, and stores only inside of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


def cropped(sch: Any, spec: ConvSpec, locate: Callable[..., Sequence[Any]], vector: int = 1) -> Any:
    """The schedule's module, with `y` as the spec has it.

    locate: from an index of the stage `y`, a dimension for each part of a place in tiles, to (n, oc, *position).
    vector: channels that are stored at once, of which the output has a whole number.
    """
    from tvm import ir, s_tir, tirx
    from tvm_ffi import structural_map

    def place(*index: Any) -> list[Any]:
        n, oc, *position = locate(*index)
        return [n, *position, oc] if spec.channels_last else [n, oc, *position]

    sch.transform_layout("y", ("write", 0), place)
    main = sch.mod["main"]
    whole = main.params[-1]
    channel = len(spec.out_shape) - 1 if spec.channels_last else 1
    ends = list(zip(map(int, whole.shape), spec.out_shape))

    def guarded(realize: Any) -> Any:
        if realize.block.name_hint != "y":
            return realize
        inside = [
            p // vector < size // vector if axis == channel else p < size
            for axis, (p, (extent, size)) in enumerate(zip(place(*realize.iter_values), ends))
            if extent > size
        ]
        return s_tir.SBlockRealize(realize.iter_values, tirx.all(realize.predicate, *inside), realize.block)

    if all(extent == size for extent, size in ends):
        return sch.mod
    exact = tirx.decl_buffer(spec.out_shape, spec.dtype, name="y")
    main = structural_map(main, (s_tir.SBlockRealize, guarded))
    return ir.IRModule({"main": structural_map(main, (ir.Var, lambda var: exact if var.same_as(whole) else var))})
