"""The Breast Cancer Wisconsin (Diagnostic) data of UCI: 569 tumours, 30 measurements, 2 classes.

Street, Wolberg and Mangasarian 1993, as scikit-learn carries it: nothing to download.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_kd.data.splits import Source, Split, draw

USAGE = "breast_cancer"
EXAMPLE = "breast_cancer"
USES_DATA_DIR = False

TEST_SHARE = 0.2


def read(argument: str, data_dir: Path | None) -> Source:
    """Read the measurements as they were taken; 0 is malignant, 1 benign.

    A fifth, drawn by content and no seed, is the test split for everyone.
    """
    del argument, data_dir
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    everything = Split(x=found.data.astype(np.float32), y=found.target)
    test, train = draw(everything, TEST_SHARE, seed=0, purpose=b"test")
    names = tuple(str(name) for name in found.target_names)
    return Source(train=train, test=test, classes=len(names), label_names=names)
