"""Named data sets, held in memory, in train, validation and test splits.

digits               scikit-learn's 8x8 handwritten digits (1,797), nothing to download
breast_cancer        569 tumours, 30 measurements, malignant or benign (scikit-learn)
diabetes             442 patients, 10 measurements, a number to predict (scikit-learn)
python_text          windows of characters from the help texts that Python itself ships
mnist1d              MNIST-1D (Greydanus and Kobak 2024), generated: pip install mnist1d
multi_digit[:DATA]   several digits on a canvas, generated: a class for each pixel
digit_tags[:DATA]    the same canvases: which of the ten digits there are
digit_detector[:…]   the same canvases: a class and a box in each of 16 cells
tfds:NAME[:CONFIG]   TensorFlow Datasets, for example tfds:mnist
npz:FILE             your own arrays x_train, y_train, x_test, y_test in one file
idx:FOLDER           the four files of the MNIST family, .gz or not
"""

from __future__ import annotations

from keras_kd.data.arrays import Arrays
from keras_kd.data.loading import load
from keras_kd.data.preparing import prepare_tfds
from keras_kd.data.splits import Dataset, Split

__all__ = ["Arrays", "Dataset", "Split", "load", "prepare_tfds"]
