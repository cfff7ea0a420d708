"""The diabetes data of Efron et al. 2004: 442 patients, 10 measurements, progress in a year.

"Least Angle Regression", Annals of Statistics 32(2), as scikit-learn carries it: nothing to
download. The target is a number from 25 to 346.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from keras_kd.data.splits import Source, Split, draw

USAGE = "diabetes"
EXAMPLE = "diabetes"
USES_DATA_DIR = False

TEST_SHARE = 0.2


def read(argument: str, data_dir: Path | None) -> Source:
    """Read the measurements in their own units (age in years, blood pressure in mm Hg, ...).

    scikit-learn scales them by all the patients unless told otherwise, those of the test split
    included; here they are as they were taken. A fifth, drawn by content and no seed, is the test
    split for everyone.
    """
    del argument, data_dir
    from sklearn.datasets import load_diabetes

    found = load_diabetes(scaled=False)
    everything = Split(x=found.data.astype(np.float32), y=found.target.astype(np.float32))
    test, train = draw(everything, TEST_SHARE, seed=0, purpose=b"test")
    return Source(train=train, test=test)
