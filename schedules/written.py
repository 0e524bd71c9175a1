"""A space's kernel whose loops it writes itself, as statements over buffers, not by scheduling an expression."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convtune.schedules.statements import Stmt, sequence

from convtune.expression import Arguments

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Buffers = Sequence[Any]
"""x, weight, bias and residual, None for what a spec does not have, and then its inputs besides, as it names them."""


class Held(Arguments):
    """A kernel's arguments, read as the tensors of an expression are; `source` (x), `weight`, `inputs` are buffers."""

    def __init__(self, spec: ConvSpec, buffers: Buffers) -> None:
        self.spec = spec
        self.source, self.weight, bias, residual, *inputs = buffers
        self.inputs = dict(zip(spec.input_shapes, inputs))
        self.x, self.bias, self.residual = map(reader, (self.source, bias, residual))
        self.biases = [self.bias]


def written(spec: ConvSpec, weight_shape: Sequence[int], body: Callable[[Buffers, Any], Any]) -> Any:
    """The module of a kernel of one stage: body(buffers, y) is its statement."""
    from tvm import ir, te

    arguments = Arguments(spec, [weight_shape])
    tensors = (arguments.x, arguments.weights[0], arguments.bias, arguments.residual, *arguments.inputs.values())

    def statement(sources: Sequence[Any], results: Sequence[Any]) -> Any:
        given = iter(sources)
        return body([None if tensor is None else next(given) for tensor in tensors], results[0])

    given = [tensor for tensor in tensors if tensor is not None]
    y = te.extern([spec.out_shape], given, statement, name="y", dtype=[spec.dtype])
    return ir.IRModule({"main": arguments.primfunc(y)})


def viewed(buffers: Sequence[Any], shape: Sequence[int], body: Callable[[list[Any]], Stmt]) -> Stmt:
    """body(the buffers in another shape): what lies in memory, without the divisions that TVM would be left with."""
    from tvm import tirx

    views = [tirx.decl_buffer(tuple(shape), str(b.dtype), name=f"{b.name}_flat", data=b.data) for b in buffers]
    return sequence([*(tirx.DeclBuffer(view, data=b.data) for view, b in zip(views, buffers)), body(views)])


def reader(buffer: Any) -> Any:
    """What reads an element of a buffer at an index, as calling a tensor does; None of None."""
    from tvm import tirx

    return None if buffer is None else lambda *index: tirx.BufferLoad(buffer, list(index))
