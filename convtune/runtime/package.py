"""Writes a compiled convolution as a Python package that needs NumPy only, and reads its files again."""

from __future__ import annotations

import hashlib
import keyword
import os
import shutil
import tempfile
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path

from .errors import KernelError
from .manifest import PARAMETERS, Manifest
from .names import MANIFEST_NAME, RUNTIME_NAME

_RUNTIME_FOLDER = "_runtime"
_PARAMETERS = tuple(f"{name}-[0-9].npy" for name in PARAMETERS)
_ENTRIES = (MANIFEST_NAME, RUNTIME_NAME, "kernel-*.so", *_PARAMETERS, "__init__.py", _RUNTIME_FOLDER, "__pycache__")

# The same for every kernel: what a manifest says is data, and must not become code.
_INIT = '''"""A convolution compiled by convtune; manifest.json says which. Needs Python and NumPy, nothing else."""

from pathlib import Path

from ._runtime.callable_module import publish

publish(__name__, Path(__file__).parent)
'''


def as_directory(directory: object) -> Path:
    """The path that a caller gave. Raises KernelError where it is none."""
    text = os.fspath(directory) if isinstance(directory, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text:
        raise KernelError(f"directory is {directory!r}; it must be a str or a pathlib.Path that names a directory")
    return Path(text)


def check_importable(directory: Path) -> None:
    """Raises KernelError where no import statement can name a package here; directories above may have any names."""
    name = directory.absolute().name
    if not name.isidentifier() or keyword.iskeyword(name):
        why = "is a keyword" if keyword.iskeyword(name) else "is no identifier"
        allowed = "allowed: letters, digits and _, no digit first, and no keyword"
        raise KernelError(f"{directory} cannot be a package: Python cannot import {name!r}, which {why}; {allowed}")


def write_package(
    directory: Path,
    manifest: Manifest,
    library: Path,
    runtime: Path,
    constants: Mapping[str, bytes] | None = None,
) -> Path:
    """Writes manifest, kernel, runtime and the Python around them into `directory`, all at once or not at all.

    constants: the files whose hashes the manifest has as `constants`.

    Returns `directory`. Raises KernelError where something else than an earlier convtune package is there, or the files
    cannot be written.
    """
    directory = directory.resolve()
    _check_replaceable(directory)
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as scratch:
            new = Path(scratch) / "new"
            (new / _RUNTIME_FOLDER).mkdir(parents=True)
            shutil.copyfile(library, new / manifest.library_name)
            shutil.copyfile(runtime, new / RUNTIME_NAME)
            (new / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
            for name, file in (constants or {}).items():
                (new / name).write_bytes(file)
            (new / "__init__.py").write_text(_INIT, encoding="utf-8")
            for source in sorted(Path(__file__).parent.glob("*.py")):
                shutil.copyfile(source, new / _RUNTIME_FOLDER / source.name)
            _put(new, directory, Path(scratch) / "old")
    except OSError as problem:
        place = problem.filename2 or problem.filename  # of a copy, where it was to go
        raise KernelError(f"{directory} cannot be written: {problem.strerror} ({place})") from problem
    return directory


def _put(new: Path, directory: Path, old: Path) -> None:
    """Renames `new` to `directory`, and what is there to `old`; back where that fails."""
    if directory.exists():
        directory.rename(old)
    try:
        new.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise


def read_manifest(directory: Path) -> Manifest:
    """What a package says of itself. Raises KernelError where it is none, or what it says cannot be."""
    try:
        text = (directory / MANIFEST_NAME).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise KernelError(f"{directory} is not a convtune package: {error}") from error
    return Manifest.from_json(text)


def content(file: Path, sha256: str) -> bytes:
    """What is in a package's file. Raises KernelError where it cannot be read or has another hash."""
    try:
        found = file.read_bytes()
    except OSError as error:
        raise KernelError(f"{file.parent} is not a complete convtune package: {error}") from error
    digest = hashlib.sha256(found).hexdigest()
    if digest != sha256:
        raise KernelError(f"{file} has SHA-256 {digest[:16]}…; the manifest says {sha256[:16]}…: the file was changed")
    return found


def _check_replaceable(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise KernelError(f"{directory} is a file; a package is a directory")
    names = [entry.name for entry in directory.iterdir()]
    foreign = [name for name in names if not any(fnmatch(name, pattern) for pattern in _ENTRIES)]
    if foreign or (names and MANIFEST_NAME not in names):
        because = f"it holds {min(foreign)}" if foreign else f"it has no {MANIFEST_NAME}"
        raise KernelError(f"{directory} is not an earlier convtune package ({because}); not overwriting it")
