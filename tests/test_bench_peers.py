"""The real peers, where they are installed: one small spec of every variant, compared with the reference."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from convtune import peers, variants
from convtune.comparison.side import Side
from convtune.peers.process import Job
from convtune.reference import random_operands
from convtune.spec import ConvSpec

SPECS = (
    "conv,n=2,ic=5,oc=7,in=11x13,k=3x3,p=1,layout=NCHW,bias,act=relu",
    "conv,n=2,ic=5,oc=7,in=11x13,k=3x3,p=1:2x0:1,layout=NHWC,bias,act=silu,residual",
    "conv,ic=3,oc=8,in=19,k=7,s=9,p=11,layout=NWC,act=sigmoid",
    "pointwise,ic=17,oc=24,in=9x1,k=1x1,layout=NHWC,act=gelu",
    "dilated,ic=8,oc=8,in=31,k=3,d=4,p=4,layout=NWC,act=relu6",
    "dilated,ic=8,oc=8,in=31,k=3,d=4,p=0:-2,layout=NCW",
    "grouped,ic=12,oc=18,in=9x10,k=3x3,g=3,s=2,layout=NHWC,act=hardswish",
    "depthwise,ic=6,oc=12,in=7x8x9,k=3x3x3,p=1,layout=NDHWC,act=leaky_relu",
    "transposed,ic=6,oc=8,in=7x9,k=4x4,s=2,p=1,op=1,layout=NHWC,act=tanh",
    "transposed,ic=6,oc=8,in=17,k=5,s=3,p=1:2,layout=NWC,bias",
    "transposed,n=2,ic=6,oc=8,in=4x5x6,k=3x3x3,s=2,p=1,g=2,layout=NCDHW",
    "deformable,ic=8,oc=12,in=9x10,k=3x3,p=1,modulated,layout=NHWC,bias,residual,act=relu",
    "deformable,n=2,ic=8,oc=12,in=9x10,k=3x3,p=1,og=2,layout=NCHW",
    "shuffled_grouped,ic=12,oc=18,in=9x9,k=1x1,g=3,layout=NHWC,bias,residual,act=relu",
    "depthwise_separable,ic=8,oc=12,in=9x9,k=3x3,p=1,m=2,layout=NHWC,bias,act=relu",
    "spatially_separable,ic=8,oc=12,in=9x9,k=3x3,p=1,mid=5,layout=NCHW",
    "flattened,ic=8,oc=12,in=9x9,k=3x3,p=1,layout=NHWC",
)
LIBRARIES = [name for name, peer in peers.known().items() if not peer.engine]
LIMIT = 1e-5  # sums of at most a few hundred products


@pytest.fixture(scope="module", params=LIBRARIES)
def side(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Side]:
    peer = peers.get(request.param)
    if peer.absent():
        pytest.skip(f"{', '.join(peer.absent())} not installed")
    opened = Side(peer, 2, tmp_path_factory.mktemp("peer"))
    yield opened
    opened.close()


def test_every_variant_is_here() -> None:
    assert {text.partition(",")[0] for text in SPECS} == set(variants.known())


@pytest.mark.parametrize("text", SPECS)
def test_every_configuration_is_right(text: str, side: Side, tmp_path: Path) -> None:
    spec, reference = ConvSpec.parse(text), tmp_path / "reference.npy"
    np.save(reference, random_operands(spec, 1).reference(spec))
    side.prepare(Job(spec, 1, reference), 1e-3)
    assert side.refusal is None
    assert {entry.configuration.layout for entry in side.entries} >= {spec.layout}
    for entry in side.entries:
        if spec.variant == "deformable" and side.name == "torch" and entry.status == "unsupported":
            pytest.skip(entry.message)  # a torchvision that does not fit the torch beside it
        assert (entry.status, entry.message) == ("ok", ""), entry.configuration.name
        assert entry.error is not None
        assert entry.error < LIMIT, entry.configuration.name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("conv,ic=4,oc=4,in=5x5,k=3x3,layout=NHWC,dtype=float16", "float32 is compared"),
        ("transposed,ic=4,oc=4,in=5x5,k=3x3,s=2,p=1:-1x0:0,layout=NHWC", "none may be negative"),
    ],
)
def test_what_has_no_operator_is_unsupported(text: str, said: str, side: Side, tmp_path: Path) -> None:
    spec, reference = ConvSpec.parse(text), tmp_path / "reference.npy"
    np.save(reference, random_operands(spec, 1).reference(spec))
    side.prepare(Job(spec, 1, reference), 1e-3)
    assert side.playing == []
    reasons = [side.refusal[1]] if side.refusal else [entry.message for entry in side.entries]
    assert all(said in reason for reason in reasons)
    assert {entry.status for entry in side.entries} <= {"unsupported"}
