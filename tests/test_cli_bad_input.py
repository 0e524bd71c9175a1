"""Bad input to the command line: one clear line, exit code 2, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import record_samples
from cli_process import MCPU, PROGRAM, SMALL, TINY, invoke, run

from convtune.record import SCHEMA
from convtune.targets.host import MAX_THREADS


def complaint(*arguments: str | Path) -> str:
    """The one line that the program prints when it refuses."""
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    start = "convtune: error: "
    assert line.startswith(start)
    return line.removeprefix(start)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "new" / "log.jsonl"


@pytest.mark.parametrize("command", ["tune", "compile", "verify", "show"])
@pytest.mark.parametrize(
    ("workload", "said"),
    [
        ("mobilenet_v9", ("unknown workload 'mobilenet_v9'", "mobilenet_v2", "mobilenet_v1")),
        ("mobilenet_v2/dw145_56_k3s1", ("'mobilenet_v2/dw145_56_k3s1'", "mobilenet_v2/dw144_56_k3s1")),
        ("conv,ic=64,oc=64,in=56y56,k=3x3", ("in=>>>56y56", "character 21")),
        ("conv,ic=64,oc=64,in=56x56", ("k missing",)),
        ("convolution,ic=64,oc=64,in=56x56,k=3x3", ("unknown variant 'convolution'",)),
        ("mb1ic64ih56oc64kh3zz1", (">>>zz1",)),
        ("grouped,ic=64,oc=64,in=56x56,k=3x3,g=7", ("groups=7 does not divide in_channels=64",)),
        ("conv,ic=64,oc=64,in=5x5,k=7x7", ("kernel 7", "padded input is 5")),
        ("conv,ic=64,oc=64,in=5x5,k=3x3,dtype=int4", ("dtype='int4' is not allowed", "float32")),
        ("no/such/model.onnx", ("no/such/model.onnx", "no such file")),
        ("", ("unknown workload ''",)),
        ("a" * 300, ("unknown workload 'aaa",)),
        ("a" * 300 + ".json", ("no such file",)),
    ],
)
def test_workloads_that_are_none(command: str, workload: str, said: tuple[str, ...], tmp_path: Path) -> None:
    output = ("-o", tmp_path / "out") if command == "compile" else ()
    line = complaint(command, workload, *output)
    for part in said:
        assert part in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["tune", "compile", "verify", "show"])
def test_an_unknown_target_names_near_ones(command: str, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "out") if command == "compile" else ()
    line = complaint(command, TINY, "--target", "znver6", *output)
    assert "unknown target 'znver6'" in line
    assert "znver5" in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("neoverse-n99", "near it: neoverse-n2, neoverse-n1"),
        ("sm_52", "it is too old: nvcc 13.0 compiles for sm_75 and newer"),
        ("cuda:1", "CUDA_VISIBLE_DEVICES"),
        ('{"arch": "sm_110"}', "missing sms"),
        ('{"name": "my board"}', "mcpu is missing"),
        ("no/such/machine.json", "machine.json"),
    ],
)
def test_other_targets_that_are_none(target: str, said: str) -> None:
    assert said in complaint("tune", TINY, "--target", target)


def test_tuning_for_another_machine(log: Path) -> None:
    here = {"name": "alien", "mcpu": MCPU, "required_features": ["no_such_feature"]}
    result = invoke("tune", TINY, "--target", json.dumps(here), "--log", log)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert not log.parent.exists()


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--trials", "0", "0 is not in the range"),
        ("--trials", "-3", "-3 is not in the range"),
        ("--trials", "many", "'--trials': 'many' is not an integer of at least 1."),
        ("--trials", "1e3", "'1e3' is not an integer of at least 1."),
        ("--seed", "x", "'x' is not an integer of at least 0."),
        ("--budget", "5", "'5' is not a duration above 0; write it as 90s, 5m or 1h30m"),
        ("--budget", "0s", "'0s' is not a duration above 0"),
        ("--budget", "-5m", "'-5m' is not a duration"),
        ("--budget", "5m1h", "'5m1h' is not a duration"),
        ("--budget", "", "'' is not a duration"),
        ("--accuracy", "exact", "'exact' is not one of 'strict', 'standard', 'loose'"),
        ("--engine", "guess", "'guess' is not one of"),
        ("--layout", "NHWC", "'NHWC' is not one of"),
        ("--threads", "0", "0 is not in the range"),
        ("--seed", "-1", "-1 is not in the range"),
        ("--log", "", "'' names no file"),
        ("--colour", "red", "No such option"),
    ],
)
def test_options_out_of_range(option: str, value: str, said: str, log: Path) -> None:
    line = complaint("tune", TINY, "--log", log, option, value)
    assert said in line
    assert "See `convtune tune --help`" in line
    assert not log.parent.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("serve --tracker h:1 --key k --port http", "'http' is not an integer of at least 1 and at most 65535."),
        ("bench x --turn fast", "'fast' is not a number above 0 and at most 10000."),
        ("log export x --winners --max-error low", "'low' is not a number of at least 0."),
    ],
)
def test_what_is_no_number_says_which_are_allowed(arguments: str, said: str) -> None:
    assert said in complaint(*arguments.split())


@pytest.mark.parametrize("given", [("targets", "x"), ("x", "targets"), ("targets", "targets"), ("targets", TINY)])
def test_a_list_beside_something_else(given: tuple[str, ...]) -> None:
    line = complaint("show", *given)
    assert line.startswith("`show targets` takes nothing else, and ")
    assert "allowed: one of targets, variants, spaces, workloads alone, or any number of workloads" in line


@pytest.mark.parametrize("typed", ["variant", "target", "space", "workload", "Variants"])
def test_a_list_with_a_slip(typed: str) -> None:
    meant = f"{typed.lower().removesuffix('s')}s"
    line = complaint("show", typed)
    assert line.startswith(f"unknown workload or list {typed!r}; near it: ")
    assert meant in line.partition("near it: ")[2].split(", ")


@pytest.mark.parametrize("typed", ["nosuchdir", "kernels/nosuchdir", "mobilenet_v9"])
def test_verify_takes_directories_too(typed: str) -> None:
    line = complaint("verify", typed)
    assert line.startswith(f"unknown workload {typed!r}; ")
    assert line.endswith("; nor is there a directory of that name")


def test_no_workload() -> None:
    assert "Missing argument 'WORKLOAD...'" in complaint("tune")


def test_an_unknown_command() -> None:
    assert "No such command 'tun'" in complaint("tun", TINY)


def test_a_log_that_is_a_directory(tmp_path: Path) -> None:
    for arguments in (("tune", TINY), ("compile", TINY, "-o", tmp_path / "out"), ("verify", TINY)):
        assert f"log {tmp_path} is a directory" in complaint(*arguments, "--log", tmp_path)
    for command in ("check", "prune", "export"):
        assert f"log {tmp_path} is a directory" in complaint("log", command, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_log_that_is_missing(tmp_path: Path) -> None:
    missing = tmp_path / "missing.jsonl"
    for arguments in (("compile", TINY, "-o", tmp_path / "out"), ("verify", TINY)):
        assert f"log {missing} does not exist" in complaint(*arguments, "--log", missing)
    for command in ("check", "prune", "export"):
        assert f"log {missing} does not exist" in complaint("log", command, missing)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_log_is_not_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"\x93\xff weights\nand more\nwithout end")
    before = path.read_bytes()
    for arguments in (("tune", TINY), ("compile", TINY, "-o", tmp_path / "out"), ("verify", TINY)):
        said = complaint(*arguments, "--log", path)
        assert said.startswith(f"{path} is no log: none of its 2 lines is a record; the first: not UTF-8")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_log_of_a_newer_schema_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "newer.jsonl"
    data = {**json.loads(record_samples.make().line()), "schema": SCHEMA + 1}
    path.write_text(json.dumps(data) + "\n")
    before = path.read_bytes()
    for arguments in (
        ("tune", TINY, "--log", path),
        ("compile", TINY, "--log", path, "-o", tmp_path / "out"),
        ("log", "check", path),
        ("log", "prune", path),
        ("log", "export", path),
        ("log", "merge", path, "-o", tmp_path / "merged.jsonl"),
    ):
        assert f"line 1: written by a newer convtune, schema {SCHEMA + 1}" in complaint(*arguments)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("option", "value"), [("--origin", "measured"), ("--max-error", "1e-5")])
def test_an_option_of_winners_without_them(option: str, value: str, log: Path) -> None:
    said = complaint("log", "export", log, option, value)
    assert said == f"{option} chooses winners; give --winners too. See `convtune log export --help`."


@pytest.mark.parametrize("place", ["file/log.jsonl", "/proc/convtune/log.jsonl"])
def test_a_log_that_cannot_be_made(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / place) in complaint("tune", TINY, "--log", tmp_path / place)


def test_onnx_with_unknown_shapes(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    x = helper.make_tensor_value_info("x", kind, ["batch", 8, 14, 14])
    y = helper.make_tensor_value_info("y", kind, None)
    weight = helper.make_tensor("w", kind, [4, 8, 3, 3], [0.0] * 288)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="stem")
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(helper.make_graph([node], "g", [x], [y], [weight])), str(path))
    line = complaint("tune", path, "--log", tmp_path / "log.jsonl")
    assert "node 'stem' (Conv): dimension 0 of its input 'x' is batch, not a number" in line
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_linker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In processes of their own: a compiler that was found once is remembered."""
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "cache"))
    for arguments in (("tune", TINY, "--log", tmp_path / "log.jsonl"), ("compile", TINY, "-o", tmp_path / "out")):
        done = run(*arguments, CONVTUNE_CC="/nonexistent")
        assert done.returncode == 2
        assert done.stderr == "convtune: error: CONVTUNE_CC='/nonexistent' is not a C compiler that runs\n"
        assert done.stdout == ""
    assert not (tmp_path / "log.jsonl").exists()
    assert not (tmp_path / "out").exists()


def test_a_linker_that_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "cache"))
    for arguments in (("tune", TINY, "--log", tmp_path / "log.jsonl"), ("compile", TINY, "-o", tmp_path / "out")):
        done = run(*arguments, CONVTUNE_CC="/bin/true")
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert "/bin/true exited with 0 and did not write " in line
    assert not (tmp_path / "log.jsonl").exists()
    assert not (tmp_path / "out").exists()


WITHOUT_ZIG = "import sys; sys.modules['ziglang'] = None; from convtune.cli import main; main()"


def test_no_compiler_on_the_path(tmp_path: Path) -> None:
    """Nor the package ziglang, which the tests themselves need."""
    (tmp_path / "empty").mkdir()
    environment = {**os.environ, "PATH": str(tmp_path / "empty"), "CONVTUNE_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", WITHOUT_ZIG, "tune", TINY, "--log", str(tmp_path / "log.jsonl")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "no C compiler" in line
    assert "pip install ziglang" in line
    assert not (tmp_path / "log.jsonl").exists()


@pytest.mark.parametrize("workloads", [(TINY,), (TINY, SMALL)])
def test_an_output_directory_that_is_a_file(workloads: tuple[str, ...], tmp_path: Path) -> None:
    output = tmp_path / "kernels"
    output.write_text("mine")
    assert f"{output} is a file" in complaint("compile", *workloads, "-o", output)
    assert output.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [output]


def test_an_output_directory_of_somebody_else(tmp_path: Path) -> None:
    output = tmp_path / "kernels"
    output.mkdir()
    (output / "thesis.tex").write_text("mine")
    assert "is not an earlier convtune package" in complaint("compile", TINY, "-o", output)
    assert [path.name for path in output.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["class", "out-1/a.b", "1st"])
def test_an_output_that_python_cannot_import(name: str, tmp_path: Path) -> None:
    last = name.rpartition("/")[2]
    said = complaint("compile", TINY, "-o", tmp_path / name)
    assert said.startswith(f"{tmp_path / name} cannot be a package: Python cannot import {last!r}, which is ")
    assert said.endswith("; allowed: letters, digits and _, no digit first, and no keyword")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_holds_no_package(tmp_path: Path) -> None:
    assert f"{tmp_path} is not a convtune package" in complaint("verify", tmp_path)


def test_threads_that_no_package_can_run_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").touch()
    allowed = f"allowed: 1 to {MAX_THREADS}"
    assert complaint("verify", tmp_path, "--threads", "999999") == f"threads is 999999; {allowed}"
    for value in ("abc", "0", "999999"):
        monkeypatch.setenv("CONVTUNE_NUM_THREADS", value)
        assert complaint("verify", tmp_path) == f"environment variable CONVTUNE_NUM_THREADS is {value!r}; {allowed}"


def test_merging_into_a_log_that_exists(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    for path in (first, second):
        path.write_bytes(record_samples.make().line())
    assert f"log {second} exists; merge into a new file, or say that it may be overwritten: --overwrite" in complaint(
        "log", "merge", first, "-o", second
    )


def test_a_process_that_refuses_prints_no_traceback(tmp_path: Path) -> None:
    done = run("tune", "mobilenet_v9", "--log", tmp_path / "log.jsonl")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("convtune: error: unknown workload 'mobilenet_v9'; near it: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 5000 + "]", "[" * 500 + "]" * 500])
def test_json_that_is_too_much(text: str, tmp_path: Path) -> None:
    path = tmp_path / "deep.json"
    path.write_text(text)
    line = complaint("show", path)
    assert str(path) in line
    assert len(line) < 400


def test_an_output_directory_whose_name_is_too_long(tmp_path: Path) -> None:
    assert "File name too long" in complaint("compile", TINY, "-o", tmp_path / ("a" * 300))


def test_an_output_that_has_no_name(tmp_path: Path) -> None:
    assert "'' names no file" in complaint("compile", TINY, "-o", "")
    assert "'' names no file" in complaint("log", "check", "")


def test_a_pipe_is_no_workload(tmp_path: Path) -> None:
    path = tmp_path / "pipe.json"
    os.mkfifo(path)
    assert f"{path}: is a device, pipe or socket" in complaint("show", path)


def test_names_from_files_do_not_control_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    fields = {"variant": "conv", "in_channels": 1, "out_channels": 1, "in_size": [5], "kernel": 3}
    path.write_text(json.dumps([fields | {"name": "a\x1b[2Jb\nc\x9bµ"}]))
    assert r"a\x1b[2Jb\nc\x9bµ" in invoke("show", path).stdout
    table = tmp_path / "net.csv"
    table.write_text("layer,variant,in_channels,out_channels,in_size,kernel\n\x1b]0;x\x07,conv,1,1,5,3\n")
    assert r"\x1b]0;x\x07" in invoke("show", table).stdout


@pytest.mark.parametrize(
    "arguments", ["show variants", "show variants --json", "--help", "show --help", "log export {log}", "doctor"]
)
def test_a_full_disk(arguments: str, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(record_samples.make().line())
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*PROGRAM, *arguments.format(log=log).split()], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "convtune: error: the output cannot be written: No space left on device\n"


@pytest.mark.parametrize(
    ("command", "code"),
    [("show variants >&-", 0), ("show variants 2>&-", 0), ("show nothing 2>&-", 2), ("show >&- 2>&-", 2)],
)
def test_closed_output(command: str, code: int) -> None:
    done = subprocess.run(["sh", "-c", f'"$@" {command}', "sh", *PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")


def test_lines_that_are_no_records_are_reported_by_every_tool(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"{}\n" + record_samples.make().line())
    for arguments in (("merge", path, "-o", tmp_path / "merged.jsonl"), ("export", path), ("prune", path)):
        result = invoke("log", *arguments)
        assert result.exit_code == 0
        (line,) = result.stderr.splitlines()
        assert line.startswith("convtune: warning: ") and "1: " in line, line
