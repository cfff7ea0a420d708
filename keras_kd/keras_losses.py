"""What Keras calls a loss (a name, an object, a function), as arithmetic inside a loss of ours."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from keras_kd import checks


def resolve_loss(loss: Any) -> Callable:
    """Turn a Keras loss (name, object, function) into a function `(t, s) -> values`."""
    if not (isinstance(loss, str) or callable(loss)):
        raise checks.bad_type(
            "`loss` is nothing that can be computed.",
            given=f"{loss!r} ({type(loss).__name__})",
            expected="the name of a Keras loss, a keras.losses.Loss or a function (t, s) -> values",
            fix='use loss="kl_divergence" or loss="mse".',
        )
    try:
        resolved = keras.losses.get(loss)
    except ValueError:
        raise checks.unknown_name("loss", loss, _public_losses()) from None
    if not isinstance(resolved, keras.losses.Loss):
        return resolved
    if resolved.reduction not in ("sum_over_batch_size", "mean"):
        raise checks.bad_value(
            "A loss inside a distillation loss must average over the batch.",
            given=f"{type(resolved).__name__}(reduction={resolved.reduction!r})",
            expected='reduction="sum_over_batch_size"',
            fix="leave out reduction=, and scale with distillation_loss_weights.",
        )
    return resolved.call


def is_mean_square(function: Callable) -> bool:
    """Say whether a function of `resolve_loss` is the mean squared error of Keras."""
    kept = getattr(function, "__self__", function)
    return kept is keras.losses.mean_squared_error or type(kept) is keras.losses.MeanSquaredError


def softened_name(loss: Any) -> str | None:
    """Return `"kl_divergence"` or `"categorical_crossentropy"` where the loss is that of Keras.

    Raises:
        ValueError: "Options of … have no meaning for soft targets."
    """
    function = resolve_loss(loss)
    kept = getattr(function, "__self__", function)
    for name, cls in (
        ("kl_divergence", keras.losses.KLDivergence),
        ("categorical_crossentropy", keras.losses.CategoricalCrossentropy),
    ):
        if type(kept) is cls:
            _refuse_options(kept)
        if kept is getattr(keras.losses, name) or type(kept) is cls:
            return name
    return None


def _refuse_options(loss: keras.losses.Loss) -> None:
    """Refuse options of a Keras loss that the softened form would have to ignore."""
    plain = type(loss)().get_config()
    changed = {
        key: value
        for key, value in loss.get_config().items()
        if key not in ("name", "from_logits", "reduction") and value != plain.get(key)
    }
    if changed:
        raise checks.bad_value(
            f"Options of {type(loss).__name__} have no meaning for soft targets.",
            given=", ".join(f"{key}={value!r}" for key, value in changed.items()),
            expected=f"{type(loss).__name__}() as it is",
            fix="leave them out.",
        )


def _public_losses() -> list[str]:
    return [name for name in dir(keras.losses) if callable(getattr(keras.losses, name))]
