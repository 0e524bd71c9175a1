"""The parts of a record that are objects or texts of their own, checked: target, resources, versions, times of day."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from typing import Any

from convtune.errors import LogError

RESOURCES = ("registers", "spill_stores_bytes", "spill_loads_bytes", "stack_bytes", "shared_bytes")
_UTC = re.compile(r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])T([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{6}Z", re.ASCII)
_TARGET_TEXTS = ("name", "family", "model", "fingerprint")
_CPU_FACTS, _GPU_FACTS = ("mcpu", ("vector_bytes", "threads")), ("arch", ("sms", "clock_mhz", "l2_bytes"))
"""A text and counts that a record has of its target besides: of a GPU's where the family is "cuda"."""


def check_target(target: Any) -> None:
    if not isinstance(target, Mapping):
        raise LogError(f"target={short(target)} is not an object")
    text, counts = _GPU_FACTS if target.get("family") == "cuda" else _CPU_FACTS
    for name in (*_TARGET_TEXTS, text):
        if not (isinstance(target.get(name), str) and target[name]):
            raise LogError(f"target.{name}={short(target.get(name))} must be a string, and not empty")
    for name in counts:
        if not (is_int(target.get(name)) and target[name] >= 1):
            raise LogError(f"target.{name}={short(target.get(name))} must be an integer of at least 1")


def check_resources(resources: Any) -> None:
    if not isinstance(resources, Mapping):
        raise LogError(f"resources={short(resources)} is not an object")
    for kernel, found in resources.items():
        if not isinstance(found, Mapping):
            raise LogError(f"resources of {short(kernel)}={short(found)} is not an object")
        for name in {**dict.fromkeys(RESOURCES), **found}:
            if not (is_int(found.get(name)) and found[name] >= 0):
                raise LogError(
                    f"resources of {short(kernel)}: {name}={short(found.get(name))} must be an integer of at least 0"
                )


def check_versions(versions: Any) -> None:
    if not isinstance(versions, Mapping) or not {"convtune", "tvm"} <= versions.keys():
        raise LogError(f"versions={short(versions)} must name convtune and tvm")
    for name, version in versions.items():
        if not isinstance(version, str):
            raise LogError(f"versions.{name}={short(version)} is not a string")


def check_utc(name: str, value: Any) -> None:
    if not (isinstance(value, str) and _UTC.fullmatch(value)):
        raise LogError(f"{name}={short(value)} is no time such as 2026-01-31T23:59:59.000000Z")


def is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    # comparing refuses NaN, infinities and integers that no float holds
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:79] + "…"
