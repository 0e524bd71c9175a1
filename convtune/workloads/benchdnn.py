"""Reads the problem strings of oneDNN's benchdnn, such as `mb1ic64ih56oc64oh56kh3ph1n"resnet:3x3"`.

The grammar and the rules for what is left out are those of benchdnn's convolution driver (oneDNN,
tests/benchdnn/doc/driver_conv.md and tests/benchdnn/conv/conv_aux.cpp): settings in any order, `_` ignored, the name
last; `mb` is 2 and strides are 1 by default; dilation counts from 0; depth alone means a cube, height alone a square,
width alone one dimension; a missing output follows from the padding, a missing padding from the output, and the
padding after each dimension from both.
"""

from __future__ import annotations

import re
from typing import NoReturn

from convtune.errors import SpecError
from convtune.workloads.plain import plain_spec
from convtune.workloads.workload import Workload, located

_KEY = "g|mb|ic|oc|[iokspd][dhw]"
_SETTING = re.compile(rf"({_KEY})([0-9]*)")
_BEGINNING = re.compile(rf"_*({_KEY})[0-9]+_*({_KEY})")

Dimension = dict[str, int]  # attribute to value, only those given


def matches(text: str) -> bool:
    """Whether the text is meant as a problem string: it begins with a setting, and another's key."""
    return bool(_BEGINNING.match(text))


def parse(text: str) -> Workload:
    """The workload of a problem string; raises SpecError that points at the place."""
    settings, name = _settings(text)
    for required in ("ic", "oc"):
        if required not in settings:
            _fail(text, len(text), f"{required} is missing")
    with located(f"benchdnn problem {text!r}"):
        dimensions = [_complete(axis, dimension) for axis, dimension in _dimensions(settings)]
        spec = plain_spec(
            groups=settings.get("g", 1),
            in_channels=settings["ic"],
            out_channels=settings["oc"],
            batch=settings.get("mb", 2),
            in_size=tuple(d["i"] for d in dimensions),
            kernel=[d["k"] for d in dimensions],
            stride=tuple(d["s"] for d in dimensions),
            dilation=[d["d"] for d in dimensions],
            padding=tuple((d["before"], d["after"]) for d in dimensions),
        )
    return Workload(name or text, spec)


def _settings(text: str) -> tuple[dict[str, int], str]:
    settings: dict[str, int] = {}
    at = 0
    while at < len(text):
        if text[at] == "_":
            at += 1
            continue
        if text[at] == "n":
            return settings, text[at + 1 :].strip("\"'")
        match = _SETTING.match(text, at)
        if match is None:
            _fail(text, at, "no setting begins here; settings are g, mb, ic, oc and i, o, k, s, p, d with d, h or w")
        key, value = match.groups()
        if not value:
            _fail(text, match.end(), f"{key!r} has no number")
        if key in settings:
            _fail(text, at, f"{key!r} is given twice")
        settings[key] = int(value)
        at = match.end()
    return settings, ""


def _dimensions(settings: dict[str, int]) -> list[tuple[str, Dimension]]:
    """The dimensions that are there, outermost first, with what was given of each."""
    d, h, w = (_given(settings, axis) for axis in "dhw")
    if d and not h and not w:
        return [("d", d)] * 3
    if d or (h and w):
        return [("d", d)] * bool(d) + [("h", h), ("w", w)]
    if h:
        return [("h", h)] * 2
    if w:
        return [("w", w)]
    raise SpecError("no spatial size is given; give ih, or ih and iw, or iw alone for one dimension")


def _given(settings: dict[str, int], axis: str) -> Dimension:
    """What was given of a dimension; nothing where all of it says that there is none, as `sd1pd0` does."""
    given = {a: settings[a + axis] for a in "iokspd" if a + axis in settings}
    return given if any(value > (a == "s") for a, value in given.items()) else {}


def _complete(axis: str, given: Dimension) -> Dimension:
    for required in "iks":
        if given.get(required, 1 if required == "s" else 0) < 1:
            raise SpecError(f"{required}{axis} is missing or 0; it must be at least 1")
    size, stride, dilation = given["i"], given.get("s", 1), given.get("d", 0) + 1
    span = (given["k"] - 1) * dilation + 1
    out = given.get("o") or _out(size, span, stride, given.get("p", 0))
    needed = (out - 1) * stride + span - size
    before = given.get("p", int(needed / 2))  # rounded to zero, as in C
    # elements that no window reaches are not cut away: equal convolutions are to have equal specs
    after = before if _out(size, span, stride, before) == out else needed - before
    return {"i": size, "k": given["k"], "s": stride, "d": dilation, "before": before, "after": after}


def _out(size: int, span: int, stride: int, padding: int) -> int:
    return (size - span + 2 * padding) // stride + 1


def _fail(text: str, at: int, problem: str) -> NoReturn:
    raise SpecError(f"malformed benchdnn problem at character {at + 1}: {problem}; in {text[:at]}>>>{text[at:]}")
