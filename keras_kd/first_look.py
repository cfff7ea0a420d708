"""What a Distiller looks at once, before it trains: the shapes, the first batch, the labels."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_kd import checks, student_losses
from keras_kd.attached import Answer
from keras_kd.connections import Connections
from keras_kd.numbered import numbered
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

    def at_shapes(self, student: keras.Model, batch_of: Callable) -> None:
        """Pass symbols through both models, where the student says what it takes.

        Args:
            student: the student.
            batch_of: makes x of the student's inputs, as the teacher needs it.
        """
        specs = input_specs(student)
        if specs is not None:
            trace = tf.function(lambda x: self._pass(x)[1].own, autograph=False)
            trace.get_concrete_function(batch_of(specs))

    def at_batch(
        self,
        data: Any,
        teaching: Any,
        reader: OutputReader,
        losses: Any,
        names: list[str],
        *,
        eagerly: bool,
    ) -> None:
        """Pass a batch through both models; refuse what cannot be learned from.

        Args:
            data: a batch `(x[, y[, sample_weight]])`.
            teaching: the attached teacher; `None` where no loss asks it.
            reader: reads the student's outputs.
            losses: the compiled losses on the labels.
            names: the names of the student's outputs.
            eagerly: whether the training runs eagerly.

        Raises:
            ValueError: "Output … is not finite", "Layer … is not finite", "A label has no class",
                and what reading the outputs refuses.
        """
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        x, y = keras.tree.map_structure(_as_tensor, (x, y))
        for label in keras.tree.flatten(y):
            student_losses.refuse_not_finite(label)
        meet = self._meet
        if not eagerly:
            meet = tf.function(meet, autograph=False).get_concrete_function(x, y)
        raw, features, own = meet(x, y)
        if teaching is not None:
            teaching.learn(raw)
            for path, feature in features.items():
                for leaf in keras.tree.flatten(feature):
                    refuse_not_finite(f"Layer {path!r} of the teacher", as_numbers(leaf))
        lined_up = student_losses.by_output(losses, own, names)
        reader.learn(own, [student_losses.said(loss) for loss in lined_up])
        self.connections.check_activations(teaching and teaching.kinds, reader.kinds, names)
        labels = student_losses.by_output(y, own, names)
        for loss, label, output in zip(lined_up, labels, keras.tree.flatten(own), strict=True):
            student_losses.check_labels(loss, label, output, weighted=weight is not None)
        if y is not None:
            student_losses.warn_of_logits(lined_up, reader.kinds or [])
        self.done = True

    def _pass(self, x: Any) -> tuple[Answer | None, Answer]:
        student, teacher = self.learn(x, training=False), self.ask(x)
        if teacher is not None:
            with tf.init_scope():  # variables are made outside the graph, as a strategy needs it
                self.connections.join(teacher, student)
            self.connections.check(teacher, student)
        return teacher, student

    def _meet(self, x: Any, y: Any) -> tuple[Any, Any, Any]:
        teacher, student = self._pass(x)
        if teacher is None:
            return [], {}, student.own
        self.connections.values(teacher, student, y, None, tf.constant(0))
        return teacher.raw, teacher.features, student.own


def _as_tensor(value: Any) -> Any:
    return value if value is None or tf.is_tensor(value) else tf.convert_to_tensor(value)


def input_specs(model: keras.Model) -> Any:
    """Return the specs of a built Functional or Sequential model's inputs; `None` for others."""
    if not model.built or getattr(model, "inputs", None) is None:
        return None
    if any(
        getattr(tensor, "sparse", False) or getattr(tensor, "ragged", False)
        for tensor in model.inputs
    ):
        return None
    structure = getattr(model, "_inputs_struct", model.inputs)
    if isinstance(model, keras.Sequential):
        structure = model.inputs[0]
    return keras.tree.map_structure(lambda t: tf.TensorSpec(t.shape, t.dtype, t.name), structure)


def peek(iterator: Any, steps: int) -> tuple[Any, Callable[[], Iterator]]:
    """Take the batches of one execution from an iterator, to look at before they are trained on.

    Returns:
        The first batch, and what makes an iterator over all that were taken, of the same kind
        wherever possible, so that no batch is lost, none is read twice and nothing is traced twice.

    Raises:
        ValueError: "There is no data to train on", and what Python code in the data set raises.
    """
    try:
        taken = list(itertools.islice(iterator, steps))
    except tf.errors.InvalidArgumentError as error:
        raise _in_its_own_words(error) from error
    if not taken:
        raise checks.bad_value(
            "There is no data to train on.",
            given="a data set without a single batch",
            expected="one batch or more",
            fix="check the file, the split and the filters of the data; a data set that was read "
            "to its end must be made again, or repeated.",
        )
    return taken[0], functools.partial(_again, taken, iterator)


def _in_its_own_words(error: Exception) -> Exception:
    """Return the `ValueError` that Python code in a data set raised, without TensorFlow around."""
    words = str(error).partition("ValueError: ")[2].partition("\nTraceback")[0]
    return ValueError(words) if words else error


def _again(taken: list, iterator: Any) -> Iterator:
    spec = getattr(iterator, "element_spec", None)
    plain = isinstance(iterator, tf.data.Iterator) and all(
        isinstance(leaf, tf.TensorSpec) for leaf in tf.nest.flatten(spec)
    )
    if not plain:
        return iter(taken)
    batches = [[leaf.numpy() for leaf in tf.nest.flatten(batch)] for batch in taken]
    return iter(numbered(len(batches), batches.__getitem__, spec))


def compile_pass(teaching: Any, first: Any, iterator: Any) -> None:
    """Let XLA compile the teacher's pass where that pays and it is known what batches will come.

    Args:
        teaching: the attached teacher.
        first: a first batch, which has been looked at.
        iterator: what the later batches come from.
    """
    if isinstance(iterator, tf.data.Iterator):
        both = (first, iterator.element_spec)
        teaching.compile(*(keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in both))


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


def no_loss(weight: Any) -> ValueError:
    """Make the error for `compile` without a loss where the labels count."""
    return checks.bad_value(
        f"A student loss is needed at student_loss_weight={weight}.",
        given="compile(loss=None)",
        expected="a loss on the labels",
        fix="pass loss=…, or make the Distiller with student_loss_weight=0 to learn from the "
        "teacher alone.",
    )


def evaluated(logs: dict[str, Any], y: Any) -> dict[str, Any]:
    """Return the logs of an evaluation, or refuse one that had nothing to look at.

    Raises:
        ValueError: "There is nothing to evaluate".
    """
    if logs:
        return logs
    raise checks.bad_value(
        "There is nothing to evaluate: `evaluate` compares the student with labels.",
        given="batches without labels" if y is None else "labels, and no loss or metrics for them",
        expected="batches (x, y), and a loss or metrics in `compile`",
        fix="give the labels." if y is None else "compile with a loss or metrics.",
    )


def nothing_to_train(name: str) -> ValueError:
    """Make the error for a student without trainable weights."""
    return checks.bad_value(
        f"Student {name!r} has nothing to train.",
        given="no trainable weights",
        expected="a student with trainable weights",
        fix="set student.trainable = True, and compile again.",
    )
