"""Batch normalisation inside the weights of the layer before it, as the converter folds it.

In the file a convolution and its BatchNormalization are one operation of weights w·γ/σ and bias
β − μ·γ/σ, so training must round those weights. σ and μ are the moving statistics: batch statistics
in the weights would move the grid with every batch. The batch's own statistics are put back behind
the convolution until the freeze,

    u = conv(x, rounded(w·γ/σ)),    y = (u − mean(u)) · σ/σ_batch + β,

and after it y = u + β − μ·γ/σ, which is what the file computes. This is the correction of
Krishnamoorthi 2018, section 3.2.2, with one difference: σ_batch = σ/γ · std(u) is taken from the
convolution with the rounded weights, the one that will run, which spares the second convolution
that Jacob et al. 2018, section 3.2, need for the statistics of the weights before rounding.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_kd.compress.quantizers import PACKAGE, Clock, Unchanged, rounded_bias


@keras.saving.register_keras_serializable(PACKAGE)
class FoldedNormalization(Clock, keras.layers.BatchNormalization):
    """The parameters of a BatchNormalization that is folded into the layer before it.

    It is no step of the graph: the layer that holds it multiplies its weights by `factor()` and
    gives what comes out to `finished()`.

    Args:
        freeze_after: training steps after which the moving statistics are used and stand still;
            `None` for never.
        **kwargs: those of `keras.layers.BatchNormalization`.

    Reference:
        Krishnamoorthi 2018, https://arxiv.org/abs/1806.08342, section 3.2.2; Jacob et al. 2018,
        https://arxiv.org/abs/1712.05877, section 3.2.
    """

    plain = keras.layers.BatchNormalization

    def __init__(self, freeze_after: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.freeze_after = freeze_after

    def build(self, input_shape: Any) -> None:
        """Make the parameters, the statistics and the count of steps."""
        super().build(input_shape)
        self._start_clock()

    def factor(self) -> Any:
        """Return γ/σ of the moving statistics, a number for each channel."""
        deviation = ops.sqrt(self.moving_variance + self.epsilon)
        gamma = self.gamma if self.scale else ops.ones_like(self.moving_mean)
        return gamma / deviation

    def finished(self, outputs: Any, bias: Any, step: Any, training: bool | None) -> Any:
        """Add the bias, after putting the batch's own statistics in where training asks for it.

        Args:
            outputs: u above, without a bias, channels last.
            bias: the bias of the layer, or 0.
            step: of the grid that the bias is on in the file.
            training: whether statistics are watched.

        Returns:
            y above.
        """
        beta = self.beta if self.center else 0.0
        factor = self.factor()
        moving = outputs + rounded_bias(beta + (bias - self.moving_mean) * factor, step)
        if not training or not self.trainable:
            return moving
        axes = list(range(len(outputs.shape) - 1))
        mean, variance = ops.moments(outputs, axes, synchronized=self.synchronized)
        alive = variance > 0.0  # a channel of zeros keeps its statistics
        divisor = ops.where(alive, factor, ops.ones_like(factor))
        batch_mean = ops.where(alive, mean / divisor + bias, self.moving_mean)
        batch_variance = ops.where(alive, variance / divisor**2, self.moving_variance)
        ratio = ops.sqrt((self.moving_variance + self.epsilon) / (batch_variance + self.epsilon))
        batch = (outputs - mean) * ratio + beta
        frozen = self.frozen
        self._follow(self.moving_mean, batch_mean, frozen)
        self._follow(self.moving_variance, batch_variance, frozen)
        self._tick()
        return ops.where(frozen, moving, batch)

    def _follow(self, statistic: Any, batch: Any, frozen: Any) -> None:
        rate = ops.where(frozen, 0.0, 1.0 - self.momentum)
        statistic.assign(statistic + rate * ops.stop_gradient(batch - statistic))

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "freeze_after": self.freeze_after}

    def float_parts(self) -> tuple[dict[str, Any], list[Any]]:
        """Return the config of the plain layer, and its variables in order."""
        config = self.get_config()
        del config["freeze_after"]
        clock = (id(self.steps), id(self.freeze_at))
        return config, [v for v in self.variables if id(v) not in clock]


@keras.saving.register_keras_serializable(PACKAGE)
class FoldedInto(Unchanged):
    """Stands where a BatchNormalization stood, under its name; the layer before it holds it."""
