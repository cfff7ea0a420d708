"""Romero et al., "FitNets: Hints for Thin Deep Nets" (2015)."""

from __future__ import annotations

from typing import Any

import keras

from keras_kd import checks, features, keras_losses
from keras_kd.losses import base
from keras_kd.projectors import (
    ProjectingConnector,
    ProjectingConnectors,
    Projector,
    projector_for,
)


@keras.saving.register_keras_serializable(package="keras_kd")
class FeatureDistillation(base.FeatureLoss):
    """Teach an intermediate layer (a hint): the student's feature must predict the teacher's.

    Use it beside a loss on the logits when the student is deep or thin. Where the two features
    differ in channels a linear projector is trained with the student (a 1×1 convolution, or a dense
    layer), where they differ in height and width the student's is resized; neither is exported:

        mean over the feature of loss(t, r(s)), averaged over the batch

    Args:
        loss: a Keras loss by name, object or function `(t, s)`; or a list or dict of them for a
            layer with several outputs, `None` leaving one out. Defaults to `"mse"`, the mean
            over the elements, where the paper has half the sum.
        teacher_layer_name: path of the teacher's layer, e.g. `"backbone/block3/relu"`, or a list of
            paths; `None` is the model's output.
        student_layer_name: path of the student's layer, or a list of as many; pairs are added up.
        projector: `"auto"` makes one where shapes differ, `None` makes none (shapes must agree), a
            `keras.layers.Layer` is copied and used (a copy for each layer of a list).
        name: name in the logs. Defaults to `"feature_distillation"`.

    Raises:
        ValueError: "The shapes of teacher and student differ" where no projector may help,
            "Features of different rank cannot be matched by a projector", and "FeatureDistillation
            has no loss left to compute".

    Reference:
        Romero et al. 2015, equation 3; the regressor r is section 2.2.

    Example:
    ```python
    import keras_kd as kd

    hint = kd.FeatureDistillation(teacher_layer_name="block3", student_layer_name="block2")
    print(float(hint.compute_loss([[1.0, 2.0]], [[1.0, 4.0]])))  # 2.0
    ```
    """

    paper = "Romero et al. 2015 (FitNets)"
    trained_parts = "a linear projector where shapes differ"

    def __init__(
        self,
        loss: Any = "mse",
        teacher_layer_name: base.LayerNames = None,
        student_layer_name: base.LayerNames = None,
        projector: Any = "auto",
        name: str | None = None,
    ) -> None:
        super().__init__(teacher_layer_name, student_layer_name, name)
        self.loss = loss
        self.projector = _projector(projector)
        if all(term is None for term in keras.tree.flatten(self.terms())):
            raise checks.bad_value(
                "FeatureDistillation has no loss left to compute.",
                given=f"loss={loss!r}",
                expected="at least one loss that is not None",
                fix='name a loss, for example loss="mse".',
            )

    def terms(self) -> Any:
        """Return the loss of each output of the layer."""
        return keras.tree.map_structure(_term, self.loss)

    def connector(self, teacher_shapes: Any, student_shapes: Any) -> keras.layers.Layer | None:
        """Return the trained projector from the student's feature to the teacher's."""
        if self.projector is None or isinstance(teacher_shapes, dict):
            return None
        name = f"{self.name}_connector"
        if not isinstance(teacher_shapes, list):
            layer = self._projector_for(teacher_shapes, student_shapes)
            return None if layer is None else ProjectingConnector(layer, name=name)
        sides = teacher_shapes, student_shapes
        terms = self.terms_for(teacher_shapes)
        terms = terms if isinstance(terms, list) else [terms] * len(teacher_shapes)
        flat = all(isinstance(s, list) and all(isinstance(p, tuple) for p in s) for s in sides)
        if not flat or not len(terms) == len(teacher_shapes) == len(student_shapes):
            return None  # layers within layers; what does not pair up is refused with the outputs
        layers = [
            None if term is None else self._projector_for(*pair)
            for term, *pair in zip(terms, *sides, strict=True)
        ]
        fits = all(layer is None for layer in layers)
        return None if fits else ProjectingConnectors(layers, student_shapes, name=name)

    def _projector_for(self, teacher: tuple, student: tuple) -> Projector | None:
        if self.projector == "auto":
            return projector_for(teacher, student)
        return Projector(layer=_copy(self.projector), name="projector")

    def check_shapes(self, teacher: tuple, student: tuple) -> None:
        """Refuse features of different shape, and features without channels."""
        super().check_shapes(teacher, student)
        base.refuse_flat(self, student)

    def _fix_for_shapes(self) -> str:
        return (
            'use projector="auto" in kd.Distiller, which trains a projector between them '
            "(keras.distillation.Distiller trains none)."
        )


def _term(loss: Any) -> Any:
    if loss is None:
        return None
    function = keras_losses.resolve_loss(loss)
    if keras_losses.is_mean_square(function):
        function = features.mean_square
    return lambda teacher, student, y=None: function(teacher, student)


def _projector(projector: Any) -> Any:
    if projector is None or projector == "auto" or isinstance(projector, keras.layers.Layer):
        return projector
    raise checks.bad_value(
        "`projector` is no layer.",
        given=f"{projector!r} ({type(projector).__name__})",
        expected='"auto", None or a keras.layers.Layer',
        fix='leave it out: projector="auto" makes one where shapes differ.',
    )


def _copy(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Copy a layer and its weights: one loss object may serve two Distillers."""
    copy = type(layer).from_config(layer.get_config())
    if layer.built:
        copy.build_from_config(layer.get_build_config())
        copy.set_weights(layer.get_weights())
    return copy
