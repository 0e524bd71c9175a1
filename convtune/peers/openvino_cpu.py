"""OpenVINO as a peer: its CPU plugin for latency, one stream, float32 kept as float32, tensors bound once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from convtune.peers import onnx_graph
from convtune.peers.base import Configuration, Peer, Prepared, Problem, Unsupported, in_own_layout, require_float32

if TYPE_CHECKING:
    from convtune.spec import ConvSpec


class OpenVino(Peer):
    """Reads channels first, and converts to a layout of its choice inside where that pays."""

    name = "openvino"
    order = 2
    distributions = ("openvino", "onnx")
    extra = "peers"

    def start(self, threads: int) -> None:
        import openvino
        from openvino.frontend.onnx import ConversionExtension

        self._core: Any = openvino.Core()
        # its ONNX frontend has no DeformConv, though its plugin computes it
        self._core.add_extension(ConversionExtension("DeformConv", "", _deformable))

    def configurations(self, spec: ConvSpec) -> tuple[Configuration, ...]:
        require_float32(spec)
        return in_own_layout(spec, onnx_graph.methods(spec))

    def prepare(self, problem: Problem, configuration: Configuration) -> Prepared:
        import openvino

        options = {
            "INFERENCE_NUM_THREADS": problem.threads,
            "NUM_STREAMS": 1,
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }
        model = onnx_graph.model(problem, configuration)
        try:
            network = self._core.read_model(model)
        except RuntimeError as error:  # what its ONNX frontend raises for an operator that it lacks
            raise Unsupported(f"its ONNX frontend refuses the model: {_last_line(str(error))}") from error
        request = self._core.compile_model(network, "CPU", options).create_infer_request()
        arrays = onnx_graph.inputs(problem, configuration)
        for name, array in arrays.items():
            request.set_tensor(name, openvino.Tensor(array, shared_memory=True))

        def call() -> None:
            request.infer(share_inputs=True, share_outputs=True)

        # the arrays must live as long as the request that reads them
        return Prepared(call, lambda held=arrays: request.get_output_tensor(0).data.copy())  # type: ignore[misc]


def _deformable(node: Any) -> list[Any]:
    """OpenVINO's operator for ONNX's DeformConv, with an addition for the bias, which it lacks."""
    import numpy as np
    from openvino import opset8

    given = [node.get_input(index) for index in range(node.get_input_size())]
    x, weight, offset = given[:3]
    geometry = [node.get_attribute(name) for name in ("strides", "pads", "dilations", "group", "offset_group")]
    strides, pads, dilations, group, offset_group = geometry
    rank = len(pads) // 2
    y = opset8.deformable_convolution(
        x,
        offset,
        weight,
        strides,
        pads[:rank],
        pads[rank:],
        dilations,
        mask=given[4] if len(given) > 4 else None,
        group=group,
        deformable_group=offset_group,
        bilinear_interpolation_pad=True,
    )
    if len(given) > 3 and given[3].get_node().get_type_name() != "NullNode":  # left out, as a mask follows
        y = opset8.add(y, opset8.unsqueeze(given[3], np.array([0, 2, 3], np.int64)))
    return [y.output(0)]


def _last_line(message: str) -> str:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return lines[-1][:200] if lines else "it gives no reason"


openvino_cpu = OpenVino()
