"""What README.md and the documentation say: the examples run, the commands exist, the links lead somewhere."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import convtune
from convtune import space, variants
from convtune.cli.application import application

ROOT = Path(__file__).parents[1]
ROOMS = [ROOT / "schedules" / "README.md", ROOT / "tuned_logs" / "README.md"]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), *ROOMS]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def test_the_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    names: dict[str, Any] = {}
    first, second, third = blocks(ROOT / "README.md", "python")
    exec(first, names)
    fast = names["y"]
    exec(second, names)
    with_constants = dict(names)
    exec(third, with_constants)
    assert with_constants["conv"].weight_error == 0
    for module in [name for name in sys.modules if name.split(".")[0] == "kernels"]:
        monkeypatch.delitem(sys.modules, module)
    reference = convtune.reference(names["spec"], names["x"], names["weight"], names["bias"])
    for y in (fast, names["y"]):
        np.testing.assert_allclose(y, reference, atol=2e-5 * np.abs(reference).max())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_commands_in_a_page_exist_with_their_options(page: Path) -> None:
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    for line in (line for line in lines if line.startswith("convtune ")):
        _, name, *arguments = shlex.split(line, comments=True)
        command = importlib.import_module(f"convtune.cli.{name}").command
        command.make_context(name, arguments, parent=application.make_context("convtune", [name]))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert (page.parent / target).exists(), target


def test_the_index_has_every_page() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name


def test_the_readme_has_every_variant_with_its_spaces() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\|.*\|(.*\|.*)\|.*\|$", text, re.MULTILINE)
    assert {variant for variant, _ in rows} == variants.known().keys()
    named = {variant: set(re.findall(r"`(\w+)`", cell)) for variant, cell in rows}
    assert set().union(*named.values()) == {name for name, each in space.known().items() if not each.last_resort}


@pytest.mark.parametrize("target", ["tune", "test", "check", "figures"])
def test_the_make_targets_that_are_named_exist(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def table(page: Path, header: str) -> list[list[str]]:
    """The rows of the table that begins so: cells."""
    _, _, rest = page.read_text(encoding="utf-8").partition(f"\n| {header} |")
    rows = rest.partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


def test_the_map_of_the_schedules_has_every_module_once_and_spaces_as_such() -> None:
    rows = table(ROOT / "schedules" / "README.md", "kind")
    spaces, others = ([name for row in rows for name in re.findall(r"`(\w+)`", row[column])] for column in (1, 2))
    modules = [path.stem for path in (ROOT / "schedules").glob("*.py") if path.stem != "__init__"]
    assert sorted([*spaces, *others]) == sorted(modules)
    assert sorted(spaces) == sorted(space.known())


def test_the_documentation_says_what_every_space_is_for() -> None:
    rows = [*table(ROOT / "docs" / "tuning.md", "space"), *table(ROOT / "docs" / "cuda.md", "space")]
    assert sorted(name for row in rows for name in re.findall(r"`(\w+)`", row[0])) == sorted(space.known())
