"""The zoo's networks are whole: what they come to is what is published, and each layer gets what another gives."""

from __future__ import annotations

import csv
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import pytest

from convtune import ConvSpec, workloads
from convtune.spec import count

SINGLE_LAYERS = {
    "rfcn_r101",
    "istft_pytorch_120982",
    "pytorch_110885",
    "edvr_basicvsr++",
    "ort_16903",
    "deft_layer",
    "mamba_like_pytorch_192902",
    "conformer_pytorch_170138",
    "inductor_175280",
    "inductor_174989",
    "tvm_C1D",
}
"""What is no network, but layers of bug reports, papers and benchmarks."""


@dataclass(frozen=True)
class Published:
    """What a network has in all.

    Args:
        millions: parameters, to as many digits as are published, rounded or cut there.
        beside: parameters that are in no convolution, such as the classifier's.
        billions: multiply-accumulates, to as many digits as are published; "" where none are.
        macs_beside: multiply-accumulates of no convolution.
        per_channel: parameters that follow a convolution, for each of its output channels: 2 of a batch norm, 1 of
            a bias.
    """

    millions: str
    beside: int
    billions: str
    macs_beside: int = 0
    per_channel: Callable[[ConvSpec], int] = lambda spec: 2


def biased(spec: ConvSpec) -> int:
    return 1


def squeezed(spec: ConvSpec) -> int:
    """Squeeze-and-excitation has biases; all others are followed by a batch norm."""
    return 1 if set(spec.in_size) == {1} else 2


def x3d(spec: ConvSpec) -> int:
    """Nothing follows the two halves of the first convolution's first, the first shortcut and the second last layer."""
    bare = spec.in_channels == 3 or spec.out_channels == 2048 or (spec.out_channels == 24 and spec.stride[1] == 2)
    return 0 if bare else squeezed(spec)


def erfnet(spec: ConvSpec) -> int:
    """All have biases, and all but the last a batch norm: a pair has it after its second."""
    return 4 if spec.variant == "spatially_separable" else 1 if spec.out_channels == 20 else 3


def linear(*channels: int) -> int:
    """Parameters of linear layers in a row."""
    return sum((i + 1) * o for i, o in itertools.pairwise(channels))


def norms(*channels: int) -> int:
    """Parameters of normalizations that follow no convolution."""
    return 2 * sum(channels)


REPLKNET = [128] * 2 + [256] * 2 + [512] * 18 + [1024] * 2  # channels of its blocks

PUBLISHED = {
    # torchvision: num_params and _ops of its weights; inception and deeplab less their auxiliary heads
    "resnet50_v1.5": Published("25.557032", linear(2048, 1000), "4.089", 2048_000),
    "resnext50_32x4d": Published("25.028904", linear(2048, 1000), "4.230", 2048_000),
    "mobilenet_v2": Published("3.504872", linear(1280, 1000), "0.301", 1280_000),
    "mobilenet_v3_large": Published("5.483032", linear(960, 1280, 1000), "0.217", 1280 * 1960, squeezed),
    "mobilenet_v3_small": Published("2.542856", linear(576, 1024, 1000), "0.057", 1024 * 1576, squeezed),
    "efficientnet_b0": Published("5.288548", linear(1280, 1000), "0.386", 1280_000, squeezed),
    "shufflenet_v2_x1_0": Published("2.278604", linear(1024, 1000), "0.145", 1024_000),
    "r2plus1d_18": Published("31.505325", linear(512, 400), "40.519", 512 * 400),
    "inception_v3": Published("27.161264", linear(2048, 1000) + 3_326_696, "5.713", 2048_000),
    "deeplabv3_r50_os8_520": Published(
        "42.004074",
        2_365_205,
        "178.722",
        65 * 65 * 256 * (1024 * 9 + 21),
        lambda spec: 1 if spec.out_channels == 21 else 2,
    ),
    # layer norms, and the scale of each block's channels
    "convnext_tiny": Published(
        "28.589128",
        norms(96, 96, 192, 384, 768) + 3 * (3 * 96 + 3 * 192 + 9 * 384 + 3 * 768) + linear(768, 1000),
        "4.456",
        768_000,
        biased,
    ),
    # Howard et al. 2017: 4.2 million, 569 million
    "mobilenet_v1": Published("4.2", linear(1024, 1000), "0.569", 1024_000),
    # Zhang et al. 2017, Table 1: 137 million; the authors' code: 1.9 million
    "shufflenet_v1_g3": Published("1.9", 960_000, "0.137", 960_000),
    # Ding et al. 2022, Table 5: 79 million, 15.3 billion; a norm before each block's two halves
    "replknet_31b": Published("79", norms(*REPLKNET, *REPLKNET, 1024) + linear(1024, 1000), "15.3", 1024_000),
    # PyTorch's DCGAN example
    "dcgan_g": Published("3.576704", 0, "", per_channel=lambda spec: 0 if spec.out_channels == 3 else 2),
    "dcgan_d": Published("2.765568", 0, "", per_channel=lambda spec: 0 if spec.in_channels in (3, 512) else 2),
    # Ronneberger et al. 2015, as counted by its implementations
    "unet_572": Published("31.03", 0, "", per_channel=biased),
    # Kong et al. 2020, Table 1: 13.92 million
    "hifigan_v1": Published("13.92", 0, "", per_channel=biased),
    # Tran et al. 2015, for 101 classes
    "c3d": Published("78.41", linear(8192, 4096, 4096, 101), "38.5", 8192 * 4096 + 4096 * 4197, biased),
    # Feichtenhofer 2020: X3D-M, whose 4.73 billion are of clips twice as long
    "x3d": Published("3.794274", linear(2048, 400), "2.37", 2048 * 400, x3d),
    # Romera et al. 2017, with the encoder's own classifier, as counted by its implementations
    "erfnet": Published("2.07", norms(3, 16, 64) + linear(128, 20), "", per_channel=erfnet),
}


def layers(network: str) -> dict[ConvSpec, int]:
    return {workload.spec: workload.count for workload in workloads.zoo()[network].workloads}


def weights(network: str, per_channel: Callable[[ConvSpec], int] = lambda spec: 0) -> int:
    return sum(
        times * (sum(map(count, spec.weight_shapes)) + per_channel(spec) * spec.out_channels)
        for spec, times in layers(network).items()
    )


def macs(network: str) -> int:
    return sum(times * spec.macs for spec, times in layers(network).items())


def agree(number: float, published: str) -> bool:
    """Whether a number is the published one as far as that has digits."""
    return abs(number - float(published)) < 0.99 * 10 ** -len(published.partition(".")[2])


@pytest.mark.parametrize("network", PUBLISHED)
def test_parameters_and_multiply_accumulates_are_the_published_ones(network: str) -> None:
    published = PUBLISHED[network]
    parameters = weights(network, published.per_channel) + published.beside
    assert agree(parameters / 1e6, published.millions)
    if published.billions:
        assert agree((macs(network) + published.macs_beside) / 1e9, published.billions)


Given = tuple[int, tuple[int, ...]]  # channels, size


def squares(*given: tuple[int, int], rank: int = 2) -> set[Given]:
    return {(channels, (size,) * rank) for channels, size in given}


UNET_POOLED = squares((64, 284), (128, 140), (256, 68), (512, 32))
UNET_JOINED = squares((1024, 56), (512, 104), (256, 200), (128, 392))
VGG_POOLED = squares((64, 112), (128, 56), (256, 28), (512, 14))
C3D_POOLED: set[Given] = {(64, (16, 56, 56)), (128, (8, 28, 28)), (256, (4, 14, 14)), (512, (2, 7, 7))}
ERFNET_JOINED: set[Given] = {(16, (256, 512)), (64, (128, 256)), (128, (64, 128))}

INPUTS: dict[str, set[Given]] = {
    "mobilenet_v1": squares((3, 224)),
    "mobilenet_v1_fused": squares((3, 224)),
    "vgg16_flattened": squares((3, 224)) | VGG_POOLED,
    "replknet_31b": squares((3, 224)),
    "shufflenet_v1_g3": squares((3, 224), (24, 56)),  # after pooling
    "wavenet": {(256, (16384,))},
    "dcgan_g": squares((100, 1)),
    "dcgan_d": squares((3, 64)),
    "unet_572": squares((1, 572)) | UNET_POOLED | UNET_JOINED,
    "hifigan_v1": {(80, (32,))},
    "c3d": {(3, (16, 112, 112))} | C3D_POOLED,
    "x3d": {(3, (8, 224, 224))} | squares((54, 1), (108, 1), (216, 1), (432, 1), rank=3),  # after pooling
    "erfnet": {(3, (512, 1024))} | ERFNET_JOINED,
}
"""What the networks that are written by hand are given, and what pooling and joining make in them."""


@pytest.mark.parametrize("network", INPUTS)
def test_every_layer_gets_what_is_there_and_what_is_there_is_used(network: str) -> None:
    gets = {(spec.in_channels, spec.in_size) for spec in layers(network)}
    gives = {(spec.out_channels, spec.out_size) for spec in layers(network)}
    assert gets <= INPUTS[network] | gives
    assert INPUTS[network] <= gets


def test_what_is_not_checked_by_a_number_is_checked_below() -> None:
    others = {"mobilenet_v1_fused", "vgg16_flattened", "wavenet", "maskrcnn_r50_dcnv2_800x1344"}
    assert {*workloads.zoo()} == {*PUBLISHED} | others | SINGLE_LAYERS


def test_the_stages_of_the_fused_mobilenet_are_the_layers_of_the_plain_one() -> None:
    stages: Counter[ConvSpec] = Counter()
    for spec, times in layers("mobilenet_v1_fused").items():
        first, *rest = spec.stages
        assert [stage.activation for stage in rest] == [None] * len(rest)
        assert first.activation == ("relu" if rest else None)
        for stage in spec.stages:
            stages[stage.replace(activation=None)] += times
    assert stages == layers("mobilenet_v1")


def test_the_flattened_vgg_is_of_vgg16() -> None:
    flattened = layers("vgg16_flattened")
    dense = {spec: 9 * spec.in_channels * spec.out_channels for spec in flattened}
    assert sum(flattened.values()) == 13
    # torchvision's vgg16: 138,357,544 parameters, 15.47 billion
    parameters = sum(n * (dense[spec] + spec.out_channels) for spec, n in flattened.items())
    assert parameters + linear(512 * 49, 4096, 4096, 1000) == 138_357_544
    macs = sum(n * dense[spec] * count(spec.out_size) for spec, n in flattened.items())
    assert agree((macs + 512 * 49 * 4096 + 4096 * 5096) / 1e9, "15.47")


def test_a_wavenet_layer_has_a_filter_a_gate_a_residual_and_a_skip() -> None:
    named = {workload.name.partition("/")[2]: workload for workload in workloads.zoo()["wavenet"].workloads}
    stacks, dilations = 4, [2**i for i in range(10)]
    assert [named[f"d{d}"].count for d in dilations] == [2 * stacks] * len(dilations)
    assert [named[f"d{d}"].spec.dilation for d in dilations[1:]] == [(d,) for d in dilations[1:]]
    assert named["residual"].count == named["skip"].count == stacks * len(dilations)
    for workload in named.values():  # causal: the past is padded, and every sample has an output
        ((before, after),) = workload.spec.padding
        assert (before, after) == (workload.spec.span[0] - 1, 0)
    # van den Oord et al. 2016: a stack of 1, 2, 4, ..., 512 has a receptive field of 1024
    assert 1 + sum(named[f"d{d}"].spec.span[0] - 1 for d in dilations) == 1024


def test_the_deformable_resnet_is_resnet_50_on_an_image_of_800_x_1344() -> None:
    rows = zoo_rows("maskrcnn_r50_dcnv2_800x1344")
    found = Counter[Shape]()
    for row in rows:
        if not row["layer"].startswith("offset"):
            ic, oc, kernel, (height, width), stride = shape(row)
            found[ic, oc, kernel, (height * 7 // 25, width // 6), stride] += int(row["count"])
            assert (height * 7 % 25, width % 6) == (0, 0)
    assert found == Counter[Shape]({shape(row): int(row["count"]) for row in zoo_rows("resnet50_v1.5")})


def test_in_the_deformable_resnet_all_3_x_3_from_the_third_stage_on_are_modulated_and_have_their_offsets() -> None:
    rows = [row for row in zoo_rows("maskrcnn_r50_dcnv2_800x1344") if row["kernel"] == "3x3"]
    offsets = {row["layer"]: row for row in rows if row["layer"].startswith("offset")}
    deformable = [row for row in rows if row["variant"] == "deformable"]
    assert {row["layer"] for row in rows} == {*offsets, *(row["layer"] for row in deformable), "c64_64_200x336_k3s1"}
    assert len(offsets) == len(deformable)
    for row in deformable:
        assert (row["modulated"], row["offset_groups"]) == ("1", "1")
        y, x, mask = 9, 9, 9
        other = {
            "layer": "",
            "variant": "conv",
            "out_channels": str(y + x + mask),
            "offset_groups": "",
            "modulated": "",
        }
        assert offsets[row["layer"].replace("c", "offset")] | {"layer": ""} == row | other


Shape = tuple[int, int, str, tuple[int, int], str]


def shape(row: dict[str, str]) -> Shape:
    """Channels, kernel, size and stride of a row of a 2-D layer."""
    height, width = map(int, row["in_size"].split("x"))
    return int(row["in_channels"]), int(row["out_channels"]), row["kernel"], (height, width), row["stride"]


def zoo_rows(network: str) -> list[dict[str, str]]:
    text = resources.files("convtune.workloads").joinpath("zoo.csv").read_text(encoding="utf-8")
    return [row for row in csv.DictReader(text.splitlines()) if row["network"] == network]


@pytest.mark.parametrize("network", workloads.zoo())
def test_every_layer_has_a_name_and_a_spec_of_its_own(network: str) -> None:
    names = [row["layer"] for row in zoo_rows(network)]
    assert sorted(names) == sorted({*names})
    assert len(layers(network)) == len(workloads.zoo()[network].workloads)
