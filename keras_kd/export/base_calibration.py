"""The examples that a quantised file takes its ranges from: how many, which, what they cover."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from keras_kd import checks

if TYPE_CHECKING:
    import numpy as np

    from keras_kd.export.base_student import Student

    Example = dict[str, np.ndarray]

ENOUGH = 300
MINIMUM = 100
LOOK = 50_000
NARROW = 8
TRIAL = "in a trial 1, 10, 100 and 300 examples left an error of 1855, 145, 12 and 1.5 output steps"


class Calibration:
    """Representative examples, spread over a data set, for formats of whole numbers.

    Post-training quantisation runs the student on them and takes the smallest and largest value
    of every tensor as its range; what lies outside is clipped in the file. Examples are taken at
    even distances over all of the data (of a stream: its first 50,000 examples), so that data
    sorted by class is covered too.

    Args:
        student: Names the inputs and gives them their types.
        data: A `tf.data.Dataset` or `keras.utils.PyDataset` of batches, or arrays: `x`, `(x, y)`
            or `(x, y, sample_weight)`, as `verification_data`. Only `x` is used.
        examples: How many to take, 1 or more; all where there are fewer. Default 300.
            Below 100 examples are refused, unless no more were asked for.

    Attributes:
        examples: A list of dicts of input name to array, the batch axis 1.
        count: How many there are.
        out_of: How many examples were looked at.
        warning: What is to be said of few examples (below 300), and of features that one scale
            for the whole input loses; `None` where there is nothing to say.

    Raises:
        ValueError: "too few to calibrate with", "`calibration_examples` must be a whole number",
            "does not have the inputs of the student".
        TypeError: "`representative_data` is of a type that cannot be read".
    """

    def __init__(self, student: Student, data: Any, examples: int = ENOUGH) -> None:
        """Pick the examples, or refuse to go on with too few."""
        wanted = checks.count("calibration_examples", examples)
        self.examples, self.out_of = _spread(student, data, wanted)
        self.count = len(self.examples)
        self._student = student
        least = min(MINIMUM, wanted)
        if self.count < least:
            raise checks.bad_value(
                "The representative data holds too few to calibrate with.",
                given=f"{self.count} examples ({TRIAL})",
                expected=f"{least} or more, better {ENOUGH}",
                fix="pass training data as `representative_data`; to go on all the same, ask for "
                f"no more than there are: calibration_examples={max(1, self.count)}.",
            )
        self.warning = None
        few = None if self.count >= ENOUGH else f"calibrated with {self.count} examples; {TRIAL}"
        said = [few, *(_lost(name, *self.narrow(name)) for name in self.examples[0])]
        self.warning = "; ".join(filter(None, said)) or None

    def narrow(self, name: str) -> tuple[int, int]:
        """Count the features of an input that one scale for all leaves almost nothing of.

        Args:
            name: An input.

        Returns:
            How many entries of the last axis vary, and over less than 8 of 255 steps of the
            input's whole range; and how many entries there are. Inputs of whole numbers are not
            quantised: (0, n).
        """
        import numpy as np

        values = [example[name].reshape(-1, example[name].shape[-1]) for example in self.examples]
        if values[0].dtype.kind != "f" or self.examples[0][name].ndim < 2:
            return 0, values[0].shape[-1]
        low = np.min([value.min(0, initial=np.inf) for value in values], axis=0)
        high = np.max([value.max(0, initial=-np.inf) for value in values], axis=0)
        whole = max(float(high.max()), 0.0) - min(float(low.min()), 0.0)
        lost = (high > low) & (high - low < NARROW / 255 * whole)
        return int(lost.sum()), len(lost)

    def coverage(self) -> dict[str, Any]:
        """Say which ranges the examples span, and how far these still grow with their number.

        Returns:
            `{"examples": n, "out_of": n, "inputs": {name: range}, "outputs": {name: range}}`, and
            "warning" where there is one. A range is `{"min", "max", "grew"}`: "grew" is the share
            of the range that one half of the examples (every other one) misses. Near 0, more
            examples would change little.
        """
        answers = [self._student.run(example) for example in self.examples]
        told = {
            "examples": self.count,
            "out_of": self.out_of,
            "inputs": _ranges(self.examples),
            "outputs": _ranges(answers),
        }
        return told if self.warning is None else told | {"warning": self.warning}


def _lost(name: str, lost: int, features: int) -> str | None:
    if not lost:
        return None
    return (
        f"{lost} of {features} features of the input {name!r} span less than {NARROW} of 255 "
        "steps, since one scale serves them all: bring features to one scale before the file"
    )


def _ranges(examples: list[Example]) -> dict[str, dict[str, float]]:
    return {name: _range([example[name] for example in examples]) for name in examples[0]}


def _range(values: list[np.ndarray]) -> dict[str, float]:
    low = [float(value.min()) for value in values if value.size]
    high = [float(value.max()) for value in values if value.size]
    if not low:
        return {"min": 0.0, "max": 0.0, "grew": 0.0}
    span = max(high) - min(low)
    half = max(high[::2]) - min(low[::2])
    return {"min": min(low), "max": max(high), "grew": 1 - half / span if span else 0.0}


def _spread(student: Student, data: Any, wanted: int) -> tuple[list[Example], int]:
    """Take examples at even distances; return them and how many there were to choose from."""
    import keras
    import numpy as np
    import tensorflow as tf

    if not isinstance(data, tf.data.Dataset | keras.utils.PyDataset):
        if not isinstance(data, np.ndarray | tf.Tensor | Mapping | list | tuple):
            raise checks.bad_type(
                "`representative_data` is of a type that cannot be read.",
                given=type(data).__name__,
                expected="a tf.data.Dataset or PyDataset of batches, or arrays x, (x, y)",
                fix="pass the training data, for example representative_data=x_train.",
            )
        x = keras.utils.unpack_x_y_sample_weight(data)[0]
        arrays = keras.tree.map_structure(np.asarray, x)
        total = len(keras.tree.flatten(arrays)[0])
        chosen = _even(total, wanted)
        return list(
            _examples(student, keras.tree.map_structure(lambda a: a[chosen], arrays))
        ), total
    kept: list[Example] = []
    stride, seen = 1, 0
    for batch in _batches(data):
        x = keras.utils.unpack_x_y_sample_weight(batch)[0]
        for example in _examples(student, x):
            if seen % stride == 0:
                kept.append(example)
            seen += 1
            if len(kept) == 2 * wanted:  # twice what is asked for: every other one will do
                kept, stride = kept[::2], 2 * stride
        if seen >= LOOK:
            break
    return [kept[index] for index in _even(len(kept), wanted)], seen


def _even(total: int, wanted: int) -> list[int]:
    """Return up to `wanted` indices at even distances: floor(i · total / wanted)."""
    return (
        [index * total // wanted for index in range(wanted)] if total > wanted else [*range(total)]
    )


def _examples(student: Student, x: Any) -> Iterator[Example]:
    named = student.flatten(x, "representative data")
    for index in range(len(next(iter(named.values())))):
        yield {name: array[index : index + 1] for name, array in named.items()}


def _batches(data: Any) -> Iterator[Any]:
    import tensorflow as tf

    if isinstance(data, tf.data.Dataset):
        yield from data.as_numpy_iterator()
        return
    index = 0
    while data.num_batches is None or index < data.num_batches:
        yield data[index]
        index += 1
