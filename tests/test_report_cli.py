"""`convtune report` as it is called: every format of the same content, odd logs, bad input."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path

import pytest
from cli_process import invoke
from record_samples import OTHER_SPEC, SPEC, failure, final, gpu, make, utc

from convtune.log import Log
from convtune.record import Record
from convtune.report import page

MARKUP = "<b onclick=alert(1)>|`_x_"
FORMATS = ("html", "text", "markdown", "csv", "json")


def tuned() -> list[Record]:
    estimated = {"origin": "estimated", "target": gpu(model=MARKUP)}
    return [
        make(20.0, width=1, utc=utc(1)),
        make(10.0, width=2, utc=utc(2)),
        final(21.0, 5, width=1, utc=utc(9)),
        final(7.0, 5, width=2, utc=utc(9)),
        failure("timeout", spec=OTHER_SPEC, utc=utc(10)),
        make(3.0, **estimated),
        make(1.5, width=8, **estimated),
    ]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.jsonl"
    Log(path).append(tuned())
    return path


def test_text_keeps_origins_apart_and_says_what_failed(log: Path) -> None:
    text = invoke("report", log).stdout
    measured, estimated = text.split("sm_80: ")
    assert "times measured" in measured
    assert "3.00x" in measured  # 21.0 over 7.0, as the finals have them
    assert "failed" in measured
    assert "failed: 1 timeout" in measured
    assert "tuned µs estimated" in estimated
    assert "2.00x" in estimated
    assert "1.50" in estimated
    assert "1.50" not in measured


def test_markdown_is_a_table_that_text_cannot_break(log: Path) -> None:
    text = invoke("report", log, "--format", "markdown").stdout
    assert "<b" not in text
    assert "&lt;b onclick=alert(1)&gt;\\|\\`\\_x\\_" in text
    for table in text.split("## ")[1:]:
        assert len({line.count("|") for line in table.splitlines() if line.startswith("|")}) == 1


def test_csv_has_a_row_for_each_layer_of_each_origin(log: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(invoke("report", log, "--format", "csv").stdout)))
    assert [(row["origin"], row["spec"]) for row in rows] == [
        ("measured", SPEC),
        ("measured", OTHER_SPEC),
        ("estimated", SPEC),
    ]
    assert (float(rows[0]["default_us"]), float(rows[0]["best_us"])) == (21.0, 7.0)
    assert (rows[1]["best_us"], rows[1]["timeout"]) == ("", "1")
    assert json.loads(rows[2]["knobs"])["width"] == 8
    assert rows[2]["model"] == MARKUP


def test_json_has_all_digits(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    Log(path).append([make(1.23456789)])
    data = json.loads(invoke("report", path, "--format", "json").stdout)
    (layer,) = data["sections"][0]["layers"]
    assert layer["best_us"] == 1.23456789
    assert layer["default_candidate"]["knobs"] == {"width": 4, "order": "outer"}
    assert "tried" not in layer


@pytest.mark.parametrize("form", FORMATS)
def test_an_empty_log_and_one_of_failures_are_no_error(tmp_path: Path, form: str) -> None:
    empty, failed = tmp_path / "empty.jsonl", tmp_path / "failed.jsonl"
    empty.touch()
    Log(failed).append([failure(), failure("wrong", error=0.5, width=9)])
    for path in (empty, failed):
        out = tmp_path / f"{path.stem}.out"
        done = invoke("report", path, "--format", form, "-o", out)
        assert done.exit_code == 0, done.stderr
        assert out.stat().st_size > 0


def test_fields_and_lines_of_another_version_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    later = json.loads(make(5.0).line()) | {"weather": {"rain": [1, 2]}}
    later["target"]["moons"] = 2
    path.write_text(f"{json.dumps(later)}\nno record\n", encoding="utf-8")
    done = invoke("report", path)
    assert done.exit_code == 0
    assert "5.00" in done.stdout
    assert "line 2" in done.stderr
    data = json.loads(invoke("report", path, "--format", "json").stdout)
    assert len(data["skipped_lines"]) == 1


def test_several_logs_are_one_report(log: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    Log(other).append([make(6.0, width=4, utc=utc(30))])
    data = json.loads(invoke("report", log, other, "--format", "json").stdout)
    assert [len(section["layers"]) for section in data["sections"]] == [2, 1]
    assert data["sections"][0]["layers"][0]["trials"] == 3
    assert data["logs"] == [str(log), str(other)]
    again = json.loads(invoke("report", log, other, log, "--format", "json").stdout)
    assert again["sections"] == data["sections"]  # each record counts once


def test_the_ending_tells_the_format(log: Path, tmp_path: Path) -> None:
    for ending, start in (
        (".csv", "target,"),
        (".md", "## "),
        (".json", "{"),
        (".html", "<!doctype"),
        (".TXT", "native"),
    ):
        out = tmp_path / f"report{ending}"
        assert invoke("report", log, "-o", out).exit_code == 0
        assert out.read_text(encoding="utf-8").startswith(start)
    assert sorted(p.name for p in tmp_path.glob(".*")) == []
    assert invoke("report", log, "--json").stdout == invoke("report", log, "--format", "json").stdout


def test_bad_input_is_one_line(log: Path, tmp_path: Path) -> None:
    for arguments, said in (
        ((tmp_path / "none.jsonl",), "does not exist"),
        ((tmp_path,), "directory"),
        ((Path(__file__),), "is no log"),
        ((log, "-o", tmp_path / "x.pdf"), "must be one of .html"),
        ((log, "--format", "html"), "needs -o FILE"),
        ((log, "--format", "pdf"), "pdf"),
        ((log, "--json", "--format", "csv"), "--json is --format json"),
        ((log, "--bench", log), "is no"),
        ((log, "--bench", tmp_path / "none.json"), "No such file"),
        ((log, "-o", tmp_path / "none" / "r.html"), "cannot be written"),
    ):
        done = invoke("report", *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        assert said in done.stderr, done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["report", "compare"])
def test_no_output_replaces_an_input_or_a_device(log: Path, tmp_path: Path, command: str) -> None:
    before = log.read_bytes()
    link, pipe, directory = (tmp_path / name for name in ("link.txt", "pipe.txt", "directory.txt"))
    link.symlink_to(log)
    os.mkfifo(pipe)
    directory.mkdir()
    inputs = (log,) if command == "report" else (log, log)
    for output, said in ((log, "would overwrite"), (link, "would overwrite"), (pipe, "pipe"), (directory, "directory")):
        done = invoke(command, *inputs, "--format", "text", "-o", output)
        assert (done.exit_code, done.stdout) == (2, ""), done.output
        assert said in done.stderr
    assert log.read_bytes() == before
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert [path.name for path in tmp_path.glob(".*")] == []


def test_a_report_does_not_replace_its_bench(log: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    bench.write_text("{}", encoding="utf-8")
    assert invoke("report", log, "--bench", bench, "-o", bench).exit_code == 2
    assert bench.read_text(encoding="utf-8") == "{}"


def test_a_bench_of_the_machine_adds_the_libraries(log: Path, tmp_path: Path) -> None:
    bench = tmp_path / "bench.json"
    layer = {
        "spec": SPEC,
        "ours": {"us": 7.1},
        "best": "torch",
        "verdict": "loss",
        "ratio": {"median": 0.8, "lower": 0.7, "upper": 0.9},
        "peers": {"torch": {"status": "ok", "us": 5.7}},
    }
    document = {
        "schema": "convtune-bench",
        "version": 1,
        "machine": {"fingerprint": "f0"},
        "runs": [],
        "layers": [layer],
    }
    bench.write_text(json.dumps(document), encoding="utf-8")
    text = invoke("report", log, "--bench", bench).stdout
    measured, estimated = text.split("sm_80: ")
    assert "torch µs" in measured
    assert "0.80x loss" in measured
    assert "torch" not in estimated


@pytest.mark.parametrize("package", ["jinja2", "vl_convert"])
def test_a_page_without_its_packages_says_how_to_get_them(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    for cached in (page._environment, page._vega):
        cached.cache_clear()
    monkeypatch.setitem(sys.modules, package, None)
    done = invoke("report", log, "--kernels", "-o", tmp_path / "report.html")
    assert done.exit_code == 2
    assert "building" not in done.stderr  # that takes long
    assert f"needs {package}; pip install 'convtune[report]'" in done.stderr
    assert not (tmp_path / "report.html").exists()
    assert invoke("report", log).exit_code == 0
