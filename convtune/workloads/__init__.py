"""Workloads: turns what a user writes (zoo names, strings, files) into specs. Imports neither TVM nor NumPy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from convtune import variants
from convtune.errors import SpecError, UnknownNameError
from convtune.spec import LAYOUTS, ConvSpec
from convtune.workloads import benchdnn, onnx_model, tables
from convtune.workloads import zoo as _zoo
from convtune.workloads.plain import classify
from convtune.workloads.workload import Workload
from convtune.workloads.zoo import Network, zoo

__all__ = ["Network", "Workload", "classify", "parse", "zoo"]

CHANNEL_ORDERS = ("channels_first", "channels_last")

_FILES: Mapping[str, Callable[[Path], list[Workload]]] = {
    ".csv": tables.parse_csv,
    ".json": tables.parse_json,
    ".onnx": onnx_model.parse_onnx,
}


def parse(texts: Sequence[str], layout: str | None = None) -> list[Workload]:
    """The workloads that the texts name, in order.

    Args:
        texts: each a zoo name (`mobilenet_v2`, `mobilenet_v2/dw144_56` for all layers that begin so, `zoo` for those
            of all networks), a canonical string, a oneDNN benchdnn problem string, or the path of a .onnx, .json or
            .csv file.
        layout: "channels_first" or "channels_last" for all of them; None for what each says, and where it says
            nothing channels last for the zoo and channels first for the others.

    Raises:
        SpecError: a text is malformed, or a file is missing or holds something wrong.
        UnknownNameError: there is no such workload, or its variant does not exist.
    """
    if layout not in (None, *CHANNEL_ORDERS):
        raise SpecError(f"layout={layout!r} is not allowed; it must be one of {', '.join(CHANNEL_ORDERS)}")
    workloads = [workload for text in texts for workload in _parse_one(text.strip())]
    if layout is None:
        return workloads
    return [w.with_spec(_in_order(w.spec, CHANNEL_ORDERS.index(layout))) for w in workloads]


def _in_order(spec: ConvSpec, order: int) -> ConvSpec:
    return spec.replace(layout=LAYOUTS[spec.rank][order])


def _parse_one(text: str) -> list[Workload]:
    path = Path(text)
    if path.suffix.lower() in _FILES:
        return _file(path)
    if _zoo.matches(text):
        return _zoo.parse(text)
    if "," in text or text in variants.known():
        spec = ConvSpec.parse(text)
        return [Workload(str(spec), spec)]
    if benchdnn.matches(text):
        return [benchdnn.parse(text)]
    if os.path.exists(text):  # noqa: PTH110 - pathlib raises where a text is too long for a name
        return _file(path)
    raise UnknownNameError("workload", text, _zoo.zoo())


def _file(path: Path) -> list[Workload]:
    if os.path.isdir(path):  # noqa: PTH112
        raise SpecError(f"{path}: is a directory; give its files, of which {', '.join(_FILES)} can be read")
    read = _FILES.get(path.suffix.lower())
    if read is None:
        raise SpecError(f"{path}: cannot be read; files of workloads end in {', '.join(_FILES)}")
    if not os.path.exists(path):  # noqa: PTH110
        raise SpecError(f"{path}: there is no such file")
    if not path.is_file():
        raise SpecError(f"{path}: is a device, pipe or socket; it must be a file")
    workloads = read(path)
    if not workloads:
        raise SpecError(f"{path}: holds no workloads")
    return workloads
