"""`convtune tune` as a user meets it: what it prints and logs, and how it goes on when it was stopped."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_process import PROGRAM, SMALL, TINY, invoke, run

import convtune.measure
from convtune.log import Log
from convtune.measure import Bench, Built, Outcome
from convtune.measure.builder import Library
from convtune.spec import ConvSpec

TRIALS = 3
LAYERS = (TINY, SMALL, TINY)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tuned") / "log.jsonl"


@pytest.fixture(scope="module")
def tuned(log: Path) -> subprocess.CompletedProcess[str]:
    done = run("tune", *LAYERS, "--trials", str(TRIALS), "--log", log, "--json")
    assert done.returncode == 0, done.stderr
    return done


def test_json_says_what_was_measured(tuned: subprocess.CompletedProcess[str], log: Path) -> None:
    data = json.loads(tuned.stdout)
    assert data["log"] == str(log)
    assert shlex.split(data["command"])[:2] == ["convtune", "tune"]
    assert data["failed"] == 0
    tiny, small = data["layers"]
    assert [(layer["spec"], layer["count"]) for layer in (tiny, small)] == [(TINY, 2), (SMALL, 1)]
    for layer in (tiny, small):
        assert layer["trials"] == TRIALS
        assert layer["stopped"] == "trials"
        assert layer["failure"] is None
        assert 0 < layer["best_us"] <= layer["default_us"]
        assert layer["speedup"] == layer["default_us"] / layer["best_us"]
        assert layer["gflops"] == pytest.approx(ConvSpec.parse(layer["spec"]).flops / layer["best_us"] / 1e3)
        assert 0 <= layer["error"] < 2e-5
    total = data["total"]
    assert total["best_us"] == pytest.approx(2 * tiny["best_us"] + small["best_us"])
    assert total["default_us"] == pytest.approx(2 * tiny["default_us"] + small["default_us"])
    assert total["speedup_geometric_mean"] == pytest.approx(math.sqrt(tiny["speedup"] * small["speedup"]))


def test_every_candidate_is_in_the_log(tuned: subprocess.CompletedProcess[str], log: Path) -> None:
    data = json.loads(tuned.stdout)
    for layer in data["layers"]:
        records = Log(log).records(layer["spec"])
        assert len({r.candidate.key for r in records if r.round == "search"}) == TRIALS
        finals = {json.dumps(dict(r.candidate.knobs)): r.time_us for r in records if r.round == "final"}
        assert min(finals.values()) == layer["best_us"]
        assert finals[json.dumps(layer["candidate"]["knobs"])] == layer["best_us"]


def test_progress_is_a_line_per_layer(tuned: subprocess.CompletedProcess[str]) -> None:
    finished = [line for line in tuned.stderr.splitlines() if "after 3 trials" in line]
    assert [line.split(":")[0] for line in finished] == [f"[1/2] {TINY}", f"[2/2] {SMALL}"]
    assert "\x1b" not in tuned.stderr


def test_what_is_in_the_log_costs_nothing(
    tuned: subprocess.CompletedProcess[str], log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = log.read_bytes()
    monkeypatch.setattr(convtune.measure, "open_bench", None)  # no worker may start
    result = invoke("tune", *LAYERS, "--trials", str(TRIALS), "--log", log)
    assert result.exit_code == 0
    assert log.read_bytes() == before
    assert result.stderr.count("all from the log") == 2
    assert "times of 2 layers: from the log, measured earlier" in result.stdout
    for layer in json.loads(tuned.stdout)["layers"]:
        (row,) = (line for line in result.stdout.splitlines() if line.startswith(layer["spec"]))
        cells = row.split()
        assert cells[1] == str(layer["count"])
        for cell, time_us in zip(cells[2:4], (layer["default_us"], layer["best_us"])):
            assert float(cell) == pytest.approx(time_us, abs=0.05)
        assert cells[4] == f"{layer['speedup']:.2f}x"


def test_the_table_names_units_machine_and_command(tuned: subprocess.CompletedProcess[str], log: Path) -> None:
    table = invoke("tune", *LAYERS, "--trials", str(TRIALS), "--log", log).stdout
    header = table.splitlines()[0]
    assert re.split(r"  +", header) == [
        *("layer", "count", "default µs", "tuned µs", "speed-up", "GFLOP/s", "of peak", "error")
    ]
    assert len({len(line.rstrip()) for line in table.splitlines()[:5]}) == 1, "columns are aligned"
    assert re.search(r"^these layers, by count +3 ", table, re.MULTILINE)
    assert re.search(r"FMA peak measured in this run: \d+ GFLOP/s \(before \d+, after \d+\)", table)
    command = shlex.join(["convtune", "tune", *LAYERS, "--trials", str(TRIALS), "--log", str(log)])
    assert table.splitlines()[-1] == command


def test_a_bad_line_of_the_log_is_named_and_kept(
    tuned: subprocess.CompletedProcess[str], log: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "log.jsonl"
    copy.write_bytes(b"not a record\n" + log.read_bytes())
    result = invoke("tune", TINY, "--trials", str(TRIALS), "--log", copy)
    assert result.exit_code == 0
    assert f"convtune: warning: {copy} line 1: not JSON" in result.stderr
    assert copy.read_bytes().startswith(b"not a record\n")


class ScriptedBench:
    """A bench whose answers are given by spec, in place of the workers."""

    scripted: dict[str, Outcome]

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def build(self, _: ConvSpec, candidates: Sequence[Any]) -> list[Built]:
        return [Built(candidate, "ok", library=Library(Path("none"), (), 0.1, 1)) for candidate in candidates]

    def measure(self, spec: ConvSpec, *_: Any) -> Outcome:
        return self.scripted[str(spec)]

    outcomes = Bench.outcomes
    samples, machines, finals_device = False, 1, None
    verify = measure

    def finals(self, spec: ConvSpec, built: Sequence[Built]) -> list[tuple[float, ...]]:
        return [self.scripted[str(spec)].times_us for _ in built]

    def discard(self, _: Built) -> None: ...
    def while_waiting(self, _: Any) -> None: ...
    def close(self) -> None: ...


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[ScriptedBench]:
    monkeypatch.setattr(convtune.measure, "open_bench", ScriptedBench)
    ScriptedBench.scripted = {
        TINY: Outcome("ok", "", 1e-7, (20_000.0,), 0.1),
        SMALL: Outcome("wrong", "wrong result: error 0.5,\nallowed 2e-05", 0.5),
    }
    return ScriptedBench


def test_a_layer_that_fails_is_a_row_and_exit_code_1(scripted: type[ScriptedBench], tmp_path: Path) -> None:
    arguments = ("tune", SMALL, TINY, "--trials", "2", "--log", tmp_path / "log.jsonl")
    result = invoke(*arguments)
    assert result.exit_code == 1
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines() if line}
    assert rows[SMALL] == ["1", "-", "failed", *"----"]
    assert rows[TINY][:4] == ["1", "20.0", "20.0", "1.00x"]
    assert "default ms" in result.stdout
    assert "1 of these 2 layers, by count" in result.stdout
    why = "no candidate works (2 wrong); the last one: wrong result: error 0.5, | allowed 2e-05"
    assert f"failed: {SMALL}: {why}" in result.stdout.splitlines()
    again = invoke(*arguments, "--json")
    assert again.exit_code == 1
    data = json.loads(again.stdout)
    assert data["failed"] == 1
    assert [layer["failure"] for layer in data["layers"]] == [why, None]
    assert data["layers"][0]["failures"] == {"wrong": 2}


def test_a_budget_is_shared_and_every_layer_gets_its_default(scripted: type[ScriptedBench], tmp_path: Path) -> None:
    scripted.scripted[SMALL] = Outcome("ok", "", 1e-7, (30.0,), 0.1)
    log = tmp_path / "log.jsonl"
    result = invoke("tune", TINY, SMALL, "--trials", "64", "--budget", "0.001s", "--log", log, "--json")
    assert result.exit_code == 0, result.stderr
    layers = json.loads(result.stdout)["layers"]
    assert [layer["stopped"] for layer in layers] == ["budget", "budget"]
    assert all(layer["default_us"] and layer["trials"] < 64 for layer in layers)


COMPOSITE = "depthwise_separable,ic=16,oc=32,in=9x9,k=3x3,p=1,layout=NHWC"
STAGES = tuple(map(str, ConvSpec.parse(COMPOSITE).stages))


def test_stages_are_tuned_beside_the_composite_one(scripted: type[ScriptedBench], tmp_path: Path) -> None:
    for spec, time_us in zip((COMPOSITE, *STAGES, SMALL), (310.0, 20.0, 500.0, 100.0)):
        scripted.scripted[spec] = Outcome("ok", "", 1e-7, (time_us,), 0.1)
    arguments = ("tune", COMPOSITE, SMALL, "--stages", "--trials", "1", "--log", tmp_path / "log.jsonl")
    result = invoke(*arguments)
    assert result.exit_code == 0, result.stderr
    rows = [line.split("  ")[0] for line in result.stdout.splitlines()[2:7]]
    assert rows == [COMPOSITE, *(f"{COMPOSITE} stage {i}" for i in (1, 2)), SMALL, "these layers, by count"]
    (total,) = (line.split()[4:7] for line in result.stdout.splitlines() if line.startswith("these layers"))
    assert total == ["2", "410.0", "410.0"], "each stage is in it once, as a part of the composite one"
    said = f"{COMPOSITE}: fused 310.0 µs, stages 520.0 µs one after the other (1.68x)"
    assert said in result.stdout.splitlines()
    again = invoke(*arguments)
    assert said.replace(")", "; measured at different times)") in again.stdout.splitlines()
    data = json.loads(invoke(*arguments, "--json").stdout)
    (fused,) = data["fused"]
    assert fused | {"name": COMPOSITE, "fused_us": 310.0, "stages_us": 520.0, "from_log": True} == fused
    assert fused["fused_cost"] is fused["stages_cost"] is None
    assert [layer["count"] for layer in data["layers"]] == [1, 0, 0, 1]
    assert (data["total"]["layers"], data["total"]["count"]) == (2, 2)


def test_what_is_not_timed_is_not_compared(scripted: type[ScriptedBench], tmp_path: Path) -> None:
    """Nor is there a total where the only layer failed, though its stages work."""
    scripted.scripted[COMPOSITE] = Outcome("wrong", "wrong result", 0.5)
    for stage in STAGES:
        scripted.scripted[stage] = Outcome("ok", "", 1e-7, (20.0,), 0.1)
    arguments = ("tune", COMPOSITE, "--stages", "--trials", "1", "--log", tmp_path / "log.jsonl")
    result = invoke(*arguments)
    assert result.exit_code == 1
    assert "fused" not in result.stdout
    assert "by count" not in result.stdout
    data = json.loads(invoke(*arguments, "--json").stdout)
    assert (data["fused"], data["total"], data["failed"]) == ([], None, 1)


class Running:
    """A `convtune tune` process that is about to be stopped."""

    arguments: list[str]

    def __init__(self, log: Path, **environment: str) -> None:
        self.log = log
        self.arguments = ["tune", TINY, "--trials", "40", "--seed", "3", "--log", str(log)]
        self.process = subprocess.Popen(
            [*PROGRAM, *self.arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env={**os.environ, **environment},
            start_new_session=True,
        )

    def wait_for(self, records: int) -> None:
        deadline = time.monotonic() + 120
        while not self.log.exists() or self.log.read_bytes().count(b"\n") < records:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def stop(self, number: signal.Signals) -> tuple[str, str]:
        os.kill(self.process.pid, number)
        return self.process.communicate(timeout=60)


def candidates(log: Path) -> list[str]:
    return [r.candidate.key for r in Log(log).records(TINY) if r.round == "search"]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_everything_and_says_how_to_go_on(number: signal.Signals, code: int, tmp_path: Path) -> None:
    log = tmp_path / "my log.jsonl"  # the space must survive in the command
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    running = Running(log, TMPDIR=str(scratch))
    running.wait_for(records=4)
    assert list(scratch.iterdir())
    stdout, stderr = running.stop(number)
    assert running.process.returncode == code
    assert list(scratch.iterdir()) == []
    assert stdout == ""
    assert "Traceback" not in stderr
    *_, said, command = stderr.splitlines()
    kept = candidates(log)
    assert len(kept) >= 4
    assert said == f"convtune: interrupted; {len(kept)} candidates of these layers are in {log}; to go on:"
    assert shlex.split(command) == ["convtune", *running.arguments]
    trials = len(kept) + 2
    program, *rest = shlex.split(command)
    done = run(*rest, "--trials", str(trials))
    assert program == "convtune"
    assert done.returncode == 0, done.stderr
    assert "after 2 trials" in done.stderr
    now = candidates(log)
    assert now[: len(kept)] == kept
    assert len(set(now)) == len(now) == trials


@pytest.mark.slow
def test_kill_9_loses_only_what_is_in_flight(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    running = Running(log)
    running.wait_for(records=3)
    running.stop(signal.SIGKILL)
    kept = candidates(log)
    assert len(kept) >= 3
    done = run(*running.arguments, "--trials", str(len(kept) + 1))
    assert done.returncode == 0, done.stderr
    now = candidates(log)
    assert now[: len(kept)] == kept
    assert len(set(now)) == len(now) == len(kept) + 1


def on_a_terminal(arguments: Sequence[str], columns: int) -> tuple[int, str, str]:
    """Exit code, standard output, and what a terminal of that width is sent on standard error."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "24"}
    with subprocess.Popen(
        [sys.executable, "-m", "convtune.cli", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
    ) as process:
        os.close(theirs)
        shown = b""
        while process.poll() is None or select.select([ours], [], [], 0)[0]:
            if select.select([ours], [], [], 0.1)[0]:
                try:
                    shown += os.read(ours, 65536)
                except OSError:  # EIO: the other end is closed
                    break
        assert process.stdout is not None
        printed = process.stdout.read().decode()
        process.wait(timeout=60)
    os.close(ours)
    return process.returncode, printed, shown.decode()


ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def test_the_live_display_on_a_terminal(tmp_path: Path) -> None:
    arguments = ["tune", TINY, "--trials", "3", "--budget", "5m", "--log", str(tmp_path / "log.jsonl")]
    code, printed, shown = on_a_terminal(arguments, columns=70)
    assert code == 0
    assert "\x1b" not in printed
    assert printed.startswith("layer ")
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is hidden, and comes back"
    lines = [line.strip("\r") for line in ESCAPE.sub("", shown).replace("\r", "\n").split("\n")]
    assert any(re.search(r"3/3 trials   best \d.* µs   default \d.* µs", line) for line in lines)
    assert any(re.search(r"candidates/s|s a candidate", line) for line in lines)
    finished = [line for line in lines if "ended by trials" in line]
    assert len(finished) == 1
    live = [line for line in lines if line and line not in finished]
    assert all(len(line) <= 70 for line in live), "no line wraps, so that none is left behind"
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]", ESCAPE.sub("", shown))


def test_no_colour_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    arguments = ["tune", TINY, "--trials", "1", "--log", str(tmp_path / "log.jsonl")]
    code, _, shown = on_a_terminal(arguments, columns=100)
    assert code == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m|\x1b\[38;", shown)
