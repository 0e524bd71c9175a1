"""The canonical string of a spec: short, safe in a shell, and read back to an equal spec.

    grouped,ic=128,oc=128,in=56x56,k=3x3,p=1,g=32,layout=NHWC,bias,act=relu

The variant comes first; then `key=value` or a flag, each at most once. What is the default is left out. Dimensions
are joined by `x`; a dimension's padding is `p`, or `before:after`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from convtune import variants
from convtune.errors import SpecError
from convtune.spec import LAYOUTS, ConvSpec, Dims, Pads

REQUIRED = ("ic", "oc", "in", "k")

_INTEGER = "an integer of up to 10 digits"
_FLAG = "0 or 1"
_PADS = "same, valid, or integers or before:after joined by x"


def render(spec: ConvSpec) -> str:
    """The canonical string; equal specs have equal strings."""
    parts = [spec.variant]
    for key, (field, _, write) in _VALUES.items():
        value = getattr(spec, field)
        if value is not None and (key in REQUIRED or value != _default(field, spec)):
            parts.append(f"{key}={write(value)}")
    parts += [flag for flag, field in _FLAGS.items() if getattr(spec, field)]
    return ",".join(parts)


def parse(text: str) -> ConvSpec:
    """The spec that `text` describes; raises SpecError that points at the place, or UnknownNameError of the variant."""
    variant, *parts = text.strip().split(",")
    variants.get(variant)
    at = text.index(variant) + len(variant) + 1
    fields: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if (not equals and key in _FLAGS) or (equals and key in _VALUES):
            field, read = (_VALUES[key][0], _VALUES[key][1]) if equals else (_FLAGS[key], lambda _: True)
            if field in fields:
                _fail(text, at, f"{key!r} is given twice")
            try:
                fields[field] = read(value)
            except ValueError as error:
                _fail(text, at + len(key) + 1, f"{value!r} is no value for {key!r}; it must be {error}")
        else:
            _fail(text, at, f"{part!r} is not known; allowed are {'=, '.join(_VALUES)}= and {', '.join(_FLAGS)}")
        at += len(part) + 1
    missing = [key for key in REQUIRED if _VALUES[key][0] not in fields]
    if missing:
        _fail(text, len(text), f"{', '.join(missing)} missing; an example is {_example(variant)}")
    try:
        return ConvSpec(variant, **fields)
    except SpecError as error:
        raise SpecError(f"{error}; in {text}") from error


def _example(variant: str) -> str:
    """A spec of the variant, with the first of these windows that it takes."""
    for window in ("k=3x3,p=1", "k=1x1", "k=3x3,p=1,g=32", "k=3x3,p=2,d=2"):
        text = f"{variant},ic=64,oc=64,in=56x56,{window}"
        with contextlib.suppress(SpecError):
            parse(text)
            return text
    raise AssertionError(f"no example of {variant}")


def _fail(text: str, at: int, problem: str) -> NoReturn:
    raise SpecError(f"malformed spec at character {at + 1}: {problem}; in {text[:at]}>>>{text[at:]}")


def _default(field: str, spec: ConvSpec) -> object:
    if field in ("stride", "dilation", "offset_groups"):
        return (1,) * spec.rank if field != "offset_groups" else 1
    joints = len(spec.stages) - 1
    return {
        "batch": 1,
        "padding": ((0, 0),) * spec.rank,
        "groups": spec.in_channels if spec.variant == "depthwise" else 1,
        "layout": LAYOUTS[spec.rank][0],
        "dtype": "float32",
        "activation": None,
        "output_padding": (0,) * spec.rank,
        "channel_multiplier": 1,
        "mid_channels": (spec.out_channels,) * joints,
        "stage_bias": (False,) * joints,
        "stage_activations": (None,) * joints,
    }[field]


def _read_integer(text: str, allowed: str = _INTEGER) -> int:
    # int() reads '1_000', ' 1' and digits of other scripts, too
    if not re.fullmatch("-?[0-9]{1,10}", text):
        raise ValueError(allowed)
    return int(text)


def _read_size(text: str) -> Dims:
    return tuple(_read_integer(part, f"{_INTEGER}, or several joined by x") for part in text.split("x"))


def _read_dims(text: str) -> Dims | int:
    dims = _read_size(text)
    return dims if len(dims) > 1 else dims[0]


def _read_flag(text: str, allowed: str = _FLAG) -> bool:
    if text.lower() not in _FLAG_TEXTS:
        raise ValueError(allowed)
    return _FLAG_TEXTS[text.lower()]


def _write_dims(dims: Dims) -> str:
    return str(dims[0]) if len(set(dims)) == 1 else "x".join(map(str, dims))


def _write_size(dims: Dims) -> str:
    return "x".join(map(str, dims))


def _read_pads(text: str) -> Any:
    if text in ("same", "valid"):
        return text
    pads = [tuple(_read_integer(number, _PADS) for number in part.split(":")) for part in text.split("x")]
    if any(len(pad) > 2 for pad in pads):
        raise ValueError(_PADS)
    entries: list[Any] = [pad if len(pad) == 2 else pad[0] for pad in pads]
    return entries if len(entries) > 1 or not isinstance(entries[0], int) else entries[0]


def _write_pads(pads: Pads) -> str:
    parts = [str(before) if before == after else f"{before}:{after}" for before, after in pads]
    # a lone pair would be read as the padding of a 1-D convolution, so pairs stay one per dimension
    return parts[0] if len(set(parts)) == 1 and ":" not in parts[0] else "x".join(parts)


def _read_flags(text: str) -> tuple[bool, ...] | bool:
    flags = tuple(_read_flag(part, f"{_FLAG}, or several joined by x") for part in text.split("x"))
    return flags if len(flags) > 1 else flags[0]


def _write_flags(flags: Sequence[bool]) -> str:
    return "x".join(str(int(flag)) for flag in flags)


def _read_activation(text: str) -> str | None:
    return None if text == "none" else text


def _read_activations(text: str) -> tuple[str | None, ...] | str | None:
    names = tuple(map(_read_activation, text.split("/")))
    return names if len(names) > 1 else names[0]


def _write_activations(names: Sequence[str | None]) -> str:
    return "/".join(name or "none" for name in names)


_VALUES: dict[str, tuple[str, Callable[[str], Any], Callable[[Any], str]]] = {
    "n": ("batch", _read_integer, str),
    "ic": ("in_channels", _read_integer, str),
    "oc": ("out_channels", _read_integer, str),
    "in": ("in_size", _read_size, _write_size),
    "k": ("kernel", _read_dims, _write_size),
    "s": ("stride", _read_dims, _write_dims),
    "p": ("padding", _read_pads, _write_pads),
    "op": ("output_padding", _read_dims, _write_dims),
    "d": ("dilation", _read_dims, _write_dims),
    "g": ("groups", _read_integer, str),
    "og": ("offset_groups", _read_integer, str),
    "m": ("channel_multiplier", _read_integer, str),
    "mid": ("mid_channels", _read_dims, _write_dims),
    "sbias": ("stage_bias", _read_flags, _write_flags),
    "sact": ("stage_activations", _read_activations, _write_activations),
    "layout": ("layout", str, str),
    "dtype": ("dtype", str, str),
    "act": ("activation", _read_activation, str),
}
_FLAG_TEXTS = {"0": False, "1": True, "false": False, "true": True}
_FLAGS = {"modulated": "modulated", "bias": "bias", "residual": "residual"}

FIELD_READERS: Mapping[str, Callable[[str], Any]] = {
    **{field: read for field, read, _ in _VALUES.values()},
    **dict.fromkeys(_FLAGS.values(), _read_flag),
}
"""For each field of ConvSpec but the variant what reads its text; it raises ValueError of what is allowed."""
