"""What a Distiller looks at once, before it trains: the shapes, the first batch, the labels."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_kd import checks
from keras_kd.connections import Connections
from keras_kd.outputs import OutputReader, as_numbers, refuse_not_finite


class FirstLook:
    """The one look that a Distiller takes at its models and its data before the first step.

    Args:
        ask: function `x -> Answer` of the teacher; `None` where no loss asks it.
        learn: function `(x, training) -> Answer` of the student.
        connections: what joins them; its trained parts are made in the first pass of both.
    """

    def __init__(self, ask: Callable, learn: Callable, connections: Connections) -> None:
        self.ask = ask
        self.learn = learn
        self.connections = connections
        self.done = False
        self._outputs: Any = None

    def at_shapes(self, student: keras.Model) -> None:
        """Pass symbols through both models, where the student says what it takes."""
        specs = input_specs(student)
        if specs is not None:
            tf.function(self._meet, autograph=False).get_concrete_function(specs, None)

    def at_batch(
        self, x: Any, y: Any, teaching: Any, reader: OutputReader, *, eagerly: bool
    ) -> None:
        """Pass a batch through both models; refuse what cannot be learned from.

        Raises:
            ValueError: "Output … is not finite", "Layer … is not finite", and what reading the
                outputs refuses.
        """
        x, y = keras.tree.map_structure(_as_tensor, (x, y))
        meet = self._meet
        if not eagerly:
            meet = tf.function(meet, autograph=False).get_concrete_function(x, y)
        raw, features, own = meet(x, y)
        if teaching is not None:
            teaching.learn(raw)
            for path, feature in features.items():
                for leaf in keras.tree.flatten(feature):
                    refuse_not_finite(f"Layer {path!r} of the teacher", as_numbers(leaf))
        reader.learn(own)
        self.connections.check_activations(teaching and teaching.kinds, reader.kinds)
        self._outputs = own

    def at_labels(self, loss: Any, y: Any, kinds: list[str] | None, names: list[str]) -> None:
        """Refuse labels without a class, and warn of a loss that mistakes logits."""
        check_labels(loss, y, self._outputs, names)
        warn_of_logits(loss, kinds or [], self._outputs, names)

    def _meet(self, x: Any, y: Any) -> tuple[Any, Any, Any]:
        student = self.learn(x, training=False)
        teacher = self.ask(x)
        if teacher is None:
            return [], {}, student.own
        with tf.init_scope():  # variables are made outside the graph, as a strategy needs it
            self.connections.join(teacher, student)
        self.connections.values(teacher, student, y, None, tf.constant(0))
        return teacher.raw, teacher.features, student.own


def _as_tensor(value: Any) -> Any:
    return None if value is None else tf.convert_to_tensor(value)


def input_specs(model: keras.Model) -> Any:
    """Return the specs of a built Functional or Sequential model's inputs; `None` for others."""
    if not model.built or getattr(model, "inputs", None) is None:
        return None
    structure = getattr(model, "_inputs_struct", model.inputs)
    if isinstance(model, keras.Sequential):
        structure = model.inputs[0]
    return keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype, t.name), structure)


def peek(iterator: Any, steps: int) -> tuple[Any, Any]:
    """Take the batches of one execution from an iterator, to look at before they are trained on.

    Returns:
        The first batch, and an iterator over all that were taken, of the same kind wherever
        possible, so that no batch is lost, none is read twice and nothing is traced twice.

    Raises:
        ValueError: "There is no data to train on."
    """
    taken = list(itertools.islice(iterator, steps))
    if not taken:
        raise checks.bad_value(
            "There is no data to train on.",
            given="a data set without a single batch",
            expected="one batch or more",
            fix="check the file, the split and the filters of the data; a data set that was read "
            "to its end must be made again, or repeated.",
        )
    return taken[0], _again(taken, iterator)


def _again(taken: list, iterator: Any) -> Iterator:
    spec = getattr(iterator, "element_spec", None)
    plain = isinstance(iterator, tf.data.Iterator) and all(
        isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(spec)
    )
    if not plain:
        return iter(taken)
    return iter(tf.data.Dataset.from_generator(lambda: iter(taken), output_signature=spec))


def local_batch(data: Any, strategy: tf.distribute.Strategy) -> Any:
    """Return what the first replica sees of a batch."""
    return tf.nest.map_structure(lambda v: strategy.experimental_local_results(v)[0], data)


def no_labels(weight: float) -> ValueError:
    """Make the error for batches without labels where the labels' loss counts."""
    return checks.bad_value(
        f"Labels are needed at student_loss_weight={weight}.",
        given="batches without labels",
        expected="batches (x, y)",
        fix="give the labels, or make the Distiller with student_loss_weight=0 to learn from the "
        "teacher alone.",
    )


def nothing_to_train(name: str) -> ValueError:
    """Make the error for a student without trainable weights."""
    return checks.bad_value(
        f"Student {name!r} has nothing to train.",
        given="no trainable weights",
        expected="a student with trainable weights",
        fix="set student.trainable = True, and compile again.",
    )


def check_labels(loss: Any, y: Any, outputs: Any, names: list[str]) -> None:
    """Refuse integer labels that the student has no class for.

    Raises:
        ValueError: "A label has no class".
    """
    losses, labels_of = _by_output(loss, outputs, names), _by_output(y, outputs, names)
    leaves = keras.tree.flatten(outputs)
    for one, label, output in zip(losses or [], labels_of or [], leaves, strict=False):
        if not _is_sparse(one) or label is None or not len(output.shape):
            continue
        labels, classes = np.asarray(label), int(output.shape[-1])
        if labels.size and labels.max() >= classes:
            raise checks.bad_value(
                "A label has no class in the student's output.",
                given=f"label {int(labels.max())}, output of shape {tuple(output.shape)}",
                expected=f"labels from 0 to {classes - 1}",
                fix="give the student as many outputs as there are classes, or number the labels "
                "from 0.",
            )


def warn_of_logits(loss: Any, kinds: list[str], outputs: Any, names: list[str]) -> None:
    """Warn once where the student gives logits and the loss takes them for probabilities."""
    losses = _by_output(loss, outputs, names)
    if losses is None or len(losses) != len(kinds):
        return
    wrong = [_says_probabilities(o) and k == "logits" for o, k in zip(losses, kinds, strict=True)]
    if any(wrong):
        warnings.warn(
            checks.message(
                "The student gives logits, but the compiled loss takes them for probabilities.",
                given=f"{losses[wrong.index(True)]!r:.60} with from_logits=False",
                expected="from_logits=True",
                fix="compile with keras.losses.SparseCategoricalCrossentropy(from_logits=True) or "
                "its like.",
            ),
            stacklevel=2,
        )


def _by_output(given: Any, outputs: Any, names: list[str]) -> list[Any] | None:
    """Line losses or labels up with the flat outputs, as Keras does; `None` where they do not."""
    leaves = keras.tree.flatten(outputs)
    if isinstance(given, dict):
        keys = keras.tree.flatten({k: k for k in outputs}) if isinstance(outputs, dict) else names
        return [given.get(key) for key in keys] if len(keys) == len(leaves) else None
    parts = list(given) if isinstance(given, (list, tuple)) else [given]
    return parts if len(parts) == len(leaves) else None


def _is_sparse(loss: Any) -> bool:
    if isinstance(loss, str):
        return loss in ("sparse_categorical_crossentropy", "SparseCategoricalCrossentropy")
    sparse = keras.losses.SparseCategoricalCrossentropy
    return isinstance(loss, sparse) and loss.get_config().get("ignore_class") is None


def _says_probabilities(loss: Any) -> bool:
    if isinstance(loss, str):
        return loss.lower().replace("_", "") in (
            "sparsecategoricalcrossentropy",
            "categoricalcrossentropy",
            "binarycrossentropy",
        )
    known = (
        keras.losses.SparseCategoricalCrossentropy,
        keras.losses.CategoricalCrossentropy,
        keras.losses.BinaryCrossentropy,
    )
    return isinstance(loss, known) and not loss.get_config()["from_logits"]
