"""The command line's smaller parts: help, lists, logs, the doctor, durations, progress lines, pipes."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import pytest
import record_samples
from cli_process import PROGRAM, SMALL, TINY, invoke, printed_json, run

import convtune.doctor
import convtune.workloads
from convtune import __version__
from convtune.cli import options, tables
from convtune.cli.application import COMMANDS, TerminatedError
from convtune.cli.notices import warn_of
from convtune.cli.progress import HEARTBEAT_S, PlainLines
from convtune.cli.tune import distinct
from convtune.doctor import Finding
from convtune.log import Log, Problem
from convtune.spec import ConvSpec
from convtune.tuning import Progress
from convtune.workloads import Workload


def test_help_lists_the_commands() -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.stdout
        assert invoke(command, "--help").stdout.startswith(f"Usage: convtune {command} ")
    assert invoke("--version").stdout == f"convtune {__version__}\n"


def test_no_command_is_help_and_exit_code_2() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert result.stderr.startswith("Usage: convtune ")


@pytest.mark.parametrize("command", ["--help", *(f"{command} --help" for command in COMMANDS), "show workloads"])
def test_light_commands_import_nothing_heavy(command: str) -> None:
    script = (
        "import sys; from convtune.cli.application import application\n"
        "try: application(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('|', *sorted({'tvm', 'numpy', 'scipy', 'xgboost', 'onnx', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script, *command.split()], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "|"


@pytest.mark.parametrize(("stop", "code"), [(KeyboardInterrupt, 130), (TerminatedError, 143)])
def test_a_signal_is_one_line(stop: type[BaseException], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise stop

    monkeypatch.setattr(convtune.workloads, "parse", interrupted)
    result = invoke("show", TINY)
    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.strip() == "convtune: interrupted"


def test_nobody_reading_is_no_error() -> None:
    with subprocess.Popen(
        [*PROGRAM, "show", "workloads", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as p:
        assert p.stdout is not None and p.stderr is not None
        p.stdout.close()
        assert p.stderr.read() == b""
        assert p.wait(timeout=60) == 141


def test_output_where_the_encoding_has_no_micro_sign() -> None:
    done = run("show", "targets", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    Log(path).append(
        [record_samples.make(5.0), record_samples.make(4.0, width=8), record_samples.failure("wrong", width=2)]
    )
    return path


def test_log_check(log: Path) -> None:
    data = printed_json("log", "check", log)
    assert (data["records"], data["specs"], data["by_status"]) == (3, 1, {"ok": 2, "wrong": 1})
    assert (data["problems"], data["torn"]) == ([], None)
    with log.open("ab") as file:
        file.write(b'{"schema":1}\n{"schema":1,"spec":')
    result = invoke("log", "check", log)
    assert result.exit_code == 1
    assert f"{log} line 4: missing spec" in result.stdout
    assert f"{log} line 5: cut short" in result.stdout
    assert "3 records" in result.stdout
    assert [problem["line"] for problem in json.loads(invoke("log", "check", log, "--json").stdout)["problems"]] == [4]


def test_log_merge_and_prune(log: Path, tmp_path: Path) -> None:
    other, merged = tmp_path / "other.jsonl", tmp_path / "merged.jsonl"
    other.write_bytes(log.read_bytes() + record_samples.make(6.0, width=16).line() + b"bad\n")
    result = invoke("log", "merge", log, other, "-o", merged)
    assert result.exit_code == 0
    assert result.stdout == f"{merged}: 4 records; 3 duplicates left out\n"
    assert f"{other} line 5: not JSON" in result.stderr
    assert len(Log(merged).records()) == 4
    assert printed_json("log", "prune", merged, "--keep", "1") == {"log": str(merged), "kept": 2, "dropped": 2}
    assert [r.time_us for r in Log(merged).records() if r.status == "ok"] == [4.0]
    assert invoke("log", "prune", merged, "--drop-failures").stdout == f"{merged}: 1 record kept, 1 dropped\n"


def test_log_export(log: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(invoke("log", "export", log, "--winners").stdout)))
    assert [float(row["time_us"]) for row in rows] == [4.0]
    assert len(printed_json("log", "export", log)) == 3
    Log(log).append([record_samples.make(3.0, origin="estimated", target=record_samples.gpu())])
    winners = printed_json("log", "export", log, "--winners")
    assert [(record["origin"], record["times_us"]) for record in winners] == [("measured", [4.0]), ("estimated", [3.0])]
    assert len(printed_json("log", "export", log, "--winners", "--origin", "measured")) == 1
    assert invoke("log", "export", log, "--format", "jsonl").stdout.encode() == log.read_bytes()


def test_log_without_a_name_is_one_s_own(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVTUNE_LOG", str(log))
    assert printed_json("log", "check")["log"] == str(log)


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    findings = [
        Finding("CPU", "ok", "fine", "tuning", figures={"threads": 2}),
        Finding("onnx", "absent", "not installed", "ONNX files", "pip install onnx"),
    ]
    asked = []
    monkeypatch.setattr(convtune.doctor, "examine", lambda measure: asked.append(measure) or findings)
    result = invoke("doctor")
    assert result.exit_code == 0
    assert [line.split(maxsplit=2) for line in result.stdout.splitlines()[:2]] == [
        ["ok", "CPU", "fine"],
        ["absent", "onnx", "not installed"],
    ]
    assert "it is for ONNX files" in result.stdout
    assert "to get it: pip install onnx" in result.stdout
    findings.append(Finding("TVM", "broken", "crashes", "compiling", "pip install apache-tvm"))
    result = invoke("doctor", "--no-measure", "--json")
    assert result.exit_code == 1
    data = json.loads(result.stdout)["findings"]
    assert data[0] == {
        "subject": "CPU",
        "state": "ok",
        "value": "fine",
        "purpose": "tuning",
        "remedy": "",
        "figures": {"threads": 2},
    }
    assert [finding["state"] for finding in data] == ["ok", "absent", "broken"]
    assert asked == [True, False]


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1.5h", 5400), ("1h0m1s", 3601), ("0.5s", 0.5)]
)
def test_durations(text: str, seconds: float) -> None:
    parameter = click.Option(["--budget"])
    assert options.duration_s(click.Context(click.Command("tune")), parameter, text) == seconds


@pytest.mark.parametrize("text", ["5", "m", "1 h", "1m1h", "1e3s", "٥m", "5M", "0h0m0s", ".5h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(click.BadParameter, match="is not a duration above 0"):
        options.duration_s(click.Context(click.Command("tune")), click.Option(["--budget"]), text)


def test_equal_specs_are_tuned_once_with_their_counts_added() -> None:
    tiny, small = ConvSpec.parse(TINY), ConvSpec.parse(SMALL)
    layers = [Workload("a", tiny, 2), Workload("b", small, 1), Workload("c", tiny, 3)]
    assert distinct(layers) == [Workload("a", tiny, 5), Workload("b", small, 1)]
    stage = Workload("b stage 1", tiny, 0)
    assert distinct([stage, *layers, stage]) == [Workload("a", tiny, 5), Workload("b", small, 1)]


def _progress(**changes: Any) -> Progress:
    fields: dict[str, Any] = {
        "spec": ConvSpec.parse(TINY),
        "done": 24,
        "trials": 64,
        "tried": 20,
        "best_rank": 13.21,
        "default_rank": 15_100.0,
        "failures": Counter(wrong=2, build_error=1),
        "elapsed_s": 4.0,
    }
    return Progress(**{**fields, **changes})


def test_a_long_layer_shows_a_sign_of_life(capsys: pytest.CaptureFixture[str]) -> None:
    now = [100.0]
    lines = PlainLines(17, deadline=300.0, clock=lambda: now[0])
    lines.begin(3, "stem")
    for _ in range(25):
        lines.update(_progress())
        now[0] += HEARTBEAT_S / 10
    heartbeat = (
        "[3/17] stem: 24/64 trials, best 13.2 µs, default 15.1 ms, 5.0 candidates/s, {left} left, "
        "failed: 2 wrong, 1 build error"
    )
    assert capsys.readouterr().err.splitlines() == [heartbeat.format(left=left) for left in ("3:10", "3:00")]
    lines.begin(4, "head")
    lines.finish("13.2 µs")
    assert capsys.readouterr().err == "[4/17] head: 13.2 µs\n"


def test_a_layer_before_its_first_time(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = PlainLines(1, deadline=None, clock=lambda: now[0])
    lines.begin(1, "stem")
    now[0] = HEARTBEAT_S
    lines.update(_progress(done=0, tried=0, best_rank=None, default_rank=None, failures=Counter(), elapsed_s=0.0))
    assert capsys.readouterr().err == "[1/1] stem: 0/64 trials, best -, default -\n"


def test_a_log_with_more_trials_than_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = PlainLines(1, deadline=None, clock=lambda: now[0])
    lines.begin(1, "stem")
    now[0] = HEARTBEAT_S
    lines.update(_progress(done=7, trials=2, tried=0, failures=Counter()))
    assert capsys.readouterr().err == "[1/1] stem: 7 trials, 2 asked for, best 13.2 µs, default 15.1 ms\n"


def test_what_takes_long_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    now = [0.0]
    lines = PlainLines(1, deadline=None, clock=lambda: now[0])
    lines.begin(1, "stem")
    now[0] = HEARTBEAT_S
    slow = {"tried": 2, "elapsed_s": 600.0, "default_rank": None, "origin": "estimated", "failures": Counter()}
    lines.update(_progress(**slow, waiting_for="building 8 candidates"))
    said = "24/64 trials, best 13.2 µs estimated, default -, 300 s a candidate, building 8 candidates"
    assert capsys.readouterr().err == f"[1/1] stem: {said}\n"


def test_many_bad_lines_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    warn_of([Problem("a.jsonl", line, "not JSON") for line in range(1, 6)])
    first, *_, last = capsys.readouterr().err.splitlines()
    assert first == "convtune: warning: a.jsonl line 1: not JSON; skipped"
    assert last == "convtune: warning: 2 more such lines; see `convtune log check`"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3600, "1:00:00"), (3725, "1:02:05"), (-3, "0:00")]
)
def test_time_left(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("times_us", "unit", "texts"),
    [
        ((0.3, None, 5000.0), "µs", ["0.30", None, "5000.00"]),
        ((13.21, 999.96), "µs", ["13.2", "1000.0"]),
        ((2000.0, 15_123.0), "ms", ["2.00", "15.12"]),
        ((20_000.0,), "ms", ["20.0"]),
        ((None,), "µs", [None]),
    ],
)
def test_times_have_one_unit_per_column(times_us: Sequence[float | None], unit: str, texts: list[str | None]) -> None:
    column = tables.RankColumn.of(times_us)
    assert column.unit == unit
    assert [column.text(time_us) for time_us in times_us] == texts


def test_names_of_one_network_are_shortened() -> None:
    tiny = ConvSpec.parse(TINY)
    named = [Workload("net/a", tiny), Workload("net/b", tiny)]
    assert tables.short_names(named) == ("net", ["a", "b"])
    assert tables.short_names([*named, Workload("other/a", tiny)]) == ("", ["net/a", "net/b", "other/a"])
    assert tables.short_names([Workload(TINY, tiny)]) == ("", [TINY])


def test_a_tabulated_number_stays_as_it_is_written() -> None:
    table = tables.render({"name": "left", "error": "right"}, [["a", "1.0e-07"], ["b", None], ["c", "12.50"]])
    assert [row.split() for row in table.splitlines()[2:]] == [["a", "1.0e-07"], ["b", "-"], ["c", "12.50"]]
