"""Deep mutual learning: students that teach each other while all of them learn."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from keras_kd import checks
from keras_kd.compiled_step import without_autograph
from keras_kd.configs import restored
from keras_kd.epochs import Trainer
from keras_kd.first_look import local_batch, peek
from keras_kd.losses import LogitsDistillation
from keras_kd.taps import call_model
from keras_kd.teachers import no_model
from keras_kd.teaching.peers import Pupil


@keras.saving.register_keras_serializable(package="keras_kd")
class MutualDistiller(Trainer):
    """Train two or more students at once, each on the labels and on what its peers think.

    Use it where there is no strong teacher: in the paper, untrained students that differ in their
    first weights (or in kind) get better together than each does alone. The total of student k, and
    what is minimised:

        totalₖ = w · student_loss(y, sₖ)
                 + (1 − w) · Σᵢ weightᵢ · 1/(K−1) · Σ_{l≠k} lossᵢ(sₗ, sₖ) + Σ studentₖ.losses
        loss   = Σₖ totalₖ

    A peer's outputs are constants in another student's loss. Each step runs every student once, in
    training mode, and all of them learn from the answers of that one pass (the paper's algorithm
    takes turns: a student sees peers that have already moved in this step). At the defaults,
    w = 0.5 and the KL divergence at temperature 1, `totalₖ` is half of the paper's L_C + mean KL:
    Adam does not see that factor, plain SGD needs twice the paper's learning rate.

    One optimizer serves all the students. Weight decay, `clipnorm` and `clipvalue` act on each
    weight by itself, so every student is trained as by an optimizer of its own;
    `global_clipnorm` would not be, and is refused. A float16 step whose gradients overflow in one
    student is skipped for all.

    The logs hold `loss` and, for each student under its name, `<name>_loss`,
    `<name>_student_loss`, `<name>_logits_distillation` and your metrics. In `evaluate`, the losses
    are those on the labels. Each student stays the plain model that was given; save or export it
    by itself: `distiller.students[0].export(path)`. `distiller.save(path)` keeps all of them with
    the optimizer, to train on after `keras.models.load_model(path)` (import this module before).

    Args:
        students: two or more `keras.Model`s of the same outputs, trained in place. They are called
            by their names in the logs; a name that comes again gets `_1`.
        distillation_losses: one loss or a list. Layers named by `teacher_layer_name` and
            `student_layer_name` must be in every student. Defaults to
            `kd.LogitsDistillation(temperature=1.0)`.
        distillation_loss_weights: one number or schedule for each loss. Defaults to 1.0 each.
        student_loss_weight: share of the labels' loss w, from 0 to 1, or a schedule. Defaults to
            0.5.
        name: name of the model. Defaults to `"mutual_distiller"`.
        **kwargs: passed on to `keras.Model`.

    Raises:
        ValueError: "Mutual learning needs two students or more", "The student is no model", "Two
            students share weights", "`global_clipnorm` would let one student's gradients shrink
            another's" in `compile`, "Students are exported one by one" in `export`, and what
            `kd.Distiller` refuses.

    Reference:
        Zhang, Xiang, Hospedales, Lu 2018, "Deep Mutual Learning", equations 1 to 7.

    Example:
    ```python
    import keras, numpy as np
    from keras_kd.teaching import MutualDistiller

    def mlp(name):
        layers = [keras.Input((8,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)]
        return keras.Sequential(layers, name=name)

    x, y = np.random.rand(64, 8), np.random.randint(0, 3, 64)
    distiller = MutualDistiller([mlp("a"), mlp("b")])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", loss, metrics=["accuracy"])
    history = distiller.fit(x, y, epochs=2, verbose=0).history
    print(sorted(history)[:3])  # ['a_accuracy', 'a_logits_distillation', 'a_loss']
    ```
    """

    def __init__(
        self,
        students: Sequence[keras.Model],
        distillation_losses: Any = None,
        distillation_loss_weights: Any = None,
        student_loss_weight: Any = 0.5,
        name: str = "mutual_distiller",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("autocast", False)  # each student casts its inputs by its own policy
        super().__init__(name=name, **kwargs)
        self._convert_input_args = False
        self.train_function = None
        _check_students(students)
        if distillation_losses is None:
            distillation_losses = LogitsDistillation(temperature=1.0)
        self._pupils = [
            Pupil(
                student,
                distillation_losses,
                distillation_loss_weights,
                student_loss_weight,
                peers=len(students) - 1,
                name=known_as,
            )
            for student, known_as in zip(students, _unique_names(students), strict=True)
        ]
        for pupil in self._pupils:
            pupil.meet([peer for peer in self._pupils if peer is not pupil])
        if all(student.built for student in students):
            self.built = True

    @property
    def students(self) -> list[keras.Model]:
        """The students, in order: the plain models that were given."""
        return [pupil.student for pupil in self._pupils]

    @property
    def distillation_losses(self) -> list:
        """The distillation losses, in order."""
        return self._pupils[0].distillation_losses

    @property
    def distillation_loss_weights(self) -> list[Any]:
        """The weight of each distillation loss."""
        return self._pupils[0].distillation_loss_weights

    @property
    def student_loss_weight(self) -> Any:
        """The share of the labels' loss."""
        return self._pupils[0].student_loss_weight

    @property
    def output_names(self) -> list[str]:
        """The first student's output names, for losses and metrics given by name."""
        return self._pupils[0].output_names

    # --- Keras's interface ----------------------------------------------------------------------

    def compile(
        self, optimizer: Any = "adam", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Set the optimizer of all students, and the loss and metrics of each.

        Args:
            optimizer: Keras optimizer or its name. It gets loss scaling when any layer of a student
                computes in float16 (unless `auto_scale_loss=False`).
            loss: loss on the true labels, which sees each student's own outputs. `None` is allowed
                at `student_loss_weight=0`.
            metrics: metrics on the true labels; every student gets its own copies.
            **kwargs: as in `keras.Model.compile`.

        Raises:
            ValueError: "`global_clipnorm` would let one student's gradients shrink another's",
                "A student loss is needed" for `loss=None` at a weight above 0.
        """
        optimizer = keras.optimizers.get(optimizer)
        _refuse_global_clipnorm(optimizer)
        self._auto_scale_loss = kwargs.get("auto_scale_loss", True)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if self._auto_scale_loss and not scaled and _computes_in_float16(self):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        of_each = {name: kwargs.pop(name, None) for name in ("loss_weights", "weighted_metrics")}
        self._compiled_for_each = {"loss": loss, "metrics": metrics, **of_each}
        super().compile(optimizer=optimizer, **kwargs)
        for pupil in self._pupils:
            pupil.compile(
                self.optimizer,
                loss,
                _copies(metrics),
                loss_weights=of_each["loss_weights"],
                weighted_metrics=_copies(of_each["weighted_metrics"]),
                auto_scale_loss=False,
                jit_compile=False,  # it is never run by itself
            )

    def call(self, inputs: Any, training: bool | None = None) -> dict[str, Any]:
        """Return the outputs of every student, by name."""
        return {pupil.name: call_model(pupil, inputs, training) for pupil in self._pupils}

    def build(self, input_shape: Any = None) -> None:
        """Build the students that are not yet built."""
        for pupil in self._pupils:
            pupil.build(input_shape)

    @without_autograph
    def train_step(self, data: Any) -> dict[str, Any]:
        """Run every student once; each learns from the labels and from its peers' answers."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with tf.GradientTape() as tape:
            answers = [pupil.learn(x, training=True) for pupil in self._pupils]
            totals = [
                pupil.total([*answers[:k], *answers[k + 1 :]], answers[k], y, sample_weight)
                for k, pupil in enumerate(self._pupils)
            ]
            scaled = self.optimizer.scale_loss(sum(totals[1:], start=totals[0]))
        weights = self.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, weights), weights, strict=True))
        for pupil, total, answer in zip(self._pupils, totals, answers, strict=True):
            pupil.log(total, x, y, answer, sample_weight)
        return self.get_metrics_result()

    @without_autograph
    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate every student on the labels alone."""
        with self._students_only():
            for pupil in self._pupils:
                pupil.test_step(data)
            return self.get_metrics_result()

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the students on labelled data, as `keras.Model.evaluate`."""
        with self._students_only():
            return super().evaluate(*args, **kwargs)

    @contextlib.contextmanager
    def _students_only(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for pupil in self._pupils:
                stack.enter_context(pupil._student_only())
            yield

    @property
    def metrics(self) -> list[keras.metrics.Metric]:
        """The metrics of all students."""
        return [metric for pupil in self._pupils for metric in pupil.metrics]

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the logs: of every student under its name, and the sum of their losses."""
        results: dict[str, Any] = {}
        totals = []
        for pupil in self._pupils:
            own = pupil.get_metrics_result()
            totals += [own["loss"]] if "loss" in own else []
            results |= {f"{pupil.name}_{name}": value for name, value in own.items()}
        return {"loss": sum(totals[1:], start=totals[0]), **results} if totals else results

    def make_train_function(self, force: bool = False) -> None:
        """Prepare the step; the first execution looks at its first batch before training on it."""
        ready = all(pupil.ready for pupil in self._pupils)
        super().make_train_function(force=force or not ready)
        complete = self.built and all(pupil.joined for pupil in self._pupils)
        if complete and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)  # before a callback restores it
        execute: Any = self.train_function
        if not ready:
            self.train_function = functools.partial(self._first_execution, execute)

    def _first_execution(self, execute: Callable, iterator: Any) -> Any:
        first, again = peek(iterator, self.steps_per_execution)
        batch = local_batch(first, self.distribute_strategy)
        for pupil in self._pupils:
            pupil.look(batch, eagerly=self.run_eagerly)
        _refuse_shared_weights(self.students)
        self.built = True
        self.train_function = execute
        return execute(again())

    # --- saving ---------------------------------------------------------------------------------

    def export(self, filepath: str, *args: Any, **kwargs: Any) -> None:
        """Refuse to export several models as one.

        Raises:
            ValueError: "Students are exported one by one".
        """
        raise checks.bad_value(
            "Students are exported one by one.",
            given=f"a MutualDistiller of {len(self._pupils)} students",
            expected="one student",
            fix="export the one that you ship: distiller.students[0].export(path).",
        )

    def get_config(self) -> dict[str, Any]:
        """Return what a saved MutualDistiller is made of."""
        first = self._pupils[0].get_config()
        shared = ("distillation_losses", "distillation_loss_weights", "student_loss_weight")
        return {
            **super().get_config(),
            **{key: first[key] for key in shared},
            "students": [keras.saving.serialize_keras_object(s) for s in self.students],
            "shapes": [pupil.connections.shapes for pupil in self._pupils],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> MutualDistiller:
        """Make the students and what joins them again."""
        config = restored(config)
        shapes = config.pop("shapes")
        distiller = cls(**config)
        for pupil, of_peers in zip(distiller._pupils, shapes, strict=True):
            if of_peers is not None and pupil.connections.shapes is None:
                pupil.connections.join_shapes(of_peers)
        return distiller

    def get_compile_config(self) -> dict[str, Any] | None:
        """Return the arguments of `compile`."""
        config = super().get_compile_config()
        if not config:
            return config
        of_each = keras.saving.serialize_keras_object(dict(self._compiled_for_each))
        return {**config, **of_each, "auto_scale_loss": self._auto_scale_loss}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile again after loading, with the optimizer's variables made."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)


def _check_students(students: Any) -> None:
    if not isinstance(students, (list, tuple)) or len(students) < 2:
        raise checks.bad_value(
            "Mutual learning needs two students or more.",
            given=f"students={students!r:.80}",
            expected="a list of two keras.Models or more",
            fix="pass [first, second]; for a trained teacher and one student use kd.Distiller.",
        )
    for student in students:
        if not isinstance(student, keras.Model):
            raise no_model("student", student)
    _refuse_shared_weights(students)


def _refuse_shared_weights(students: Sequence[keras.Model]) -> None:
    for one, other in itertools.combinations(students, 2):
        known = {id(weight) for weight in one.weights}
        shared = [weight for weight in other.trainable_weights if id(weight) in known]
        if shared or one is other:
            raise checks.bad_value(
                "Two students share weights, and would be one.",
                given=f"{one.name!r} and {other.name!r}"
                + (f", {shared[0].path!r} the first of {len(shared)}" if shared else ""),
                expected="students of their own weights",
                fix="make each student anew: keras.models.clone_model(student) has fresh weights.",
            )


def _refuse_global_clipnorm(optimizer: keras.optimizers.Optimizer) -> None:
    inner = getattr(optimizer, "inner_optimizer", optimizer)
    norm = getattr(inner, "global_clipnorm", None)
    if norm:
        raise checks.bad_value(
            "`global_clipnorm` would let one student's gradients shrink another's.",
            given=f"global_clipnorm={norm}",
            expected="clipping of each weight by itself",
            fix="use clipnorm= or clipvalue=.",
        )


def _computes_in_float16(model: keras.Model) -> bool:
    return any(layer.compute_dtype == "float16" for layer in model._flatten_layers())


def _copies(metrics: Any) -> Any:
    """Give a student metrics of its own: objects are made again, names and functions stay."""
    return keras.tree.map_structure(
        lambda m: type(m).from_config(m.get_config()) if isinstance(m, keras.Metric) else m,
        metrics,
    )


def _unique_names(students: Sequence[keras.Model]) -> list[str]:
    names: list[str] = []
    for student in students:
        numbered = (f"{student.name}_{count}" for count in itertools.count(1))
        free = itertools.chain([student.name], numbered)
        names.append(next(name for name in free if name not in names))
    return names
