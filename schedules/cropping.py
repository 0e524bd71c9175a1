"""Gives an output that is computed in whole tiles the shape that the spec has, and stores only inside of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


def cropped(
    main: Any, spec: ConvSpec, locate: Callable[..., Sequence[Any]], inside: Callable[..., Sequence[Any]]
) -> Any:
    """The module of a scheduled function, with `y` as the spec has it.

    locate, inside: from an index of the stage `y`, which has a dimension for each part of a place in tiles, to
    (n, oc, *position), and to the conditions for this to be in the output.
    """
    from tvm import ir, s_tir, tirx
    from tvm_ffi import structural_map

    whole = main.params[-1]
    exact = tirx.decl_buffer(spec.out_shape, spec.dtype, name="y")

    def placed(realize: Any) -> Any:
        block = realize.block
        if block.name_hint != "y":
            return realize
        n, oc, *position = locate(*(axis.var for axis in block.iter_vars))
        place = [n, *position, oc] if spec.channels_last else [n, oc, *position]
        block = s_tir.SBlock(
            iter_vars=block.iter_vars,
            reads=block.reads,
            writes=[tirx.BufferRegion(exact, [ir.Range.from_min_extent(p, 1) for p in place])],
            name_hint=block.name_hint,
            body=tirx.BufferStore(exact, block.body.value, place),
            annotations=block.annotations,
        )
        predicate = tirx.all(realize.predicate, *inside(*realize.iter_values))
        return s_tir.SBlockRealize(realize.iter_values, predicate, block)

    main = structural_map(main, (s_tir.SBlockRealize, placed))
    return ir.IRModule({"main": structural_map(main, (ir.Var, lambda var: exact if var.same_as(whole) else var))})
