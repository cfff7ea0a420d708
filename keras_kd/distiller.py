"""The Distiller: one teacher pass, one student pass, a sum of named losses, one step."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from keras_kd import checks, compiled_step, epochs, first_look, replicas, schedules, updates
from keras_kd.attached import Answer
from keras_kd.configs import restored
from keras_kd.connections import Connections
from keras_kd.keras_models import computes_in_float16, supports_jit
from keras_kd.outputs import OutputReader
from keras_kd.soft_batch import inputs_of
from keras_kd.taps import TappedModel, call_model, check_inputs, output_names
from keras_kd.teachers import AbsentTeacher, Teacher, as_teacher, no_model, refuse_shared_weights
from keras_kd.trackers import LossTracker, logs


@keras.saving.register_keras_serializable(package="keras_kd")
class Distiller(epochs.Trainer):
    """Train a student on a teacher's soft targets and the true labels, with `compile` and `fit`.

    It is a drop-in superset of `keras.distillation.Distiller`. What is trained, saved and exported
    is the student (and, while training, the projectors of feature losses); the teacher is left as
    it was, and only remembered by its fingerprint:

        total = student_loss_weight · student_loss(y, s)
                + (1 − student_loss_weight) · Σ weightᵢ · lossᵢ(t, s) + Σ student.losses

    The logs hold `loss` (the total), `student_loss`, each distillation loss under its name
    (unweighted), each schedule under its own (`student_loss_weight`, `<loss>_temperature`,
    `<loss>_weight`) and your metrics. In `evaluate`, `loss` is student_loss + Σ student.losses, and
    the teacher is not called.

    Args:
        teacher: a `keras.Model`, a list of them (an ensemble), a `kd.Teacher`, or `kd.SoftTargets`
            (then `fit` takes `soft_targets.attach(data)`).
        student: a `keras.Model`, Functional, Sequential or subclassed. It is trained in place.
        distillation_losses: one loss or a list, of `kd.losses` or `keras.distillation`.
        distillation_loss_weights: one number or schedule for each loss. Defaults to 1.0 each.
            Weights that are all 0 skip the teacher.
        student_loss_weight: share of the labels' loss, from 0 to 1, or a schedule of it; at 0
            neither labels nor a compiled loss are needed. Defaults to 0.5.
        name: name of the model. Defaults to `"distiller"`.
        **kwargs: passed on to `keras.Model`.

    Raises:
        ValueError: "The teacher is no model", "The student is no model", "… weights for … losses",
            "There is no layer …" for an unknown tap, "The shapes of teacher and student differ"; on
            the first batch "Output … is not finite" and what else cannot be learned from.

    Reference:
        Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network", section 2.

    Example:
    ```python
    import keras, numpy as np
    import keras_kd as kd

    def mlp(width):
        layers = [keras.layers.Dense(width, activation="relu"), keras.layers.Dense(3)]
        return keras.Sequential([keras.Input((8,)), *layers])

    x, y = np.random.rand(64, 8), np.random.randint(0, 3, 64)
    distiller = kd.Distiller(mlp(64), mlp(8), kd.LogitsDistillation(temperature=4.0))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile("adam", loss, metrics=["accuracy"])
    history = distiller.fit(x, y, epochs=2, verbose=0)
    print(sorted(history.history))  # ['accuracy', 'logits_distillation', 'loss', 'student_loss']
    ```
    """

    def __init__(
        self,
        teacher: Any,
        student: keras.Model,
        distillation_losses: Any,
        distillation_loss_weights: Any = None,
        student_loss_weight: Any = 0.5,
        name: str = "distiller",
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("autocast", False)  # the student casts its inputs by its own policy
        super().__init__(name=name, **kwargs)
        self._convert_input_args = False
        if not isinstance(student, keras.Model):
            raise no_model("student", student)
        self.student = student
        self.student_loss_weight = schedules.fraction("student_loss_weight", student_loss_weight)
        self.connections = self._connect(distillation_losses, distillation_loss_weights)
        self._tapped = TappedModel(student, self.connections.student_paths)
        self._student_loss_tracker = LossTracker(name="student_loss")
        self._loss_trackers = [LossTracker(name=name) for name in self.connections.names]
        self._schedule_trackers = schedules.trackers(
            {"student_loss_weight": self.student_loss_weight, **self.connections.schedules()}
        )
        self._evaluations, self._one_loss = 0, False
        self._unlabelled = {False: False, True: False}
        self._set_teacher(as_teacher(teacher))
        if student.built:
            self.built = True

    def _connect(self, losses: Any, weights: Any) -> Connections:
        """Join the teacher and the student by the losses; another kind of teaching joins others."""
        return Connections(losses, weights)

    # --- what it is made of ---------------------------------------------------------------------

    @property
    def distillation_losses(self) -> list:
        """The distillation losses, in order."""
        return list(self.connections.terms)

    @property
    def distillation_loss_weights(self) -> list[Any]:
        """The weight of each distillation loss."""
        return self.connections.factors

    @property
    def teacher(self) -> Teacher | AbsentTeacher:
        """The teacher as a plain `kd.Teacher` that Keras cannot track; its model is `.model`."""
        return self._teacher

    @property
    def output_names(self) -> list[str]:
        """The student's output names, for losses and metrics given by name."""
        return self.student.output_names

    def __setattr__(self, name: str, value: Any) -> None:
        """Attach a teacher without tracking it; keep what a compiled step is made of as it is."""
        if name == "teacher":
            self.attach_teacher(value)
            return
        if name in ("student", "student_loss_weight") and name in vars(self):
            raise checks.bad_value(
                f"A Distiller keeps the {name} that it was made with.",
                given=f"distiller.{name} = {value!r:.60}",
                expected="no assignment",
                fix=f"make a new Distiller with {name}=….",
            )
        super().__setattr__(name, value)

    def attach_teacher(self, teacher: Any, allow_different: bool = False) -> None:
        """Attach the teacher again after loading, or another one.

        Args:
            teacher: as in the constructor.
            allow_different: take a teacher whose fingerprint is not the one remembered.

        Raises:
            ValueError: "This is not the teacher that the student learned from."
        """
        given = as_teacher(teacher)
        known, new = self._teacher.fingerprint(), given.fingerprint()
        if known != new and not allow_different:
            raise checks.bad_value(
                "This is not the teacher that the student learned from.",
                given=f"{given.name!r}, fingerprint {new[:12]}",
                expected=f"{self._teacher.name!r}, fingerprint {known[:12]}",
                fix="load that teacher, or say that you mean it: "
                "attach_teacher(teacher, allow_different=True).",
            )
        self._set_teacher(given)

    def _set_teacher(self, teacher: Any) -> None:
        self._teacher = teacher
        self._teaching: Any = None
        self.train_function = None
        if not isinstance(teacher, AbsentTeacher):
            self._teaching = teacher.attached(self.connections.teacher_paths)
        stated = ["values" if kind == "values" else "auto" for kind in teacher.stated]
        self._reader = OutputReader(
            self.student,
            who=f"student {self.student.name!r}",
            stated=stated[0] if len(stated) == 1 else stated,
            activation="softmax",
            fix="compile a loss that says it (from_logits=…), end the student in a keras.layers."
            'Activation, or use kd.Teacher(model, outputs="values") for a regression.',
        )
        self._look = first_look.FirstLook(self._ask, self.learn, self.connections)
        if self._teaching is not None and all(model.built for model in teacher.models):
            self._look.at_shapes(self.student, self._teaching.batch_of)
        refuse_shared_weights(self._teacher.models, self.student)

    @property
    def needs_teacher(self) -> bool:
        """Whether a step asks the teacher: not where its losses all weigh nothing."""
        return self.student_loss_weight != 1.0 and any(self.connections.factors)

    @property
    def needs_labels(self) -> bool:
        """Whether a step asks for labels: not where their loss weighs nothing."""
        return self.student_loss_weight != 0.0

    # --- Keras's interface ----------------------------------------------------------------------

    def compile(
        self, optimizer: Any = "adam", loss: Any = None, metrics: Any = None, **kwargs: Any
    ) -> None:
        """Set the optimizer, the loss on the labels and the metrics, as in `keras.Model.compile`.

        Args:
            optimizer: Keras optimizer or its name. It gets loss scaling when any layer of the
                student computes in float16 (unless `auto_scale_loss=False`).
            loss: loss on the true labels, which sees the student's own outputs; a list or dict for
                several outputs. `None` is allowed at `student_loss_weight=0`.
            metrics: metrics on the true labels, as in Keras.
            **kwargs: `loss_weights`, `weighted_metrics`, `run_eagerly`, `steps_per_execution`,
                `auto_scale_loss`, as in Keras; `jit_compile`, whose default `"auto"` also lets XLA
                compile the step of a large student without convolutions on a CPU.

        Raises:
            ValueError: "A student loss is needed" for `loss=None` at a weight above 0.
        """
        if loss is None and self.needs_labels:
            raise first_look.no_loss(self.student_loss_weight)
        self.connections.refuse_names(metrics)
        self._auto_scale_loss = kwargs.get("auto_scale_loss", True)
        optimizer = keras.optimizers.get(optimizer)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if self._auto_scale_loss and not scaled and computes_in_float16(self.student):
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        automatic = kwargs.get("jit_compile", "auto") == "auto"
        if automatic and not supports_jit(self._teacher.models):
            kwargs["jit_compile"] = False
        super().compile(optimizer=optimizer, loss=loss, metrics=metrics, **kwargs)
        self._step = compiled_step.CompiledStep(automatic and not self.jit_compile)
        # Keras lists its loss tracker by itself, so it is not to be tracked as an attribute besides
        object.__setattr__(self, "_loss_tracker", LossTracker(name="loss"))

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Return the student's outputs."""
        return call_model(self.student, inputs_of(inputs), training)

    def build(self, input_shape: Any = None) -> None:
        """Build the student, where it is not yet."""
        if not self.student.built:
            self.student.build(input_shape)

    @compiled_step.without_autograph
    def train_step(self, data: Any) -> dict[str, Any]:
        """Learn from one batch: the teacher outside the tape, the student once inside it."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher = self._ask(x)
        with tf.GradientTape() as tape:
            student = self.learn(x, training=True)
            total = self._total_loss(teacher, student, y, sample_weight)
            scaled = self.optimizer.scale_loss(total)
        weights = self.trainable_weights
        updates.apply(self.optimizer, tape.gradient(scaled, weights), weights)
        self._track_total(total, x)
        return self._results(x, y, student.own, sample_weight)

    @compiled_step.without_autograph
    def test_step(self, data: Any) -> dict[str, Any]:
        """Evaluate the student on the labels alone; the teacher is not called."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        with self._student_only():
            y_pred = self(x, training=False)
            total = self.compute_loss(x, y, y_pred, sample_weight, training=False)
            known = y is not None and self._compile_loss is not None and replicas.count() == 1
            own = type(self).compute_loss is Distiller.compute_loss  # a subclass may add to it
            self._one_loss = known and own and not self.student.losses
            if not self._one_loss:  # as in a student's own `evaluate`: one tracker
                self._track_total(total, x)
            return first_look.evaluated(self._results(x, y, y_pred, sample_weight), y)

    def learn(self, x: Any, training: bool) -> Answer:
        """Run the student once, with its taps."""
        x = inputs_of(x)
        fix = "bring the data to that shape, or make the student for this data."
        check_inputs(self.student, x, f"Student {self.student.name!r}", fix)
        own, features = self._tapped(x, training=training)
        return Answer(self._reader(own), own, features, [own], output_names(self.student))

    def _ask(self, x: Any) -> Answer | None:
        if not self.needs_teacher:
            return None
        if self._teaching is None:
            self._teacher.attached()  # says that the teacher is absent
        return self._teaching(x)

    def _total_loss(self, teacher: Answer | None, student: Answer, y: Any, weight: Any) -> Any:
        """Add up this replica's part of the total: the gradients' sum over replicas is exact."""
        total = replicas.once([*self.student.losses, *self.connections.losses])
        student_loss = self._student_loss(y, student.own, weight)
        step = self.optimizer.iterations
        for schedule in self._schedule_trackers:
            schedule.update_state(step)
        share = schedules.at(self.student_loss_weight, step)
        if self.needs_labels:
            if student_loss is None:
                raise first_look.no_labels(self.student_loss_weight)
            total += share * student_loss
        if teacher is None:
            return total
        factors = self.connections.factors_at(step)
        values = self.connections.values(teacher, student, y, weight, step, training=True)
        terms = zip(self._loss_trackers, factors, values, strict=True)
        for tracker, factor, (value, count) in terms:
            tracker.update_state(value, sample_weight=count)
            if not isinstance(factor, float) or factor:
                total += (1.0 - share) * factor * replicas.share(count) * value
        return total

    def _student_loss(self, y: Any, y_pred: Any, sample_weight: Any) -> Any:
        """Return this replica's part of the loss on the labels, or `None` without them."""
        self._unlabelled[self._evaluating] = y is None
        if self._compile_loss is None or y is None:
            return None
        value = self._compile_loss(y, y_pred, sample_weight) * replicas.count()
        count = replicas.examples(y_pred)
        self._student_loss_tracker.update_state(value, sample_weight=count)
        return replicas.share(count) * value

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Any = None,
        training: bool = True,
    ) -> Any:
        """Return student_loss + Σ student.losses, which is what `evaluate` calls the loss."""
        student_loss = self._student_loss(y, y_pred, sample_weight)
        total = replicas.once(self.student.losses)
        return total if student_loss is None else total + student_loss

    def _track_total(self, total: Any, x: Any) -> None:
        batch = next(leaf for leaf in keras.tree.flatten(x) if leaf is not None)
        count = replicas.total(tf.cast(tf.shape(batch)[0], tf.float32)) / replicas.count()
        self._loss_tracker.update_state(total * replicas.count(), sample_weight=count)

    # --- logs -----------------------------------------------------------------------------------

    def _results(self, x: Any, y: Any, y_pred: Any, sample_weight: Any) -> dict[str, Any]:
        if y is None:
            return self.get_metrics_result()
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def get_metrics_result(self) -> dict[str, Any]:
        """Return the logs; what this pass does not compute is absent, not 0."""
        absent: list = [] if self.needs_teacher and not self._evaluating else [*self._loss_trackers]
        absent += self._schedule_trackers if self._evaluating else []
        if self._compile_loss is None or self._unlabelled[self._evaluating]:
            absent.append(self._student_loss_tracker)
            absent += [self._loss_tracker] if self._evaluating else []
        if self._compile_metrics is not None and not self._compile_metrics.built:
            absent.append(self._compile_metrics)
        one = self._evaluating and self._one_loss
        results = logs(self.metrics, [*absent, self._loss_tracker] if one else absent)
        return {"loss": results["student_loss"], **results} if one else results

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate the student on labelled data, as `keras.Model.evaluate`."""
        with self._student_only():
            return super().evaluate(*args, **kwargs)

    @property
    def _evaluating(self) -> bool:
        return self._evaluations > 0

    @contextlib.contextmanager
    def _student_only(self) -> Iterator[None]:
        self._evaluations += 1  # a number, since replicas take turns inside
        try:
            yield
        finally:
            self._evaluations -= 1

    # --- the first look -------------------------------------------------------------------------

    def make_train_function(self, force: bool = False) -> None:
        """Prepare the step; the first execution looks at its first batch before training on it."""
        undecided = not (self._look.done and self._step.decided)
        super().make_train_function(force=force or undecided)
        complete = self.built and (self.connections.shapes is not None or not self.needs_teacher)
        if complete and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)  # before a callback restores it
        if undecided:
            self.train_function = functools.partial(self._first_execution, self.train_function)

    def _first_execution(self, execute: Any, iterator: Any) -> Any:
        first, again = first_look.peek(iterator, self.steps_per_execution)
        if not self._look.done:
            self._look_at(first_look.local_batch(first, self.distribute_strategy))
        self.built, self.train_function = True, execute
        prepare = functools.partial(first_look.compile_pass, self._teaching, first, iterator)
        return self._step.first(self, again, iterator, prepare if self.needs_teacher else None)

    def _look_at(self, batch: Any) -> None:
        if not self.trainable_variables and self.student.built:
            raise first_look.nothing_to_train(self.student.name)
        asked = self._teaching if self.needs_teacher else None
        names = output_names(self.student) or []
        self._look.at_batch(batch, asked, self._reader, self.loss, names, eagerly=self.run_eagerly)
        refuse_shared_weights(self._teacher.models, self.student)

    # --- saving ---------------------------------------------------------------------------------

    def export(self, filepath: str, *args: Any, **kwargs: Any) -> None:
        """Export the student alone, as `keras.Model.export`."""
        self.student.export(filepath, *args, **kwargs)

    def get_config(self) -> dict[str, Any]:
        """Return what a saved Distiller is made of; of the teacher only its fingerprint."""
        return {
            **super().get_config(),
            **self.connections.get_config(),
            "student": keras.saving.serialize_keras_object(self.student),
            "student_loss_weight": schedules.serialize(self.student_loss_weight),
            "teacher": {"name": self._teacher.name, "fingerprint": self._teacher.fingerprint()},
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Distiller:
        """Make the Distiller again, without its teacher."""
        config = restored(config)
        shapes = config.pop("shapes")
        distiller = cls(**{**config, "teacher": AbsentTeacher(**config["teacher"])})
        if shapes is not None:
            distiller.connections.join_shapes(shapes)
        return distiller

    def get_compile_config(self) -> dict[str, Any] | None:
        """Return the arguments of `compile`."""
        config = super().get_compile_config()
        return config and {**config, "auto_scale_loss": self._auto_scale_loss}

    def compile_from_config(self, config: dict[str, Any]) -> None:
        """Compile again after loading, with the optimizer's variables made."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.built:
            self.optimizer.build(self.trainable_variables)
