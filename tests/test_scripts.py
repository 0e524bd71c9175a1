"""The scripts: that the shipped logs are in order, that faults in one are found, that figures can be measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import check_logs
import figures
import measurements
import pytest
import quality
import record_samples as samples
import retune
from click.testing import CliRunner
from finals import finals

from convtune import space, targets
from convtune.log import Log
from convtune.record import Record
from convtune.spec import ConvSpec


def write(path: Path, *records: Record, rest: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(record.line() for record in records) + rest)
    return path


def test_the_shipped_logs_are_in_order() -> None:
    assert list(check_logs.problems(check_logs.SHIPPED)) == []


def test_a_log_of_a_winner_and_its_default_is_in_order(tmp_path: Path) -> None:
    write(tmp_path / "znver5" / "conv.jsonl", samples.final(9.0, 1), samples.final(10.0, 1, width=8))
    assert list(check_logs.problems(tmp_path)) == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"spec": samples.OTHER_SPEC}, "is not conv, as the file's name says"),
        ({"target": samples.target() | {"mcpu": "znver4"}}, "mcpu is znver4, not znver5"),
        ({"candidate": space.Candidate("forgotten", {"tile": 4})}, "space 'forgotten' does not exist"),
        ({"origin": "estimated"}, "origin is estimated; a shipped record's is measured"),
        ({"status": "wrong"}, "status is wrong; a shipped record's is ok"),
        ({"round": "search", "batch": ""}, "round is search; a shipped record's is final"),
        ({"error": 1e-3}, "none of its records wins"),
    ],
)
def test_a_record_that_is_no_winner_is_found(tmp_path: Path, changes: dict[str, Any], fault: str) -> None:
    path = write(
        tmp_path / "znver5" / "conv.jsonl", samples.make(**{"round": "final", "batch": samples.utc(1)} | changes)
    )
    found = list(check_logs.problems(tmp_path))
    assert any(fault in line and line.startswith(str(path)) for line in found), found


@pytest.mark.parametrize(
    ("records", "rest", "fault"),
    [
        ([samples.final(9.0, 1)], b"oops\n", "line 2: not JSON"),
        ([samples.final(9.0, 1)], b'{"schema":1,', "line 2: cut short after 12 bytes"),
        ([samples.final(9.0, 1)] * 2, b"", "1 lines are there twice"),
        ([samples.final(9.0, second) for second in (1, 2)], b"", "2 records; a winner and the default"),
        ([samples.final(9.0, 1, width=width) for width in (1, 2, 3)], b"", "3 records; a winner and the default"),
    ],
)
def test_a_log_with_more_than_winners_is_found(tmp_path: Path, records: list[Record], rest: bytes, fault: str) -> None:
    write(tmp_path / "znver5" / "conv.jsonl", *records, rest=rest)
    found = list(check_logs.problems(tmp_path))
    assert any(fault in line for line in found), found


def test_a_log_in_the_wrong_place_is_found(tmp_path: Path) -> None:
    path = write(tmp_path / "conv.jsonl", samples.final(9.0, 1))
    assert list(check_logs.problems(tmp_path)) == [f"{path}: is not {tmp_path.name}/<mcpu>/<variant>.jsonl"]


def test_the_finals_are_those_of_the_newest_batch_with_a_default() -> None:
    spec, default = ConvSpec.parse(samples.SPEC), samples.make(width=8).candidate
    newest = [samples.final(9.0, 2), samples.final(10.0, 2, width=8)]
    records = [samples.make(1.0), samples.final(5.0, 1), samples.final(6.0, 1, width=8), *newest]
    assert finals(spec, default, records) == tuple(newest)
    assert finals(spec, default, newest[1:]) == (newest[1], newest[1])
    assert finals(spec, default, newest[:1]) is None
    assert finals(spec, default, records[:1]) is None
    assert finals(spec, default, []) is None


def test_shipping_replaces_the_records_of_the_spec_and_machine_only(tmp_path: Path) -> None:
    old, new = samples.final(9.0, 1), [samples.final(8.0, 2), samples.final(8.5, 2, width=8)]
    elsewhere = samples.final(20.0, 1, target=samples.target(fingerprint="f1"))
    other = samples.final(7.0, 1, spec="conv,ic=8,oc=8,in=5,k=3")
    for records in ([old], [elsewhere], [other], new, new):
        retune.ship(records, tmp_path)
    path = tmp_path / "znver5" / "conv.jsonl"
    assert {r.line() for r in Log(path).records()} == {r.line() for r in (elsewhere, other, *new)}
    assert list(check_logs.problems(tmp_path)) == []


def test_spread_shows_the_quartiles() -> None:
    assert measurements.spread([1.0, 2.0, 3.0, 4.0, 5.0], "s", 1) == "half within 2.0 to 4.0 s, n = 5"
    assert measurements.spread([1.0], "s", 1) == "half within 1.0 to 1.0 s, n = 1"
    assert measurements.geometric_mean([0.5, 2.0, 8.0]) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("command", "rows"),
    [("start --repeat 1", 2), ("candidate --count 2", 3), ("peak --trials 2 --rounds 2", 1)],
)
def test_figures_are_measured_and_printed(monkeypatch: pytest.MonkeyPatch, command: str, rows: int) -> None:
    monkeypatch.setattr(measurements, "DENSE", ConvSpec.parse("conv,ic=16,oc=16,in=9x9,k=3x3,p=1,layout=NHWC"))
    done = CliRunner().invoke(figures.main, command.split())
    assert done.exception is None, done.output
    lines = done.stdout.splitlines()
    assert targets.resolve("native").model in lines[0]
    assert lines[2] == "| what | wanted | median | spread |"
    assert len(lines) == 4 + rows


def test_defaults_are_compared_over_the_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(measurements, "NETWORKS", ("mobilenet_v2/dw960_7", "mobilenet_v2/dw576_14_k3s2"))
    (figure,) = measurements.defaults(tmp_path / "log.jsonl", trials=2)
    assert "geometric mean of 2 layers" in figure.what
    assert 0 < float(figure.measured) <= 1


@pytest.mark.slow
def test_the_search_is_compared_with_a_longer_one_and_with_what_needs_none(tmp_path: Path) -> None:
    layers = [f"pointwise,ic=16,oc=16,in=9x{width},k=1x1,layout=NHWC" for width in (9, 11)]
    options = ["--trials", "2", "--log", str(tmp_path / "log.jsonl"), "--longer", "1"]
    done = CliRunner().invoke(quality.main, [*layers, *options], catch_exceptions=False)
    rows = [line.strip("|").split("|") for line in done.stdout.splitlines()]
    assert [row[0].split()[1] for row in rows] == ["default's", "transfer's", "with", "a"]
    assert all(float(row[2].removesuffix("s ")) > 0 for row in rows)


def test_a_log_without_a_layer_has_all_others(tmp_path: Path) -> None:
    kept, left_out = samples.final(9.0, 1), samples.final(8.0, 1, spec=samples.OTHER_SPEC)
    log = Log(write(tmp_path / "log.jsonl", kept, left_out))
    assert quality.Without(log, ConvSpec.parse(samples.OTHER_SPEC)).records() == [kept]
