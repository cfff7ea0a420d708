"""Teaching one model after the other: chains of assistants, and born-again generations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import keras

from keras_kd import checks
from keras_kd.teachers import EnsembleTeacher, Teacher, as_teacher, fingerprint, no_model

Distil = Callable[[Any, keras.Model], Any]


class Chain(NamedTuple):
    """What `chain` returns: the models that were taught, in order, and how each went."""

    models: list[keras.Model]
    histories: list[Any]


class BornAgain(NamedTuple):
    """What `born_again` returns: the generations in order, how each went, and all as a teacher."""

    models: list[keras.Model]
    histories: list[Any]
    ensemble: EnsembleTeacher


def chain(models: Sequence[Any], distil: Distil, *, dense: bool = False) -> Chain:
    """Teach each model of a list by the one before it: teacher, assistants, student.

    Use it where the student is much smaller than the teacher: a model of a size between them, an
    assistant, learns from the teacher what the student can follow. You say once how one model
    learns from another; every link of the chain is taught that way.

    Args:
        models: the trained teacher (whatever `kd.Distiller(teacher=…)` takes), then the untrained
            models in the order in which they are taught, each from the one before; the last is the
            student. They are trained in place.
        distil: function `(teacher, student) -> history` that trains the student; what it returns is
            kept.
        dense: let each model learn from all before it, as a `kd.EnsembleTeacher` of equal weights.
            (The paper adds up one loss for each of them, and drops some at random; at temperature 1
            the gradient of the mean of its KL divergences is the ensemble's.) Defaults to `False`.

    Returns:
        `Chain(models, histories)` of the models that were taught: `models[-1]` is the student.

    Raises:
        ValueError: "A chain needs a teacher and a student", "The student is no model", "A model
            stands twice in the chain".
        TypeError: "`distil` must be a function".

    Reference:
        Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant", section 3;
        `dense`: Son et al. 2021, "Densely Guided Knowledge Distillation using Multiple Teacher
        Assistants", section 3.

    Example:
    ```python
    import keras, numpy as np
    import keras_kd as kd
    from keras_kd.teaching import chain

    def mlp(width):
        layers = [keras.Input((8,)), keras.layers.Dense(width), keras.layers.Dense(3)]
        return keras.Sequential(layers)

    x, y = np.random.rand(64, 8), np.random.randint(0, 3, 64)

    def distil(teacher, student):
        distiller = kd.Distiller(teacher, student, kd.LogitsDistillation(temperature=4.0))
        distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        return distiller.fit(x, y, verbose=0)

    teacher, assistant, student = mlp(64), mlp(16), mlp(4)
    taught = chain([teacher, assistant, student], distil)
    print(taught.models[-1] is student, len(taught.histories))  # True 2
    ```
    """
    _check_distil(distil)
    if not isinstance(models, (list, tuple)) or len(models) < 2:
        raise checks.bad_value(
            "A chain needs a teacher and a student.",
            given=f"models={models!r:.80}",
            expected="a list: the teacher, any assistants, the student",
            fix="pass [teacher, assistant, student].",
        )
    teachers, taught = [as_teacher(models[0])], list(models[1:])
    _check_different(teachers[0], taught)
    histories = []
    for index, student in enumerate(taught):
        nearest = models[index]
        histories.append(distil(EnsembleTeacher(teachers) if dense and index else nearest, student))
        teachers.append(as_teacher(student))
    return Chain(taught, histories)


def born_again(
    teacher: keras.Model,
    distil: Distil,
    make_student: Callable[[], keras.Model] | None = None,
    *,
    generations: int = 3,
    outputs: Any = "auto",
    activation: str = "softmax",
) -> BornAgain:
    """Teach a model by itself, generation after generation, each born with fresh weights.

    Use it to gain from distillation without a bigger model: generation k has the teacher's size and
    learns from generation k − 1 (the first from the teacher). In the paper the generations beat
    their teacher, and their average beats each of them; it can teach a small student in turn:
    `kd.Distiller(teacher=result.ensemble, …)`.

    Args:
        teacher: the trained model, generation 0.
        distil: function `(teacher, student) -> history` that trains the student; what it returns is
            kept.
        make_student: function that makes an untrained model. Defaults to the teacher's layers with
            fresh weights, `keras.models.clone_model(teacher)`.
        generations: how many generations are taught, at least 1. Defaults to 3.
        outputs: what the generations give, as in `kd.Teacher`, for the ensemble. Defaults to
            `"auto"`.
        activation: `"softmax"` or `"sigmoid"`, as in `kd.Teacher`. Defaults to `"softmax"`.

    Returns:
        `BornAgain(models, histories, ensemble)`: the generations 1, 2, … in order, what `distil`
        returned for each, and the `kd.EnsembleTeacher` of the generations (without the teacher).

    Raises:
        ValueError: "The teacher is no model", "`generations` must be a whole number", "Generation …
            is no model", "Generation … is not new", "Generation … starts as a copy of its teacher".
        TypeError: "`distil` must be a function".

    Reference:
        Furlanello et al. 2018, "Born-Again Neural Networks", section 3 (sequence of teaching
        selves, born-again network ensembles).

    Example:
    ```python
    import keras, numpy as np
    import keras_kd as kd
    from keras_kd.teaching import born_again

    x, y = np.random.rand(64, 8), np.random.randint(0, 3, 64)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def distil(teacher, student):
        distiller = kd.Distiller(teacher, student, kd.LogitsDistillation(temperature=1.0))
        distiller.compile("adam", loss)
        return distiller.fit(x, y, verbose=0)

    teacher = keras.Sequential([keras.Input((8,)), keras.layers.Dense(3)])
    family = born_again(teacher, distil, generations=2)
    print(len(family.models), family.ensemble(x).shape)  # 2 (64, 3)
    ```
    """
    _check_distil(distil)
    if not isinstance(teacher, keras.Model):
        raise no_model("teacher", teacher)
    family, histories = [teacher], []
    for number in range(1, checks.count("generations", generations) + 1):
        make = make_student or (lambda: keras.models.clone_model(teacher))
        student = make()
        _check_new(number, student, family)
        histories.append(distil(family[-1], student))
        family.append(student)
    members = [Teacher(model, outputs=outputs, activation=activation) for model in family[1:]]
    ensemble = EnsembleTeacher(members, activation=activation)
    return BornAgain(family[1:], histories, ensemble)


def _check_distil(distil: Any) -> None:
    if isinstance(distil, keras.Model) or not callable(distil):
        raise checks.bad_type(
            "`distil` must be a function.",
            given=f"{distil!r:.80} ({type(distil).__name__})",
            expected="a function (teacher, student) -> history that trains the student",
            fix="define it: make a kd.Distiller, compile it, and return its fit(…).",
        )


def _check_different(first: Teacher, taught: Sequence[Any]) -> None:
    seen = {id(model) for model in first.models}
    for student in taught:
        if not isinstance(student, keras.Model):
            raise no_model("student", student)
        if id(student) in seen:
            raise checks.bad_value(
                "A model stands twice in the chain.",
                given=f"{student.name!r}, twice",
                expected="each model once",
                fix="make a model for each place: keras.models.clone_model(model).",
            )
        seen.add(id(student))


def _check_new(number: int, student: Any, family: Sequence[keras.Model]) -> None:
    fix = "let make_student build the model each time: make_student=lambda: build_model()."
    if not isinstance(student, keras.Model):
        raise checks.bad_value(
            f"Generation {number} is no model.",
            given=f"{student!r:.80} ({type(student).__name__}) from make_student()",
            expected="a keras.Model",
            fix=fix,
        )
    if any(student is model for model in family):
        raise checks.bad_value(
            f"Generation {number} is not new.",
            given=f"make_student() gave {student.name!r} again",
            expected="another model each time",
            fix=fix,
        )
    if student.built and fingerprint([student]) == fingerprint([family[-1]]):
        raise checks.bad_value(
            f"Generation {number} starts as a copy of its teacher.",
            given=f"{student.name!r} with the teacher's own weights",
            expected="fresh weights",
            fix="make the model anew, without loading or setting its weights: "
            "keras.models.clone_model(teacher).",
        )
