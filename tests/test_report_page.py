"""The report's page as a user sees it: Chromium opens it, sorts, filters, follows links, switches the theme."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import browser, needs_browser, seen
from cli_process import invoke
from record_samples import SPEC, failure, final, gpu, make, target, utc

from convtune.log import Log
from convtune.record import Record
from convtune.space import Candidate

MARKUP = "</script><script>document.title='broken'</script><img src=x onerror=\"document.title='broken'\">&amp;\u2028'"
SPECS = [SPEC, "depthwise,ic=32,oc=32,in=7x7,k=3x3,layout=NHWC", "pointwise,ic=3,oc=5,in=11x13,k=1x1"]


def many() -> list[Record]:
    """Three layers that were measured, one of which fails, one of them estimated too, and hostile text."""
    found = []
    for n, spec in enumerate(SPECS[:2]):
        for width in range(1, 9):
            knobs = {"width": width, "order": "outer" if width % 2 else "inner"}
            time_us = 100.0 * (n + 1) / width
            candidate = Candidate("dense_direct" if width < 7 else MARKUP, knobs)
            found.append(make(time_us, spec=spec, candidate=candidate, utc=utc(width)))
        found += [final(90.0 * (n + 1), 20, spec=spec, candidate=r.candidate) for r in found[-8:-7]]
        found += [final(10.0 + n, 20, spec=spec, candidate=found[-2].candidate)]
    found += [failure(status, spec=SPECS[2], width=i, message=MARKUP) for i, status in enumerate(("crash", "wrong"))]
    found.append(make(7.0, spec=SPECS[0], target=gpu(model=MARKUP), origin="estimated"))
    return found


def report(directory: Path, records: list[Record], *arguments: str | Path) -> Path:
    log, page = directory / "log.jsonl", directory / "report.html"
    log.touch()
    Log(log).append(records)
    done = invoke("report", log, "-o", page, *arguments)
    assert done.exit_code == 0, done.stderr
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return report(tmp_path_factory.mktemp("report"), many(), "--title", MARKUP)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as launched:
        yield launched


def test_the_page_may_ask_the_network_for_nothing(page: Path) -> None:
    head = page.read_text(encoding="utf-8").split("<main")[0]
    assert "default-src 'none'" in head
    assert not re.search(r"""(src|href)=["'](?!data:)""", head)


def test_no_text_of_a_log_ends_the_data(page: Path) -> None:
    """Each script element ends where it should: what is between is JSON, and there are three of them."""
    text = page.read_text(encoding="utf-8")
    scripts = re.findall(r"<script[^>]*>(.*?)</script", text, flags=re.DOTALL | re.IGNORECASE)
    assert len(scripts) == 3
    assert "<" not in scripts[0]
    data = json.loads(scripts[0])
    assert data["sections"][-1]["target"]["model"] == MARKUP
    assert "&lt;/script&gt;" in text[: text.index("<main")]  # the title


@needs_browser
def test_the_page_opens_without_a_complaint(page: Path, chromium: Any) -> None:
    window = seen(chromium)
    shown = window.open(page)
    assert window.complaints == []
    assert shown.title().startswith("</script><script>")
    assert window.texts("section > h2 .origin") == ["measured", "estimated"]
    assert len(shown.locator("section").all()) == 2
    assert shown.locator("section .roofline svg").count() == 2
    assert shown.locator("img").count() == 0


@needs_browser
def test_the_days_are_told_and_one_day_once(chromium: Any, tmp_path: Path) -> None:
    days = ["2026-01-02", "2026-02-03"]
    records = [make(1.0, target=gpu(f"g{n}"), utc=f"{day}T00:00:00.000000Z") for n, day in enumerate(days)]
    window = seen(chromium)
    window.open(report(tmp_path, [*records, make(2.0, target=gpu("g1"), width=8, utc=records[0].utc)]))
    assert [text.rpartition("; ")[2] for text in window.texts("section > h2 + p")] == [days[0], " to ".join(days)]
    assert window.complaints == []


@needs_browser
def test_rows_sort_by_numbers_and_filter_by_words(page: Path, chromium: Any) -> None:
    window = seen(chromium)
    shown = window.open(page)
    rows = "#t1 .scroll.tall tbody tr"
    tuned = shown.locator("#t1 .scroll.tall th", has_text="tuned µs")
    tuned.click()
    assert window.texts(f"{rows} td:nth-child(4)") == ["11.0", "10.0", "failed"]
    tuned.click()
    assert window.texts(f"{rows} td:nth-child(4)") == ["10.0", "11.0", "failed"]  # what has no time stays last
    assert tuned.get_attribute("aria-sort") == "ascending"
    search = shown.locator("#t1 input[type=search]")
    search.fill("DEPTHWISE 7×7")
    assert len(window.texts(rows)) == 1
    search.fill("no such layer")
    assert window.texts(rows) == ["nothing matches"]
    search.fill("")
    shown.locator("#t1 select").select_option("pointwise")
    assert len(window.texts(rows)) == 1
    assert window.complaints == []


@needs_browser
def test_a_link_shows_its_layer_with_all_its_pictures(page: Path, chromium: Any) -> None:
    window = seen(chromium)
    shown = window.open(page)
    shown.locator("#t1 .scroll.tall tbody a").nth(1).click()
    shown.wait_for_selector("#t1-l2-knobs .picture svg >> nth=1")
    assert shown.url.endswith("#t1-l2")
    assert shown.locator("#t1 .layer figure svg").count() == 5  # two curves, the spread, two knobs
    assert SPECS[1] in window.texts("#t1 .layer")[0]
    assert window.texts("#t1 .finals tbody td:first-child") == ["default", "winner"]
    shown.locator("#t1 .layer nav a", has_text="next").click()
    shown.wait_for_selector("#t1-l3")
    assert "2 × " not in window.texts("#t1 .layer")[0]
    assert "onerror" in window.texts("#t1 .layer .messages")[0]  # as text
    assert window.complaints == []


@needs_browser
def test_an_address_with_a_layer_opens_there(page: Path, chromium: Any) -> None:
    window = seen(chromium)
    window.open(page, "#t1-l1")
    assert SPECS[0] in window.texts("#t1 .layer")[0]
    assert window.complaints == []


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_theme_follows_the_reader_and_the_button(page: Path, chromium: Any, scheme: str) -> None:
    window = seen(chromium, scheme=scheme)
    shown = window.open(page)
    background = "getComputedStyle(document.body).backgroundColor"
    own = shown.evaluate(background)
    assert (sum(map(int, re.findall(r"\d+", own)[:3])) > 384) == (scheme == "light")
    button = shown.locator("#theme")
    seen_ones = set()
    for _ in range(3):
        button.click()
        seen_ones.add(shown.evaluate(background))
    assert len(seen_ones) == 2
    assert shown.evaluate(background) == own  # auto again
    shown.emulate_media(media="print")
    assert shown.evaluate(background) == "rgb(255, 255, 255)"


@needs_browser
@pytest.mark.parametrize("width", [360, 1280])
def test_the_page_is_no_wider_than_the_screen(page: Path, chromium: Any, width: int) -> None:
    window = seen(chromium, width=width, height=740)
    shown = window.open(page)
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    inner = "[...document.querySelectorAll('figure svg, .roofline svg')].map((s) => s.getBoundingClientRect().right)"
    assert max(shown.evaluate(inner)) <= width


@needs_browser
def test_finalists_take_a_few_lines_each_on_a_phone(chromium: Any, tmp_path: Path) -> None:
    schedule = Candidate("depthwise_planes", {f"knob_number_{n}": f"value_{n}" for n in range(9)})
    log = [make(9.0, candidate=schedule), final(8.0, 20, candidate=schedule)]
    window = seen(chromium, width=360, height=740)
    shown = window.open(report(tmp_path, log), "#t1-l1")
    lines = "(row) => row.getBoundingClientRect().height / parseFloat(getComputedStyle(row).lineHeight)"
    assert shown.locator("#t1 .shown .finals tbody tr").evaluate(lines) < 7
    assert shown.evaluate("document.documentElement.scrollWidth") <= 360


@needs_browser
def test_on_paper_are_the_layers_that_the_table_shows(page: Path, chromium: Any) -> None:
    """The button draws them, asks the browser to print, and leaves nothing behind."""
    window = seen(chromium)
    shown = window.open(page)
    count = "document.querySelectorAll('#t1 .paper article').length"
    shown.evaluate(f"window.print = () => {{ window.printed = {count}; }}")
    shown.locator("#t1 input[type=search]").fill("dense_direct")  # the one whose winner is of that space
    assert len(window.texts("#t1 .scroll.tall tbody tr")) < 3
    wanted = len(window.texts("#t1 .scroll.tall tbody tr td.name"))
    shown.locator("#t1 button.print").click()
    shown.wait_for_function("window.printed !== undefined")
    assert shown.evaluate("window.printed") == wanted
    assert not shown.locator("#t1 .paper").is_visible() and shown.locator("#t1 .layer.shown").is_visible()
    shown.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert shown.evaluate(count) == 0 and window.complaints == []


@needs_browser
def test_an_address_prepares_all_layers_for_paper(page: Path, chromium: Any) -> None:
    window = seen(chromium)
    shown = window.open(page, "#print")
    shown.emulate_media(media="print")
    assert shown.locator("#t1 .paper article").count() == 3 and shown.locator("#t2 .paper article").count() == 1
    assert shown.locator("#t1 .paper article").first.is_visible()
    assert not shown.locator("#t1 .layer.shown").is_visible(), "no layer is there twice"
    assert shown.locator("#t1 .paper svg").count() == 4  # of the layers with times, a curve and the spread
    assert SPECS[2] in window.texts("#t1 .paper article")[2]
    assert window.complaints == []


@needs_browser
def test_the_data_can_be_downloaded_as_csv(page: Path, chromium: Any, tmp_path: Path) -> None:
    window = seen(chromium)
    shown = window.open(page, "#t1-l1")
    for button, rows in (("#t1 .tools button", 3), ("#t1 .layer button", 8)):
        with shown.expect_download() as download:
            shown.locator(button).first.click()
        saved = tmp_path / "saved.csv"
        download.value.save_as(saved)
        with saved.open(encoding="utf-8", newline="") as file:
            table = list(csv.DictReader(file))
        assert len(table) == rows
    assert [float(row["median_us"]) for row in table][:2] == [100.0, 50.0]
    assert [row["width"] for row in table] == [str(width) for width in range(1, 9)]
    assert {row["space"] for row in table} == {"dense_direct", MARKUP}
    assert window.complaints == []


@needs_browser
@pytest.mark.parametrize(
    "records",
    [[], [failure()], [make()], [final(3.0, 1)], [make(5.0), make(5.0, width=5)], [make(target=target("x y/<b>"))]],
    ids=["empty", "failures only", "one trial", "a final only", "equal times", "odd target"],
)
def test_meagre_logs_give_a_page(tmp_path: Path, chromium: Any, records: list[Record]) -> None:
    window = seen(chromium)
    shown = window.open(report(tmp_path, records))
    assert window.complaints == []
    assert shown.locator("section").count() == (1 if records else 0)
    if not records:
        assert "no record" in window.texts("main")[0]
