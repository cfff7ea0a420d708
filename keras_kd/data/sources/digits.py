"""scikit-learn's copy of the UCI handwritten digits: 1,797 images of 8x8, values 0 to 16."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_kd.data.splits import Source, Split, draw

USAGE = "digits"
EXAMPLE = "digits"
USES_DATA_DIR = False

TEST_SHARE = 0.2


def read(argument: str, data_dir: Path | None) -> Source:
    """Read the digits; a fifth, drawn by content and no seed, is the test split for everyone."""
    del argument, data_dir
    from sklearn.datasets import load_digits

    digits = load_digits()
    everything = Split(x=digits.images.astype(np.float32), y=digits.target)
    test, train = draw(everything, TEST_SHARE, seed=0, purpose=b"test")
    names = tuple(str(name) for name in digits.target_names)
    return Source(train=train, test=test, classes=len(names), label_names=names)
