"""The values of an example changed, not their places: noise, brightness, contrast.

Each factory returns a function `(example, seed) -> example` that keeps shape and type. It computes
in float32 (float64 for float64); whole numbers, such as uint8 images, are rounded and kept within
what their type holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from keras_kd import checks
from keras_kd.augmentation import draws
from keras_kd.augmentation.functions import ExampleFunction

WHOLE_NUMBERS = ("uint8", "int8", "uint16", "int16")


def noise(stddev: float) -> ExampleFunction:
    """Add Gaussian noise to each number of an example: x + stddev · n, n from N(0, 1).

    n is one of the middles of 65,536 equally likely parts of the distribution (at most 4.3). An
    image of uint8 stays one: the sum is rounded and kept from 0 to 255. For images scaled to
    [0, 1] nothing is cut off.

    Args:
        stddev: the noise's standard deviation, in the unit of the values, > 0.

    Returns:
        A function (example, seed) -> example; the example is one tensor of any shape.

    Raises:
        TypeError: "`stddev` must be a number"; on use "takes one tensor", "takes numbers that can
            be changed a little".
        ValueError: "`stddev` must be positive".

    Example:
    ```python
    import tensorflow as tf
    from keras_kd import augmentation

    print(augmentation.noise(0.1)(tf.zeros((4,)), seed=(1, 2)).numpy())
    ```
    """
    stddev = checks.positive("stddev", stddev)

    def rule(x: Any, seeds: tf.Tensor) -> tf.Tensor:
        check_values("noise", x)
        values = in_float(x)
        drawn = tf.reshape(draws.normal(seeds, tf.reduce_prod(tf.shape(x)[1:])), tf.shape(x))
        return back(values + tf.cast(stddev, values.dtype) * tf.cast(drawn, values.dtype), x.dtype)

    return ExampleFunction(f"noise({stddev:g})", rule)


def brightness(amount: float, value_range: tuple[float, float] = (0, 255)) -> ExampleFunction:
    """Make an image brighter or darker: x + u · (high - low), u uniform from [-amount, amount).

    What leaves the range is set to its end.

    Args:
        amount: the largest change, as a share of the range, > 0 and at most 1.
        value_range: (low, high), between which the values lie. Defaults to (0, 255).

    Returns:
        A function (example, seed) -> example; the example is one tensor of any shape.

    Raises:
        TypeError: "`amount` must be a number"; on use "takes one tensor", "takes numbers that can
            be changed a little".
        ValueError: "`amount` must be between 0 and 1", "`value_range` must be (low, high)".

    Example:
    ```python
    import tensorflow as tf
    from keras_kd import augmentation

    print(augmentation.brightness(0.2, (0, 1))(tf.ones((2, 2)), seed=(1, 2)).numpy())
    ```
    """
    amount, (low, high) = _share("amount", amount), _range(value_range)

    def changed(values: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
        return values + drawn * (high - low)

    return _within("brightness", changed, amount, low, high)


def contrast(amount: float, value_range: tuple[float, float] = (0, 255)) -> ExampleFunction:
    """Strengthen or weaken contrast: m + (1 + u) · (x - m), u uniform from [-amount, amount).

    The middle m is the range's, (low + high)/2, not the image's mean, whose last bit would depend
    on how a machine sums it up. What leaves the range is set to its end.

    Args:
        amount: the largest change, > 0 and at most 1.
        value_range: (low, high), between which the values lie. Defaults to (0, 255).

    Returns:
        A function (example, seed) -> example; the example is one tensor of any shape.

    Raises:
        TypeError: "`amount` must be a number"; on use "takes one tensor", "takes numbers that can
            be changed a little".
        ValueError: "`amount` must be between 0 and 1", "`value_range` must be (low, high)".

    Example:
    ```python
    import tensorflow as tf
    from keras_kd import augmentation

    print(augmentation.contrast(0.5, (0, 1))(tf.ones((2, 2)), seed=(1, 2)).numpy())
    ```
    """
    amount, (low, high) = _share("amount", amount), _range(value_range)

    def changed(values: tf.Tensor, drawn: tf.Tensor) -> tf.Tensor:
        middle = (low + high) / 2
        return middle + (1.0 + drawn) * (values - middle)

    return _within("contrast", changed, amount, low, high)


def in_float(x: tf.Tensor) -> tf.Tensor:
    """Give values as float32; float64 stays."""
    return x if x.dtype == tf.float64 else tf.cast(x, tf.float32)


def back(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Give computed values their type again; whole numbers are rounded and kept in its range."""
    return (
        tf.cast(values, dtype) if dtype.is_floating else tf.saturate_cast(tf.round(values), dtype)
    )


def check_values(name: str, x: Any) -> None:
    """Refuse what is not one tensor of numbers that can be rounded back."""
    if tf.nest.is_nested(x):
        raise checks.bad_type(
            f"`{name}` takes one tensor.",
            given=f"a {type(x).__name__} of inputs",
            expected="one tensor",
            fix="change it among the inputs in a function of your own: "
            f'lambda x, seed: {{**x, "image": {name}(...)(x["image"], seed)}}.',
        )
    if not x.dtype.is_floating and x.dtype.name not in WHOLE_NUMBERS:
        raise checks.bad_type(
            f"`{name}` takes numbers that can be changed a little.",
            given=f"values of {x.dtype.name}",
            expected=f"floats, or {', '.join(WHOLE_NUMBERS)}",
            fix='cast the inputs first, for example tf.cast(x, "float32").',
        )


def _within(
    name: str,
    changed: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    amount: float,
    low: float,
    high: float,
) -> ExampleFunction:
    """Make a function that draws one number for each example and keeps values in the range."""

    def rule(x: Any, seeds: tf.Tensor) -> tf.Tensor:
        check_values(name, x)
        values = in_float(x)
        drawn = (draws.uniform(seeds, 1) * 2.0 - 1.0) * amount
        shape = tf.concat([tf.shape(x)[:1], tf.ones(tf.rank(x) - 1, tf.int32)], axis=0)
        drawn = tf.cast(tf.reshape(drawn, shape), values.dtype)
        return back(tf.clip_by_value(changed(values, drawn), low, high), x.dtype)

    return ExampleFunction(f"{name}({amount:g}, ({low:g}, {high:g}))", rule)


def _share(name: str, value: object) -> float:
    checks.positive(name, value)
    return checks.fraction(name, value)


def _range(given: Any) -> tuple[float, float]:
    if not isinstance(given, (tuple, list)) or len(given) != 2 or not given[0] < given[1]:
        raise checks.bad_value(
            "`value_range` must be (low, high).",
            given=repr(given),
            expected="two numbers, the lower first",
            fix="pass value_range=(0, 255), or (0, 1) for scaled images.",
        )
    return checks.number("value_range", given[0]), checks.number("value_range", given[1])
