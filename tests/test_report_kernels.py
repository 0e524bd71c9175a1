"""The winners' kernels in a report: built in a worker, cut to what a page holds, and side by side."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_process import SMALL, TINY, invoke
from record_samples import make, target

from convtune import space, targets
from convtune.cli import kernel_tables
from convtune.log import Log
from convtune.measure import inspection
from convtune.measure.inspection import Inspected, inspect
from convtune.report import kernels
from convtune.space import Candidate, default_candidate, enumerate_candidates
from convtune.spec import ConvSpec


@pytest.fixture(scope="module")
def machine() -> targets.CpuTarget:
    return targets.native()


@pytest.fixture
def built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """For all commands of a test; each must ask for its kernels all the same."""
    found: dict[tuple[str, ConvSpec, Candidate], Inspected | str] = {}

    def once(facts: Mapping[str, Any], requests: Sequence[tuple[ConvSpec, Candidate]]) -> list[Inspected | str]:
        places = [(str(facts["fingerprint"]), *request) for request in requests]
        if missing := [place for place in places if place not in found]:
            found.update(zip(missing, inspect(facts, [place[1:] for place in missing])))
        return [found[place] for place in places]

    monkeypatch.setattr(inspection, "inspect", once)


def test_a_kernel_is_built_for_the_records_target_and_what_cannot_be_is_told(machine: targets.CpuTarget) -> None:
    spec = ConvSpec.parse(SMALL)
    good = default_candidate(spec, machine)
    first, gone, stale = inspect(
        machine.facts(),
        [
            (spec, good),
            (spec, Candidate("no_such_space", {"tile": 1})),
            (spec, Candidate(good.space, {**good.knobs, next(iter(good.knobs)): 7919})),
        ],
    )
    assert isinstance(first, Inspected)
    assert first.listing is not None
    assert first.listing.loop is not None
    assert 0 < first.listing.loop.vector_registers <= machine.vector_registers
    assert first.traffic is not None
    tensors = spec.bytes
    assert tensors <= first.traffic.l1_bytes, "each line is fetched once at least"
    assert first.traffic.l1_bytes >= first.traffic.l2_bytes >= first.traffic.l3_bytes > 0
    assert first.listing.kernel.kinds["multiply-add"] >= first.listing.loop.kinds["multiply-add"] > 0
    assert "parallel" in first.script or "for " in first.script
    assert isinstance(gone, str)
    assert "no_such_space" in gone
    assert isinstance(stale, str)
    assert "has no such schedule" in stale


def test_another_machine_of_the_name_is_not_taken_for_the_records_own(machine: targets.CpuTarget) -> None:
    spec = ConvSpec.parse(TINY)
    (why,) = inspect({**machine.facts(), "fingerprint": "f0"}, [(spec, default_candidate(spec, machine))])
    assert isinstance(why, str)
    assert "is of" in why
    assert inspect({**machine.facts(), "name": "nonesuch"}, [])[:1] == []


SPEC_NAME = "resnet50_v1.5/r2_3x3"
"""As the zoo calls the layer of the samples."""
SCRIPT = """# from tvm.script import ir as I

@I.ir_module
class Module:
    @T.prim_func
    def main(x: T.handle):
        for i in range(4):
            y[i] = x[i]
"""


def test_a_loop_nest_is_the_function_alone() -> None:
    assert kernels.loop_nest(SCRIPT) == "def main(x: T.handle):\n    for i in range(4):\n        y[i] = x[i]"
    assert kernels.loop_nest("") == ""


def test_long_scripts_are_cut_and_say_so() -> None:
    long = SCRIPT + "".join(f"        z[{n}] = 0\n" for n in range(1000))
    wanted = ("f0", "spec", "key")
    built = {wanted: {"why": "", "script": long, "instructions": None}}
    cut = kernels.shown(built, wanted)
    assert cut is not None
    assert len(cut["script"].splitlines()) + cut["left_out"] == 1003
    full = kernels.shown(built, wanted, room_bytes=10)
    assert full is not None
    assert (full["script"], full["left_out"]) == (None, 0)
    assert "left out" in full["why"]
    assert kernels.shown({}, wanted) is None


def test_two_loop_nests_stand_side_by_side() -> None:
    a = "def f():\n" + "".join(f"    a{n}\n" for n in range(20)) + "    old\n    end\n"
    b = "def f():\n" + "".join(f"    a{n}\n" for n in range(20)) + "    new\n    more\n    end\n"
    assert kernels.side_by_side(a, b) == [
        ("…", None, None),
        *(("=", f"    a{n}", f"    a{n}") for n in (17, 18, 19)),
        ("~", "    old", "    new"),
        ("+", None, "    more"),
        ("=", "    end", "    end"),
    ]
    assert kernels.side_by_side(a, a) == []


@pytest.mark.usefixtures("built_once")
def test_report_and_compare_show_what_was_built_and_what_was_not(machine: targets.CpuTarget, tmp_path: Path) -> None:
    spec = ConvSpec.parse(TINY)
    default = default_candidate(spec, machine)
    first = make(9.0, spec=TINY, target=machine.facts(), candidate=default)
    gone = dataclasses.replace(first, candidate=Candidate("gone", {"tile": 4}))
    elsewhere = make(5.0, target=target())
    a, b = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    Log(a).append([first, elsewhere])
    Log(b).append([gone])
    data = json.loads(invoke("report", a, "--kernels", "--format", "json").stdout)
    built, other = (section["layers"][0]["kernel"] for section in data["sections"])
    assert built["why"] == ""
    assert built["script"].startswith("def ")
    assert built["instructions"]["kernel"]["instructions"] > 0
    assert (other["script"], other["instructions"]) == (None, None)
    assert other["why"]
    data = json.loads(invoke("compare", a, b, "--kernels", "--json").stdout)
    both = data["groups"][0]["layers"][0]["kernels"]
    assert both["a"]["instructions"] is not None
    assert "gone" in both["b"]["why"]
    assert both["diff"] == []
    said = invoke("report", a, "--kernels").stdout
    assert f"{SPEC_NAME}: the kernel could not be built: " in said
    assert "B could not be built: " in invoke("compare", a, b, "--kernels").stdout


@pytest.mark.usefixtures("built_once")
def test_a_pull_request_has_instructions_caches_and_the_diff(machine: targets.CpuTarget, tmp_path: Path) -> None:
    """Two schedules of one layer, for a terminal and as Markdown, the cache model beside the instructions."""
    spec = ConvSpec.parse(SMALL)
    default = default_candidate(spec, machine)
    choices = enumerate_candidates(space.get(default.space), spec, machine)
    other = max(choices, key=lambda c: sum(c.knobs[name] != default.knobs[name] for name in c.knobs))
    for name, candidate in (("a", default), ("b", other)):
        Log(tmp_path / f"{name}.jsonl").append([make(9.0, spec=SMALL, target=machine.facts(), candidate=candidate)])
    sides = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    (layer,) = json.loads(invoke("compare", *sides, "--kernels", "--json").stdout)["groups"][0]["layers"]
    fetched = [layer["kernels"][side]["traffic"]["l2_bytes"] for side in "ab"]
    said = invoke("compare", *sides, "--kernels").stdout
    (row,) = (line.split() for line in said.splitlines() if line.startswith("into L2 caches"))
    assert [float(row[3]), float(row[5])] == pytest.approx([bytes_ / 1024 for bytes_ in fetched], abs=0.051)
    assert "loop: multiply-add" in said
    assert any(line.startswith("- ") for line in said.splitlines())
    shown = invoke("compare", *sides, "--kernels", "--format", "markdown").stdout
    assert "```diff\n" in shown
    assert "| into L2 caches" in shown
    table = invoke("report", sides[0], "--kernels").stdout
    assert "multiply-add" in table
    assert "from memory" in table
    assert invoke("report", sides[0], "--kernels", "--format", "csv").exit_code == 2


def test_a_diff_on_one_column_keeps_what_changed_together() -> None:
    rows = [("…", None, None), ("=", "a", "a"), ("~", "b", "B"), ("~", "c", "C"), ("-", "d", None), ("+", None, "e")]
    assert kernel_tables.unified(rows, 99).splitlines() == ["…", "  a", "- b", "- c", "+ B", "+ C", "- d", "+ e"]
    assert kernel_tables.unified(rows, 2).splitlines() == ["…", "  a", "… 6 further lines; HTML and JSON have more"]
    assert kernel_tables.unified([], 2) == ""
