"""CompiledConv: results, argument checks, array kinds, saved packages without convtune and TVM, damaged packages."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_kernels import IN, OUT, PIXELS, pointwise_library, pointwise_manifest

from convtune.runtime import CompiledConv, arrays, compiled, load
from convtune.runtime.arrays import empty_aligned
from convtune.runtime.errors import ConvtuneError, KernelError
from convtune.runtime.manifest import Argument, KernelTarget
from convtune.runtime.names import MANIFEST_NAME, RUNTIME_NAME
from convtune.runtime.package import write_package


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pointwise_library(tmp_path_factory.mktemp("pointwise"))


def write(library: Path, directory: Path, **changes: Any) -> Path:
    return write_package(directory, pointwise_manifest(library, **changes), library, library.with_name(RUNTIME_NAME))


@pytest.fixture
def package(library: Path, tmp_path: Path) -> Path:
    return write(library, tmp_path / "kernels" / "pw")


@pytest.fixture
def conv(package: Path) -> CompiledConv:
    return load(package)


@pytest.fixture
def operands() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    shapes = {"x": (PIXELS, IN), "weight": (OUT, IN), "bias": (OUT,), "residual": (PIXELS, OUT)}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def expected(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, residual: np.ndarray) -> np.ndarray:
    return x.astype("float64") @ weight.T.astype("float64") + bias + residual


def check(y: np.ndarray, operands: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(y, expected(**operands), rtol=1e-5, atol=1e-5)


def test_call_and_packed_run_agree_with_numpy(conv: CompiledConv, operands: dict[str, np.ndarray]) -> None:
    check(conv(**operands), operands)
    packed = conv.pack(operands["weight"], operands["bias"])
    for _ in range(3):
        y = conv.run(operands["x"], packed, residual=operands["residual"])
        assert isinstance(y, np.ndarray) and y.dtype == np.float32
        check(y, operands)


def test_facts(conv: CompiledConv) -> None:
    assert (conv.spec, conv.error, conv.resolution.kind) == ("pointwise-test", 1e-7, "default")
    assert repr(conv) == "CompiledConv('pointwise-test', target='test', error=1.0e-07)"
    seconds = conv.time(repeat=4)
    assert seconds.shape == (4,) and (seconds > 0).all()


def test_out_is_filled_and_returned(conv: CompiledConv, operands: dict[str, np.ndarray]) -> None:
    packed = conv.pack(operands["weight"], operands["bias"])
    misaligned = empty_aligned((PIXELS * OUT + 1,), np.float32)[1:].reshape(PIXELS, OUT)
    strided = np.empty((PIXELS, 2 * OUT), np.float32)[:, ::2]
    for out in (empty_aligned((PIXELS, OUT), np.float32), misaligned, strided, np.empty((OUT, PIXELS), "f").T):
        out[...] = np.nan
        assert conv.run(operands["x"], packed, residual=operands["residual"], out=out) is out
        check(out, operands)


def test_inputs_may_lie_anywhere(conv: CompiledConv, operands: dict[str, np.ndarray]) -> None:
    x = np.empty((IN, 3 * PIXELS), np.float32)[:, ::3].T
    x[...] = operands["x"]
    x.flags.writeable = False
    shifted = empty_aligned((PIXELS * OUT + 1,), np.float32)[1:].reshape(PIXELS, OUT)
    shifted[...] = operands["residual"]
    check(conv(x, operands["weight"].T.copy().T, operands["bias"], residual=shifted), operands)


def test_lesser_alignment_is_not_copied(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = pointwise_manifest(library)
    arguments = tuple(dataclasses.replace(a, alignment=4) if a.name == "x" else a for a in manifest.arguments)
    conv = load(write(library, tmp_path / "pw", arguments=arguments))
    copied: list[np.ndarray] = []
    monkeypatch.setattr(compiled, "aligned_copy", lambda array: copied.append(array) or arrays.aligned_copy(array))
    x = empty_aligned((PIXELS * IN + 1,), np.float32)[1:].reshape(PIXELS, IN)
    x[...] = 1
    zeros = empty_aligned((PIXELS * OUT + 1,), np.float32)[1:].reshape(PIXELS, OUT)
    zeros[...] = 0
    y = conv(x, np.ones((OUT, IN), np.float32), np.zeros(OUT, np.float32), residual=zeros)
    assert (y == IN).all()
    assert len(copied) == 1 and copied[0] is zeros


def test_threads_may_share_a_convolution(conv: CompiledConv, operands: dict[str, np.ndarray]) -> None:
    packed = conv.pack(operands["weight"], operands["bias"])
    failures: list[BaseException] = []

    def use(scale: float) -> None:
        mine = {**operands, "x": operands["x"] * np.float32(scale)}
        try:
            for _ in range(200):
                check(conv.run(mine["x"], packed, residual=mine["residual"]), mine)
        except BaseException as error:
            failures.append(error)

    users = [threading.Thread(target=use, args=(n,)) for n in (1, 2, 3)]
    for user in users:
        user.start()
    for user in users:
        user.join(timeout=120)
    assert not failures


def test_arrays_are_let_go_after_a_call(conv: CompiledConv, operands: dict[str, np.ndarray]) -> None:
    x = empty_aligned((PIXELS, IN), np.float32)
    x[...] = operands["x"]
    before = sys.getrefcount(x)
    conv(**{**operands, "x": x})
    assert sys.getrefcount(x) == before


BAD_ARGUMENTS = {
    "x has shape (11, 6); this kernel takes (11, 5)": {"x": np.zeros((PIXELS, IN + 1), "f")},
    "x has shape (55,); this kernel takes (11, 5)": {"x": np.zeros(PIXELS * IN, "f")},
    "x has dtype float64; this kernel takes float32": {"x": np.zeros((PIXELS, IN))},
    "x is a list; it must be a NumPy array or have __dlpack__": {"x": [[0.0]]},
    "x is missing; this kernel takes one of shape (11, 5)": {"x": None},
    "weight has shape (13, 4); this kernel takes (13, 5)": {"weight": np.zeros((OUT, IN - 1), "f")},
    "weight has dtype int32; this kernel takes float32": {"weight": np.zeros((OUT, IN), "i4")},
    "bias is missing; this kernel takes one of shape (13,)": {"bias": None},
    "residual is missing; this kernel takes one of shape (11, 13)": {"residual": None},
    "mask was given; this kernel takes none; its 4 arguments: x, weight, bias, residual": {"mask": np.zeros((1,), "f")},
    "offset was given; this kernel takes none; its 4 arguments: x, weight, bias, residual": {
        "offset": np.zeros((1,), "f")
    },
}


@pytest.mark.parametrize("message", BAD_ARGUMENTS)
def test_wrong_arguments(conv: CompiledConv, operands: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(KernelError) as caught:
        conv(**{**operands, **BAD_ARGUMENTS[message]})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, ConvtuneError)
    if not message.startswith("x is a list"):
        assert str(caught.value) == f"{message} (spec: pointwise-test)"


def test_wrong_out(conv: CompiledConv, operands: dict[str, np.ndarray]) -> None:
    packed = conv.pack(operands["weight"], operands["bias"])
    frozen = np.empty((PIXELS, OUT), np.float32)
    frozen.flags.writeable = False
    for out, message in [
        (np.empty((OUT, PIXELS), "f"), "out has shape (13, 11); this kernel takes (11, 13)"),
        (np.empty((PIXELS, OUT)), "out has dtype float64; this kernel takes float32"),
        (frozen, "out is read-only"),
        (empty_aligned_like(operands["residual"]), "out overlaps residual; the kernel would read its own output"),
    ]:
        residual = out if "overlaps" in message else operands["residual"]
        with pytest.raises(KernelError) as caught:
            conv.run(operands["x"], packed, residual=residual, out=out)
        assert str(caught.value).startswith(message)


def empty_aligned_like(array: np.ndarray) -> np.ndarray:
    return empty_aligned(array.shape, array.dtype)


def test_a_bias_that_the_kernel_does_not_add(library: Path, tmp_path: Path, operands: dict[str, np.ndarray]) -> None:
    arguments = tuple(a for a in pointwise_manifest(library).arguments if a.name not in ("bias", "residual"))
    conv = load(write(library, tmp_path / "pw", arguments=arguments))
    with pytest.raises(KernelError, match="bias was given; this kernel takes none"):
        conv.pack(operands["weight"], operands["bias"])
    with pytest.raises(KernelError, match="kernel failed with status -1: TypeError: Expected 5 arguments"):
        conv(operands["x"], operands["weight"])


def test_weights_packed_for_another_kernel(library: Path, package: Path, operands: dict[str, np.ndarray]) -> None:
    conv = load(package)
    packed = dataclasses.replace(conv.pack(operands["weight"], operands["bias"]), library_sha256="0" * 64)
    with pytest.raises(KernelError, match="packed was made by another kernel"):
        conv.run(operands["x"], packed, residual=operands["residual"])


def test_several_weights_come_as_a_tuple(library: Path, tmp_path: Path, operands: dict[str, np.ndarray]) -> None:
    manifest = pointwise_manifest(library)
    arguments = (*manifest.arguments[:1], Argument("weight", (3,)), *manifest.arguments[1:])
    conv = load(write(library, tmp_path / "pw", arguments=arguments))
    first = np.arange(3, dtype="f")
    packed = conv.pack((first, operands["weight"]), operands["bias"])
    np.testing.assert_array_equal(packed.arrays[1], first)
    assert sorted(packed.arrays) == [1, 2, 3]
    with pytest.raises(KernelError, match="weight is 1 arrays; this kernel takes a tuple of 2"):
        conv.pack((first,), operands["bias"])
    with pytest.raises(KernelError, match="weight is a ndarray; this kernel takes a tuple of 2"):
        conv.pack(first, operands["bias"])
    with pytest.raises(KernelError, match=r"weight\[1\] has shape \(3,\); this kernel takes \(13, 5\)"):
        conv.pack((first, first), operands["bias"])


# --- packages ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def numpy_only(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to import from in which there is NumPy, but neither convtune nor TVM."""
    directory = tmp_path_factory.mktemp("numpy-only")
    site = Path(np.__file__).parent.parent
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (directory / name).symlink_to(site / name)
    return directory


def run_isolated(script: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script that sees the standard library and `paths`, and no other package."""
    start = "import sys; sys.path[:0] = sys.argv[1:]\n"
    command = [sys.executable, "-I", "-S", "-c", start + script, *map(str, paths)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


USE_PACKAGE = """
import importlib.util
assert importlib.util.find_spec("convtune") is None and importlib.util.find_spec("tvm") is None
import numpy as np
from kernels import pw
x, w, b, r = [np.load(f) for f in ("x.npy", "weight.npy", "bias.npy", "residual.npy")]
y = pw(x, w, b, residual=r)
packed = pw.pack(w, b)
out = np.empty_like(y)
assert pw.run(x, packed, residual=r, out=out) is out and (out == y).all()
assert pw.conv.spec == pw.spec == "pointwise-test" and pw.error == 1e-7 and pw.time(repeat=2).shape == (2,)
pw.save("again")
import again
assert (again(x, w, b, residual=r) == y).all()
np.save("y.npy", y)
"""


def test_a_package_needs_numpy_only(
    package: Path, numpy_only: Path, operands: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    home = package.parent.parent
    for name, array in operands.items():
        np.save(home / f"{name}.npy", array)
    monkeypatch.chdir(home)
    done = run_isolated(USE_PACKAGE, numpy_only, home)
    assert done.returncode == 0, done.stderr
    check(np.load(home / "y.npy"), operands)


def test_two_packages_share_the_pool(package: Path, numpy_only: Path, library: Path) -> None:
    write(library, package.parent / "other", spec="other")
    script = (
        "from kernels import pw, other; pw.kernel.num_threads = 5\n"
        "assert other.kernel.num_threads == 5 and other.spec == 'other'\n"
        "maps = {line.split()[-1] for line in open('/proc/self/maps') if 'convtune_runtime' in line}\n"
        "assert len(maps) == 1, maps"
    )
    done = run_isolated(script, numpy_only, package.parent.parent)
    assert done.returncode == 0, done.stderr


def test_saving_again_replaces_the_package(conv: CompiledConv, library: Path, package: Path) -> None:
    conv.save(package)
    write(library, package, spec="newer")
    assert load(package).spec == "newer"
    assert conv.spec == "pointwise-test"
    assert [path.name for path in package.parent.iterdir()] == ["pw"]


def test_a_new_kernel_at_the_same_path_is_the_one_that_runs(library: Path, package: Path, tmp_path: Path) -> None:
    """The dynamic loader knows libraries by path, and would go on with the one it has."""
    before = load(package)
    changed = tmp_path / "changed.so"
    changed.write_bytes(library.read_bytes() + b"\0")
    manifest = pointwise_manifest(library, library_sha256=hashlib.sha256(changed.read_bytes()).hexdigest())
    write_package(package, manifest, changed, library.with_name(RUNTIME_NAME))
    after = load(package)
    assert before.kernel._library._handle != after.kernel._library._handle


def test_other_directories_are_not_overwritten(conv: CompiledConv, package: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.tex").write_text("…")
    (precious / "thesis").write_text("…")
    with pytest.raises(KernelError, match=r"precious is not an earlier convtune package \(it holds thesis\)"):
        conv.save(precious)
    (package / "notes.txt").write_text("mine")
    with pytest.raises(KernelError, match=r"not an earlier convtune package \(it holds notes.txt\)"):
        conv.save(package)
    assert (precious / "thesis.tex").exists() and (package / "notes.txt").exists()
    half = tmp_path / "half"
    half.mkdir()
    (half / "__init__.py").write_text("")
    with pytest.raises(KernelError, match=r"\(it has no manifest.json\)"):
        conv.save(half)
    with pytest.raises(KernelError, match="is a file; a package is a directory"):
        conv.save(precious / "thesis")
    with pytest.raises(KernelError, match="directory is ''"):
        conv.save("")
    with pytest.raises(KernelError, match="/proc/dw cannot be written: No such file or directory"):
        conv.save("/proc/dw")
    (tmp_path / "empty").mkdir()
    assert load(conv.save(tmp_path / "empty")).spec == conv.spec


def test_a_failed_save_leaves_the_old_package(conv: CompiledConv, library: Path, package: Path) -> None:
    with pytest.raises(KernelError, match=r"pw cannot be written: No such file or directory \(.*absent.so\)"):
        write_package(package, conv.manifest, library, library.with_name("absent.so"))
    assert load(package).spec == conv.spec
    assert [path.name for path in package.parent.iterdir()] == ["pw"]


def test_a_changed_library_is_refused(package: Path, conv: CompiledConv) -> None:
    for file in (package / conv.manifest.library_name, package / RUNTIME_NAME):
        content = file.read_bytes()
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        with pytest.raises(KernelError, match=r"has SHA-256 .*; the manifest says .*: the file was changed"):
            load(package)
        file.write_bytes(content)
    (package / RUNTIME_NAME).unlink()
    with pytest.raises(KernelError, match=r"is not a complete convtune package: .*libconvtune_runtime"):
        load(package)


def test_a_cpu_without_the_instructions_is_refused(library: Path, tmp_path: Path) -> None:
    here = pointwise_manifest(library).target.machine
    package = write(library, tmp_path / "pw", target=KernelTarget("future", here, ("fpu2099", "avx9000"), 2))
    with pytest.raises(KernelError, match="needs CPU features avx9000, fpu2099; this CPU lacks avx9000, fpu2099"):
        load(package)
    package = write(library, tmp_path / "pw", target=KernelTarget("board", "riscv64", (), 2))
    with pytest.raises(KernelError, match=f"the kernel was compiled for riscv64; this machine is {here}"):
        load(package)


def test_no_package_there(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"absent is not a convtune package: .*No such file"):
        load(tmp_path / "absent")


def edit(package: Path, **changes: Any) -> None:
    record = json.loads((package / MANIFEST_NAME).read_text())
    record.update(changes)
    (package / MANIFEST_NAME).write_text(json.dumps({k: v for k, v in record.items() if v is not ...}))


BAD_MANIFESTS = {
    "manifest.json has schema 2; this convtune reads 1": {"schema": 2},
    "manifest.json: spec is 3; it must be str": {"spec": 3},
    "manifest.json: arguments is 'x'; it must be list": {"arguments": "x"},
    "manifest.json: arguments[0] has no field 'name'": {"arguments": [{}]},
    "manifest.json: no argument is named x": {"arguments": []},
    "manifest.json: target has no field 'name'": {"target": {}},
    "manifest.json: '../../evil' is not a SHA-256 in hexadecimal": {"library_sha256": "../../evil"},
    "manifest.json: error is True; it must be int or float": {"error": True},
}


@pytest.mark.parametrize("message", BAD_MANIFESTS)
def test_bad_manifests(package: Path, message: str) -> None:
    edit(package, **BAD_MANIFESTS[message])
    with pytest.raises(KernelError) as caught:
        load(package)
    assert str(caught.value) == message


def test_a_manifest_that_is_not_json(package: Path) -> None:
    (package / MANIFEST_NAME).write_text("{")
    with pytest.raises(KernelError, match=r"manifest.json is not JSON: Expecting property name"):
        load(package)
    (package / MANIFEST_NAME).write_text("[]")
    with pytest.raises(KernelError, match=r"manifest.json has no field 'schema'"):
        load(package)


def test_manifest_round_trip(conv: CompiledConv) -> None:
    assert type(conv.manifest).from_json(conv.manifest.to_json()).to_json() == conv.manifest.to_json()
