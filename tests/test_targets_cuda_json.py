"""A GPU described in JSON: what is impossible or contradicts itself is refused in one line."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from convtune import targets
from convtune.errors import TargetError
from convtune.targets import GpuTarget
from convtune.targets.gpu import FACTS


def gpu(text: str) -> GpuTarget:
    target = targets.resolve(text)
    assert isinstance(target, GpuTarget)
    return target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"family": "cuda", "sms": 4}', "arch is missing"),
        ('{"arch": 80}', "arch is 80; allowed: a string"),
        ('{"arch": "ampere"}', "target 'ampere': arch is 'ampere'; allowed: sm_ and a number"),
        ('{"arch": "sm_61"}', "target 'sm_61': arch is 'sm_61'; nvcc 13.0 compiles for sm_75 and newer"),
        ('{"arch": "sm_90b"}', "arch is 'sm_90b'; allowed: sm_ and a number"),
        ('{"arch": ""}', "arch is ''; allowed: sm_ and a number"),
        ('{"arch": "sm_80", "mcpu": "znver4"}', "unknown field 'mcpu'; allowed: name, family, model, arch, sms"),
        ('{"arch": "sm_80", "family": "x86"}', "family is 'x86'; allowed for an arch: 'cuda'"),
        ('{"arch": "sm_80", "sms": 0}', "sms is 0; allowed: 1 to 4096"),
        ('{"arch": "sm_80", "sms": 2.5}', "sms is 2.5; allowed: a whole number"),
        ('{"arch": "sm_80", "dram_gbs": "fast"}', "dram_gbs is 'fast'; allowed: a number"),
        ('{"arch": "sm_80", "dram_gbs": true}', "dram_gbs is True; allowed: a number"),
        ('{"arch": "sm_80", "dram_gbs": NaN}', "dram_gbs is nan; allowed: 1 to 1000000"),
        ('{"arch": "sm_80", "model": ""}', "model is empty"),
        ('{"arch": "sm_80", "model": "two\\nlines"}', r"model is 'two\nlines'; allowed: one line"),
        ('{"mcpu": "znver4", "name": "two\\nlines"}', r"name is 'two\nlines'; allowed: one line"),
        ('{"arch": "sm_80", "sms": 100000}', "sms is 100000; allowed: 1 to 4096"),
        ('{"arch": "sm_80", "registers_per_sm": 64}', "registers_per_sm is 64; allowed: 32768 to 1048576"),
        ('{"arch": "sm_80", "threads_per_sm": 1}', "threads_per_sm is 1; allowed: 32 to 16384"),
        ('{"arch": "sm_80", "threads_per_sm": 48}', "threads_per_sm is 48; allowed: multiples of 32"),
        (
            '{"arch": "sm_80", "shared_per_sm": 65536}',
            "shared_per_block is 166912; allowed: up to shared_per_sm, 65536, without shared_reserved, 1024",
        ),
        ('{"sms": 4}', "unknown field 'sms'; allowed: name, family, model, mcpu"),
    ],
)
def test_unusable_json(text: str, message: str) -> None:
    with pytest.raises(TargetError, match=re.escape(message)):
        targets.resolve(text)


def test_an_old_arch_is_refused_whatever_its_facts() -> None:
    facts = {fact: getattr(gpu("sm_75"), fact) for fact in FACTS}
    with pytest.raises(TargetError, match=r"arch is 'sm_61'; nvcc 13.0 compiles for sm_75 and newer"):
        targets.resolve(json.dumps({"arch": "sm_61", **facts}))


def test_an_arch_with_a_suffix_has_the_facts_of_the_one_without() -> None:
    suffixed, plain = gpu('{"arch": "sm_90a"}'), gpu("sm_90")
    assert (suffixed.name, suffixed.arch) == ("sm_90a", "sm_90a")
    assert [getattr(suffixed, fact) for fact in FACTS] == [getattr(plain, fact) for fact in FACTS]


def test_an_impossible_arch_is_an_error() -> None:
    with pytest.raises(TargetError, match=r"arch is 'ampere'; allowed: sm_ and a number"):
        dataclasses.replace(gpu("sm_80"), arch="ampere")
