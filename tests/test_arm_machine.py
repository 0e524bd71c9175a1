"""The script that brings up an ARM machine: that it goes on where it was cut short, and what the proof on it asks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import arm_machine
import arm_proof
import click
import convtune.schedules
import pytest
import record_samples as samples

from convtune import targets, variants
from convtune.record import Record
from convtune.spec import ConvSpec
from convtune.targets import host


class Made:
    """Counts how often a directory is filled, and fails where told to."""

    def __init__(self, place: Path) -> None:
        self.place, self.times, self.fails = place, 0, False

    def make(self, *made_of: str) -> None:
        arm_machine._make(self.place, made_of, self._fill)

    def _fill(self, place: Path) -> None:
        self.times += 1
        (place / f"file-{self.times}").write_text("")
        if self.fails:
            raise click.ClickException("cut short")


def test_what_is_whole_is_not_made_again(tmp_path: Path) -> None:
    made = Made(tmp_path / "root")
    made.make("a", "b")
    made.make("a", "b")
    assert made.times == 1
    made.make("a", "c")  # made of something else
    assert made.times == 2 and not (made.place / "file-1").exists()


def test_what_was_cut_short_is_made_again(tmp_path: Path) -> None:
    made = Made(tmp_path / "root")
    made.fails = True
    with pytest.raises(click.ClickException):
        made.make("a")
    assert not made.place.exists()
    made.fails = False
    made.make("a")
    assert sorted(path.name for path in made.place.iterdir()) == [arm_machine._KEY, "file-2"]
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_command_that_fails_is_one_line() -> None:
    with pytest.raises(click.ClickException) as failure:
        arm_machine._output(["sh", "-c", "echo W: aside >&2; echo E: no package >&2; echo more >&2; exit 100"])
    assert failure.value.message.endswith("failed: E: no package")
    with pytest.raises(click.ClickException, match=r"^there is no no-such-program; this needs Debian"):
        arm_machine._output(["no-such-program"])


def test_a_home_that_wrappers_could_not_name(tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match="allowed: a path without spaces"):
        arm_machine.Machine(tmp_path / "a home").up()


def test_convtune_there_is_the_one_here(tmp_path: Path) -> None:
    arm_machine._copy_convtune(tmp_path)
    found = subprocess.run(
        [sys.executable, "-S", "-c", "import site; site.addsitedir('.'); import convtune.schedules as s; print(s)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert str(convtune.schedules.__file__) in found.stdout


def test_the_machine_is_no_chip(tmp_path: Path) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(arm_machine._cpuinfo(3))
    machine = host.read(tmp_path, "aarch64", frozenset(range(3)))
    assert (machine.vendor, machine.model, machine.cores) == ("0x00", 0x51, 3)
    assert not any(target.model in machine.title for target in targets.known())


# ---- what the proof asks of records ------------------------------------------------------------------------


def records(**changes: Any) -> list[Record]:
    """A winner of each variant."""
    fields: dict[str, Any] = {"round": "final", "target": samples.target() | {"model": arm_proof.MODEL}, **changes}
    layers = [layer for each in arm_proof.LAYERS.values() for layer in each]
    return [samples.make(**{**fields, "spec": str(ConvSpec.parse(layer)), "batch": samples.utc(1)}) for layer in layers]


def outcome(found: Sequence[Record]) -> list[str]:
    return list(arm_proof.outcome(found))


def test_every_variant_has_a_layer() -> None:
    layers = [ConvSpec.parse(layer).variant for each in arm_proof.LAYERS.values() for layer in each]
    assert sorted(layers) == sorted(variants.known())


def test_a_proof_names_what_was_lost() -> None:
    lost = samples.failure(message="gone", target=records()[0].target)
    said = outcome([*records(), lost])
    assert len(said) == len(variants.known()) + 1 and said[-1].endswith("crash: gone") and lost.spec in said[-1]


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (records()[1:], "conv was not tuned"),
        (records(error=1e-3), "error 0.001"),
        (records(target=samples.target()), "has a record of"),
        ([*records(), samples.failure("wrong", message="m", target=records()[0].target)], "is wrong: m"),
    ],
)
def test_what_is_no_proof(found: Sequence[Record], why: str) -> None:
    with pytest.raises(arm_proof.ProofError, match=why):
        outcome(found)
