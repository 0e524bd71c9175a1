"""CompiledConv where it is used as it cannot be: foreign weights, copies, timing that fails."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_kernels import IN, OUT, PIXELS, pointwise_library, pointwise_manifest

from convtune.runtime import CompiledConv, load
from convtune.runtime.errors import KernelError
from convtune.runtime.kernel import Call, Kernel
from convtune.runtime.names import RUNTIME_NAME
from convtune.runtime.package import write_package


@pytest.fixture(scope="module")
def conv(tmp_path_factory: pytest.TempPathFactory) -> CompiledConv:
    directory = tmp_path_factory.mktemp("pointwise")
    library = pointwise_library(directory)
    manifest = pointwise_manifest(library)
    return load(write_package(directory / "pw", manifest, library, library.with_name(RUNTIME_NAME)))


def test_packed_must_come_from_pack(conv: CompiledConv) -> None:
    x = np.zeros((PIXELS, IN), "f")
    for packed, kind in ((None, "NoneType"), ((x,), "tuple"), (x, "ndarray")):
        with pytest.raises(KernelError, match=rf"packed is a {kind}; it must come from this kernel's pack\(\)"):
            conv.run(x, packed)  # type: ignore[arg-type]


@pytest.mark.parametrize("copy_it", [pickle.dumps, copy.copy, copy.deepcopy])
def test_copies_go_through_a_saved_package(conv: CompiledConv, copy_it: Callable[[Any], Any]) -> None:
    with pytest.raises(KernelError, match=r"cannot be pickled or copied; save\(directory\) it and load"):
        copy_it(conv)


def test_threads_are_placed_while_timing_only(conv: CompiledConv, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    place, time = Kernel.place_threads, Call.time
    monkeypatch.setattr(Kernel, "place_threads", lambda kernel, on: (calls.append(on), place(kernel, on))[1])
    monkeypatch.setattr(
        Call, "time", lambda call, *args, **named: (calls.append("time"), time(call, *args, **named))[1]
    )
    conv.time(repeat=1)
    assert calls == [True, "time", "time", False]
    calls.clear()
    with pytest.raises(KernelError, match="repeat is 0"):
        conv.time(repeat=0)
    assert (calls[0], calls[-1]) == (True, False)


def test_arguments_beyond_the_last_are_counted(conv: CompiledConv, tmp_path: Path) -> None:
    x, weight, bias, residual = (np.zeros(shape, "f") for shape in ((PIXELS, IN), (OUT, IN), (OUT,), (PIXELS, OUT)))
    said = "offset was given; this kernel takes none; its 4 arguments: x, weight, bias, residual (spec: "
    with pytest.raises(KernelError, match=re.escape(said)):
        conv(x, weight, bias, residual)
    fixed = load(conv.save(tmp_path / "pw"))
    fixed.fix(weight, bias)
    with pytest.raises(KernelError, match=r"takes none; its 2 arguments: x, residual \(spec: "):
        fixed(x, mask=x, residual=residual)


@pytest.mark.parametrize("directory", [5, None, b"pw", "", "p\0w"])
def test_what_names_no_directory(conv: CompiledConv, directory: Any) -> None:
    said = re.escape(f"directory is {directory!r}; it must be a str or a pathlib.Path that names a directory")
    for use in (conv.save, load, CompiledConv):
        with pytest.raises(KernelError, match=f"^{said}$"):
            use(directory)


@pytest.mark.parametrize(
    ("name", "why"), [("for", "is a keyword"), ("out-1", "is no identifier"), ("a.b", "is no identifier"), ("1a", "")]
)
def test_a_package_must_have_a_name_that_can_be_imported(
    conv: CompiledConv, name: str, why: str, tmp_path: Path
) -> None:
    said = f"Python cannot import {name!r}, which {why}"
    with pytest.raises(KernelError, match=rf"{re.escape(said)}.*; allowed: letters, digits and _, no digit first"):
        conv.save(tmp_path / "class2" / name)
    assert list(tmp_path.iterdir()) == []
    assert load(conv.save(tmp_path / "out-1" / "größe_2")).spec == conv.spec
