"""Extracts the convolutions of torchvision's models for the zoo: run on shapes alone, so no weights are loaded."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from convtune import workloads
from convtune.log_file import replace_file
from convtune.spec import LAYOUTS, ConvSpec
from convtune.workloads.plain import plain_spec

ZOO = Path(__file__).parent.parent / "convtune" / "workloads" / "zoo.csv"


@dataclass(frozen=True)
class Model:
    """A model of torchvision: its name there, the size of its input, and what its builder is to be told."""

    name: str
    in_size: tuple[int, ...] = (224, 224)
    options: Mapping[str, Any] = field(default_factory=dict)


MODELS: Mapping[str, Model] = {
    "resnet50_v1.5": Model("resnet50"),
    "mobilenet_v2": Model("mobilenet_v2"),
    "mobilenet_v3_large": Model("mobilenet_v3_large"),
    "mobilenet_v3_small": Model("mobilenet_v3_small"),
    "efficientnet_b0": Model("efficientnet_b0"),
    "shufflenet_v2_x1_0": Model("shufflenet_v2_x1_0"),
    "convnext_tiny": Model("convnext_tiny"),
    "resnext50_32x4d": Model("resnext50_32x4d"),
    "deeplabv3_r50_os8_520": Model("deeplabv3_resnet50", (520, 520), {"weights_backbone": None}),
    "inception_v3": Model("inception_v3", (299, 299), {"aux_logits": False, "init_weights": False}),
    "r2plus1d_18": Model("r2plus1d_18", (16, 112, 112)),
}
"""The networks of the zoo that torchvision has."""


@click.command()
@click.argument("networks", nargs=-1, type=click.Choice(list(MODELS)))
@click.option("--write", is_flag=True, help="Put the rows in place of those that zoo.csv has; otherwise print them.")
def main(networks: Sequence[str], write: bool) -> None:
    """Extract NETWORKS, or all that torchvision has. A layer that the zoo has keeps its name."""
    with ZOO.open(encoding="utf-8", newline="") as file:
        header, *known = csv.reader(file)
    extracted = {name: rows(name, header) for name in networks or MODELS}
    if write:
        replace_file(ZOO, [text(merged([header, *known], extracted)).encode()])
    else:
        click.echo(text([header, *(row for some in extracted.values() for row in some)]), nl=False)


def convolutions(network: str) -> Counter[ConvSpec]:
    """The network's convolutions in the order in which they run, each with its count; channels last.

    A linear layer that runs at every pixel, as those of ConvNeXt do, is a pointwise convolution.
    """
    import torch
    from torchvision import models

    found: Counter[ConvSpec] = Counter()

    def note(module: Any, inputs: tuple[Any, ...], _: Any) -> None:
        spec = _spec(module, tuple(inputs[0].shape))
        if spec is not None:
            found[spec] += 1

    model = MODELS[network]
    with torch.device("meta"):
        built = models.get_model(model.name, **model.options).eval()
        for module in built.modules():
            module.register_forward_hook(note)
        built(torch.empty(1, 3, *model.in_size))
    return found


def _spec(module: Any, shape: tuple[int, ...]) -> ConvSpec | None:
    """The spec of a layer that runs on an input of this shape; None where it is no convolution."""
    import torch

    if isinstance(module, torch.nn.Linear) and len(shape) > 2:
        size, rank = shape[1:-1], len(shape) - 2
        return ConvSpec(
            "pointwise", module.in_features, module.out_features, size, (1,) * rank, layout=LAYOUTS[rank][1]
        )
    if not hasattr(module, "kernel_size") or not hasattr(module, "weight"):
        return None
    if not isinstance(module, (torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)):
        raise click.ClickException(f"{module} is a kind of convolution that this script does not read")
    return plain_spec(
        in_channels=module.in_channels,
        out_channels=module.out_channels,
        in_size=shape[2:],
        kernel=module.kernel_size,
        stride=module.stride,
        padding=module.padding,
        dilation=module.dilation,
        groups=module.groups,
        layout=LAYOUTS[len(shape) - 2][1],
    )


def rows(network: str, header: Sequence[str]) -> list[list[str]]:
    """The network's rows, cells in the order of the header."""
    names = _known_names(network)
    rows = []
    for spec, count in convolutions(network).items():
        cells = {"network": network, "layer": names.get(spec) or layer_name(spec), "count": str(count)} | _cells(spec)
        rows.append([cells.get(column, "") for column in header])
    return rows


def _known_names(network: str) -> Mapping[ConvSpec, str]:
    known = workloads.zoo().get(network)
    return {w.spec: w.name.partition("/")[2] for w in known.workloads} if known else {}


def _cells(spec: ConvSpec) -> dict[str, str]:
    return {
        "variant": spec.variant,
        "batch": str(spec.batch),
        "in_channels": str(spec.in_channels),
        "in_size": _x(spec.in_size),
        "out_channels": str(spec.out_channels),
        "kernel": _x(spec.kernel),
        "stride": _short(spec.stride),
        "padding": _short([before for before, _ in spec.padding]),  # torch pads both ends equally
        "dilation": _short(spec.dilation),
        "groups": str(spec.groups),
    }


def layer_name(spec: ConvSpec) -> str:
    """A name such as dw144_56_k3s2: what is usual is left out."""
    size, channels = _short(spec.in_size), f"{spec.in_channels}_{spec.out_channels}"
    stride = _short(spec.stride)
    if spec.variant == "pointwise":
        return f"pw{channels}_{size}" + (f"_s{stride}" if stride != "1" else "")
    if spec.variant == "depthwise":
        return f"dw{spec.in_channels}_{size}_k{_short(spec.kernel)}s{stride}"
    dilation = f"d{_short(spec.dilation)}" if spec.variant == "dilated" else ""
    prefix = f"g{spec.groups}_" if spec.variant == "grouped" else "c"
    return f"{prefix}{channels}_{size}_k{_short(spec.kernel)}s{stride}{dilation}"


def _x(dims: Sequence[int]) -> str:
    return "x".join(map(str, dims))


def _short(dims: Sequence[int]) -> str:
    return str(dims[0]) if len(set(dims)) == 1 else _x(dims)


def merged(table: Sequence[list[str]], extracted: Mapping[str, list[list[str]]]) -> list[list[str]]:
    """The table with the extracted networks' rows where those networks begin, or at its end."""
    result: list[list[str]] = []
    placed: set[str] = set()
    for row in table:
        if row[0] not in extracted:
            result.append(row)
        elif row[0] not in placed:
            placed.add(row[0])
            result += extracted[row[0]]
    return result + [row for name, some in extracted.items() if name not in placed for row in some]


def text(table: Sequence[Sequence[str]]) -> str:
    """The table as CSV."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(table)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
