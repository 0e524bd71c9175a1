"""The structure of the source: who may import whom, what importing convtune costs, how long a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "convtune": ROOT / "convtune",
    "convtune.schedules": ROOT / "schedules",
    "convtune.tuned_logs": ROOT / "tuned_logs",
}
LONGEST_FILE, LONGEST_FUNCTION = 400, 50
LIGHT = (
    "convtune",
    "convtune.spec",
    "convtune.errors",
    "convtune.log",
    "convtune.workloads",
    "convtune.cli",
)

# The path of the data goes one way: what a module may know nothing of.
NOTHING_OF: dict[str, tuple[str, ...]] = {
    "convtune.errors": ("convtune.spec", "convtune.variants", "convtune.targets"),
    "convtune.spec": ("convtune.targets", "convtune.space", "convtune.schedules", "convtune.log", "convtune.record"),
    "convtune.variants": (
        "convtune.targets",
        "convtune.space",
        "convtune.schedules",
        "convtune.log",
        "convtune.record",
        "convtune.search",
        "convtune.measure",
        "convtune.tuner",
    ),
    "convtune.targets": ("convtune.spec", "convtune.variants", "convtune.space", "convtune.schedules", "convtune.log"),
    "convtune.workloads": ("convtune.targets", "convtune.space", "convtune.schedules", "convtune.log"),
    "convtune.space": ("convtune.log", "convtune.record", "convtune.search", "convtune.measure", "convtune.tuner"),
    "convtune.schedules": (
        "convtune.log",
        "convtune.record",
        "convtune.resolution",
        "convtune.search",
        "convtune.measure",
        "convtune.tuner",
        "convtune.compiler",
    ),
    "convtune.emulation": (
        "convtune.spec",
        "convtune.variants",
        "convtune.log",
        "convtune.search",
        "convtune.schedules",
    ),
    "convtune.measure": ("convtune.log", "convtune.search", "convtune.tuner", "convtune.schedules"),
    "convtune.search": ("convtune.log", "convtune.tuner", "convtune.compiler", "convtune.schedules"),
    "convtune.search.search": ("convtune.measure",),  # so that it can be tested without a clock
    "convtune.search.propose": ("convtune.measure",),
    "convtune.log": ("convtune.search", "convtune.measure", "convtune.tuner", "convtune.schedules"),
    "convtune.peers": (
        "convtune.targets",
        "convtune.space",
        "convtune.schedules",
        "convtune.log",
        "convtune.record",
        "convtune.search",
        "convtune.measure",
        "convtune.tuner",
        "convtune.compiler",
        "convtune.comparison",
    ),
    "convtune.comparison": ("convtune.cli", "convtune.schedules"),
    "convtune.report": (
        "convtune.search",
        "convtune.measure",
        "convtune.tuner",
        "convtune.compiler",
        "convtune.cli",
        "convtune.schedules",
    ),
    "convtune.compiler": ("convtune.tuner", "convtune.cli", "convtune.schedules"),
    "convtune.tuner": ("convtune.compiler", "convtune.cli", "convtune.schedules"),
}


def modules() -> dict[str, Path]:
    """Every module of convtune, by the name it is imported under."""
    found = {}
    for package, directory in PACKAGES.items():
        for path in sorted(directory.rglob("*.py")):
            parts = path.relative_to(directory).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imported(module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that a module imports, in functions and for types too."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)


def within(name: str, package: str) -> bool:
    return f"{name}.".startswith(f"{package}.")


@pytest.mark.parametrize("ruled", NOTHING_OF)
def test_a_layer_knows_nothing_of_those_above(ruled: str) -> None:
    mine = [module for module in MODULES if within(module, ruled)]
    assert mine
    for forbidden in NOTHING_OF[ruled]:
        assert any(within(module, forbidden) for module in MODULES), f"{forbidden} is not there any more"
    broken = [
        f"{MODULES[module]}:{line} imports {name}"
        for module in mine
        for line, name in imported(module)
        if any(within(name, forbidden) for forbidden in NOTHING_OF[ruled])
    ]
    assert broken == []


def test_the_runtime_needs_nothing_but_numpy() -> None:
    """Its files are copied into every compiled package, where there is no convtune."""
    allowed = {"convtune", "numpy", *sys.stdlib_module_names}
    for module in (m for m in MODULES if within(m, "convtune.runtime")):
        for line, name in imported(module):
            where = f"{MODULES[module]}:{line} imports {name}"
            assert name.split(".")[0] in allowed, where
            assert not within(name, "convtune") or within(name, "convtune.runtime"), where


def test_spaces_are_imported_by_other_spaces_only() -> None:
    """They are discovered, so that adding one is adding a file."""
    for module in (m for m in MODULES if not within(m, "convtune.schedules")):
        assert [name for _, name in imported(module) if within(name, "convtune.schedules")] == [], module


def test_sizes_and_estimates_of_schedules_know_no_tvm() -> None:
    """Not even in functions: tests and searches ask them for thousands of candidates."""
    sizes = [
        m for m in MODULES if re.fullmatch(r"convtune\.schedules\.(.*_(plan|cost|estimate)|axes|estimate|tiling)", m)
    ]
    assert len(sizes) > 10
    for module in sizes:
        names = [name for _, name in imported(module)]
        assert [name for name in names if re.match(r"(tvm|convtune\.schedules\.\w*loops)\b", name)] == [], module


def test_schedules_of_cpus_take_nothing_from_those_of_gpus() -> None:
    for module in (m for m in MODULES if within(m, "convtune.schedules") and ".gpu_" not in m):
        assert [name for _, name in imported(module) if name.startswith("convtune.schedules.gpu_")] == [], module


@pytest.mark.parametrize("module", LIGHT)
def test_light_modules_import_neither_tvm_nor_numpy(module: str) -> None:
    script = f"import sys, {module}; print(*sorted({{'tvm', 'numpy', 'onnx', 'xgboost', 'scipy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "\n"


def test_no_module_imports_tvm_when_it_is_imported() -> None:
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        late = {line for node in tree.body if is_late(node) for line in lines(node)}
        assert [line for line, name in imported(module) if within(name, "tvm") and line not in late] == [], path


def is_late(node: ast.stmt) -> bool:
    """Whether a statement of a module imports nothing by itself: definitions, and what is there for types only."""
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, (ast.FunctionDef, ast.ClassDef))


def lines(node: ast.stmt) -> range:
    assert node.end_lineno is not None
    return range(node.lineno, node.end_lineno + 1)


def test_every_module_says_what_it_is_for() -> None:
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES.values()}
    assert [str(path) for path, tree in trees.items() if not ast.get_docstring(tree)] == []


SOURCES = [
    path
    for directory in (*PACKAGES.values(), ROOT / "tests", ROOT / "scripts")
    for path in sorted(directory.rglob("*.py"))
]


def test_files_are_short_and_python_3_10() -> None:
    assert len(SOURCES) > len(MODULES)
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        ast.parse(text, str(path), feature_version=(3, 10))
        assert len(text.splitlines()) < LONGEST_FILE, path


def test_functions_are_short() -> None:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert len(lines(node)) < LONGEST_FUNCTION, f"{path}:{node.lineno} {node.name}"
