"""TVM is imported without PyTorch, where it would import it: in workers and in the program, which need it not."""

from __future__ import annotations

from pathlib import Path

import measure_services as services
import pytest
from cli_process import TINY, run

from convtune.measure.worker import Pool


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where there is a PyTorch whose import fails in another way than that of one that is not installed."""
    (tmp_path / "torch.py").write_text(
        "import sys\nassert 'tvm' in sys.modules and not sys.modules['tvm'].__spec__._initializing\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_worker_has_tvm_alone_and_then_pytorch_if_it_asks(torch: Path, tmp_path: Path) -> None:
    with Pool(services.Puppet, ("hello",), 1, tmp_path) as pool:
        assert pool.call(("imported", "tvm"), 120, 1 << 30).value == ["tvm"]
        assert pool.call(("imported", "torch"), 120, 1 << 30).value == ["torch", "tvm"]


def test_the_program_has_tvm_alone(torch: Path) -> None:
    done = run("show", TINY, "--target", "x86-64-v9", PYTHONPATH=str(torch))
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("convtune: error: unknown target 'x86-64-v9'; near it: x86-64"), done.stderr
