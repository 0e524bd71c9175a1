"""What is installed: a wheel, and an editable install, hold the spaces, the shipped logs, the zoo and the C sources."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from convtune import space, workloads

ROOT = Path(__file__).parents[1]
FOLDERS = {"convtune": "convtune", "schedules": "convtune/schedules", "tuned_logs": "convtune/tuned_logs"}
INSTALLED = {".py", ".c", ".h", ".csv", ".jsonl", ".typed", ".html", ".css", ".js"}

BUILD = "import sys; from setuptools import build_meta; getattr(build_meta, sys.argv[1])(sys.argv[2])"

# Without site: this environment's own install of convtune, which may be editable, must not answer instead.
LOOK = """
import importlib.resources, json, site, sys
site.addsitedir(sys.argv[1])
sys.path += sys.argv[2:]
from convtune import space, workloads
files = {name: str(module.__file__) for name, module in sys.modules.items() if name.split(".")[0] == "convtune"}
import convtune.tuned_logs
print(json.dumps({
    "spaces": sorted(space.known()),
    "networks": sorted(workloads.zoo()),
    "files": files | {m.__module__: sys.modules[m.__module__].__file__ for m in map(type, space.known().values())},
    "logs": len(list(importlib.resources.files("convtune.tuned_logs").iterdir())),
}))
"""

LATER = """
from convtune.schedules.fallback import Fallback

class Later(Fallback):
    name = "later"

later = Later()
"""


def copy_of_the_source(directory: Path) -> Path:
    source = directory / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in FOLDERS:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    return source


def build(source: Path, hook: str) -> Path:
    """Runs a hook of the build backend, as pip does; the wheel that it makes."""
    out = source.parent / hook
    out.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", BUILD, hook, str(out)], cwd=source, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel


def look(site: Path) -> dict[str, Any]:
    """What convtune finds of itself where only `site` offers it."""
    dependencies = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    command = [sys.executable, "-I", "-S", "-c", LOOK, str(site), *dependencies]
    done = subprocess.run(command, capture_output=True, text=True, cwd=site.parent, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(copy_of_the_source(tmp_path_factory.mktemp("wheel")), "build_wheel")


def test_the_wheel_holds_what_the_source_does_and_nothing_else(wheel: Path) -> None:
    expected = {
        str(PurePosixPath(target, path.relative_to(ROOT / folder)))
        for folder, target in FOLDERS.items()
        for path in (ROOT / folder).rglob("*")
        if path.suffix in INSTALLED
    }
    for needed in (
        "workloads/zoo.csv",
        "runtime/runtime.c",
        "py.typed",
        "schedules/dense_direct.py",
        "tuned_logs/__init__.py",
    ):
        assert f"convtune/{needed}" in expected
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert names == expected


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        texts = {
            PurePosixPath(name).name: archive.read(name).decode() for name in archive.namelist() if "dist-info" in name
        }
    assert "convtune = convtune.cli:main" in texts["entry_points.txt"]
    assert "Apache License" in texts["LICENSE"]
    metadata = texts["METADATA"].splitlines()
    assert "License-Expression: Apache-2.0" in metadata
    assert "Requires-Python: >=3.10" in metadata
    assert "Requires-Dist: apache-tvm==0.27.0.post1" in metadata
    assert "Requires-Dist: apache-tvm-ffi==0.1.14.post1" in metadata
    required = [line for line in metadata if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert not any("torch" in line for line in required)


def test_an_installed_wheel_finds_its_spaces_zoo_and_logs(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    found = look(site)
    assert found["spaces"] == sorted(space.known())
    assert found["networks"] == sorted(workloads.zoo())
    assert found["logs"] >= 1
    assert [file for file in found["files"].values() if not Path(file).is_relative_to(site)] == []


def test_an_editable_install_finds_a_space_that_is_added_later(tmp_path: Path) -> None:
    source = copy_of_the_source(tmp_path)
    site = tmp_path / "site"
    with zipfile.ZipFile(build(source, "build_editable")) as archive:
        archive.extractall(site)
    (source / "schedules" / "later.py").write_text(LATER, encoding="utf-8")
    found = look(site)
    assert found["spaces"] == sorted([*space.known(), "later"])
    assert found["networks"] == sorted(workloads.zoo())
    assert [file for file in found["files"].values() if not Path(file).is_relative_to(source)] == []
