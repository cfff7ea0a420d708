"""Rounding to the grids of LiteRT's integer kernels, and the ranges that the grids span.

The rounding is TensorFlow's `fake_quant_with_min_max_vars`: values stay floats, on the grid that
the integer kernel has. With 2^bits steps between the ends (one fewer for weights, so that the grid
is symmetric),

    scale = (high − low) / (steps − 1),   zero point = round(−low / scale),
    fake_quantized(x) = scale · (round(clip(x, low', high') / scale)),

where low' and high' are the ends moved so that 0 lies on the grid ("nudged"). Gradients pass
through the rounding where x lies inside the ends, and go to the ends elsewhere (Jacob et al. 2018,
section 3; Choi et al. 2018 for the ends). The converter reads the ends out of these operations,
which is why they must be TensorFlow's own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import ops

PACKAGE = "keras_kd"
NEVER = 2**31 - 1
SMALLEST_CHANNEL = 1e-4
"""Share of the largest weight below which a channel gets no finer grid of its own.

The integer kernel's bias has the scale input · weight. Were a dead channel's scale as small as its
weights, its bias would not fit into 32 bits.
"""


def fake_quantized(x: Any, low: Any, high: Any, bits: int = 8) -> Any:
    """Round values to the grid of one range, which is made to contain 0 exactly."""
    return tf.quantization.fake_quant_with_min_max_vars(x, low, high, num_bits=bits)


def rounded_weights(kernel: Any, bits: int, per_channel: bool) -> tuple[Any, Any]:
    """Round weights to a symmetric grid without its lowest step: −127…127, or −7…7 at 4 bits.

    Args:
        kernel: weights, the output channels last.
        bits: 8 or 4.
        per_channel: one grid for each output channel (convolutions), or one for all (`Dense`).

    Returns:
        The weights on their grid, of the same shape; the gradient passes through unchanged. And
        the step of the grid: `(channels,)`, or a scalar.
    """
    size = ops.stop_gradient(ops.abs(kernel))
    ends = ops.maximum(ops.max(size), keras.config.epsilon())
    if per_channel:
        largest = ops.max(size, axis=tuple(range(len(kernel.shape) - 1)))
        ends = ops.maximum(largest, ends * SMALLEST_CHANNEL)
        rounding = tf.quantization.fake_quant_with_min_max_vars_per_channel
    else:
        rounding = tf.quantization.fake_quant_with_min_max_vars
    rounded = rounding(kernel, -ends, ends, num_bits=bits, narrow_range=True)
    return rounded, ends / (2 ** (bits - 1) - 1)


def rounded_bias(bias: Any, step: Any) -> Any:
    """Round a bias to the grid of the kernel's sums, as whole numbers of 32 bits stand on it.

    Args:
        bias: `(channels,)`.
        step: step of the inputs times step of the weights; 0 where the inputs' is not known yet.

    Returns:
        The bias on its grid; the gradient passes through unchanged. With weights of 4 bits that
        is coarse enough to be heard, and every place of a channel errs the same way.
    """
    step = ops.convert_to_tensor(step, "float32")
    known = step > 0.0
    divisor = ops.where(known, step, ops.ones_like(step))
    rounded = ops.where(known, ops.round(bias / divisor) * divisor, bias)
    return bias + ops.stop_gradient(rounded - bias)


class Clock:
    """The training steps that a layer has seen, and the step from which its state stands still.

    Mixed into layers: `_start_clock` in `build`, `_tick` in a training call.
    """

    freeze_after: int | None

    def _start_clock(self: Any) -> None:
        count = {"shape": (), "dtype": "int32", "trainable": False}
        only_first = {"aggregation": "only_first_replica"}
        freeze = keras.initializers.Constant(
            NEVER if self.freeze_after is None else self.freeze_after
        )
        self.steps = self.add_weight(name="steps", initializer="zeros", **count, **only_first)
        self.freeze_at = self.add_weight(
            name="freeze_at", initializer=freeze, **count, **only_first
        )

    @property
    def frozen(self: Any) -> Any:
        """Whether the state stands still from here on, as a tensor."""
        return self.steps >= self.freeze_at

    def _tick(self: Any) -> None:
        self.steps.assign(ops.minimum(self.steps, NEVER - 1) + 1)

    def freeze(self: Any) -> None:
        """Let the state stand still from the next step on."""
        self.freeze_at.assign(self.steps)


@keras.saving.register_keras_serializable(PACKAGE)
class ActivationRange(Clock, keras.layers.Layer):
    """Rounds activations to the grid of a range that it learns while the model trains.

    A batch's smallest and largest values b move each end m of the range:

        m ← m + max(1 − momentum, 1/(n + 1)) · (b − m),   n = batches seen so far,

    the mean of the batches first, a moving average later (Jacob et al. 2018, section 3.1). With
    `learned=True` that holds for the warm-up only; afterwards the ends are trained by the gradients
    of what they clip (Choi et al. 2018, PACT, for both ends). 0 always lies in the range. In
    inference nothing moves, and as long as no batch was seen values pass as they are.

    The step of the grid, (high − low)/(2^bits − 1), is returned too: biases are rounded by it.

    Tensors that must have one range (those that are concatenated) share one layer and have a site
    of it each; the range spans those of its sites. Called with `site=None`, it only rounds.

    Args:
        bits: width of the integers, 8.
        sites: how many tensors are watched.
        learned: train the ends in place of averaging them.
        momentum: of the moving average.
        warm_up_steps: training steps in which the range is only watched and nothing rounded.
        freeze_after: training steps after which the range stands still; `None` for never.
        headroom: factor on the upper end of a range with negative values. 128/127 puts the 0 of a
            symmetric range on its grid, where it would stand between two steps.
        **kwargs: `name` and the like.

    Reference:
        Jacob et al. 2018, https://arxiv.org/abs/1712.05877; Choi et al. 2018 (PACT),
        https://arxiv.org/abs/1805.06085.
    """

    def __init__(
        self,
        bits: int = 8,
        sites: int = 1,
        learned: bool = False,
        momentum: float = 0.99,
        warm_up_steps: int = 0,
        freeze_after: int | None = None,
        headroom: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.bits = bits
        self.sites = sites
        self.learned = learned
        self.momentum = momentum
        self.warm_up_steps = warm_up_steps
        self.freeze_after = freeze_after
        self.headroom = headroom
        self.supports_masking = True
        self._calibrating = False

    def build(self, input_shape: Any) -> None:
        """Make the ends of the range and the counts."""
        ends = {"shape": (self.sites,), "initializer": "zeros", "aggregation": "mean"}
        self.minimum = self.add_weight(name="minimum", trainable=self.learned, **ends)
        self.maximum = self.add_weight(name="maximum", trainable=self.learned, **ends)
        self.seen = self.add_weight(
            name="seen",
            shape=(self.sites,),
            dtype="int32",
            initializer="zeros",
            trainable=False,
            aggregation="only_first_replica",
        )
        self._start_clock()
        if self.learned:  # what a frozen range stands at: an optimizer moves on by its momentum
            self.kept = self.add_weight(
                name="kept",
                shape=(2, self.sites),
                initializer="zeros",
                trainable=False,
                aggregation="mean",
            )

    def call(
        self, inputs: Any, site: int | None = 0, training: bool | None = None
    ) -> tuple[Any, Any]:
        """Watch where it is time to, then round; the step comes second."""
        if self._calibrating:
            if site is not None:
                self._watch(inputs, site, True)
            return inputs, ops.zeros(())
        rounds: Any = ops.max(self.seen) > 0
        if training and site is not None:
            watching = ops.logical_or(self.steps < self.warm_up_steps, self.seen[site] == 0)
            rounds = ops.logical_not(self.steps < self.warm_up_steps)
            self._watch(inputs, site, watching if self.learned else ops.logical_not(self.frozen))
            if site == 0:
                self._tick()
        elif training:
            rounds = ops.logical_not(self.steps < self.warm_up_steps)
        low, high = self.ends()
        rounded = ops.where(rounds, fake_quantized(inputs, low, high, self.bits), inputs)
        return rounded, ops.stop_gradient(high - low) / (2**self.bits - 1)

    def ends(self) -> tuple[Any, Any]:
        """Return the range that all sites share, two scalars with 0 between them."""
        low, high = self.minimum.value, self.maximum.value
        if self.learned:
            low = ops.where(self.frozen, self.kept[0], low)
            high = ops.where(self.frozen, self.kept[1], high)
        low, high = ops.minimum(ops.min(low), 0.0), ops.maximum(ops.max(high), 0.0)
        return low, high * ops.where(low < 0.0, self.headroom, 1.0)

    def _watch(self, inputs: Any, site: int, moves: Any) -> None:
        """Move the ends of one site towards the ends of a batch, where `moves` is true."""
        here = ops.one_hot(site, self.sites)
        count = ops.cast(self.seen, "float32")
        rate = here * ops.maximum(1.0 - self.momentum, 1.0 / (count + 1.0))
        rate = ops.where(moves, rate, ops.zeros_like(rate))
        values = ops.stop_gradient(inputs)
        low, high = ops.minimum(ops.min(values), 0.0), ops.maximum(ops.max(values), 0.0)
        self.minimum.assign(self.minimum + rate * (low - self.minimum))
        self.maximum.assign(self.maximum + rate * (high - self.maximum))
        if self.learned:
            ends = ops.stack([self.minimum.value, self.maximum.value])
            self.kept.assign(ops.where(self.frozen, self.kept, ends))
        self.seen.assign(self.seen + ops.cast(rate > 0, "int32"))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input, and that of the step."""
        return input_shape, ()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = (
            "headroom",
            "bits",
            "sites",
            "learned",
            "momentum",
            "warm_up_steps",
            "freeze_after",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}


@keras.saving.register_keras_serializable(PACKAGE)
class FixedRange(keras.layers.Layer):
    """Rounds to the one grid that a LiteRT kernel has for its output.

    `LOGISTIC` and `SOFTMAX` give steps of 1/256 from 0, `TANH` steps of 1/128 from −1.

    Args:
        low: lower end.
        high: upper end, one step below the value that is never reached.
        bits: width of the integers, 8.
        **kwargs: `name` and the like.
    """

    def __init__(self, low: float, high: float, bits: int = 8, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.low = low
        self.high = high
        self.bits = bits
        self.supports_masking = True
        self._calibrating = False

    def call(self, inputs: Any, site: int | None = 0) -> tuple[Any, Any]:
        """Round; there is nothing to watch, at any site. The step of the grid comes second."""
        step = ops.convert_to_tensor((self.high - self.low) / (2**self.bits - 1), "float32")
        if self._calibrating:
            return inputs, step
        return fake_quantized(inputs, self.low, self.high, self.bits), step

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input, and that of the step."""
        return input_shape, ()

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        ends = {"low": self.low, "high": self.high, "bits": self.bits}
        return {**super().get_config(), **ends}


class Unchanged(keras.layers.Layer):
    """Gives what it gets; stands for something that is done elsewhere, under its name."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        self.supports_masking = True

    def call(self, inputs: Any) -> Any:
        """Return what comes in."""
        return inputs

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape


@keras.saving.register_keras_serializable(PACKAGE)
class Rounded(Unchanged):
    """An output on its grid, under the name that the student's output has."""


@contextlib.contextmanager
def calibrating(layers: Iterable[Any]) -> Iterator[None]:
    """Let ranges only watch what passes, in eager calls, until the block is left."""
    ranges = [layer for layer in layers if isinstance(layer, (ActivationRange, FixedRange))]
    for layer in ranges:
        layer._calibrating = True
    try:
        yield
    finally:
        for layer in ranges:
            layer._calibrating = False
