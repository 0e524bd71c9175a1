"""PyTorch as a peer: eager, in inference mode, channels first and last, and with weights that oneDNN has packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from convtune.activations import LEAKY_SLOPE
from convtune.peers.base import (
    Configuration,
    Peer,
    Prepared,
    Problem,
    Unsupported,
    arranged,
    in_own_layout,
    require_float32,
)

if TYPE_CHECKING:
    from convtune.spec import ConvSpec

Tensor = Any
Step = Callable[[Tensor], Tensor]

_METHODS = {"channels_first": 0, "channels_last": 1, "channels_last_packed": 1}


class PyTorch(Peer):
    """Calls torch.nn.functional; 1-D convolutions as 2-D ones of one row, as PyTorch itself does them.

    `channels_last_packed` calls what torch.compile's freezing compiles to on CPUs: oneDNN's convolution with a weight
    in the blocked layout that oneDNN chose, and the activation inside. torch.compile itself, which takes seconds a
    layer, adds nothing to a single convolution.
    """

    name = "torch"
    order = 0
    distributions = ("torch", "torchvision")
    extra = "peers"

    @property
    def required(self) -> tuple[str, ...]:
        return ("torch",)

    def start(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision("highest")
        torch.inference_mode(True).__enter__()  # of this thread, which is the process's only one

    def configurations(self, spec: ConvSpec) -> tuple[Configuration, ...]:
        require_float32(spec)
        if spec.variant == "deformable":
            return in_own_layout(spec, {"torchvision": 0})
        return in_own_layout(spec, _METHODS)

    def prepare(self, problem: Problem, configuration: Configuration) -> Prepared:
        import torch

        spec = problem.spec
        if spec.variant == "deformable":
            return _deformable(problem, configuration)
        chain = _Chain(problem, configuration)
        x = chain.given(problem.operands.x)
        steps = chain.steps()
        if configuration.converts:
            steps = [_contiguous(chain.format), *steps, _contiguous(_format(spec, configuration.layout))]
        latest: list[Tensor] = [None]

        def call() -> None:
            y = x
            for step in steps:
                y = step(y)
            latest[0] = y

        def output() -> Any:
            y = latest[0].squeeze(2) if spec.rank == 1 else latest[0]
            return (torch.movedim(y, 1, -1) if configuration.layout.endswith("C") else y).contiguous().numpy()

        return Prepared(call, output)


def _rank(spec: ConvSpec) -> int:
    return max(spec.rank, 2)


def _format(spec: ConvSpec, layout: str) -> Any:
    import torch

    if not layout.endswith("C"):
        return torch.contiguous_format
    return {2: torch.channels_last, 3: torch.channels_last_3d}[_rank(spec)]


def _contiguous(memory_format: Any) -> Step:
    return lambda v: v.contiguous(memory_format=memory_format)


class _Chain:
    """The steps of a spec's stages, on tensors of logical shape (n, channels, *size)."""

    def __init__(self, problem: Problem, configuration: Configuration) -> None:
        self._problem, self._configuration = problem, configuration
        self.format = _format(problem.spec, configuration.inside)

    def given(self, array: Any) -> Tensor:
        """An activation in the configuration's layout."""
        import torch

        spec, layout = self._problem.spec, self._configuration.layout
        tensor = torch.from_numpy(arranged(array, spec, layout))
        if layout.endswith("C"):
            tensor = torch.movedim(tensor, -1, 1)
        return tensor.unsqueeze(2) if spec.rank == 1 else tensor

    def steps(self) -> list[Step]:
        import torch

        operands = self._problem.operands
        biases = iter(operands.biases)
        found: list[Step] = []
        for stage, weight in zip(self._problem.spec.stages, operands.weights):
            bias = torch.from_numpy(next(biases)) if stage.bias else None
            if bias is not None and stage.variant == "shuffled_grouped":  # it comes after the shuffle
                bias = bias.reshape(-1, stage.groups).t().reshape(-1).contiguous()
            w = torch.from_numpy(weight)
            w = (w.unsqueeze(2) if stage.rank == 1 else w).contiguous(memory_format=self.format)
            found += self._stage(stage, w, bias)
        return found

    def _stage(self, stage: ConvSpec, weight: Tensor, bias: Tensor | None) -> list[Step]:
        shuffled = stage.variant == "shuffled_grouped"
        packed = self._configuration.method == "channels_last_packed"
        inside = (stage.activation or "") if packed and not stage.residual and not shuffled else ""
        convolution = _packed(stage, weight, bias, inside) if packed else _plain(stage, weight, bias)
        steps = [*_padded_before(stage), convolution, *_cropped_after(stage)]
        if shuffled:
            steps.append(lambda v: v.unflatten(1, (stage.groups, -1)).transpose(1, 2).flatten(1, 2))
        if stage.residual:
            residual = self._residual()
            steps.append(lambda v: v.add_(residual()))
        if stage.activation and not inside:
            steps.append(_activation(stage.activation))
        return steps

    def _residual(self) -> Callable[[], Tensor]:
        given = self.given(self._problem.operands.residual)
        if not self._configuration.converts:
            return lambda: given
        return lambda: given.contiguous(memory_format=self.format)


def _lifted(spec: ConvSpec, values: Sequence[int], neutral: int) -> list[int]:
    return [neutral, *values] if spec.rank == 1 else list(values)


def _pads(spec: ConvSpec) -> list[int]:
    """Zeros that the convolution itself adds, on both sides alike."""
    if spec.variant == "transposed":
        if any(after < 0 for _, after in spec.padding):
            raise Unsupported(f"transposed with padding {spec.padding}: none may be negative")
        return _lifted(spec, [min(pair) for pair in spec.padding], 0)
    symmetric = all(before == after for before, after in spec.padding)
    return _lifted(spec, [before if symmetric else 0 for before, _ in spec.padding], 0)


def _padded_before(spec: ConvSpec) -> list[Step]:
    """Pads, or crops, the input of a convolution whose two sides differ: PyTorch's convolutions pad both alike."""
    import torch.nn.functional as functional

    if spec.variant == "transposed" or all(before == after for before, after in spec.padding):
        return []
    widths = [width for pair in reversed(spec.padding) for width in pair]
    return [lambda v: functional.pad(v, widths)]


def _cropped_after(spec: ConvSpec) -> list[Step]:
    """Takes away what a transposed convolution with the lesser padding has too many at one end."""
    if spec.variant != "transposed" or all(before == after for before, after in spec.padding):
        return []
    starts = [before - min(before, after) for before, after in spec.padding]
    index = (..., *(slice(start, start + size) for start, size in zip(starts, spec.out_size)))
    return [lambda v: v[index]]


def _geometry(spec: ConvSpec) -> tuple[list[int], list[int]]:
    """Strides and dilations."""
    return _lifted(spec, spec.stride, 1), _lifted(spec, spec.dilation, 1)


def _plain(spec: ConvSpec, weight: Tensor, bias: Tensor | None) -> Step:
    import torch.nn.functional as functional

    padding, (stride, dilation), groups = _pads(spec), _geometry(spec), spec.groups
    if spec.variant == "transposed":
        transposed = {2: functional.conv_transpose2d, 3: functional.conv_transpose3d}[_rank(spec)]
        extra = _lifted(spec, spec.output_padding or (), 0)
        return lambda v: transposed(v, weight, bias, stride, padding, extra, groups, dilation)
    conv = {2: functional.conv2d, 3: functional.conv3d}[_rank(spec)]
    return lambda v: conv(v, weight, bias, stride, padding, dilation, groups)


def _packed(spec: ConvSpec, weight: Tensor, bias: Tensor | None, activation: str) -> Step:
    import torch

    ops = torch.ops.mkldnn
    padding, (stride, dilation), groups = _pads(spec), _geometry(spec), spec.groups
    extended = zip(spec.in_size, spec.padding)
    symmetric = all(before == after for before, after in spec.padding)
    sizes = list(spec.in_size) if symmetric or spec.variant == "transposed" else [n + sum(p) for n, p in extended]
    in_size = [spec.batch, spec.in_channels, *_lifted(spec, sizes, 1)]
    name, scalars = _ATTRIBUTES[activation]
    algorithm = "none" if name == "gelu" else ""  # the exact erf, not tanh
    if spec.variant == "transposed":
        extra = _lifted(spec, spec.output_padding or (), 0)
        packed = ops._reorder_convolution_transpose_weight(weight, padding, extra, stride, dilation, groups, in_size)
        run = ops._convolution_transpose_pointwise.default
        return lambda v: run(v, packed, bias, padding, extra, stride, dilation, groups, name, scalars, algorithm)
    packed = ops._reorder_convolution_weight(weight, padding, stride, dilation, groups, in_size)
    run = ops._convolution_pointwise.default
    return lambda v: run(v, packed, bias, padding, stride, dilation, groups, name, scalars, algorithm)


_ATTRIBUTES: dict[str, tuple[str, list[float]]] = {
    "": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
    "leaky_relu": ("leaky_relu", [LEAKY_SLOPE]),
    "silu": ("swish", []),
    "hardswish": ("hardswish", []),
    "gelu": ("gelu", []),
    "sigmoid": ("sigmoid", []),
    "tanh": ("tanh", []),
}
"""oneDNN's names, and scalars, of the activations that it computes with the convolution."""


def _activation(name: str) -> Step:
    """In place, where PyTorch can."""
    import torch
    import torch.nn.functional as functional

    steps: dict[str, Step] = {
        "relu": torch.relu_,
        "relu6": lambda v: functional.relu6(v, inplace=True),
        "leaky_relu": lambda v: functional.leaky_relu_(v, LEAKY_SLOPE),
        "silu": lambda v: functional.silu(v, inplace=True),
        "hardswish": lambda v: functional.hardswish(v, inplace=True),
        "gelu": functional.gelu,
        "sigmoid": torch.sigmoid_,
        "tanh": torch.tanh_,
    }
    return steps[name]


def _deformable(problem: Problem, configuration: Configuration) -> Prepared:
    """torchvision's, which is channels first only."""
    import torch

    try:
        from torchvision.ops import deform_conv2d
    except Exception as problem_of_import:  # not only ImportError: built for another torch it raises what it likes
        raise Unsupported(f"torchvision cannot be imported: {problem_of_import}") from problem_of_import
    spec, operands = problem.spec, problem.operands
    if any(before != after for before, after in spec.padding):
        raise Unsupported(f"torchvision's deform_conv2d with padding {spec.padding}: both sides must be alike")
    (weight,), bias = map(torch.from_numpy, operands.weights), operands.bias
    arrays = [operands.x, operands.inputs["offset"], operands.inputs.get("mask"), operands.residual]
    given = [None if a is None else torch.from_numpy(arranged(a, spec, configuration.layout)) for a in arrays]
    bias_tensor = None if bias is None else torch.from_numpy(bias)
    padding = [before for before, _ in spec.padding]
    activation = _activation(spec.activation) if spec.activation else None
    latest: list[Tensor] = [None]

    def call() -> None:
        tensors = given
        if configuration.converts:
            tensors = [None if t is None else t.permute(0, 3, 1, 2).contiguous() for t in given]
        x, offset, mask, residual = tensors
        y = deform_conv2d(x, offset, weight, bias_tensor, spec.stride, padding, spec.dilation, mask)
        y = y if residual is None else y.add_(residual)
        y = activation(y) if activation else y
        latest[0] = y.permute(0, 2, 3, 1).contiguous() if configuration.converts else y

    return Prepared(call, lambda: latest[0].numpy())


pytorch = PyTorch()
