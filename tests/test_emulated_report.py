"""Emulated kernels in reports and comparisons: costs and counts, and nothing that looks like a time."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, needs_browser, seen
from cli_process import invoke
from record_samples import OTHER_SPEC, failure, final, make, target, utc

from convtune.log import Log
from convtune.record import Record

ARM = {**target("neoverse-n1", "a0"), "family": "arm", "model": "Neoverse N1", "vector_bytes": 16}
A_TIME = re.compile(r"\d\s*(µs|ms|ns)\b|GFLOP|GB/s|of peak|roofline|faster|slower|\btimes? [a-z]+ed\b", re.IGNORECASE)
"""What no text on emulated kernels may hold."""


def emulated(cost: float, **changes: Any) -> Record:
    counts = {"vector_arithmetic": round(cost / 2), "load": 1200, "other": 7, "l1_bytes": 4096, "l3_bytes": 3 << 20}
    return make(cost, origin="emulated", target=ARM, counts=counts, **changes)


def records() -> list[Record]:
    """A layer that was emulated, with finals, one that failed, and the first one measured elsewhere."""
    found = [emulated(8.4e6 / width, width=width, default=width == 1, utc=utc(width)) for width in (1, 2, 3)]
    finals = {"origin": "emulated", "target": ARM, "counts": found[2].counts}
    found += [final(cost, 9, width=width, default=width == 1, **finals) for cost, width in ((8.4e6, 1), (2.8e6, 3))]
    found.append(failure("timeout", spec=OTHER_SPEC, target=ARM, origin="emulated"))
    return [*found, make(12.5, default=True)]


def log_of(directory: Path, *logged: Record, name: str = "log.jsonl") -> Path:
    Log(directory / name).append(logged or records())
    return directory / name


def ran(*arguments: str | Path, status: int = 0) -> Any:
    done = invoke(*arguments)
    assert done.exit_code == status, done.stderr
    return done


@pytest.mark.parametrize("form", ["text", "markdown"])
def test_a_table_of_costs_names_its_unit_and_no_time(tmp_path: Path, form: str) -> None:
    log = log_of(tmp_path, *(r for r in records() if r.origin == "emulated"))
    said = ran("report", log, "--format", form).stdout
    assert "default M instr. emulated" in said and "tuned M instr. emulated" in said and "weighted instructions" in said
    assert "8.40" in said and "2.80" in said and "3.00x" in said
    assert "1,200" in said and "3,145,728" in said, "the winner's counts"
    assert not A_TIME.search(said), A_TIME.search(said)


def test_data_has_costs_in_fields_of_their_own(tmp_path: Path) -> None:
    log = log_of(tmp_path)
    sections = json.loads(ran("report", log, "--format", "json").stdout)["sections"]
    assert [section["origin"] for section in sections] == ["emulated", "measured"]
    layer, measured = sections[0]["layers"][0], sections[1]["layers"][0]
    assert (layer["default_cost"], layer["best_cost"], layer["speedup"]) == (8.4e6, 2.8e6, 3.0)
    assert layer["default_us"] is layer["best_us"] is layer["gflops"] is layer["roofline_share"] is None
    assert layer["counts"]["l3_bytes"] == 3 << 20 and sections[0]["roof"] is None
    assert (measured["best_us"], measured["best_cost"], measured["counts"]) == (12.5, None, None)
    rows = list(csv.DictReader(io.StringIO(ran("report", log, "--format", "csv").stdout)))
    assert [(row["best_us"], row["best_cost"]) for row in rows] == [("", "2800000.0"), ("", ""), ("12.5", "")]


@pytest.mark.parametrize(
    ("costs", "verdict", "status"),
    [((8.4e6, 8.0e6), "win", 0), ((8.0e6, 8.4e6), "loss", 1), ((8.0e6, 8.08e6), "loss", 0), ((8e6, 8e6), None, 0)],
)
def test_costs_compare_exactly(tmp_path: Path, costs: tuple[float, float], verdict: str | None, status: int) -> None:
    """A count is the same at each run, so 1 % more is more; only an equal one makes no difference."""
    sides = [log_of(tmp_path, emulated(cost), name=f"{side}.jsonl") for side, cost in zip("ab", costs)]
    done = ran("compare", *sides, "--fail-on", "2%", status=status)
    assert (verdict or "no difference") in done.stdout and "A M instr. emulated" in done.stdout
    assert not A_TIME.search(done.stdout + done.stderr) and "95 %" not in done.stdout
    assert ("5.0 % more weighted instructions" in done.stderr) == bool(status)
    data = json.loads(ran("compare", *sides, "--json").stdout)
    (layer,) = data["groups"][0]["layers"]
    assert (layer["a"]["us"], layer["a"]["cost"], layer["b"]["cost"]) == (None, *costs)
    assert layer["ratio"] == layer["lower"] == layer["upper"] == costs[0] / costs[1]
    assert layer["verdict"] == (verdict or "no_difference")


def test_a_cost_and_a_time_do_not_compare(tmp_path: Path) -> None:
    a = log_of(tmp_path, make(3.0, target=ARM), name="a.jsonl")
    b = log_of(tmp_path, emulated(3.0), name="b.jsonl")
    for arguments in ((a, b), (f"{a}:1", f"{b}:1")):
        assert "emulated" in ran("compare", *arguments, status=2).stderr


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as launched:
        yield launched


@needs_browser
def test_the_pages_section_of_emulated_kernels_has_no_time(tmp_path: Path, chromium: Any) -> None:
    page = tmp_path / "report.html"
    ran("report", log_of(tmp_path), "-o", page)
    window = seen(chromium)
    shown = window.open(page, "#t1-l1")
    shown.wait_for_selector("#t1-l1-knobs .picture svg")
    (said,) = window.texts("#t1")
    drawn = " ".join(shown.locator("#t1 svg text").all_text_contents())
    assert not A_TIME.search(said.replace("This section has no times", "")), said
    assert not A_TIME.search(drawn) and "M instr. (emulated)" in drawn
    assert "tuned M instr. (emulated)" in said and "2.80 M weighted instructions emulated" in said
    assert window.texts("#t1 .counts tbody tr:first-child td") == ["vector arithmetic", "1,400,000 (100 %)"]
    assert shown.locator("#t1 .roofline").count() == 0 and shown.locator("#t2 .roofline").count() == 1
    assert window.texts("#t1 .finals tbody td:first-child") == ["default", "winner"]
    assert window.complaints == []


@needs_browser
def test_the_page_of_a_comparison_of_costs(tmp_path: Path, chromium: Any) -> None:
    page = tmp_path / "compare.html"
    sides = [log_of(tmp_path, emulated(cost), name=f"{side}.jsonl") for side, cost in zip("ab", (8.4e6, 8.0e6))]
    ran("compare", *sides, "-o", page)
    window = seen(chromium)
    shown = window.open(page)
    (said,) = window.texts("section")
    assert not A_TIME.search(said.replace("This section has no times", "")), said
    assert "4.8 % fewer weighted instructions" in said and "All repeats" not in said
    assert shown.locator("section .counts").count() == 1 and window.complaints == []
