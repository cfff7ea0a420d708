"""What a file may be bound to."""

from __future__ import annotations

import dataclasses

import pytest

from keras_kd.export.bounds import NAMES, Bounds

KINDS = {
    "max_difference": "must be positive",
    "agreement": "must be between 0 and 1",
    "accuracy_drop": "must be 0 or more",
    "steps": "must be 0 or more",
    "saturation": "must be between 0 and 1",
    "float_islands": "must be a whole number of 0 or more",
    "bytes": "must be a whole number of 0 or more",
    "arena_bytes": "must be a whole number of 0 or more",
    "latency_ms": "must be positive",
}


@pytest.mark.parametrize("name", NAMES)
def test_numbers_that_bound_nothing_are_refused(name):
    with pytest.raises(ValueError, match=f"`{name}` {KINDS[name]}"):
        Bounds(**{name: -1})
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        Bounds(**{name: "1"})
    with pytest.raises((TypeError, ValueError), match=f"`{name}` must be"):
        Bounds(**{name: True})
    assert getattr(Bounds(**{name: 1}), name) == 1


def test_nothing_is_bound_by_default():
    assert Bounds().stated() == {}
    assert set(dataclasses.asdict(Bounds())) == set(KINDS)


def test_zero_is_a_bound():
    assert Bounds(float_islands=0, accuracy_drop=0, steps=0).stated() == {
        "float_islands": 0,
        "accuracy_drop": 0,
        "steps": 0,
    }


def test_a_dict_changes_what_it_names_and_a_bounds_replaces_all():
    default = Bounds(agreement=0.9, steps=20)
    assert default.changed(None) is default
    assert default.changed({}) == default
    assert default.changed({"steps": None, "bytes": 7}) == Bounds(agreement=0.9, bytes=7)
    assert default.changed(Bounds(steps=1)) == Bounds(steps=1)
    assert default.changed(Bounds()) == Bounds()


def test_changes_that_are_none_are_refused():
    with pytest.raises(ValueError, match=r"(?s)no bound 'acuracy_drop'.*mean 'accuracy_drop'"):
        Bounds().changed({"acuracy_drop": 0.1})
    with pytest.raises(TypeError, match="bounds of a format must be a Bounds or a dict"):
        Bounds().changed(0.1)
    with pytest.raises(ValueError, match="`agreement` must be between 0 and 1"):
        Bounds().changed({"agreement": 99})
