"""`convtune show`: figures against sums done here, formulas and fields as printed, lists against the registries."""

from __future__ import annotations

import csv
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest
from cli_process import SMALL, TINY, invoke, printed_json

import convtune.workloads
from convtune import space, targets, variants
from convtune.cli.stages import with_stages
from convtune.spec import ConvSpec
from convtune.targets import cuda
from convtune.targets.cuda_driver import Found
from convtune.workloads import Workload

SEPARABLE = "depthwise_separable,ic=16,oc=128,in=14x14,k=3x3,p=1,layout=NHWC"
DILATED = (
    "conv,ic=8,oc=8,in=20x20,k=3x3,p=1",
    "dilated,ic=8,oc=8,in=20x20,k=3x3,p=2,d=2",
    "dilated,ic=8,oc=8,in=20x20,k=3x3,p=4,d=4",
)


def rows_of(table: str) -> list[list[str]]:
    """The cells of a table's rows, in which no cell has a space."""
    return [line.split() for line in table.splitlines()[2:] if line]


def test_show_one_workload() -> None:
    (data,) = printed_json("show", TINY)
    spec, native = ConvSpec.parse(TINY), targets.resolve("native")
    assert (data["spec"], data["out_size"], data["parameters"]) == (TINY, [9, 9], 16 * 9)
    assert data["macs"] == 9 * 9 * 16 * 9
    assert data["bytes"] == 4 * (2 * 9 * 9 * 16 + 16 * 9)
    assert data["flops_per_byte"] == 2 * data["macs"] / data["bytes"]
    assert data["receptive_field"] == [3, 3]
    expected = {s.name: len(list(space.enumerate_candidates(s, spec, native))) for s in space.accepting(spec, native)}
    assert data["spaces"] == expected
    text = invoke("show", TINY).stdout
    assert str(space.default_candidate(spec, native)) in text
    for name, count in expected.items():
        assert f"{name} with {count} candidate" in text


def test_show_several_workloads_is_a_table() -> None:
    text = invoke("show", TINY, SMALL, "--layout", "channels_first").stdout
    header, rule, *rows = text.splitlines()
    assert header.startswith("layer ")
    assert set(rule) == {"-", " "}
    assert [row.split()[2] for row in rows] == ["9x9", "12x12"]
    assert [row.split()[5] for row in rows] == ["0.062", "-"], "of the standard convolution's, where it is another"


def test_show_beside_the_standard_convolution() -> None:
    (data,) = printed_json("show", SEPARABLE)
    standard, ratio = data["standard"], data["ratio"]
    assert standard["spec"] == "conv,ic=16,oc=128,in=14x14,k=3x3,p=1,layout=NHWC"
    assert (standard["parameters"], standard["macs"]) == (16 * 128 * 9, 14 * 14 * 16 * 128 * 9)
    assert (ratio["formula"], ratio["numbers"]) == ("m/oc + m/k²", "1/128 + 1/9")
    assert ratio["macs"] == pytest.approx(1 / 128 + 1 / 9)
    for figure in ("parameters", "bytes", "flops_per_byte"):
        assert ratio[figure] == data[figure] / standard[figure]
    text = invoke("show", SEPARABLE).stdout
    assert "m/oc + m/k² = 1/128 + 1/9 = 0.1189 of the standard's" in text
    (macs,) = (line for line in text.splitlines() if line.startswith("MACs ") and "=" not in line)
    assert macs.split() == ["MACs", "429,632", "3,612,672", "0.119"]


def test_show_the_stages_of_a_composite_variant() -> None:
    (data,) = printed_json("show", SEPARABLE)
    stages = ConvSpec.parse(SEPARABLE).stages
    assert [stage["spec"] for stage in data["stages"]] == list(map(str, stages))
    assert [stage["macs"] for stage in data["stages"]] == [14 * 14 * 16 * 9, 14 * 14 * 16 * 128]
    assert [stage["receptive_field"] for stage in data["stages"]] == [[3, 3], [1, 1]]
    assert data["intermediate_bytes"] == 4 * 16 * 14 * 14
    text = invoke("show", SEPARABLE).stdout
    assert "between them 12.2 KiB, which separate calls write and read again" in text
    assert all(text.count(f"  {stage}\n") == 1 for stage in stages)
    (plain,) = printed_json("show", SMALL)
    assert (plain["stages"], plain["intermediate_bytes"], plain["standard"], plain["ratio"]) == ([], 0, None, None)


def test_show_stages_as_workloads() -> None:
    data = printed_json("show", TINY, SEPARABLE, "--stages")
    names = [TINY, SEPARABLE, f"{SEPARABLE} stage 1", f"{SEPARABLE} stage 2"]
    assert [row["name"] for row in data] == names
    assert [row["count"] for row in data] == [1, 1, 0, 0]
    assert [row["spec"] for row in data[2:]] == [stage["spec"] for stage in data[1]["stages"]]
    assert all(row["spaces"] for row in data)


def test_stages_keep_the_network_s_name() -> None:
    composite, plain = (ConvSpec.parse(text) for text in (SEPARABLE, TINY))
    named = with_stages([Workload("net/a", composite, 3), Workload("net/b", plain)])
    assert [workload.name for workload in named] == ["net/a", "net/a stage 1", "net/a stage 2", "net/b"]


def test_show_a_chain() -> None:
    data = printed_json("show", *DILATED, "--chain")
    assert [row["chain"]["receptive_field"] for row in data] == [[3, 3], [7, 7], [15, 15]]
    assert [row["receptive_field"] for row in data] == [[3, 3], [5, 5], [9, 9]]
    rows = rows_of(invoke("show", *DILATED, "--chain").stdout)
    assert [row[9:12] for row in rows] == [["3x3", "3x3", "1x1"], ["5x5", "7x7", "1x1"], ["9x9", "15x15", "1x1"]]
    assert [row["chain"] for row in printed_json("show", *DILATED)] == [None, None, None]
    up = "transposed,ic=8,oc=8,in=20x20,k=4x4,s=2,p=1"
    assert printed_json("show", DILATED[0], up, "--chain")[1]["chain"] == {
        "receptive_field": [4, 4],
        "jump": [0.5, 0.5],
    }


def test_a_chain_that_is_none_is_one_line() -> None:
    result = invoke("show", DILATED[0], SMALL, "--chain")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    said = "layer 2 of the chain takes 16 channels of 12x12, but layer 1 gives 8 channels of 20x20"
    assert line == f"convtune: error: {said}: {SMALL} after {DILATED[0]}"
    both = invoke("show", DILATED[0], "--chain", "--stages")
    assert both.exit_code == 2
    assert "--chain and --stages exclude each other" in both.stderr


def test_work_that_is_in_no_figure_is_said() -> None:
    deformable = "deformable,ic=4,oc=8,in=9x9,k=3x3,p=2,d=2,g=2"
    (data,) = printed_json("show", deformable)
    assert data["not_counted"].startswith("bilinear sampling: 4 multiply-adds")
    assert (data["macs"], data["ratio"]["macs"]) == (9 * 9 * 2 * 8 * 9, 0.5)
    assert data["standard"]["spec"] == "dilated,ic=4,oc=8,in=9x9,k=3x3,p=2,d=2"
    assert data["bytes"] == 4 * (9 * 9 * (4 + 8 + 2 * 9) + 8 * 2 * 9), "the offsets too"
    assert data["receptive_field"] == [5, 5]
    assert re.search(
        f"^not counted  {re.escape(data['not_counted'])}$", invoke("show", deformable).stdout, re.MULTILINE
    )


def test_what_cannot_be_compared_is_said() -> None:
    huge = "depthwise,ic=100000,oc=100000,in=2x2,k=1x1"
    (data,) = printed_json("show", huge)
    assert (data["standard"], data["ratio"], data["receptive_field"]) == (None, None, [1, 1])
    (problem,) = data["problems"]
    assert problem.startswith("standard convolution: a tensor of pointwise has more than 2147483647 elements")
    assert re.search(f"^not known +{re.escape(problem)}$", invoke("show", huge).stdout, re.MULTILINE)
    sparse = "transposed,ic=1,oc=1,in=3,k=1,s=9001"
    (data,) = printed_json("show", sparse)
    assert data["receptive_field"] is None
    assert data["problems"] == ["receptive field: outputs repeat every 9001; at most 8192 are followed"]
    assert "receptive field: outputs repeat" in invoke("show", sparse).stdout


def test_the_page_shows_what_is_printed() -> None:
    """Up to the lines that depend on the machine, for which the page has an ellipsis."""
    page = (Path(__file__).parents[1] / "docs" / "show.md").read_text(encoding="utf-8")
    examples = re.findall(r"^```sh\nconvtune (show .*?)\n```\n```\n(.*?)^…?$", page, re.DOTALL | re.MULTILINE)
    assert len(examples) >= 2
    for command, shown in examples:
        printed = invoke(*shlex.split(command)).stdout
        for line in shown.splitlines():
            assert line.rstrip("… ") in printed, line


def test_show_lists() -> None:
    assert [row["name"] for row in printed_json("show", "variants")] == list(variants.known())
    assert [row["name"] for row in printed_json("show", "spaces")] == list(space.known())
    rows = {row["name"]: row for row in printed_json("show", "targets")}
    assert rows["native"]["runs_here"]
    assert rows["znver5"]["vector_bits"] == 512
    assert (rows["sm_86"]["sms"], rows["sm_86"]["runs_here"], rows["sm_86"]["notice"]) == (82, False, None)
    assert (rows["native"]["tuned_here"], rows["sm_86"]["tuned_here"]) == ("measured", "estimated")
    for what, part in (("variants", "depthwise"), ("spaces", "fallback"), ("targets", "sapphirerapids")):
        assert f"\n{part} " in invoke("show", what).stdout


def test_cpus_and_gpus_have_tables_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "first_gpu", lambda: Found(None, "there is none"))
    cpus, gpus, notice = invoke("show", "targets").stdout.split("\n\n")
    assert cpus.startswith("CPU ") and gpus.startswith("GPU ")
    assert "\nnvidia/nvidia-t4  " in gpus and "8.1 TFLOP/s" in gpus and "64.0 KiB" in gpus
    assert notice.strip().endswith("there is none")


def test_a_gpu_that_is_not_here_is_told_on_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "first_gpu", lambda: Found(None, "there is none"))
    result = invoke("show", TINY, "--target", "cuda", "--json")
    assert result.stderr.startswith("convtune: target 'cuda' means sm_80") and result.stderr.count("\n") == 1
    (data,) = json.loads(result.stdout)
    assert data["target"] == "cuda" and all(space.get(name).name.startswith("gpu_") for name in data["spaces"])


def test_show_variants_has_their_formulas() -> None:
    rows = {row["name"]: row for row in printed_json("show", "variants")}
    assert rows["depthwise_separable"]["ratio"] == {"1": "m/oc + m/k", "2": "m/oc + m/k²", "3": "m/oc + m/k³"}
    text = invoke("show", "variants").stdout
    for row in rows.values():
        assert set(row["ratio"]) == set(map(str, row["dimensions"]))
        (line,) = (line for line in text.splitlines() if line.startswith(f"{row['name']} "))
        assert f"  {row['ratio']['2']}  " in line
        assert line.endswith(row["summary"])


def test_show_workloads_counts_layers() -> None:
    rows = {row["name"]: row for row in printed_json("show", "workloads")}
    file = Path(convtune.workloads.__file__).with_name("zoo.csv")
    with file.open(encoding="utf-8", newline="") as text:
        counted = Counter(row["network"] for row in csv.DictReader(text))
    assert {name: row["layers"] for name, row in rows.items()} == counted
    (line,) = (line for line in invoke("show", "workloads").stdout.splitlines() if line.startswith("mobilenet_v2 "))
    assert line.split()[1] == str(rows["mobilenet_v2"]["layers"])


@pytest.mark.parametrize("given", ["--target sm_80", "--threads 2", "--layout channels_last"])
def test_a_list_refuses_options_of_workloads(given: str) -> None:
    result = invoke("show", "targets", *given.split())
    assert result.exit_code == 2
    assert f"{given.split()[0]} is for workloads; `show targets` takes --json only." in result.stderr
