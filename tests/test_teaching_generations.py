"""Chains of assistants and born-again generations: who learns from whom, and what comes back."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest

import keras_kd as kd
from keras_kd.teaching import born_again, chain
from tests import references
from tests.models import LOGITS, Subclassed, data, mlp
from tests.test_distiller import clone, difference


class Notes:
    """A `distil` that notes down who taught whom, and moves the student a little."""

    def __init__(self) -> None:
        self.lessons: list[tuple] = []

    def __call__(self, teacher, student) -> str:
        """Teach one model."""
        self.lessons.append((teacher, student))
        student.set_weights([weight + 1.0 for weight in student.get_weights()])
        return f"lesson {len(self.lessons)}"


def distil(teacher, student):
    x, y = data()
    distiller = kd.Distiller(teacher, student, kd.LogitsDistillation(temperature=2.0))
    distiller.compile(keras.optimizers.SGD(0.1), LOGITS)
    return distiller.fit(x, y, verbose=0)


# --- chains ---------------------------------------------------------------------------------------


def test_each_model_of_a_chain_learns_from_the_one_before():
    teacher, *rest = models = [mlp(16), mlp(8), mlp(4), mlp(2)]
    before = clone(teacher)
    notes = Notes()
    taught = chain(models, notes)
    assert notes.lessons == [(models[0], models[1]), (models[1], models[2]), (models[2], models[3])]
    assert taught.models == rest
    assert taught.histories == ["lesson 1", "lesson 2", "lesson 3"]
    assert difference(teacher, before) == 0.0


def test_a_chain_trains_as_distillers_one_after_the_other():
    teacher, assistant, student = mlp(16), mlp(8), mlp(4)
    copies = [clone(assistant), clone(student)]
    taught = chain([teacher, assistant, student], distil)
    distil(teacher, copies[0])
    distil(copies[0], copies[1])
    assert difference(assistant, copies[0]) == difference(student, copies[1]) == 0.0
    assert [sorted(history.history) for history in taught.histories] == [
        ["logits_distillation", "loss", "student_loss"]
    ] * 2


def test_a_dense_chain_learns_from_the_mean_of_all_before():
    x, _ = data()
    models = [mlp(16), mlp(8), mlp(4), mlp(2)]
    notes = Notes()
    chain(models, notes, dense=True)
    teachers = [teacher for teacher, _ in notes.lessons]
    assert teachers[0] is models[0]
    assert [teacher.models for teacher in teachers[1:]] == [models[:2], models[:3]]
    probabilities = [references.softmax(model(x).numpy()) for model in models[:3]]
    given = references.softmax(teachers[2](x).numpy())
    np.testing.assert_allclose(given, np.mean(probabilities, axis=0), atol=1e-6)


@pytest.mark.parametrize("dense", [False, True])
def test_a_chain_starts_with_whatever_a_distiller_takes(dense):
    models = [mlp(16), mlp(15)]
    for first in (models, kd.Teacher(models[0]), kd.EnsembleTeacher(models)):
        notes = Notes()
        chain([first, mlp(8), mlp(4)], notes, dense=dense)
        assert notes.lessons[0][0] is first
        before = models[:1] if isinstance(first, kd.Teacher) and len(first.models) == 1 else models
        if dense:
            assert notes.lessons[1][0].models == [*before, notes.lessons[0][1]]


def test_what_is_no_chain_is_refused():
    notes = Notes()
    for models in ([mlp()], [], mlp()):
        with pytest.raises(
            ValueError, match=r"A chain needs a teacher and a student[\s\S]*\[teacher"
        ):
            chain(models, notes)
    with pytest.raises(ValueError, match="The teacher is no model"):
        chain(["teacher", mlp()], notes)
    with pytest.raises(ValueError, match="The student is no model"):
        chain([mlp(), mlp(), None], notes)
    assert notes.lessons == []  # nothing is trained before all is seen


def test_a_model_that_stands_twice_in_a_chain_is_refused():
    teacher, student = mlp(), mlp()
    for models in ([teacher, student, student], [teacher, student, teacher], [[teacher], teacher]):
        with pytest.raises(ValueError, match=r"stands twice in the chain[\s\S]*clone_model"):
            chain(models, Notes())


@pytest.mark.parametrize("wrong", [None, "distil", mlp()], ids=["none", "a word", "a model"])
def test_what_cannot_teach_is_refused(wrong):
    with pytest.raises(TypeError, match=r"`distil` must be a function[\s\S]*kd\.Distiller"):
        chain([mlp(), mlp()], wrong)
    with pytest.raises(TypeError, match="`distil` must be a function"):
        born_again(mlp(), wrong)


# --- born again -----------------------------------------------------------------------------------


def test_each_generation_learns_from_the_one_before():
    teacher = mlp()
    before = clone(teacher)
    notes = Notes()
    family = born_again(teacher, notes)
    parents = [teacher, *family.models[:-1]]
    assert notes.lessons == list(zip(parents, family.models, strict=True))
    assert len(family.models) == 3  # the default
    assert family.histories == ["lesson 1", "lesson 2", "lesson 3"]
    assert difference(teacher, before) == 0.0


def test_generations_are_born_with_fresh_weights():
    teacher = mlp()
    born = []

    def note(parent, student):
        born.append(student.get_weights())
        return distil(parent, student)

    family = born_again(teacher, note, generations=2)
    kernels = [teacher.get_weights()[0], *[weights[0] for weights in born]]
    for one in range(3):
        for other in range(one):
            assert np.abs(kernels[one] - kernels[other]).max() > 0.01
    assert all(model.get_config() == family.models[0].get_config() for model in family.models)
    assert [layer.name for layer in family.models[1].layers] == ["hidden", "head"]
    assert family.histories[1].history["loss"]


def test_the_ensemble_is_the_mean_of_the_generations_without_the_teacher():
    """f̂(x) = Σ_{i=1..k} f(x, θᵢ)/k: Furlanello et al. 2018, section 3."""
    x, _ = data()
    family = born_again(mlp(), distil, generations=2)
    assert family.ensemble.models == family.models
    mean = np.mean([references.softmax(model(x).numpy()) for model in family.models], axis=0)
    given = references.softmax(family.ensemble(x).numpy())
    np.testing.assert_allclose(given, mean, atol=1e-6)


def test_the_ensemble_takes_outputs_for_what_they_are_said_to_be():
    x, _ = data()
    values = born_again(mlp(), Notes(), generations=2, outputs="values")
    mean = np.mean([model(x).numpy() for model in values.models], axis=0)
    np.testing.assert_allclose(values.ensemble(x), mean, rtol=1e-5)
    sigmoids = born_again(mlp(), Notes(), generations=2, activation="sigmoid")
    mean = np.mean([references.sigmoid(model(x).numpy()) for model in sigmoids.models], axis=0)
    np.testing.assert_allclose(references.sigmoid(sigmoids.ensemble(x).numpy()), mean, atol=1e-6)
    member = sigmoids.ensemble.members[0]
    assert (member.outputs, member.activation) == ("auto", "sigmoid")


def test_make_student_says_what_is_born():
    widths = iter((5, 6))
    family = born_again(mlp(), Notes(), lambda: mlp(next(widths)), generations=2)
    assert [model.get_layer("hidden").units for model in family.models] == [5, 6]


def test_a_subclassed_teacher_is_born_again():
    x, _ = data()
    teacher = Subclassed()
    teacher(x)
    family = born_again(teacher, distil, generations=1)
    assert type(family.models[0]) is Subclassed


def test_the_defaults():
    parameters = inspect.signature(born_again).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    assert defaults["make_student"] is None
    assert (defaults["generations"], defaults["outputs"]) == (3, "auto")
    assert defaults["activation"] == "softmax"
    assert inspect.signature(chain).parameters["dense"].default is False


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True])
def test_a_number_of_generations_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match="`generations` must be a whole number of 1 or more"):
        born_again(mlp(), Notes(), generations=wrong)


def test_what_is_not_born_is_refused():
    with pytest.raises(ValueError, match="The teacher is no model"):
        born_again([mlp()], Notes())
    with pytest.raises(ValueError, match=r"Generation 1 is no model[\s\S]*make_student="):
        born_again(mlp(), Notes(), lambda: None)
    student = mlp()
    with pytest.raises(ValueError, match=r"Generation 2 is not new[\s\S]*make_student="):
        born_again(mlp(), Notes(), lambda: student)
    teacher = mlp()
    with pytest.raises(ValueError, match="Generation 1 is not new"):
        born_again(teacher, Notes(), lambda: teacher)
    with pytest.raises(ValueError, match=r"Generation 1 starts as a copy[\s\S]*clone_model"):
        born_again(teacher, Notes(), lambda: clone(teacher))
