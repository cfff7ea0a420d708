"""The layers with weights as LiteRT's integer kernels compute them: rounded weights, float bias.

Each is the Keras layer of the same name with three things more: its weights are rounded, a
BatchNormalization behind it may be folded in, and where its activation is an operation of its own
in the file, what goes into that is rounded too. Their weights have the names and shapes of the
layers that they stand for, which `float_parts` gives back.
"""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_kd.compress.folding import FoldedNormalization
from keras_kd.compress.quantizers import PACKAGE, ActivationRange, rounded_bias, rounded_weights


class Quantized(keras.layers.Layer):
    """What the quantised layers share.

    Args:
        weight_bits: 8 or 4.
        norm: the `FoldedNormalization` that belongs to the layer, or `None`.
        ranges: arguments of an `ActivationRange` between the weights and the activation, or `None`
            where the kernel does both in one.
        **kwargs: those of the Keras layer.
    """

    per_channel = True

    def __init__(
        self,
        *args: Any,
        weight_bits: int = 8,
        norm: Any = None,
        ranges: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{"dtype": "float32", **kwargs})
        self.weight_bits = weight_bits
        self.norm = keras.saving.deserialize_keras_object(norm) if isinstance(norm, dict) else norm
        self.ranges = ranges
        self.before = ActivationRange(**ranges, name="before") if ranges else None

    def build(self, input_shape: Any) -> None:
        """Make the weights, and the parts inside."""
        super().build(input_shape)
        shape = self.compute_output_shape(input_shape)
        for part in (self.norm, self.before):
            if part is not None and not part.built:
                part.build(shape)

    def call(self, inputs: Any, step: Any = 0.0, training: bool | None = None) -> Any:
        """Compute the layer with rounded weights, on inputs of a grid of this step."""
        outputs, step = self.weighted(inputs, step, training)
        bias = self.bias.value if self.use_bias else 0.0
        if self.norm is not None:
            outputs = self.norm.finished(outputs, bias, step, training)
        elif self.use_bias:
            outputs = outputs + rounded_bias(bias, step)
        if self.before is not None:
            outputs, _ = self.before(outputs, training=training)
        return outputs if self.activation is None else self.activation(outputs)

    def weighted(self, inputs: Any, step: Any, training: bool | None) -> tuple[Any, Any]:
        """Apply the rounded weights without the bias; return the step of the bias too."""
        kernel, weight_step = self.rounded(self.kernel.value)
        return self.linear(inputs, kernel), step * weight_step

    def rounded(self, kernel: Any) -> tuple[Any, Any]:
        """Fold the normalisation into weights whose last axis is the output's, and round them."""
        if self.norm is not None:
            kernel = kernel * self.norm.factor()
        return rounded_weights(kernel, self.weight_bits, self.per_channel)

    def linear(self, inputs: Any, kernel: Any) -> Any:
        """Compute the layer's operation for given weights."""
        return ops.matmul(inputs, kernel)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        norm = None if self.norm is None else keras.saving.serialize_keras_object(self.norm)
        more = {"weight_bits": self.weight_bits, "norm": norm, "ranges": self.ranges}
        return {**super().get_config(), **more}

    def float_parts(self) -> tuple[dict[str, Any], list[Any]]:
        """Return the config of the plain layer, and its variables in order."""
        config = self.get_config()
        for name in ("weight_bits", "norm", "ranges"):
            del config[name]
        inside = [part for part in (self.norm, self.before) if part is not None]
        others = {id(variable) for part in inside for variable in part.variables}
        return config, [v for v in self.variables if id(v) not in others]


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedDense(Quantized, keras.layers.Dense):
    """`Dense` with one grid for all its weights: the converter takes no other."""

    plain = keras.layers.Dense
    per_channel = False


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv2D(Quantized, keras.layers.Conv2D):
    """`Conv2D` with a grid for each output channel."""

    plain = keras.layers.Conv2D

    def linear(self, inputs: Any, kernel: Any) -> Any:
        """Convolve."""
        return ops.conv(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv1D(Quantized, keras.layers.Conv1D):
    """`Conv1D` with a grid for each output channel, computed in two dimensions as in the file.

    The weights take their second dimension before they are rounded: the converter cannot follow
    the grids of channels through a reshape.
    """

    plain = keras.layers.Conv1D

    def weighted(self, inputs: Any, step: Any, training: bool | None) -> tuple[Any, Any]:
        """Convolve with a kernel of height 1."""
        if self.padding == "causal":
            before = self.dilation_rate[0] * (self.kernel_size[0] - 1)
            inputs = ops.pad(inputs, ((0, 0), (before, 0), (0, 0)))
        kernel, weight_step = self.rounded(ops.expand_dims(self.kernel.value, 0))
        outputs = ops.conv(
            ops.expand_dims(inputs, 1),
            kernel,
            strides=(1, *self.strides),
            padding="valid" if self.padding == "causal" else self.padding,
            data_format="channels_last",
            dilation_rate=(1, *self.dilation_rate),
        )
        return ops.squeeze(outputs, 1), step * weight_step


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedConv2DTranspose(Quantized, keras.layers.Conv2DTranspose):
    """`Conv2DTranspose` with one grid for all its weights: the converter takes no other."""

    plain = keras.layers.Conv2DTranspose
    per_channel = False

    def rounded(self, kernel: Any) -> tuple[Any, Any]:
        """Fold the normalisation into the output axis, which stands before the last, and round."""
        if self.norm is not None:
            kernel = kernel * self.norm.factor()[:, None]
        return rounded_weights(kernel, self.weight_bits, self.per_channel)

    def linear(self, inputs: Any, kernel: Any) -> Any:
        """Convolve the other way."""
        return ops.conv_transpose(
            inputs,
            kernel,
            strides=self.strides,
            padding=self.padding,
            output_padding=self.output_padding,
            data_format="channels_last",
            dilation_rate=self.dilation_rate,
        )


def depthwise(inputs: Any, kernel: Any, layer: Any) -> Any:
    """Convolve each channel for itself; `kernel` has one last axis for channels × multiplier."""
    channels = inputs.shape[-1]
    kernel = ops.reshape(kernel, (*kernel.shape[:-1], channels, -1))
    return ops.depthwise_conv(
        inputs,
        kernel,
        strides=layer.strides,
        padding=layer.padding,
        data_format="channels_last",
        dilation_rate=layer.dilation_rate,
    )


def channels_together(kernel: Any) -> Any:
    """Give a depthwise kernel one last axis of channels × multiplier, as the file has it."""
    return ops.reshape(kernel, (*kernel.shape[:-2], -1))


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedDepthwiseConv2D(Quantized, keras.layers.DepthwiseConv2D):
    """`DepthwiseConv2D` with a grid for each channel that comes out."""

    plain = keras.layers.DepthwiseConv2D

    def weighted(self, inputs: Any, step: Any, training: bool | None) -> tuple[Any, Any]:
        """Convolve each channel for itself."""
        kernel, weight_step = self.rounded(channels_together(self.kernel.value))
        return depthwise(inputs, kernel, self), step * weight_step


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedSeparableConv2D(Quantized, keras.layers.SeparableConv2D):
    """`SeparableConv2D`: two operations in the file, so what is between them is rounded too.

    Args:
        between: arguments of the `ActivationRange` between the two.
        **kwargs: those of `Quantized` and of `keras.layers.SeparableConv2D`.
    """

    plain = keras.layers.SeparableConv2D

    def __init__(self, *args: Any, between: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.between = ActivationRange(**between, name="between")
        self._between = between

    def build(self, input_shape: Any) -> None:
        """Make the weights, and the parts inside."""
        super().build(input_shape)
        self.between.build(input_shape)

    def weighted(self, inputs: Any, step: Any, training: bool | None) -> tuple[Any, Any]:
        """Convolve each channel for itself, then mix them."""
        kernel = channels_together(self.depthwise_kernel.value)
        kernel, _ = rounded_weights(kernel, self.weight_bits, True)
        between, step = self.between(depthwise(inputs, kernel, self), training=training)
        kernel, weight_step = self.rounded(self.pointwise_kernel.value)
        return ops.conv(between, kernel, data_format="channels_last"), step * weight_step

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {**super().get_config(), "between": self._between}

    def float_parts(self) -> tuple[dict[str, Any], list[Any]]:
        """Return the config of the plain layer, and its variables in order."""
        config, variables = super().float_parts()
        del config["between"]
        others = {id(variable) for variable in self.between.variables}
        return config, [v for v in variables if id(v) not in others]


@keras.saving.register_keras_serializable(PACKAGE)
class QuantizedScaling(keras.layers.Layer):
    """A number for each channel times the input, plus another: what scales without neighbours.

    `Rescaling`, `Normalization` and a BatchNormalization that has nothing to be folded into become
    a depthwise convolution of size 1. That is one operation with exact weights and a bias of 32
    bits, where a product and a sum would round twice, with one grid for all channels.

    Args:
        layer: the layer that it stands for, or the `FoldedNormalization` of it.
        **kwargs: `name` and the like.
    """

    def __init__(self, layer: Any, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", **kwargs})
        made = keras.saving.deserialize_keras_object(layer) if isinstance(layer, dict) else layer
        self.layer = made
        self.supports_masking = True

    def build(self, input_shape: Any) -> None:
        """Build the layer inside."""
        if not self.layer.built:
            self.layer.build(input_shape)

    def call(self, inputs: Any, step: Any = 0.0, training: bool | None = None) -> Any:
        """Scale and shift each channel of inputs on a grid of this step."""
        channels, rank = inputs.shape[-1], len(inputs.shape)
        factor, offset = self._numbers(channels)
        kernel, weight_step = rounded_weights(ops.reshape(factor, (1, 1, channels)), 8, True)
        axes = list(range(1, 5 - rank))
        image = ops.expand_dims(inputs, axes) if axes else inputs
        kernel = ops.reshape(kernel, (1, 1, channels, 1))
        image = ops.depthwise_conv(image, kernel, data_format="channels_last")
        outputs = ops.squeeze(image, axes) if axes else image
        if isinstance(self.layer, FoldedNormalization):
            return self.layer.finished(outputs, 0.0, step * weight_step, training)
        return outputs + rounded_bias(offset, step * weight_step)

    def _numbers(self, channels: int) -> tuple[Any, Any]:
        layer = self.layer
        if isinstance(layer, FoldedNormalization):
            return layer.factor(), 0.0
        if isinstance(layer, keras.layers.Rescaling):
            factor, offset = layer.scale, layer.offset
        else:
            mean = ops.reshape(layer.mean, (-1,))
            deviation = ops.maximum(ops.sqrt(layer.variance), keras.config.epsilon())
            deviation = ops.reshape(deviation, (-1,))
            factor = deviation if layer.invert else 1.0 / deviation
            offset = mean if layer.invert else -mean / deviation
        wide = [ops.cast(value, "float32") for value in (factor, offset)]
        return ops.broadcast_to(wide[0], (channels,)), ops.broadcast_to(wide[1], (channels,))

    def compute_output_shape(self, input_shape: Any) -> Any:
        """Return the shape of the input."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        return {
            **super().get_config(),
            "layer": keras.saving.serialize_keras_object(self.layer),
        }


QUANTIZED = {
    kind.plain: kind
    for kind in (
        QuantizedDense,
        QuantizedConv1D,
        QuantizedConv2D,
        QuantizedConv2DTranspose,
        QuantizedDepthwiseConv2D,
        QuantizedSeparableConv2D,
    )
}
