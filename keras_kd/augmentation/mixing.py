"""Examples of a batch mixed with each other, labels too: mixup and CutMix.

Each factory returns a function `(x, y, seed) -> (x, y)` of a batch, for
`kd.ReplayableAugmentation(function, batch_size=...)`.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from keras_kd import checks
from keras_kd.augmentation import draws
from keras_kd.augmentation.functions import BatchFunction
from keras_kd.augmentation.images import check_images
from keras_kd.augmentation.values import back, check_values, in_float


def mixup(alpha: float = 0.2, classes: int | None = None) -> BatchFunction:
    """Blend each example of a batch with another one, and their labels alike.

        x' = λ·x + (1 - λ)·x[π],   y' = λ·y + (1 - λ)·y[π],   λ from Beta(alpha, alpha)

    with one λ and one permutation π a batch, as in the authors' code. Inputs keep their type
    (uint8 is rounded); a dict or list of inputs is blended leaf by leaf. The labels become rows of
    floats: use a loss that takes them, such as `keras.losses.CategoricalCrossentropy`.

    Args:
        alpha: > 0; near 0 hardly anything is mixed, 1 draws λ uniformly. Defaults to 0.2.
        classes: the number of classes, for labels that are class numbers or whole-number one-hot
            rows; labels of floats are blended as they are and do not need it.

    Returns:
        A function (x, y, seed) -> (x, y); y may be None.

    Raises:
        TypeError: "`alpha` must be a number"; on use "takes numbers that can be changed a little".
        ValueError: "`alpha` must be positive", "`classes` must be a whole number"; on use "does not
            know how many classes there are", "labels do not fit".

    Reference:
        Zhang et al. 2018, "mixup: Beyond Empirical Risk Minimization", equation 1 and figure 1.

    Example:
    ```python
    import numpy as np
    from keras_kd import augmentation

    x, y = np.random.rand(4, 8, 8, 1).astype("float32"), np.array([0, 1, 2, 0])
    mixed, rows = augmentation.mixup(0.4, classes=3)(x, y, seed=(1, 2))
    print(mixed.shape, rows.shape)  # (4, 8, 8, 1) (4, 3)
    ```
    """
    alpha = checks.positive("alpha", alpha)
    classes = None if classes is None else checks.count("classes", classes)

    def rule(x: Any, y: Any, seed: tf.Tensor) -> tuple[Any, Any]:
        share = beta(alpha, seed)
        order = partners(tf.shape(tf.nest.flatten(x)[0])[0], seed)

        def blended_inputs(leaf: tf.Tensor) -> tf.Tensor:
            check_values("mixup", leaf)
            return back(_blend(in_float(leaf), order, share), leaf.dtype)

        return tf.nest.map_structure(blended_inputs, x), _mixed_labels(
            "mixup", y, classes, order, share
        )

    return BatchFunction(f"mixup({alpha:g}{_and(classes)})", rule, mixes=True)


def cutmix(alpha: float = 1.0, classes: int | None = None) -> BatchFunction:
    """Paste a box of another image of the batch into each image, and share the labels by area.

    A batch has one λ from Beta(alpha, alpha), one permutation π and one box: its middle is drawn
    uniformly, its sides are √(1 - λ) of the image's, and what sticks out is cut off. With λ' the
    share of the area that is left of the image,

        y' = λ'·y + (1 - λ')·y[π]

    Args:
        alpha: > 0; 1, the default and the paper's, draws λ uniformly.
        classes: the number of classes, for labels that are class numbers or whole-number one-hot
            rows; labels of floats are blended as they are and do not need it.

    Returns:
        A function (x, y, seed) -> (x, y); x are images, (batch, height, width[, channels]), and
        keep their type; y become rows of floats, or may be None.

    Raises:
        TypeError: "`alpha` must be a number"; on use "takes one image".
        ValueError: "`alpha` must be positive", "`classes` must be a whole number"; on use "takes an
            image of height, width and channels", "does not know how many classes there are",
            "labels do not fit".

    Reference:
        Yun et al. 2019, "CutMix: Regularization Strategy to Train Strong Classifiers with
        Localizable Features", equations 1 and 2 and algorithm A1.

    Example:
    ```python
    import numpy as np
    from keras_kd import augmentation

    x, y = np.random.randint(0, 256, (4, 8, 8, 1), "uint8"), np.array([0, 1, 2, 0])
    mixed, rows = augmentation.cutmix(classes=3)(x, y, seed=(1, 2))
    print(mixed.dtype, rows.shape)  # uint8 (4, 3)
    ```
    """
    alpha = checks.positive("alpha", alpha)
    classes = None if classes is None else checks.count("classes", classes)

    def rule(x: Any, y: Any, seed: tf.Tensor) -> tuple[Any, Any]:
        check_images("cutmix", x)
        height, width = tf.shape(x)[1], tf.shape(x)[2]
        order = partners(tf.shape(x)[0], seed)
        top, bottom, left, right = box(beta(alpha, seed), height, width, seed)
        rows, columns = tf.range(height), tf.range(width)
        inside = ((rows >= top) & (rows < bottom))[:, None] & (columns >= left) & (columns < right)
        mask = inside if x.shape.rank == 3 else inside[..., None]
        area = tf.cast((bottom - top) * (right - left), tf.float64)
        share = 1.0 - area / tf.cast(height * width, tf.float64)
        pasted = tf.where(mask, tf.gather(x, order), x)
        return pasted, _mixed_labels("cutmix", y, classes, order, share)

    return BatchFunction(f"cutmix({alpha:g}{_and(classes)})", rule, mixes=True)


def beta(alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Draw from Beta(alpha, alpha): a float64 scalar, exact however small alpha is.

    It is g₁/(g₁ + g₂) of two Gamma(alpha) numbers, whose logarithms are those of Gamma(alpha + 1)
    plus log(u)/alpha (Marsaglia and Tsang 2000, section 6), so that none of them becomes 0.
    """
    pair = draws.derived(seed[None], 0)
    gammas = tf.random.stateless_gamma((2,), pair[0], alpha + 1.0, dtype=tf.float64)
    chance = tf.cast(draws.uniform(pair, 2)[0], tf.float64) + 2.0 ** -(draws.BITS_OF_A_FLOAT + 1)
    logs = tf.math.log(gammas) + tf.math.log(chance) / alpha
    return tf.sigmoid(logs[0] - logs[1])


def partners(size: Any, seed: tf.Tensor) -> tf.Tensor:
    """Draw a permutation of `size` places: whom each example is mixed with."""
    return tf.argsort(draws.numbers(draws.derived(seed[None], 1), size)[0], stable=True)


def box(
    share: tf.Tensor, height: Any, width: Any, seed: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
    """Draw the box that leaves about `share` of an image: top, bottom, left, right, int32."""
    sides = tf.cast(tf.stack([height, width]), tf.float64) * tf.sqrt(1.0 - share)
    half = tf.cast(sides, tf.int32) // 2
    size = tf.stack([height, width])
    middle = tf.cast(draws.whole(draws.derived(seed[None], 2), 2, size)[0], tf.int32)
    first = tf.clip_by_value(middle - half, 0, size)
    end = tf.clip_by_value(middle + half, 0, size)
    return first[0], end[0], first[1], end[1]


def _blend(values: tf.Tensor, order: tf.Tensor, share: tf.Tensor) -> tf.Tensor:
    share = tf.cast(share, values.dtype)
    return share * values + (1 - share) * tf.gather(values, order)


def _mixed_labels(name: str, y: Any, classes: int | None, order: Any, share: Any) -> Any:
    return tf.nest.map_structure(
        lambda leaf: None if leaf is None else _blend(_rows(name, leaf, classes), order, share), y
    )


def _rows(name: str, y: tf.Tensor, classes: int | None) -> tf.Tensor:
    """Make labels that can be blended: floats as they are, whole numbers as one-hot rows."""
    if y.dtype.is_floating:
        return y
    if classes is None:
        raise checks.bad_value(
            f"`{name}` does not know how many classes there are.",
            given=f"labels of {y.dtype.name}",
            expected="classes=, or labels of floats (one-hot rows)",
            fix=f"pass it, for example {name}(classes=10).",
        )
    if y.shape.rank is not None and y.shape.rank > 1 and y.shape[-1] == classes > 1:
        return tf.cast(y, tf.float32)
    if y.shape.rank == 2 and y.shape[-1] == 1:
        y = y[:, 0]
    if y.shape.rank != 1 or not y.dtype.is_integer:
        raise checks.bad_value(
            f"The labels do not fit `{name}`.",
            given=f"labels of shape (batch, {str(tuple(y.shape[1:]))[1:-1]}), {y.dtype.name}",
            expected=f"class numbers, (batch,), or rows, (batch, {classes})",
            fix="give class numbers below `classes`, or one-hot rows of floats.",
        )
    known = tf.debugging.assert_less(
        y, tf.cast(classes, y.dtype), f"A label is not below {name}'s classes={classes}."
    )
    with tf.control_dependencies([] if known is None else [known]):
        return tf.one_hot(y, classes, dtype=tf.float32)


def _and(classes: int | None) -> str:
    return "" if classes is None else f", classes={classes}"
