"""`convtune compile` and `convtune verify`: packages that import and are right; what is said of those that are not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cli_process import MCPU, SMALL, TINY, invoke, printed_json

from convtune import targets
from convtune.cli import compile as compile_command
from convtune.cli.compile import identifier, place
from convtune.compiler import Compiler, Package
from convtune.errors import BuildError, KernelError
from convtune.log import Log
from convtune.record import Record
from convtune.runtime.manifest import Manifest
from convtune.space import enumerate_candidates, get
from convtune.spec import ConvSpec
from convtune.workloads import Workload, parse

TINY_NAME = "depthwise_ic16_oc16_in9x9_k3x3_p1_layoutNHWC"
IMPORT = """
import sys, numpy as np
from kernels import {name} as conv
x = np.ones({x}, np.float32)
weight = np.ones({weight}, np.float32)
print(float(conv(x, weight).max()), "tvm" in sys.modules)
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def log(home: Path) -> Path:
    """A log in which another candidate than the default has won on TINY."""
    spec, target = ConvSpec.parse(TINY), targets.resolve("native")
    *_, other = enumerate_candidates(get("fallback"), spec, target)
    path = home / "log.jsonl"
    Log(path).append(
        [
            Record(
                spec=TINY,
                target=target.facts(),
                candidate=other,
                origin="measured",
                status="ok",
                seed=0,
                times_us=(3.5,),
                error=1e-7,
            )
        ]
    )
    return path


@pytest.fixture(scope="module")
def compiled(home: Path, log: Path) -> Any:
    workloads = home / "layers.json"
    layers = [{"name": "net/stem 3x3", "spec": TINY}, {"name": "net/2nd", "spec": SMALL}]
    fields = [{"name": layer["name"], **_fields(layer["spec"])} for layer in layers]
    workloads.write_text(json.dumps(fields))
    return printed_json("compile", workloads, "--log", log, "-o", home / "kernels")


def _fields(text: str) -> dict[str, Any]:
    spec = ConvSpec.parse(text)
    names = ("variant", "in_channels", "out_channels", "in_size", "kernel", "padding", "layout")
    return {name: getattr(spec, name) for name in names}


def test_the_resolution_is_told_with_its_reason(compiled: Any, log: Path) -> None:
    tiny, small = compiled["packages"]
    assert compiled["written"]
    assert tiny["resolution"] == {"kind": "log", "reason": f"3.5 µs on this machine, in {log}"}
    assert tiny["candidate"]["space"] == "fallback"
    assert small["resolution"]["kind"] in ("default", "transfer")
    for package in (tiny, small):
        assert 0 <= package["error"] < 2e-5
        assert package["time_us"] > 0


def test_every_layer_is_a_package_that_imports(compiled: Any, home: Path) -> None:
    directories = [Path(package["directory"]) for package in compiled["packages"]]
    assert [path.relative_to(home / "kernels").name for path in directories] == ["stem_3x3", "conv_2nd"]
    script = IMPORT.format(name="stem_3x3", x=(1, 9, 9, 16), weight=(16, 1, 3, 3))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=home, check=True)
    assert done.stdout.split() == ["9.0", "False"]


def test_a_lone_spec_is_the_directory_itself(home: Path) -> None:
    result = invoke("compile", TINY, "-o", home / "alone")
    assert result.exit_code == 0
    assert (home / "alone" / "manifest.json").exists()
    assert f"  spec        {TINY}" in result.stdout
    assert "  from        " in result.stdout
    assert "  error       " in result.stdout


def test_kernels_are_timed_when_no_worker_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has just verified one disturbs: the threads of its BLAS look for more work."""
    happened: list[str] = []
    close = Compiler.close

    def closed(self: Compiler) -> None:
        happened.append("closed")
        close(self)

    def timed(_: Package) -> float:
        happened.append("timed")
        return 2.5

    monkeypatch.setattr(Compiler, "close", closed)
    monkeypatch.setattr(compile_command, "_time_us", timed)
    assert printed_json("compile", TINY, "-o", tmp_path / "lone")["packages"][0]["time_us"] == 2.5
    assert happened == ["closed", "timed"]


def test_a_full_disk_is_told_with_the_file_that_has_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, to: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(to))

    monkeypatch.setattr(shutil, "copyfile", full)
    result = invoke("compile", TINY, "-o", tmp_path / "lone")
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert f"{tmp_path / 'lone'} cannot be written: No space left on device ({tmp_path}" in last
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda place, _: Path(place) != tmp_path)
    result = invoke("compile", TINY, "-o", tmp_path / "a" / "lone")
    said = f"{tmp_path / 'a' / 'lone'} cannot be written: no permission to write {tmp_path}"
    assert (result.exit_code, result.stderr) == (2, f"convtune: error: {said}\n")


def test_another_machine_s_kernel_is_said_to_be_unverified(home: Path) -> None:
    alien = json.dumps({"name": "alien", "mcpu": MCPU, "required_features": ["time_travel"]})
    result = invoke("compile", TINY, "--target", alien, "-o", home / "alien")
    assert result.exit_code == 0, result.stderr
    assert "  error       not verified: this machine lacks time_travel" in result.stdout
    assert "  time " not in result.stdout
    manifest = Manifest.from_json((home / "alien" / "manifest.json").read_text())
    assert manifest.error is None
    checked = invoke("verify", home / "alien")
    assert checked.exit_code == 1
    assert "this CPU lacks time_travel" in checked.stdout
    refused = invoke("verify", TINY, "--target", alien)
    assert refused.exit_code == 2
    assert refused.stderr.endswith("cannot be verified here: this machine lacks time_travel\n")


def test_nothing_is_written_unless_all_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Compiler.package

    def refuse(self: Compiler, spec: ConvSpec) -> Any:
        if str(spec) == SMALL:
            raise BuildError("it does not build:\n for a reason")
        return real(self, spec)

    monkeypatch.setattr(Compiler, "package", refuse)
    result = invoke("compile", TINY, SMALL, "-o", tmp_path / "kernels")
    assert result.exit_code == 1
    assert "  failed      it does not build: | for a reason" in result.stdout
    assert "nothing was written" in result.stdout
    assert list(tmp_path.iterdir()) == []
    told = json.loads(invoke("compile", TINY, SMALL, "-o", tmp_path / "kernels", "--json").stdout)
    assert told["written"] is False
    assert [package["failure"] is None for package in told["packages"]] == [True, False]


def test_verify_checks_packages_and_workloads(compiled: Any, home: Path) -> None:
    data = printed_json("verify", home / "kernels", TINY, "--accuracy", "strict")
    assert data["accuracy"] == "strict"
    stem, second = home / "kernels" / "stem_3x3", home / "kernels" / "conv_2nd"
    assert [kernel["name"] for kernel in data["kernels"]] == [str(second), str(stem), TINY]
    for kernel in data["kernels"]:
        assert kernel["status"] == "ok"
        assert 0 < kernel["error"] <= kernel["limit"] < 2e-5


def test_verify_finds_a_kernel_that_computes_something_else(compiled: Any, home: Path) -> None:
    """A package whose manifest promises another convolution of the same shapes."""
    liar = home / "liar"
    assert invoke("compile", TINY, "-o", liar).exit_code == 0
    manifest = liar / "manifest.json"
    manifest.write_text(manifest.read_text().replace(TINY, f"{TINY},act=relu"))
    result = invoke("verify", liar)
    assert result.exit_code == 1
    assert "wrong result: error" in result.stdout
    assert "0 of 1 kernel right" in result.stdout
    assert liar.exists(), "a package that is wrong is still the user's"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (TINY.replace("k=3x3", "k=3y3"), "k=>>>3y3"),
        (TINY.replace("depthwise", "deepwise"), "unknown variant 'deepwise'"),
        ("flattened,ic=16,oc=16,in=9x9,k=3x3,p=1,layout=NHWC", "while running: KernelError"),
    ],
)
def test_verify_goes_on_after_a_package_whose_spec_is_damaged(
    compiled: Any, home: Path, tmp_path: Path, spec: str, said: str
) -> None:
    shutil.copytree(home / "kernels", tmp_path / "kernels")
    damaged, sound = tmp_path / "kernels" / "stem_3x3", tmp_path / "kernels" / "conv_2nd"
    manifest = damaged / "manifest.json"
    manifest.write_text(manifest.read_text().replace(TINY, spec))
    result = invoke("verify", tmp_path / "kernels", "--json")
    assert result.exit_code == 1
    first, second = json.loads(result.stdout)["kernels"]
    assert (first["name"], first["status"]) == (str(sound), "ok")
    assert (second["name"], second["spec"], second["status"]) == (str(damaged), spec, "error")
    assert said in second["message"]


def test_verify_finds_a_library_that_was_changed(home: Path) -> None:
    broken = home / "broken"
    assert invoke("compile", TINY, "-o", broken).exit_code == 0
    (library,) = broken.glob("kernel-*.so")
    library.write_bytes(library.read_bytes()[:-1] + b"!")
    before = hashlib.sha256(library.read_bytes()).hexdigest()
    result = invoke("verify", broken)
    assert result.exit_code == 1
    assert "the file was changed" in result.stdout
    assert hashlib.sha256(library.read_bytes()).hexdigest() == before


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dw144_56_k3s1", "dw144_56_k3s1"),
        (TINY, TINY_NAME),
        ("3x3 a", "conv_3x3_a"),
        ("class", "conv_class"),
        ("größe", "gr_e"),
        ("../up", "up"),
        ("", "conv_"),
    ],
)
def test_names_that_python_can_import(name: str, expected: str) -> None:
    assert identifier(name) == expected
    assert expected.isidentifier()


def test_equal_names_of_different_layers_stay_apart(tmp_path: Path) -> None:
    tiny, small = ConvSpec.parse(TINY), ConvSpec.parse(SMALL)
    layers = [Workload("a/conv1", tiny), Workload("b/conv1", small), Workload("a/conv1", small), Workload("c/x", tiny)]
    names = [entry.directory.name for entry in place([*layers, layers[0]], tmp_path / "out")]
    assert names == ["a_conv1", "b_conv1", "a_conv1_2", "x"]


def test_a_spec_is_named_as_a_whole_beside_layers_of_networks(tmp_path: Path) -> None:
    """The `/` between its stages' activations ends no network's name, nor does an equal tail matter."""
    chained = "flattened,ic=4,oc=4,in=9x9,k=3,sact=relu/tanh,bias"
    entries = [chained, {"name": "net/tanh,bias", **_fields(SMALL)}]
    (tmp_path / "specs.json").write_text(json.dumps(entries))
    name = "flattened_ic4_oc4_in9x9_k3x3_sactrelu_tanh_bias"
    for given, names in (([chained, TINY], [name, TINY_NAME]), ([tmp_path / "specs.json"], [name, "tanh_bias"])):
        placed = place(parse([str(text) for text in given]), tmp_path / "out")
        assert [entry.directory.name for entry in placed] == names
    placed = place(parse([chained, TINY], "channels_last"), tmp_path / "out")
    assert placed[0].directory.name == "flattened_ic4_oc4_in9x9_k3x3_sactrelu_tanh_layoutNHWC_bias"


def test_a_path_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(KernelError, match="is a file"):
        place([Workload("a", ConvSpec.parse(TINY))], tmp_path / "file" / "deeper" / "out")
