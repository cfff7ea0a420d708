"""Images mirrored, moved, cut and turned: stateless functions of one image.

Each factory returns a function `(image, seed) -> image` that `kd.ReplayableAugmentation` does to a
whole batch at once. An image is (height, width) or (height, width, channels), of any number type,
and keeps its type. Pixels from beyond the border are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
import tensorflow as tf

from keras_kd import checks
from keras_kd.augmentation import draws
from keras_kd.augmentation.functions import ExampleFunction
from keras_kd.augmentation.values import back, in_float

ANGLES = 1025  # rotations draw from a table, so that no sine depends on the machine or the batch
_WARPED_AS_THEY_ARE = ("uint8", "int32", "int64", "float16", "float32", "float64")


def flips(vertical: bool = False) -> ExampleFunction:
    """Mirror half of the images, drawn by chance, left to right.

    Args:
        vertical: whether half of the images, drawn apart, are turned upside down as well.

    Returns:
        A function (image, seed) -> image, of the same shape and type.

    Raises:
        TypeError: "`vertical` must be True or False"; on use "takes one image".
        ValueError: on use "takes an image of height, width and channels".

    Example:
    ```python
    import tensorflow as tf
    from keras_kd import augmentation

    image = tf.reshape(tf.range(6, dtype=tf.int32), (2, 3))
    print(augmentation.flips()(image, seed=(1, 2)).numpy())
    ```
    """
    if not isinstance(vertical, bool):
        raise checks.bad_type(
            "`vertical` must be True or False.",
            given=f"{vertical!r} ({type(vertical).__name__})",
            expected="a bool",
            fix="pass flips(vertical=True), or flips().",
        )

    def rule(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        drawn = draws.whole(seeds, 2, 2) == 0
        images = mirrored(images, drawn[:, 0], axis=2)
        return mirrored(images, drawn[:, 1], axis=1) if vertical else images

    return _function(f"flips({'vertical=True' if vertical else ''})", rule)


def shifts(pixels: int) -> ExampleFunction:
    """Move an image by up to `pixels` up or down and left or right; what comes in is zero.

    Args:
        pixels: the largest move, in pixels, 1 or more. All moves are equally likely.

    Returns:
        A function (image, seed) -> image, of the same shape and type.

    Raises:
        TypeError: on use "takes one image".
        ValueError: "`pixels` must be a whole number"; on use "takes an image of height, width and
            channels".

    Example:
    ```python
    import tensorflow as tf
    from keras_kd import augmentation

    print(augmentation.shifts(2)(tf.ones((5, 5)), seed=(1, 2)).numpy())
    ```
    """
    pixels = checks.count("pixels", pixels)

    def rule(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        moves = draws.whole(seeds, 2, 2 * pixels + 1) - pixels
        return tf.ensure_shape(cut(images, -moves, tf.shape(images)[1:3]), images.shape)

    return _function(f"shifts({pixels})", rule)


def crops(height: int, width: int, padding: int = 0) -> ExampleFunction:
    """Cut a window of (height, width) out of an image, after a border of zeros is put around it.

    All places of the window are equally likely. For CIFAR, `crops(32, 32, padding=4)` is usual.

    Args:
        height: rows of the window, 1 or more.
        width: columns of the window, 1 or more.
        padding: the border on each side, in pixels, 0 or more. Defaults to 0.

    Returns:
        A function (image, seed) -> image of shape (height, width[, channels]) and the same type.

    Raises:
        TypeError: on use "takes one image".
        ValueError: "`height` must be a whole number", "`padding` must be 0 or more"; on use "takes
            an image of height, width and channels", "The window is larger than the image".

    Example:
    ```python
    import tensorflow as tf
    from keras_kd import augmentation

    print(augmentation.crops(6, 4)(tf.ones((8, 8, 3)), seed=(1, 2)).shape)  # (6, 4, 3)
    ```
    """
    size = checks.count("height", height), checks.count("width", width)
    padding = _from_zero("padding", padding)

    def rule(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        _check_window(images, size, padding)
        places = tf.shape(images)[1:3] + (2 * padding + 1) - size
        enough = tf.debugging.assert_positive(places, "The window is larger than the image.")
        with tf.control_dependencies([] if enough is None else [enough]):
            corners = draws.whole(seeds, 2, places) - padding
        return tf.ensure_shape(cut(images, corners, size), (None, *size, images.shape[-1]))

    return _function(f"crops({height}, {width}, padding={padding})", rule)


def rotations(degrees: float) -> ExampleFunction:
    """Turn an image about its middle by an angle from -degrees to degrees; corners become zero.

    The angle is one of 1,025 at equal distances, and pixels are interpolated bilinearly, in
    float32; whole-number images are rounded (0.5 to the even number).

    Args:
        degrees: the largest angle, > 0 and at most 180. Positive angles turn counter-clockwise.

    Returns:
        A function (image, seed) -> image, of the same shape and type.

    Raises:
        TypeError: "`degrees` must be a number"; on use "takes one image".
        ValueError: "`degrees` must be positive", "`degrees` must be at most 180"; on use "takes an
            image of height, width and channels".

    Example:
    ```python
    import tensorflow as tf
    from keras_kd import augmentation

    print(augmentation.rotations(15)(tf.ones((8, 8, 1)), seed=(1, 2)).shape)  # (8, 8, 1)
    ```
    """
    if checks.positive("degrees", degrees) > 180:
        raise checks.bad_value(
            "`degrees` must be at most 180.",
            given=degrees,
            expected="0 < degrees <= 180",
            fix="pass rotations(180) for every angle.",
        )
    angles = np.linspace(-math.radians(degrees), math.radians(degrees), ANGLES)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype("float32")

    def rule(images: tf.Tensor, seeds: tf.Tensor) -> tf.Tensor:
        turns = tf.gather(tf.constant(table), draws.whole(seeds, 1, ANGLES)[:, 0])
        return turned(images, turns[:, 0], turns[:, 1])

    return _function(f"rotations({degrees:g})", rule)


def mirrored(images: tf.Tensor, drawn: tf.Tensor, axis: int) -> tf.Tensor:
    """Mirror the images, (batch, height, width, channels), that are drawn, (batch,) bool."""
    return tf.where(drawn[:, None, None, None], tf.reverse(images, [axis]), images)


def cut(images: tf.Tensor, corners: tf.Tensor, size: Any) -> tf.Tensor:
    """Cut windows whose upper left corners, (batch, 2) rows and columns, may lie outside."""
    top, left = (tf.cast(corners[:, place], tf.float32) for place in (0, 1))
    one, zero = tf.ones_like(top), tf.zeros_like(top)
    return _warped(images, [one, zero, left, zero, one, top, zero, zero], size, "NEAREST")


def turned(images: tf.Tensor, cosines: tf.Tensor, sines: tf.Tensor) -> tf.Tensor:
    """Turn images about their middles by angles given as cosines and sines, (batch,) float32."""
    last = tf.cast(tf.shape(images)[1:3] - 1, tf.float32)
    y, x = last[0] / 2.0, last[1] / 2.0
    zero = tf.zeros_like(cosines)
    to_x = [cosines, -sines, x - cosines * x + sines * y]
    to_y = [sines, cosines, y - sines * x - cosines * y]
    size = tf.shape(images)[1:3]
    values = _warped(in_float(images), [*to_x, *to_y, zero, zero], size, "BILINEAR")
    return back(tf.ensure_shape(values, images.shape), images.dtype)


def _warped(images: tf.Tensor, transforms: list[tf.Tensor], size: Any, how: str) -> tf.Tensor:
    """Read each pixel (x, y) at the place that a transform, 8 numbers, gives: see TensorFlow's."""
    easy = images.dtype.name in _WARPED_AS_THEY_ARE
    kind = images.dtype if easy else (tf.float32 if images.dtype.is_floating else tf.int32)
    warped = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, kind),
        transforms=tf.stack(transforms, axis=1),
        output_shape=tf.cast(size, tf.int32),
        fill_value=0.0,
        interpolation=how,
        fill_mode="CONSTANT",
    )
    return tf.cast(warped, images.dtype)


def _function(name: str, rule: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]) -> ExampleFunction:
    """Make a function of images of two or three axes from a rule for batches of four."""
    short = name.split("(")[0]

    def any_rank(images: Any, seeds: tf.Tensor) -> tf.Tensor:
        check_images(short, images)
        flat = len(images.shape) == 3
        four = images[..., None] if flat else images
        return tf.squeeze(rule(four, seeds), -1) if flat else rule(four, seeds)

    return ExampleFunction(name, any_rank)


def check_images(name: str, images: Any) -> None:
    """Refuse what is no batch of images: (batch, height, width) or with channels, of numbers."""
    if tf.nest.is_nested(images):
        raise checks.bad_type(
            f"`{name}` takes one image.",
            given=f"a {type(images).__name__} of inputs",
            expected="one tensor",
            fix="change the image among the inputs in a function of your own: "
            f'lambda x, seed: {{**x, "image": {name}(...)(x["image"], seed)}}.',
        )
    if images.shape.rank not in (3, 4):
        shape = "unknown" if images.shape.rank is None else tuple(images.shape[1:])
        raise checks.bad_value(
            f"`{name}` takes an image of height, width and channels.",
            given=f"an example of shape {shape}",
            expected="(height, width) or (height, width, channels)",
            fix="reshape the examples first: data.map(lambda x, y: (tf.reshape(x, (28, 28)), y)).",
        )


def _check_window(images: tf.Tensor, size: tuple[int, int], padding: int) -> None:
    for given, wanted in zip(images.shape[1:3], size, strict=True):
        if given is not None and given + 2 * padding < wanted:
            raise checks.bad_value(
                "The window is larger than the image with its border.",
                given=f"an image of {tuple(images.shape[1:3])}, crops{(*size, padding)}",
                expected="height and width of at most the image's, with the border on both sides",
                fix="crop less, or pass padding=, the pixels of zeros on each side.",
            )


def _from_zero(name: str, value: Any) -> int:
    whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not whole or value < 0:
        raise checks.bad_value(
            f"`{name}` must be 0 or more.",
            given=f"{value!r} ({type(value).__name__})",
            expected="a whole number: 0, 1, 2, …",
            fix=f"pass {name}=0 for none.",
        )
    return int(value)
