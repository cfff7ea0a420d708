"""What every test shares: quiet TensorFlow, seeds, and where real data may lie."""

from __future__ import annotations

import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import pytest

from keras_kd.command_line.console import silent_stderr
from keras_kd.litert import converting

with silent_stderr():  # the two test processes would each print TensorFlow's banner
    import keras
    import tensorflow as tf

    tf.config.list_physical_devices()

# Two logical devices, so that tf.distribute has replicas to train on.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

SHARED_DATA = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session", autouse=True)
def _one_converter():
    """Hold one converter for all tests: its child, if any of them starts it, loads once."""
    with converting.converter():
        yield


@pytest.fixture(autouse=True)
def _seeds() -> None:
    keras.utils.set_random_seed(7)


@pytest.fixture
def rng() -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(7)


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder with the real mnist.npz and fashion_mnist.npz; skips where there is none."""
    folder = pathlib.Path(os.environ.get("KERAS_KD_DATA", SHARED_DATA))
    if not (folder / "mnist.npz").exists():
        pytest.skip("the real data sets are not here (set KERAS_KD_DATA to their folder)")
    return folder
