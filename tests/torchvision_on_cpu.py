"""Imports torchvision, also beside a PyTorch without CUDA, where its operators lack the CUDA libraries they name.

Without them torchvision's operators do not load, and torchvision itself then fails to import. Of CPU tensors none of
those libraries is ever used, so functions that return 0 stand in for what the operators need of them.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType

import pytest


@functools.cache
def torchvision() -> ModuleType:
    """torchvision with its operators; skips the test where it is not installed."""
    torch = pytest.importorskip("torch")
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None:
        pytest.skip("torchvision is not installed")
    operators = Path(spec.origin).with_name("_C.so")
    if torch.version.cuda is None and operators.exists():
        stand_in_for_cuda(operators)
    module = importlib.import_module("torchvision")
    importlib.import_module("torchvision.ops")
    return module


def stand_in_for_cuda(operators: Path) -> None:
    """Loads a library under the name of each CUDA library that the operators name; none where they name none."""
    for tool in ("cc", "nm", "readelf"):
        if shutil.which(tool) is None:
            pytest.skip(f"torchvision's operators are built for CUDA, and there is no {tool} to do without")
    names = [name for name in listed("readelf", "--dynamic", operators, "NEEDED") if "cuda" in name]
    symbols = [name.split("@")[0] for name in listed("nm", "--dynamic", operators, " U ") if "cuda" in name]
    with tempfile.TemporaryDirectory() as directory:
        source, versions = Path(directory, "zeros.c"), Path(directory, "versions")
        source.write_text("".join(f"int {symbol}(void) {{ return 0; }}\n" for symbol in symbols))
        for name in names:
            library = Path(directory, name)
            versions.write_text(f"{name} {{ global: *; }};\n")
            linking = [f"-Wl,-soname,{name}", f"-Wl,--version-script,{versions}"]
            subprocess.run(["cc", "-shared", "-fPIC", "-w", *linking, source, "-o", library], check=True)
            ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)  # found by its name from here on


def listed(tool: str, option: str, library: Path, kind: str) -> list[str]:
    """The last word of each line of that kind, without brackets."""
    output = subprocess.run([tool, option, library], check=True, capture_output=True, text=True).stdout
    return [line.split()[-1].strip("[]") for line in output.splitlines() if kind in line]
