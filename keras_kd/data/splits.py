"""Train, validation and test: arrays in memory, split by content, given as batches."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_kd import checks
from keras_kd.data import arrays, batching
from keras_kd.data.arrays import Arrays
from keras_kd.data.batching import Transform

if TYPE_CHECKING:
    import tensorflow as tf


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Examples in memory: inputs, targets, and batches of them.

    `x` and `y` are read-only: what one user of a split does cannot reach another's.

    Args:
        x: Inputs, n examples along the first axis; a dict name -> array for several inputs.
        y: Targets, n along the first axis, or a dict. Integers become int64.
        weights: What each target counts, as Keras's `sample_weight`: (n,) or more of the leading
            axes of the targets, or a dict by the outputs' names. They become float32. A weight of
            0 leaves a position out, such as an anchor without a box. None: each counts 1.

    Raises:
        ValueError: "different lengths" where inputs, targets and weights are not equally many,
            "no weight" where weights are not finite numbers from 0.

    Example:
        ```python
        import numpy as np
        from keras_kd import data

        split = data.Split(x=np.zeros((10, 3), "float32"), y=np.arange(10) % 2)
        assert len(split) == 10
        x, y = next(iter(split.batches(4)))
        assert x.shape == (4, 3)
        ```
    """

    x: Arrays
    y: Arrays
    weights: Arrays | None = None

    def __post_init__(self) -> None:
        """Keep read-only views, and check that inputs, targets and weights are equally many."""
        object.__setattr__(self, "x", arrays.standard(self.x))
        object.__setattr__(self, "y", arrays.standard(arrays.labels(self.y)))
        if self.weights is not None:
            object.__setattr__(self, "weights", arrays.standard(arrays.weights(self.weights)))
        arrays.check_lengths("split", self.x, self.y, self.weights)

    def __len__(self) -> int:
        """Count the examples."""
        return len(self.y if isinstance(self.y, np.ndarray) else next(iter(self.y.values())))

    def __repr__(self) -> str:
        """Say how many examples there are and what one of them is."""
        parts = [f"{len(self)} examples"]
        for label, values in zip(("x", "y", "weights"), self.examples, strict=False):
            for name, array in arrays.named(label, values):
                parts.append(f"{name}: {array.dtype}{list(array.shape[1:])}")
        return f"Split({', '.join(parts)})"

    @property
    def examples(self) -> tuple[Arrays, ...]:
        """Give all the arrays as `fit` and `kd.compare` take them: (x, y), or (x, y, weights)."""
        return (self.x, self.y) if self.weights is None else (self.x, self.y, self.weights)

    def select(self, rows: np.ndarray | slice) -> Split:
        """Give the examples of these row numbers, or of a slice, as a new split.

        Use it for a smaller training set: the train split of `load` comes in a random order that
        depends on content and seed only, so its first n examples are a fair sample.

        Args:
            rows: Row numbers, a boolean mask of length n, or a slice.

        Returns:
            A new split; this one stays as it is.

        Example:
            ```python
            from keras_kd import data

            train = data.load("digits").train
            assert len(train.select(slice(100))) == 100
            ```
        """
        return Split(*(arrays.each(lambda array: array[rows], part) for part in self.examples))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        repeat: bool = False,
        transform: Transform | None = None,
        drop_remainder: bool = False,
    ) -> tf.data.Dataset:
        """Give the examples as batches that are the same, in the same order, for the same seed.

        The whole split is shuffled, anew in each pass, by row numbers: nothing but a gather is
        done per batch. The stream depends on `shuffle_seed` and on how many times this data set
        was iterated before, not on TensorFlow's global seed. The k-th pass of `fit` over two data
        sets made with one seed sees the same batches.

        Args:
            batch_size: Examples a batch; the last one of a pass may be smaller.
            shuffle_seed: A whole number >= 0; None (the default) keeps the order of the split.
            repeat: Whether to go on for ever, with a new order and new seeds each pass. A batch
                never crosses from one pass into the next.
            transform: A function (x_batch, y_batch, seed) -> (x_batch, y_batch) of TensorFlow
                operations, as for augmentation. `seed` is an int64 tensor of shape (2,) for
                stateless operations, a new one for each batch of each pass, derived from
                `shuffle_seed` (from 0 where that is None). Weights go past it as they are.
            drop_remainder: Whether to leave out the smaller last batch of a pass.

        Returns:
            A `tf.data.Dataset` of (x, y), or (x, y, weights) where there are some, prefetched,
            that knows its number of batches.

        Raises:
            ValueError: "The split is empty", or "Not one batch would be left" where
                `drop_remainder` leaves nothing.
            TypeError: "`transform` must return a pair".

        Example:
            ```python
            import tensorflow as tf
            from keras_kd import data

            def jitter(x, y, seed):
                return x + tf.random.stateless_normal(tf.shape(x), seed), y

            train = data.load("digits").train
            stream = train.batches(32, shuffle_seed=0, transform=jitter)
            x, y = next(iter(stream))
            assert x.shape == (32, 8, 8) and y.shape == (32,)
            ```
        """
        return batching.batches(
            self.examples,
            len(self),
            batch_size,
            shuffle_seed=shuffle_seed,
            repeat=repeat,
            transform=transform,
            drop_remainder=drop_remainder,
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A named data set in its three splits.

    Train on `train`, choose on `validation`, report on `test`: test data never chooses anything.

    Args:
        name: The name it was loaded by.
        train: What models learn from.
        validation: What settings, epochs and students are chosen on; may be empty.
        test: What is reported, once.
        classes: Number of classes where the targets are class numbers, one an example or a map
            of them, else None.
        label_names: Names of the classes where they are known, else None.
        scaling: (scale, offset), one number a feature, where the inputs are
            raw · scale + offset (`standardised`), else None.

    Example:
        ```python
        from keras_kd import data

        digits = data.load("digits", seed=0)
        scaled = digits.map_inputs(lambda x: x / 16)
        assert digits.classes == 10
        assert scaled.train.x.max() == 1
        ```
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: int | None = None
    label_names: tuple[str, ...] | None = None
    scaling: tuple[tuple[float, ...], tuple[float, ...]] | None = None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Name the content by 32 hex digits, whatever the order of the examples in a split.

        It covers inputs, targets, weights, dtypes, shapes and which example is in which split, not
        `name`: the same MNIST from npz, idx and tfds has the same fingerprint. It is computed when
        first asked for, from the arrays that are here, so a mapped or shortened data set has its
        own.
        """
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return arrays.fingerprint({name: split.examples for name, split in splits.items()})

    def map_inputs(self, function: Callable[[Any], Any]) -> Dataset:
        """Apply a function to the inputs of every split, for scaling and shapes.

        Args:
            function: Takes the whole `x` of a split (a read-only array, or a dict of them) and
                returns the new one with as many examples. It must treat each example alone: a
                statistic belongs to `train` and is computed before.

        Returns:
            A new data set with its own fingerprint; this one stays as it is.

        Raises:
            ValueError: "different lengths" or "NaN or infinite values" of the result.
            TypeError: "does not hold numbers" of the result.

        Example:
            ```python
            from keras_kd import data

            digits = data.load("digits")
            flat = digits.map_inputs(lambda x: x.reshape(len(x), 64))
            assert flat.test.x.shape[1:] == (64,)
            ```
        """

        def mapped(split: Split) -> Split:
            result = function(split.x)
            is_dict = isinstance(result, dict)
            x = {k: np.asarray(v) for k, v in result.items()} if is_dict else np.asarray(result)
            new = replace(split, x=x)
            if len(new):
                arrays.check("mapped x", new.x)
            return new

        return replace(
            self,
            train=mapped(self.train),
            validation=mapped(self.validation),
            test=mapped(self.test),
            scaling=None,
        )

    def standardised(self) -> Dataset:
        """Bring every feature to mean 0 and spread 1, by the training split.

        For tables, whose features differ by orders of magnitude: an integer model has one scale for
        its whole input, so the small ones would be lost in it. A `Normalization` layer inside the
        network comes too late for that. The last axis is the features':

            standardised = raw · scale + offset,  scale = 1/σ,  offset = −μ/σ

        with μ and σ of each feature over all the training examples; σ counts as 1 where it is 0.
        Whoever uses the model does the same to what they feed it: `scaling` says by what, a run
        writes it into `run.json` and into its files.

        Returns:
            A new data set of float32 inputs, with `scaling` set; this one stays as it is.

        Raises:
            TypeError: "`standardised` takes one array of features" for a dict of inputs.

        Example:
            ```python
            from keras_kd import data

            table = data.load("breast_cancer").standardised()
            assert abs(table.train.x.mean(0)).max() < 1e-4
            scale, offset = table.scaling
            assert len(scale) == len(offset) == 30
            ```
        """
        x = self.train.x
        if isinstance(x, dict) or x.ndim < 2:
            raise checks.bad_type(
                "`standardised` takes one array of features.",
                given=f"inputs {sorted(x)}" if isinstance(x, dict) else f"shape {x.shape}",
                expected="an array (examples, …, features)",
                fix="scale them one by one with map_inputs.",
            )
        each = x.reshape(-1, x.shape[-1]).astype("float64")
        spread = each.std(axis=0)
        scale = 1.0 / np.where(spread > 0.0, spread, 1.0)
        offset = -each.mean(axis=0) * scale
        new = self.map_inputs(lambda raw: (raw * scale + offset).astype("float32"))
        if self.scaling is not None:  # of what is raw here
            before = np.array(self.scaling)
            scale, offset = before[0] * scale, before[1] * scale + offset
        return replace(new, scaling=(tuple(scale.tolist()), tuple(offset.tolist())))


@dataclass(frozen=True, eq=False)
class Source:
    """What a source has read: its own splits, before a validation split is drawn."""

    train: Split
    test: Split
    validation: Split | None = None
    classes: int | None = None
    label_names: tuple[str, ...] | None = None


def draw(split: Split, fraction: float, *, seed: int, purpose: bytes) -> tuple[Split, Split]:
    """Draw a fraction of a split by the hash of each example's inputs and the seed.

    The examples with the smallest hashes are drawn, so that the same set is drawn whatever the
    order and the source. Exact duplicates of an input land on the same side: the drawn part may be
    larger than asked by the duplicates of its last example. Both parts come in the order of the
    hash (then of the targets), which is a random order that no source has a say in.

    Args:
        split: What to draw from.
        fraction: 0 draws nothing; above 0, at least one example is drawn.
        seed: Another seed draws another part.
        purpose: At most 16 bytes; keeps draws of one seed for different ends apart.

    Returns:
        The drawn part and the rest.
    """
    by_input = arrays.hashes(split.x, seed=seed, purpose=purpose)
    by_target = arrays.hashes(split.y, seed=seed, purpose=purpose)
    order = np.lexsort((by_target, by_input))
    count = 0
    if fraction > 0:
        count = min(max(1, round(fraction * len(split))), len(split))
        count = int(np.searchsorted(by_input[order], by_input[order][count - 1], side="right"))
    if count == len(split):
        raise checks.bad_value(
            "The draw leaves no example to train on.",
            given=f"a fraction of {fraction} of {len(split)} examples, duplicates together",
            expected="at least one example on the other side",
            fix="give more examples, or a smaller fraction (validation=0 draws none).",
        )
    return split.select(order[:count]), split.select(order[count:])
