"""The canonical string: equal specs have equal strings, and every string reads back or says where it is wrong."""

from __future__ import annotations

import contextlib
import re
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs

from convtune import ConvSpec, variants
from convtune.errors import ConvtuneError, SpecError, UnknownNameError


@given(specs())
def test_round_trip(spec: ConvSpec) -> None:
    text = str(spec)
    assert ConvSpec.parse(text) == spec
    assert str(ConvSpec.parse(text)) == text


@given(specs())
def test_safe_in_a_shell(spec: ConvSpec) -> None:
    text = str(spec)
    assert shlex.split(text) == [text]
    assert re.fullmatch(r"[A-Za-z0-9_,=:x-]+", text)
    assert shlex.quote(text).strip("'") == text


@given(specs(), specs())
def test_different_specs_have_different_strings(one: ConvSpec, other: ConvSpec) -> None:
    assert (str(one) == str(other)) == (one == other)


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("conv,ic=64,oc=32,in=56x57,k=3x3", ConvSpec("conv", 64, 32, (56, 57), 3)),
        (
            "grouped,ic=128,oc=128,in=56x56,k=3x3,p=1,g=32,layout=NHWC,act=relu,bias",
            ConvSpec(
                "grouped", 128, 128, (56, 56), 3, padding=1, groups=32, layout="NHWC", activation="relu", bias=True
            ),
        ),
        ("depthwise,ic=8,oc=16,in=99,k=4,p=3:0", ConvSpec("depthwise", 8, 16, 99, 4, padding=((3, 0),))),
        ("conv,ic=1,oc=1,in=9x9,k=3x3,p=1:2x1:2", ConvSpec("conv", 1, 1, (9, 9), 3, padding=((1, 2), (1, 2)))),
        (
            "dilated,n=2,ic=1,oc=1,in=9x9x9,k=1x2x3,s=1x2x2,p=0x1x0:-1,d=1x2x1,residual",
            ConvSpec(
                "dilated",
                1,
                1,
                (9, 9, 9),
                (1, 2, 3),
                batch=2,
                stride=(1, 2, 2),
                padding=(0, 1, (0, -1)),
                dilation=(1, 2, 1),
                residual=True,
            ),
        ),
    ],
)
def test_golden(text: str, spec: ConvSpec) -> None:
    assert str(spec) == text
    assert ConvSpec.parse(text) == spec


@pytest.mark.parametrize(
    "text",
    [
        "conv,oc=2,ic=1,k=3x3,in=9x9",  # any order
        "conv,ic=1,oc=2,in=9x9,k=3",  # one for all dimensions
        "conv,n=1,ic=1,oc=2,in=9x9,k=3,s=1,p=0,d=1,g=1,layout=NCHW,dtype=float32",  # defaults
        "conv,ic=1,oc=2,in=9x9,k=3x3,p=valid",
        " conv,ic=1,oc=2,in=9x9,k=3x3\n",
    ],
)
def test_other_spellings(text: str) -> None:
    assert str(ConvSpec.parse(text)) == "conv,ic=1,oc=2,in=9x9,k=3x3"


def test_no_activation_is_none_as_between_stages() -> None:
    assert ConvSpec.parse("conv,ic=1,oc=2,in=9,k=3,act=none") == ConvSpec("conv", 1, 2, 9, 3, activation=None)
    with pytest.raises(SpecError, match=r"activation='None' is not allowed; it must be one of None \(in text: none\)"):
        ConvSpec.parse("conv,ic=1,oc=2,in=9,k=3,act=None")


def test_same_padding_is_written_out() -> None:
    spec = ConvSpec.parse("conv,ic=1,oc=2,in=8x9,k=3x3,s=2,p=same")
    assert str(spec) == "conv,ic=1,oc=2,in=8x9,k=3x3,s=2,p=0:1x1"


@pytest.mark.parametrize(
    ("text", "at", "problem"),
    [
        ("conv,ic=64,oc=x,in=9,k=3", ">>>x,in=9", "'x' is no value for 'oc'; it must be an integer of up to 10 digits"),
        ("conv,ic=64,oc=,in=9,k=3", ">>>,in=9", "'' is no value for 'oc'"),
        ("conv,ic=1_0,oc=4,in=9,k=3", ">>>1_0", "'1_0' is no value for 'ic'"),
        ("conv,ic=١,oc=4,in=9,k=3", ">>>١", "no value for 'ic'"),
        ("conv,ic=4,oc=4,in=9x,k=3", ">>>9x,k", "of up to 10 digits, or several joined by x"),
        ("conv,ic=4,oc=4,in=9,k=3,p=1:2:3", ">>>1:2:3", "no value for 'p'"),
        ("conv,ic=4,oc=4,in=9,k=3,p=full", ">>>full", "same, valid, or integers or before:after joined by x"),
        ("conv,ic=4,oc=4,in=9,k=3,q=1", ">>>q=1", "'q=1' is not known; allowed are n=, ic=, oc="),
        ("conv,ic=4, oc=4,in=9,k=3", ">>> oc=4", "' oc=4' is not known"),
        ("conv,ic=4,ic=4,oc=4,in=9,k=3", ">>>ic=4,oc", "'ic' is given twice"),
        ("conv,ic=4,oc=4,in=9,k=3,bias,bias", "bias,>>>bias", "'bias' is given twice"),
        ("conv,ic=4,oc=4,in=9,k=3,bias=1", ">>>bias=1", "'bias=1' is not known"),
        ("conv,ic=4,oc=4,in=9,k=3,,bias", ">>>,bias", "'' is not known"),
        ("conv,ic=4,oc", "ic=4,>>>oc", "'oc' is not known"),
        ("conv,ic=4,in=9", "in=9>>>", "oc, k missing; an example is conv,ic=64,oc=64,in=56x56,k=3x3,p=1"),
        ("conv", "conv>>>", "ic, oc, in, k missing"),
    ],
)
def test_the_place_of_what_is_malformed(text: str, at: str, problem: str) -> None:
    with pytest.raises(SpecError) as raised:
        ConvSpec.parse(text)
    message = str(raised.value)
    assert problem in message
    assert at in message
    assert f"at character {message.rsplit('; in ', 1)[1].index('>>>') + 1}:" in message


@pytest.mark.parametrize("variant", variants.known())
def test_the_example_is_of_the_variant(variant: str) -> None:
    with pytest.raises(SpecError, match=rf"oc, in, k missing; an example is {variant},") as raised:
        ConvSpec.parse(f"{variant},ic=7")
    example = str(raised.value).partition("; an example is ")[2].partition("; in ")[0]
    assert ConvSpec.parse(example).variant == variant


def test_what_the_spec_refuses_is_shown_in_its_text() -> None:
    text = "grouped,ic=64,oc=64,in=9x9,k=3x3,g=3"
    with pytest.raises(SpecError, match=re.escape(f"groups=3 does not divide in_channels=64; in {text}")):
        ConvSpec.parse(text)


@pytest.mark.parametrize("text", ["cnov,ic=1", "cnov", "", ",", "=", "Conv,ic=1,oc=1,in=1,k=1"])
def test_unknown_variants(text: str) -> None:
    with pytest.raises(UnknownNameError, match="unknown variant"):
        ConvSpec.parse(text)


PIECES = st.sampled_from(["conv", "depthwise", ",", "=", "ic", "oc", "in", "k", "p", "1", "3x3", ":", "-", "bias", " "])


@given(st.one_of(st.text(), st.lists(PIECES).map("".join), st.lists(PIECES).map(lambda p: "conv," + "".join(p))))
def test_whatever_the_text_it_is_read_or_refused_in_one_line(text: str) -> None:
    try:
        assert isinstance(ConvSpec.parse(text), ConvSpec)
    except ConvtuneError as error:
        assert len(str(error)) > 10


@given(specs(), st.data())
def test_a_string_with_a_character_less_is_refused_or_another_spec(spec: ConvSpec, data: st.DataObject) -> None:
    text = str(spec)
    cut = data.draw(st.integers(0, len(text) - 1))
    with contextlib.suppress(ConvtuneError):
        assert isinstance(ConvSpec.parse(text[:cut] + text[cut + 1 :]), ConvSpec)
