"""From a scheduled module to an object file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

ALIGNMENT = 4
"""Bytes at which a kernel's arrays may start: those of one float32."""


def write_object(module: Any, tvm_target: Any, path: Path) -> None:
    """Compiles a tvm.IRModule for a tvm.target.Target; raises what TVM raises."""
    import tvm

    tvm.compile(any_alignment(module), target=tvm_target).mod.write_to_file(str(path), "o")


def any_alignment(module: Any) -> Any:
    """The module without the assumption that every array starts at a multiple of 64 bytes.

    NumPy aligns to 16, so a kernel that faults on less would make each call copy its input. Vector loads that need no
    alignment cost nothing where the address has it. TVM 0.27 has no way to say so before or after scheduling (te makes
    its own buffers, `specialize` refuses another alignment), but every buffer's is a field of the module's JSON.
    """
    import tvm
    from tvm_ffi.serialization import from_json_graph_str

    text, changed = re.subn(r'("data_alignment":\s*)\d+', rf"\g<1>{ALIGNMENT}", tvm.ir.save_json(module))
    assert changed, "TVM's JSON of a module names the alignment of its buffers"
    # tvm.ir.load_json would first translate from older versions, in Python: 18 of a build's 170 ms
    return from_json_graph_str(text)
