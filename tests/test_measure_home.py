"""A bench's directory goes with it, or, where it was killed, with the next one; living ones and others' stay."""

from __future__ import annotations

import fcntl
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from convtune.measure import CpuBench
from convtune.measure import home as home_module
from convtune.measure.home import PREFIX, Home
from convtune.targets import resolve

SCRIPT = """
import sys
from pathlib import Path
from convtune.measure.home import Home
home = Home(Path(sys.argv[1]))
(home.path / "candidate-0").mkdir()
(home.path / "candidate-0" / "kernel.so").write_bytes(b"")
print(home.path, flush=True)
sys.stdin.readline()
"""


def process(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """Another process and its home, with a file in it. It ends when its standard input does."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", SCRIPT, str(parent)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert other.stdout is not None
    return other, Path(other.stdout.readline().strip())


def kill(other: subprocess.Popen[str]) -> None:
    other.kill()
    other.communicate()


def test_what_a_killed_process_left_is_removed_and_living_ones_stay(tmp_path: Path) -> None:
    (living, its_home), (killed, leftover) = process(tmp_path), process(tmp_path)
    own = Home(tmp_path)
    kill(killed)
    assert (leftover / "candidate-0" / "kernel.so").exists()
    second = Home(tmp_path)
    assert set(tmp_path.iterdir()) == {its_home, own.path, second.path}
    assert (its_home / "candidate-0" / "kernel.so").exists()
    kill(living)
    own.close()
    Home(tmp_path).close()
    assert set(tmp_path.iterdir()) == {second.path}
    second.close()


def test_a_home_ends_with_its_program_and_is_its_owners(tmp_path: Path) -> None:
    other, path = process(tmp_path)
    assert path.name.startswith(PREFIX)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    other.communicate("end\n")
    assert list(tmp_path.iterdir()) == []
    home = Home(tmp_path)
    home.close()
    home.close()
    assert list(tmp_path.iterdir()) == []


def test_only_own_directories_of_that_name_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / f"{PREFIX}file").touch()
    (tmp_path / f"{PREFIX}link").symlink_to(tmp_path / "other")
    (tmp_path / f"{PREFIX}dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / f"my-{PREFIX}0").mkdir()
    before = set(tmp_path.iterdir())
    Home(tmp_path).close()
    assert set(tmp_path.iterdir()) == before

    (tmp_path / f"{PREFIX}leftover").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    Home(tmp_path).close()
    assert set(tmp_path.iterdir()) == {*before, tmp_path / f"{PREFIX}leftover"}


def test_without_locks_homes_work_and_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError("no locks available")

    monkeypatch.setattr(home_module.fcntl, "flock", refuse)
    first, second = Home(tmp_path), Home(tmp_path)
    assert set(tmp_path.iterdir()) == {first.path, second.path}
    first.close()
    second.close()
    assert list(tmp_path.iterdir()) == []


def test_a_home_is_never_seen_unlocked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another bench looks around at the worst moments: before and after the lock is taken."""
    flock = fcntl.flock

    def with_others(descriptor: int, operation: int) -> None:
        monkeypatch.setattr(home_module.fcntl, "flock", flock)
        home_module.remove_leftovers(tmp_path)
        flock(descriptor, operation)
        home_module.remove_leftovers(tmp_path)

    monkeypatch.setattr(home_module.fcntl, "flock", with_others)
    home = Home(tmp_path)
    home_module.remove_leftovers(tmp_path)
    assert home.path.is_dir()
    home.close()


def test_a_forked_child_that_ends_leaves_the_home_alone(tmp_path: Path) -> None:
    script = SCRIPT.replace("sys.stdin.readline()", "import os\nif not os.fork(): sys.exit()\nos.wait()\n") + (
        "print(home.path.exists(), flush=True)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert done.stdout.splitlines()[1:] == ["True"]
    assert list(tmp_path.iterdir()) == []


def test_a_bench_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    killed, leftover = process(tmp_path)
    kill(killed)
    with CpuBench(resolve("native"), tmp_path):
        assert not leftover.exists()
        assert len(list(tmp_path.iterdir())) == 1
    assert list(tmp_path.iterdir()) == []
