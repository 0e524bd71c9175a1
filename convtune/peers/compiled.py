"""Runs convtune's own packages as a contender: the kernels that `compile` makes, with weights packed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.peers.base import Configuration, Peer, Prepared, Problem

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class CompiledPeer(Peer):
    """A package bound to aligned arrays in the spec's layout, as ONNX Runtime's and OpenVINO's calls are.

    convtune's own side of the comparison is one; as that is no peer, no module has an instance.
    """

    name = "convtune"

    def configurations(self, spec: ConvSpec) -> tuple[Configuration, ...]:
        return (Configuration("bound", spec.layout, spec.layout),)

    def prepare(self, problem: Problem, configuration: Configuration) -> Prepared:
        from convtune.runtime import CompiledConv
        from convtune.runtime.arrays import aligned_copy, empty_aligned

        assert problem.package is not None, "the comparison compiles it first"
        conv = CompiledConv(problem.package)
        conv.kernel.num_threads = problem.threads
        operands, spec = problem.operands, problem.spec
        packed = conv.pack(operands.weights, operands.bias)
        x, out = aligned_copy(operands.x), empty_aligned(spec.out_shape, operands.x.dtype)
        inputs = {name: aligned_copy(array) for name, array in operands.inputs.items()}
        if operands.residual is not None:
            inputs["residual"] = aligned_copy(operands.residual)
        return Prepared(conv.bind(x, packed, **inputs, out=out), lambda: out)
