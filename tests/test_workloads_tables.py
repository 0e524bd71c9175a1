"""CSV and JSON files of specs: what they may hold, and that what is wrong is named with its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from strategies import specs

from convtune import ConvSpec, workloads
from convtune.errors import ConvtuneError, SpecError
from convtune.workloads import Workload

HEADER = "network,layer,variant,batch,in_channels,in_size,out_channels,kernel,stride,padding,dilation,groups,count"


def parse_text(directory: Path, name: str, text: str) -> list[Workload]:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return workloads.parse([str(path)])


def test_csv_as_the_zoo_has_it(tmp_path: Path) -> None:
    rows = (
        "net,a,depthwise,1,8,99,8,4,1,3:0,1,8,2",
        "net,b,conv,3,3,16x112x112,45,1x7x7,1x2x2,0x3x3,1,1,",
        ",,pointwise,,4,9x9,5,1,,,,,",
    )
    read = parse_text(tmp_path, "net.csv", "\n".join([HEADER, *rows, ""]))
    assert read == [
        Workload("net/a", ConvSpec("depthwise", 8, 8, 99, 4, padding=((3, 0),)), 2),
        Workload(
            "net/b",
            ConvSpec("conv", 3, 45, (16, 112, 112), (1, 7, 7), batch=3, stride=(1, 2, 2), padding=(0, 3, 3)),
        ),
        Workload("pointwise,ic=4,oc=5,in=9x9,k=1x1", ConvSpec("pointwise", 4, 5, (9, 9), 1)),
    ]


def test_csv_with_any_field_in_any_order_and_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = "\ufeffkernel, variant,in_size,out_channels,in_channels,layout,bias,residual,activation,padding,layer\n"
    text += '"3",conv,"9x9",2,1,NHWC,1,FALSE,silu,same,"quoted, name"\n\n'
    spec = ConvSpec("conv", 1, 2, (9, 9), 3, padding=1, layout="NHWC", bias=True, activation="silu")
    assert parse_text(tmp_path, "x.csv", text) == [Workload("quoted, name", spec)]


def test_csv_of_chains_of_convolutions(tmp_path: Path) -> None:
    header = (
        "variant,in_channels,out_channels,in_size,kernel,channel_multiplier,mid_channels,stage_bias,stage_activations,"
        "activation"
    )
    rows = (
        "depthwise_separable,4,8,9x9,3x3,2,,1,relu6,",
        "spatially_separable,4,8,9x9x9,3,,5x6,0x1,relu/none,none",
        "flattened,4,8,9x9,3,,,,none,none",
    )
    read = parse_text(tmp_path, "chains.csv", "\n".join([header, *rows]))
    assert [workload.spec for workload in read] == [
        ConvSpec(
            "depthwise_separable", 4, 8, (9, 9), 3, channel_multiplier=2, stage_bias=True, stage_activations="relu6"
        ),
        ConvSpec(
            "spatially_separable",
            4,
            8,
            (9, 9, 9),
            3,
            mid_channels=(5, 6),
            stage_bias=(False, True),
            stage_activations=("relu", None),
        ),
        ConvSpec("flattened", 4, 8, (9, 9), 3),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: the header has no column variant, in_channels, out_channels, in_size, kernel"),
        ("variant,kernal\n", "line 1: unknown column 'kernal'; columns are network, layer, variant, in_channels"),
        ("variant,in_channels,out_channels,in_size,kernel,kernel\n", "line 1: column 'kernel' is there twice"),
        ("variant,in_channels,out_channels,in_size\n", "line 1: the header has no column kernel"),
        ("{h}\nconv,1,1,9,x\n", "line 2, column 'kernel': 'x' is no value for kernel"),
        ("{h}\nconv,1,1,9,3\nconv,1,1.5,9,3\n", r"line 3, column 'out_channels': '1\.5' is no value for out_channels"),
        ("{h}\nconv,1,1,9\n", "line 2: 4 cells, but the header has 5 columns"),
        ("{h}\nconv,1,1,9,3,\n", "line 2: 6 cells, but the header has 5 columns"),
        ("{h}\nconv,1,1,9,12\n", "line 2: output dimension 0 would be -2"),
        ("{h}\nconv,1,,9,3\n", "line 2: out_channels missing"),
        ("{h}\ncnov,1,1,9,3\n", "line 2: unknown variant 'cnov'; near it: conv"),
        ('{h}\nconv,"1\n', "line 2: unexpected end of data"),
        ("{h},bias\nconv,1,1,9,3,2\n", "line 2, column 'bias': '2' is no value for bias; it must be 0 or 1"),
        ("{h},count\nconv,1,1,9,3,0\n", "line 2: count=0 is out of range; it must be an integer of at least 1"),
        (
            "{h},stage_bias\nflattened,1,1,9x9,3,1x2\n",
            "stage_bias; it must be 0 or 1, or several joined by x",
        ),
        ("{h}\n", "holds no workloads"),
    ],
)
def test_csv_errors_name_file_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    text = text.replace("{h}", "variant,in_channels,out_channels,in_size,kernel")
    with pytest.raises(ConvtuneError, match=message) as raised:
        parse_text(tmp_path, "bad.csv", text)
    assert str(raised.value).startswith(str(tmp_path / "bad.csv"))
    assert "\n" not in str(raised.value)


def test_json(tmp_path: Path) -> None:
    entries: list[Any] = [
        "conv,ic=1,oc=2,in=9x9,k=3x3,layout=NHWC",
        {
            "variant": "depthwise",
            "in_channels": 4,
            "out_channels": 8,
            "in_size": 9,
            "kernel": 3,
            "name": "mine",
            "count": 3,
        },
        {
            "variant": "conv",
            "in_channels": 4,
            "out_channels": 8,
            "in_size": [9, 10],
            "kernel": [3, 1],
            "padding": [[1, 0], 0],
            "bias": True,
            "activation": None,
        },
    ]
    read = parse_text(tmp_path, "specs.json", json.dumps(entries))
    third = ConvSpec("conv", 4, 8, (9, 10), (3, 1), padding=((1, 0), 0), bias=True)
    assert read == [
        Workload("conv,ic=1,oc=2,in=9x9,k=3x3,layout=NHWC", ConvSpec("conv", 1, 2, (9, 9), 3, layout="NHWC")),
        Workload("mine", ConvSpec("depthwise", 4, 8, 9, 3), 3),
        Workload(str(third), third),
    ]


@given(st.lists(specs(), min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_spec_as_json(tmp_path: Path, some: list[ConvSpec]) -> None:
    fields = [{key: value for key, value in vars(spec).items() if value is not None} for spec in some]
    assert [w.spec for w in parse_text(tmp_path, "all.json", json.dumps(fields))] == some


GOOD = {"variant": "conv", "in_channels": 1, "out_channels": 1, "in_size": 9, "kernel": 3}


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"variant": "conv"}, "holds a JSON dict; it must be a list of specs"),
        ([GOOD, 3], "entry 2: is 3; it must be an object or a canonical string"),
        ([GOOD, GOOD | {"kernal": 3}], "entry 2: unknown field 'kernal'; fields are name, count, variant"),
        ([GOOD | {"kernel": 12}], "entry 1: output dimension 0 would be -2"),
        ([GOOD | {"kernel": "3"}], "entry 1: kernel='3' is not an integer"),
        (
            [GOOD | {"kernel": {"a": 3}}],
            "entry 1: kernel={'a': 3} is a dict; it must be one value for all, or",
        ),
        ([GOOD | {"variant": "cnov"}], "entry 1: unknown variant 'cnov'; near it: conv"),
        ([GOOD | {"variant": ["conv"]}], "entry 1: unknown variant"),
        ([GOOD | {"count": 0}], "entry 1: count=0 is out of range"),
        ([GOOD | {"count": True}], "entry 1: count=True is out of range"),
        ([GOOD | {"name": 3}], "entry 1: name=3 is not a string"),
        ([{"variant": "conv", "kernel": 3}], "entry 1: in_channels, out_channels, in_size missing"),
        (["conv,ic=1,oc=x"], "entry 1: malformed spec at character 14: 'x' is no value for 'oc'"),
        ([], "holds no workloads"),
    ],
)
def test_json_errors_name_file_and_entry(tmp_path: Path, entries: Any, message: str) -> None:
    with pytest.raises(ConvtuneError, match=message) as raised:
        parse_text(tmp_path, "bad.json", json.dumps(entries))
    assert str(raised.value).startswith(str(tmp_path / "bad.json"))
    assert "\n" not in str(raised.value)


def test_a_field_that_is_given_twice_in_json(tmp_path: Path) -> None:
    text = '[{"variant": "conv", "in_channels": 1, "in_channels": 2, "out_channels": 1, "in_size": [9], "kernel": 3}]'
    with pytest.raises(SpecError, match=r"twice\.json: 'in_channels' is given twice in one object"):
        parse_text(tmp_path, "twice.json", text)


def test_bad_json_names_line_and_column(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"bad\.json, line 2, column 3: Expecting value"):
        parse_text(tmp_path, "bad.json", "[\n  oops]")


@pytest.mark.parametrize("name", ["latin.csv", "latin.json"])
def test_text_that_is_not_utf8(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"variant,\xe9\n")
    with pytest.raises(SpecError, match=f"^[^:]*{name}: is not UTF-8 text: byte 8 is 0xe9$"):
        workloads.parse([str(tmp_path / name)])
