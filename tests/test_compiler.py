"""From a spec to a verified kernel, for real: build, verify, cache, save, tune, and what happens when it fails."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_process import MCPU

import convtune
from convtune import compiler, space, targets
from convtune.compiler import Compiler, open_logs
from convtune.errors import (
    BuildError,
    ConvtuneError,
    KernelError,
    LogError,
    ScheduleError,
    UnknownNameError,
    VerifyError,
)
from convtune.log import Log
from convtune.record import Record, traced
from convtune.reference import random_operands
from convtune.runtime import CompiledConv
from convtune.space import Candidate
from convtune.spec import ConvSpec

SPEC = ConvSpec.parse("conv,ic=5,oc=19,in=9x11,k=3x2,p=1x0:1,s=2x1,layout=NHWC,bias,residual,act=silu")
NATIVE = targets.resolve("native")


@pytest.fixture(autouse=True)
def own_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVTUNE_LOG", str(tmp_path / "user.jsonl"))
    monkeypatch.setenv("CONVTUNE_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that has the default kernel of SPEC, built once for all tests; none of them may change it."""
    directory = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONVTUNE_LOG", str(directory / "user.jsonl"))
        patch.setenv("CONVTUNE_CACHE", str(directory / "cache"))
        assert convtune.compile(SPEC).resolution.kind == "default"
    return directory / "cache"


@pytest.fixture
def compiled(filled: Path, own_files: None) -> CompiledConv:
    """SPEC's kernel out of the test's own cache, which is a copy."""
    shutil.copytree(filled, os.environ["CONVTUNE_CACHE"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Compiler, "_workers", lambda _: pytest.fail("the cache has it"))
        return convtune.compile(SPEC)


def _run(conv: Any, spec: ConvSpec) -> float:
    operands = random_operands(spec, 1)
    y = conv(operands.x, operands.weights[0], operands.bias, residual=operands.residual)
    expected = operands.reference(spec)
    assert y.shape == expected.shape and y.dtype == np.float32
    return float(np.abs(y - expected).max() / np.abs(expected).max())


def test_tune_compile_save_and_import(tmp_path: Path) -> None:
    result = convtune.tune(SPEC, trials=3, log=tmp_path / "my.jsonl")
    assert result.best is not None and result.best_us is not None and result.best_us > 0
    conv = convtune.compile(SPEC, log=tmp_path / "my.jsonl")
    assert conv.resolution.kind == "log" and conv.manifest.candidate["knobs"] == dict(result.best.candidate.knobs)
    assert conv.error is not None and conv.error <= 2e-5
    assert _run(conv, SPEC) <= 2e-5
    conv.save(tmp_path / "kernels" / "g32")
    program = "from kernels import g32; print(g32.spec)"
    alone = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert alone.stdout.strip() == str(SPEC)


def test_the_second_time_nothing_is_built(compiled: CompiledConv, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Compiler) -> Any:
        raise AssertionError("the cache has it; no worker may start")

    monkeypatch.setattr(Compiler, "_workers", refuse)
    again = convtune.compile(SPEC)
    assert again.manifest == compiled.manifest and _run(again, SPEC) <= 2e-5
    assert "tvm" not in _modules_after_cached_compile()


def _modules_after_cached_compile() -> list[str]:
    program = (
        "import sys, convtune; convtune.compile(convtune.ConvSpec.parse(sys.argv[1]));"
        "print([m for m in sys.modules if '.' not in m])"
    )
    done = subprocess.run([sys.executable, "-c", program, str(SPEC)], capture_output=True, text=True, check=True)
    return [name.strip("' ") for name in done.stdout.strip()[1:-1].split(",")]


@pytest.mark.parametrize("damage", ["library changed", "library gone", "manifest empty", "manifest nested", "a file"])
def test_a_damaged_cache_is_built_anew(compiled: CompiledConv, damage: str) -> None:
    (library,) = (Path(os.environ["CONVTUNE_CACHE"]) / "kernels").glob("*/kernel-*.so")
    manifest = library.parent / "manifest.json"
    if damage == "library changed":
        changed = library.with_suffix(".changed")  # in place would pull the code from under the kernel loaded above
        changed.write_bytes(library.read_bytes()[:-1] + b"x")
        changed.replace(library)
    elif damage == "library gone":
        library.unlink()
    elif damage == "a file":
        (library.parent / "kernel-0.so").mkdir()
        manifest.unlink()
    else:
        manifest.write_text("" if damage == "manifest empty" else "[" * 100_000)
    assert _run(convtune.compile(SPEC), SPEC) <= 2e-5


def test_another_compiler_makes_another_package(
    compiled: CompiledConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used = tmp_path / "used"
    wrapper = tmp_path / "wrapper.sh"
    wrapper.write_text(f'#!/bin/sh\ntouch {used}\nexec cc "$@"\n')
    wrapper.chmod(0o755)
    monkeypatch.setenv("CONVTUNE_CC", str(wrapper))
    convtune.compile(SPEC)
    assert used.exists() and len(list((Path(os.environ["CONVTUNE_CACHE"]) / "kernels").iterdir())) == 2


def test_the_same_kernel_for_another_reason_is_not_built_again(
    compiled: CompiledConv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = _logged(space.default_candidate(SPEC, NATIVE), tmp_path / "log")
    assert compiled.resolution.kind == "default"
    monkeypatch.setattr(Compiler, "_workers", lambda _: pytest.fail("the cache has it"))
    assert convtune.compile(SPEC, log=log).resolution.kind == "log"


def _logged(candidate: Candidate, path: Path) -> Path:
    record = Record(
        spec=str(SPEC),
        target=NATIVE.facts(),
        candidate=candidate,
        origin="measured",
        status="ok",
        times_us=(1.0,),
        error=0.0,
        seed=0,
    )
    Log(path).append([record])
    return path


class Broken(type(space.get("fallback"))):  # type: ignore[misc]
    """The fallback, wrong on purpose."""

    name = "fallback"

    def pack(self, spec: ConvSpec, target: Any, knobs: Any) -> Any:
        (steps,) = super().pack(spec, target, knobs)
        return ((*steps, {"op": "matmul", "axis": 0, "matrix": [[0.5, 0, 0], [0, 1, 0], [0, 0, 1]]}),)


def test_a_wrong_result_never_ships(tmp_path: Path) -> None:
    """The packing that the manifest would carry is part of what is verified."""
    with Compiler(NATIVE, open_logs(None)) as broken:
        bench = broken._workers()
        candidate = Candidate("fallback", {})
        (built,) = bench.build(SPEC, [candidate])
        assert built.library is not None
        import dataclasses

        wrong_pack = Broken().pack(SPEC, NATIVE, {})
        wrong = dataclasses.replace(built, library=dataclasses.replace(built.library, pack=wrong_pack))
        bench.build = lambda *_: [wrong]  # type: ignore[method-assign]
        with pytest.raises(VerifyError, match=r"fallback\(\) is wrong.*allowed 2.00e-05.*spec: conv,ic=5"):
            broken.package(SPEC, candidate)
    assert not list((Path(os.environ["CONVTUNE_CACHE"]) / "kernels").glob("*/manifest.json"))


def test_a_logged_candidate_that_fails_gives_way_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = _logged(Candidate("fallback", {}), tmp_path / "log")
    build = Compiler._build

    def fail_once(self: Compiler, spec: ConvSpec, choice: Any, *rest: Any) -> Any:
        if choice.kind == "log":
            raise VerifyError("it is wrong")
        return build(self, spec, choice, *rest)

    monkeypatch.setattr(compiler.resolution, "_offered", lambda *_: True)
    monkeypatch.setattr(Compiler, "_build", fail_once)
    conv = convtune.compile(SPEC, log=log)
    assert conv.resolution.kind == "default" and "refused: it is wrong" in conv.resolution.reason


def test_a_named_candidate_that_fails_is_an_error() -> None:
    with pytest.raises(BuildError, match="does not build"):
        convtune.compile(SPEC, candidate=traced([["no such step"]]))


def _changed(**knobs: Any) -> Candidate:
    return Candidate("dense_direct", {**space.get("dense_direct").default(SPEC, NATIVE), **knobs})


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (Candidate("dense_direkt", {}), "unknown space 'dense_direkt'; near it: dense_direct"),
        (Candidate("depthwise_rows", {}), "space 'depthwise_rows' of the candidate does not take this; allowed: "),
        (Candidate("dense_direct", {}), "of dense_direct is missing; it must be one of "),
        (_changed(ow_tiles=4), "unknown knob of dense_direct 'ow_tiles'; near it: ow_tile"),
        (_changed(ow_tile="wide"), "knob ow_tile='wide' of dense_direct is not allowed; it must be one of 1, 2"),
        (_changed(ow_tile=True), "knob ow_tile=True of dense_direct is not allowed"),
        (_changed(ow_tile=[1]), "knob ow_tile=[1] of dense_direct is not allowed"),
        (_changed(ow_tile=1.0), "knob ow_tile=1.0 of dense_direct is not allowed"),
        (Candidate("dense_direct", None), "it must be a Candidate: a space's name, and a value per knob"),  # type: ignore[arg-type]
        ("dense_direct", "candidate is 'dense_direct'; it must be a Candidate"),
    ],
)
def test_a_candidate_that_is_none_names_the_knob_and_what_is_allowed(candidate: Any, said: str) -> None:
    with pytest.raises((ScheduleError, UnknownNameError)) as error:
        convtune.compile(SPEC, candidate=candidate)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_knobs_that_do_not_go_together() -> None:
    owner = space.get("dense_direct")
    domain = owner.knobs(SPEC, NATIVE)
    whole = (dict(zip(domain, values)) for values in itertools.product(*domain.values()))
    apart = next(knobs for knobs in whole if not owner.allows(SPEC, NATIVE, knobs))
    with pytest.raises(ScheduleError, match="each knob is allowed, but not all together; the default is dense_direct"):
        convtune.compile(SPEC, candidate=Candidate("dense_direct", apart))


def test_knobs_may_be_integers_of_numpy() -> None:
    default = space.get("dense_direct").default(SPEC, NATIVE)
    knobs = {name: value if isinstance(value, str) else np.int64(value) for name, value in default.items()}
    conv = convtune.compile(SPEC, candidate=Candidate("dense_direct", knobs))
    assert conv.manifest.candidate["knobs"] == dict(default)


def test_cross_compiling_says_that_nothing_was_verified() -> None:
    document = {"mcpu": MCPU, "name": "board", "required_features": ["no_such_feature"]}
    with Compiler(targets.resolve(json.dumps(document)), open_logs(None)) as cross:
        package = cross.package(SPEC)
    assert package.error is None and package.manifest.target.name == "board"
    with pytest.raises(KernelError, match="no_such_feature"):
        convtune.load(package.directory)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"target": "znver9"}, UnknownNameError, "unknown target 'znver9'; near it: znver"),
        ({"accuracy": "exact"}, UnknownNameError, "unknown accuracy 'exact'"),
        ({"log": "no/such/log"}, LogError, "does not exist"),
        ({"log": "."}, LogError, "directory"),
    ],
)
def test_bad_input_is_one_line(options: dict[str, Any], error: type[ConvtuneError], message: str) -> None:
    with pytest.raises(error, match=message) as raised:
        convtune.compile(SPEC, **options)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("spec", "target", "message"),
    [(str(SPEC), "native", "ConvSpec.parse"), (None, "native", "spec"), (SPEC, 3, "target is 3")],
)
def test_arguments_of_the_wrong_kind_are_one_line(spec: Any, target: Any, message: str) -> None:
    with pytest.raises(ConvtuneError, match=message) as raised:
        convtune.compile(spec, target)
    assert "\n" not in str(raised.value)
