"""Keeps PyTorch out of convtune's own processes when they import TVM, which would import it without need."""

from __future__ import annotations

import sys


def import_tvm_alone() -> None:
    """Has a later import of TVM in this process leave PyTorch out, as if it were not installed.

    TVM 0.27 and tvm_ffi 0.1.14 import PyTorch wherever it is installed, which takes 3 s of a core and TVM itself 1 s;
    convtune gives them no tensor of PyTorch's. For processes that are convtune's own: in a user's, what is loaded, and
    in which order, is the user's business.
    """
    sys.meta_path.insert(0, _WithoutPyTorch())


class _WithoutPyTorch:
    """A finder that has no PyTorch while TVM is being imported, which takes that for not installed."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Raises ModuleNotFoundError then; otherwise leaves the module to the other finders."""
        if name == "torch" and any(_is_being_imported(module) for module in ("tvm", "tvm_ffi")):
            raise ModuleNotFoundError("TVM is imported without PyTorch", name=name)


def _is_being_imported(module: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False))
