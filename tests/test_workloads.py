"""What a WORKLOAD may be, the zoo, and that reading one imports nothing heavy."""

from __future__ import annotations

import csv
import doctest
import subprocess
import sys
from collections import Counter
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given
from strategies import specs

from convtune import ConvSpec, workloads
from convtune.errors import SpecError, UnknownNameError
from convtune.spec import LAYOUTS
from convtune.workloads import Workload, classify
from convtune.workloads.plain import plain_spec


def one(text: str, layout: str | None = None) -> Workload:
    (workload,) = workloads.parse([text], layout)
    return workload


def zoo_rows() -> list[dict[str, str]]:
    text = resources.files("convtune.workloads").joinpath("zoo.csv").read_text()
    return list(csv.DictReader(text.splitlines()))


def test_a_layer_of_the_zoo() -> None:
    spec = ConvSpec("depthwise", 144, 144, (56, 56), 3, padding=1, layout="NHWC")
    assert one("mobilenet_v2/dw144_56_k3s1") == Workload("mobilenet_v2/dw144_56_k3s1", spec)
    assert one("resnet50_v1.5/r2_1x1a").count == 4


@pytest.mark.parametrize(
    ("text", "shapes"),
    [
        # input, output; the outputs as the networks' papers and model files give them
        ("resnet50_v1.5/c1", [(1, 224, 224, 3), (1, 112, 112, 64)]),
        ("resnet50_v1.5/r3_3x3s2", [(1, 56, 56, 128), (1, 28, 28, 128)]),
        ("deeplabv3_r50_os8_520/aspp36", [(1, 65, 65, 2048), (1, 65, 65, 256)]),
        ("r2plus1d_18/stem_s", [(1, 16, 112, 112, 3), (1, 16, 56, 56, 45)]),
        ("x3d/dw54_112", [(1, 8, 112, 112, 54), (1, 8, 56, 56, 54)]),
        ("inception_v3/128_1x7", [(1, 17, 17, 128), (1, 17, 17, 128)]),
        ("mamba_like_pytorch_192902/dw1d", [(1, 16384, 12288), (1, 16384, 12288)]),
        ("wavenet/d512", [(1, 16384, 32), (1, 16384, 32)]),
        ("erfnet/up128_64", [(1, 64, 128, 128), (1, 128, 256, 64)]),
        ("mobilenet_v1_fused/ds64_128_112_k3s2", [(1, 112, 112, 64), (1, 56, 56, 128)]),
    ],
)
def test_shapes_of_zoo_layers(text: str, shapes: list[tuple[int, ...]]) -> None:
    spec = one(text).spec
    assert [spec.in_shape, spec.out_shape] == shapes


def test_a_network_is_all_of_its_layers_and_a_prefix_those_that_begin_so() -> None:
    names = [w.name for w in workloads.parse(["mobilenet_v2"])]
    assert names == [f"{r['network']}/{r['layer']}" for r in zoo_rows() if r["network"] == "mobilenet_v2"]
    chosen = [name for name in names if name.startswith("mobilenet_v2/dw144_56")]
    assert len(chosen) == 2
    assert [w.name for w in workloads.parse(["mobilenet_v2/dw144_56"])] == chosen
    assert [w.name for w in workloads.parse(["mobilenet_v2/"])] == names


def test_zoo_stands_for_all_networks() -> None:
    assert [w.name for w in workloads.parse(["zoo"])] == [f"{r['network']}/{r['layer']}" for r in zoo_rows()]
    assert all(w.spec.layout.startswith("NC") for w in workloads.parse(["zoo"], layout="channels_first"))


def test_the_zoo_lists_every_layer() -> None:
    rows = Counter(row["network"] for row in zoo_rows())
    assert {network.name: len(network.workloads) for network in workloads.zoo().values()} == rows


def test_the_classifier_agrees_with_the_zoo() -> None:
    plain = {"conv", "pointwise", "dilated", "grouped", "depthwise"}
    for network in workloads.zoo().values():
        for workload in network.workloads:
            s = workload.spec
            if s.variant in plain:
                assert classify(s.groups, s.dilation, s.kernel, s.in_channels) == s.variant, workload.name


@pytest.mark.parametrize(
    ("arguments", "variant"),
    [
        ((1, (1, 1), (3, 3), 8), "conv"),
        ((1, (1, 1), (1, 1), 8), "pointwise"),
        ((1, (2, 2), (1, 1), 8), "pointwise"),
        ((1, (1, 2), (3, 1), 8), "conv"),
        ((1, (1, 2), (1, 3), 8), "dilated"),
        ((2, (2, 2), (3, 3), 8), "grouped"),
        ((8, (1, 1), (1, 1), 8), "depthwise"),
        ((1, (1,), (3,), 1), "conv"),
    ],
)
def test_classify(arguments: tuple[int, tuple[int, ...], tuple[int, ...], int], variant: str) -> None:
    assert classify(*arguments) == variant


@given(specs())
def test_every_plain_convolution_has_a_variant(spec: ConvSpec) -> None:
    fields = dict(vars(spec))
    del fields["variant"]
    same = plain_spec(**fields)
    assert (same.in_shape, same.out_shape, same.weight_shapes) == (spec.in_shape, spec.out_shape, spec.weight_shapes)


def test_dilating_a_single_tap_makes_no_other_spec() -> None:
    fields = {"in_channels": 4, "out_channels": 4, "in_size": (5, 5), "kernel": (1, 3), "groups": 1}
    assert plain_spec(**fields, dilation=(2, 1)) == plain_spec(**fields, dilation=(1, 1))


def test_a_canonical_string() -> None:
    text = "grouped,oc=128,ic=128,in=56x56,k=3x3,p=1,g=32"
    spec = ConvSpec("grouped", 128, 128, (56, 56), 3, padding=1, groups=32)
    assert one(text) == Workload(str(spec), spec)
    assert one(f" {text}\n").spec == spec


@given(specs())
def test_every_canonical_string_is_a_workload(spec: ConvSpec) -> None:
    assert one(str(spec)) == Workload(str(spec), spec)


def test_layouts_by_source() -> None:
    text = "conv,ic=1,oc=1,in=9,k=3"
    assert one("wavenet/d64").spec.layout == "NWC"
    assert one("wavenet/d64", "channels_first").spec.layout == "NCW"
    assert one(text).spec.layout == "NCW"
    assert one(text, "channels_last").spec.layout == "NWC"
    assert one(f"{text},layout=NWC", "channels_first").spec.layout == "NCW"
    for order in (0, 1):
        parsed = workloads.parse(["r2plus1d_18", "c3d", "wavenet"], ["channels_first", "channels_last"][order])
        assert all(w.spec.layout == LAYOUTS[w.spec.rank][order] for w in parsed)


def test_an_unknown_layout() -> None:
    message = "layout='NHWC' is not allowed; it must be one of channels_first, channels_last"
    with pytest.raises(SpecError, match=message):
        workloads.parse(["mobilenet_v2"], layout="NHWC")


def test_texts_in_order() -> None:
    texts = ["wavenet/d64", "mb1ic64ih56oc64oh56kh3ph1nmine", "conv,ic=1,oc=1,in=9,k=3", "wavenet/d1"]
    names = [w.name for w in workloads.parse(texts)]
    first, *_ = names
    assert first == "wavenet/d64"
    assert names[1:3] == ["mine", "conv,ic=1,oc=1,in=9,k=3"]
    assert workloads.parse([]) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mobilenet_v4", "unknown workload 'mobilenet_v4'; near it: .*mobilenet_v2"),
        ("resnet50", r"unknown workload 'resnet50'; near it: .*resnet50_v1\.5"),
        ("mobilenet_v2/dw144_57", "unknown workload 'mobilenet_v2/dw144_57'; near it: mobilenet_v2/dw144_56_k3s"),
        ("mobilenet_v5/dw144", "unknown workload"),
        ("nothing like it", "unknown workload 'nothing like it'; known: c3d, "),
        ("", "unknown workload ''; known: c3d"),
        ("cnov,ic=64,oc=64,in=9,k=3", "unknown variant 'cnov'; near it: conv"),
        ("no/such/file", "unknown workload 'no/such/file'"),
    ],
)
def test_unknown_names_list_the_near_ones(text: str, message: str) -> None:
    with pytest.raises(UnknownNameError, match=message):
        workloads.parse([text])


def test_malformed_strings_point_at_the_place() -> None:
    with pytest.raises(
        SpecError, match=r"malformed spec at character 14: 'x' is no value for 'oc'; .* in conv,ic=3,oc=>>>x"
    ):
        workloads.parse(["conv,ic=3,oc=x"])
    with pytest.raises(SpecError, match=r"malformed spec at character 5: ic, oc, in, k missing"):
        workloads.parse(["conv"])


def test_files_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("conv")
    Path("folder").mkdir()
    Path("folder.csv").mkdir()
    for text, message in {
        "missing.onnx": "missing.onnx: there is no such file",
        "missing/net.json": "missing/net.json: there is no such file",
        "notes.txt": "notes.txt: cannot be read; files of workloads end in .csv, .json, .onnx",
        "folder": "folder: is a directory; give its files, of which .csv, .json, .onnx can be read",
        "folder.csv": "folder.csv: is a directory",
    }.items():
        with pytest.raises(SpecError, match=message):
            workloads.parse([text])


def test_a_directory_does_not_hide_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wavenet").mkdir()
    assert len(workloads.parse(["wavenet"])) == 14


def test_reading_workloads_imports_neither_tvm_nor_numpy_nor_onnx() -> None:
    program = (
        "import sys; from convtune import workloads; workloads.parse(['mobilenet_v2', 'mb1ic3ih9oc4kh3'])\n"
        "print(sorted({'tvm', 'numpy', 'scipy', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("page", ["specs.md", "workloads.md"])
def test_the_examples_of_the_documentation(page: str) -> None:
    path = Path(__file__).parent.parent / "docs" / page
    failed, attempted = doctest.testfile(str(path), module_relative=False)
    assert attempted >= 4
    assert failed == 0


def test_the_documented_files_are_read(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs" / "workloads.md").read_text()
    for suffix, beginning in ((".csv", "```\nnetwork"), (".json", "```json\n[")):
        block = text[text.index(beginning) :].split("```")[1].removeprefix("json")
        path = tmp_path / f"layers{suffix}"
        path.write_text(block.strip())
        assert len(workloads.parse([str(path)])) == 2


def test_the_documentation_lists_the_zoo() -> None:
    text = (Path(__file__).parent.parent / "docs" / "workloads.md").read_text()
    table = text[text.index("| network |") :].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    layers = Counter(row["network"] for row in zoo_rows())
    convolutions: Counter[str] = Counter()
    for row in zoo_rows():
        convolutions[row["network"]] += int(row["count"])
    listed = [name.strip("`") for names, *_ in cells for name in names.split(", ")]
    assert sorted(listed) == sorted(layers)
    for names, _, of_layers, in_all in cells:
        if names.count("`") == 2:
            assert (int(of_layers), int(in_all)) == (layers[names.strip("`")], convolutions[names.strip("`")])
    single, *_ = [name.split(", ") for name, _, of_layers, _ in cells if "," in name]
    assert f"{len(layers) - len(single)} networks" in text
    assert f"{len(zoo_rows())} layers" in text
