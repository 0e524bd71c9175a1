"""oneDNN's benchdnn problem strings against shapes worked out by hand from its documentation."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import specs

from convtune import ConvSpec, workloads
from convtune.errors import SpecError
from convtune.workloads import benchdnn


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ('mb1ic64ih56oc64oh56kh3ph1n"name"', ConvSpec("conv", 64, 64, (56, 56), 3, padding=1)),
        ("g32mb1ic128ih56oc128oh56kh3ph1", ConvSpec("grouped", 128, 128, (56, 56), 3, padding=1, groups=32)),
        # the canonical form, of the documentation's first example
        (
            'g1mb1_ic3ih224iw224_oc64oh112ow112_kh7kw7_sh2sw2_ph3pw3_n"resnet18_0"',
            ConvSpec("conv", 3, 64, (224, 224), 7, stride=2, padding=3),
        ),
        # 2 images where none are given
        (
            'ic3ih227iw227_oc96oh55ow55_kh11kw11_sh4sw4ph0pw0_n"alexnet:conv1"',
            ConvSpec("conv", 3, 96, (227, 227), 11, batch=2, stride=4),
        ),
        ("mb1ic256iw64oc256ow64kw5pw2", ConvSpec("conv", 256, 256, 64, 5, padding=2)),
        ("mb1ic16id8oc32od8kd3pd1", ConvSpec("conv", 16, 32, (8, 8, 8), 3, padding=1)),
        (
            "mb1ic3id16ih112iw112oc45od16oh56ow56kd1kh7kw7sd1sh2sw2pd0ph3pw3",
            ConvSpec("conv", 3, 45, (16, 112, 112), (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3)),
        ),
        # dilation counts from 0
        ("mb1ic8ih65oc4oh65kh3ph12dh11", ConvSpec("dilated", 8, 4, (65, 65), 3, padding=12, dilation=12)),
        ("mb1ic8ih9oc4kh3dh0", ConvSpec("conv", 8, 4, (9, 9), 3)),
        ("g8mb1ic8ih9oc16kh3", ConvSpec("depthwise", 8, 16, (9, 9), 3)),
        ("mb1ic8ih9oc16kh1sh2", ConvSpec("pointwise", 8, 16, (9, 9), 1, stride=2)),
        # no padding given: deduced from the output, the smaller half before
        ("mb1ic4ih56oc4oh56kh3", ConvSpec("conv", 4, 4, (56, 56), 3, padding=1)),
        ("mb1ic4ih56oc4oh28kh3sh2", ConvSpec("conv", 4, 4, (56, 56), 3, stride=2, padding=((0, 1), (0, 1)))),
        ("mb1ic4ih56iw57oc4oh56ow58kh4kw4", ConvSpec("conv", 4, 4, (56, 57), 4, padding=((1, 2), 2))),
        # the padding after from input, output and padding before
        ("mb1ic4iw99oc4ow99kw4pw3", ConvSpec("conv", 4, 4, 99, 4, padding=((3, 0),))),
        ("mb1ic4iw10oc4ow5kw2pw0", ConvSpec("conv", 4, 4, 10, 2, padding=((0, -4),))),
        # windows that do not reach the end cut nothing away
        ("mb1ic4ih8oc4oh4kh3sh2ph1", ConvSpec("conv", 4, 4, (8, 8), 3, stride=2, padding=1)),
        # a dimension that is said not to be there
        ("mb1ic4id0ih9oc4kh3sd1pd0dd0", ConvSpec("conv", 4, 4, (9, 9), 3)),
        ("mb1ic4ih9oc4oh0kh3", ConvSpec("conv", 4, 4, (9, 9), 3)),
        ("mb1ic4ih1iw64oc4kh1kw3pw1", ConvSpec("conv", 4, 4, (1, 64), (1, 3), padding=(0, 1))),
    ],
)
def test_by_hand(text: str, spec: ConvSpec) -> None:
    (workload,) = workloads.parse([text])
    assert workload.spec == spec
    assert workload.count == 1


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('mb1ic4ih9oc4kh3n"resnet:3x3 *2"', "resnet:3x3 *2"),
        ("mb1ic4ih9oc4kh3nplain_name", "plain_name"),
        ("mb1ic4ih9oc4kh3", "mb1ic4ih9oc4kh3"),
        ("mb1ic4ih9oc4kh3n", "mb1ic4ih9oc4kh3n"),
    ],
)
def test_names(text: str, name: str) -> None:
    assert benchdnn.parse(text).name == name


@given(specs(), st.booleans())
def test_what_a_spec_says_in_full_is_read_back(spec: ConvSpec, shuffled_separators: bool) -> None:
    settings = [f"g{spec.groups}", f"mb{spec.batch}", f"ic{spec.in_channels}", f"oc{spec.out_channels}"]
    axes = "dhw"[3 - spec.rank :]
    for i, axis in enumerate(axes):
        settings += [f"i{axis}{spec.in_size[i]}", f"o{axis}{spec.out_size[i]}", f"k{axis}{spec.kernel[i]}"]
        settings += [f"s{axis}{spec.stride[i]}", f"p{axis}{spec.padding[i][0]}", f"d{axis}{spec.dilation[i] - 1}"]
    read = benchdnn.parse(("_" if shuffled_separators else "").join(settings)).spec
    for field in ("batch", "in_size", "kernel", "stride", "out_size", "weight_shapes", "groups"):
        assert getattr(read, field) == getattr(spec, field)
    assert [before for before, _ in read.padding] == [before for before, _ in spec.padding]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mb1ic64ih56oc64oh56kh3ph1zz", r"character 26: no setting begins here; .*; in mb1ic64ih56oc64oh56kh3ph1>>>zz"),
        ("mb1ic64ih56oc64ohkh3", r"character 18: 'oh' has no number; in mb1ic64ih56oc64oh>>>kh3"),
        ("mb1ic64ih56ic64", r"character 12: 'ic' is given twice; in mb1ic64ih56>>>ic64"),
        ("mb1ih56oc64kh3", "character 15: ic is missing"),
        ("mb1ic64ih56kh3", "character 15: oc is missing"),
        ("mb1ic-64ih56oc64kh3", r"character 6: 'ic' has no number; in mb1ic>>>-64"),
        ("mb1ic64oc64", "benchdnn problem 'mb1ic64oc64': no spatial size is given; give ih, or ih and iw, or iw alone"),
        ("mb1ic64ih56oc64", "kh is missing or 0; it must be at least 1"),
        ("mb1ic64ih56oc64kh3iw56", "kw is missing or 0; it must be at least 1"),
        ("mb1ic64id8ih56oc64kd3kh3", "iw is missing or 0; it must be at least 1"),
        ("mb1ic64ih56oc64kh3sh0", "sh is missing or 0; it must be at least 1"),
        ("mb0ic64ih56oc64kh3", "batch=0 is out of range"),
        ("g3mb1ic64ih56oc64kh3", "groups=3 does not divide in_channels=64"),
        ("mb1ic64ih5oc64kh7", "output dimension 0 would be -1"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message) as raised:
        workloads.parse([text])
    assert "\n" not in str(raised.value)
