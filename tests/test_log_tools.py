"""The log's tools: what they drop changes no winner, what they cannot read they do not lose."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from record_samples import OTHER_SPEC, SPEC, failure, final, make, target, utc

from convtune import log_tools, paths
from convtune.errors import ConvtuneError, LogError
from convtune.log import Log
from convtune.record import NewerSchemaError, Record, traced, winner


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.jsonl"


def write(path: Path, *lines: Record | bytes) -> Path:
    path.write_bytes(b"".join(line if isinstance(line, bytes) else line.line() for line in lines))
    return path


def crlf(record: Record) -> bytes:
    return record.line().replace(b"\n", b"\r\n")


# Every tool, bad input


def every_tool(path: Path) -> dict[str, Any]:
    return {
        "check": lambda: log_tools.check(path),
        "merge": lambda: log_tools.merge([path], path.parent / "out.jsonl"),
        "prune": lambda: log_tools.prune(path),
        "export": lambda: log_tools.export(path, "csv"),
    }


TOOLS = ("check", "merge", "prune", "export")


@pytest.mark.parametrize("tool", TOOLS)
def test_a_directory_is_refused(tmp_path: Path, tool: str) -> None:
    place = tmp_path / "directory"
    place.mkdir()
    with pytest.raises(LogError, match=f"log {place} is a directory; it must be a file"):
        every_tool(place)[tool]()
    assert list(tmp_path.iterdir()) == [place]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_missing_file_is_refused_and_not_made(tmp_path: Path, path: Path, tool: str) -> None:
    with pytest.raises(LogError, match=f"log {path} does not exist"):
        every_tool(path)[tool]()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tool", TOOLS)
def test_a_newer_schema_is_refused_and_nothing_written(tmp_path: Path, path: Path, tool: str) -> None:
    write(path, make(), make(), b'{"schema": 3}\n')
    before = path.read_bytes()
    with pytest.raises(NewerSchemaError, match=f"log {path} line 3: written by a newer convtune, schema 3"):
        every_tool(path)[tool]()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("tool", TOOLS)
def test_an_empty_file_is_an_empty_log(path: Path, tool: str) -> None:
    every_tool(write(path))[tool]()
    assert path.read_bytes() == b""


# check


def test_check_counts(path: Path) -> None:
    records = [make(), make(), crlf(make()), failure(), make(spec=OTHER_SPEC, origin="estimated")]
    write(path, *records, make(target=target("other", "f1")), b"\xff\xfe\n", b"\n", make().line()[:100])
    summary = log_tools.check(str(path))
    assert summary.path == path and summary.records == 6 and summary.duplicates == 2
    assert summary.by_status == {"ok": 5, "crash": 1} and summary.by_origin == {"measured": 5, "estimated": 1}
    assert summary.specs == 2 and summary.targets == ("native", "other")
    assert [str(problem) for problem in summary.problems] == [f"{path} line 7: not UTF-8: byte 1 is 0xff"]
    assert summary.torn and summary.torn.line == 9 and "cut short after 100 bytes" in summary.torn.reason


def test_check_changes_nothing(path: Path) -> None:
    write(path, make(), make().line()[:-1])
    before = path.read_bytes()
    assert log_tools.check(path).records == 2 and path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("garbage", [b"\x7fELF" + bytes(range(256)) * 40, b"\0" * 10000, b"a,b,c\n1,2,3\n"])
def test_garbage_has_no_records_and_is_all_reported(path: Path, garbage: bytes) -> None:
    summary = log_tools.check(write(path, garbage))
    lines = [line for line in garbage.split(b"\n") if line.strip()]
    assert summary.records == 0 and len(summary.problems) + (summary.torn is not None) == len(lines)
    assert log_tools.export(path, "jsonl").text == "" and log_tools.export(path, "json").text == "[]\n"


# merge


def test_merge_keeps_order_drops_duplicates_and_reports_bad_lines(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", make(1.0), make(2.0), b"bad\n", make(1.0))
    b = write(tmp_path / "b.jsonl", crlf(make(2.0)), make(3.0).line()[:-1])
    before = a.read_bytes(), b.read_bytes()
    out = tmp_path / "new" / "out.jsonl"
    merged = log_tools.merge([a, str(b), a], out)
    assert out.read_bytes() == make(1.0).line() + make(2.0).line() + make(3.0).line()
    assert merged.records == 3 and merged.duplicates == 5
    assert [(p.source, p.line) for p in merged.problems] == [(str(a), 3), (str(a), 3)]
    assert (a.read_bytes(), b.read_bytes()) == before
    assert list(out.parent.iterdir()) == [out]


def test_fields_of_later_versions_survive_merge_prune_and_export(tmp_path: Path) -> None:
    data = {**json.loads(make().line()), "power_w": [3, {"a": None}]}
    line = json.dumps(data).encode() + b"\n"
    out = tmp_path / "out.jsonl"
    log_tools.merge([write(tmp_path / "a.jsonl", line)], out)
    log_tools.prune(out, keep=1)
    assert out.read_bytes() == line
    assert json.loads(log_tools.export(out, "json").text) == [data] == [json.loads(log_tools.export(out, "jsonl").text)]


@pytest.mark.parametrize("alias", ["a.jsonl", "hard.jsonl", "sub/../a.jsonl"])
def test_merge_never_writes_over_an_input(tmp_path: Path, alias: str) -> None:
    a, b = write(tmp_path / "a.jsonl", make(1.0)), write(tmp_path / "b.jsonl", make(2.0))
    (tmp_path / "sub").mkdir()
    (tmp_path / "hard.jsonl").hardlink_to(a)
    with pytest.raises(LogError, match="is an input of the merge too; merge into a new file"):
        log_tools.merge([b, a], tmp_path / alias, overwrite=True)
    assert a.read_bytes() == make(1.0).line()


def test_merge_writes_over_another_file_only_when_told(tmp_path: Path) -> None:
    a, out = write(tmp_path / "a.jsonl", make(1.0)), write(tmp_path / "out.jsonl", make(2.0))
    out.chmod(0o640)
    with pytest.raises(
        LogError, match=f"log {out} exists; merge into a new file, or say that it may be overwritten: --overwrite"
    ):
        log_tools.merge([a], out)
    assert out.read_bytes() == make(2.0).line()
    log_tools.merge([a], out, overwrite=True)
    assert out.read_bytes() == make(1.0).line() and out.stat().st_mode & 0o777 == 0o640


def test_an_input_that_cannot_be_read_leaves_the_output_alone(tmp_path: Path) -> None:
    a, out = write(tmp_path / "a.jsonl", make(1.0)), write(tmp_path / "out.jsonl", make(2.0))
    with pytest.raises(LogError, match="does not exist"):
        log_tools.merge([a, tmp_path / "missing"], out, overwrite=True)
    assert out.read_bytes() == make(2.0).line() and sorted(tmp_path.iterdir()) == [a, out]


# prune


def test_prune_keeps_the_fastest_of_each_spec_target_and_origin_and_all_failures(path: Path) -> None:
    elsewhere = target("other", "f1")
    records = [make(float(t), width=t) for t in (5, 3, 4, 1, 2)]
    others = [make(9.0, spec=OTHER_SPEC), make(8.0, target=elsewhere), make(7.0, origin="estimated"), failure()]
    write(path, *records, *others, make(1.0, width=1))
    assert log_tools.prune(path, keep=2) == log_tools.Pruned(kept=6, dropped=4, repair=None)
    assert Log(path).records() == [make(1.0, width=1), make(2.0, width=2), *others]
    log_tools.prune(path, keep=2, drop_failures=True)
    assert Log(path).records() == [make(1.0, width=1), make(2.0, width=2), *others[:-1]]


def test_prune_keeps_what_it_cannot_read_and_mends_the_end(path: Path) -> None:
    overlong = b"x" * (5 * 2**20) + b"\n"
    write(path, b"\xff\xfe\r\n", make(2.0), overlong, crlf(make(1.0)), b"\n", b'{"torn')
    pruned = log_tools.prune(path, keep=1)
    assert path.read_bytes() == b"\xff\xfe\r\n" + overlong + crlf(make(1.0)) + b"\n"
    assert pruned.repair and "its 6 bytes were moved" in pruned.repair
    assert path.with_name("log.jsonl.torn").read_bytes() == b'{"torn\n'


@pytest.mark.parametrize("keep", [0, -1])
def test_prune_keeps_something(path: Path, keep: int) -> None:
    with pytest.raises(LogError, match=f"keep={keep}: at least 1 record per spec and target must be kept"):
        log_tools.prune(write(path, make()), keep=keep)


errors = st.sampled_from([None, 1e-7, 1e-5, 1e-3])
times = st.integers(1, 6).map(float)


def test_prune_keeps_the_default_beside_the_winner(path: Path) -> None:
    """What tuning gained can still be told, though the default was the slowest."""
    searched = [make(float(width), width=width, default=width == 9) for width in range(1, 10)]
    finals = [final(float(width), 5, width=width, default=width == 9) for width in (1, 2, 9)]
    log_tools.prune(write(path, *searched, *finals), keep=1)
    assert [(r.round, r.rank) for r in Log(path).records()] == [
        ("search", 1.0),
        ("search", 9.0),
        ("final", 1.0),
        ("final", 9.0),
    ]


search = st.builds(lambda t, e, o: make(t, error=e, origin=o), times, errors, st.sampled_from(["measured", "emulated"]))
finals = st.builds(
    lambda t, b, e, u: final(t, b, error=e, utc=utc(u)), times, st.integers(1, 4), errors, st.integers(5, 9)
)
histories = st.lists(search | finals | st.just(failure()), max_size=25)


@given(history=histories, keep=st.integers(1, 3), drop_failures=st.booleans())
def test_prune_changes_no_winner(
    tmp_path_factory: pytest.TempPathFactory, history: list[Record], keep: int, drop_failures: bool
) -> None:
    path = write(tmp_path_factory.mktemp("prune") / "log.jsonl", *history)
    pruned = log_tools.prune(path, keep=keep, drop_failures=drop_failures)
    left = Log(path).records()
    assert (len(left), len(history) - len(left)) == (pruned.kept, pruned.dropped)
    for limit in (None, 1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-9):
        for origin in ("measured", "emulated"):
            before = winner(history, max_error=limit, origin=origin)
            assert winner(left, max_error=limit, origin=origin) == before


def test_a_record_appended_while_prune_runs_is_not_lost(path: Path) -> None:
    here = Path(__file__).parent
    code = f"""
import sys; sys.path.insert(0, {str(here)!r})
from record_samples import *; from convtune.log import Log
for i in range(200):
    Log(sys.argv[1]).append([failure(seed=i)])
"""
    write(path, *[make(float(i)) for i in range(1, 20)])
    process = subprocess.Popen([sys.executable, "-c", code, str(path)])
    runs = 0
    while process.poll() is None:
        log_tools.prune(path, keep=1)
        runs += 1
    assert process.returncode == 0 and runs > 1
    assert [r.seed for r in Log(path).records() if r.status == "crash"] == [*range(200)]
    assert not Log(path).problems


@pytest.mark.parametrize("tool", ["merge", "prune"])
def test_a_failing_write_leaves_everything_as_it_was(path: Path, tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(path, make(2.0), make(1.0))
    before = path.read_bytes()

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(LogError, match="No space left on device"):
        every_tool(path)[tool]()
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


# export


def test_export_jsonl_is_a_log_again(path: Path, tmp_path: Path) -> None:
    write(path, crlf(make(1.0, message="ünï")), b"bad\n", failure())
    again = tmp_path / "again.jsonl"
    again.write_text(log_tools.export(path, "jsonl").text, newline="")
    assert again.read_bytes() == make(1.0, message="ünï").line() + failure().line()


def test_export_winners(path: Path) -> None:
    a, b = make(1.0, error=1e-3), make(2.0)
    c, d = make(3.0, spec=OTHER_SPEC), make(4.0, target=target("other", "f1"))
    e = make(0.1, origin="estimated")
    write(path, a, b, c, d, make(9.0, spec=OTHER_SPEC), failure(), make(0.2, origin="estimated"), e)

    def winners(**choice: Any) -> bytes:
        return log_tools.export(path, "jsonl", winners=True, **choice).text.encode()

    assert winners() == a.line() + c.line() + d.line() + e.line(), "of every origin"
    assert winners(max_error=2e-5) == b.line() + c.line() + d.line() + e.line()
    assert winners(origin="measured") == a.line() + c.line() + d.line()
    assert winners(origin="estimated") == e.line()
    assert winners(origin="emulated") == b""


@pytest.mark.parametrize("choice", [{"max_error": 2e-5}, {"max_error": 0.0}, {"origin": "measured"}])
def test_what_chooses_winners_is_refused_without_them(path: Path, choice: dict[str, Any]) -> None:
    with pytest.raises(LogError, match="max_error and origin choose winners"):
        log_tools.export(write(path, make()), "csv", **choice)


def test_export_csv_is_a_table(path: Path) -> None:
    write(path, make(times_us=(1.0, 4.0, 2.0)), failure(candidate=traced([1, "a"])), final(3.0, 9))
    rows = list(csv.DictReader(io.StringIO(log_tools.export(path, "csv").text, newline="")))
    assert rows[0] == {
        "spec": SPEC, "target": "native", "model": "A Processor 9000", "fingerprint": "f0", "space": "dense_direct",
        "knobs": "width=4 order=outer", "status": "ok", "origin": "measured", "round": "search", "batch": "",
        "time_us": "2.0", "repeats": "3", "error": "1e-07", "build_s": "0.125", "convtune": "0.1.0", "tvm": "0.27.0",
        "seed": "7", "utc": utc(0), "message": "", "cost": "", "default": "", "device": "", "counts": "",
    }  # fmt: skip
    assert (rows[1]["time_us"], rows[1]["repeats"], rows[1]["error"]) == ("", "0", "")
    assert rows[1]["message"] == "crash: signal 11" and rows[1]["knobs"] == f"trace={traced([1, 'a']).key}"
    assert rows[2]["round"] == "final" and rows[2]["batch"] == utc(9)


def test_export_csv_has_a_column_of_costs(path: Path) -> None:
    write(path, make(640.5, origin="emulated", counts={"load": 30, "l1_bytes": 64}, default=True))
    (row,) = csv.DictReader(io.StringIO(log_tools.export(path, "csv").text, newline=""))
    assert (row["cost"], row["time_us"], row["repeats"]) == ("640.5", "", "0")
    assert (row["counts"], row["default"]) == ("load=30 l1_bytes=64", "True")


def test_an_unknown_format_lists_the_known_ones(path: Path) -> None:
    with pytest.raises(LogError, match="export format 'xml' is not known; it must be one of json, csv, jsonl"):
        log_tools.export(write(path), "xml")


# Where the user's files are


def test_the_log_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("CONVTUNE_LOG", raising=False)
    assert paths.log_path() == tmp_path / "data" / "convtune" / "log.jsonl"
    monkeypatch.setenv("CONVTUNE_LOG", "")
    assert paths.log_path() == tmp_path / "data" / "convtune" / "log.jsonl"
    monkeypatch.setenv("CONVTUNE_LOG", "~/mine.jsonl")
    assert paths.log_path() == Path.home() / "mine.jsonl"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", [True, False])
def test_the_cache_is_the_users_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, override: bool) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CONVTUNE_CACHE", raising=False)
    expected = tmp_path / "cache" / "convtune"
    if override:
        expected = tmp_path / "mine" / "deep"
        monkeypatch.setenv("CONVTUNE_CACHE", str(expected))
    old = os.umask(0)
    try:
        assert paths.cache_dir() == paths.cache_dir() == expected
    finally:
        os.umask(old)
    assert expected.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o722])
def test_a_cache_that_others_may_write_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, mode: int) -> None:
    tmp_path.chmod(mode)
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path))
    with pytest.raises(ConvtuneError, match=f"cache directory {tmp_path} has mode {mode:04o}, .* it must be 0700"):
        paths.cache_dir()
    assert tmp_path.stat().st_mode & 0o7777 == mode


def test_a_cache_of_somebody_else_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: tmp_path.stat().st_uid + 1)
    with pytest.raises(ConvtuneError, match=f"cache directory {tmp_path} belongs to user"):
        paths.cache_dir()


def test_a_cache_that_is_a_file_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConvtuneError, match=f"cache directory {tmp_path / 'file'} cannot be made: File exists"):
        paths.cache_dir()


@pytest.mark.parametrize("drop_failures", [False, True])
def test_prune_brings_back_no_refuted_winner(path: Path, drop_failures: bool) -> None:
    right, refuted = make(9.0, width=1), make(1.0, width=2, utc=utc(1))
    write(path, right, refuted, failure("wrong", width=2, utc=utc(2)))
    log_tools.prune(path, drop_failures=drop_failures)
    assert winner(Log(path).records(), max_error=None) == right
    assert refuted not in Log(path).records()
