"""Quantisation-aware training: a student that computes on the grids of its integer file.

The student is rebuilt with rounded weights and activations. What it answers is what the exported
file will answer, so training (best: distillation from the float student) mends what the rounding
breaks, and the file needs no representative data: the ranges are in the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np

from keras_kd import checks
from keras_kd.compress import networks, patterns, rewriting
from keras_kd.compress.quantizers import ActivationRange, Clock, FixedRange, calibrating
from keras_kd.keras_models import layers_of
from keras_kd.soft_batch import SoftBatch
from keras_kd.taps import call_model

RANGES = ("moving_average", "learned")


def quantization_aware(
    student: keras.Model,
    weight_bits: int = 8,
    activation_bits: int = 8,
    *,
    ranges: str = "moving_average",
    data: Any = None,
    calibration_batches: int = 16,
    warm_up_steps: int | None = None,
    freeze_after: int | None = None,
    momentum: float = 0.99,
    batch_statistics: bool = False,
    eight_bit_layers: Iterable[str] = (),
) -> keras.Model:
    """Rebuild a trained student so that it computes on the grids of its integer file.

    Use it where the integer file of a student (`tflite_int8` with representative data) loses too
    much, or where weights shall have 4 bits: train the model that comes back, from the float
    student or the teacher, and export it as `tflite_int8`, without representative data.

    Weights are rounded in every step, symmetrically, one grid for each output channel of a
    convolution and one for all weights of a `Dense`. Activations are rounded where the file keeps
    them: behind an operation with its BatchNormalization (folded into its weights) and its ReLU;
    `Concatenate` gives its inputs one range, pooling and reshaping keep theirs, sigmoid, tanh and
    softmax have the range that their kernels prescribe. Biases are rounded as the file's are.

    An int8 file differs from the model by one output step here and there. LiteRT's kernels for
    4-bit weights round twice, so such a file is off by several steps where the network is deep.

    Args:
        student: a built Functional or Sequential `keras.Model`; it is not changed. Nested models
            are replaced by their layers. The model that comes back computes in float32, whatever
            the student's policy.
        weight_bits: 8, or 4 (INT4 tensors in the file, an eighth of float32).
        activation_bits: 8; LiteRT's integer kernels know no other for both kinds of weights.
        ranges: `"moving_average"`: the ranges of activations follow those of the batches;
            `"learned"`: after the warm-up they are trained with the weights.
        data: inputs to calibrate the ranges on before training: an array (or the structure of them
            that the student takes), or a data set of batches `x`, `(x, y)` or
            `(x, y, sample_weight)`. With it the model can be evaluated and exported untrained.
        calibration_batches: how many batches of `data` to look at, at most; an array is cut into
            batches of 32.
        warm_up_steps: training steps in which activations are only watched and not rounded.
            Defaults to 0 with `data`, and 100 without.
        freeze_after: training steps after which ranges (and the BatchNorm statistics of
            `batch_statistics`) stand still, for the last part of the training. `None`: never, but
            for `FreezeRanges`, which counts epochs.
        momentum: of the moving average of the ranges.
        batch_statistics: whether BatchNormalizations normalise with the statistics of the batch
            until the freeze, as in Krishnamoorthi 2018. The default, the student's own statistics
            throughout, is what the file computes and needs no large batches; a trained student
            came out better with it.
        eight_bit_layers: names of layers whose weights keep 8 bits where `weight_bits=4`.

    Returns:
        A trainable Functional `keras.Model` of the student's name, with its weights. Its layers
        have the student's names, so that feature losses find them; a convolution whose
        BatchNormalization is folded in gives what comes after that, and a layer that gives an
        output leaves its name to the rounded one ("logits") and is called "logits_raw".
        `float_student` leads back.

    Raises:
        ValueError: "cannot be made quantisation-aware", naming the layers; "`weight_bits` must be
            8 or 4", "`activation_bits` must be 8", "There is no kind of ranges …", "There is no
            layer with weights …" in `eight_bit_layers`, "There is no data to calibrate on",
            "`freeze_after` (or `warm_up_steps`, `calibration_batches`) must be a whole number",
            "`momentum` must be between 0 and 1"; what is no model, not built or subclassed.

    Reference:
        Jacob et al. 2018, https://arxiv.org/abs/1712.05877 (rounding in training, ranges); Choi et
        al. 2018 (PACT), https://arxiv.org/abs/1805.06085 (learned ranges); Krishnamoorthi 2018,
        https://arxiv.org/abs/1806.08342 (grids of channels, BatchNorm, the freeze).

    Example:
        ```python
        import keras
        import numpy as np
        import keras_kd as kd

        student = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Conv2D(4, 3, activation="relu"),
             keras.layers.Flatten(), keras.layers.Dense(3)]
        )  # trained
        x, y = np.random.rand(32, 8, 8, 1), np.random.randint(0, 3, 32)
        student8 = kd.compress.quantization_aware(student, data=x)
        distiller = kd.Distiller(
            teacher=student,
            student=student8,
            distillation_losses=[kd.LogitsDistillation(temperature=2.0)],
            student_loss_weight=0.1,
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile("adam", loss=loss)
        distiller.fit(x, y, verbose=0)
        ```
    """
    _check(weight_bits, activation_bits, ranges)
    if warm_up_steps is None:
        warm_up_steps = 0 if data is not None else 100
    if freeze_after is not None:
        checks.count("freeze_after", freeze_after)
    settings = {
        "bits": activation_bits,
        "learned": ranges == "learned",
        "momentum": checks.fraction("momentum", momentum),
        "warm_up_steps": warm_up_steps and checks.count("warm_up_steps", warm_up_steps),
        "freeze_after": freeze_after,
    }
    network = patterns.laid_out(student)
    norm_freeze = freeze_after if batch_statistics else 0
    bits = _bits(network, weight_bits, eight_bit_layers)
    model = rewriting.quantized(network, bits, settings, norm_freeze)
    if data is not None:
        calibrate(model, data, checks.count("calibration_batches", calibration_batches))
    return model


def float_student(student: keras.Model) -> keras.Model:
    """Return the plain float model of a quantisation-aware one, with its weights as trained.

    Use it to export float formats, or to go on training without rounding.

    Args:
        student: what `quantization_aware` gave, trained or not; it is not changed.

    Returns:
        A Functional `keras.Model` of plain Keras layers in float32: convolutions and
        BatchNormalizations stand apart again, under their names.

    Raises:
        ValueError: "is not quantisation-aware"; what is no model or subclassed.

    Example:
        ```python
        import keras
        import keras_kd as kd

        student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        plain = kd.compress.float_student(kd.compress.quantization_aware(student))
        print(type(plain.layers[-1]).__name__)  # Dense
        ```
    """
    networks.check(student)
    layers = layers_of(student)
    if not any(isinstance(layer, (ActivationRange, FixedRange)) for layer in layers):
        raise checks.bad_value(
            f"The model {student.name!r} is not quantisation-aware.",
            given=f"layers {', '.join(sorted({type(layer).__name__ for layer in layers[1:]}))}",
            expected="a model that kd.compress.quantization_aware made",
            fix="use the model as it is: it is a float model already.",
        )
    return rewriting.plain(student)


class FreezeRanges(keras.callbacks.Callback):
    """Let ranges and BatchNorm statistics stand still from an epoch on.

    In the last part of a quantisation-aware training the weights settle better on grids that do
    not move (Krishnamoorthi 2018, section 3.2.2). `quantization_aware(freeze_after=…)` does the
    same by the count of steps.

    Args:
        epoch: the first epoch, counted from 0, in which nothing moves.

    Raises:
        ValueError: "`epoch` must be a whole number", "There are no ranges to freeze".

    Example:
        ```python
        import keras_kd as kd

        callback = kd.compress.FreezeRanges(epoch=2)
        # distiller.fit(…, epochs=3, callbacks=[callback])
        ```
    """

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = 0 if epoch == 0 else checks.count("epoch", epoch)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Freeze where it is time to."""
        if epoch != self.epoch:
            return
        clocks = [layer for layer in layers_of(self.model) if isinstance(layer, Clock)]
        if not clocks:
            raise checks.bad_value(
                "There are no ranges to freeze.",
                given=f"a {type(self.model).__name__} without a quantisation-aware student",
                expected="a model that kd.compress.quantization_aware made, or its Distiller",
                fix="leave the callback out, or train the quantisation-aware model.",
            )
        for clock in clocks:
            clock.freeze()


def calibrate(model: keras.Model, data: Any, batches: int) -> None:
    """Watch the ranges of a quantisation-aware model on data, in inference and unrounded.

    Raises:
        ValueError: "There is no data to calibrate on".
    """
    seen = 0
    with calibrating(layers_of(model)):
        for x in itertools.islice(_inputs_of(data), batches):
            call_model(model, x, False)
            seen += 1
    if not seen:
        raise checks.bad_value(
            "There is no data to calibrate on.",
            given="a data set without a single batch",
            expected="an array of inputs, or a data set of batches",
            fix="check the split; a data set that was read to its end must be made again.",
        )


def _inputs_of(data: Any) -> Iterator[Any]:
    """Go through the inputs of arrays, 32 rows at a time, or of a data set's batches."""
    arrays = keras.tree.flatten(data)
    if all(isinstance(leaf, np.ndarray) for leaf in arrays):
        x = data[0] if isinstance(data, tuple) else data
        for start in range(0, len(arrays[0]) if arrays else 0, 32):
            yield keras.tree.map_structure(lambda a, s=start: a[s : s + 32], x)
        return
    is_numbered = isinstance(data, keras.utils.PyDataset)
    for batch in map(data.__getitem__, range(data.num_batches)) if is_numbered else data:
        x = batch[0] if isinstance(batch, tuple) else batch
        yield x.inputs if isinstance(x, SoftBatch) else x


def _check(weight_bits: int, activation_bits: int, ranges: str) -> None:
    """Refuse what no integer kernel computes with."""
    if weight_bits not in (4, 8) or isinstance(weight_bits, bool):
        raise checks.bad_value(
            "`weight_bits` must be 8 or 4.",
            given=repr(weight_bits),
            expected="8 (INT8 weights) or 4 (INT4 weights)",
            fix="leave it out for 8 bits; 4 halves the file once more.",
        )
    if activation_bits != 8:
        raise checks.bad_value(
            "`activation_bits` must be 8.",
            given=repr(activation_bits),
            expected="8: LiteRT's integer kernels compute with 8-bit activations",
            fix="leave it out; for activations of 16 bits export the float student as "
            "tflite_int16x8.",
        )
    if ranges not in RANGES:
        raise checks.unknown_name("kind of ranges", ranges, RANGES)


def _bits(network: patterns.Network, weight_bits: int, wide: Iterable[str]) -> dict[str, int]:
    """Return the bits of each layer with weights to be rounded, by name."""
    names = [step.name for step in network.steps if step.rule == patterns.WEIGHTED]
    bits = dict.fromkeys(names, weight_bits)
    for name in [wide] if isinstance(wide, str) else wide:
        if name not in bits:
            raise checks.unknown_name("layer with weights to round", name, names)
        bits[name] = 8
    return bits
