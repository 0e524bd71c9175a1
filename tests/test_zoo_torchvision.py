"""The zoo's networks that torchvision has are as torchvision has them."""

from __future__ import annotations

from collections import Counter

import extract_zoo
import pytest
from click.testing import CliRunner
from torchvision_on_cpu import torchvision

from convtune import workloads


@pytest.fixture(autouse=True)
def models() -> None:
    torchvision()


@pytest.mark.parametrize("network", extract_zoo.MODELS)
def test_a_network_has_the_convolutions_of_torchvisions_model(network: str) -> None:
    ours = {workload.spec: workload.count for workload in workloads.zoo()[network].workloads}
    assert extract_zoo.convolutions(network) == ours


def test_the_script_prints_what_the_file_has() -> None:
    networks = ("mobilenet_v2", "convnext_tiny")
    done = CliRunner().invoke(extract_zoo.main, networks, catch_exceptions=False)
    header, *rows = extract_zoo.ZOO.read_text(encoding="utf-8").splitlines()
    assert done.stdout.splitlines() == [header, *(row for row in rows if row.split(",")[0] in networks)]


def test_rows_take_the_place_of_their_network_and_new_ones_come_last() -> None:
    table = [["network", "layer"], ["a", "1"], ["b", "1"], ["b", "2"], ["c", "1"]]
    rows = {"d": [["d", "1"]], "b": [["b", "3"]]}
    merged = extract_zoo.merged(table, rows)
    assert merged == [["network", "layer"], ["a", "1"], ["b", "3"], ["c", "1"], ["d", "1"]]


def test_a_linear_layer_at_every_pixel_is_pointwise_and_one_after_pooling_is_none() -> None:
    variants = Counter(spec.variant for spec in extract_zoo.convolutions("convnext_tiny").elements())
    assert variants == {"depthwise": 18, "pointwise": 36, "conv": 4}
