"""How the model ranks schedules of every variant, and that it counts what the emulator counts."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import gpu_kernels
import numpy as np
import pytest
from emulation_programs import aligned, emulation

from convtune import space, targets, variants
from convtune.cuda import model
from convtune.cuda.model import counting, tree
from convtune.cuda.program import Lowered, lower
from convtune.cuda.toolkit import Resources
from convtune.spec import ConvSpec
from convtune.targets.gpu import GpuTarget

TARGET = targets.resolve("sm_80")

SPECS = {
    "conv": {"in_channels": 64, "out_channels": 64, "in_size": (56, 56), "kernel": 3, "padding": 1},
    "pointwise": {"in_channels": 256, "out_channels": 256, "in_size": (28, 28), "kernel": 1, "batch": 4},
    "dilated": {"in_channels": 128, "out_channels": 128, "in_size": (65, 65), "kernel": 3, "padding": 2, "dilation": 2},
    "grouped": {"in_channels": 128, "out_channels": 128, "in_size": (56, 56), "kernel": 3, "padding": 1, "groups": 8},
    "depthwise": {"in_channels": 144, "in_size": (56, 56), "kernel": 3, "padding": 1, "batch": 8},
    "transposed": {"in_channels": 128, "out_channels": 96, "in_size": (32, 32), "kernel": 4, "stride": 2, "padding": 1},
    "deformable": {"in_channels": 128, "out_channels": 128, "in_size": (50, 64), "kernel": 3, "padding": 1},
    "depthwise_separable": {"in_channels": 128, "out_channels": 128, "in_size": (56, 56), "kernel": 3, "padding": 1},
    "spatially_separable": {"in_channels": 64, "out_channels": 64, "in_size": (56, 56), "kernel": 3, "padding": 1},
    "flattened": {"in_channels": 128, "out_channels": 128, "in_size": (56, 56), "kernel": 3, "padding": 1},
    "shuffled_grouped": {"in_channels": 96, "out_channels": 96, "in_size": (56, 56), "kernel": 1, "groups": 2},
}  # fmt: skip


def spec_of(variant: str) -> ConvSpec:
    fields = dict(SPECS[variant])
    fields.setdefault("out_channels", fields["in_channels"])
    if variant == "depthwise":
        fields["groups"] = fields["in_channels"]
    if variant in ("depthwise_separable", "spatially_separable", "flattened", "shuffled_grouped", "deformable"):
        fields["batch"] = 4
    return ConvSpec(variant, **fields)


def resources(lowered: Lowered, registers: int = 64, spills: int = 0) -> dict[str, Resources]:
    """As ptxas might say; the shared arrays from the source."""
    found = {}
    for source in re.split(r"(?=__global__ void)", lowered.program.source)[1:]:
        name = re.search(r"(\w+)\(", source.partition("{")[0].replace("__launch_bounds__(", ""))
        assert name
        arrays = re.findall(r"__shared__ alignas\(\d+\) (\w+) \w+\[(\d+)\]", source)
        shared = sum(int(count) * (2 if kind == "half" else 4) for kind, count in arrays)
        found[name[1]] = Resources(registers, spills, spills, spills, shared)
    return found


def estimated(module: Any, spills: int = 0) -> model.Estimate:
    assert isinstance(TARGET, GpuTarget)
    lowered = lower(module, TARGET)
    return model.estimate(lowered, resources(lowered, spills=spills), TARGET)


def tiled(spec: ConvSpec) -> Any:
    candidate = space.default_candidate(spec, TARGET)
    assert candidate.space != "gpu_threads"
    return space.get(candidate.space).schedule(spec, TARGET, candidate.knobs)


def test_every_variant_is_here() -> None:
    assert set(SPECS) == set(variants.known())


@pytest.mark.parametrize("variant", SPECS)
def test_schedules_rank_as_they_should(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = spec_of(variant)
    module = tiled(spec)
    good = estimated(module)
    naive, apart, one_block = (
        estimated(gpu_kernels.one_each(spec, how)) for how in ("side by side", "apart", "one block")
    )
    assert good.time_us < naive.time_us < apart.time_us
    assert one_block.time_us > 10 * naive.time_us
    assert estimated(module, spills=400).time_us > good.time_us
    if any(kernel.counts.shared_requests for kernel in good.kernels):
        monkeypatch.setattr(tree.Reader, "index", in_one_bank(tree.Reader.index))
        assert estimated(module).time_us > 1.2 * good.time_us


def in_one_bank(index: Callable[..., tree.Expr]) -> Callable[..., tree.Expr]:
    """Reads kernels as if all elements of their shared arrays were in the same bank."""

    def spread(reader: tree.Reader, buffer: tree.Buffer, indices: Any) -> tree.Expr:
        found = index(reader, buffer, indices)
        stride = tree.Expr("const", (32,), "int", 1)
        return tree.Expr("Mul", (found, stride), "int", found.lanes) if buffer.scope == "shared" else found

    return spread


def small(variant: str, **fields: Any) -> Any:
    spec = ConvSpec(variant, **{"kernel": 3, "padding": 1, **fields})
    candidate = space.default_candidate(spec, TARGET)
    return space.get(candidate.space).schedule(spec, TARGET, candidate.knobs)


KERNELS: dict[str, Callable[[], Any]] = {
    "copy": lambda: gpu_kernels.copy(5000, vector=4),
    "strided": lambda: gpu_kernels.copy(1 << 12, stride=3),
    "transpose": lambda: gpu_kernels.transpose(96, "none"),
    "conflicts": lambda: gpu_kernels.transpose(96, "shared"),
    "padded": lambda: gpu_kernels.transpose(96, "padded"),
    "naive product": lambda: gpu_kernels.matmul_naive(70, 45, 33, block=16),
    "tiled product": lambda: gpu_kernels.matmul_tiled((128, 128, 64), (16, 16), (4, 4), 16),
    "asynchronous": lambda: gpu_kernels.matmul_tiled(
        (128, 128, 64), (16, 16), (4, 4), 16, vector=4, scope="shared.dyn", asynchronous=True
    ),
    "depthwise": lambda: small("depthwise", in_channels=6, out_channels=6, groups=6, in_size=(19, 23)),
    "separable": lambda: small("depthwise_separable", in_channels=16, out_channels=24, in_size=(9, 11)),
    "pointwise": lambda: small("pointwise", in_channels=32, out_channels=64, in_size=(8, 16), kernel=1, padding=0),
}


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_emulator_counts_the_same(kernel: str) -> None:
    """An opinion from the CUDA C that was run, block by block, against one from the functions, sampled."""
    assert isinstance(TARGET, GpuTarget)
    lowered = lower(KERNELS[kernel](), TARGET)
    random = np.random.default_rng(0)
    arrays = []
    for declared in lowered.program.parameters:
        array = aligned(declared.count, declared.dtype)
        array[:] = random.standard_normal(declared.count)
        arrays.append(array)
    report = emulation(lowered.program, True).run(arrays)
    assert report.problem == ""
    for name, function in lowered.functions.items():
        counted = counting.count(tree.read(function), as_written=True)
        ours, theirs = counted.per_block(), report.counts[name]
        pairs = {
            "loads": (ours.global_loads, theirs.global_load_requests),
            "stores": (ours.global_stores, theirs.global_store_requests),
            "sectors loaded": (ours.sectors_loaded, theirs.global_load_sectors),
            "sectors stored": (ours.sectors_stored, theirs.global_store_sectors),
            "wavefronts": (ours.shared_wavefronts, theirs.shared_load_wavefronts + theirs.shared_store_wavefronts),
            "barriers": (ours.barriers / counted.sampler.warps, theirs.barriers),
        }
        wrong = {what: pair for what, pair in pairs.items() if pair[0] != pytest.approx(pair[1], rel=0.03)}
        assert wrong == {}
