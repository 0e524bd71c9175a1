"""The CUDA family: architectures, GPUs by TVM's names for them, and the one at hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from convtune.errors import TargetError
from convtune.targets.base import Family
from convtune.targets.cuda_driver import Device, first_gpu
from convtune.targets.gpu import OLDEST, GpuTarget, compute
from convtune.targets.host import NOWHERE, Host

REGISTERS_PER_SM = 65536
STAND_IN = "sm_80"
"""What `cuda` means on a machine without a GPU."""


@dataclass(frozen=True)
class Arch:
    """What all GPUs of a compute capability have.

    threads, blocks: resident on an SM. tensor_lanes: as `GpuTarget.fp16_tensor_lanes`, of GPUs where it is not halved.
    gpu: the one that a target is, where only the arch is named.
    """

    name: str
    shared_kib: int
    threads: int
    blocks: int
    fp32_lanes: int
    tensor_lanes: int
    gpu: str


# Sources. Limits of an SM: CUDA Programming Guide, "Technical Specifications per Compute Capability". fp32_lanes: its
# "Throughput of Native Arithmetic Instructions". Tensor Cores: the whitepapers named below.
ARCHS: Mapping[str, Arch] = {
    arch.name: arch
    for arch in (
        Arch("sm_75", 64, 1024, 16, 64, 512, "nvidia/nvidia-t4"),
        Arch("sm_80", 164, 2048, 32, 64, 1024, "nvidia/nvidia-a100"),
        Arch("sm_86", 100, 1536, 16, 128, 512, "nvidia/geforce-rtx-3090"),
        Arch("sm_87", 164, 1536, 16, 128, 1024, "nvidia/jetson-agx-orin-64gb"),
        Arch("sm_89", 100, 1536, 24, 128, 512, "nvidia/geforce-rtx-4090"),
        # Tensor Cores with wgmma; mma.sync, all that older code has, gets some 60 % of them ("Benchmarking and
        # Dissecting the Nvidia Hopper GPU Architecture", 2024)
        Arch("sm_90", 228, 2048, 32, 128, 2048, "nvidia/nvidia-h100"),
        # with tcgen05 likewise
        Arch("sm_100", 228, 2048, 32, 128, 4096, "nvidia/nvidia-b200"),
        Arch("sm_120", 100, 1536, 24, 128, 512, "nvidia/geforce-rtx-5090"),
    )
}


@dataclass(frozen=True)
class Gpu:
    """A product. clock_mhz: boost. halved: its Tensor Cores sum in float32 at half the rate, as GeForce does."""

    model: str
    arch: str
    sms: int
    clock_mhz: int
    dram_gbs: float
    l2_kib: int
    halved: bool = False


# Sources: NVIDIA's datasheets, whitepapers "NVIDIA Turing GPU Architecture" (T4, RTX 20, Quadro, TITAN), "NVIDIA
# A100 Tensor Core GPU Architecture", "NVIDIA Ampere GA102 GPU Architecture" (RTX 30, A40, RTX A6000), "NVIDIA Ada GPU
# Architecture", "NVIDIA H100 Tensor Core GPU Architecture" and "NVIDIA RTX Blackwell GPU Architecture"; "NVIDIA
# Blackwell Tuning Guide" (the B200's L2) and "NVIDIA Jetson AGX Orin Series Technical Brief". Clocks of the H100 (SXM5)
# and the B200 follow from their 67 and 75 TFLOPS of float32. L2 of Turing and GA10x: 512 KiB for each 32 bits of bus.
GPUS: Mapping[str, Gpu] = {
    "nvidia/nvidia-a100": Gpu("NVIDIA A100-SXM4-40GB", "sm_80", 108, 1410, 1555, 40 * 1024),
    "nvidia/nvidia-h100": Gpu("NVIDIA H100 80GB HBM3", "sm_90", 132, 1980, 3352, 50 * 1024),
    "nvidia/nvidia-b200": Gpu("NVIDIA B200", "sm_100", 148, 1980, 8000, 126 * 1024),
    "nvidia/nvidia-a40": Gpu("NVIDIA A40", "sm_86", 84, 1740, 696, 6144),
    "nvidia/nvidia-a30": Gpu("NVIDIA A30", "sm_80", 56, 1440, 933, 24 * 1024),
    "nvidia/nvidia-a10": Gpu("NVIDIA A10", "sm_86", 72, 1695, 600, 6144),
    "nvidia/nvidia-a2": Gpu("NVIDIA A2", "sm_86", 10, 1770, 200, 2048),
    "nvidia/nvidia-t4": Gpu("Tesla T4", "sm_75", 40, 1590, 320, 4096),
    "nvidia/rtx-a6000": Gpu("NVIDIA RTX A6000", "sm_86", 84, 1800, 768, 6144),
    "nvidia/quadro-rtx-8000": Gpu("Quadro RTX 8000", "sm_75", 72, 1770, 672, 6144),
    "nvidia/quadro-rtx-6000": Gpu("Quadro RTX 6000", "sm_75", 72, 1770, 672, 6144),
    "nvidia/quadro-rtx-5000": Gpu("Quadro RTX 5000", "sm_75", 48, 1815, 448, 4096),
    "nvidia/quadro-rtx-4000": Gpu("Quadro RTX 4000", "sm_75", 36, 1545, 416, 4096),
    "nvidia/geforce-rtx-5090": Gpu("NVIDIA GeForce RTX 5090", "sm_120", 170, 2407, 1792, 96 * 1024, True),
    "nvidia/geforce-rtx-5060-ti": Gpu("NVIDIA GeForce RTX 5060 Ti", "sm_120", 36, 2572, 448, 32 * 1024, True),
    "nvidia/geforce-rtx-4090": Gpu("NVIDIA GeForce RTX 4090", "sm_89", 128, 2520, 1008, 72 * 1024, True),
    "nvidia/geforce-rtx-3090-ti": Gpu("NVIDIA GeForce RTX 3090 Ti", "sm_86", 84, 1860, 1008, 6144, True),
    "nvidia/geforce-rtx-3090": Gpu("NVIDIA GeForce RTX 3090", "sm_86", 82, 1695, 936, 6144, True),
    "nvidia/geforce-rtx-3080-ti": Gpu("NVIDIA GeForce RTX 3080 Ti", "sm_86", 80, 1665, 912, 6144, True),
    "nvidia/geforce-rtx-3080": Gpu("NVIDIA GeForce RTX 3080", "sm_86", 68, 1710, 760, 5120, True),
    "nvidia/geforce-rtx-3070-ti": Gpu("NVIDIA GeForce RTX 3070 Ti", "sm_86", 48, 1770, 608, 4096, True),
    "nvidia/geforce-rtx-3070": Gpu("NVIDIA GeForce RTX 3070", "sm_86", 46, 1725, 448, 4096, True),
    "nvidia/geforce-rtx-3060": Gpu("NVIDIA GeForce RTX 3060", "sm_86", 28, 1777, 360, 3072, True),
    "nvidia/nvidia-titan-rtx": Gpu("NVIDIA TITAN RTX", "sm_75", 72, 1770, 672, 6144),
    "nvidia/geforce-rtx-2080-ti": Gpu("NVIDIA GeForce RTX 2080 Ti", "sm_75", 68, 1545, 616, 5632, True),
    "nvidia/geforce-rtx-2080": Gpu("NVIDIA GeForce RTX 2080", "sm_75", 46, 1710, 448, 4096, True),
    "nvidia/geforce-rtx-2070": Gpu("NVIDIA GeForce RTX 2070", "sm_75", 36, 1620, 448, 4096, True),
    "nvidia/geforce-rtx-2060": Gpu("NVIDIA GeForce RTX 2060", "sm_75", 30, 1680, 336, 3072, True),
    "nvidia/jetson-agx-orin-64gb": Gpu("Jetson AGX Orin 64GB", "sm_87", 16, 1300, 204.8, 4096),
    "nvidia/jetson-agx-orin-32gb": Gpu("Jetson AGX Orin 32GB", "sm_87", 14, 930, 204.8, 4096),
}
"""By TVM's tags; it has none for the B200 and the RTX 5090."""

OTHER_TAGS: Mapping[str, str] = {
    "nvidia/nvidia-b100": "sm_100",
    "nvidia/nvidia-a10g": "sm_86",
    "nvidia/nvidia-a16": "sm_86",
    "nvidia/rtx-5000": "sm_75",
    "nvidia/rtx-4000": "sm_75",
    "nvidia/rtx-3000": "sm_75",
    "nvidia/t2000": "sm_75",
    "nvidia/t1000": "sm_75",
    "nvidia/jetson-orin-nano": "sm_87",
}
"""TVM's tags of GPUs whose facts are not here; they are compiled for with those of the arch's own."""


class Cuda(Family):
    """NVIDIA's GPUs that nvcc 13.0 compiles for."""

    name = "cuda"
    aliases = ("gpu",)

    def names(self) -> Sequence[str]:
        return (*ARCHS, *GPUS, *OTHER_TAGS)

    def native(self, host: Host, threads: int | None) -> GpuTarget:
        _refuse_threads("cuda", threads)
        found = first_gpu()
        if found.device is not None:
            return _local("cuda", found.device)
        model = GPUS[ARCHS[STAND_IN].gpu].model
        return _target("cuda", STAND_IN, f"target 'cuda' means {STAND_IN}, {model}: {found.why_none}")

    def named(self, name: str, host: Host, threads: int | None) -> GpuTarget:
        _refuse_threads(name, threads)
        device = None if host is NOWHERE else first_gpu().device
        if device is not None and (_arch(device) == name or (name in GPUS and device.name == GPUS[name].model)):
            return _local(name, device)
        return _target(name, name)

    def refusal(self, text: str) -> str:
        old = f"nvcc 13.0 compiles for sm_{OLDEST} and newer"
        if re.fullmatch(r"sm_\d+", text) and compute(text) < OLDEST:
            return f"it is too old: {old}"
        if re.fullmatch(r"(sm|compute)_.*", text):
            return f"allowed are {', '.join(ARCHS)}; JSON may describe a GPU of another arch"
        if re.fullmatch(r"(cuda|gpu)\W.*", text):
            return (
                "cuda alone is this machine's first GPU, of those that CUDA_VISIBLE_DEVICES leaves; others have names, "
                f"such as {STAND_IN} or {ARCHS[STAND_IN].gpu}"
            )
        if text.startswith("nvidia/") and (arch := _tvm_arch(text)):
            why = old if compute(arch) < OLDEST else "this version has no facts of it; describe it in JSON"
            return f"it is of arch {arch}: {why}"
        return ""


FAMILY = Cuda()


def _target(name: str, key: str, notice: str = "") -> GpuTarget:
    """The target for an arch or a GPU of the tables, which is not in this machine."""
    arch = ARCHS[key if key in ARCHS else OTHER_TAGS.get(key) or GPUS[key].arch]
    gpu = GPUS.get(key, GPUS[arch.gpu])
    return GpuTarget(
        name=name,
        model=f"{name.removeprefix('nvidia/')} (facts of {gpu.model})" if key in OTHER_TAGS else gpu.model,
        arch=arch.name,
        sms=gpu.sms,
        clock_mhz=gpu.clock_mhz,
        dram_gbs=gpu.dram_gbs,
        l2_bytes=gpu.l2_kib << 10,
        shared_per_sm=arch.shared_kib << 10,
        shared_per_block=(arch.shared_kib << 10) - _reserved(arch),
        shared_reserved=_reserved(arch),
        registers_per_sm=REGISTERS_PER_SM,
        threads_per_sm=arch.threads,
        blocks_per_sm=arch.blocks,
        fp32_lanes=arch.fp32_lanes,
        fp16_tensor_lanes=arch.tensor_lanes // (2 if gpu.halved else 1),
        is_host=False,
        notice=notice,
    )


def _reserved(arch: Arch) -> int:
    return 1024 if compute(arch.name) >= 80 else 0


def _local(name: str, device: Device) -> GpuTarget:
    """This machine's GPU, as its driver describes it; what the driver does not say is the arch's."""
    arch, has = _arch(device), device.attributes
    if compute(arch) < OLDEST:
        raise TargetError(
            f"target {name!r}: this machine's GPU, {device.name}, is of arch {arch}, and nvcc 13.0 compiles for "
            f"sm_{OLDEST} and newer; name a GPU to compile for"
        )
    known = max((a for a in ARCHS.values() if compute(a.name) <= compute(arch)), key=lambda a: compute(a.name))
    halved = "GeForce" in device.name
    # both edges of the memory's clock; 0 where its memory is the CPU's
    dram_gbs = 2e-6 * has["memory_clock_khz"] * has["memory_bus_bits"] / 8 or GPUS[known.gpu].dram_gbs
    return GpuTarget(
        name=name,
        model=device.name,
        arch=arch,
        sms=has["sms"],
        clock_mhz=has["clock_khz"] // 1000,
        dram_gbs=dram_gbs,
        l2_bytes=has["l2_bytes"],
        shared_per_sm=has["shared_per_sm"],
        shared_per_block=has["shared_per_block"],
        shared_reserved=has["shared_reserved"],
        registers_per_sm=has["registers_per_sm"],
        threads_per_sm=has["threads_per_sm"],
        blocks_per_sm=has["blocks_per_sm"],
        fp32_lanes=known.fp32_lanes,
        fp16_tensor_lanes=known.tensor_lanes // (2 if halved else 1),
        is_host=True,
    )


def _arch(device: Device) -> str:
    return f"sm_{device.attributes['major']}{device.attributes['minor']}"


def _refuse_threads(name: str, threads: int | None) -> None:
    if threads is not None:
        raise TargetError(f"target {name!r}: threads is {threads}; only CPUs have a number of threads to choose")


def _tvm_arch(tag: str) -> str:
    """The arch of a GPU that TVM has a name for; "" where it has none."""
    import tvm

    if tag not in tvm.target.list_tags():
        return ""
    return str(tvm.target.Target(tag).attrs["arch"])
