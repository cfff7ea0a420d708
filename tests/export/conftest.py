"""One converter for all tests of this room: its child loads TensorFlow once."""

from __future__ import annotations

import pytest

from keras_kd.litert import converting


@pytest.fixture(scope="session", autouse=True)
def _one_converter():
    with converting.converter():
        yield
