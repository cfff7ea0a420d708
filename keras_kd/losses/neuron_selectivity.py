"""Huang and Wang, "Like What You Like: … via Neuron Selectivity Transfer" (2017)."""

from __future__ import annotations

import math

import keras
from keras import ops

from keras_kd.features import positions, unit
from keras_kd.losses import base
from keras_kd.losses.base import Tensor
from keras_kd.projectors import resize


def neuron_selectivity(teacher_features: Tensor, student_features: Tensor) -> Tensor:
    """Return the squared MMD between the channels' maps under k(a, b) = (aᵀb)², of `(batch,)`.

    Args:
        teacher_features: `(batch, positions…, channels)`.
        student_features: as many axes; it is resized bilinearly to the teacher's size.
    """
    sizes = tuple(teacher_features.shape)[1:-1]
    if sizes != tuple(student_features.shape)[1:-1] or None in sizes:
        student_features = resize(student_features, tuple(ops.shape(teacher_features))[1:-1])
    teacher, student = (unit(positions(side), 1) for side in (teacher_features, student_features))
    channels = teacher.shape[-1] + student.shape[-1]
    if None not in sizes and 2 * math.prod(sizes) < channels:
        return _by_positions(teacher, student)
    return _by_channels(teacher, student)


def _by_channels(teacher: Tensor, student: Tensor) -> Tensor:
    """Mean k(tᵢ, tⱼ) + mean k(sᵢ, sⱼ) − 2·mean k(tᵢ, sⱼ), from maps as columns."""
    return (
        _mean_kernel(teacher, teacher)
        + _mean_kernel(student, student)
        - 2.0 * _mean_kernel(teacher, student)
    )


def _mean_kernel(left: Tensor, right: Tensor) -> Tensor:
    products = ops.matmul(ops.transpose(left, (0, 2, 1)), right)
    return ops.mean(ops.square(products), axis=(1, 2))


def _by_positions(teacher: Tensor, student: Tensor) -> Tensor:
    """The same number as ‖mean tᵢtᵢᵀ − mean sᵢsᵢᵀ‖²: smaller where channels outnumber positions."""
    return ops.sum(ops.square(_mean_square(teacher) - _mean_square(student)), axis=(1, 2))


def _mean_square(maps: Tensor) -> Tensor:
    return ops.matmul(maps, ops.transpose(maps, (0, 2, 1))) / maps.shape[-1]


@keras.saving.register_keras_serializable(package="keras_kd")
class NeuronSelectivity(base.FeatureLoss):
    """Match what the neurons of a layer select: the distribution of its channels' maps.

    Use it between convolutional layers of any widths: the channels of a layer are samples of one
    distribution, so they need not pair up and nothing is trained. Each channel's map, as a vector
    over the positions, is divided by its L2 norm; then the squared maximum mean discrepancy under
    the polynomial kernel k(a, b) = (aᵀb)² (degree 2, constant 0) is:

        mean k(tᵢ, tⱼ) + mean k(sᵢ, sⱼ) − 2 · mean k(tᵢ, sⱼ), averaged over the batch

    The authors' code leaves out the first term, which is constant and has no gradient; it is kept
    here, so that the loss is 0 at teacher = student. Where height, width or length differ, the
    student's feature is resized bilinearly to the teacher's. Zeros at padded positions change
    nothing. It is small: the authors' code for ImageNet weights it by 50.

    Args:
        teacher_layer_name: path of the teacher's layer, or a list of paths; `None` is the model's
            output. Its feature is `(batch, height, width, channels)` or `(batch, length,
            channels)`.
        student_layer_name: path of the student's layer, or a list of as many; pairs are added up.
        name: name in the logs. Defaults to `"neuron_selectivity"`.

    Raises:
        ValueError: "the shapes of teacher and student differ", "a feature of one position".

    Reference:
        Huang and Wang 2017, section 4: the loss, and the polynomial kernel among the choices.

    Example:
    ```python
    import numpy as np
    import keras_kd as kd

    loss = kd.losses.NeuronSelectivity()
    teacher = np.array([[[2.0], [0.0]]])  # one channel, which selects the first of two positions
    print(float(loss.compute_loss(teacher, teacher[:, ::-1])))  # 1 + 1 - 2·0 = 2.0
    ```
    """

    paper = "Huang and Wang 2017 (NST)"
    ignores_padding = True

    def per_example(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Return each example's squared discrepancy."""
        return neuron_selectivity(teacher, student)

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse features that are no maps of the same kind; sizes and channels may differ."""
        base.refuse_unlike_maps(self, teacher, student, "has nothing to select")
