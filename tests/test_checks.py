"""One way of saying no."""

from __future__ import annotations

import numpy as np
import pytest

from keras_kd import checks


@pytest.mark.parametrize(
    ("make", "kind"), [(checks.bad_value, ValueError), (checks.bad_type, TypeError)]
)
def test_an_error_has_three_parts(make, kind) -> None:
    error = make("It is wrong.", given=3, expected="a 4", fix="pass 4.")
    assert type(error) is kind
    lines = ["It is wrong.", "  given:    3", "  expected: a 4", "  fix:      pass 4."]
    assert str(error).splitlines() == lines


def test_an_unknown_name_answers_with_the_closest_and_the_list() -> None:
    error = str(checks.unknown_name("recipe", "minst", ["mnist", "digits", "digits"]))
    assert error.splitlines()[0] == "There is no recipe 'minst'."
    assert "expected: digits, mnist\n" in error
    assert error.endswith("did you mean 'mnist'?")


def test_a_name_like_no_other_is_sent_to_the_list() -> None:
    error = str(checks.unknown_name("recipe", "zzz", ["mnist"]))
    assert error.endswith("choose one of the names above.")


def test_a_long_list_is_cut() -> None:
    names = [f"layer{k:02d}" for k in range(50)]
    error = str(checks.unknown_name("layer", "x", names))
    assert "layer39, … (50 in all)" in error
    assert "layer40" not in error


def test_the_closest_has_the_same_end() -> None:
    options = ["backbone/relu", "backbone/rely", "head"]
    assert checks.closest("relu", options)[0] == "backbone/relu"
    assert checks.closest("hed", options) == ["head"]
    assert checks.closest("zzz", options) == []


@pytest.mark.parametrize("check", [checks.number, checks.positive, checks.fraction])
@pytest.mark.parametrize("given", ["1", None, True, [1.0], 1j])
def test_what_is_no_number_is_refused(check, given) -> None:
    with pytest.raises(TypeError, match=r"`weight` must be a number[\s\S]*weight=1\.0"):
        check("weight", given)


@pytest.mark.parametrize("given", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(given) -> None:
    with pytest.raises(ValueError, match="`weight` must be finite"):
        checks.number("weight", given)


def test_numbers_come_back_as_floats() -> None:
    for given in (3, np.float32(3.0), np.int64(3)):
        for check in (checks.number, checks.positive):
            assert type(check("weight", given)) is float
            assert check("weight", given) == 3.0
    assert checks.number("weight", -2) == -2.0
    assert (checks.fraction("share", 0), checks.fraction("share", 1)) == (0.0, 1.0)


@pytest.mark.parametrize("given", [0, -1.0])
def test_positive_refuses(given) -> None:
    with pytest.raises(ValueError, match=r"`temperature` must be positive[\s\S]*a number > 0"):
        checks.positive("temperature", given)


def test_fraction_refuses() -> None:
    for given in (-0.1, 1.1):
        with pytest.raises(ValueError, match=r"between 0 and 1[\s\S]*0 <= value <= 1"):
            checks.fraction("share", given)
    for given in (0, 1):
        with pytest.raises(ValueError, match=r"between 0 and 1[\s\S]*0 < value < 1"):
            checks.fraction("beta", given, open_ends=True)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None], ids=repr)
def test_a_count_is_a_whole_number_of_1_or_more(value):
    with pytest.raises(ValueError, match="`n` must be a whole number of 1 or more"):
        checks.count("n", value)
    assert checks.count("n", 1) == 1
