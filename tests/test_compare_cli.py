"""`convtune compare` as it is called: logs, spaces and records, formats, exit codes, bad input."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, needs_browser, seen
from cli_process import invoke
from record_samples import OTHER_SPEC, SPEC, failure, gpu, make, target

from convtune.log import Log
from convtune.record import Record
from convtune.space import Candidate

MARKUP = "<img src=x onerror=\"document.title='broken'\">|`a`"


def record(time_us: float, **changes: Any) -> Record:
    return make(1.0, times_us=tuple(time_us * f for f in (0.99, 1.0, 1.01, 1.0, 0.995, 1.005, 1.0)), **changes)


@pytest.fixture
def logs(tmp_path: Path) -> tuple[Path, Path]:
    """B wins the first layer, loses the second, and has no kernel for the third."""
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    third = "pointwise,ic=3,oc=5,in=11x13,k=1x1"
    estimated = {"target": gpu(model=MARKUP), "origin": "estimated"}
    Log(a).append([record(10.0), record(10.0, spec=OTHER_SPEC), record(10.0, spec=third), record(3.0, **estimated)])
    candidate = Candidate("row_lanes", {"rows": 3})
    worse = record(12.0, spec=OTHER_SPEC, width=8)
    Log(b).append([record(8.0, candidate=candidate), worse, failure(spec=third), record(3.0, **estimated)])
    return a, b


def test_the_table_has_a_row_for_each_layer(logs: tuple[Path, Path]) -> None:
    done = invoke("compare", *logs)
    assert done.exit_code == 0
    rows = [line.split()[0] for line in done.stdout.splitlines() if line.startswith(("resnet", "depth", "point"))]
    assert len(rows) == 4  # three measured ones, and one of them estimated
    assert len(set(rows)) == 3
    assert "dense_direct → row_lanes" in done.stdout
    assert "width 4 → 8" in done.stdout
    assert "1 win, 1 loss, 0 no difference" in done.stdout
    assert "estimated" in done.stdout


def test_json_holds_the_same(logs: tuple[Path, Path]) -> None:
    data = json.loads(invoke("compare", *logs, "--json", "--fail-on", "5%").stdout)
    assert [group["origin"] for group in data["groups"]] == ["measured", "estimated"]
    assert [layer["verdict"] for layer in data["groups"][0]["layers"]] == ["win", "loss", "b failed"]
    assert data["groups"][0]["layers"][0]["ratio"] == pytest.approx(1.25)
    assert data["fail_on"] == 0.05
    assert [found["spec"] for found in data["regressions"]] == [OTHER_SPEC, "pointwise,ic=3,oc=5,in=11x13,k=1x1"]


def test_markdown_shows_text_as_it_is(logs: tuple[Path, Path]) -> None:
    text = invoke("compare", *logs, "--format", "markdown").stdout
    assert "<img" not in text
    assert "&lt;img" in text
    assert "\\`a\\`" in text
    widths = {line.count(" | ") for line in text.splitlines() if line.startswith("| ")}
    assert len(widths) == 1


@pytest.mark.parametrize(("tolerance", "code", "named"), [("5%", 1, 2), ("50 %", 1, 1), ("0.5%", 1, 2)])
def test_a_regression_is_an_exit_code(logs: tuple[Path, Path], tolerance: str, code: int, named: int) -> None:
    done = invoke("compare", *logs, "--fail-on", tolerance)
    assert done.exit_code == code
    assert done.stderr.count("regression: ") == named


def test_the_same_log_is_no_regression(logs: tuple[Path, Path]) -> None:
    assert invoke("compare", logs[0], logs[0], "--fail-on", "0%").exit_code == 0


@pytest.mark.parametrize("form", ["text", "markdown", "json", "html"])
def test_a_gate_fails_where_nothing_of_b_works(tmp_path: Path, form: str) -> None:
    a, b, page = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "page"
    Log(a).append([make(10.0)])
    Log(b).append([failure()])
    output = ("--format", form, "-o", page)
    done = invoke("compare", a, b, "--fail-on", "5%", *output)
    assert (done.exit_code, done.stderr.count("regression: ")) == (1, 1), done.stderr
    assert page.exists()
    assert invoke("compare", a, b, *output).exit_code == 2  # asked for a comparison, and there is none
    assert invoke("compare", b, a, "--fail-on", "5%", *output).exit_code == 2


def test_spaces_are_compared_within_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    Log(log).append([record(10.0), record(5.0, candidate=Candidate("row_lanes", {"rows": 3}))])
    done = invoke("compare", "dense_direct", "row_lanes", "--log", log, "--format", "json")
    layer = json.loads(done.stdout)["groups"][0]["layers"][0]
    assert (layer["a"]["us"], layer["b"]["us"], layer["verdict"]) == (10.0, 5.0, "win")


@pytest.mark.parametrize(("slow_turns", "told"), [((4, 3), True), ((4, 4), False)])
def test_a_ratio_that_no_reader_gets_by_dividing_is_explained(
    tmp_path: Path, slow_turns: tuple[int, int], told: bool
) -> None:
    """The machine is slow in so many of seven turns of each side: most pairs agree, and the medians may not."""
    log, batch = tmp_path / "log.jsonl", "2026-11-22T10:00:00.000000Z"
    for slow, candidate in zip(
        slow_turns, (Candidate("dense_direct", {"width": 4}), Candidate("row_lanes", {"rows": 3}))
    ):
        times_us = tuple(30.0 if turn < slow else 10.0 for turn in range(7))
        Log(log).append([make(1.0, times_us=times_us, candidate=candidate, round="final", batch=batch)])
    done = invoke("compare", "dense_direct", "row_lanes", "--log", log)
    assert done.exit_code == 0, done.stderr
    assert ("is not the ratio of the medians" in done.stdout) == told


def test_records_are_compared_by_their_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    Log(log).append([record(10.0), failure(), record(5.0, width=8), record(1.0, spec=OTHER_SPEC)])
    layer = json.loads(invoke("compare", f"{log}:3", f"{log}:1", "--json").stdout)["groups"][0]["layers"][0]
    assert (layer["ratio"], layer["differing"]) == (0.5, {"width": [8, 4]})
    for lines, said in (
        ((1, 2), "its status is crash"),
        ((1, 4), "their specs are"),
        ((1, 9), "has no line 9\n"),
        ((0, 1), "has no line 0; lines count from 1\n"),
    ):
        done = invoke("compare", *(f"{log}:{line}" for line in lines))
        assert done.exit_code == 2
        assert said in done.stderr


def test_what_cannot_be_compared_is_said(tmp_path: Path, logs: tuple[Path, Path]) -> None:
    other = tmp_path / "other.jsonl"
    Log(other).append([record(1.0, spec=SPEC, target=target("x", "f9"))])
    for arguments, said in (
        ((logs[0], other), "on one machine"),
        ((logs[0], tmp_path / "none.jsonl"), "does not exist"),
        ((logs[0], "dense_direct"), "not of one kind"),
        (("dense_direct", "no_such", "--log", logs[0]), "it has: dense_direct"),
        ((*logs, "--fail-on", "five"), "write it as 5%"),
        ((*logs, "--log", other), "--log is for two spaces"),
        ((*logs, "-o", tmp_path / "x.pdf"), "must be one of"),
        ((*logs, "--format", "html"), "needs -o"),
        ((*logs, "-o", tmp_path / "none" / "x.html"), "cannot be written"),
    ):
        done = invoke("compare", *arguments)
        assert (done.exit_code, done.stdout) == (2, ""), arguments
        assert said in done.stderr
        assert "Traceback" not in done.stderr


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as launched:
        yield launched


@needs_browser
def test_the_page_shows_both_sides(logs: tuple[Path, Path], tmp_path: Path, chromium: Any) -> None:
    page = tmp_path / "compare.html"
    assert invoke("compare", *logs, "-o", page, "--fail-on", "5%").exit_code == 1
    window = seen(chromium, width=390, height=844, scheme="dark")
    shown = window.open(page, "#t1-l2")
    assert window.texts("section > h2 .origin") == ["measured", "estimated"]
    assert window.texts("#t1 .differs") == ["4", "8"]
    assert "2 layers lost more than 5.0 %" in window.texts(".notice")[0]
    assert shown.locator("#t1 svg").count() == 2
    assert shown.evaluate("document.documentElement.scrollWidth") <= 390
    shown.locator("#t1 .scroll.tall tbody a").nth(2).click()
    shown.wait_for_selector("#t1-l3")
    assert "b failed" in window.texts("#t1 .layer")[0]
    assert window.complaints == []
