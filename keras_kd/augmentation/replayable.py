"""Views of examples that come again: drawn from an example's content, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kd import checks, fingerprints
from keras_kd.augmentation import draws, functions, streams, tracing
from keras_kd.augmentation.functions import BatchFunction, ExampleFunction, name_of, takes
from keras_kd.data.batching import is_batched
from keras_kd.soft_batch import SoftBatch


class ReplayableAugmentation:
    """Augment a data set so that the very same views come again whenever it is applied.

    Use it where a teacher's answers are stored: soft targets are built from the augmented data set
    once, and found again when the student is shown the same views, in any order and any process.
    Teacher and student then see the same image, which is what makes distillation with augmentation
    work ("consistent" teaching). The seed of a view is a hash of the original example's inputs, of
    the view's number and of `seed`:

        seed(x, v) = hash(hash(x), v, seed)

    A few views each, stored, and many passes over them take the place of a new view in each pass.
    View v is the same for every `views` > v, so a store of ten views serves a training with five.
    Two equal examples get equal views. The data set is read once for each view, one pass after the
    other: so a batch never holds two views of one example, whatever its size, and an example's
    views come far apart. Put `.cache()` before it where reading is slow, and batch before it where
    you can: the functions of `keras_kd.augmentation` change a whole batch at once.

    A function that mixes examples, such as `mixup`, is given `batch_size`: the data set is
    regrouped into batches of exactly that size (the last of a pass may be smaller), whose seed is
    drawn from all their examples in order. So shuffle such data after, not before it.

    Args:
        function: `(example, seed) -> example`, where example is the inputs x of one example (a
            tensor, or a dict or tuple of them), and seed is (2,) int32 for `tf.random.stateless_*`;
            labels and weights pass by. With `batch_size`: `(x, y, seed) -> (x, y)` of a batch; y is
            None where there is none, and weights pass by.
        views: how many views of each example a pass gives, 1 or more. N examples become views · N.
        seed: a whole number; another one draws other views.
        batch_size: the number of examples that the function is given at once; None (the default)
            for a function of one example. Batches that came in with this size are taken as they
            are.
        batched: whether the data set gives batches; None (the default) looks at its shapes.
        name: what it is called in errors. Defaults to the function's name.

    Returns:
        A function of a data set, for `dataset.apply(augmentation)`. The data set that it gives is
        batched as it was given, has a known length where the given one has, and comes in the same
        order each time.

    Raises:
        TypeError: "The augmentation cannot be called", "does not take 2 arguments", "`seed` must be
            a whole number", "`batched` must be True, False or None", "is applied to a data set".
        ValueError: "`views` must be a whole number", "`batch_size` must be a whole number", "`seed`
            must fit into 64 bits", "takes one example", "takes a batch"; on a data set "gives
            another result for the same seed", "returns another structure", "takes dense
            tensors", "It is not clear whether the data is batched", "cannot be batched",
            "more than x, y and weights", "An endless data set has no second view", "mixes examples,
            and their weights cannot be mixed", "carries soft targets already".

    Reference:
        Beyer et al. 2022, "Knowledge distillation: A good teacher is patient and consistent".
        Shen and Xing 2022, "A Fast Knowledge Distillation Framework for Visual Recognition" (the
        teacher's answers stored for each view). Wu et al. 2022, "TinyViT" (views made again from
        stored seeds).

    Example:
    ```python
    import numpy as np, tensorflow as tf
    import keras_kd as kd

    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1)).astype("uint8")
    data = tf.data.Dataset.from_tensor_slices((images, np.arange(6))).batch(4)
    moved = kd.augmentation.chain(kd.augmentation.flips(), kd.augmentation.shifts(2))
    views = data.apply(kd.ReplayableAugmentation(moved, views=2, seed=1))
    first, again = ([x.numpy() for x, y in views] for _ in range(2))
    print(len(first), all(map(np.array_equal, first, again)))  # 4 True
    ```
    """

    def __init__(
        self,
        function: Callable[..., Any],
        views: int = 1,
        *,
        seed: int = 0,
        batch_size: int | None = None,
        batched: bool | None = None,
        name: str | None = None,
    ) -> None:
        self.function = function
        self.name = name_of(function) if name is None else str(name)
        self.views = checks.count("views", views)
        self.seed = _whole(seed)
        self.batch_size = None if batch_size is None else checks.count("batch_size", batch_size)
        if batched is not None and not isinstance(batched, bool):
            raise checks.bad_type(
                "`batched` must be True, False or None.",
                given=f"{batched!r} ({type(batched).__name__})",
                expected="a bool, or None to look at the shapes",
                fix="leave it out, or say batched=True.",
            )
        self.batched = batched
        self._check_function()
        # Compiled here, so that Python conditions on tensors work, and it is traced once.
        ours = isinstance(function, (ExampleFunction, BatchFunction))
        self._call = function if ours else tf.function(function)

    def __repr__(self) -> str:
        """Say which function, how many views, and which seed."""
        size = "" if self.batch_size is None else f", batch_size={self.batch_size}"
        return f"ReplayableAugmentation({self.name}, views={self.views}, seed={self.seed}{size})"

    def __call__(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Return the views of a data set's examples, all first views first."""
        streams.check(dataset)
        batched = is_batched(dataset.element_spec, self.batched)
        self._check_parts(dataset.element_spec)
        self._check_draws(dataset, batched)
        count = _cardinality(dataset)
        if self.batch_size is None:
            one_pass = self._pass_of_examples(dataset, batched)
        else:
            one_pass = self._pass_of_batches(dataset, batched)
        if self.views == 1:
            result = one_pass(0)
        else:
            self._check_finite(count)
            result = tf.data.Dataset.range(self.views).flat_map(one_pass)
        if count is None or count == _cardinality(result):
            return result
        total = count * self.views if count > 0 else count
        return result.apply(tf.data.experimental.assert_cardinality(total))

    def _pass_of_examples(
        self, dataset: tf.data.Dataset, batched: bool
    ) -> Callable[[Any], tf.data.Dataset]:
        """Prepare one pass over the data set: a function of the view's number."""
        alone = type(dataset.element_spec) is not tuple

        def one_pass(view: Any) -> tf.data.Dataset:
            @tf.autograph.experimental.do_not_convert
            def step(x: Any, *rest: Any) -> Any:
                given = x if batched else tf.nest.map_structure(lambda leaf: leaf[None], x)
                seeds = draws.view_seeds(fingerprints.of(given), view, self.seed)
                if batched:
                    new = functions.over_batch(self._call, x, seeds)
                else:
                    new = self._call(x, seeds[0])
                return new if alone else (new, *rest)

            return _mapped(dataset, step)

        return one_pass

    def _pass_of_batches(
        self, dataset: tf.data.Dataset, batched: bool
    ) -> Callable[[Any], tf.data.Dataset]:
        """Prepare one pass over the data set, regrouped: a function of the view's number."""
        alone = type(dataset.element_spec) is not tuple
        regroup = streams.regrouped(dataset, batched, self.batch_size or 1)

        def one_pass(view: Any) -> tf.data.Dataset:
            @tf.autograph.experimental.do_not_convert
            def step(x: Any, *rest: Any) -> Any:
                seed = draws.batch_seed(fingerprints.of(x), view, self.seed)
                x, y = self._call(x, rest[0] if rest else None, seed)
                return x if alone else (x, *([y] if rest else []), *rest[1:])

            return regroup(lambda batches, keyed=False: _mapped(batches, step, keyed))

        return one_pass

    def _check_function(self) -> None:
        """Refuse a function that cannot be called with what it will be given."""
        if not callable(self.function):
            raise checks.bad_type(
                "The augmentation cannot be called.",
                given=f"{self.function!r} ({type(self.function).__name__})",
                expected="a function (example, seed) -> example",
                fix="pass the function itself, for example augmentation.flips().",
            )
        if isinstance(self.function, BatchFunction) and self.batch_size is None:
            raise checks.bad_value(
                f"`{self.name}` takes a batch.",
                given="batch_size=None",
                expected="the number of examples that are given to it at once",
                fix="pass it, for example batch_size=64.",
            )
        if isinstance(self.function, ExampleFunction) and self.batch_size is not None:
            raise checks.bad_value(
                f"`{self.name}` takes one example.",
                given=f"batch_size={self.batch_size}",
                expected="batch_size=None: a batch is changed at once in any case",
                fix="leave batch_size out.",
            )
        count = 2 if self.batch_size is None else 3
        if not takes(self.function, count):
            form = "(example, seed) -> example" if count == 2 else "(x, y, seed) -> (x, y)"
            raise checks.bad_type(
                f"`{self.name}` does not take {count} arguments.",
                given=f"a function of other arguments, and batch_size={self.batch_size}",
                expected=f"a function {form}",
                fix="give it these arguments; batch_size= is for functions (x, y, seed).",
            )

    def _check_parts(self, element_spec: Any) -> None:
        """Refuse soft targets, and weights beside a function that mixes examples."""
        x, *rest = streams.parts(element_spec)
        if isinstance(x, SoftBatch):
            raise checks.bad_value(
                "The data set carries soft targets already.",
                given="elements of kd.SoftBatch",
                expected="a data set before `attach`: the stored answers are to other images",
                fix="write soft_targets.attach(data.apply(augmentation)), and build the soft "
                "targets from data.apply(augmentation) too.",
            )
        if len(rest) > 1 and isinstance(self.function, BatchFunction) and self.function.mixes:
            raise checks.bad_value(
                f"`{self.name}` mixes examples, and their weights cannot be mixed.",
                given="elements (x, y, w)",
                expected="elements x or (x, y)",
                fix="leave the weights out: data.map(lambda x, y, w: (x, y)).",
            )

    def _check_draws(self, dataset: tf.data.Dataset, batched: bool) -> None:
        """Look at a function that is not ours before it is used."""
        if isinstance(self.function, (ExampleFunction, BatchFunction)) and self.function.known:
            return
        seed = tf.TensorSpec((2,), tf.int32)
        x, *rest = streams.parts(dataset.element_spec)
        if self.batch_size is None:
            arguments: tuple[Any, ...] = (_specs(x, drop=int(batched)),)
            expected: Any = arguments[0]
        else:
            y = _specs(rest[0], drop=int(batched), batch=True) if rest else None
            arguments = expected = (_specs(x, drop=int(batched), batch=True), y)

        def first_arguments() -> tuple[Any, ...] | None:
            for element in dataset.take(1):
                given = streams.parts(element)[: len(arguments)]
                if self.batch_size is None and batched:
                    return tf.nest.map_structure(lambda leaf: leaf[0], given)
                if self.batch_size is not None and not batched:
                    given = tf.nest.map_structure(lambda leaf: leaf[None], given)
                return given if len(given) == len(arguments) else (*given, None)
            return None

        tracing.check(self.function, (*arguments, seed), expected, self.name, first_arguments)

    def _check_finite(self, count: int | None) -> None:
        if count == tf.data.INFINITE_CARDINALITY:
            raise checks.bad_value(
                "An endless data set has no second view.",
                given=f"views={self.views}, and a data set that repeats for ever",
                expected="a data set that ends, for all first views come first",
                fix="write data.apply(augmentation).repeat(), the repeat last.",
            )


def _mapped(dataset: tf.data.Dataset, step: Callable[..., Any], keyed: bool = False) -> Any:
    """Do a step to each element, several at once and in order; a key in front passes by."""
    if keyed:
        alone = type(dataset.element_spec[1]) is not tuple

        @tf.autograph.experimental.do_not_convert
        def with_key(key: Any, element: Any) -> Any:
            return key, step(element) if alone else step(*element)

        return dataset.map(with_key, tf.data.AUTOTUNE, deterministic=True)
    return dataset.map(step, tf.data.AUTOTUNE, deterministic=True)


def _cardinality(dataset: tf.data.Dataset) -> int | None:
    """Count a data set's elements: < 0 where endless, None where it cannot be known."""
    known = tf.get_static_value(dataset.cardinality())
    return None if known is None or known == tf.data.UNKNOWN_CARDINALITY else int(known)


def _specs(spec: Any, drop: int, batch: bool = False) -> Any:
    """Give specs without their first `drop` axes, then with a batch axis of any size or not."""
    leading = [None] if batch else []
    return tf.nest.map_structure(
        lambda leaf: tf.TensorSpec(leading + leaf.shape[drop:], leaf.dtype), spec
    )


def _whole(seed: object) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise checks.bad_type(
            "`seed` must be a whole number.",
            given=f"{seed!r} ({type(seed).__name__})",
            expected="an int",
            fix="pass a whole number, for example seed=1.",
        )
    if not -(2**63) <= seed < 2**63:
        raise checks.bad_value(
            "`seed` must fit into 64 bits.",
            given=seed,
            expected="-2**63 <= seed < 2**63",
            fix="pass a smaller number.",
        )
    return int(seed)
