"""ONNX Runtime as a peer: all graph optimizations, inputs and output bound once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from convtune.peers import onnx_graph
from convtune.peers.base import Configuration, Peer, Prepared, Problem, in_own_layout, require_float32

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class OnnxRuntime(Peer):
    """Its CPU provider reads channels first, and converts to blocks of channels inside where that pays."""

    name = "onnxruntime"
    order = 1
    distributions = ("onnxruntime", "onnx")
    extra = "peers"

    def start(self, threads: int) -> None:
        import onnxruntime  # noqa: F401  # before memory is limited by what the process has when it starts

    def configurations(self, spec: ConvSpec) -> tuple[Configuration, ...]:
        require_float32(spec)
        return in_own_layout(spec, onnx_graph.methods(spec))

    def prepare(self, problem: Problem, configuration: Configuration) -> Prepared:
        import numpy as np
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = problem.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        model = onnx_graph.model(problem, configuration)
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        y = np.empty(onnx_graph.out_shape(problem.spec, configuration.layout), np.float32)
        values = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in onnx_graph.inputs(problem, configuration).items()
        }
        out = onnxruntime.OrtValue.ortvalue_from_numpy(y)
        binding = session.io_binding()
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output("y", out)

        def call() -> None:
            session.run_with_iobinding(binding)

        return Prepared(call, out.numpy)


onnx_runtime = OnnxRuntime()
