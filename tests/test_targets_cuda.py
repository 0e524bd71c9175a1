"""GPUs as targets: their names, this machine's, JSON, and that their facts agree with TVM's and NVIDIA's."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from convtune import targets
from convtune.errors import TargetError, UnknownNameError
from convtune.targets import GpuTarget, cuda, cuda_driver
from convtune.targets.gpu import FACTS, OLDEST

NOWHERE = cuda_driver.Found(None, "there is none")


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own GPU, if it has one, is not what is tested."""
    monkeypatch.setattr(cuda, "first_gpu", lambda: NOWHERE)


def gpu(text: str) -> GpuTarget:
    target = targets.resolve(text)
    assert isinstance(target, GpuTarget)
    return target


# ---- names -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", cuda.ARCHS)
def test_an_arch_is_a_gpu_of_that_arch(arch: str) -> None:
    target = gpu(arch)
    assert (target.name, target.arch, target.family, target.is_host) == (arch, arch, "cuda", False)
    assert target.model in [known.model for known in cuda.GPUS.values() if known.arch == arch]
    assert target.notice == ""
    assert "not this machine" in target.why_not_here()


@pytest.mark.parametrize("text", ["cuda", "gpu"])
def test_cuda_without_a_gpu_is_an_a100_and_says_so(text: str) -> None:
    target = gpu(text)
    assert (target.name, target.arch, target.is_host) == ("cuda", "sm_80", False)
    assert "sm_80" in target.notice and "there is none" in target.notice and "\n" not in target.notice
    assert target.fingerprint == gpu("sm_80").fingerprint == gpu("nvidia/nvidia-a100").fingerprint


def test_tvms_tags_are_these_gpus_or_refused_in_a_line() -> None:
    import tvm

    unknown = set()
    for tag in map(str, tvm.target.list_tags()):
        theirs = tvm.target.Target(tag)
        if theirs.kind.name != "cuda":
            continue
        arch = str(theirs.attrs["arch"]).rstrip("af")
        try:
            target = gpu(tag)
        except TargetError as refusal:
            assert f"target {tag!r}: it is of arch {arch}" in str(refusal) and "\n" not in str(refusal)
            unknown |= {arch} if int(arch[3:]) >= OLDEST else set()
            continue
        assert (target.name, target.arch) == (tag, arch)
        if "l2_cache_size_bytes" in theirs.attrs and "facts of" not in target.model:
            assert target.l2_bytes == theirs.attrs["l2_cache_size_bytes"], tag
    assert unknown == {"sm_110"}


def test_a_gpu_without_facts_of_its_own_says_whose_it_has() -> None:
    target = gpu("nvidia/nvidia-a10g")
    assert target.model == "nvidia-a10g (facts of NVIDIA GeForce RTX 3090)"
    assert target.fingerprint != gpu("sm_86").fingerprint


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("sm_52", TargetError, "target 'sm_52': it is too old: nvcc 13.0 compiles for sm_75 and newer"),
        ("sm_999", TargetError, "target 'sm_999': allowed are sm_75, sm_80, "),
        ("sm_90a", TargetError, "target 'sm_90a': allowed are sm_75, sm_80, "),
        ("compute_80", TargetError, "target 'compute_80': allowed are sm_75"),
        ("cuda:1", TargetError, "target 'cuda:1': cuda alone is this machine's first GPU, of those that CUDA_VISIBLE_"),
        ("cuda -arch=sm_80", TargetError, "cuda alone is this machine's first GPU"),
        ("nvidia/tesla-k80", TargetError, "it is of arch sm_37: nvcc 13.0 compiles for sm_75 and newer"),
        ("nvidia/nvidia-v100", TargetError, "it is of arch sm_70: nvcc 13.0 compiles for sm_75 and newer"),
        ("nvidia/geforce-rtx-4080-super", UnknownNameError, "near it: nvidia/geforce-rtx-"),
        ("cuad", UnknownNameError, "unknown target 'cuad'; near it: cuda"),
    ],
)
def test_what_is_no_gpu_here(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)) as caught:
        targets.resolve(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["cuda", "sm_86", '{"arch": "sm_86"}'])
def test_a_gpu_has_no_number_of_threads(text: str) -> None:
    with pytest.raises(TargetError, match="threads is 4; only CPUs have"):
        targets.resolve(text, threads=4)


def test_known_lists_gpus_once() -> None:
    names = [target.name for target in targets.known()]
    assert len(names) == len(set(names))
    assert {"cuda", "sm_75", "sm_90", "nvidia/nvidia-h100", "nvidia/geforce-rtx-4090"} <= set(names)


# ---- this machine's ----------------------------------------------------------------------------------

DRIVER = """
#include <string.h>
#ifndef INIT
#define INIT 0
#endif
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGet(int *device, int ordinal) { *device = 7; return ordinal; }
int cuDriverGetVersion(int *version) { *version = 13000; return 0; }
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, NAME, length);
    return device != 7;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
        case 13: *value = 1740000; break;
        case 16: *value = 46; break;
        case 36: *value = MEMORY_KHZ; break;
        case 37: *value = 256; break;
        case 38: *value = 4194304; break;
        case 39: *value = 1536; break;
        case 75: *value = MAJOR; break;
        case 76: *value = MINOR; break;
        case 81: *value = 102400; break;
        case 82: *value = 65536; break;
        case 97: *value = 101376; break;
        case 106: *value = 16; break;
        case 111: *value = 1024; break;
        default: return 1;
    }
    return device != 7;
}
"""


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes a libcuda of these constants the machine's driver."""

    def make(**constants: Any) -> None:
        known = {"NAME": '"NVIDIA GeForce RTX 3070"', "MAJOR": 8, "MINOR": 6, "MEMORY_KHZ": 7001000} | constants
        source = tmp_path / "driver.c"
        source.write_text(DRIVER)
        library = tmp_path / f"libcuda-{len(list(tmp_path.iterdir()))}.so"
        defines = [f"-D{name}={value}" for name, value in known.items()]
        subprocess.run(["cc", "-shared", "-fPIC", *defines, "-o", library, source], check=True)
        monkeypatch.setattr(cuda, "first_gpu", lambda: cuda_driver.first_gpu(str(library)))

    return make


def test_the_gpu_at_hand_is_as_its_driver_says(driver: Any) -> None:
    driver()
    target = gpu("cuda")
    assert (target.name, target.model, target.arch, target.notice) == ("cuda", "NVIDIA GeForce RTX 3070", "sm_86", "")
    assert (target.is_host, target.sms, target.clock_mhz, target.l2_bytes) == (True, 46, 1740, 4 << 20)
    assert target.dram_gbs == pytest.approx(448, abs=0.1)  # the datasheet's
    table = gpu("nvidia/geforce-rtx-3090")
    same = [fact for fact in FACTS if fact not in ("sms", "clock_mhz", "dram_gbs", "l2_bytes")]
    assert [getattr(target, fact) for fact in same] == [getattr(table, fact) for fact in same]
    assert [known.name for known in targets.known() if known.is_host and known.family == "cuda"] == [
        *("cuda", "sm_86", "nvidia/geforce-rtx-3070")
    ]


def test_the_gpu_at_hand_is_also_its_arch_and_its_name(driver: Any) -> None:
    driver()
    for name in ("sm_86", "nvidia/geforce-rtx-3070"):
        assert (gpu(name).name, gpu(name).fingerprint) == (name, gpu("cuda").fingerprint)
    assert not gpu("sm_80").is_host
    assert not gpu("nvidia/geforce-rtx-3080").is_host


def test_a_newer_gpu_than_this_version_knows_has_the_lanes_of_the_newest_older_one(driver: Any) -> None:
    driver(NAME='"NVIDIA GB10"', MAJOR=12, MINOR=1, MEMORY_KHZ=0)
    target = gpu("cuda")
    assert (target.arch, target.compute, target.fp32_lanes, target.fp16_tensor_lanes) == ("sm_121", 121, 128, 512)
    assert target.dram_gbs == gpu("sm_120").dram_gbs, "the driver does not say"


def test_a_gpu_too_old_is_refused_and_others_are_not(driver: Any) -> None:
    driver(NAME='"Tesla V100-SXM2-16GB"', MAJOR=7, MINOR=0)
    with pytest.raises(TargetError, match=r"Tesla V100-SXM2-16GB, is of arch sm_70, and nvcc 13.0 .* name a GPU"):
        targets.resolve("cuda")
    assert not gpu("sm_75").is_host
    assert "cuda" not in [target.name for target in targets.known()]


@pytest.mark.parametrize(
    ("code", "why"), [(100, "the driver sees no GPU"), (999, "the NVIDIA driver fails: cuInit gives error 999")]
)
def test_a_driver_without_a_gpu_is_told(driver: Any, code: int, why: str) -> None:
    driver(INIT=code)
    assert gpu("cuda").arch == "sm_80"
    assert why.removeprefix("the driver") in gpu("cuda").notice


def test_a_driver_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "libcuda.so").write_text("not a library")
    for path in (tmp_path / "libcuda.so", tmp_path / "absent.so"):
        found = cuda_driver.first_gpu(str(path))
        assert found.device is None and "no NVIDIA driver" in found.why_none


# ---- facts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "fp32_tflops", "tensor_tflops"),
    [
        ("nvidia/nvidia-a100", 19.5, 312),
        ("nvidia/nvidia-a30", 10.3, 165),
        ("nvidia/nvidia-a40", 37.4, 149.7),
        ("nvidia/nvidia-a10", 31.2, 125),
        ("nvidia/nvidia-a2", 4.5, 18),
        ("nvidia/nvidia-t4", 8.1, 65),
        ("nvidia/rtx-a6000", 38.7, 154.8),
        ("nvidia/quadro-rtx-6000", 16.3, 130.5),
        ("nvidia/geforce-rtx-2080-ti", 13.4, 53.8),
        ("nvidia/geforce-rtx-3070", 20.3, 40.6),
        ("nvidia/geforce-rtx-3080", 29.8, 59.5),
        ("nvidia/geforce-rtx-3090", 35.6, 71),
        ("nvidia/geforce-rtx-4090", 82.6, 165.2),
        ("nvidia/geforce-rtx-5090", 104.8, 209.5),
        ("nvidia/jetson-agx-orin-64gb", 5.3, 42.5),
    ],
)
def test_peaks_are_those_of_the_datasheets(name: str, fp32_tflops: float, tensor_tflops: float) -> None:
    """Of float32, and of dense float16 with float32 sums: these follow from SMs, clock and lanes."""
    assert gpu(name).fp32_gflops / 1e3 == pytest.approx(fp32_tflops, rel=0.01)
    assert gpu(name).tensor_gflops / 1e3 == pytest.approx(tensor_tflops, rel=0.01)


OCCUPANCY = """
#include <climits>
#include <cuda_occupancy.h>
extern "C" int resident_blocks(int major, int minor, int threads_per_sm, int shared_per_sm, int shared_per_block,
                               int reserved, int threads, int registers, int shared) {
    cudaOccDeviceProp device;
    device.computeMajor = major; device.computeMinor = minor;
    device.maxThreadsPerBlock = 1024; device.maxThreadsPerMultiprocessor = threads_per_sm;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536; device.warpSize = 32;
    device.sharedMemPerBlock = 49152; device.sharedMemPerMultiprocessor = shared_per_sm; device.numSms = 1;
    device.sharedMemPerBlockOptin = shared_per_block; device.reservedSharedMemPerBlock = reserved;
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = INT_MAX; kernel.numRegs = registers; kernel.sharedSizeBytes = 0;
    kernel.partitionedGCConfig = PARTITIONED_GC_OFF; kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.maxDynamicSharedSizeBytes = INT_MAX; kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    int error = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, shared);
    return error ? -error : result.activeBlocksPerMultiprocessor;
}
"""


@pytest.fixture(scope="module")
def occupancy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """NVIDIA's occupancy calculator, of the CUDA toolkit at hand."""
    import ctypes

    from convtune.cuda import toolkit

    try:
        found = toolkit.find()
    except TargetError as why:
        pytest.skip(f"no CUDA toolkit: {why}")
    home = tmp_path_factory.mktemp("occupancy")
    (home / "occupancy.cpp").write_text(OCCUPANCY)
    command = [found.nvcc, "-shared", "-w", "-Xcompiler", "-fPIC", "-cudart", "none", "-ccbin", found.host_compiler]
    done = subprocess.run(
        [*command, "-o", home / "occupancy.so", home / "occupancy.cpp"], capture_output=True, text=True, check=False
    )
    if "cuda_occupancy.h" in done.stderr:
        pytest.skip("this CUDA toolkit has no cuda_occupancy.h")
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(home / "occupancy.so"))


@pytest.mark.parametrize("arch", cuda.ARCHS)
def test_resident_blocks_are_those_of_nvidias_calculator(occupancy: Any, arch: str) -> None:
    target = gpu(arch)
    facts = [*divmod(target.compute, 10), target.threads_per_sm, target.shared_per_sm]
    facts += [target.shared_per_block, target.shared_reserved]
    for threads in (1, 32, 33, 96, 128, 160, 256, 384, 512, 768, 1024):
        for registers in (16, 31, 32, 40, 64, 65, 96, 128, 168, 255):
            for shared in (0, 1, 1000, 4096, 8191, 16384, 33000, 49152, target.shared_per_block):
                theirs = occupancy.resident_blocks(*facts, threads, registers, shared)
                ours = target.resident_blocks(threads, registers, shared)
                assert ours == theirs, (threads, registers, shared)


def test_a_block_that_fits_no_sm_is_not_resident() -> None:
    target = gpu("sm_86")
    assert target.resident_blocks(1056, 32, 0) == 0
    assert target.resident_blocks(256, 256, 0) == 0
    assert target.resident_blocks(256, 32, target.shared_per_block + 1) == 0
    assert target.resident_blocks(1024, 128, 0) == 0, "128 registers of 1024 threads are twice an SM's"


@pytest.mark.parametrize("name", [*cuda.ARCHS, "cuda", "nvidia/nvidia-a10g"])
def test_tvm_gets_the_arch(name: str) -> None:
    target = gpu(name)
    theirs = target.to_tvm()
    assert (theirs.kind.name, theirs.attrs["arch"]) == ("cuda", target.arch)
    assert theirs.attrs["max_shared_memory_per_block"] == target.shared_per_block


def test_the_documented_tables_are_these() -> None:
    text = (Path(__file__).parent.parent / "docs/targets.md").read_text()
    for name in cuda.GPUS:
        t = gpu(name)
        size = f"{t.sms} | {t.clock_mhz} | {t.dram_gbs:g} | {t.l2_bytes / 2**20:g}"
        peaks = f"{t.fp32_gflops / 1e3:.1f} | {t.tensor_gflops / 1e3:.1f}"
        assert f"\n| `{name}` | {t.arch} | {size} | {peaks} |\n" in text, name
    for arch in cuda.ARCHS.values():
        limits = f"{arch.shared_kib} | {arch.threads} | {arch.blocks} | {arch.fp32_lanes} | {arch.tensor_lanes}"
        assert f"\n| `{arch.name}` | {gpu(arch.name).model} | {limits} |\n" in text, arch.name
    assert all(f"`{tag}`" in text for tag in cuda.OTHER_TAGS)


def test_fingerprints_tell_facts_apart() -> None:
    documents = [{"arch": "sm_86"}, {"arch": "sm_86", "sms": 10}, {"arch": "sm_86", "model": "mine"}, {"arch": "sm_89"}]
    assert len({gpu(json.dumps(document)).fingerprint for document in documents}) == 4


# ---- JSON --------------------------------------------------------------------------------------------


def test_json_with_a_known_arch_changes_what_it_names() -> None:
    target = gpu('{"arch": "sm_86", "name": "laptop", "sms": 20, "dram_gbs": 192, "model": "RTX 3050 Mobile"}')
    assert (target.name, target.model, target.sms, target.dram_gbs) == ("laptop", "RTX 3050 Mobile", 20, 192.0)
    assert (target.l2_bytes, target.family, target.is_host) == (gpu("sm_86").l2_bytes, "cuda", False)
    assert gpu('{"arch": "sm_86"}').model == "a GPU of sm_86, described in JSON"


def test_json_of_an_arch_that_has_no_name_here_needs_all_facts(tmp_path: Path) -> None:
    facts = {fact: getattr(gpu("sm_100"), fact) for fact in FACTS}
    path = tmp_path / "thor.json"
    path.write_text(json.dumps({"arch": "sm_110", **facts}))
    assert (gpu(str(path)).arch, gpu(str(path)).compute) == ("sm_110", 110)
    with pytest.raises(TargetError, match=r"target 'sm_110': missing sms, .*; only known GPU archs need not"):
        targets.resolve('{"arch": "sm_110"}')


def test_json_without_a_model_is_the_gpu_at_hand_where_the_arch_is_its(driver: Any) -> None:
    driver()
    here = gpu('{"arch": "sm_86"}')
    assert (here.model, here.is_host, here.sms) == ("NVIDIA GeForce RTX 3070", True, 46)
    assert not gpu('{"arch": "sm_86", "model": "another"}').is_host
    assert not gpu('{"arch": "sm_80"}').is_host
