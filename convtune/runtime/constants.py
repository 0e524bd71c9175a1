"""Weights that belong to a convolution: one .npy file for each in its package, with its hash in the manifest."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import KernelError
from .manifest import Manifest
from .package import content


def files(manifest: Manifest, arrays: Mapping[int, NDArray[Any]]) -> dict[str, bytes]:
    """The files of these constants, which are given in the user's layout by argument index."""
    return {manifest.parameter_files[index]: _npy(array) for index, array in arrays.items()}


def hashes(manifest: Manifest, arrays: Mapping[int, NDArray[Any]]) -> dict[str, str]:
    """What a manifest says of these files."""
    return {name: hashlib.sha256(file).hexdigest() for name, file in files(manifest, arrays).items()}


def read(directory: Path, manifest: Manifest) -> dict[int, NDArray[Any]]:
    """A package's constants in the user's layout, by argument index; none where each call brings the weights.

    Raises KernelError where a file is missing, was changed, or is not the array that the kernel takes.
    """
    if not manifest.constants:
        return {}
    return {index: _read(directory / name, manifest, index) for index, name in manifest.parameter_files.items()}


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array(file, array, allow_pickle=False)
    return file.getvalue()


def _read(file: Path, manifest: Manifest, index: int) -> NDArray[Any]:
    stream = io.BytesIO(content(file, manifest.constants[file.name]))
    try:
        array: NDArray[Any] = np.lib.format.read_array(stream, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise KernelError(f"{file} is no .npy file: {' '.join(str(error).split())}") from error
    argument = manifest.arguments[index]
    if array.shape != argument.user_shape or array.dtype != argument.dtype:
        found, wanted = f"{array.dtype} {array.shape}", f"{argument.dtype} {argument.user_shape}"
        raise KernelError(f"{file} holds {found}; this kernel takes {wanted} (spec: {manifest.spec})")
    return array
