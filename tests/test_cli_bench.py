"""`convtune bench` as a user meets it, against peers that are no libraries: table, file, going on, what goes wrong."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bench_peers import Puppet
from cli_process import MCPU, SMALL, TINY, invoke, run

import convtune.peers
from convtune import probe
from convtune.cli.application import TerminatedError
from convtune.comparison import Comparison
from convtune.comparison.comparison import Entrants
from convtune.comparison.kinds import KINDS, kind_of
from convtune.comparison.layer import failed
from convtune.compiler import Compiler
from convtune.errors import BuildError
from convtune.peers import Peer
from convtune.spec import ConvSpec
from convtune.workloads import Workload

FAST = ("--turn", "1", "--rounds", "6")
PEERS: Mapping[str, Peer] = {
    "slow": Puppet("slow", "slow", "right"),
    "wrong": Puppet("wrong", "wrong"),
    "missing": Puppet("missing", "no operator"),
}


class Absent(Puppet):
    required = ("a-library",)

    def versions(self) -> dict[str, str]:
        return {}


@pytest.fixture(autouse=True)
def peers(monkeypatch: pytest.MonkeyPatch) -> None:
    """And peaks that take no time; those of `written` are measured."""
    monkeypatch.setattr(convtune.peers, "known", lambda: PEERS)
    monkeypatch.setattr(probe, "fma_peak_gflops", lambda _: 1.0)
    monkeypatch.setattr(probe, "bandwidth_gbs", lambda _: probe.Bandwidth(1.0, 1.0))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    """The data of a run over two layers, what it printed as a table, and its file."""
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convtune.peers, "known", lambda: PEERS)
        result = invoke("bench", TINY, SMALL, TINY, *FAST, "-o", path)
    assert result.exit_code == 0, result.stderr
    return json.loads(path.read_text()), result.stdout, path


def test_the_file_has_every_turn(written: tuple[dict[str, Any], str, Path]) -> None:
    data, _, _ = written
    assert (data["schema"], data["version"], data["accuracy"]) == ("convtune-bench", 1, "standard")
    (run_of,) = data["runs"]
    assert shlex.split(run_of["command"])[:2] == ["convtune", "bench"]
    assert run_of["started"] < run_of["finished"]
    assert (run_of["rounds"], run_of["turn_s"]) == (6, 1e-3)
    assert run_of["versions"].keys() >= {"convtune", "tvm", "slow"}
    assert min(*run_of["peak_gflops"].values(), *run_of["bandwidth_gbs"].values()) > 0
    assert [(layer["spec"], layer["count"], layer["run"]) for layer in data["layers"]] == [(TINY, 2, 0), (SMALL, 1, 0)]
    for layer in data["layers"]:
        assert len(layer["ours"]["turns_us"]) == 6
        assert 0 < layer["ours"]["error"] < 2e-5
        assert layer["ours"]["candidate"].keys() == {"space", "knobs"}
        assert layer["ours"]["resolution"]["kind"] in ("default", "transfer", "log")
        assert layer["failure"] == ""


def test_the_best_peer_is_compared_pair_by_pair(written: tuple[dict[str, Any], str, Path]) -> None:
    data, _, _ = written
    for layer in data["layers"]:
        assert layer["best"] == "slow"
        right = [c for c in layer["peers"]["slow"]["configurations"] if c["name"].startswith("right")]
        best = min(right, key=lambda c: float(c["us"]))
        assert layer["peers"]["slow"]["us"] == best["us"]
        assert layer["peers"]["slow"]["configuration"] == best["name"]
        pairs = [a / b for a, b in zip(best["turns_us"], layer["ours"]["turns_us"])]
        assert layer["ratio"]["pairs"] == pytest.approx(pairs)
        ratio = layer["ratio"]
        assert min(pairs) <= ratio["lower"] <= ratio["median"] <= ratio["upper"] <= max(pairs)
        assert layer["ratio_converted"] == pytest.approx(layer["peers"]["slow"]["converted_us"] / layer["ours"]["us"])
        hopeless = [c for c in layer["peers"]["slow"]["configurations"] if c["name"].startswith("slow")]
        assert [len(c["turns_us"]) for c in hopeless] == [3, 3]


def test_what_is_wrong_does_not_count(written: tuple[dict[str, Any], str, Path]) -> None:
    data, table, _ = written
    for layer in data["layers"]:
        assert layer["peers"]["wrong"]["status"] == "wrong"
        assert layer["peers"]["missing"]["status"] == "unsupported"
        assert layer["peers"]["wrong"]["us"] is layer["peers"]["missing"]["us"] is None
    assert f"{TINY} and 1 more: missing: unsupported: it has no such operator" in table
    assert "its error is 1.0e-02, allowed 1e-03" in table


def test_the_roofline_is_the_runs(written: tuple[dict[str, Any], str, Path]) -> None:
    data, _, _ = written
    peak, read = max(data["runs"][0]["peak_gflops"].values()), data["runs"][0]["bandwidth_gbs"]["read"]
    for layer in data["layers"]:
        spec = ConvSpec.parse(layer["spec"])
        compute, memory = spec.flops / peak / 1e3, spec.bytes / read / 1e3
        assert layer["bound_us"] == pytest.approx(max(compute, memory))
        assert layer["bound_by"] == ("compute" if compute >= memory else "memory")
        assert layer["share"] == pytest.approx(layer["bound_us"] / layer["ours"]["us"])


def test_the_summary_is_that_of_the_layers(written: tuple[dict[str, Any], str, Path]) -> None:
    data, table, _ = written
    depthwise, dense = data["layers"]
    kinds = {kind["kind"]: kind for kind in data["summary"]["kinds"]}
    assert list(kinds) == ["dense_3x3", "depthwise", "all"]
    assert kinds["depthwise"]["geomean"] == pytest.approx(depthwise["ratio"]["median"])
    both = (depthwise["ratio"]["median"] * dense["ratio"]["median"]) ** 0.5
    assert kinds["all"]["geomean"] == pytest.approx(both)
    assert kinds["all"]["layers"] == kinds["all"]["compared"] == 2
    counted = [sum(layer["verdict"] == name for layer in data["layers"]) for name in ("win", "loss", "no_difference")]
    assert [kinds["all"][name] for name in ("win", "loss", "no_difference")] == counted
    to_slow = [layer["peers"]["slow"]["us"] / layer["ours"]["us"] for layer in data["layers"]]
    assert data["summary"]["peers"] == {"slow": pytest.approx((to_slow[0] * to_slow[1]) ** 0.5), "wrong": None,
                                        "missing": None}  # fmt: skip
    assert "depthwise, 1-D to 3-D" in table


def test_it_goes_on_where_it_stopped(written: tuple[dict[str, Any], str, Path], tmp_path: Path) -> None:
    data = written[0]
    copy = tmp_path / "bench.json"
    data = {**data, "layers": data["layers"][:1]}
    copy.write_text(json.dumps(data))
    result = invoke("bench", TINY, SMALL, *FAST, "-o", copy, "--json")
    assert result.exit_code == 0
    assert [line.endswith("from the file") for line in result.stderr.splitlines()] == [True, False]
    found = json.loads(copy.read_text())
    assert [layer["run"] for layer in found["layers"]] == [0, 1]
    assert found["layers"][0]["ours"] == data["layers"][0]["ours"]
    assert json.loads(result.stdout)["layers"][1] == found["layers"][1]
    peak, read = max(data["runs"][0]["peak_gflops"].values()), data["runs"][0]["bandwidth_gbs"]["read"]
    for layer in found["layers"]:  # the second run's peaks are far lower, which are not the machine's
        spec = ConvSpec.parse(layer["spec"])
        assert layer["bound_us"] == pytest.approx(max(spec.flops / peak, spec.bytes / read) / 1e3)


@pytest.mark.parametrize("change", [("--again",), ("--rounds", "7"), ("--against", "slow")])
def test_it_measures_again_what_would_be_another_measurement(
    change: tuple[str, ...], written: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    data, _, path = written
    copy = tmp_path / "bench.json"
    copy.write_bytes(path.read_bytes())
    result = invoke("bench", TINY, *FAST, *change, "-o", copy)
    assert "from the file" not in result.stderr
    found = {layer["spec"]: layer for layer in json.loads(copy.read_text())["layers"]}
    assert (found[TINY]["run"], found[SMALL]["run"]) == (1, 0)
    assert found[SMALL] == data["layers"][1]


def test_the_time_left_is_also_that_of_layers_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file has all layers, of kernels that are others now; nothing is compiled or timed."""
    kernels, path = ["old"], tmp_path / "bench.json"
    monkeypatch.setattr(Comparison, "entrants", lambda *_: Entrants(ours=True, packages={}, refusals={}))  # type: ignore[arg-type]
    monkeypatch.setattr(Comparison, "identity", lambda *_: {"kernel": kernels[0]})
    monkeypatch.setattr(Comparison, "measure", lambda _, workload, entrants: _failed_with(workload, kernels[0]))
    layers = [f"depthwise,ic={channels},oc={channels},in=9,k=3" for channels in (1, 2, 3, 5, 7, 11, 13)]

    def lines(kernel: str) -> list[str]:
        kernels[0] = kernel
        return invoke("bench", *layers, *FAST, "-o", path).stderr.splitlines()

    for kernel in ("old", "new"):
        assert [line.endswith(" left") for line in lines(kernel)] == [False] * 2 + [True] * 4 + [False], kernel
    assert all(line.endswith("from the file") for line in lines("new"))


def _failed_with(workload: Workload, kernel: str) -> dict[str, Any]:
    return {**failed(workload, "no kernel"), "identity": {"kernel": kernel}}


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (TerminatedError, 143)])
def test_an_interrupt_keeps_what_was_measured(
    stop: type[BaseException], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Comparison.measure

    def interrupted(self: Comparison, workload: Any, entrants: Any) -> dict[str, Any]:
        if str(workload.spec) == SMALL:
            raise stop
        return measure(self, workload, entrants)

    monkeypatch.setattr(Comparison, "measure", interrupted)
    path = tmp_path / "bench.json"
    result = invoke("bench", TINY, SMALL, *FAST, "-o", path)
    assert result.exit_code == code
    command = shlex.join(["convtune", "bench", TINY, SMALL, *FAST, "-o", str(path)])
    assert f"interrupted; 1 of 2 layers is in {path}; to go on:\n{command}\n" in result.stderr
    assert [layer["spec"] for layer in json.loads(path.read_text())["layers"]] == [TINY]
    assert TINY in result.stdout
    assert list(tmp_path.iterdir()) == [path]


def test_a_layer_without_a_kernel_fails_and_the_others_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Compiler.package

    def broken(self: Compiler, spec: ConvSpec, candidate: Any = None) -> Any:
        if str(spec) == SMALL:
            raise BuildError("first line\nit does not build")
        return package(self, spec, candidate)

    monkeypatch.setattr(Compiler, "package", broken)
    result = invoke("bench", SMALL, TINY, *FAST, "--json")
    assert result.exit_code == 1
    failed, compared = json.loads(result.stdout)["layers"]
    assert failed["failure"] == "first line | it does not build"
    assert failed["ours"] is failed["verdict"] is failed["ratio"] is None
    assert compared["failure"] == ""
    assert compared["ours"]["us"] > 0


def complaint(*arguments: str | Path) -> str:
    """The one line that bad input gets."""
    result = invoke("bench", *arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    assert line.startswith("convtune: error: ")
    return line


def test_an_unknown_peer_names_the_known_ones() -> None:
    assert "unknown peer 'torhc'; known: missing, slow, wrong" in complaint(TINY, "--against", "slow,torhc")


def test_an_absent_peer_is_an_error_where_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {**PEERS, "absent": Absent("absent", "right")}
    monkeypatch.setattr(convtune.peers, "known", lambda: known)
    line = complaint(TINY, "--against", "absent")
    assert "peer 'absent' is not installed; to get it: pip install a-library" in line
    result = invoke("bench", TINY, *FAST)
    assert result.exit_code == 0
    assert "not compared with absent: not installed; pip install a-library" in result.stderr


def test_nothing_to_compare_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convtune.peers, "known", lambda: {"absent": Absent("absent", "right")})
    assert "no library to compare with is installed" in complaint(TINY)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be gone on with"),
        ("[" * 100_000, "cannot be gone on with"),
        ("[]", "is not what `convtune bench` writes"),
        ('{"schema": "convtune-bench", "version": 2}', "has version 2; this convtune reads 1"),
        ('{"schema": "convtune-bench", "version": 1}', "is damaged (KeyError: 'machine')"),
    ],
)
def test_a_file_that_is_something_else_is_left_alone(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    assert said in complaint(TINY, "-o", path)
    assert path.read_text() == text


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("accuracy", "strict", "its accuracy is 'strict', and this is 'standard'"),
        ("machine", {"fingerprint": "0" * 16}, "its machine is another: name None, here 'native'"),
        ("layers", [{"spec": TINY}], "is damaged"),
        ("layers", {}, "is damaged"),
        ("runs", [], "is damaged"),
    ],
)
def test_a_file_of_another_comparison(
    field: str, value: Any, said: str, written: tuple[dict[str, Any], str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**written[0], field: value}))
    assert said in complaint(TINY, "-o", path)


@pytest.mark.parametrize("place", ["", "none/bench.json"])
def test_a_file_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    assert str(tmp_path / place) in complaint(TINY, "-o", tmp_path / place)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rounds", "5"), "5 is not in the range"),
        (("--turn", "0"), "0.0 is not in the range"),
        (("--target", "cuda"), "is a GPU; the libraries are compared on this CPU"),
        (("--log", "none.jsonl"), "none.jsonl"),
    ],
)
def test_bad_options(options: tuple[str, ...], said: str) -> None:
    assert said in complaint(TINY, *options)


def test_a_cpu_that_is_not_here() -> None:
    elsewhere = json.dumps({"name": "alien", "mcpu": MCPU, "required_features": ["time_travel"]})
    assert "cannot be compared here: this machine lacks time_travel" in complaint(TINY, "--target", elsewhere)


def test_every_kind_of_the_table() -> None:
    specs = {
        "conv,ic=4,oc=4,in=9x9,k=3x3": "dense_3x3",
        "dilated,ic=4,oc=4,in=9x9,k=3x3,d=2": "dense_3x3",
        "conv,ic=4,oc=4,in=9x9,k=3x3,s=2": "other_dense",
        "conv,ic=4,oc=4,in=9x9,k=3x1": "other_dense",
        "pointwise,ic=4,oc=4,in=9x9,k=1x1": "other_dense",
        "conv,ic=4,oc=4,in=9,k=3": "conv_1d",
        "dilated,ic=4,oc=4,in=9x9x9,k=3x3x3,d=2": "conv_3d",
        "depthwise,ic=4,oc=4,in=9,k=3": "depthwise",
        "grouped,ic=4,oc=4,in=9x9,k=3x3,g=2": "grouped",
        "shuffled_grouped,ic=4,oc=4,in=9x9,k=1x1,g=2": "grouped",
        "transposed,ic=4,oc=4,in=9x9x9,k=3x3x3": "transposed",
        "deformable,ic=4,oc=4,in=9x9,k=3x3": "deformable",
        "depthwise_separable,ic=4,oc=4,in=9x9,k=3x3": "composite",
        "flattened,ic=4,oc=4,in=9x9,k=3x3": "composite",
    }
    assert {text: kind_of(ConvSpec.parse(text)) for text in specs} == specs
    assert set(specs.values()) == set(KINDS)


def test_help_tells_the_peers() -> None:
    done = run("bench", "--help")
    assert done.returncode == 0
    assert all(name in done.stdout for name in ("torch", "onnxruntime", "openvino", "metaschedule"))


def test_an_option_of_metaschedule_without_it(tmp_path: Path) -> None:
    result = invoke("bench", TINY, *FAST, "--against", "slow", "--metaschedule-log", tmp_path / "log.jsonl")
    assert (result.exit_code, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line == (
        "convtune: error: --metaschedule-log is of the peer metaschedule, which takes no part; name it in --against. "
        "See `convtune bench --help`."
    )
    assert list(tmp_path.iterdir()) == []
