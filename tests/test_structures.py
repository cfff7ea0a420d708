"""Layers of two models that pair up, and what is said where they do not."""

from __future__ import annotations

import pytest

from keras_kd import structures


@pytest.mark.parametrize("pair", [("a", "b"), ("a", ["b"]), (["a", "b"], ["c", "d"]), (None, "b")])
def test_as_many_layers_of_the_one_as_of_the_other(pair):
    structures.refuse_unpaired(*pair)


@pytest.mark.parametrize("pair", [(["a", "b"], "c"), ("a", ["b", "c"]), (["a", "b"], ["c"])])
def test_layers_that_do_not_pair_up_are_refused(pair):
    with pytest.raises(ValueError, match="do not pair up"):
        structures.refuse_unpaired(*pair)
