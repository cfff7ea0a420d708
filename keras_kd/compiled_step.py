"""A Distiller's step in the graph: compiled by XLA as a whole where that is faster."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled

from keras_kd.compiled_pass import compiles, is_fixed, is_slow
from keras_kd.epochs import Trainer
from keras_kd.keras_models import layers_of

LARGE = 1 << 15  # weights of a student from which the time to compile the step comes back

Method = TypeVar("Method", bound=Callable)


def without_autograph(step: Method) -> Method:
    """Let AutoGraph leave a step as it is where a user's own `tf.function` calls it.

    Its Python needs no rewriting, which takes ten seconds. What the step calls is not rewritten
    either, as in `fit`: an override or a loss of a user's own has to write `tf.cond` for an `if`
    on a tensor.

    The decorated method does not lead to the bare one: by `__wrapped__`, TensorFlow would call that
    without `self` where the bound method is an argument of a `tf.function`.
    """
    plain = tf.autograph.experimental.do_not_convert(step)
    plain.__signature__ = inspect.signature(step, eval_str=True)
    plain.__annotations__ = inspect.get_annotations(step, eval_str=True)
    del plain.__wrapped__
    return plain


class CompiledStep:
    """Decide, at the first execution after `compile`, whether XLA compiles the step as a whole.

    It does for networks of dense layers in float32 on a CPU, whose step is then up to a third
    shorter; Keras leaves XLA out there. What XLA lacks an operation for runs as it would have.

    Args:
        auto: whether `compile` left it to the library, with `jit_compile="auto"`.
    """

    def __init__(self, auto: bool) -> None:
        self._auto = auto
        self.decided = False

    def first(
        self,
        distiller: Any,
        again: Callable[[], Iterator],
        iterator: Any,
        prepare: Callable[[], None] | None,
    ) -> Any:
        """Run the first execution, and leave the Distiller with the step that is used from now on.

        Args:
            distiller: it has its plain step.
            again: makes an iterator over the batches of this execution.
            iterator: what the later batches come from.
            prepare: is called before the plain step runs.
        """
        plain, self.decided = distiller.train_function, True
        if self._auto and _pays(distiller, iterator):
            steps = int(distiller.optimizer.iterations)
            distiller.jit_compile = True
            try:
                Trainer.make_train_function(distiller, force=True)
                return distiller.train_function(again())
            except tf.errors.OpError:
                if int(distiller.optimizer.iterations) != steps:
                    raise  # it was compiled
                distiller.train_function = plain
            finally:
                distiller.jit_compile = False  # `evaluate` and `predict` are the student's own
        if prepare is not None and not distiller.run_eagerly:
            prepare()
        return plain(again())


def _pays(distiller: Any, iterator: Any) -> bool:
    """Say whether XLA makes the step faster: by the networks, their layers and the batches."""
    if not compiles() or distiller.run_eagerly or is_op_determinism_enabled():
        return False
    if tf.distribute.has_strategy() or not isinstance(iterator, tf.data.Iterator):
        return False
    if not all(map(is_fixed, tf.nest.flatten(iterator.element_spec, expand_composites=True))):
        return False
    if distiller.student.count_params() < LARGE:
        return False
    asked = distiller.teacher.models if distiller.needs_teacher else []
    layers = [layer for model in (distiller, *asked) for layer in layers_of(model)]
    return all(
        layer.supports_jit and layer.compute_dtype == "float32" and not is_slow(layer)
        for layer in layers
    )
