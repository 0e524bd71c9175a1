"""The error tree: one base, one line each, and fit to be sent between processes."""

from __future__ import annotations

import pickle

import convtune
from convtune import errors
from convtune.errors import ConvtuneError, UnknownNameError


def test_every_public_error_has_the_one_base() -> None:
    for name in errors.__all__:
        assert issubclass(getattr(convtune, name), ConvtuneError)


def test_an_unknown_name_lists_near_ones_or_all() -> None:
    assert str(UnknownNameError("space", "dens_direct", ["dense_direct", "fallback"])) == (
        "unknown space 'dens_direct'; near it: dense_direct"
    )
    assert str(UnknownNameError("space", "zzz", ["b", "a"])) == "unknown space 'zzz'; known: a, b"


def test_a_name_of_any_type_can_be_unknown() -> None:
    assert str(UnknownNameError("accuracy", 1e-3, ["loose", "strict"])) == (
        "unknown accuracy 0.001; known: loose, strict"
    )
    assert str(UnknownNameError("accuracy", None, ["loose"])) == "unknown accuracy None; known: loose"


def test_errors_survive_pickling() -> None:
    error = UnknownNameError("space", "dens_direct", ["dense_direct"])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    for name in errors.__all__:
        if name != "UnknownNameError":
            again = pickle.loads(pickle.dumps(getattr(errors, name)("said so")))
            assert type(again).__name__ == name and str(again) == "said so"
